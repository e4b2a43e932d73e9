"""The supernet of ENAS' macro space: a chain of layers, each with one of six operations and any skips before it.

Under a path the values are those of the network that zoo/families/enas.py builds from the path's chain, with separable
convolutions as the paper has them. Of the 1x1 convolution that joins skips, each state has its rows.
"""

from typing import Any

import numpy as np
import tensorflow as tf

from recipes.enas import layers as paths
from recipes.enas.layers import norm, norm_shapes
from recipes.training.supernet import Packing, Shape
from zoo.formats.enas import MACRO_OPS
from zoo.genotype import Chain, Layer

CONVOLUTIONS = [op for op in MACRO_OPS if "conv" in op]


class MacroSupernet:
    """Pure functions of a weight vector, a path and images.

    A path is an int32 array (layers, 1 + layers): of each layer the operation (an index of MACRO_OPS) and a bit for
    each state, 0 the stem, k layer k; layer k (from 1) has skips from the states 0 to k-2, other bits are not read.
    """

    def __init__(self, layers: int, filters: int, classes: int, channels: int):
        """Lays the weights out; `filters` is the width before the first reduction, behind a third of the layers."""
        self.layers, self.classes = layers, classes
        self.thirds = (layers // 3, 2 * (layers // 3))
        shapes = [Shape("stem", (3, 3, channels, filters), 9 * channels), *norm_shapes("stem", (), filters)]
        statistics = [Shape("stem", (2, filters))]
        self.widths: list[int] = []
        for number in range(1, layers + 1):
            name = f"layer{number:02d}"
            self.widths.append(filters)
            shapes += self._layer_shapes(name, number, filters)
            statistics += [Shape(f"{name}/{part}", (2, filters)) for part in ("narrow", "op", "join")]
            if number in self.thirds:
                stack = (number + 1,)  # one for each state
                shapes.append(Shape(f"{name}/halve", (*stack, 2, filters, filters), filters))
                filters *= 2
                shapes += norm_shapes(f"{name}/halve", stack, filters)
                statistics.append(Shape(f"{name}/halve", (*stack, 2, filters)))
        shapes.append(Shape("classifier", (filters, classes), filters))
        self.packing, self.statistics = Packing(shapes), Packing(statistics)
        self._operation = paths.traced(_operation)

    def _layer_shapes(self, name: str, number: int, filters: int) -> list[Shape]:
        stack = (len(MACRO_OPS),)
        shapes = [Shape(f"{name}/narrow", (*stack, filters, filters), filters)]
        shapes += norm_shapes(f"{name}/narrow", stack, filters)
        for op in CONVOLUTIONS:
            size = int(op[-1])
            if op.startswith("sep"):
                shapes.append(Shape(f"{name}/{op}/depthwise", (size, size, filters, 1), size * size))
                shapes.append(Shape(f"{name}/{op}", (filters, filters), filters))
            else:
                shapes.append(Shape(f"{name}/{op}", (size, size, filters, filters), size * size * filters))
            shapes += norm_shapes(f"{name}/{op}", (), filters)
        if number > 1:
            shapes.append(Shape(f"{name}/join", (number, filters, filters), number * filters))
            shapes += norm_shapes(f"{name}/join", (), filters)
        return shapes

    def logits(self, vector: Any, path: Any, images: Any, statistics: Any = None, drop: Any = None) -> tuple[Any, Any]:
        """Returns the logits (batch, classes), and the statistics by which was normalised.

        Args:
            vector: all weights.
            path: int32 (layers, 1 + layers).
            images: normalised, (batch, height, width, channels).
            statistics: what another call returned, for inference; those of this batch unless given.
            drop: a function of the features, such as dropout.
        """
        weights = self.packing.unpack(vector)
        fixed = {} if statistics is None else self.statistics.unpack(statistics)
        found: dict[str, Any] = {}
        x = tf.nn.conv2d(images, weights["stem"], 1, "SAME")
        x, found["stem"] = norm(x, "stem", weights, fixed)
        states = _array(self.layers + 1, x).write(0, x)
        for number in range(1, self.layers + 1):
            name = f"layer{number:02d}"
            x = self._layer(name, path[number - 1], x, weights, fixed, found)
            if number > 1:
                chosen = tf.concat([tf.cast(tf.where(path[number - 1, 1:number])[:, 0], tf.int32), [number]], 0)
                kernel = tf.gather(weights[f"{name}/join"], tf.minimum(chosen, number - 1))
                kernel = tf.reshape(kernel, [-1, x.shape[-1]])
                sides = x.shape[1:]
                x = paths.pointwise(tf.nn.relu(paths.joined(states.write(number, x), chosen, number)), kernel)
                x, found[f"{name}/join"] = norm(tf.ensure_shape(x, [None, *sides]), f"{name}/join", weights, fixed)
            else:
                found[f"{name}/join"] = tf.zeros([2, x.shape[-1]])
            if number == self.layers:
                break
            states = states.write(number, x)
            if number in self.thirds:
                halved = self._halved(name, [states.read(state) for state in range(number + 1)], weights, fixed, found)
                x = halved[-1]
                states = _array(self.layers + 1, x)
                for state, tensor in enumerate(halved):
                    states = states.write(state, tensor)
        features = tf.reduce_mean(x, [1, 2])
        features = features if drop is None else drop(features)
        logits = tf.matmul(features, weights["classifier"])
        return logits, tf.concat([tf.reshape(found[shape.name], [-1]) for shape in self.statistics.shapes], 0)

    def _layer(self, name: str, path: Any, x: Any, weights: Any, fixed: Any, found: Any) -> Any:
        """What a layer makes of the state before it: ReLU, 1x1, BN, ReLU, then the operation."""
        op, sides = path[0], x.shape[1:]
        names = [f"{name}/narrow", f"{name}/narrow/scale", f"{name}/narrow/shift"]
        kernel, scale, shift = (tf.gather(weights[part], op) for part in names)
        x = paths.pointwise(tf.nn.relu(x), kernel)
        x, found[f"{name}/narrow"] = paths.normalize(x, scale, shift, fixed.get(f"{name}/narrow"))
        inside = {key.removeprefix(f"{name}/"): weight for key, weight in weights.items() if key.startswith(f"{name}/")}
        kernels = {key: weight for key, weight in inside.items() if key.split("/")[0] in CONVOLUTIONS}
        x, found[f"{name}/op"] = self._operation(op, tf.nn.relu(x), kernels, fixed.get(f"{name}/op"))
        return tf.ensure_shape(x, [None, *sides])

    def _halved(self, name: str, states: list, weights: Any, fixed: Any, found: Any) -> list[Any]:
        name, used, halved = f"{name}/halve", [], []
        for state, x in enumerate(states):
            x = paths.factorized(x, weights[name][state])
            scale, shift = weights[f"{name}/scale"][state], weights[f"{name}/shift"][state]
            x, statistics = paths.normalize(x, scale, shift, fixed[name][state] if fixed else None)
            halved.append(x)
            used.append(statistics)
        found[name] = tf.stack(used)
        return halved


def _array(size: int, like: Any) -> tf.TensorArray:
    return tf.TensorArray(tf.float32, size, element_shape=like.shape, clear_after_read=False)


def _operation(op: Any, x: Any, kernels: Any, fixed: Any) -> Any:
    """Runs operation number `op` of MACRO_OPS on a state; returns the tensor and statistics (2, channels)."""

    def convolution(op: str) -> tuple[Any, Any]:
        if op.startswith("sep"):
            y = tf.nn.depthwise_conv2d(x, kernels[f"{op}/depthwise"], [1, 1, 1, 1], "SAME")
            y = paths.pointwise(y, kernels[op])
        else:
            y = tf.nn.conv2d(x, kernels[op], 1, "SAME")
        return paths.normalize(y, kernels[f"{op}/scale"], kernels[f"{op}/shift"], fixed)

    def pool(op: str) -> tuple[Any, Any]:
        y = paths.max_pool(x, 1) if op.startswith("max") else tf.nn.avg_pool2d(x, int(op[-1]), 1, "SAME")
        return y, tf.zeros([2, x.shape[-1]])

    return tf.switch_case(op, [lambda op=op: (convolution if op in CONVOLUTIONS else pool)(op) for op in MACRO_OPS])


def body_of(path: np.ndarray) -> Chain:
    """Returns the chain that a path (layers, 1 + layers) stands for."""
    layers = []
    for number, (op, *bits) in enumerate(path.tolist()):
        layers.append(Layer(MACRO_OPS[op], tuple(state for state in range(number) if bits[state])))
    return Chain(tuple(layers))
