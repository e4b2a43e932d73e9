"""What fast supernets share: weights in one flat vector, and normalisation by the statistics of a batch.

A supernet's graph has thousands of operations; each that is not made saves tracing, time and memory. So all weights are
one vector, whose optimizer is three operations, and a linear map with its normalisation is one matrix product: mean and
covariance of the input give those of the output exactly.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

EPSILON = 1e-5  # of the variance; PyTorch's default, which DARTS and ENAS' successors use


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
    """Where each weight lies in the flat vector."""

    def __init__(self, shapes: Sequence[Shape]):
        self.shapes = tuple(shapes)
        self.sizes = [shape.size for shape in self.shapes]
        self.size = sum(self.sizes)

    def initial(self, seed: int) -> np.ndarray:
        """Returns first values, uniform within 1/sqrt(fan_in) as PyTorch has it; the same for the same seed."""
        rng = np.random.default_rng(seed)
        parts = []
        for shape in self.shapes:
            if shape.fan_in is None:
                parts.append(np.full(shape.size, shape.constant))
            else:
                bound = 1 / math.sqrt(shape.fan_in)
                parts.append(rng.uniform(-bound, bound, shape.size))
        return np.concatenate(parts).astype(np.float32)

    def unpack(self, vector: Any) -> dict[str, Any]:
        """Returns name -> weight of a tensor or an array of shape (size,)."""
        if isinstance(vector, np.ndarray):
            parts = np.split(vector, np.cumsum(self.sizes)[:-1])
            return {s.name: part.reshape(s.shape) for s, part in zip(self.shapes, parts, strict=True)}
        parts = tf.split(vector, self.sizes)
        return {s.name: tf.reshape(part, s.shape) for s, part in zip(self.shapes, parts, strict=True)}


def normalize(x: Any) -> Any:
    """Batch normalisation of (batch, height, width, channels) without affine part, by the batch's own statistics."""
    ones, zeros = tf.ones([x.shape[-1]]), tf.zeros([x.shape[-1]])
    return tf.raw_ops.FusedBatchNormV3(x=x, scale=ones, offset=zeros, mean=[], variance=[], epsilon=EPSILON)[0]


def pointwise(x: Any, weight: Any) -> Any:
    """A 1x1 convolution; `weight` is (inputs, outputs)."""
    return like(tf.matmul(rows(x), weight), x)


def rows(x: Any) -> Any:
    """Pixels as rows: (batch x height x width, channels)."""
    return tf.reshape(x, [-1, x.shape[-1]])


def like(flat: Any, x: Any) -> Any:
    """The inverse of `rows`, with the batch, height and width of `x`."""
    return tf.reshape(flat, [-1, *x.shape[1:3], flat.shape[-1]])


@tf.custom_gradient
def sums(x: Any) -> Any:
    """Returns the sum (K,) and the sum of products (K, K) of rows (N, K).

    Its own gradient takes one product, where that of matmul(x, x) takes two of this size and a sum.
    """

    def gradient(sum_gradient: Any, product_gradient: Any) -> Any:
        return tf.matmul(x, product_gradient + tf.transpose(product_gradient)) + sum_gradient

    return (tf.reduce_sum(x, 0), tf.matmul(x, x, transpose_a=True)), gradient


def moments(inputs: Sequence[Any]) -> tuple[Any, Any]:
    """Returns the means (E, K) and covariances (E, K, K) of E arrays of as many rows (N, K)."""
    count = inputs[0].shape[0] or tf.cast(tf.shape(inputs[0])[0], tf.float32)
    found: list[Any] = [sums(x) for x in inputs]
    mean = tf.stack([each[0] for each in found]) / count
    second = tf.stack([each[1] for each in found]) / count
    return mean, second - mean[:, :, None] * mean[:, None, :]


def folded(weight: Any, strength: Any, mean: Any, covariance: Any) -> tuple[Any, Any]:
    """Folds y = strength x normalised(x @ weight) into y = x @ matrix + bias, for a stack of E maps.

    Args:
        weight: (E, K, C).
        strength: (E,).
        mean: (E, K), of the inputs.
        covariance: (E, K, K), of the inputs.

    Returns:
        Matrices (E, K, C) and the sum of all biases (C,).
    """
    variance = tf.reduce_sum(weight * tf.matmul(covariance, weight), 1)
    scale = strength[:, None] * tf.math.rsqrt(tf.maximum(variance, 0.0) + EPSILON)
    bias = -tf.reduce_sum(tf.reduce_sum(mean[:, :, None] * weight, 1) * scale, 0)
    return weight * scale[:, None, :], bias


def depthwise(x: Any, kernel: Any, strides: int = 1, dilation: int = 1) -> Any:
    """A depthwise convolution padded as PyTorch pads; `kernel` is (size, size, channels, 1).

    One of stride 2 and dilation 2 reads every second pixel only: give a plain one these.
    """
    if dilation > 1:
        return _dilated(x, kernel, dilation)
    if strides == 1:
        return tf.nn.depthwise_conv2d(x, kernel, [1, 1, 1, 1], "SAME")
    pad = kernel.shape[0] // 2
    x = tf.pad(x, [[0, 0], [pad, pad], [pad, pad], [0, 0]])
    return tf.nn.depthwise_conv2d(x, kernel, [1, strides, strides, 1], "VALID")


def _dilated(x: Any, kernel: Any, dilation: int) -> Any:
    """What tf.nn.depthwise_conv2d does with `dilations`, in three operations where that makes twenty."""
    pad, block = dilation * (kernel.shape[0] // 2), [dilation, dilation]
    rest = [-side % dilation for side in x.shape[1:3]]
    x = tf.space_to_batch(x, block, [[pad, pad + more] for more in rest])
    x = tf.nn.depthwise_conv2d(x, kernel, [1, 1, 1, 1], "VALID")
    return tf.batch_to_space(x, block, [[0, more] for more in rest])


def halves(x: Any) -> Any:
    """What factorized reduction reads: even pixels, and those one down and right, side by side in the channels."""
    height, width = x.shape[1:3]
    shifted = tf.pad(x, [[0, 0], [0, height % 2], [0, width % 2], [0, 0]])
    return tf.concat([x[:, ::2, ::2], shifted[:, 1::2, 1::2]], -1)


def two_paths(weight: Any) -> Any:
    """The two 1x1 convolutions (2, K, C/2) of a factorized reduction as one matrix (2K, C) on `halves`."""
    zero = tf.zeros_like(weight[0])
    return tf.concat([tf.concat([weight[0], zero], 1), tf.concat([zero, weight[1]], 1)], 0)


@contextlib.contextmanager
def without_rewrites() -> Iterator[None]:
    """Turns grappler's rewrites off: of a supernet's graph they take longer than they save."""
    before = tf.config.optimizer.get_experimental_options().get("disable_meta_optimizer", False)
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    try:
        yield
    finally:
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": before})
