"""Writes about.json when a search starts, and reads a search from its folder, finished or not, even while it runs."""

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
# Options that do not affect the result
_RUN_OPTIONS = """folder seed dry_run keep tensorboard save_seconds workers trial_cpus trial_gpus trials_at_once retries
    silence""".split()


@dataclasses.dataclass(frozen=True)
class Trial:
    """A trial that has ended; if it failed, `score` is None and `message` the reason.

    `genome` holds the index of the choice for each decision of the space, `parents` the genomes of the parents. `rung`
    is that of successive halving, from 0; the trial at the next rung trains the same network further.
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
class RecordedSearch:
    """One search, as read from its folder.

    Attributes:
        folder: of the search.
        header: the journal's first line: settings, objective, seed and number of choices of each decision.
        trials: those that have ended, in order.
        refused: number of architectures that a limit refused before training.
        about: see `write_about`; empty if the folder has no about.json.
        seeds: results of a search over seeds: seed -> {"history": one record per epoch, ...}.
    """

    folder: Path
    header: Mapping[str, Any]
    trials: tuple[Trial, ...]
    refused: int
    about: Mapping[str, Any]
    seeds: Mapping[int, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    @property
    def recipe(self) -> str:
        """Name of the recipe, without "recipes."."""
        return self.header.get("recipe", "search")

    @property
    def algorithm(self) -> str:
        """The recipe's option of this name, or else the oracle's name; with ", halving" if that was used."""
        return self.header.get("algorithm", self.header["oracle"]) + (", halving" if self.uses_halving else "")

    @property
    def uses_halving(self) -> bool:
        """Whether the search uses successive halving."""
        return self.header.get("fidelity") == "halving"

    @property
    def is_random(self) -> bool:
        """Whether the search can be the baseline of another."""
        return "random" in self.algorithm.lower() and not self.uses_halving

    @property
    def seed(self) -> int:
        """Seed of the search."""
        return self.header["seed"]

    @property
    def objective(self) -> str:
        """Name of the score."""
        return self.header["objective"][0]

    @property
    def objectives(self) -> dict[str, str]:
        """Metric -> "max" or "min" for a search of a front; otherwise empty."""
        return dict(text.split(":") for text in self.about.get("config", {}).get("objectives", ()))

    @property
    def sign(self) -> int:
        """1 if more is better, -1 if less is."""
        return 1 if self.header["objective"][1] == "max" else -1

    @property
    def planned(self) -> int | None:
        """Number of trials the search is to run, or None if unknown."""
        return self.about.get("trials")

    @property
    def finished(self) -> bool:
        """Whether the search has run to its end, when it writes genotype.json."""
        complete = self.planned is None or len(self.trials) >= self.planned
        return self.genotype.exists() and (complete or "exhausted" in self.stopped)

    @property
    def genotype(self) -> Path:
        """Path of the best architecture's file, which an unfinished search lacks."""
        return self.folder / "genotype.json"

    @functools.cached_property
    def stopped(self) -> str:
        """Why the search ended, according to its genotype; empty for an unfinished one."""
        return _read_json(self.genotype, {}).get("source", {}).get("stopped", "")

    @functools.cached_property
    def result(self) -> dict[str, Any]:
        """The recipe's measurements of the best architecture, if it makes any."""
        return _read_json(self.folder / "result.json", {})

    @functools.cached_property
    def space(self) -> Space | None:
        """The space of the genomes; None if about.json does not name a space of this version."""
        space = _make_space(self.about.get("space"))
        choices = {} if space is None else {each.name: len(each.choices) for each in space.decisions}
        found = list(self.header["choices"].items())
        return space if list(choices.items()) == found[: len(found) - self.uses_halving] else None

    @functools.cached_property
    def scored(self) -> list[Trial]:
        """The trials that did not fail; with successive halving only those at the highest rung reached."""
        scored = [trial for trial in self.trials if trial.score is not None]
        highest = max((trial.rung for trial in scored), default=0)
        return [trial for trial in scored if trial.rung == highest]

    @functools.cached_property
    def supernet(self) -> list[dict[str, Any]]:
        """One record per epoch of the shared weights, if the search has a single supernet and no seeds."""
        return _read_json(self.folder / "supernet.json", [])

    @functools.cached_property
    def truth(self) -> dict[str, Any]:
        """The result's rank in a table of trained networks (recipes.cards.truth), if a table was given."""
        return _read_json(self.folder / "truth.json", {})

    @functools.cached_property
    def ranking(self) -> dict[str, Any]:
        """Seed -> accuracies of the same networks with shared weights and stand-alone, with their tau."""
        if found := _read_json(self.folder / "ranking.json", {}):
            return found
        random = self.result.get("random", {})
        if not random.get("shared_accuracies"):
            return {}
        pair = {"shared": random["shared_accuracies"], "alone": random["val_accuracies"]}
        return {str(self.seed): {**pair, "tau": self.result["kendall_tau"]}}

    @property
    def scores(self) -> list[float]:
        """Scores of `scored`."""
        return [trial.score for trial in self.scored if trial.score is not None]

    def read_points(self, metrics: Sequence[str]) -> np.ndarray:
        """Returns one row of these metrics for each scored trial that has all of them."""
        found = [[trial.metrics.get(name) for name in metrics] for trial in self.scored]
        return np.array([row for row in found if None not in row], np.float64).reshape(-1, len(metrics))

    @property
    def best(self) -> Trial | None:
        """The best trial, the first one if several tie; None if none has succeeded."""
        return max(self.scored, key=lambda trial: self.sign * (trial.score or 0.0), default=None)

    @property
    def seconds_before(self) -> float:
        """Seconds that the training of shared weights took, before the trials."""
        return sum(found.get("seconds", 0.0) for found in (*self.seeds.values(), *self.supernet))

    @property
    def seconds(self) -> float:
        """Seconds that the whole search took."""
        return self.seconds_before + sum(trial.seconds for trial in self.trials)


