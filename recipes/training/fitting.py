"""Trains a network to the end, as the papers do: resumed at the epoch, best weights kept, repeatable.

    model = zoo.build("darts", "cifar10", classifier_activation=None)  # logits
    outcome = fit(model, data.train, data.validation, Settings(epochs=20), folder=Path("runs/mine"))

`model` then has the weights of the epoch that was best on the validation images; test images have no place here.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from recipes.images import augment as augmentations
from recipes.images.parts import Part
from recipes.training.descent import Descent, Learner
from recipes.training.display import Moment
from recipes.training.drop_path import Progress
from recipes.training.judging import Judge
from recipes.training.schedules import Schedule
from recipes.training.state import TrainingState, write_history

_FEW_STEPS = 3000  # grappler's rewrites of a network's graph take longer than they save in fewer steps
STATE_FILE = "state.npz"


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to train.

    Attributes:
        epochs, batch_size: at least 1.
        schedule: of the learning rate.
        descent: optimiser, weight decay, clipping, loss.
        average: the factor of the weights' moving average, which then is what is judged and kept; None keeps the
            weights themselves. In the first n steps it is at most (1 + n) / (10 + n), as TensorFlow does.
        drop_path_by: how often the rate of scheduled drop path grows.
    """

    epochs: int = 10
    batch_size: int = 64
    schedule: Schedule = dataclasses.field(default_factory=Schedule)
    descent: Descent = dataclasses.field(default_factory=Descent)
    average: float | None = None
    drop_path_by: Literal["step", "epoch"] = "step"

    def __post_init__(self):
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a whole number from 1")
        if self.average is not None and not 0 < self.average < 1:
            raise ValueError(f"average is {self.average}; expected a number between 0 and 1, such as 0.9999, or none")


class Outcome(NamedTuple):
    """What came of a training.

    Attributes:
        history: one record an epoch: epoch (from 1), learning_rate, loss, accuracy, val_loss, val_accuracy, seconds.
        epoch: the best one, from 1, whose weights the model has.
        accuracy: its accuracy on the validation images, 0 to 1.
    """

    history: list[dict[str, float]]
    epoch: int
    accuracy: float


class DivergedError(ValueError):
    """The loss is not a number any more."""


def fit(
    model: keras.Model,
    train: Part,
    validation: Part,
    settings: Settings,
    *,
    seed: int = 0,
    augment: augmentations.Step | None = None,
    preprocess: Callable[[Any], Any] = augmentations.UNIT,
    drop_path: Progress | None = None,
    folder: Path | None = None,
    identity: dict[str, Any] | None = None,
    tensorboard: bool = False,
    observe: Callable[[Moment], None] = lambda moment: None,
) -> Outcome:
    """Trains `model`, whose output is logits or [logits, auxiliary logits], and leaves the best weights in it.

    Args:
        model: its frozen layers stay as they are.
        train, validation: what it learns from, and what tells the best epoch.
        settings: how.
        seed: of the order of the images and the augmentation; the model's own seeds are set where it is built.
        augment: of training batches.
        preprocess: 0..255 to what the model reads.
        drop_path: of the model, from `recipes.training.drop_path.scheduled`.
        folder: for the state to go on from, history.json and history.csv; nothing is written unless given.
        identity: JSON values that tell this training from others, beside `settings` and `seed`.
        tensorboard: writes the history into folder/tensorboard, too.
        observe: called after each step.

    Raises:
        DivergedError: the loss is not a number.
        ValueError: `folder` holds the state of another training; there is no validation image.
    """
    if not len(validation):
        raise ValueError("there is no validation image to tell the best epoch by; raise validation_fraction")
    run = _Run(model, train, settings, seed, augment, preprocess, drop_path)
    facts = {"seed": seed, **dataclasses.asdict(settings), **(identity or {})}
    state = None if folder is None else TrainingState(folder / STATE_FILE, facts)
    history: list[dict[str, float]] = []
    if state is not None and (found := state.restore(run.groups)) is not None:
        history = found["history"]
    writer = tf.summary.create_file_writer(str(folder / "tensorboard")) if folder and tensorboard else None
    with _Rewrites(settings.epochs * run.steps >= _FEW_STEPS):
        judge = Judge(model, validation, preprocess)
        batches = None
        for epoch in range(len(history), settings.epochs):
            batches = batches or run.batches(epoch)
            record = run.epoch(epoch, batches, _best(history), observe)
            with run.judged_weights():
                record["val_accuracy"], record["val_loss"] = judge()
                if record["val_accuracy"] > (_best(history) or -1.0):
                    run.keep()
            history.append(record)
            if state is not None and folder is not None:
                state.save({"history": history}, run.groups)
                write_history(folder, history)
            if writer is not None:
                _summarise(writer, record)
            left = record["seconds"] * (settings.epochs - epoch - 1)
            observe(Moment(epoch + 1, settings.epochs, _best(history), left))
    run.take_best()
    best = max(history, key=lambda record: record["val_accuracy"])  # the first of equals
    return Outcome(history, int(best["epoch"]), best["val_accuracy"])


