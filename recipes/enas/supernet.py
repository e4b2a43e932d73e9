"""What the supernets of ENAS share: one forward pass, its normalisations, and joins of as many states as a path has.

A path is a tensor, so one trace serves them all: `tf.switch_case` runs the operation that it names, and states are in
a `tf.TensorArray`, whose gradient holds only what has been read.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from recipes.training import supernet
from recipes.training.supernet import Packing, Shape, pointwise


class PathSupernet(Protocol):
    """What supernets offer that run one path at a time; see MicroSupernet and MacroSupernet."""

    space: Any
    packing: Packing
    classes: int

    def logits(self, vector: Any, path: Any, images: Any, drop: Any = None) -> Any:
        """Returns the logits (batch, classes), normalised by the statistics of the batch.

        Args:
            vector: all weights.
            path: int32, of the shape that the space says.
            images: normalised, (batch, height, width, channels).
            drop: a function of the features, such as dropout.
        """
        ...


class Pass:
    """A forward pass with the weights by name; those of a stack are cut by the caller."""

    def __init__(self, net: PathSupernet, vector: Any):
        self.weights = net.packing.unpack(vector)

    def norm(self, x: Any, name: str) -> Any:
        """Normalises by the weights of this name."""
        return normalize(x, self.weights[f"{name}/scale"], self.weights[f"{name}/shift"])

    def stem(self, images: Any) -> Any:
        """Returns the first state."""
        return self.norm(tf.nn.conv2d(images, self.weights["stem"], 1, "SAME"), "stem")


def classify(x: Any, kernel: Any, drop: Any) -> Any:
    """Returns the logits from the last state; see `PathSupernet.logits`."""
    features = tf.reduce_mean(x, [1, 2])
    return tf.matmul(features if drop is None else drop(features), kernel)


def draw_weights(packing: Packing, seed: int) -> np.ndarray:
    """Returns first values of the flat vector as He et al. draw them, which is what ENAS does."""
    rng = np.random.default_rng(seed)
    parts = []
    for shape in packing.shapes:
        if shape.fan_in is None:
            parts.append(np.full(shape.size, shape.constant, np.float32))
        else:
            parts.append(rng.standard_normal(shape.size, np.float32) * np.float32(np.sqrt(2 / shape.fan_in)))
    return np.concatenate(parts)


def normalize(x: Any, scale: Any, shift: Any) -> Any:
    """Batch normalisation by the statistics of the batch."""
    return tf.raw_ops.FusedBatchNormV3(x=x, scale=scale, offset=shift, mean=[], variance=[], epsilon=supernet.EPSILON)[
        0
    ]


def norm_shapes(name: str, stack: tuple[int, ...], filters: int) -> list[Shape]:
    """Returns the weights of a normalisation, or of a stack of them."""
    return [Shape(f"{name}/scale", (*stack, filters), constant=1.0), Shape(f"{name}/shift", (*stack, filters))]


def make_states(size: int, sides: Sequence[int], filters: int) -> tf.TensorArray:
    """Returns an array for states of (batch, *sides, filters)."""
    return tf.TensorArray(tf.float32, size, element_shape=[None, *sides, filters], clear_after_read=False)


def join(states: tf.TensorArray, chosen: Any, most: int) -> Any:
    """Concatenates the chosen states, from 1 to `most` of them, along the channels; the trace does not know how many.

    It has a branch for each number: to gather the states would take a transposition of all that was gathered.
    """

    def first(count: int) -> Any:
        return tf.concat([states.read(chosen[place]) for place in range(count)], -1)

    branches = [functools.partial(first, count) for count in range(1, most + 1)]
    x: Any = tf.switch_case(tf.shape(chosen)[0] - 1, branches)  # pyright: ignore[reportArgumentType]
    return tf.ensure_shape(x, [None, *states.element_shape[1:3], None])


def max_pool(x: Any, strides: int) -> Any:
    """A 3x3 maximum, which its gradient computes again.

    TensorFlow's fast gradient (oneDNN) needs the maximum in its own graph, and that of `tf.switch_case` is another: its
    slow gradient took a third of a step.
    """
    window = {"ksize": [1, 3, 3, 1], "strides": [1, strides, strides, 1], "padding": "SAME"}

    @tf.custom_gradient
    def pooled(x: Any) -> Any:
        def gradient(y_gradient: Any) -> Any:
            again = tf.raw_ops.MaxPool(input=x, **window)
            return tf.raw_ops.MaxPoolGrad(orig_input=x, orig_output=again, grad=y_gradient, **window)

        return tf.raw_ops.MaxPool(input=x, **window), gradient

    return pooled(tf.identity(x))  # a tensor of the branch's own graph, which its gradient's graph can reach


def reduce_factorized(x: Any, weight: Any) -> Any:
    """The two strided 1x1 convolutions (2, inputs, outputs / 2) of a factorized reduction, joined."""
    height, width = x.shape[1:3]
    shifted = tf.pad(x, [[0, 0], [0, height % 2], [0, width % 2], [0, 0]]) if height % 2 or width % 2 else x
    return tf.concat([pointwise(x[:, ::2, ::2], weight[0]), pointwise(shifted[:, 1::2, 1::2], weight[1])], -1)


def trace_once(function: Callable[..., Any]) -> Any:
    """Returns `function` as a graph of its own: traced, and made ready to run, once for all places of equal shapes."""
    return tf.function(function, autograph=False, experimental_attributes={"_noinline": True})
