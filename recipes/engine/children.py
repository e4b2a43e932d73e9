"""The child networks of a search: their options, and the way from what an oracle proposes to its score."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

import keras
import numpy as np

import zoo
from recipes.engine import child_training as trial
from recipes.engine import places, tuner
from recipes.engine.latency import Measured
from recipes.engine.limits import Limits
from recipes.images import sources as image_data
from recipes.images import stand_in
from recipes.images.augment import Normalization, cifar
from recipes.images.parts import Arrays
from zoo.genotype import Genotype, near

OBJECTIVE = "val_accuracy"
_NORMALIZED_BY = 2000  # images, where they are too many for the memory


@dataclasses.dataclass(frozen=True)
class ChildConfig(places.PlaceConfig):
    """Options that every trial-based search has; each is a flag."""

    trials: int = 24  # networks to train
    seed: int = 0  # of the search, the networks' weights and the order of the images
    data: str = image_data.EMBEDDED  # a name of recipes.images.sources: embedded, tfds:NAME or a folder of images
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
    max_sram: int | None = None  # networks whose int8 file takes more bytes of arena are not trained
    max_flash: int | None = None  # networks whose int8 file has more bytes are not trained
    max_latency: float | None = None  # networks that need more ms an image (LiteRT, one thread) are not trained
    keep: int = 3  # checkpoints that stay: the best ones'
    tensorboard: bool = False  # log each trial for TensorBoard, with its choices in the HParams table
    pareto: tuple[str, ...] = ("val_accuracy:max", "params:min")  # what pareto/ trades off: metrics and directions
    dry_run: bool = False  # build the largest network, take one step, print what the search would need, and stop
    folder: Path = Path("runs/search")  # results, and the state to resume from

    metrics: ClassVar[tuple[str, ...]] = (
        "val_accuracy", "val_loss", "loss", "params", "macs", "peak_memory", "flash"
    )  # fmt: skip

    def __post_init__(self):
        super().__post_init__()
        least = {"trials": 1, "epochs": 1, "batch_size": 1, "seed": 0, "keep": 0}
        least |= {"image_size": 8, "training_images": 10, "validation_images": 10, "max_params": 1, "max_macs": 1}
        least |= {"max_sram": 1, "max_flash": 1}
        for name, smallest in least.items():
            value = getattr(self, name)
            if value is not None and value < smallest:
                raise ValueError(f"{name} is {value}; expected a whole number from {smallest}")
        if self.learning_rate <= 0 or self.weight_decay < 0:
            raise ValueError(
                f"learning_rate is {self.learning_rate} and weight_decay {self.weight_decay}; "
                "expected a rate above 0 and a decay of 0 or more"
            )
        if self.max_latency is not None and not self.max_latency > 0:
            raise ValueError(f"max_latency is {self.max_latency}; expected milliseconds above 0")
        self.objectives()

    def objectives(self) -> dict[str, str]:
        """Returns metric -> "max" or "min" of the Pareto front."""
        found = {}
        for text in self.pareto:
            name, _, direction = text.partition(":")
            if name not in self.metrics or direction not in ("max", "min"):
                raise ValueError(
                    f"pareto names {text!r}{near(name, self.metrics)}; expected NAME:max or NAME:min, "
                    f"with a name of {', '.join(self.metrics)}"
                )
            found[name] = direction
        return found

    @property
    def limits(self) -> Limits:
        """What a network may have at most."""
        return Limits(self.max_params, self.max_macs, self.max_sram, self.max_flash, self.max_latency)

    def settings(self) -> dict[str, Any]:
        """Returns what must be equal for a search to go on: all but its length, its folder and what is kept of it."""
        free = ("trials", "folder", "keep", "dry_run", "tensorboard", "pareto", *places.FIELDS)
        values = {name: value for name, value in dataclasses.asdict(self).items() if name not in free}
        return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


class SearchSpace(Protocol):
    """What a recipe's space offers; see recipes.engine.spaces."""

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

    def __getstate__(self) -> dict[str, Any]:
        """Returns what goes to another process, which reads the images for itself."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "images"}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state, images=load_images(state["config"]))

    @property
    def portable(self) -> bool:
        """Whether a trial gives the same in another process; an heir that scores otherwise has to say so."""
        return type(self) is Children

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
        limits = self.config.limits
        if not limits.any():
            return None
        model = self.build(values)
        try:
            return limits.exceeded(model, lambda: self.latency(values, model))
        finally:
            tuner.forget_models()

    def latency(self, values: Mapping[str, Any], model: keras.Model | None = None) -> float:
        """Returns the ms of one image, measured on this machine once in the life of the search.

        `model` is the network, where it is at hand.
        """
        return self._measured(self.space.key(values), lambda: self.build(values) if model is None else model)

    @functools.cached_property
    def _measured(self) -> Measured:
        network = {"preset": dict(self.presets["search"]), "input_shape": list(self.images.input_shape)}
        return Measured(self.config.folder, {"family": self.family, "classes": self.images.classes, **network})

    def close(self) -> None:
        """Lets go of the file of latencies, where one was needed."""
        if "_measured" in self.__dict__:
            self._measured.close()
            del self.__dict__["_measured"]

    def score(self, task: tuner.Task) -> dict[str, float]:
        """Trains the network of a trial and returns its validation accuracy and what else is known."""
        config, images = self.config, self.images
        predicted: dict[str, float] = {}

        def build() -> keras.Model:
            model = self.build(task.values)
            cost = zoo.cost.of(model)
            predicted.update(macs=cost.macs, peak_memory=cost.peak_memory, flash=cost.flash)
            return model

        try:
            found = trial.train(
                build,
                images.train,
                images.validation,
                self.training(),
                seed=task.seed,
                normalize=self.normalization,
                augment=cifar(padding=images.input_shape[0] // 8, cutout_length=images.input_shape[0] // 2)
                if config.augment
                else None,
                folder=task.folder,
                report=task.report,
            )
            return found | predicted
        finally:
            tuner.forget_models()

    @functools.cached_property
    def normalization(self) -> Normalization:
        """By the training images' mean and deviation, or the first ones' where they stream from the disk."""
        train = self.images.train
        return Normalization.of(train.images if isinstance(train, Arrays) else train.head(_NORMALIZED_BY)[0])

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
    """Returns the training and validation images of the trials; the test images are left out.

    A dry run needs no images: where the set is not there, noise of its shape stands in.
    """
    try:
        found = image_data.load(config.data, size=config.image_size, seed=config.seed, test_fraction=0.1)
    except ValueError:
        stand = stand_in.images(config.data, config.image_size, config.validation_images or 1)
        if stand is None or not config.dry_run:
            raise
        found = stand
    return dataclasses.replace(
        found,
        train=found.train.first(config.training_images),
        validation=found.validation.first(config.validation_images),
        test=found.test.take(np.arange(0)),
    )
