"""The options that searches share, each a flag. Imports neither Keras nor TensorFlow, so that `--help` is fast."""

import dataclasses
import importlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from recipes.images import FolderOptions
from recipes.training import check_at_least, check_options
from zoo.genotype import near

if TYPE_CHECKING:
    from recipes.oracles import SearchOracle


SEEDS = 1000  # most seeds of one search over seeds, which start at SEEDS times the search's own seed


def offer_oracle(oracle: str, module: str) -> Callable[[str], Any]:
    """Returns a module `__getattr__` that imports the oracle on first use: `--help` needs no TensorFlow."""

    def get(name: str) -> Any:
        if name != oracle:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        return getattr(importlib.import_module("recipes.oracles"), name)

    return get


def check_ops(ops: tuple[str, ...], known: tuple[str, ...]) -> None:
    """Raises ValueError unless `ops`, the operations to search, are distinct, at least one, and all `known`."""
    for op in ops:
        if op not in known:
            raise ValueError(f"ops names {op!r}{near(op, known)}; expected some of {','.join(known)}")
    if not ops or len(set(ops)) < len(ops):
        raise ValueError(f"ops is {','.join(ops)!r}; expected each operation once, and at least one of them")


def describe_excess(name: str, value: float, most: float | None) -> str | None:
    """Returns by how much a network exceeds a limit, or None if it does not or there is no limit."""
    number = "," if isinstance(value, int) else ".4g"
    return None if most is None or value <= most else f"{value:{number}} {name}, more than {most:{number}}"


def read_directions(
    option: str, texts: tuple[str, ...], known: tuple[str, ...], short: Mapping[str, str] = MappingProxyType({})
) -> dict[str, str]:
    """Parses texts such as params:min into metric -> "max" or "min"; `short` maps aliases to metrics."""
    found = {}
    for text in texts:
        name, _, direction = text.partition(":")
        name = short.get(name, name)
        if name not in known or direction not in ("max", "min"):
            raise ValueError(
                f"{option} names {text!r}{near(name, known)}; expected NAME:max or NAME:min, "
                f"with a name of {', '.join(known)}"
            )
        found[name] = direction
    return found


@dataclasses.dataclass(frozen=True)
class PlaceConfig:
    """Options for where trials run; none of them changes a trial's result."""

    workers: str = "0"  # 0 runs trials in this process, N in N processes on this machine, ray on a Ray cluster
    trial_cpus: float = 1.0  # cores that Ray gives each trial
    trial_gpus: float = 0.0  # GPUs that Ray gives each trial; with two or more, training is data-parallel
    trials_at_once: int | None = None  # trials submitted to Ray; none submits as many as the cluster has room for
    retries: int = 1  # times that a trial is retried after its worker died
    silence: float = 1800.0  # seconds without a report after which a trial's worker counts as dead

    def __post_init__(self):
        if self.workers != "ray" and not self.workers.isdecimal():
            raise ValueError(f"workers is {self.workers!r}; expected a whole number, 0 for this process, or ray")
        check_at_least(self, {"retries": 0, "trials_at_once": 1})
        check_options(self, "trial_cpus trial_gpus", "a number from 0", lambda value: 0 <= value < math.inf)
        check_options(self, "silence", "seconds above 0", lambda value: 0 < value < math.inf)

    @property
    def runs_elsewhere(self) -> bool:
        """Whether trials run in other processes."""
        return self.workers == "ray" or int(self.workers) > 0


PLACE_FIELDS = tuple(field.name for field in dataclasses.fields(PlaceConfig))