def read_search(folder: Path) -> RecordedSearch:
    """Reads the search in a folder.

    Raises:
        ValueError: there is no search, or its journal is damaged; the text gives the remedy.
        OSError: a file cannot be read.
    """
    path = folder / JOURNAL
    if not path.is_file():
        raise ValueError(f"{folder} holds no search: there is no {JOURNAL}. Give the folder that a search wrote to")
    header, records = read_journal(path)
    if not {"objective", "seed", "oracle"} <= header.keys():
        raise ValueError(f"{path} is not the journal of a search; give the folder that a search wrote to")
    name = header["objective"][0]
    starts = {record["start"]: record for record in records if "start" in record}
    trials = []
    for record in records:
        if "end" in record:
            score = record["metrics"].get(name) if record["status"] == "COMPLETED" else None
            number, message = record["end"], record.get("message", "")
            genome, *parents = map(tuple, [starts[number]["genome"], *starts[number].get("parents", ())])
            rung = 0
            if header.get("fidelity") == "halving":  # the last choice is the rung
                (*genome, rung), parents = genome, [parent[:-1] for parent in parents]
            ended = (score, record["metrics"], record["seconds"], message)
            trials.append(Trial(number, tuple(genome), *ended, tuple(parents), rung))
    refused = sum("refused" in record for record in records)
    files = (folder / "seeds").glob("seed*.json")
    seeds = {int(path.stem.removeprefix("seed")): _read_json(path, {}) for path in files}
    about = _read_json(folder / ABOUT, {})
    return RecordedSearch(folder, header, tuple(trials), refused, about, dict(sorted(seeds.items())))


