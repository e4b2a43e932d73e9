"""Accuracy and loss of a model on a part of the data."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from recipes.images import augment as augmentations
from recipes.images.parts import Part

_BATCH = 250


def accuracy(model: keras.Model, part: Part, preprocess: Callable[[Any], Any] = augmentations.UNIT) -> float:
    """Returns the share, 0 to 1, of images whose class a model tells right, by logits or probabilities."""
    return Judge(model, part, preprocess)()[0]


class Judge:
    """Accuracy and loss of the main output on a part; traced once."""

    def __init__(self, model: keras.Model, part: Part, preprocess: Callable[[Any], Any]):
        self._model, self._count = model, len(part)
        self._dataset = part.dataset(_BATCH, preprocess=preprocess)
        self._traced = tf.function(self._judge, autograph=False, reduce_retracing=True)

    def __call__(self) -> tuple[float, float]:
        """Returns accuracy, 0 to 1, and mean cross-entropy, which takes the output for logits."""
        totals = np.zeros(2)
        for images, labels in self._dataset:
            totals += [float(value) for value in self._traced(images, labels)]
        right, loss = totals / self._count
        return float(right), float(loss)

    def _judge(self, images: Any, labels: Any) -> tuple[Any, Any]:
        outputs = self._model(images, training=False)
        logits = outputs[0] if isinstance(outputs, (list, tuple)) else outputs
        right = tf.equal(tf.argmax(logits, -1, labels.dtype), labels)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        return tf.reduce_sum(tf.cast(right, tf.int32)), tf.reduce_sum(losses)