@dataclasses.dataclass(frozen=True)
class ChildConfig(PlaceConfig, FolderOptions):
    """Options of every trial-based search."""

    trials: int = 24  # networks to train
    seed: int = 0  # seeds the search, the networks' weights and the order of the images
    data: str = "fashion_mnist_small"  # embedded images, tfds:NAME or a folder of images; see recipes.images.sources
    image_size: int | None = 14  # images are resized to this many pixels a side; none keeps their size
    training_images: int | None = 2000  # images to train each trial on, classes in proportion; none takes all
    validation_images: int | None = 1000  # images to score each trial on; none takes all
    epochs: int = 2  # epochs per trial
    batch_size: int = 64  # images per training step
    learning_rate: float = 0.05  # learning rate at the start of the cosine decay
    weight_decay: float = 1e-4  # L2 on convolutions and the classifier
    augment: bool = False  # crop, flip and cutout, which short trials are better without
    max_params: int | None = None  # skip networks with more parameters
    max_macs: int | None = None  # skip networks with more multiply-accumulates per image
    max_sram: int | None = None  # skip networks whose int8 file needs a larger arena, in bytes
    max_flash: int | None = None  # skip networks whose int8 file is larger, in bytes
    max_latency: float | None = None  # skip networks that take more ms per image (LiteRT, one thread)
    keep: int = 3  # how many of the best trials' checkpoints to keep
    tensorboard: bool = False  # log each trial for TensorBoard, with its choices in the HParams table
    pareto: tuple[str, ...] = ("val_accuracy:max", "params:min")  # metrics and directions that pareto/ trades off
    table: str | None = None  # file of recipes.tabulate, or a shipped table's name: the card ranks the result in it
    dry_run: bool = False  # build the largest network, take one step, print what the search would need, and stop
    folder: Path = Path("runs/search")  # results, and the state to resume from

    metrics: ClassVar[tuple[str, ...]] = (
        "val_accuracy", "val_loss", "loss", "params", "macs", "peak_memory", "flash"
    )  # fmt: skip
    added: ClassVar[tuple[str, ...]] = ()  # options missing from older folders, whose searches had their defaults
    free: ClassVar[tuple[str, ...]] = ()  # a subclass's options that may change when a search resumes

    def __post_init__(self):
        super().__post_init__()
        least = {"trials": 1, "epochs": 1, "batch_size": 1, "seed": 0, "keep": 0}
        least |= {"image_size": 8, "training_images": 10, "validation_images": 10, "max_params": 1, "max_macs": 1}
        check_at_least(self, least | {"max_sram": 1, "max_flash": 1})
        check_options(self, "learning_rate", "a rate above 0", lambda value: value > 0)
        check_options(self, "weight_decay", "0 or more", lambda value: value >= 0)
        check_options(self, "max_latency", "milliseconds above 0", lambda value: value > 0)
        read_directions("pareto", self.pareto, self.metrics)

    def trade_off(self) -> dict[str, str]:
        """Returns metric -> "max" or "min" of the Pareto front."""
        return read_directions("pareto", self.pareto, self.metrics)

    def settings(self) -> dict[str, Any]:
        """Returns what must be equal for a search to resume: all but its length, its folder and what it keeps."""
        free = ("trials", "folder", "keep", "dry_run", "tensorboard", "pareto", "table", *PLACE_FIELDS, *self.free)
        # Folders of the version before lack these; their searches had the defaults
        free += tuple(name for name, value in self.folder_options.items() if value == getattr(FolderOptions, name))
        free += tuple(name for name in self.added if getattr(self, name) == getattr(type(self), name))
        values = {name: value for name, value in dataclasses.asdict(self).items() if name not in free}
        as_json = {Path: str, tuple: list}  # as JSON reads them back
        return {
            name: next((make(value) for kind, make in as_json.items() if isinstance(value, kind)), value)
            for name, value in values.items()
        }


