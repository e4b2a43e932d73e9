"""The training loop: `run_epochs`, which all training here uses, and `fit`, which trains a network as the papers do.

model = zoo.build("darts", "cifar10", classifier_activation=None)  # logits
outcome = fit(model, data.train, data.validation, Settings(epochs=20), folder=Path("runs/mine"))
"""

import contextlib
import csv
import dataclasses
import io
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from recipes.images import augment as augmentations
from recipes.images.parts import Part
from recipes.training.evaluation import Evaluator
from recipes.training.learner import Learner
from recipes.training.optimizer import Settings
from recipes.training.progress import Status
from recipes.training.state import TrainingState
from recipes.training.tensorflow_options import without_rewrites
from zoo import atomic

STATE_FILE = "state.npz"
Record = dict[str, Any]  # what is known of an epoch, as JSON values


class DivergedError(ValueError, FloatingPointError):
    """The loss is no longer finite."""


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
    """Trains for `epochs` epochs of `steps` steps each and returns one record per epoch.

    Killed at any moment and called again with the same `state`, it resumes and ends with the same result, provided
    that a step depends only on its epoch, its number and the variables.

    Args:
        take_step: (epoch, number), both from 0 -> metrics of the step, the loss first.
        end_epoch: (records of earlier epochs, metrics of this epoch's steps) -> the record of this epoch, JSON values.
            It may evaluate and change variables.
        epochs: in total, including those of earlier processes.
        steps: per epoch.
        variables: groups of everything that a step reads and changes; see TrainingState.
        state: where the variables are saved after each epoch; if None, nothing is written.
        save_seconds: also save within an epoch, this often, and on Ctrl-C; if None, only after whole epochs.
        observe: called before each step and at the end.
        stop: record of an epoch -> whether to end after that epoch.

    Raises:
        DivergedError: a metric of an epoch's steps is not finite.
        StateError: see TrainingState.
    """
    groups, history, done = variables or {}, [], 0
    values: list[Sequence[Any]] = []  # metrics of this epoch's steps
    if state is not None and (facts := state.restore(groups)) is not None:
        history, values = facts["history"], facts.get("losses", [])
        done = facts.get("step", len(history) * steps)
    begun, clock, saved = done, 0.0, time.monotonic()
    with _delayed_interrupt(state is not None and save_seconds is not None) as interrupted:
        while done < epochs * steps and not (history and not values and stop(history[-1])):
            epoch, number = divmod(done, steps)
            taken = done - begun
            # The first step traces, so its time says nothing about the others.
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
                        "clip the gradient"
                    )
                history.append(end_epoch(history, values))
                values = []
            due = save_seconds is not None and time.monotonic() - saved > save_seconds
            if state is not None and (ended or due or interrupted):
                known = [[float(value) for value in each] for each in values]
                state.save({"history": history, "step": done, "losses": known}, groups)
                saved = time.monotonic()
            if interrupted:
                raise KeyboardInterrupt
    if done > begun:
        observe(Status(epochs, epochs, _best(history), 0.0, 0.0, ""))
    return history


@contextlib.contextmanager
def _delayed_interrupt(wanted: bool) -> Iterator[list[bool]]:
    """Delays Ctrl-C until the end of a step, so that the saved state is consistent; a second Ctrl-C acts at once.

    Yields a list that is empty until Ctrl-C is pressed.
    """
    waiting: list[bool] = []
    if not wanted or threading.current_thread() is not threading.main_thread():
        yield waiting
        return

    def note(*arguments: object) -> None:
        if waiting:
            raise KeyboardInterrupt
        waiting.append(True)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield waiting
    finally:
        signal.signal(signal.SIGINT, before)


class Outcome(NamedTuple):
    """The result of `fit`."""

    # one record per epoch: epoch (from 1), learning_rate, loss, accuracy, seconds, val_accuracy, val_loss
    history: list[Record]
    epoch: int  # the best one, from 1, whose weights the model now has
    accuracy: float  # of the best epoch on the validation images, 0 to 1

    @classmethod
    def of(cls, history: list[Record]) -> "Outcome":
        """Returns the outcome of a training with this history."""
        best = max(history, key=lambda record: record["val_accuracy"])  # the first on a tie
        return cls(history, int(best["epoch"]), best["val_accuracy"])

    @classmethod
    def read(cls, folder: Path) -> "Outcome":
        """Returns the outcome of the training that `fit` completed in this folder."""
        return cls.of(json.loads((folder / "history.json").read_text(encoding="utf-8")))