class _Run:
    """The variables of a training, and one epoch of it."""

    def __init__(
        self,
        model: keras.Model,
        train: Part,
        settings: Settings,
        seed: int,
        augment: augmentations.Step | None,
        preprocess: Callable[[Any], Any],
        drop_path: Progress | None,
    ):
        self.model, self.settings = model, settings
        self._train, self._seed, self._augment, self._preprocess = train, seed, augment, preprocess
        self._drop_path = drop_path
        self.steps = train.steps(settings.batch_size, training=True)
        self._learner = Learner(model, settings.descent)
        self._weights = [weight.value for weight in model.weights]
        self._best = [tf.Variable(weight, trainable=False) for weight in self._weights]
        floats = [weight for weight in self._weights if weight.dtype.is_floating]
        self._averaged = floats if settings.average is not None else []
        self._averages = [tf.Variable(weight, trainable=False) for weight in self._averaged]
        self._average = tf.function(self._average_step, autograph=False)
        self.groups = {
            "variable": [variable.value for variable in model.variables],  # with the state of random layers
            "slot": self._learner.slots,
            "average": self._averages,
            "best": self._best,
        }

    def batches(self, epoch: int) -> Any:
        """Returns an iterator over the batches from the start of this epoch on, without end."""
        dataset = self._train.dataset(
            self.settings.batch_size,
            training=True,
            augment=self._augment,
            preprocess=self._preprocess,
            seed=self._seed,
            epoch=epoch,
            epochs=None,
        )
        return iter(dataset)

    def epoch(
        self, epoch: int, batches: Any, best: float | None, observe: Callable[[Moment], None]
    ) -> dict[str, float]:
        """Takes the steps of one epoch (from 0) and returns its record."""
        settings, start, first = self.settings, time.perf_counter(), None
        losses, right, seen, rate = [], 0, 0, 0.0
        for step in range(self.steps):
            moment = epoch + step / self.steps
            left = None if first is None else (time.perf_counter() - first) / step * self.steps
            left = None if left is None else left * (settings.epochs - moment)
            observe(
                Moment(moment, settings.epochs, best, left, "" if epoch or step else "the first step takes longest")
            )
            if self._drop_path is not None:
                self._drop_path.assign((epoch if settings.drop_path_by == "epoch" else moment) / settings.epochs)
            # Warm-up starts with the first step's share of it, not with a step of rate 0.
            warming = settings.schedule.warmup > moment
            rate = settings.schedule.at(moment + (1 / self.steps if warming else 0), settings.epochs)
            images, labels = next(batches)
            loss, hits = self._learner.step(images, labels, rate)
            if self._averages:
                done = epoch * self.steps + step
                self._average(tf.constant(min(settings.average or 0.0, (1 + done) / (10 + done)), tf.float32))
            losses.append(loss)
            right, seen = right + int(hits), seen + len(labels)
            first = first if first is not None or step == 0 else time.perf_counter()
        loss = float(np.mean(losses))
        if not math.isfinite(loss):
            raise DivergedError(f"the loss is {loss} in epoch {epoch + 1}; lower the learning rate, or clip")
        seconds = time.perf_counter() - start
        return {"epoch": epoch + 1, "learning_rate": rate, "loss": loss, "accuracy": right / seen, "seconds": seconds}

    def _average_step(self, factor: Any) -> None:
        for average, weight in zip(self._averages, self._averaged, strict=True):
            average.assign_sub((1 - factor) * (average - weight))

    def judged_weights(self) -> "_Swapped":
        """Puts the averages into the model while the block lasts, where there are averages."""
        return _Swapped(self._averaged, self._averages)

    def keep(self) -> None:
        """Remembers the model's weights as the best."""
        for kept, weight in zip(self._best, self._weights, strict=True):
            kept.assign(weight)

    def take_best(self) -> None:
        """Puts the best weights into the model."""
        for kept, weight in zip(self._best, self._weights, strict=True):
            weight.assign(kept)


class _Swapped:
    """Gives variables other values for the length of a block."""

    def __init__(self, variables: list[Any], values: list[Any]):
        self._variables, self._values, self._before = variables, values, []

    def __enter__(self) -> None:
        self._before = [variable.numpy() for variable in self._variables]
        self._assign(self._values)

    def __exit__(self, *error: object) -> None:
        self._assign(self._before)

    def _assign(self, values: list[Any]) -> None:
        for variable, value in zip(self._variables, values, strict=True):
            variable.assign(value)


class _Rewrites:
    """Lets grappler rewrite the graphs that are first run in the block, or not."""

    def __init__(self, wanted: bool):
        self._wanted, self._before = wanted, False

    def __enter__(self) -> None:
        self._before = tf.config.optimizer.get_experimental_options().get("disable_meta_optimizer", False)
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": not self._wanted})

    def __exit__(self, *error: object) -> None:
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": self._before})


def _best(history: list[dict[str, float]]) -> float | None:
    return max((record["val_accuracy"] for record in history), default=None)


def _summarise(writer: Any, record: dict[str, float]) -> None:
    # tf.summary.scalar, which does just this, needs the package tensorboard already for writing
    metadata = tf.compat.v1.SummaryMetadata()
    metadata.plugin_data.plugin_name = "scalars"
    with writer.as_default(step=int(record["epoch"])):
        for name, value in record.items():
            if name != "epoch":
                tf.summary.write(name, tf.constant(value, tf.float32), metadata=metadata)
    writer.flush()
