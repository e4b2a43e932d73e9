"""Linear maps with their normalisation as one matrix product each, many maps at a time, with gradients by hand.

A normalisation without affine part behind y = x @ W needs no y: mean and covariance of x give the statistics of y
exactly. So the maps of a supernet's node are matrices (strength x W / deviation of y) and one bias, and neither y nor
its normalised copy is ever stored. The gradients, derived on paper, take a third of the operations of automatic ones.
"""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from recipes.training import supernet
from recipes.training.supernet import EPSILON


def weighted_sums(inputs: Sequence[Sequence[Any]], weight: Any, strength: Any) -> list[Any]:
    """Returns the sum of strength x normalised(x @ weight) over E maps, in groups whose rows are in another order.

    Args:
        inputs: for each group the arrays (N, K) of its maps; groups have as many rows, and the first has a map.
        weight: (E, K, C), the maps of all groups one behind the other.
        strength: (E,).

    Returns:
        For each group (N, C), but for what is the same in all rows, which the first group has for all groups.
    """
    counts = [len(group) for group in inputs]

    @tf.custom_gradient
    def run(weight: Any, strength: Any, *flat: Any) -> Any:
        statistics = _Statistics(flat, weight)
        matrices, bias = statistics.matrices(strength)
        parts = [tf.matmul(x, matrix) for x, matrix in zip(flat, tf.unstack(matrices), strict=True)]
        sums = [tf.add_n(group) for group in _grouped(parts, counts)]
        sums[0] = tf.nn.bias_add(sums[0], tf.reduce_sum(bias, 0))

        def gradient(*gradients: Any) -> tuple[Any, ...]:
            # The bias is in the first group, and what its rows sum up to is what any group's would.
            total = tf.broadcast_to(_row_sum(gradients[0]), [len(flat), weight.shape[-1]])
            each = [gradients[group] for group, count in enumerate(counts) for _ in range(count)]
            return statistics.gradients(strength, each, total)

        return tuple(sums), gradient

    return list(run(weight, strength, *(x for group in inputs for x in group)))


def products(inputs: Sequence[Any], weight: Any) -> list[Any]:
    """Returns normalised(x @ weight), (N, C), of E arrays (N, K) with their weights (E, K, C)."""

    @tf.custom_gradient
    def run(weight: Any, *flat: Any) -> Any:
        statistics = _Statistics(flat, weight)
        matrices, bias = (tf.unstack(stack) for stack in statistics.matrices(tf.ones([len(flat)])))
        found = [tf.nn.bias_add(tf.matmul(x, matrix), b) for x, matrix, b in zip(flat, matrices, bias, strict=True)]

        def gradient(*gradients: Any) -> tuple[Any, ...]:
            scales = tf.unstack(statistics.inverse)
            before = [_before(g, y, scale) for g, y, scale in zip(gradients, found, scales, strict=True)]
            of_weight = tf.stack([tf.matmul(x, g, transpose_a=True) for x, g in zip(flat, before, strict=True)])
            return of_weight, *(
                tf.matmul(g, w, transpose_b=True) for g, w in zip(before, tf.unstack(weight), strict=True)
            )

        return tuple(found), gradient

    return list(run(weight, *inputs))


def _before(gradient: Any, normalised: Any, scale: Any) -> Any:
    """Returns the gradient in y, (N, C), of the one in normalised(y), given that and `scale`, 1 / deviation of y.

    What TensorFlow's operation wants is y; it gets what is normalised already: mean 0, variance 1.
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
    return supernet.rows(found[0])


class _Statistics:
    """Means (E, K) and covariances (E, K, K) of the inputs of E maps, and 1 / deviation (E, C) of their outputs."""

    def __init__(self, inputs: Sequence[Any], weight: Any):
        self.inputs, self.weight = inputs, weight
        self.count = inputs[0].shape[0] or tf.cast(tf.shape(inputs[0])[0], tf.float32)
        self.mean = tf.stack([_row_sum(x) for x in inputs]) / self.count
        second = tf.stack([tf.matmul(x, x, transpose_a=True) for x in inputs]) / self.count
        self.covariance = second - self.mean[:, :, None] * self.mean[:, None, :]
        self.projected = tf.matmul(self.covariance, weight)
        variance = tf.maximum(tf.reduce_sum(weight * self.projected, 1), 0.0)
        self.inverse = tf.math.rsqrt(variance + EPSILON)

    def matrices(self, strength: Any) -> tuple[Any, Any]:
        """Returns matrices (E, K, C) and biases (E, C) with strength x normalised(x @ weight) = x @ matrix + bias."""
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
        of_matrices -= self.mean[:, :, None] * totals[:, None, :]  # the bias is -mean @ matrix
        of_scale = tf.reduce_sum(of_matrices * self.weight, 1)
        of_strength = tf.reduce_sum(of_scale * self.inverse, 1)
        of_variance = (-0.5 * of_scale * scale * self.inverse * self.inverse)[:, None, :]
        of_weight = of_matrices * scale[:, None, :] + 2 * of_variance * self.projected
        of_covariance = tf.matmul(self.weight * of_variance, self.weight, transpose_b=True)
        # The covariance is E[x x'] - E[x] E[x]', so the mean gets of it -2 of_covariance @ mean.
        quadratic = of_covariance * (2 / self.count)
        constants = tf.reduce_sum(matrices * totals[:, None, :], 2) / self.count
        constants = -constants - tf.reduce_sum(quadratic * self.mean[:, None, :], 2)
        tables = [tf.unstack(stack) for stack in (matrices, quadratic, constants)]
        of_inputs = [
            tf.nn.bias_add(tf.matmul(x, square), constant) + tf.matmul(g, matrix, transpose_b=True)
            for g, x, matrix, square, constant in zip(gradients, self.inputs, *tables, strict=True)
        ]
        return of_weight, of_strength, *of_inputs


def _row_sum(x: Any) -> Any:
    """The sum of rows (N, K), by the operation that is fastest at it."""
    return tf.raw_ops.BiasAddGrad(out_backprop=x)


def _grouped(items: Sequence[Any], counts: Sequence[int]) -> list[list[Any]]:
    found, start = [], 0
    for count in counts:
        found.append(list(items[start : start + count]))
        start += count
    return found
