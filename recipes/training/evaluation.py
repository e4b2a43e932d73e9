"""Accuracy and loss of anything that computes logits, a model or a path of a supernet; and accuracy by class."""

import functools
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from recipes.images.augment import PREPROCESSING, UNIT
from recipes.images.parts import Part, Stream

_BATCH = 250
_FEW = 5  # with fewer images, an accuracy near chance says nothing
_EAGER_BATCHES = 4  # tracing a graph takes as long as this many eager calls


class Scores(NamedTuple):
    """The result of an evaluation; `loss` is the mean cross-entropy, if the outputs were logits."""

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
    """Yields `part.steps(batch_size)` batches of a part's preprocessed images and its labels, in the part's order."""
    if isinstance(part, Stream):
        for images, labels in part.dataset(batch_size, preprocess=preprocess):
            yield tf.cast(images, tf.float32), labels.numpy()
        return
    for start in range(0, len(part), batch_size):
        images = preprocess(part.images[start : start + batch_size])
        yield tf.cast(images, tf.float32), part.labels[start : start + batch_size]


class Evaluator:
    """Evaluates a model's main output on a part, each time it is called.

    Args:
        model: returns logits, [logits, auxiliary logits], or probabilities, whose loss then means nothing.
        part: the images and labels.
        preprocess: pixels 0..255 -> what the model reads.
        batch_size: images per call of the model.
        times: how often the Evaluator will be called; few batches run eagerly, which saves tracing.
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
        """Returns accuracy and loss of the model with its present weights."""
        return evaluate(self._predict, self._batches())


def measure_accuracy(model: keras.Model, part: Part, preprocess: Callable[[Any], Any] = UNIT) -> float:
    """Returns the share, 0 to 1, of images that a model, with logits or probabilities, classifies correctly."""
    return Evaluator(model, part, preprocess)().accuracy


def rank_labels(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns the rank of each image's true class among its scores (n, classes), 0 for the best.

    On ties the lower class number comes first, as in argmax.
    """
    own = scores[np.arange(len(labels)), labels][:, None]
    earlier = np.arange(scores.shape[1]) < labels[:, None]
    return ((scores > own) | ((scores == own) & earlier)).sum(axis=1)


def count_confusions(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Returns the confusion matrix (classes, classes): counts by true class (row) and predicted class (column)."""
    places = np.asarray(labels, np.int64) * classes + np.asarray(predicted, np.int64)
    return np.bincount(places, minlength=classes * classes).reshape(classes, classes)


def measure_classes(confusions: np.ndarray) -> list[dict[str, float | int | None]]:
    """Returns n, precision and recall of each class; precision is None without predictions, recall without images."""
    right, there, predicted = np.diag(confusions), confusions.sum(axis=1), confusions.sum(axis=0)
    return [
        {
            "n": int(there[label]),
            "precision": float(right[label] / predicted[label]) if predicted[label] else None,
            "recall": float(right[label] / there[label]) if there[label] else None,
        }
        for label in range(len(confusions))
    ]


def warn_near_chance(accuracy: float | None, classes: int, n: int, subject: str) -> None:
    """Warns on stderr if a model is hardly better than guessing; the usual cause is the wrong preprocessing."""
    if accuracy is not None and n >= _FEW and accuracy < min(0.6, 1.5 / classes):  # 0.6 of 2 classes, 0.15 of 10
        print(
            f"{subject} is right on {accuracy:.4f} of {n} images, which is near chance for {classes} classes. "
            f"Is --preprocess what it was trained with (one of {', '.join(PREPROCESSING)}), and --data its data?",
            file=sys.stderr,
        )
