"""What the trial-based searches share: the options of the child networks, the way from a proposal to its score, and the
end of a search. The recipes add the oracle.
"""

import contextlib
import dataclasses
import datetime
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import keras
import numpy as np
from rich.console import Console

import zoo
from recipes import data as image_data
from recipes import progress, trial, tuner
from recipes.augment import Normalization, cifar
from recipes.oracles import SearchOracle
from zoo.genotype import Genotype

OBJECTIVE = "val_accuracy"


@dataclasses.dataclass(frozen=True)
class ChildConfig:
    """Options that every trial-based search has; each is a flag."""

    trials: int = 24  # networks to train
    seed: int = 0  # of the search, the networks' weights and the order of the images
    data: str = image_data.EMBEDDED  # a name of recipes.data: embedded, tfds:NAME or a folder of images
    image_size: int | None = 14  # side in pixels that images are resized to; none keeps theirs
    training_images: int | None = 2000  # for each trial, classes in proportion; none takes all
    validation_images: int | None = 1000  # that a trial is scored on; none takes all
    epochs: int = 2  # of each trial
    batch_size: int = 64  # images in a training step
    learning_rate: float = 0.05  # at the start of its one cosine period
    weight_decay: float = 1e-4  # L2 on convolutions and the classifier
    augment: bool = False  # crop, flip and cutout, which short trials are better without
    max_params: int | None = None  # networks with more parameters are not trained
    max_macs: int | None = None  # networks with more multiply-accumulates an image are not trained
    keep: int = 3  # checkpoints that stay: the best ones'
    dry_run: bool = False  # build the largest network, take one step, print what the search would need, and stop
    folder: Path = Path("runs/search")  # results, and the state to resume from

    def __post_init__(self):
        least = {"trials": 1, "epochs": 1, "batch_size": 1, "seed": 0, "keep": 0}
        least |= {"image_size": 8, "training_images": 10, "validation_images": 10, "max_params": 1, "max_macs": 1}
        for name, smallest in least.items():
            value = getattr(self, name)
            if value is not None and value < smallest:
                raise ValueError(f"{name} is {value}; expected a whole number from {smallest}")
        if self.learning_rate <= 0 or self.weight_decay < 0:
            raise ValueError(
                f"learning_rate is {self.learning_rate} and weight_decay {self.weight_decay}; "
                "expected a rate above 0 and a decay of 0 or more"
            )

    def settings(self) -> dict[str, Any]:
        """Returns what must be equal for a search to go on: all but its length, its folder and what is kept of it."""
        free = ("trials", "folder", "keep", "dry_run")
        values = {name: value for name, value in dataclasses.asdict(self).items() if name not in free}
        return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


class SearchSpace(Protocol):
    """What a recipe's space offers; see recipes.spaces."""

    def body(self, values: Mapping[str, Any]) -> Any:
        """Returns the architecture of `values`."""
        ...

    def key(self, values: Mapping[str, Any]) -> str:
        """Returns what equal architectures share."""
        ...


