"""What the supernets of DARTS, ENAS and TinyNAS share: all weights in one flat vector, and fast operations.

A supernet's graph has thousands of operations, and each of them costs time to trace, time to run, and memory. With all
weights in one vector, an optimizer's step is three operations in all, not three per weight.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

EPSILON = 1e-5  # added to the variance; PyTorch's default, which DARTS and ENAS' successors use
_SEED_STEP = 1_000_000  # between the seeds of a search's supernets: so large that no two searches share a supernet


def list_seeds(seed: int, supernets: int) -> list[int]:
    """Returns the seed of each of the `supernets` supernets of a search; the first has the search's own seed."""
    return [seed + number * _SEED_STEP for number in range(supernets)]


def list_states(seed: int, supernets: int, path: Path) -> dict[int, Path]:
    """Returns seed -> file of the state for each supernet of a search: `path` for the first, files next to it."""
    return {own: path.with_name(f"seed{own}.state.npz") for own in list_seeds(seed, supernets)} | {seed: path}


@dataclasses.dataclass(frozen=True)
class Shape:
    """A weight: its name, its shape and its initial values, which are random or constant."""

    name: str
    shape: tuple[int, ...]
    fan_in: int | None = None  # inputs of each output: values are uniform within 1/sqrt(fan_in); None for a constant
    constant: float = 0.0

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


class Packing:
    """The order and place of the weights in the flat vector."""

    def __init__(self, shapes: Sequence[Shape]):
        self.shapes = tuple(shapes)
        self.sizes = [shape.size for shape in self.shapes]
        self.size = sum(self.sizes)

    def initial(self, seed: int) -> np.ndarray:
        """Returns the vector of initial values, uniform within 1/sqrt(fan_in) as in PyTorch, drawn by `seed`."""
        rng, parts = np.random.default_rng(seed), []
        for shape in self.shapes:
            bound = 0.0 if shape.fan_in is None else 1 / math.sqrt(shape.fan_in)
            parts.append(rng.uniform(-bound, bound, shape.size) if bound else np.full(shape.size, shape.constant))
        return np.concatenate(parts).astype(np.float32)

    def unpack(self, vector: Any) -> dict[str, Any]:
        """Returns name -> weight from the flat vector, a tensor or an array of shape (size,)."""
        if isinstance(vector, np.ndarray):
            parts = np.split(vector, np.cumsum(self.sizes)[:-1])
            return {s.name: part.reshape(s.shape) for s, part in zip(self.shapes, parts, strict=True)}
        parts = tf.split(vector, self.sizes)
        return {s.name: tf.reshape(part, s.shape) for s, part in zip(self.shapes, parts, strict=True)}


def normalize(x: Any) -> Any:
    """Returns x, (batch, height, width, channels), normalised by the batch's statistics, without scale and shift."""
    ones, zeros = tf.ones([x.shape[-1]]), tf.zeros([x.shape[-1]])
    return tf.raw_ops.FusedBatchNormV3(x=x, scale=ones, offset=zeros, mean=[], variance=[], epsilon=EPSILON)[0]


def pointwise(x: Any, weight: Any) -> Any:
    """A 1x1 convolution with a matrix (inputs, outputs); the number of inputs may be known only at run time."""
    return as_image(tf.matmul(as_rows(x), weight), x)


def as_rows(x: Any) -> Any:
    """The pixels of (batch, height, width, channels) as rows: (batch x height x width, channels)."""
    channels = x.shape[-1]
    return tf.reshape(x, [-1, tf.shape(x)[3] if channels is None else channels])


def as_image(rows: Any, like: Any) -> Any:
    """The inverse of `as_rows`, with the height and width of `like`."""
    return tf.reshape(rows, [-1, *like.shape[1:3], rows.shape[-1]])


