"""What a search notes of itself when it begins, and what its folder tells, finished or not, while it runs too."""

import dataclasses
import functools
import importlib
import importlib.metadata
import inspect
import json
import os
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recipes.engine.journal import read_journal
from recipes.engine.spaces import Decision, Space, choose
from recipes.engine.workers import name_processor
from zoo import atomic

JOURNAL = "journal.jsonl"
ABOUT = "about.json"
_PACKAGES = ("tensorflow", "keras", "keras-tuner", "numpy", "keras-searched-zoo")
# Options that say nothing about the search itself
_OF_A_RUN = """folder seed dry_run keep tensorboard save_seconds workers trial_cpus trial_gpus trials_at_once retries
    silence""".split()


@dataclasses.dataclass(frozen=True)
class Trial:
    """A trial that has ended; `score` is None and `message` the reason where it failed.

    `genome` holds, for each decision of the space, the place of the choice; `parents` the genomes that it was made of.
    `rung` is that of successive halving, from 0; the trial at the next one trains the same network further.
    """

    number: int
    genome: tuple[int, ...]
    score: float | None
    metrics: Mapping[str, float]
    seconds: float
    message: str = ""
    parents: tuple[tuple[int, ...], ...] = ()
    rung: int = 0

    def values(self, decisions: Sequence[Decision]) -> dict[str, Any]:
        """Returns decision -> choice."""
        return choose(decisions, self.genome)