def fit(
    model: keras.Model,
    train: Part,
    validation: Part,
    settings: Settings,
    *,
    seed: int = 0,
    augment: augmentations.Augmentation | None = None,
    mix: augmentations.Mix | None = None,
    class_weights: Sequence[float] | None = None,
    preprocess: Callable[[Any], Any] = augmentations.UNIT,
    drop_path: tf.Variable | None = None,
    folder: Path | None = None,
    identity: dict[str, Any] | None = None,
    tensorboard: bool = False,
    observe: Callable[[Status], None] = lambda status: None,
) -> Outcome:
    """Trains `model`, whose output is logits or [logits, auxiliary logits], and leaves the best weights in it.

    Args:
        model: its frozen layers do not change.
        train, validation: images to learn from, and images to choose the best epoch by; never pass test images.
        settings: how to train.
        seed: for the order and augmentation of the images; the model's own seeds are set when it is built.
        augment: applied to training batches.
        mix: applied to training batches and their labels, after `augment`.
        class_weights: of each class in the training loss; None for 1.
        preprocess: pixels 0..255 -> what the model reads.
        drop_path: the progress variable of the model from `recipes.training.learner.schedule_drop_path`.
        folder: for the state to resume from, history.json and history.csv; if None, nothing is written.
        identity: JSON values, besides `settings` and `seed`, that distinguish this training from others.
        tensorboard: whether to write the history into folder/tensorboard too.
        observe: called before each step and at the end.

    Raises:
        DivergedError: the loss is no longer finite.
        StateError: `folder` holds the state of another training.
        ValueError: there are no validation images.
    """
    if not len(validation):
        raise ValueError("there are no validation images to choose the best epoch by; raise validation_fraction")
    steps = train.steps(settings.batch_size, training=True)
    learner = Learner(model, settings, class_weights=class_weights, soft_labels=mix is not None)
    kept = _KeptWeights(model, settings.average)
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
        if batches is None:  # the first step of this process, always the first of an epoch
            options = {"augment": augment, "mix": mix, "preprocess": preprocess, "seed": seed}
            batches = iter(train.dataset(settings.batch_size, training=True, **options, epoch=epoch, epochs=None))
        rate = settings.schedule.at_step(step, steps, settings.epochs)
        images, labels = next(batches)
        loss, right = learner.step(images, labels, rate)
        kept.take_step(step)
        return loss, right, len(labels)

    def end_epoch(history: list[Record], values: list[Sequence[Any]]) -> Record:
        losses, right, seen = zip(*values, strict=True)
        record: Record = {"epoch": len(history) + 1, "learning_rate": rate, "loss": float(np.mean(losses))}
        record |= {"accuracy": sum(map(int, right)) / sum(seen), "seconds": round(time.perf_counter() - begun, 2)}
        with kept.averaged():
            record["val_accuracy"], record["val_loss"] = evaluator()
            best = _best(history)
            if best is None or record["val_accuracy"] > best:
                kept.keep()
        if folder is not None:
            _write_history(folder, [*history, record])
        if writer is not None:
            _summarise(writer, record)
        return record

    with without_rewrites(settings.epochs * steps):
        history = run_epochs(
            take_step,
            end_epoch,
            epochs=settings.epochs,
            steps=steps,
            # all variables: they include the state of random layers
            variables={"variable": [each.value for each in model.variables], "slot": learner.slots, **kept.groups},
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
        self._averaged = [weight for weight in self._weights if factor is not None and weight.dtype.is_floating]
        self._averages = [tf.Variable(weight, trainable=False) for weight in self._averaged]
        self._traced = tf.function(self._move, autograph=False)
        self.groups = {"average": self._averages, "best": self._best}

    def take_step(self, done: int) -> None:
        """Moves the averages towards the weights after a step; `done` is the number of steps before it."""
        if self._factor is not None:
            self._traced(tf.constant(min(self._factor, (1 + done) / (10 + done)), tf.float32))

    def _move(self, factor: Any) -> None:
        for average, weight in zip(self._averages, self._averaged, strict=True):
            average.assign_sub((1 - factor) * (average - weight))

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Gives the model the averaged weights, if there are any, within the block."""
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
        """Copies the best weights into the model."""
        _assign(self._weights, self._best)


def _assign(variables: Sequence[Any], values: Sequence[Any]) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def _best(history: list[Record]) -> float | None:
    return max((record["val_accuracy"] for record in history if "val_accuracy" in record), default=None)


def _write_history(folder: Path, history: Sequence[Record]) -> None:
    atomic.write_atomically(folder / "history.json", json.dumps(history, indent=1) + "\n")
    text = io.StringIO()
    table = csv.DictWriter(text, list(history[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(history)
    atomic.write_atomically(folder / "history.csv", text.getvalue())


def _summarise(writer: Any, record: Record) -> None:
    # as tf.summary.scalar does, which needs the package tensorboard even to write
    metadata = tf.compat.v1.SummaryMetadata()
    metadata.plugin_data.plugin_name = "scalars"
    with writer.as_default(step=int(record["epoch"])):
        for name, value in record.items():
            if name != "epoch":
                tf.summary.write(name, tf.constant(value, tf.float32), metadata=metadata)
    writer.flush()
