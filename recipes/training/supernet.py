"""What fast supernets share: weights in one flat vector, and normalisation by the statistics of a batch.

A supernet's graph has thousands of operations; each that is not made saves tracing, time and memory. So all weights are
one vector, whose optimizer is three operations.
"""

import dataclasses
import math
from collections.abc import Sequence
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


def depthwise(x: Any, kernel: Any, strides: int = 1, dilation: int = 1) -> Any:
    """A depthwise convolution padded as PyTorch pads; `kernel` is (size, size, channels, 1).

    One of dilation 2 is a plain one of what `spread` returns, at half the cost; one of stride 2 and dilation 2 reads
    every second pixel only: give a plain one these.
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
    """A depthwise convolution of a kernel 5 wide, whose gradient is made by kernels 3 wide.

    oneDNN's gradient in a depthwise kernel takes up to 8 times as long for kernels of more than 3 columns. So columns 1
    to 3 are found as those of a kernel 3 wide, and 0 and 4 by another that reads pairs of pixels as one pixel of twice
    the channels: a step of one pair is a step of two pixels.
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


def spread(x: Any) -> Any:
    """Puts even and odd pixels into images of their own, (4 batch, height / 2, width / 2, channels).

    A convolution of these is one of dilation 2, once they are put back by `gathered`. Expects even sides.
    """
    return tf.space_to_batch(x, [2, 2], [[0, 0], [0, 0]])


def gathered(x: Any) -> Any:
    """The inverse of `spread`."""
    return tf.batch_to_space(x, [2, 2], [[0, 0], [0, 0]])


def halves(x: Any) -> Any:
    """What factorized reduction reads: even pixels, and those one down and right, side by side in the channels."""
    height, width = x.shape[1:3]
    shifted = tf.pad(x, [[0, 0], [0, height % 2], [0, width % 2], [0, 0]])
    shifted = tf.slice(shifted, [0, 1, 1, 0], [-1, -1, -1, -1])  # its gradient is a tenth of that of shifted[:, 1:, 1:]
    return tf.concat([every_second(x), every_second(shifted)], -1)


def every_second(x: Any) -> Any:
    """The pixels 0, 2, .., which a pool takes at a seventh of the time of a slice and its gradient."""
    return tf.nn.max_pool2d(x, 1, 2, "SAME")


def two_paths(weight: Any) -> Any:
    """The two 1x1 convolutions (.., 2, K, C/2) of a factorized reduction as one matrix (.., 2K, C) on `halves`."""
    first, second = tf.unstack(weight, axis=-3)
    zero = tf.zeros_like(first)
    return tf.concat([tf.concat([first, zero], -1), tf.concat([zero, second], -1)], -2)
