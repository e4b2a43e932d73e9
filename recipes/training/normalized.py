"""1x1 convolutions with their normalisation as one matrix product each, many at a time: the kernel of DARTS' supernet.

A normalisation without scale and shift after y = x @ W needs no y: mean and covariance of x give its statistics. The
gradients are written by hand; docs/darts_supernet.md derives them and uses the same letters.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from recipes.training import supernet
from recipes.training.supernet import EPSILON


def add_weighted(inputs: Sequence[Sequence[Any]], weight: Any, strength: Any) -> list[Any]:
    """Returns sum(s * normalise(x @ w) for x, w, s in zip(inputs, weight, strength)), in groups of a row order each.

    Args:
        inputs: for each group the arrays (N, K) of its maps. The order of the rows differs between groups, their number
            does not; the first group is not empty.
        weight: (E, K, C), for the maps of all groups in turn.
        strength: (E,).

    Returns:
        For each group (N, C); the first has the constant part of all of them.
    """
    counts = [len(group) for group in inputs]

    @tf.custom_gradient
    def run(weight: Any, strength: Any, *flat: Any) -> Any:
        statistics = _Statistics(flat, weight)
        matrices, bias = statistics.matrices(strength)
        parts = [tf.matmul(x, matrix) for x, matrix in zip(flat, tf.unstack(matrices), strict=True)]
        remaining = iter(parts)
        sums = [tf.add_n(list(itertools.islice(remaining, count))) for count in counts]
        sums[0] = tf.nn.bias_add(sums[0], tf.reduce_sum(bias, 0))

        def gradient(*gradients: Any) -> tuple[Any, ...]:
            totals = tf.broadcast_to(_sum_rows(gradients[0]), [len(flat), weight.shape[-1]])
            each = [gradients[group] for group, count in enumerate(counts) for _ in range(count)]
            return statistics.gradients(strength, each, totals)

        return tuple(sums), gradient

    return list(run(weight, strength, *(x for group in inputs for x in group)))


def multiply(inputs: Sequence[Any], weight: Any) -> list[Any]:
    """Returns normalise(x @ w), (N, C), for each of E arrays x (N, K) and its w in `weight` (E, K, C)."""

    @tf.custom_gradient
    def run(weight: Any, *flat: Any) -> Any:
        statistics = _Statistics(flat, weight)
        matrices, bias = (tf.unstack(stack) for stack in statistics.matrices(tf.ones([len(flat)])))
        outputs = [tf.nn.bias_add(tf.matmul(x, matrix), b) for x, matrix, b in zip(flat, matrices, bias, strict=True)]

        def gradient(*gradients: Any) -> tuple[Any, ...]:
            scales = tf.unstack(statistics.inverse)
            of_products = [
                _before_normalisation(g, y, scale) for g, y, scale in zip(gradients, outputs, scales, strict=True)
            ]
            of_weight = tf.stack([tf.matmul(x, g, transpose_a=True) for x, g in zip(flat, of_products, strict=True)])
            return of_weight, *(
                tf.matmul(g, w, transpose_b=True) for g, w in zip(of_products, tf.unstack(weight), strict=True)
            )

        return tuple(outputs), gradient

    return list(run(weight, *inputs))


def _before_normalisation(gradient: Any, normalised: Any, scale: Any) -> Any:
    """Returns the gradient in y, (N, C), given the one in normalise(y), that itself, and `scale`, 1 / deviation of y.

    TensorFlow's kernel wants y with its mean and variance; it gets what is normalised already, with mean 0, variance 1.
    """
    found = tf.raw_ops.FusedBatchNormGradV3(
        y_backprop=gradient[None, None],
        x=normalised[None, None],
        scale=scale,
        reserve_space_1=tf.zeros_like(scale),
        reserve_space_2=tf.ones_like(scale) - EPSILON,
        reserve_space_3=[],
        epsilon=EPSILON,
    )
    return supernet.as_rows(found[0])


class _Statistics:
    """Means (E, K) and covariances (E, K, K) of the inputs of E maps, and 1 / deviation (E, C) of their outputs."""

    def __init__(self, inputs: Sequence[Any], weight: Any):
        self.inputs, self.weight = inputs, weight
        self.count = inputs[0].shape[0] or tf.cast(tf.shape(inputs[0])[0], tf.float32)
        self.mean = tf.stack([_sum_rows(x) for x in inputs]) / self.count
        second = tf.stack([tf.matmul(x, x, transpose_a=True) for x in inputs]) / self.count
        self.covariance = second - self.mean[:, :, None] * self.mean[:, None, :]
        self.projected = tf.matmul(self.covariance, weight)
        variance = tf.maximum(tf.reduce_sum(weight * self.projected, 1), 0.0)
        self.inverse = tf.math.rsqrt(variance + EPSILON)

    def matrices(self, strength: Any) -> tuple[Any, Any]:
        """Returns M (E, K, C) and b (E, C) with strength x normalise(x @ weight) = x @ M + b."""
        matrices = self.weight * (strength[:, None] * self.inverse)[:, None, :]
        return matrices, -tf.reduce_sum(self.mean[:, :, None] * matrices, 1)

    def gradients(self, strength: Any, gradients: Sequence[Any], totals: Any) -> tuple[Any, ...]:
        """Returns the gradients in weight, strength and each input.

        Args:
            strength: (E,), that of the matrices.
            gradients: in the output of each map, (N, C).
            totals: the sum of the rows of each, (E, C).
        """
        scale = strength[:, None] * self.inverse
        matrices = self.weight * scale[:, None, :]
        of_matrices = tf.stack([tf.matmul(x, g, transpose_a=True) for x, g in zip(self.inputs, gradients, strict=True)])
        of_matrices -= self.mean[:, :, None] * totals[:, None, :]
        of_scale = tf.reduce_sum(of_matrices * self.weight, 1)
        of_strength = tf.reduce_sum(of_scale * self.inverse, 1)
        of_variance = (-0.5 * of_scale * scale * self.inverse * self.inverse)[:, None, :]
        of_weight = of_matrices * scale[:, None, :] + 2 * of_variance * self.projected
        of_covariance = tf.matmul(self.weight * of_variance, self.weight, transpose_b=True)
        quadratic = of_covariance * (2 / self.count)
        constants = tf.reduce_sum(matrices * totals[:, None, :], 2) / self.count
        constants = -constants - tf.reduce_sum(quadratic * self.mean[:, None, :], 2)
        tables = [tf.unstack(stack) for stack in (matrices, quadratic, constants)]
        of_inputs = [
            tf.nn.bias_add(tf.matmul(x, square), constant) + tf.matmul(g, matrix, transpose_b=True)
            for g, x, matrix, square, constant in zip(gradients, self.inputs, *tables, strict=True)
        ]
        return of_weight, of_strength, *of_inputs


def _sum_rows(x: Any) -> Any:
    """The sum of the rows (N, K), by the operation that is fastest at it."""
    return tf.raw_ops.BiasAddGrad(out_backprop=x)
