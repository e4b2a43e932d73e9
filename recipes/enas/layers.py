"""What the supernets of ENAS share: layers whose statistics are kept apart, and joins of as many states as a path has.

A path is a tensor, so one trace serves them all: `tf.switch_case` runs the operation that it names, and states lie in
a `tf.TensorArray`, whose gradient holds only what has been read.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from recipes.training import supernet
from recipes.training.supernet import Packing, Shape


class PathSupernet(Protocol):
    """What supernets offer that run one path at a time; see MicroSupernet and MacroSupernet."""

    packing: Packing
    statistics: Packing
    classes: int

    def logits(self, vector: Any, path: Any, images: Any, statistics: Any = None, drop: Any = None) -> tuple[Any, Any]:
        """Returns the logits under a path, and the statistics by which was normalised."""
        ...


def initial(packing: Packing, seed: int) -> np.ndarray:
    """Returns first values of the flat vector as He et al. draw them, which is what ENAS does."""
    rng = np.random.default_rng(seed)
    parts = []
    for shape in packing.shapes:
        if shape.fan_in is None:
            parts.append(np.full(shape.size, shape.constant, np.float32))
        else:
            parts.append(rng.standard_normal(shape.size, np.float32) * np.float32(np.sqrt(2 / shape.fan_in)))
    return np.concatenate(parts)


def normalize(x: Any, scale: Any, shift: Any, fixed: Any = None) -> tuple[Any, Any]:
    """Batch normalisation by the statistics of the batch, or by `fixed` ones.

    Returns:
        The normalised tensor, and the mean and the variance (2, channels) that were used.
    """
    training = fixed is None
    mean, variance = ([], []) if training else (fixed[0], fixed[1])
    found = tf.raw_ops.FusedBatchNormV3(
        x=x, scale=scale, offset=shift, mean=mean, variance=variance, epsilon=supernet.EPSILON, is_training=training
    )
    return found[0], tf.stop_gradient(tf.stack(found[1:3])) if training else fixed


def joined(states: tf.TensorArray, chosen: Any, most: int) -> Any:
    """Concatenates the chosen states, from 1 to `most` of them, along the channels; the trace does not know how many.

    It has a branch for each number: to gather the states would take a transposition of all that was gathered.
    """

    def first(count: int) -> Any:
        return tf.concat([states.read(chosen[place]) for place in range(count)], -1)

    branches = [functools.partial(first, count) for count in range(1, most + 1)]
    x: Any = tf.switch_case(tf.shape(chosen)[0] - 1, branches)  # pyright: ignore[reportArgumentType]
    return tf.ensure_shape(x, [None, *states.element_shape[1:3], None])


def max_pool(x: Any, strides: int) -> Any:
    """A 3x3 maximum, which its gradient takes anew.

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


def pointwise(x: Any, weight: Any) -> Any:
    """A 1x1 convolution by a matrix (inputs, outputs); the number of inputs may be known at run time only."""
    flat = tf.matmul(tf.reshape(x, [-1, tf.shape(x)[3]]), weight)
    return tf.reshape(flat, [-1, *x.shape[1:3], weight.shape[-1]])


def factorized(x: Any, weight: Any) -> Any:
    """The two strided 1x1 convolutions (2, inputs, outputs / 2) of a factorized reduction, joined."""
    height, width = x.shape[1:3]
    shifted = tf.pad(x, [[0, 0], [0, height % 2], [0, width % 2], [0, 0]]) if height % 2 or width % 2 else x
    return tf.concat([pointwise(x[:, ::2, ::2], weight[0]), pointwise(shifted[:, 1::2, 1::2], weight[1])], -1)


def norm(x: Any, name: str, weights: Mapping[str, Any], fixed: Mapping[str, Any]) -> tuple[Any, Any]:
    """`normalize` by the weights and, where there are any, the fixed statistics of this name."""
    return normalize(x, weights[f"{name}/scale"], weights[f"{name}/shift"], fixed.get(name))


def norm_shapes(name: str, stack: tuple[int, ...], filters: int) -> list[Shape]:
    """Returns the weights of `norm`, or of a stack of them."""
    return [Shape(f"{name}/scale", (*stack, filters), constant=1.0), Shape(f"{name}/shift", (*stack, filters))]


def traced(function: Callable[..., Any]) -> Any:
    """Returns `function` as a graph of its own: traced, and made ready to run, once for all places of equal shapes."""
    return tf.function(function, autograph=False, experimental_attributes={"_noinline": True})