@dataclasses.dataclass(frozen=True)
class TrialConfig(ChildConfig):
    """Options of the searches whose trials each train a network; a subclass adds the option `algorithm`."""

    fidelity: Literal["full", "halving"] = "full"  # halving trains new networks briefly, and only the best for `epochs`
    first_epochs: int = 1  # for halving: epochs that every network is trained for
    halving_factor: int = 3  # for halving: one network in this many is trained on, for this many times the epochs
    # search the Pareto front of two or three metrics, given with directions such as val_accuracy:max,latency:min
    # (algorithm nsga2); genotype.json is the best by the first
    objectives: tuple[str, ...] = ()
    generation: int = 8  # for nsga2: networks per generation; the paper has 100, in searches of thousands

    added: ClassVar[tuple[str, ...]] = ("fidelity", "first_epochs", "halving_factor", "objectives", "generation")

    def __post_init__(self):
        super().__post_init__()
        check_at_least(self, {"first_epochs": 1, "halving_factor": 2, "generation": 2})
        algorithm, implied = getattr(self, "algorithm"), getattr(type(self), "algorithm")  # noqa: B009 - a subclass's
        if self.objectives:
            known = tuple(dict.fromkeys((*self.metrics, "latency_ms")))
            found = read_directions("objectives", self.objectives, known, _SHORT_METRICS)
            object.__setattr__(self, "objectives", tuple(f"{name}:{direction}" for name, direction in found.items()))
            if algorithm == implied:  # objectives without an algorithm imply the one that searches a front
                object.__setattr__(self, "algorithm", "nsga2")
            self._check_objectives()
        elif algorithm == "nsga2":
            raise ValueError("algorithm is nsga2, but there are no objectives; give two or three, such as "
                             "--objectives=val_accuracy:max,params:min")  # fmt: skip
        if self.fidelity == "halving" and self.epochs <= self.first_epochs:
            raise ValueError(
                f"epochs is {self.epochs} and first_epochs {self.first_epochs}: halving trains the best networks for "
                f"longer than the others. Give --epochs={self.halving_factor**2 * self.first_epochs}, for example"
            )

    def _check_objectives(self) -> None:
        algorithm = getattr(self, "algorithm")  # noqa: B009 - a subclass's
        if not 2 <= len(self.objectives) <= 3:
            raise ValueError(f"objectives is {','.join(self.objectives)}; expected two or three different metrics")
        if algorithm not in ("nsga2", "random"):
            raise ValueError(
                f"algorithm is {algorithm}, which learns from one score, and objectives {','.join(self.objectives)}. "
                "Leave out --algorithm, or use random as the baseline"
            )
        if self.fidelity == "halving":
            raise ValueError(
                f"fidelity is halving, which promotes networks by one score, and objectives "
                f"{','.join(self.objectives)}. Leave out one of the two"
            )

    @property
    def rungs(self) -> list[int]:
        """Total epochs at each rung: first_epochs, halving_factor times that, .., epochs; one rung without halving."""
        found, epochs = [], self.first_epochs if self.fidelity == "halving" else self.epochs
        while epochs < self.epochs:
            found.append(epochs)
            epochs *= self.halving_factor
        return [*found, self.epochs]

    def trade_off(self) -> dict[str, str]:
        """Returns metric -> "max" or "min" of the Pareto front: the objectives, if there are any."""
        return dict(text.split(":") for text in self.objectives) if self.objectives else super().trade_off()


# Aliases in objectives -> metrics; memory is predicted by zoo.cost
_SHORT_METRICS: dict[str, str] = {"accuracy": "val_accuracy", "latency": "latency_ms", "sram": "peak_memory"}


@dataclasses.dataclass(frozen=True)
class ControllerConfig(TrialConfig):
    """Options of the searches whose trials an LSTM controller proposes: NASNet's and MnasNet's."""

    # random is the papers' baseline; local and bayesian are ours, strong when few networks can be trained; nsga2 goes
    # with objectives
    algorithm: Literal["ppo", "reinforce", "random", "local", "bayesian", "nsga2"] = "ppo"
    hidden: int = 100  # units of the controller
    controller_rate: float = 0.0035  # the controller's learning rate
    controller_batch: int = 4  # networks per update of the controller
    entropy: float = 0.00001  # weight of the controller's entropy
    baseline: float = 0.95  # decay of the moving average of scores

    def __post_init__(self):
        super().__post_init__()
        check_at_least(self, {"hidden": 1, "controller_batch": 1})

    def make_controller(self, arguments: dict[str, Any]) -> "SearchOracle":
        """Returns the controller that `algorithm` names; `arguments` are those of every oracle."""
        from recipes.oracles import ControllerOracle

        return ControllerOracle(
            **arguments,
            algorithm="reinforce" if self.algorithm == "reinforce" else "ppo",
            hidden=self.hidden,
            learning_rate=self.controller_rate,
            batch=self.controller_batch,
            entropy=self.entropy,
            baseline=self.baseline,
        )


# Shared by presets: the data and training of NASNet's, PNASNet's and AmoebaNet's papers, and of quick tests
PAPER_CIFAR10: dict[str, Any] = {
    "data": "tfds:cifar10", "image_size": None, "training_images": None, "validation_images": 5000,
    "batch_size": 32, "weight_decay": 5e-4, "augment": True,
}  # fmt: skip
SMOKE: dict[str, Any] = {"image_size": 8, "training_images": 60, "validation_images": 100}
