"""Accuracy and loss of whatever computes logits: a model, or a path of a supernet."""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from recipes.images.augment import UNIT
from recipes.images.parts import Part, Stream

_BATCH = 250
_EAGER_BATCHES = 4  # tracing a graph takes as long as this many eager calls


class Scores(NamedTuple):
    """What an evaluation finds; `loss` is the mean cross-entropy, if the outputs were logits."""

    accuracy: float  # 0 to 1
    loss: float


def evaluate(predict: Callable[[Any], Any], batches: Iterable[tuple[Any, Any]]) -> Scores:
    """Returns the scores of `predict`, images -> logits (batch, classes), over batches of images and labels."""
    right, loss, count = 0, 0.0, 0
    for images, labels in batches:
        labels, logits = np.asarray(labels), np.asarray(predict(images), np.float64)
        right += int((logits.argmax(axis=1) == labels).sum())
        largest = logits.max(axis=1, keepdims=True)
        log_sum = np.log(np.exp(logits - largest).sum(axis=1)) + largest[:, 0]
        loss += float((log_sum - logits[np.arange(len(labels)), labels]).sum())
        count += len(labels)
    return Scores(right / count, loss / count)


def read_batches(
    part: Part, preprocess: Callable[[Any], Any] = UNIT, batch_size: int = _BATCH
) -> Iterator[tuple[Any, np.ndarray]]:
    """Yields a part's images, preprocessed, and labels, in its order; `part.steps(batch_size)` batches."""
    if isinstance(part, Stream):
        for images, labels in part.dataset(batch_size, preprocess=preprocess):
            yield tf.cast(images, tf.float32), labels.numpy()
        return
    for start in range(0, len(part), batch_size):
        images = preprocess(part.images[start : start + batch_size])
        yield tf.cast(images, tf.float32), part.labels[start : start + batch_size]


class Evaluator:
    """Evaluates a model's main output on a part, as often as it is called.

    Args:
        model: with logits, or [logits, auxiliary logits], or probabilities, whose loss then says nothing.
        part: the images.
        preprocess: 0..255 to what the model reads.
        batch_size: images at once.
        times: how often it will be called; what is short runs without a trace.
    """

    def __init__(
        self,
        model: Any,
        part: Part,
        preprocess: Callable[[Any], Any] = UNIT,
        *,
        batch_size: int = _BATCH,
        times: int = 1,
    ):
        def predict(images: Any) -> Any:
            outputs = model(images, training=False)
            return outputs[0] if isinstance(outputs, (list, tuple)) else outputs

        self._batches = functools.partial(read_batches, part, preprocess, batch_size)
        traced = times * part.steps(batch_size) > _EAGER_BATCHES
        self._predict = tf.function(predict, autograph=False, reduce_retracing=True) if traced else predict

    def __call__(self) -> Scores:
        """Returns accuracy and loss of the model as it is now."""
        return evaluate(self._predict, self._batches())


def measure_accuracy(model: keras.Model, part: Part, preprocess: Callable[[Any], Any] = UNIT) -> float:
    """Returns the share, 0 to 1, of images that a model with logits or probabilities classifies right."""
    return Evaluator(model, part, preprocess)().accuracy
