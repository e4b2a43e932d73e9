"""The child networks of a search: from the values that an oracle proposes to a score."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import keras_tuner
import numpy as np

import zoo
from recipes.engine import tuner
from recipes.engine.config import ChildConfig, describe_excess
from recipes.engine.latency import LatencyTable, MeasuredLatencies
from recipes.engine.spaces import Space
from recipes.images import sources as image_data
from recipes.images.augment import Normalization, cifar
from recipes.images.parts import Arrays, Part
from recipes.oracles import NSGA2, BayesianSearch, LocalSearch, RandomSearch, SearchOracle
from recipes.oracles.base import EPOCHS
from recipes.training import child_training
from recipes.training.optimizer import Settings
from zoo.deploy import planner, tflite
from zoo.genotype import Genotype

OBJECTIVE = "val_accuracy"
REWARD = "reward"  # the objective of a search by accuracy and latency
LATENCY = "latency_ms"
_NORMALIZATION_IMAGES = 2000  # that give mean and deviation if the images stream from the disk


@dataclasses.dataclass(frozen=True)
class NetworkScorer:
    """Builds, trains and scores child networks.

    Attributes:
        config: the options.
        space: turns the values of a trial into an architecture.
        family: the family whose builder makes the networks.
        presets: of the genotypes; networks are built at the size "search".
        images: the data.
        latencies: of the layers on another device; None measures networks on this machine, if a latency is needed.
        reward: (accuracy, ms per image) -> the score; None if the accuracy is the score.
    """

    config: ChildConfig
    space: Space
    family: str
    presets: Mapping[str, Mapping[str, Any]]
    images: image_data.Data
    latencies: LatencyTable | None = dataclasses.field(default=None, kw_only=True)
    reward: Callable[[float, float], float] | None = dataclasses.field(default=None, kw_only=True)

    def __getstate__(self) -> dict[str, Any]:
        """Returns what is sent to another process, which loads the images itself."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "images"}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state, images=load_images(state["config"]))

    @property
    def portable(self) -> bool:
        """Whether a trial gives the same score in another process; a subclass with its own score must override this.

        Measuring latencies needs a machine that does nothing else.
        """
        return type(self) is NetworkScorer and (not self._needs_latency or self.latencies is not None)

    @property
    def _needs_latency(self) -> bool:
        """Whether the score of each trial needs a latency."""
        return self.reward is not None or LATENCY in self.objectives

    @property
    def objectives(self) -> dict[str, str]:
        """Metric -> "max" or "min"; the first is the score."""
        if getattr(self.config, "objectives", ()):
            return self.config.trade_off()
        return {OBJECTIVE if self.reward is None else REWARD: "max"}

    @property
    def objective(self) -> str:
        """The name of the score."""
        return next(iter(self.objectives))

    def oracle_arguments(self) -> dict[str, Any]:
        """Returns the arguments of every oracle that searches these networks; see `recipes.oracles.SearchOracle`.

        Only nsga2 is given several objectives.
        """
        objectives = [keras_tuner.Objective(*each) for each in self.objectives.items()]
        several = getattr(self.config, "algorithm", "") == "nsga2"
        return {
            "objective": objectives if several else objectives[0],
            "max_trials": self.config.trials,
            "hyperparameters": self.space.hyperparameters(),
            "seed": self.config.seed,
            "key": self.space.key,
            "check": self.check,
        }

    def baseline_oracle(self, algorithm: str) -> SearchOracle | None:
        """Returns the baseline or nsga2 oracle that `algorithm` names; None if it is the recipe's own algorithm."""
        arguments = self.oracle_arguments()
        if algorithm == "random":
            return RandomSearch(**arguments)
        if algorithm == "local":
            return LocalSearch(**arguments)
        if algorithm == "bayesian":
            return BayesianSearch(**arguments, features=self.space.count_features)
        if algorithm == "nsga2":
            return NSGA2(**arguments, population=self.config.generation)  # pyright: ignore[reportAttributeAccessIssue]
        return None

    def genotype(
        self, values: Mapping[str, Any], name: str = "child", source: Mapping[str, Any] | None = None
    ) -> Genotype:
        """Returns the architecture that `values` encode, as a genotype."""
        return Genotype(name, self.family, self.space.body(values), source or {}, self.presets)

    def build(self, values: Mapping[str, Any]) -> keras.Model:
        """Returns a new network that outputs logits."""
        return zoo.build(
            self.genotype(values),
            "search",
            classes=self.images.classes,
            input_shape=self.images.input_shape,
            classifier_activation=None,
        )

    def check(self, values: Mapping[str, Any]) -> str | None:
        """Returns which limit the network exceeds and by how much, or None."""
        config = self.config
        limits = (config.max_params, config.max_macs, config.max_sram, config.max_flash, config.max_latency)
        if not any(limits):
            return None
        try:
            return next(filter(None, self._excesses(values, self.build(values))), None)
        finally:
            tuner.forget_models()

    def _excesses(self, values: Mapping[str, Any], model: keras.Model) -> Iterator[str | None]:
        """Yields by how much the network exceeds each limit, or None; the most expensive checks come last.

        Memory is first predicted from the graph. The prediction is a lower bound: it leaves out TFLM's persistent
        buffers and the names in the file. A network within it is converted, and its memory planned as TFLM does.
        """
        config, cost = self.config, zoo.cost.of(model)
        yield describe_excess("params", cost.params, config.max_params)
        yield describe_excess("macs", cost.macs, config.max_macs)
        yield describe_excess("bytes of SRAM, predicted", cost.peak_memory, config.max_sram)
        yield describe_excess("bytes of flash, predicted", cost.flash, config.max_flash)
        if config.max_sram or config.max_flash:
            plan = plan_memory(model)
            yield describe_excess("bytes of SRAM", plan.arena, config.max_sram)
            yield describe_excess("bytes of flash", plan.flash, config.max_flash)
        if config.max_latency:
            yield describe_excess("ms", self.latency(values, model), config.max_latency)

    def latency(self, values: Mapping[str, Any], model: keras.Model | None = None) -> float:
        """Returns the ms per image, from the table or measured once in the life of the search on this machine.

        `model` is the network if it is built already.
        """
        if self.latencies is not None:
            return self.latencies.latency(self.space.body(values), self.images.input_shape, self.images.classes)
        return self._measured(self.space.key(values), lambda: self.build(values) if model is None else model)

    @functools.cached_property
    def _measured(self) -> MeasuredLatencies:
        network = {"preset": dict(self.presets["search"]), "input_shape": list(self.images.input_shape)}
        return MeasuredLatencies(self.config.folder, {"family": self.family, "classes": self.images.classes, **network})

    def close(self) -> None:
        """Releases the file of measured latencies, if there is one."""
        if "_measured" in self.__dict__:
            self._measured.close()
            del self.__dict__["_measured"]

    def score(self, task: tuner.Task) -> dict[str, float]:
        """Trains the network of a trial and returns its score and other metrics.

        If the score needs a latency, it is measured first, while the cores are idle.
        """
        predicted: dict[str, float] = {}
        if self._needs_latency:
            predicted[LATENCY] = self.latency(task.values)
            tuner.forget_models()

        def build() -> keras.Model:
            model = self.build(task.values)
            cost = zoo.cost.of(model)
            predicted.update(macs=cost.macs, peak_memory=cost.peak_memory, flash=cost.flash)
            return model

        found = self.train(build, task, until=task.values.get(EPOCHS))
        if self.reward is not None:
            predicted[REWARD] = self.reward(found[OBJECTIVE], predicted[LATENCY])
        if EPOCHS in task.values:
            predicted["epochs"] = task.values[EPOCHS]
        return found | predicted

    def train(
        self,
        build: Callable[[], keras.Model],
        task: tuner.Task,
        until: int | None = None,
        test_part: Part | None = None,
    ) -> dict[str, float]:
        """Trains a network with the task's seed in the task's folder; see recipes.training.child_training.train."""
        images, size = self.images, self.images.input_shape[0]
        try:
            return child_training.train(
                build,
                images.train,
                images.validation,
                self.training(),
                seed=task.seed,
                until=until,
                normalize=self.normalization,
                augment=cifar(padding=size // 8, cutout_length=size // 2) if self.config.augment else None,
                folder=task.folder,
                report=task.report,
                test_part=test_part,
            )
        finally:
            tuner.forget_models()

    @functools.cached_property
    def normalization(self) -> Normalization:
        """Normalizes by mean and deviation of the training images; of the first ones if they stream from the disk."""
        train = self.images.train
        return Normalization.of(train.images if isinstance(train, Arrays) else train.head(_NORMALIZATION_IMAGES)[0])

    def training(self) -> Settings:
        """Returns the training settings of a child network."""
        config = self.config
        ends = getattr(config, "rungs", [config.epochs])[:-1]
        return child_training.make_child_settings(
            len(self.images.train), config.epochs, config.batch_size, config.learning_rate, config.weight_decay, ends
        )


def plan_memory(model: keras.Model) -> planner.Plan:
    """Returns the memory plan of the model's int8 file under TFLM, which does not depend on the weights."""
    noise = np.random.default_rng(0).uniform(0, 1, (1, *model.input_shape[1:])).astype(np.float32)
    return planner.plan(tflite.convert(model, quantize="int8", calibration=noise))


def cell_presets(repeats: int, filters: int) -> dict[str, dict[str, Any]]:
    """Returns the sizes of a found cell: "small" for small images, and "search" as the search trained it."""
    return {
        "small": {"repeats": repeats, "filters": 2 * filters, "stem": "cifar", "stem_filters": 6 * filters},
        "search": {"repeats": repeats, "filters": filters, "stem": "cifar", "stem_filters": 3 * filters},
    }


def load_images(config: ChildConfig) -> image_data.Data:
    """Returns the training and validation images for trials, without the test images.

    A dry run needs no images: if the data set is missing, noise of its shape stands in.
    """
    try:
        found = image_data.load(
            config.data, size=config.image_size, seed=config.seed, test_fraction=0.1, **config.folder_options
        )
    except ValueError:
        stand = image_data.make_stand_in(config.data, config.image_size, config.validation_images or 1)
        if stand is None or not config.dry_run:
            raise
        found = stand
    return dataclasses.replace(
        found,
        train=found.train.first(config.training_images),
        validation=found.validation.first(config.validation_images),
        test=found.test.take(np.arange(0)),
    )