def depthwise(x: Any, kernel: Any, strides: int = 1, dilation: int = 1) -> Any:
    """A depthwise convolution padded as PyTorch pads; `kernel` is (size, size, channels, 1).

    For dilation 2, a plain convolution of what tf.space_to_batch returns is equal and costs half; for dilation 2 and
    stride 2, use a plain convolution of `every_second` pixel.
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
    """A depthwise convolution with 5 x 5 kernels, whose kernel gradient is computed as that of 3-wide kernels.

    oneDNN's kernel gradient takes up to 8 times as long beyond 3 columns. So the gradient of columns 1 to 3 is computed
    as that of a 3-wide kernel, and that of columns 0 and 4 as the outer columns of another 3-wide kernel, on an image
    whose pixels are pairs of neighbours with twice the channels: one step there is two pixels here.
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
    """The input of a factorized reduction: the even pixels and those one down and right, concatenated by channel."""
    height, width = x.shape[1:3]
    shifted = tf.pad(x, [[0, 0], [0, height % 2], [0, width % 2], [0, 0]])
    # the gradient of tf.slice costs a tenth of that of shifted[:, 1:, 1:]
    shifted = tf.slice(shifted, [0, 1, 1, 0], [-1, -1, -1, -1])
    return tf.concat([every_second(x), every_second(shifted)], -1)


def every_second(x: Any) -> Any:
    """Returns the pixels 0, 2, .., by a pool, which takes a seventh of the time of a strided slice and its gradient."""
    return tf.nn.max_pool2d(x, 1, 2, "SAME")


def factorized_kernel(weight: Any) -> Any:
    """Returns the two 1x1 convolutions (.., 2, K, C/2) of a factorized reduction as one matrix (.., 2K, C).

    It is to be multiplied with `factorized_input`.
    """
    first, second = tf.unstack(weight, axis=-3)
    zero = tf.zeros_like(first)
    return tf.concat([tf.concat([first, zero], -1), tf.concat([zero, second], -1)], -2)


# The core of DARTS' supernet: many 1x1 convolutions at a time, each fused with its batch normalisation into one matrix
# product. Let y = x @ w, where each row of x (N, K) is a pixel. The mean and covariance of x give the mean and variance
# of y, so normalise(y) = x @ M + b can be computed without y. The gradients are written by hand; docs/darts_supernet.md
# derives them with the same letters.


def add_weighted(inputs: Sequence[Sequence[Any]], weight: Any, strength: Any) -> list[Any]:
    """Returns sum(s * normalise(x @ w) for x, w, s in zip(inputs, weight, strength)), as one partial sum per group.

    The inputs of a group have their pixels in the same row order, so only these can be added up here.

    Args:
        inputs: the groups, each a sequence of inputs x (N, K). All groups have the same N; the first is not empty.
        weight: (E, K, C), for the E inputs of all groups in turn.
        strength: (E,).

    Returns:
        The sum (N, C) of each group. The constant parts b of all groups are in the first: they do not depend on the
        row order.
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
    """Returns normalise(x @ w), (N, C), for each of E inputs x (N, K) and its w in `weight`, (E, K, C)."""

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
    """Returns the gradient in y, (N, C), from that in normalise(y), from normalise(y), and from 1 / deviation of y.

    TensorFlow's kernel takes y with its mean and variance. It gives the same result for normalise(y), whose mean is 0
    and whose variance is 1 - EPSILON.
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
    """Means (E, K) and covariances (E, K, K) of E inputs x (N, K), and 1 / deviation (E, C) of their products x @ w."""

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
        """Returns M (E, K, C) and b (E, C) such that strength * normalise(x @ weight) = x @ M + b."""
        matrices = self.weight * (strength[:, None] * self.inverse)[:, None, :]
        return matrices, -tf.reduce_sum(self.mean[:, :, None] * matrices, 1)

    def gradients(self, strength: Any, gradients: Sequence[Any], totals: Any) -> tuple[Any, ...]:
        """Returns the gradients in the weight, the strength and each input.

        Args:
            strength: (E,), as given to `matrices`.
            gradients: in the output of each of the E products, (N, C) each.
            totals: the sums of their rows, (E, C).
        """
        # docs/darts_supernet.md calls scale a, inverse r, matrices M, totals t, of_scale h; of_X is the gradient in X.
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
    """Returns the sum of the rows of x (N, K), by the operation that is fastest at it."""
    return tf.raw_ops.BiasAddGrad(out_backprop=x)
