"""What ENAS' two supernets share: weights by name, normalisation, and joins of a varying number of states.

A path is a tensor, so one trace serves all paths: `tf.switch_case` runs the operation that the path names, and states
are in a `tf.TensorArray`, whose gradient holds only the states that have been read.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from recipes.training import supernet
from recipes.training.supernet import Packing, Shape, pointwise


class PathSupernet(Protocol):
    """The interface of MicroSupernet and MacroSupernet, which run one path at a time."""

    space: Any
    packing: Packing
    classes: int

    def logits(self, vector: Any, path: Any, images: Any, drop: Any = None) -> Any:
        """Returns the logits (batch, classes); batch normalisation uses the statistics of the batch.

        Args:
            vector: all weights, (packing.size,).
            path: int32, of the space's shape.
            images: normalised, (batch, height, width, channels).
            drop: a function of the features before the classifier, such as dropout.
        """
        ...


class Pass:
    """A forward pass, with its weights by name; stacked weights are indexed by the caller."""

    def __init__(self, net: PathSupernet, vector: Any):
        self.weights = net.packing.unpack(vector)

    def norm(self, x: Any, name: str) -> Any:
        """Applies the batch normalisation of this name."""
        return normalize(x, self.weights[f"{name}/scale"], self.weights[f"{name}/shift"])

    def stem(self, images: Any) -> Any:
        """Returns the stem's output."""
        return self.norm(tf.nn.conv2d(images, self.weights["stem"], 1, "SAME"), "stem")


def classify(x: Any, kernel: Any, drop: Any) -> Any:
    """Returns the logits from the last state; see `PathSupernet.logits`."""
    features = tf.reduce_mean(x, [1, 2])
    return tf.matmul(features if drop is None else drop(features), kernel)


def draw_weights(packing: Packing, seed: int) -> np.ndarray:
    """Returns initial values of the flat vector, by He et al.'s initialization as in ENAS."""
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
    options: dict[str, Any] = {"mean": [], "variance": [], "epsilon": supernet.EPSILON}
    return tf.raw_ops.FusedBatchNormV3(x=x, scale=scale, offset=shift, **options)[0]


def norm_shapes(name: str, stack: tuple[int, ...], filters: int) -> list[Shape]:
    """Returns the shapes of a normalisation's weights, or of a stack of normalisations."""
    return [Shape(f"{name}/scale", (*stack, filters), constant=1.0), Shape(f"{name}/shift", (*stack, filters))]


def make_states(size: int, sides: Sequence[int], filters: int) -> tf.TensorArray:
    """Returns an array for `size` states of shape (batch, *sides, filters)."""
    return tf.TensorArray(tf.float32, size, element_shape=[None, *sides, filters], clear_after_read=False)


def join(states: tf.TensorArray, chosen: Any, most: int) -> Any:
    """Concatenates the chosen states along the channels; their number, 1 to `most`, is not known in tracing.

    There is a branch for each number, since gathering the states would need a transposition of all of them.
    """

    def concatenate(count: int) -> Any:
        return tf.concat([states.read(chosen[place]) for place in range(count)], -1)

    branches = [functools.partial(concatenate, count) for count in range(1, most + 1)]
    x: Any = tf.switch_case(tf.shape(chosen)[0] - 1, branches)  # pyright: ignore[reportArgumentType]
    return tf.ensure_shape(x, [None, *states.element_shape[1:3], None])


def max_pool(x: Any, strides: int) -> Any:
    """A 3x3 max pool, whose gradient computes the pool again.

    TensorFlow's fast gradient (oneDNN) needs the pool in the same graph, but `tf.switch_case` puts them in different
    graphs; the slow gradient took a third of a step.
    """
    window = {"ksize": [1, 3, 3, 1], "strides": [1, strides, strides, 1], "padding": "SAME"}

    @tf.custom_gradient
    def pool(x: Any) -> Any:
        def gradient(y_gradient: Any) -> Any:
            again = tf.raw_ops.MaxPool(input=x, **window)
            return tf.raw_ops.MaxPoolGrad(orig_input=x, orig_output=again, grad=y_gradient, **window)

        return tf.raw_ops.MaxPool(input=x, **window), gradient

    return pool(tf.identity(x))  # a tensor in the branch's own graph, which the gradient's graph can reach


def reduce_factorized(x: Any, weight: Any) -> Any:
    """A factorized reduction: two strided 1x1 convolutions (2, inputs, outputs / 2), concatenated."""
    height, width = x.shape[1:3]
    shifted = tf.pad(x, [[0, 0], [0, height % 2], [0, width % 2], [0, 0]]) if height % 2 or width % 2 else x
    return tf.concat([pointwise(x[:, ::2, ::2], weight[0]), pointwise(shifted[:, 1::2, 1::2], weight[1])], -1)


def trace_once(function: Callable[..., Any]) -> Any:
    """Returns `function` as a graph of its own, traced and prepared once for all calls with the same shapes."""
    return tf.function(function, autograph=False, experimental_attributes={"_noinline": True})
