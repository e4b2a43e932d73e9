"""The child networks of a search: the way from what an oracle proposes to its score."""

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
_NORMALIZED_BY = 2000  # images, where they are too many for the memory


@dataclasses.dataclass(frozen=True)
class NetworkScorer:
    """Makes and scores child networks.

    Attributes:
        config: the options.
        space: what the values of a trial mean.
        family: the builder of the networks.
        presets: of the genotypes; "search" is the size that it builds.
        images: the data.
        latencies: of the layers on another device; None measures networks on this machine, where it has to.
        reward: (accuracy, ms of an image) -> the score, where that is not the accuracy alone.
    """

    config: ChildConfig
    space: Space
    family: str
    presets: Mapping[str, Mapping[str, Any]]
    images: image_data.Data
    latencies: LatencyTable | None = dataclasses.field(default=None, kw_only=True)
    reward: Callable[[float, float], float] | None = dataclasses.field(default=None, kw_only=True)

    def __getstate__(self) -> dict[str, Any]:
        """Returns what goes to another process, which reads the images for itself."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "images"}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state, images=load_images(state["config"]))

    @property
    def portable(self) -> bool:
        """Whether a trial gives the same in another process; a subclass that scores otherwise has to say so.

        Latencies are measured on a machine that does nothing else.
        """
        return type(self) is NetworkScorer and (not self._times or self.latencies is not None)

    @property
    def _times(self) -> bool:
        """Whether each trial needs a latency."""
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
        """Returns what every oracle of a search of these networks is given; see `recipes.oracles.SearchOracle`.

        Only the one that searches a front is given several objectives.
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
        """Returns the oracle of `algorithm`, where that is none of the recipe's own paper: a baseline, or nsga2."""
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
        """Returns which limit the network exceeds and by what, or None."""
        config = self.config
        limits = (config.max_params, config.max_macs, config.max_sram, config.max_flash, config.max_latency)
        if not any(limits):
            return None
        try:
            return next(filter(None, self._excesses(values, self.build(values))), None)
        finally:
            tuner.forget_models()

    def _excesses(self, values: Mapping[str, Any], model: keras.Model) -> Iterator[str | None]:
        """Yields by what the network exceeds each limit, or None; what takes longer to find comes later.

        Memory is predicted from the graph first. That leaves out what TFLM keeps for good and the file its names, so a
        network that is too large by it is too large; one that is not is converted, and planned as TFLM places it.
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
        """Returns the ms of one image, by the table or measured on this machine once in the life of the search.

        `model` is the network, where it is at hand.
        """
        if self.latencies is not None:
            return self.latencies.latency(self.space.body(values), self.images.input_shape, self.images.classes)
        return self._measured(self.space.key(values), lambda: self.build(values) if model is None else model)

    @functools.cached_property
    def _measured(self) -> MeasuredLatencies:
        network = {"preset": dict(self.presets["search"]), "input_shape": list(self.images.input_shape)}
        return MeasuredLatencies(self.config.folder, {"family": self.family, "classes": self.images.classes, **network})

    def close(self) -> None:
        """Lets go of the file of latencies, where one was needed."""
        if "_measured" in self.__dict__:
            self._measured.close()
            del self.__dict__["_measured"]

    def score(self, task: tuner.Task) -> dict[str, float]:
        """Trains the network of a trial and returns its score and what else is known of it.

        A latency that counts is measured first, while the cores have nothing else to do.
        """
        predicted: dict[str, float] = {}
        if self._times:
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
        """By the training images' mean and deviation, or the first ones' where they stream from the disk."""
        train = self.images.train
        return Normalization.of(train.images if isinstance(train, Arrays) else train.head(_NORMALIZED_BY)[0])

    def training(self) -> Settings:
        """Returns how a child is trained."""
        config = self.config
        ends = getattr(config, "rungs", [config.epochs])[:-1]
        return child_training.child_settings(
            len(self.images.train), config.epochs, config.batch_size, config.learning_rate, config.weight_decay, ends
        )


def plan_memory(model: keras.Model) -> planner.Plan:
    """Returns the memory of the model's int8 file under TFLM, which random weights have like trained ones."""
    noise = np.random.default_rng(0).uniform(0, 1, (1, *model.input_shape[1:])).astype(np.float32)
    return planner.plan(tflite.convert(model, quantize="int8", calibration=noise))


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