def _read_json(path: Path, default: Any) -> Any:
    """Returns what a JSON file holds, of the type of `default`; `default` if there is no file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return default
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}. Delete it, or restore the original") from error
    if not isinstance(found, type(default)):
        kind = "object" if isinstance(default, dict) else "list"
        raise ValueError(f"{path} holds no JSON {kind}; delete it, or restore the original")
    return found


def write_about(config: Any, recipe: str, images: Mapping[str, int], space: Space | None = None) -> None:
    """Writes about.json into config.folder.

    If a search resumes on another machine or with other software, about.json lists all of them in order.

    Args:
        config: a recipe's Config.
        recipe: its name; docstring and PRESETS of its module describe the paper.
        images: number of "training" and "validation" images, which may be fewer than the options ask for.
        space: the search space, to turn the journal's genomes into architectures.
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
    module = sys.modules[type(space).__module__]  # __main__ if the running recipe defines the space
    name = module.__spec__.name if module.__spec__ else module.__name__
    return {"module": name, "class": type(space).__name__, "fields": dataclasses.asdict(space)}


def _make_space(described: Mapping[str, Any] | None) -> Space | None:
    """Returns the space that `_describe_space` described; only ever creates spaces of this package."""
    if not described or not described["module"].startswith("recipes."):
        return None
    try:
        kind = getattr(importlib.import_module(described["module"]), described["class"])
    except (ImportError, AttributeError):  # a space of another version
        return None
    fields = described["fields"]
    if not (isinstance(kind, type) and issubclass(kind, Space) and dataclasses.is_dataclass(kind)):
        return None
    if {field.name for field in dataclasses.fields(kind)} != fields.keys():
        return None
    space = kind.__new__(kind)  # __init__ may take other arguments than the fields
    for name, value in fields.items():
        object.__setattr__(space, name, _to_tuples(value))
    return space


def _to_tuples(value: Any) -> Any:
    return tuple(map(_to_tuples, value)) if isinstance(value, list) else value


def _find_module(recipe: str, config: Any) -> Any:
    """Returns the recipe's module, running or imported; otherwise the module that defines the config's class."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None and spec.name == f"recipes.{recipe}":
        return main
    return sys.modules.get(f"recipes.{recipe}") or sys.modules[type(config).__module__]


def _describe_paper(module: Any) -> dict[str, Any]:
    """Returns title, source and departures from the module's docstring."""
    text = inspect.getdoc(module) or ""
    title = text.partition("\n")[0].strip()
    paragraph = next((part for part in text.split("\n\n") if part.startswith("Source:")), "")
    source, _, departures = " ".join(paragraph.split()).partition("Departures:")
    return {"title": title, "source": source.removeprefix("Source:").strip(), "departures": split_list(departures)}


def split_list(text: str) -> list[str]:
    """Splits a list at its semicolons, except those in parentheses."""
    parts = re.split(r";\s+(?![^()]*\))", text.strip().removesuffix("."))
    return [part for part in parts if part]


def _list_settings(config: Any, module: Any) -> dict[str, Any]:
    """Returns the options, and the paper preset's values of those that differ from it."""
    own = _to_json(config)
    presets = getattr(module, "PRESETS", {})
    found = {"trials": own.get("trials"), "config": own}
    if "paper" not in presets:
        return found
    paper = _to_json(presets["paper"])
    differ = {name: value for name, value in paper.items() if name not in _RUN_OPTIONS and value != own[name]}
    return found | {"paper": differ}


def _to_json(config: Any) -> dict[str, Any]:
    values = dataclasses.asdict(config)
    return json.loads(json.dumps({name: str(v) if isinstance(v, Path) else v for name, v in values.items()}))


def list_versions() -> dict[str, str]:
    """Returns package -> version, for Python and the packages that the searches use."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = getattr(sys.modules.get(package), "__version__", "of a checkout")
    return found


def describe_hardware() -> dict[str, Any]:
    """Returns the processor's name, the number of cores this process may use, the GPUs, and the system."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpus = []
    if "tensorflow" in sys.modules:  # searches have imported it; otherwise the import would take seconds
        config = sys.modules["tensorflow"].config
        details = [config.experimental.get_device_details(gpu) for gpu in config.list_physical_devices("GPU")]
        gpus = [detail.get("device_name", "GPU") for detail in details]
    system = f"{platform.system()} {platform.machine()}"
    return {"processor": name_processor(), "cores": cores, "gpus": gpus, "system": system}
