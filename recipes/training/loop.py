"""The training loop: steps, epochs, learning rates, a state to resume from; `run_epochs` is everybody's.

    model = zoo.build("darts", "cifar10", classifier_activation=None)  # logits
    outcome = fit(model, data.train, data.validation, Settings(epochs=20), folder=Path("runs/mine"))

`fit` trains a network to the end, as the papers do; `model` then has the weights of the epoch that was best on the
validation images; test images have no place here.
"""

import contextlib
import dataclasses
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from recipes.images import augment as augmentations
from recipes.images.parts import Part
from recipes.training import tensorflow_options
from recipes.training.drop_path import Progress
from recipes.training.evaluation import Evaluator
from recipes.training.learner import Learner
from recipes.training.mirrored import Mirror
from recipes.training.optimizer import Optimizer, Schedule
from recipes.training.progress import Status
from recipes.training.state import TrainingState, write_history

STATE_FILE = "state.npz"
Record = dict[str, Any]  # JSON values of an epoch


class DivergedError(ValueError, FloatingPointError):
    """The loss is not a number any more."""


def run_epochs(
    take_step: Callable[[int, int], Sequence[Any]],
    end_epoch: Callable[[list[Record], list[Sequence[Any]]], Record],
    *,
    epochs: int,
    steps: int,
    variables: Mapping[str, Sequence[Any]] | None = None,
    state: TrainingState | None = None,
    save_seconds: float | None = None,
    observe: Callable[[Status], None] = lambda status: None,
    stop: Callable[[Record], bool] = lambda record: False,
) -> list[Record]:
    """Trains for some epochs of `steps` steps each and returns a record an epoch.

    Killed at any moment and called again with the same `state`, it resumes to the same result, if steps depend on
    their place and the variables alone.

    Args:
        take_step: (epoch, number), both from 0 -> numbers that are known of the step, its loss first.
        end_epoch: (the records so far, what the epoch's steps returned) -> its record, as JSON holds it. It may
            evaluate, and change variables.
        epochs: in all, those of an earlier process included.
        steps: of an epoch.
        variables: groups of all that a step reads and changes; see TrainingState.
        state: where they are kept after each epoch; nothing is written unless given.
        save_seconds: saves within an epoch too, this often, and after Ctrl-C; unless given, only whole epochs are.
        observe: called before each step and after each epoch.
        stop: whether to end after an epoch with this record.

    Raises:
        DivergedError: what an epoch's steps returned is not finite.
        StateError: see TrainingState.
    """
    groups, history, done = variables or {}, [], 0
    values: list[Sequence[Any]] = []  # of this epoch's steps
    if state is not None and (facts := state.restore(groups)) is not None:
        history, values = facts["history"], facts.get("losses", [])
        done = facts.get("step", len(history) * steps)
    begun, clock, saved = done, 0.0, time.monotonic()
    with _DelayedInterrupt(state is not None and save_seconds is not None) as interrupt:
        while done < epochs * steps and not (history and not values and stop(history[-1])):
            epoch, number = divmod(done, steps)
            taken = done - begun
            # The first step traces: it tells nothing about the others.
            left = (time.monotonic() - clock) / (taken - 1) * (epochs * steps - done) if taken > 1 else None
            text = "" if taken else "the first step takes longest"
            observe(Status(epoch, epochs, _best(history), left, number / steps, text))
            values.append(take_step(epoch, number))
            done += 1
            clock = clock or time.monotonic()
            if ended := number + 1 == steps:
                if not all(math.isfinite(value) for each in values for value in each):
                    loss = float(np.mean([each[0] for each in values]))
                    raise DivergedError(
                        f"the loss is {loss} in epoch {epoch + 1}: the training diverged; lower the learning rate, or "
                        "clip"
                    )
                history.append(end_epoch(history, values))
                values = []
            due = save_seconds is not None and time.monotonic() - saved > save_seconds
            if state is not None and (ended or due or interrupt.pending):
                known = [[float(value) for value in each] for each in values]
                state.save({"history": history, "step": done, "losses": known}, groups)
                saved = time.monotonic()
            interrupt.raise_pending()
    if done > begun:
        observe(Status(epochs, epochs, _best(history), 0.0, 0.0, ""))
    return history


