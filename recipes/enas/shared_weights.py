"""Shared weights in training: one step under one path, and the scores of paths."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from recipes.enas import layers as supernet_paths
from recipes.enas.layers import PathSupernet


@dataclasses.dataclass(frozen=True)
class Descent:
    """How shared weights learn: Nesterov's momentum, and cosine periods that grow (Loshchilov and Hutter, 2017).

    Attributes:
        learning_rate, least_rate: at the beginning and the end of a period.
        period: epochs of the first one.
        growth: by which each is longer than the one before.
        momentum: of the velocity.
        weight_decay: w in w/2 x |weights|^2, of all weights, as ENAS has it; its l2_reg is half of w.
        clip: largest norm of the gradient.
        dropout: share of the features before the classifier that a step leaves out.
    """

    learning_rate: float = 0.05
    least_rate: float = 0.0005
    period: int = 10
    growth: int = 2
    momentum: float = 0.9
    weight_decay: float = 2e-4
    clip: float = 5.0
    dropout: float = 0.1

    def at(self, epoch: int) -> float:
        """Returns the learning rate of an epoch, from 0."""
        period = self.period
        while epoch >= period:
            epoch, period = epoch - period, period * self.growth
        return self.least_rate + 0.5 * (self.learning_rate - self.least_rate) * (1 + math.cos(math.pi * epoch / period))


class SharedWeights:
    """The weights of a supernet and their velocity; one trace serves all paths.

    Args:
        net: the supernet.
        path_shape: of its paths.
        input_shape: of an image.
        descent: how the weights learn.
        seed: of their first values.
    """

    def __init__(
        self,
        net: PathSupernet,
        path_shape: tuple[int, ...],
        input_shape: tuple[int, int, int],
        descent: Descent,
        seed: int,
    ):
        self.net, self.descent = net, descent
        self.weights: Any = tf.Variable(tf.constant(supernet_paths.initial(net.packing, seed)), name="weights")
        self.velocity: Any = tf.Variable(tf.zeros_like(self.weights), name="velocity")
        path, images = tf.TensorSpec(path_shape, tf.int32), tf.TensorSpec([None, *input_shape])
        labels = tf.TensorSpec([None], tf.int32)
        step = [path, images, labels, tf.TensorSpec([]), tf.TensorSpec([2], tf.int32)]
        self._step = tf.function(self._one_step, step, autograph=False)
        self._right = tf.function(self._count_right, [path, images, labels], autograph=False)
        self._used = tf.function(self._statistics, [path, images], autograph=False)

    def step(self, path: Any, images: Any, labels: Any, rate: float, key: Any) -> float:
        """Trains the weights of a path on a batch and returns its loss; `key`, two whole numbers, seeds the dropout.

        Raises:
            FloatingPointError: the loss is not a number any more.
        """
        loss = float(self._step(path, images, labels, tf.constant(rate, tf.float32), tf.constant(key, tf.int32)))
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss of the shared weights is {loss}: they diverged; lower their learning rate, or take another "
                "folder or delete the state in it, if an earlier step had done it"
            )
        return loss

    def _one_step(self, path: Any, images: Any, labels: Any, rate: Any, key: Any) -> Any:
        def drop(features: Any) -> Any:
            return tf.nn.experimental.stateless_dropout(features, self.descent.dropout, key)

        with tf.GradientTape() as tape:
            logits, _ = self.net.logits(self.weights, path, images, drop=drop if self.descent.dropout else None)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
        gradient: Any = tape.gradient(loss, self.weights)
        gradient += self.descent.weight_decay * self.weights
        gradient *= self.descent.clip / tf.maximum(tf.norm(gradient), self.descent.clip)
        tf.raw_ops.ResourceApplyMomentum(
            var=self.weights.handle, accum=self.velocity.handle, lr=rate, grad=gradient,
            momentum=self.descent.momentum, use_nesterov=True,
        )  # fmt: skip
        return loss

    def _count_right(self, path: Any, images: Any, labels: Any) -> Any:
        logits, _ = self.net.logits(self.weights, path, images)
        return tf.reduce_sum(tf.cast(tf.equal(tf.argmax(logits, -1, tf.int32), labels), tf.int32))

    def _statistics(self, path: Any, images: Any) -> Any:
        return self.net.logits(self.weights, path, images)[1]

    def accuracy(self, path: Any, images: Any, labels: Any) -> float:
        """Returns the share of a batch that a path tells right, normalised by the statistics of the batch."""
        return int(self._right(path, images, labels)) / len(labels)

    def statistics(self, path: Any, batches: list[Any]) -> np.ndarray:
        """Returns the mean over batches of images of all means and variances by which a path normalises."""
        return np.mean([self._used(path, images).numpy() for images in batches], axis=0)

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns the state."""
        return {"weights": self.weights.numpy(), "velocity": self.velocity.numpy()}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Takes back what `arrays` returned."""
        self.weights.assign(arrays["weights"])
        self.velocity.assign(arrays["velocity"])