@dataclasses.dataclass(frozen=True)
class Children:
    """Makes and scores child networks.

    Attributes:
        config: the options.
        space: what the values of a trial mean.
        family: the builder of the networks.
        presets: of the genotypes; "search" is the children's.
        images: the data.
    """

    config: ChildConfig
    space: SearchSpace
    family: str
    presets: Mapping[str, Mapping[str, Any]]
    images: image_data.Data

    def genotype(
        self, values: Mapping[str, Any], name: str = "child", source: Mapping[str, Any] | None = None
    ) -> Genotype:
        """Returns the architecture of `values`."""
        return Genotype(name, self.family, self.space.body(values), source or {}, self.presets)

    def build(self, values: Mapping[str, Any]) -> keras.Model:
        """Returns a new network with logits as its output."""
        return zoo.build(
            self.genotype(values),
            "search",
            classes=self.images.classes,
            input_shape=self.images.input_shape,
            classifier_activation=None,
        )

    def check(self, values: Mapping[str, Any]) -> str | None:
        """Returns which limit the network exceeds, or None."""
        config = self.config
        if config.max_params is None and config.max_macs is None:
            return None
        cost = zoo.cost.of(self.build(values))
        tuner.forget_models()
        for name, value, most in (("params", cost.params, config.max_params), ("macs", cost.macs, config.max_macs)):
            if most is not None and value > most:
                return f"{value:,} {name}, more than {most:,}"
        return None

    def score(self, task: tuner.Task) -> dict[str, float]:
        """Trains the network of a trial and returns its validation accuracy and what else is known."""
        config, images = self.config, self.images
        try:
            return trial.train(
                lambda: self.build(task.values),
                images.train,
                images.validation,
                self.training(),
                seed=task.seed,
                normalize=Normalization.of(images.train.images),
                augment=cifar(padding=images.input_shape[0] // 8, cutout_length=images.input_shape[0] // 2)
                if config.augment
                else None,
                folder=task.folder,
                report=task.report,
            )
        finally:
            tuner.forget_models()

    def training(self) -> trial.Training:
        """Returns how a child is trained."""
        config = self.config
        return trial.Training(config.epochs, config.batch_size, config.learning_rate, weight_decay=config.weight_decay)


def cell_presets(repeats: int, filters: int) -> dict[str, dict[str, Any]]:
    """Returns the sizes in which a found cell can be built: for small images, and as the search trained it."""
    return {
        "small": {"repeats": repeats, "filters": 2 * filters, "stem": "cifar", "stem_filters": 6 * filters},
        "search": {"repeats": repeats, "filters": filters, "stem": "cifar", "stem_filters": 3 * filters},
    }


def load_images(config: ChildConfig) -> image_data.Data:
    """Returns the training and validation images of the trials; the test images are left out."""
    found = image_data.load(config.data, size=config.image_size, seed=config.seed, test_fraction=0.1)
    return dataclasses.replace(
        found,
        train=found.train.first(config.training_images),
        validation=found.validation.first(config.validation_images),
        test=found.test.take(np.arange(0)),
    )


def run(
    oracle: SearchOracle,
    children: Children,
    recipe: str,
    observe: Callable[[tuner.Status], None] | None = None,
) -> Genotype:
    """Runs the search to its end and returns the best architecture, which is in folder/genotype.json too.

    Args:
        oracle: what to try.
        children: how to score it.
        recipe: its name, for the provenance.
        observe: gets a Status when something has changed; a progress bar on stderr unless given.
    """
    config = children.config
    with _watched(observe, recipe) as watch:
        runner = tuner.Tuner(
            oracle,
            children.score,
            config.folder,
            settings={"recipe": recipe, **config.settings()},
            keep=config.keep,
            observe=watch,
        )
        runner.search()
    best = runner.best
    source = {
        "recipe": f"recipes/{recipe}.py",
        "config": config.settings() | {"trials": len(runner.history)},
        "seed": config.seed,
        "score": best.score,
        "score_name": OBJECTIVE,
        "trial": best.number,
        "stopped": oracle.message or f"after {len(runner.history):,} trials",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "keras": keras.__version__,
    }
    genotype = children.genotype(best.values, name=f"{recipe}_seed{config.seed}", source=source)
    zoo.save(genotype, config.folder / "genotype.json")
    if observe is None:
        print(f"validation accuracy {best.score:.4g} in trial {best.number + 1}: {config.folder / 'genotype.json'}")
    return genotype


@contextlib.contextmanager
def _watched(observe: Callable[[tuner.Status], None] | None, recipe: str) -> Iterator[Callable[[tuner.Status], None]]:
    if observe is not None:
        yield observe
        return
    with progress.shown(recipe, "validation accuracy") as show:
        yield show


def dry_run(children: Children, candidates: Sequence[Mapping[str, Any]], console: Console | None = None) -> Genotype:
    """Builds the largest of `candidates`, takes one training step, and prints what the whole search would need."""
    console = console or Console()
    config, images = children.config, children.images
    largest, params = candidates[0], -1
    for values in candidates:
        count = children.build(values).count_params()
        tuner.forget_models()
        if count > params:
            largest, params = values, count
    settings = dataclasses.replace(children.training(), epochs=1)
    start = time.perf_counter()
    marks: list[float] = []
    part = images.train.take(np.resize(np.arange(len(images.train)), 2 * settings.batch_size))
    trial.train(
        lambda: children.build(largest),
        part,
        images.validation.first(1),
        settings,
        seed=config.seed,
        report=lambda share, text: marks.append(time.perf_counter()),
    )
    step, fixed = marks[2] - marks[1], marks[1] - start
    model = children.build(largest)
    values = sum(int(np.prod(layer.output.shape[1:])) for layer in model.layers)
    memory = 4 * (
        2 * values * config.batch_size + 4 * params
    )  # values and their gradients; weights, momenta, gradients
    steps = -(-len(images.train) // config.batch_size) * config.epochs
    total = config.trials * (fixed + steps * step)
    console.print(
        f"dry run of the largest network: {params:,} parameters, first step after {fixed:.1f} s, "
        f"then {step:.2f} s a step of {config.batch_size} images\n"
        f"predicted for the search, at most: {memory / 2**30:.2f} GiB for a network in training, "
        f"{steps:,} steps a trial, {progress.duration(total)} for {config.trials:,} trials on this machine",
        highlight=False,
    )
    tuner.forget_models()
    return children.genotype(largest, name="largest")
