"""The training loop: `run_epochs`, everybody's, and `fit`, which trains a network to the end as the papers do.

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
        observe: called before each step and at the end.
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
    with _delayed_interrupt(state is not None and save_seconds is not None) as interrupted:
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
    """Lets Ctrl-C wait for the end of a step, so that the state fits together; a second one does not wait.

    Gives a list that is empty unless one waits.
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
    """What came of a training."""

    # one an epoch: epoch (from 1), learning_rate, loss, accuracy, seconds, val_accuracy, val_loss
    history: list[Record]
    epoch: int  # the best one, from 1, whose weights the model has
    accuracy: float  # its accuracy on the validation images, 0 to 1

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
    drop_path: tf.Variable | None = None,
    folder: Path | None = None,
    identity: dict[str, Any] | None = None,
    tensorboard: bool = False,
    observe: Callable[[Status], None] = lambda status: None,
) -> Outcome:
    """Trains `model`, whose output is logits or [logits, auxiliary logits], and leaves the best weights in it.

    Args:
        model: its frozen layers stay as they are.
        train, validation: what it learns from, and what the best epoch is chosen on; test images have no place here.
        settings: how.
        seed: of the order of the images and the augmentation; the model's own seeds are set where it is built.
        augment: of training batches.
        mix: of training batches and their labels, after the augmentation.
        class_weights: of each class in the training's loss; None for 1.
        preprocess: 0..255 to what the model reads.
        drop_path: the progress of the model's, from `recipes.training.learner.schedule_drop_path`.
        folder: for the state to resume from, history.json and history.csv; nothing is written unless given.
        identity: JSON values that tell this training from others, beside `settings` and `seed`.
        tensorboard: writes the history into folder/tensorboard, too.
        observe: called before each step and at the end.

    Raises:
        DivergedError: the loss is not a number.
        StateError: `folder` holds the state of another training.
        ValueError: there is no validation image.
    """
    if not len(validation):
        raise ValueError("there is no validation image to choose the best epoch by; raise validation_fraction")
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
        if batches is None:  # the first step of this process, which starts an epoch
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
            if record["val_accuracy"] > (_best(history) or -1.0):
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
            # with the state of random layers
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


def _write_history(folder: Path, history: Sequence[Record]) -> None:
    atomic.write_atomically(folder / "history.json", json.dumps(history, indent=1) + "\n")
    text = io.StringIO()
    table = csv.DictWriter(text, list(history[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(history)
    atomic.write_atomically(folder / "history.csv", text.getvalue())


def _summarise(writer: Any, record: Record) -> None:
    # tf.summary.scalar, which does just this, needs the package tensorboard already for writing
    metadata = tf.compat.v1.SummaryMetadata()
    metadata.plugin_data.plugin_name = "scalars"
    with writer.as_default(step=int(record["epoch"])):
        for name, value in record.items():
            if name != "epoch":
                tf.summary.write(name, tf.constant(value, tf.float32), metadata=metadata)
    writer.flush()
