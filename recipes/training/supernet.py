"""What fast supernets share: weights in one flat vector, and the operations that are written to be fast.

A supernet's graph has thousands of operations, and each that is left out saves tracing, time and memory. So all weights
are one vector, whose optimizer is three operations.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

EPSILON = 1e-5  # of the variance; PyTorch's default, which DARTS and ENAS' successors use
_BETWEEN = 1_000_000  # the seeds of two supernets of one search, so that no two searches share a supernet


def list_seeds(seed: int, supernets: int) -> list[int]:
    """Returns the seed of each of the `supernets` of a search with this seed; the first has the search's own."""
    return [seed + number * _BETWEEN for number in range(supernets)]


@dataclasses.dataclass(frozen=True)
class Shape:
    """One weight: its name, its shape, and the number of inputs of each output, which sets its first values."""

    name: str
    shape: tuple[int, ...]
    fan_in: int | None = None  # None for constants
    constant: float = 0.0

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


class Packing:
    """Where each weight is in the flat vector."""

    def __init__(self, shapes: Sequence[Shape]):
        self.shapes = tuple(shapes)
        self.sizes = [shape.size for shape in self.shapes]
        self.size = sum(self.sizes)

    def initial(self, seed: int) -> np.ndarray:
        """Returns first values, uniform within 1/sqrt(fan_in) as PyTorch has it; the same for the same seed."""
        rng, parts = np.random.default_rng(seed), []
        for shape in self.shapes:
            bound = 0.0 if shape.fan_in is None else 1 / math.sqrt(shape.fan_in)
            parts.append(rng.uniform(-bound, bound, shape.size) if bound else np.full(shape.size, shape.constant))
        return np.concatenate(parts).astype(np.float32)

    def unpack(self, vector: Any) -> dict[str, Any]:
        """Returns name -> weight of a tensor or an array of shape (size,)."""
        if isinstance(vector, np.ndarray):
            parts = np.split(vector, np.cumsum(self.sizes)[:-1])
            return {s.name: part.reshape(s.shape) for s, part in zip(self.shapes, parts, strict=True)}
        parts = tf.split(vector, self.sizes)
        return {s.name: tf.reshape(part, s.shape) for s, part in zip(self.shapes, parts, strict=True)}


def normalize(x: Any) -> Any:
    """Batch normalisation of (batch, height, width, channels) by the batch's statistics, without scale and shift."""
    ones, zeros = tf.ones([x.shape[-1]]), tf.zeros([x.shape[-1]])
    return tf.raw_ops.FusedBatchNormV3(x=x, scale=ones, offset=zeros, mean=[], variance=[], epsilon=EPSILON)[0]


def pointwise(x: Any, weight: Any) -> Any:
    """A 1x1 convolution by a matrix (inputs, outputs); the number of inputs may be known at run time only."""
    return as_image(tf.matmul(as_rows(x), weight), x)


def as_rows(x: Any) -> Any:
    """The pixels of (batch, height, width, channels) as rows: (batch x height x width, channels)."""
    channels = x.shape[-1]
    return tf.reshape(x, [-1, tf.shape(x)[3] if channels is None else channels])


def as_image(rows: Any, like: Any) -> Any:
    """The inverse of `as_rows`, with the batch, height and width of `like`."""
    return tf.reshape(rows, [-1, *like.shape[1:3], rows.shape[-1]])


def depthwise(x: Any, kernel: Any, strides: int = 1, dilation: int = 1) -> Any:
    """A depthwise convolution padded as PyTorch pads; `kernel` is (size, size, channels, 1).

    One of dilation 2 is a plain one of what tf.space_to_batch returns, at half the cost; one of stride 2 and dilation 2
    is a plain one of `every_second` pixel.
    """
    if dilation > 1:
        return tf.nn.depthwise_conv2d(x, kernel, _ONES, "SAME", dilations=[dilation, dilation])
    if strides == 1:
        paired = kernel.shape[0] == 5 and x.shape[2] % 2 == 0
        return _five_wide(x, kernel) if paired else tf.nn.depthwise_conv2d(x, kernel, _ONES, "SAME")
    pad = kernel.shape[0] // 2
    x = tf.pad(x, [[0, 0], [pad, pad], [pad, pad], [0, 0]])
    return tf.nn.depthwise_conv2d(x, kernel, [1, strides, strides, 1], "VALID")


