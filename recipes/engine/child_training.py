"""Trains one child network, as a search does a hundred times: little is done before the first step.

A plain `keras.Model.compile/fit` spends its time on small networks in what precedes training: TensorFlow's grappler
rewrites a graph of ten thousand nodes, and Keras traces metrics, optimizer and a second graph for the evaluation.
Here one step is traced, a normalisation and an update of weights are one operation each in it, grappler's rewrites are
off meanwhile, and a short evaluation runs eagerly.
"""

import contextlib
import dataclasses
import math
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from recipes.images.augment import UNIT, Step
from recipes.images.parts import Part, Stream
from recipes.training import mirrored, tensorflow_options
from recipes.training.descent import Descent, Learner
from zoo import atomic

_EVALUATION_BATCH = 500
_EAGER_BATCHES = 4  # tracing a graph for the evaluation takes as long as this many eager calls
_LARGEST_MOMENTUM = 0.9  # of moving averages: 0.9997, as published, needs more steps than a child takes in all


@dataclasses.dataclass(frozen=True)
class Training:
    """How a child is trained: SGD with momentum, one cosine period from `learning_rate` to 0, L2 on all weights.

    Attributes:
        epochs, batch_size: at least 1.
        learning_rate: at the start, after `warmup` steps that grow linearly to it.
        momentum: Nesterov's, as TF-slim's NASNet code has it.
        weight_decay: the factor w of w/2 x |weights|^2 in the loss, normalisation's weights left out.
        clip: largest global norm of the gradient; None does not clip.
        warmup: steps; short trainings of deep cells diverge without.
    """

    epochs: int = 3
    batch_size: int = 64
    learning_rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 1e-4
    clip: float | None = 5.0
    warmup: int = 10

    def __post_init__(self):
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a whole number from 1")
        if self.learning_rate <= 0 or (self.clip is not None and self.clip <= 0):
            raise ValueError(f"learning_rate is {self.learning_rate} and clip {self.clip}; expected numbers above 0")

    def descent(self) -> Descent:
        """Returns the options of a step."""
        return Descent(momentum=self.momentum, nesterov=True, weight_decay=self.weight_decay, clip=self.clip)

    def rate(self, step: int, steps: int) -> float:
        """Returns the learning rate of this step of `steps` in all."""
        cosine = 0.5 * self.learning_rate * (1 + math.cos(math.pi * step / steps))
        return cosine * min(1.0, (step + 1) / (self.warmup + 1))


def train(
    make_model: Callable[[], keras.Model],
    training_part: Part,
    validation_part: Part,
    settings: Training,
    *,
    seed: int,
    normalize: Callable[[Any], Any] = UNIT,
    augment: Step | None = None,
    folder: Path | None = None,
    report: Callable[[float, str], None] | None = None,
    devices: Sequence[str] | None = None,
) -> dict[str, float]:
    """Trains a new network and returns {"val_accuracy", "val_loss", "loss", "params"}.

    The same arguments give the same result, also when the process was killed meanwhile and `folder` holds the state
    of the last whole epoch. The weights of the end stay there, as model.weights.h5.

    Args:
        make_model: returns a network with logits as its one output.
        training_part, validation_part: the latter is what a search selects on. Test data has no place here.
        settings: how to train.
        seed: of the weights, the order of the images and the augmentation.
        normalize: images 0..255 -> what the network reads.
        augment: a function of a batch; none unless given.
        folder: for checkpoints; none are written unless given.
        report: called with the share that is done, 0 to 1, and a few words.
        devices: that share every batch; the GPUs that are visible, where they are several, unless given.

    Raises:
        FloatingPointError: the loss is not a number any more.
    """
    devices = mirrored.visible() if devices is None else devices
    mirror = mirrored.Mirror(devices) if devices else None
    with tensorflow_options.without_rewrites():
        keras.utils.set_random_seed(seed % 2**32)
        with contextlib.nullcontext() if mirror is None else mirror.scope():
            model = make_model()
            _shorten_moving_averages(model)
            learner = Learner(model, settings.descent(), mirror)
        state = None if folder is None else _State(folder / "epoch.npz", learner)
        epoch, loss = (0, math.nan) if state is None else state.restore()
        while epoch < settings.epochs:
            loss = _train_epoch(learner, settings, training_part, epoch, seed, normalize, augment, report)
            epoch += 1
            if state is not None:
                state.save(epoch, loss)
        if report is not None:
            report(1.0, "evaluating")
        accuracy, validation_loss = evaluate(model, validation_part, normalize)
    if folder is not None:
        with atomic.replacing(folder / "model.weights.h5") as stream:
            temporary = Path(stream.name).with_suffix(".weights.h5")
            model.save_weights(temporary)
            stream.write(temporary.read_bytes())
            temporary.unlink()
        (folder / "epoch.npz").unlink(missing_ok=True)
    return {
        "val_accuracy": accuracy,
        "val_loss": validation_loss,
        "loss": loss,
        "params": float(model.count_params()),
    }