@dataclasses.dataclass(frozen=True)
class Search:
    """One search as its folder tells of it.

    Attributes:
        folder: where it is.
        header: the journal's first line: settings, objective, seed and the number of choices of each decision.
        trials: those that have ended, in their order.
        refused: architectures that a limit refused before any training.
        about: see `write_about`; empty where the folder has none.
        seeds: what the searches with a seed each have left: seed -> {"history": a record an epoch, ...}.
    """

    folder: Path
    header: Mapping[str, Any]
    trials: tuple[Trial, ...]
    refused: int
    about: Mapping[str, Any]
    seeds: Mapping[int, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    @property
    def recipe(self) -> str:
        """Its name, without "recipes."."""
        return self.header.get("recipe", "search")

    @property
    def algorithm(self) -> str:
        """As the recipe's option has it, or the oracle's name; with halving, if there is."""
        return self.header.get("algorithm", self.header["oracle"]) + (", halving" if self.halves else "")

    @property
    def halves(self) -> bool:
        """Whether it is one by successive halving."""
        return self.header.get("fidelity") == "halving"

    @property
    def is_random(self) -> bool:
        """Whether it can be another's baseline."""
        return "random" in self.algorithm.lower() and not self.halves

    @property
    def seed(self) -> int:
        """Of the search."""
        return self.header["seed"]

    @property
    def objective(self) -> str:
        """The name of the score."""
        return self.header["objective"][0]

    @property
    def objectives(self) -> dict[str, str]:
        """Metric -> "max" or "min", where its front was searched for."""
        return dict(text.split(":") for text in self.about.get("config", {}).get("objectives", ()))

    @property
    def sign(self) -> int:
        """1 where more is better, -1 where less is."""
        return 1 if self.header["objective"][1] == "max" else -1

    @property
    def planned(self) -> int | None:
        """How many trials it is to have; None where nobody knows."""
        return self.about.get("trials")

    @property
    def finished(self) -> bool:
        """Whether it has come to its end: genotype.json is written then, and is not there before."""
        whole = self.planned is None or len(self.trials) >= self.planned
        return self.genotype.exists() and (whole or "exhausted" in self.stopped)

    @property
    def genotype(self) -> Path:
        """The file of the best architecture, which an unfinished search lacks."""
        return self.folder / "genotype.json"

    @functools.cached_property
    def stopped(self) -> str:
        """Why it ended, as its genotype has it; empty for an unfinished one."""
        return _read_object(self.genotype).get("source", {}).get("stopped", "")

    @functools.cached_property
    def result(self) -> dict[str, Any]:
        """What the recipe measured of the architecture that it found, where it does so."""
        return _read_object(self.folder / "result.json")

    @functools.cached_property
    def space(self) -> Space | None:
        """The space of its genomes; None where about.json does not name one of this version's."""
        space = _make_space(self.about.get("space"))
        choices = {} if space is None else {each.name: len(each.choices) for each in space.decisions}
        found = list(self.header["choices"].items())
        return space if list(choices.items()) == found[: len(found) - self.halves] else None

    @functools.cached_property
    def scored(self) -> list[Trial]:
        """The trials that did not fail; of a search by successive halving only those of the highest rung reached."""
        scored = [trial for trial in self.trials if trial.score is not None]
        highest = max((trial.rung for trial in scored), default=0)
        return [trial for trial in scored if trial.rung == highest]

    @functools.cached_property
    def supernet(self) -> list[dict[str, Any]]:
        """A record an epoch of the shared weights, where the search has one supernet and no seeds."""
        path = self.folder / "supernet.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []

    @functools.cached_property
    def truth(self) -> dict[str, Any]:
        """What a table of trained networks says of what it found (recipes.cards.truth), where one was given."""
        return _read_object(self.folder / "truth.json")

    @functools.cached_property
    def ranking(self) -> dict[str, Any]:
        """Seed -> accuracies of the same networks by shared weights and alone, with their tau; empty without any."""
        if found := _read_object(self.folder / "ranking.json"):
            return found
        random = self.result.get("random", {})
        if not random.get("shared_accuracies"):
            return {}
        pair = {"shared": random["shared_accuracies"], "alone": random["val_accuracies"]}
        return {str(self.seed): {**pair, "tau": self.result["kendall_tau"]}}

    @property
    def scores(self) -> list[float]:
        """Of the scored trials."""
        return [trial.score for trial in self.scored if trial.score is not None]

    def read_points(self, metrics: Sequence[str]) -> np.ndarray:
        """Returns a row of these metrics for each scored trial that has all of them."""
        found = [[trial.metrics.get(name) for name in metrics] for trial in self.scored]
        return np.array([row for row in found if None not in row], np.float64).reshape(-1, len(metrics))

    @property
    def best(self) -> Trial | None:
        """The first of the best trials; None where none has succeeded."""
        return max(self.scored, key=lambda trial: self.sign * (trial.score or 0.0), default=None)

    @property
    def seconds_before(self) -> float:
        """What the training of shared weights took, before the trials."""
        return sum(found.get("seconds", 0.0) for found in (*self.seeds.values(), *self.supernet))

    @property
    def seconds(self) -> float:
        """What the whole search took."""
        return self.seconds_before + sum(trial.seconds for trial in self.trials)


def read_search(folder: Path) -> Search:
    """Returns the search in a folder.

    Raises:
        ValueError: there is none, or its journal is damaged; the text says what to do.
        OSError: it cannot be read.
    """
    path = folder / JOURNAL
    if not path.is_file():
        raise ValueError(f"{folder} holds no search: there is no {JOURNAL}. Give the folder that a search wrote into")
    header, records = read_journal(path)
    if not {"objective", "seed", "oracle"} <= header.keys():
        raise ValueError(f"{path} is no journal of a search; give the folder that a search wrote into")
    name = header["objective"][0]
    starts = {record["start"]: record for record in records if "start" in record}
    trials = []
    for record in records:
        if "end" in record:
            score = record["metrics"].get(name) if record["status"] == "COMPLETED" else None
            number, message = record["end"], record.get("message", "")
            genome, *parents = map(tuple, [starts[number]["genome"], *starts[number].get("parents", ())])
            rung = 0
            if header.get("fidelity") == "halving":  # whose choice of epochs is the last one
                (*genome, rung), parents = genome, [parent[:-1] for parent in parents]
            ended = (score, record["metrics"], record["seconds"], message)
            trials.append(Trial(number, tuple(genome), *ended, tuple(parents), rung))
    refused = sum("refused" in record for record in records)
    seeds = {int(path.stem.removeprefix("seed")): _read_object(path) for path in (folder / "seeds").glob("seed*.json")}
    return Search(folder, header, tuple(trials), refused, _read_object(folder / ABOUT), dict(sorted(seeds.items())))


def _read_object(path: Path) -> dict[str, Any]:
    """Returns the object in a file, or an empty one where there is no file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}. Delete it, or bring back what was there") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no object; delete it, or bring back what was there")
    return found


def write_about(config: Any, recipe: str, images: Mapping[str, int], space: Space | None = None) -> None:
    """Writes about.json into config.folder.

    Where the search resumes with other software or on another machine, both are kept, in their order.

    Args:
        config: a recipe's Config.
        recipe: its name; the docstring and the PRESETS of its module tell of the paper.
        images: how many there are, "training" and "validation": less than was asked for, where the data has no more.
        space: that is searched; with it the journal's genomes can be read as architectures.
    """
    path = config.folder / ABOUT
    machines = []
    if path.exists():
        machines = json.loads(path.read_text(encoding="utf-8"))["machines"]
    here = {"hardware": describe_hardware(), "versions": list_versions()}
    if here not in machines:
        machines.append(here)
    module = _find_module(recipe, config)
    about = {"recipe": recipe, **_describe_paper(module), **_list_settings(config, module)}
    about |= {"images": dict(images), "machines": machines, "space": _describe_space(space)}
    atomic.write_atomically(path, json.dumps(about, indent=1, sort_keys=True) + "\n")


def _describe_space(space: Space | None) -> dict[str, Any] | None:
    if space is None or not dataclasses.is_dataclass(space):
        return None
    module = sys.modules[type(space).__module__]  # of the running program, if it is a recipe that defines its own
    name = module.__spec__.name if module.__spec__ else module.__name__
    return {"module": name, "class": type(space).__name__, "fields": dataclasses.asdict(space)}


def _make_space(described: Mapping[str, Any] | None) -> Space | None:
    """Returns what `_describe_space` described; only a space of this package is ever made."""
    if not described or not described["module"].startswith("recipes."):
        return None
    try:
        kind = getattr(importlib.import_module(described["module"]), described["class"])
    except (ImportError, AttributeError):  # another version's
        return None
    fields = described["fields"]
    if not (isinstance(kind, type) and issubclass(kind, Space) and dataclasses.is_dataclass(kind)):
        return None
    if {field.name for field in dataclasses.fields(kind)} != fields.keys():
        return None
    space = kind.__new__(kind)  # its __init__ may take other arguments than its fields
    for name, value in fields.items():
        object.__setattr__(space, name, _without_lists(value))
    return space


def _without_lists(value: Any) -> Any:
    return tuple(map(_without_lists, value)) if isinstance(value, list) else value


def _find_module(recipe: str, config: Any) -> Any:
    """Returns the recipe's module, which is the running program or imported; else the one that defines its Config."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None and spec.name == f"recipes.{recipe}":
        return main
    return sys.modules.get(f"recipes.{recipe}") or sys.modules[type(config).__module__]


def _describe_paper(module: Any) -> dict[str, Any]:
    """Returns title, source and departures, from the module's docstring."""
    text = inspect.getdoc(module) or ""
    title = text.partition("\n")[0].strip()
    paragraph = next((part for part in text.split("\n\n") if part.startswith("Source:")), "")
    source, _, departures = " ".join(paragraph.split()).partition("Departures:")
    return {"title": title, "source": source.removeprefix("Source:").strip(), "departures": split_list(departures)}


def split_list(text: str) -> list[str]:
    """Returns the parts of a list that semicolons divide, but for those in brackets."""
    parts = re.split(r";\s+(?![^()]*\))", text.strip().removesuffix("."))
    return [part for part in parts if part]


def _list_settings(config: Any, module: Any) -> dict[str, Any]:
    """Returns the options, and for each that differs from the paper's preset its value there."""
    own = _as_json(config)
    presets = getattr(module, "PRESETS", {})
    found = {"trials": own.get("trials"), "config": own}
    if "paper" not in presets:
        return found
    paper = _as_json(presets["paper"])
    differ = {name: value for name, value in paper.items() if name not in _OF_A_RUN and value != own[name]}
    return found | {"paper": differ}


def _as_json(config: Any) -> dict[str, Any]:
    values = dataclasses.asdict(config)
    return json.loads(json.dumps({name: str(v) if isinstance(v, Path) else v for name, v in values.items()}))


def list_versions() -> dict[str, str]:
    """Returns package -> version, for Python and what the searches run on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = getattr(sys.modules.get(package), "__version__", "of a checkout")  # or of another package
    return found


def describe_hardware() -> dict[str, Any]:
    """Returns the processor's name, the number of cores that this process may use, the GPUs, and the system."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpus = []
    if "tensorflow" in sys.modules:  # a search has it; to load it for a look would take seconds
        config = sys.modules["tensorflow"].config
        details = [config.experimental.get_device_details(gpu) for gpu in config.list_physical_devices("GPU")]
        gpus = [detail.get("device_name", "GPU") for detail in details]
    system = f"{platform.system()} {platform.machine()}"
    return {"processor": name_processor(), "cores": cores, "gpus": gpus, "system": system}
