"""The supernet of ENAS' macro space: a chain of layers, each with one of six operations and skips from any before it.

Given a path, the supernet computes the same as the network that zoo/families/enas.py builds from the path's chain,
with separable convolutions as in the paper. In the 1x1 convolution that joins skips, each state has its own rows.
"""

from typing import Any

import tensorflow as tf

from recipes.enas import supernet
from recipes.enas.space import ChainSpace
from recipes.enas.supernet import Pass, norm_shapes
from recipes.training.supernet import Packing, Shape, pointwise
from zoo.formats.enas import MACRO_OPS

CONVOLUTIONS = [op for op in MACRO_OPS if "conv" in op]


class MacroSupernet:
    """A network as a function of a weight vector, a path of the space, and images."""

    def __init__(self, space: ChainSpace, filters: int, classes: int, channels: int):
        """Lists the shapes of all weights, `packing`.

        Args:
            space: the chains that are searched.
            filters: width before the first reduction; reductions follow one third and two thirds of the layers.
            classes, channels: of the images.
        """
        self.space, self.classes = space, classes
        layers = space.layers
        self.thirds = (layers // 3, 2 * (layers // 3))
        shapes = [Shape("stem", (3, 3, channels, filters), 9 * channels), *norm_shapes("stem", (), filters)]
        self.widths: list[int] = []
        for number in range(1, layers + 1):
            name = f"layer{number:02d}"
            self.widths.append(filters)
            shapes += self._layer_shapes(name, number, filters)
            if number in self.thirds:
                stack = (number + 1,)  # one per state
                shapes.append(Shape(f"{name}/halve", (*stack, 2, filters, filters), filters))
                filters *= 2
                shapes += norm_shapes(f"{name}/halve", stack, filters)
        shapes.append(Shape("classifier", (filters, classes), filters))
        self.packing = Packing(shapes)
        self._operation = supernet.trace_once(_operation)

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

    def logits(self, vector: Any, path: Any, images: Any, drop: Any = None) -> Any:
        """Returns logits; see PathSupernet."""
        run, layers = Pass(self, vector), self.space.layers
        x = run.stem(images)
        states = supernet.make_states(layers + 1, x.shape[1:3], x.shape[-1]).write(0, x)
        for number in range(1, layers + 1):
            name = f"layer{number:02d}"
            x = self._layer(run, name, path[number - 1], x)
            if number > 1:
                chosen = tf.concat([tf.cast(tf.where(path[number - 1, 1:number])[:, 0], tf.int32), [number]], 0)
                kernel = tf.gather(run.weights[f"{name}/join"], tf.minimum(chosen, number - 1))
                kernel = tf.reshape(kernel, [-1, x.shape[-1]])
                sides = x.shape[1:]
                x = pointwise(tf.nn.relu(supernet.join(states.write(number, x), chosen, number)), kernel)
                x = run.norm(tf.ensure_shape(x, [None, *sides]), f"{name}/join")
            if number == layers:
                break
            states = states.write(number, x)
            if number in self.thirds:
                halved = self._halve(run, f"{name}/halve", [states.read(state) for state in range(number + 1)])
                x = halved[-1]
                states = supernet.make_states(layers + 1, x.shape[1:3], x.shape[-1])
                for state, tensor in enumerate(halved):
                    states = states.write(state, tensor)
        return supernet.classify(x, run.weights["classifier"], drop)

    def _layer(self, run: Pass, name: str, path: Any, x: Any) -> Any:
        """Returns a layer's output, before skips, for the state before it: ReLU, 1x1, BN, ReLU, then the operation."""
        op, sides, weights = path[0], x.shape[1:], run.weights
        names = [f"{name}/narrow", f"{name}/narrow/scale", f"{name}/narrow/shift"]
        kernel, scale, shift = (tf.gather(weights[part], op) for part in names)
        x = pointwise(tf.nn.relu(x), kernel)
        x = supernet.normalize(x, scale, shift)
        inside = {key.removeprefix(f"{name}/"): weight for key, weight in weights.items() if key.startswith(f"{name}/")}
        kernels = {key: weight for key, weight in inside.items() if key.split("/")[0] in CONVOLUTIONS}
        return tf.ensure_shape(self._operation(op, tf.nn.relu(x), kernels), [None, *sides])

    def _halve(self, run: Pass, name: str, states: list) -> list[Any]:
        """Returns all states after a factorized reduction each."""
        halved = []
        for state, x in enumerate(states):
            scale, shift = run.weights[f"{name}/scale"][state], run.weights[f"{name}/shift"][state]
            halved.append(supernet.normalize(supernet.reduce_factorized(x, run.weights[name][state]), scale, shift))
        return halved


def _operation(op: Any, x: Any, kernels: Any) -> Any:
    """Runs operation number `op` of MACRO_OPS on a state."""

    def convolution(op: str) -> Any:
        if op.startswith("sep"):
            y = tf.nn.depthwise_conv2d(x, kernels[f"{op}/depthwise"], [1, 1, 1, 1], "SAME")
            y = pointwise(y, kernels[op])
        else:
            y = tf.nn.conv2d(x, kernels[op], 1, "SAME")
        return supernet.normalize(y, kernels[f"{op}/scale"], kernels[f"{op}/shift"])

    def pool(op: str) -> Any:
        return supernet.max_pool(x, 1) if op.startswith("max") else tf.nn.avg_pool2d(x, int(op[-1]), 1, "SAME")

    return tf.switch_case(op, [lambda op=op: (convolution if op in CONVOLUTIONS else pool)(op) for op in MACRO_OPS])