class _DelayedInterrupt:
    """Lets Ctrl-C wait for the end of a step, so that the state fits together; a second one does not wait."""

    def __init__(self, wanted: bool):
        self._wanted = wanted and threading.current_thread() is threading.main_thread()
        self.pending = False

    def __enter__(self) -> "_DelayedInterrupt":
        if self._wanted:
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        if self._wanted:
            signal.signal(signal.SIGINT, self._before)

    def _note(self, *arguments: object) -> None:
        if self.pending:
            raise KeyboardInterrupt
        self.pending = True

    def raise_pending(self) -> None:
        """Raises KeyboardInterrupt where one is pending."""
        if self.pending:
            raise KeyboardInterrupt


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a network is trained.

    Attributes:
        epochs, batch_size: at least 1.
        schedule: of the learning rate.
        optimizer: with weight decay and clipping.
        label_smoothing: the share of the truth that is spread over all classes.
        auxiliary_weight: of the auxiliary classifier's loss.
        average: the factor of the weights' moving average, which then is what is judged and kept; None keeps the
            weights themselves. In the first n steps it is at most (1 + n) / (10 + n), as TensorFlow does.
        drop_path_by: how often the rate of scheduled drop path grows.
    """

    epochs: int = 10
    batch_size: int = 64
    schedule: Schedule = dataclasses.field(default_factory=Schedule)
    optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)
    label_smoothing: float = 0.0
    auxiliary_weight: float = 0.4
    average: float | None = None
    drop_path_by: Literal["step", "epoch"] = "step"

    def __post_init__(self):
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a whole number from 1")
        if not 0 <= self.label_smoothing < 1 or self.auxiliary_weight < 0:
            raise ValueError(
                f"label_smoothing is {self.label_smoothing} and auxiliary_weight {self.auxiliary_weight}; expected a "
                "share from 0 to less than 1, and a weight of 0 or more"
            )
        if self.average is not None and not 0 < self.average < 1:
            raise ValueError(f"average is {self.average}; expected a number between 0 and 1, such as 0.9999, or none")

    def make_learner(
        self,
        model: Any,
        mirror: Mirror | None = None,
        class_weights: Sequence[float] | None = None,
        soft_labels: bool = False,
    ) -> Learner:
        """Returns the training step of a model with logits as outputs, [main] or [main, auxiliary]."""
        return Learner(
            model,
            self.optimizer,
            label_smoothing=self.label_smoothing,
            auxiliary_weight=self.auxiliary_weight,
            class_weights=class_weights,
            soft_labels=soft_labels,
            mirror=mirror,
        )


class Outcome(NamedTuple):
    """What came of a training.

    Attributes:
        history: one record an epoch: epoch (from 1), learning_rate, loss, accuracy, val_loss, val_accuracy, seconds.
        epoch: the best one, from 1, whose weights the model has.
        accuracy: its accuracy on the validation images, 0 to 1.
    """

    history: list[Record]
    epoch: int
    accuracy: float

    @classmethod
    def of(cls, history: list[Record]) -> "Outcome":
        """Returns what this history says."""
        best = max(history, key=lambda record: record["val_accuracy"])  # the first of equals
        return cls(history, int(best["epoch"]), best["val_accuracy"])

    @classmethod
    def read(cls, folder: Path) -> "Outcome":
        """Returns that of the training that `fit` has ended in this folder."""
        return cls.of(json.loads((folder / "history.json").read_text(encoding="utf-8")))


def fit(
    model: keras.Model,
    train: Part,
    validation: Part,
    settings: Settings,
    *,
    seed: int = 0,
    augment: augmentations.Step | None = None,
    mix: augmentations.Mix | None = None,
    class_weights: Sequence[float] | None = None,
    preprocess: Callable[[Any], Any] = augmentations.UNIT,
    drop_path: Progress | None = None,
    folder: Path | None = None,
    identity: dict[str, Any] | None = None,
    tensorboard: bool = False,
    observe: Callable[[Status], None] = lambda status: None,
) -> Outcome:
    """Trains `model`, whose output is logits or [logits, auxiliary logits], and leaves the best weights in it.

    Args:
        model: its frozen layers stay as they are.
        train, validation: what it learns from, and what the best epoch is chosen on.
        settings: how.
        seed: of the order of the images and the augmentation; the model's own seeds are set where it is built.
        augment: of training batches.
        mix: of training batches and their labels, after the augmentation.
        class_weights: of each class in the training's loss; None for 1.
        preprocess: 0..255 to what the model reads.
        drop_path: of the model, from `recipes.training.drop_path.schedule_drop_path`.
        folder: for the state to resume from, history.json and history.csv; nothing is written unless given.
        identity: JSON values that tell this training from others, beside `settings` and `seed`.
        tensorboard: writes the history into folder/tensorboard, too.
        observe: called before each step and after each epoch.

    Raises:
        DivergedError: the loss is not a number.
        StateError: `folder` holds the state of another training.
        ValueError: there is no validation image.
    """
    if not len(validation):
        raise ValueError("there is no validation image to choose the best epoch by; raise validation_fraction")
    steps = train.steps(settings.batch_size, training=True)
    learner, kept = (
        settings.make_learner(model, None, class_weights, mix is not None),
        _KeptWeights(model, settings.average),
    )
    facts = {"seed": seed, **dataclasses.asdict(settings), **(identity or {})}
    state = None if folder is None else TrainingState(folder / STATE_FILE, facts)
    writer = tf.summary.create_file_writer(str(folder / "tensorboard")) if folder and tensorboard else None
    evaluator = Evaluator(model, validation, preprocess, times=settings.epochs)
    batches, begun, rate = None, 0.0, 0.0

    def take_step(epoch: int, number: int) -> tuple[Any, ...]:
        nonlocal batches, begun, rate
        begun = begun if number else time.perf_counter()
        step = epoch * steps + number
        if drop_path is not None:
            drop_path.assign((epoch if settings.drop_path_by == "epoch" else step / steps) / settings.epochs)
        if batches is None:
            batches = iter(
                train.dataset(
                    settings.batch_size, training=True, augment=augment, mix=mix, preprocess=preprocess, seed=seed,
                    epoch=epoch, epochs=None,
                )
            )  # fmt: skip
        rate = settings.schedule.at_step(step, steps, settings.epochs)
        images, labels = next(batches)
        loss, right = learner.step(images, labels, rate)
        kept.take_step(step)
        return loss, right, len(labels)

    def end_epoch(history: list[Record], values: list[Sequence[Any]]) -> Record:
        losses, right, seen = zip(*values, strict=True)
        seconds = time.perf_counter() - begun
        record: Record = {"epoch": len(history) + 1, "learning_rate": rate, "loss": float(np.mean(losses))}
        record |= {"accuracy": int(sum(map(int, right))) / sum(seen), "seconds": round(seconds, 2)}
        with kept.averaged():
            record["val_accuracy"], record["val_loss"] = evaluator()
            if record["val_accuracy"] > (_best(history) or -1.0):
                kept.keep()
        if folder is not None:
            write_history(folder, [*history, record])
        if writer is not None:
            _summarise(writer, record)
        return record

    # TensorFlow's rewrites pay in a training of thousands of steps.
    with tensorflow_options.rewrites(settings.epochs * steps >= tensorflow_options.FEW_STEPS):
        history = run_epochs(
            take_step,
            end_epoch,
            epochs=settings.epochs,
            steps=steps,
            variables={
                "variable": [variable.value for variable in model.variables],  # with the state of random layers
                "slot": learner.slots,
                **kept.groups,
            },
            state=state,
            observe=observe,
        )
    kept.take_best()
    return Outcome.of(history)


class _KeptWeights:
    """The best weights so far and, if wanted, the moving average of the weights."""

    def __init__(self, model: keras.Model, factor: float | None):
        self._factor = factor
        self._weights = [weight.value for weight in model.weights]
        self._best = [tf.Variable(weight, trainable=False) for weight in self._weights]
        floats = [weight for weight in self._weights if weight.dtype.is_floating]
        self._averaged = floats if factor is not None else []
        self._averages = [tf.Variable(weight, trainable=False) for weight in self._averaged]
        self._traced = tf.function(self._move, autograph=False)
        self.groups = {"average": self._averages, "best": self._best}

    def take_step(self, done: int) -> None:
        """Moves the averages towards the weights; `done` counts the steps before."""
        if self._factor is not None:
            self._traced(tf.constant(min(self._factor, (1 + done) / (10 + done)), tf.float32))

    def _move(self, factor: Any) -> None:
        for average, weight in zip(self._averages, self._averaged, strict=True):
            average.assign_sub((1 - factor) * (average - weight))

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Puts the averages into the model while the block lasts, if there are averages."""
        before = [weight.numpy() for weight in self._averaged]
        _assign(self._averaged, self._averages)
        try:
            yield
        finally:
            _assign(self._averaged, before)

    def keep(self) -> None:
        """Remembers the model's weights as the best."""
        _assign(self._best, self._weights)

    def take_best(self) -> None:
        """Puts the best weights into the model."""
        _assign(self._weights, self._best)


def _assign(variables: Sequence[Any], values: Sequence[Any]) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def _best(history: list[Record]) -> float | None:
    return max((record["val_accuracy"] for record in history if "val_accuracy" in record), default=None)


def _summarise(writer: Any, record: Record) -> None:
    # tf.summary.scalar, which does just this, needs the package tensorboard already for writing
    metadata = tf.compat.v1.SummaryMetadata()
    metadata.plugin_data.plugin_name = "scalars"
    with writer.as_default(step=int(record["epoch"])):
        for name, value in record.items():
            if name != "epoch":
                tf.summary.write(name, tf.constant(value, tf.float32), metadata=metadata)
    writer.flush()