@tf.custom_gradient
def _five_wide(x: Any, kernel: Any) -> Any:
    """A depthwise convolution of a kernel 5 wide, whose gradient in the kernel is computed by kernels 3 wide.

    oneDNN's takes up to 8 times as long for more than 3 columns. So columns 1 to 3 are computed as those of a kernel 3
    wide, and 0 and 4 by another that reads pairs of pixels as one pixel of twice the channels: a step of one pair is a
    step of two pixels.
    """

    def gradient(of_output: Any) -> tuple[Any, Any]:
        of_input = tf.nn.depthwise_conv2d_backprop_input(tf.shape(x), kernel, of_output, _ONES, "SAME")
        _, height, width, channels = x.shape
        near = tf.nn.depthwise_conv2d_backprop_filter(x, [5, 3, channels, 1], of_output, _ONES, "SAME")
        pairs = [tf.reshape(each, [-1, height, width // 2, 2 * channels]) for each in (x, of_output)]
        far = tf.nn.depthwise_conv2d_backprop_filter(pairs[0], [5, 3, 2 * channels, 1], pairs[1], _ONES, "SAME")
        far = tf.reduce_sum(tf.reshape(far, [5, 3, 2, channels, 1]), 2)
        return of_input, tf.concat([far[:, :1], near, far[:, 2:]], 1)

    return tf.nn.depthwise_conv2d(x, kernel, _ONES, "SAME"), gradient


_ONES = [1, 1, 1, 1]


def factorized_input(x: Any) -> Any:
    """What a factorized reduction reads: even pixels, and those one down and right, side by side in the channels."""
    height, width = x.shape[1:3]
    shifted = tf.pad(x, [[0, 0], [0, height % 2], [0, width % 2], [0, 0]])
    shifted = tf.slice(shifted, [0, 1, 1, 0], [-1, -1, -1, -1])  # its gradient is a tenth of that of shifted[:, 1:, 1:]
    return tf.concat([every_second(x), every_second(shifted)], -1)


def every_second(x: Any) -> Any:
    """The pixels 0, 2, .., which a pool takes at a seventh of the time of a slice and its gradient."""
    return tf.nn.max_pool2d(x, 1, 2, "SAME")


def factorized_kernel(weight: Any) -> Any:
    """The two 1x1 convolutions (.., 2, K, C/2) of a factorized reduction as one (.., 2K, C) of `factorized_input`."""
    first, second = tf.unstack(weight, axis=-3)
    zero = tf.zeros_like(first)
    return tf.concat([tf.concat([first, zero], -1), tf.concat([zero, second], -1)], -2)


# 1x1 convolutions with their normalisation as one matrix product each, many at a time: the kernel of DARTS' supernet.
# A normalisation without scale and shift after y = x @ W needs no y: mean and covariance of x give its statistics. The
# gradients are written by hand; docs/darts_supernet.md derives them and uses the same letters.


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


def multiply_normalized(inputs: Sequence[Any], weight: Any) -> list[Any]:
    """Returns normalise(x @ w), (N, C), for each of E arrays x (N, K) and its w in `weight` (E, K, C)."""

    @tf.custom_gradient
    def run(weight: Any, *flat: Any) -> Any:
        statistics = _Statistics(flat, weight)
        matrices, bias = (tf.unstack(stack) for stack in statistics.matrices(tf.ones([len(flat)])))
        outputs = [tf.nn.bias_add(tf.matmul(x, matrix), b) for x, matrix, b in zip(flat, matrices, bias, strict=True)]

        def gradient(*gradients: Any) -> tuple[Any, ...]:
            each = zip(gradients, outputs, tf.unstack(statistics.inverse), strict=True)
            of_products = [_before_normalisation(g, y, scale) for g, y, scale in each]
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
    return as_rows(found[0])


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