def evaluate(model: keras.Model, part: Part, normalize: Callable[[Any], Any] = UNIT) -> tuple[float, float]:
    """Returns the accuracy (0 to 1) and the mean cross-entropy of a network with logits."""
    count = math.ceil(len(part) / _EVALUATION_BATCH)

    def predict(images: Any) -> Any:
        return model(images, training=False)

    function = predict if count <= _EAGER_BATCHES else tf.function(predict, autograph=False, reduce_retracing=True)
    right, loss = 0, 0.0
    for images, labels in _judged_batches(part):
        images = tf.cast(normalize(images), tf.float32)
        logits = function(images).numpy().astype(np.float64)
        right += int((logits.argmax(axis=1) == labels).sum())
        largest = logits.max(axis=1, keepdims=True)
        log_sum = np.log(np.exp(logits - largest).sum(axis=1)) + largest[:, 0]
        loss += float((log_sum - logits[np.arange(len(labels)), labels]).sum())
    return right / len(part), loss / len(part)


def _judged_batches(part: Part) -> Iterator[tuple[Any, Any]]:
    if isinstance(part, Stream):
        for images, labels in part.dataset(_EVALUATION_BATCH, preprocess=_unchanged):
            yield images, labels.numpy()
        return
    for start in range(0, len(part), _EVALUATION_BATCH):
        yield part.images[start : start + _EVALUATION_BATCH], part.labels[start : start + _EVALUATION_BATCH]


def _training_batches(part: Part, batch_size: int, epoch: int, seed: int) -> Iterator[tuple[Any, Any]]:
    """Yields the images and labels of an epoch in its own order."""
    if isinstance(part, Stream):
        yield from part.dataset(batch_size, training=True, preprocess=_unchanged, seed=seed % 2**31, epoch=epoch)
        return
    order = np.random.default_rng([seed, epoch]).permutation(len(part))
    for start in range(0, len(part), batch_size):
        chosen = order[start : start + batch_size]
        yield part.images[chosen], part.labels[chosen]


def _unchanged(images: Any) -> Any:
    return images


class _State:
    """The file from which a killed training goes on: every variable after a whole epoch."""

    def __init__(self, path: Path, learner: Learner):
        self._path = path
        self._variables = [*(variable.value for variable in learner.model.variables), *learner.slots]

    def save(self, epoch: int, loss: float) -> None:
        arrays = {f"variable{number}": variable.numpy() for number, variable in enumerate(self._variables)}
        with atomic.replacing(self._path) as stream:
            np.savez(stream, epoch=epoch, loss=loss, **arrays)

    def restore(self) -> tuple[int, float]:
        """Returns the epochs that are done and the last one's loss; (0, nan) where there is no fitting file."""
        try:
            # Opened here: numpy leaves a file open that it finds to be no archive.
            with self._path.open("rb") as stream, np.load(stream) as found:
                arrays = [found[f"variable{number}"] for number in range(len(self._variables))]
                epoch, loss = int(found["epoch"]), float(found["loss"])
        except (FileNotFoundError, KeyError, ValueError, zipfile.BadZipFile):
            return 0, math.nan
        if [array.shape for array in arrays] != [tuple(variable.shape) for variable in self._variables]:
            return 0, math.nan
        for variable, array in zip(self._variables, arrays, strict=True):
            variable.assign(array)
        return epoch, loss


def _train_epoch(
    learner: Learner,
    settings: Training,
    part: Part,
    epoch: int,
    seed: int,
    normalize: Callable[[Any], Any],
    augment: Step | None,
    report: Callable[[float, str], None] | None,
) -> float:
    """Returns the mean loss of one epoch over the images in an order of its own."""
    streams = isinstance(part, Stream)
    steps = part.steps(settings.batch_size, training=True) if streams else math.ceil(len(part) / settings.batch_size)
    losses = []
    for number, (images, labels) in enumerate(_training_batches(part, settings.batch_size, epoch, seed)):
        if report is not None:
            share = (epoch + number / steps) / settings.epochs
            report(share, f"epoch {epoch + 1} of {settings.epochs}" if epoch or number else "tracing")
        done = epoch * steps + number
        if augment is not None:
            images = augment(tf.constant(images), tf.constant([seed % 2**31, done]))
        rate = settings.rate(done, settings.epochs * steps)
        images = tf.cast(normalize(images), tf.float32)
        losses.append(learner.step(images, labels, rate)[0])
    loss = float(np.mean(losses))
    if not math.isfinite(loss):
        raise FloatingPointError(f"the loss is {loss} in epoch {epoch + 1}: the training diverged")
    return loss


def _shorten_moving_averages(model: keras.Model) -> None:
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = min(layer.momentum, _LARGEST_MOMENTUM)
