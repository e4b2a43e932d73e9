"""The supernet of ENAS' micro space: all cells of the space in one set of weights, one of them run at a time.

Under a path the values are those of the network that zoo/families/enas.py builds from the path's cells. Weights belong
to the cell, node, edge, operation and to the state that is read, as in melodyguan/enas.

Departure: that code searches with another network than it trains afterwards (reductions before the cells, loose ends
through one more 1x1 convolution); here they are the same, so that a path can be exported with its weights.
"""

import dataclasses
import functools
from typing import Any

import numpy as np
import tensorflow as tf

from recipes import supernet_paths as paths
from recipes.supernet import Packing, Shape
from recipes.supernet_paths import convolution_layers, norm, norm_shapes
from zoo.formats.enas import MICRO_OPS
from zoo.genotype import INPUT_STATES, CellGraph, Cells, Edge, Node

_SEPARABLE = {"sep_conv_3x3": 3, "sep_conv_5x5": 5}
_REPEATS = 2  # of depthwise and 1x1 convolution in a separable one


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a cell stands: its width, whether it reduces, and what it reads, each as (states, channels of one)."""

    filters: int
    reducing: bool
    after_reduction: bool
    oldest: tuple[int, int]
    newest: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class _Output:
    """A cell's output, or the stem's: joined states, and which states of how many these are (None: all)."""

    tensor: Any
    chosen: Any = None

    def kernel(self, weight: Any) -> Any:
        """Returns the rows (inputs, outputs) of a weight (.., states, channels, outputs) that belong to the tensor."""
        if self.chosen is not None:
            weight = tf.gather(weight, self.chosen, axis=-3)
        *front, _, channels, outputs = weight.shape
        count = weight.shape[-3] if self.chosen is None else tf.shape(self.chosen)[0]
        return tf.ensure_shape(tf.reshape(weight, [*front, count * channels, outputs]), [*front, None, outputs])


class MicroSupernet:
    """Pure functions of a weight vector, a path and images.

    A path is an int32 array (2, nodes, 2, 2): of the normal and the reduction cell, for each node's two edges the state
    and the operation (an index of MICRO_OPS).
    """

    def __init__(self, cells: int, filters: int, classes: int, channels: int, nodes: int = 5):
        """Lays the weights out.

        Args:
            cells: normal cells; two reductions come on top.
            filters: channels of a node before the first reduction.
            classes, channels: of the images.
            nodes: of each cell; the paper's blocks.
        """
        self.nodes, self.classes, self.filters, self.cells = nodes, classes, filters, cells
        self.places: list[Place] = []
        self._edges = {strides: paths.traced(functools.partial(_edge, strides)) for strides in (1, 2)}
        third, outputs, before = cells // 3, [(3, filters), (3, filters)], False
        for number in range(cells + 2):
            reducing = number in (third, 2 * third + 1)
            filters *= 2 if reducing else 1
            self.places.append(Place(filters, reducing, before, *outputs))
            outputs, before = [outputs[1], (nodes, filters)], reducing
        # the row of a weight for edge (node, side), before the number of the state that it reads is added
        self.first_rows = np.array([[2 * sum(range(INPUT_STATES, INPUT_STATES + node)) + side * (INPUT_STATES + node)
                                      for side in (0, 1)] for node in range(nodes)], np.int32)  # fmt: skip
        self._rows = 2 * sum(range(INPUT_STATES, INPUT_STATES + nodes))
        stem = 3 * self.filters
        shapes = [Shape("stem", (3, 3, channels, stem), 9 * channels), *norm_shapes("stem", (), stem)]
        statistics = [Shape("stem", (2, stem))]
        for number, place in enumerate(self.places):
            shapes += self._cell_shapes(f"cell{number}", place)
            for part in ("calibrate", "input0", "input1"):
                statistics.append(Shape(f"cell{number}/{part}", (2, place.filters)))
            statistics.append(Shape(f"cell{number}/edges", (nodes, 2, _REPEATS, 2, place.filters)))
        self.last = outputs[1]
        shapes.append(Shape("classifier", (*self.last, classes), self.last[0] * self.last[1]))
        self.packing, self.statistics = Packing(shapes), Packing(statistics)

    def _cell_shapes(self, name: str, place: Place) -> list[Shape]:
        filters, shapes = place.filters, []
        halved = (2, *place.oldest, filters // 2) if place.after_reduction else (*place.oldest, filters)
        for part, shape in (("input0", halved), ("calibrate", (*place.newest, filters))):
            shapes += [
                Shape(f"{name}/{part}", shape, shape[-3] * shape[-2]),
                *norm_shapes(f"{name}/{part}", (), filters),
            ]
        shapes += [Shape(f"{name}/input1", (filters, filters), filters), *norm_shapes(f"{name}/input1", (), filters)]
        for op, size in _SEPARABLE.items():
            stack = (self._rows, _REPEATS)
            shapes.append(Shape(f"{name}/{op}/depthwise", (*stack, size, size, filters, 1), size * size))
            shapes.append(Shape(f"{name}/{op}/pointwise", (*stack, filters, filters), filters))
            shapes += norm_shapes(f"{name}/{op}", stack, filters)
        if place.reducing:
            stack = (self._rows,)
            shapes.append(Shape(f"{name}/skip_connect", (*stack, 2, filters, filters // 2), filters))
            shapes += norm_shapes(f"{name}/skip_connect", stack, filters)
        return shapes

    def logits(self, vector: Any, path: Any, images: Any, statistics: Any = None, drop: Any = None) -> tuple[Any, Any]:
        """Returns the logits (batch, classes), and the statistics by which was normalised.

        Args:
            vector: all weights.
            path: int32 (2, nodes, 2, 2).
            images: normalised, (batch, height, width, channels).
            statistics: what another call returned, for inference; those of this batch unless given.
            drop: a function of the features, such as dropout.
        """
        weights = self.packing.unpack(vector)
        fixed = {} if statistics is None else self.statistics.unpack(statistics)
        found: dict[str, Any] = {}
        x = tf.nn.conv2d(images, weights["stem"], 1, "SAME")
        x, found["stem"] = norm(x, "stem", weights, fixed)
        outputs = [_Output(x), _Output(x)]
        for number, place in enumerate(self.places):
            name = f"cell{number}"
            newest = self._whole(f"{name}/calibrate", place.newest, place.filters, outputs[1], weights, fixed, found)
            newest = paths.pointwise(tf.nn.relu(newest), weights[f"{name}/input1"])
            newest, found[f"{name}/input1"] = norm(newest, f"{name}/input1", weights, fixed)
            oldest = self._oldest(name, place, outputs[0], weights, fixed, found)
            output, found[f"{name}/edges"] = self._cell(
                name, place, path[int(place.reducing)], (oldest, newest), weights, fixed.get(f"{name}/edges")
            )
            outputs = [outputs[1], output]
        features = tf.reduce_mean(tf.nn.relu(outputs[1].tensor), [1, 2])
        features = features if drop is None else drop(features)
        logits = tf.matmul(features, outputs[1].kernel(weights["classifier"]))
        return logits, tf.concat([tf.reshape(found[shape.name], [-1]) for shape in self.statistics.shapes], 0)

    def _whole(self, name, source, filters, output, weights, fixed, found) -> Any:
        """The output of a cell at the width of the next: as it is where that agrees, else by ReLU, 1x1 and BN."""
        height, width = output.tensor.shape[1:3]

        def projected() -> tuple[Any, Any]:
            x = paths.pointwise(tf.nn.relu(output.tensor), output.kernel(weights[name]))
            return norm(x, name, weights, fixed)

        def untouched() -> tuple[Any, Any]:
            return output.tensor, tf.zeros([2, filters])

        states, channels = source
        count = filters // channels if filters % channels == 0 else states + 1
        if output.chosen is None:
            x, found[name] = untouched() if count == states else projected()
        else:
            agrees = tf.equal(tf.shape(output.chosen)[0], count)
            x, found[name] = tf.cond(agrees, untouched, projected) if count <= states else projected()
        return tf.ensure_shape(x, [None, height, width, filters])

    def _oldest(self, name, place, output, weights, fixed, found) -> Any:
        name = f"{name}/input0"
        if not place.after_reduction:
            return self._whole(name, place.oldest, place.filters, output, weights, fixed, found)
        x = paths.factorized(tf.nn.relu(output.tensor), output.kernel(weights[name]))
        x, found[name] = norm(x, name, weights, fixed)
        return x

    def _cell(self, name, place, path, inputs, weights, fixed) -> tuple[_Output, Any]:
        """Returns the output of a cell for its part (nodes, 2, 2) of the path, and the statistics of its edges."""
        sides = inputs[1].shape[1:3]
        after = [-(-side // 2) for side in sides] if place.reducing else sides
        array, offset = _array(self.nodes, after, place.filters), INPUT_STATES
        ends = _array(2, sides, place.filters)  # h[c-2] and h[c-1]
        if not place.reducing:
            array, ends, offset = _array(INPUT_STATES + self.nodes, after, place.filters), None, 0
        for number, x in enumerate(inputs):
            if ends is None:
                array = array.write(number, x)
            else:
                ends = ends.write(number, x)
        rows = self.first_rows + path[..., 0]
        chosen = {key: tf.gather(weight, tf.reshape(rows, [-1])) for key, weight in _stacks(name, weights).items()}
        chosen = {key: tf.unstack(weight) for key, weight in chosen.items()}
        statistics = []
        for node in range(self.nodes):
            sums = []
            for side in (0, 1):
                state, op = path[node, side, 0], path[node, side, 1]
                kernels = {key: parts[2 * node + side] for key, parts in chosen.items()}
                edge = None if fixed is None else fixed[node, side]
                if ends is None:
                    x, used = self._edges[1](op, array.read(state), None, kernels, edge)
                elif node == 0:
                    x, used = self._edges[2](op, ends.read(state), None, kernels, edge)
                else:
                    inner = array.read(tf.maximum(state - INPUT_STATES, 0))
                    op += len(MICRO_OPS) * tf.cast(state >= INPUT_STATES, tf.int32)
                    x, used = self._edges[2](op, ends.read(tf.minimum(state, INPUT_STATES - 1)), inner, kernels, edge)
                x = tf.ensure_shape(x, [None, *after, place.filters])
                sums.append(x)
                statistics.append(used)
            array = array.write(node + INPUT_STATES - offset, sums[0] + sums[1])
        loose = self._loose(path)
        found = tf.reshape(tf.stack(statistics), [self.nodes, 2, _REPEATS, 2, place.filters])
        return _Output(paths.joined(array, loose + INPUT_STATES - offset), loose), found

    def _loose(self, path: Any) -> Any:
        """Returns the nodes, from 0, that no node of a cell reads."""
        read = tf.one_hot(tf.reshape(path[..., 0], [-1]) - INPUT_STATES, self.nodes)  # a negative index is no node
        return tf.cast(tf.where(tf.reduce_sum(read, 0) < 0.5)[:, 0], tf.int32)


def _array(size: int, sides: Any, filters: int) -> tf.TensorArray:
    return tf.TensorArray(tf.float32, size, element_shape=[None, *sides, filters], clear_after_read=False)


def _stacks(cell: str, weights: Any) -> dict[str, Any]:
    """Returns those weights of a cell that a row is chosen of, by their name within the cell."""
    names = [f"{op}/{part}" for op in _SEPARABLE for part in ("depthwise", "pointwise", "scale", "shift")]
    names += ["skip_connect", "skip_connect/scale", "skip_connect/shift"]
    return {name: weights[f"{cell}/{name}"] for name in names if f"{cell}/{name}" in weights}


def _edge(strides: int, op: Any, x: Any, inner: Any, kernels: Any, fixed: Any) -> Any:
    """Runs operation `op` on an edge: one of MICRO_OPS on `x`, or, from their number on, at stride 1 on `inner`."""
    operations = _operations(x, kernels, strides, fixed)
    return tf.switch_case(op, operations + ([] if inner is None else _operations(inner, kernels, 1, fixed)))


def _operations(x: Any, kernels: Any, strides: int, fixed: Any) -> list[Any]:
    """Returns the operations on a state, in the order of MICRO_OPS, as functions that return (tensor, statistics)."""
    filters = x.shape[-1]
    none = tf.zeros([_REPEATS, 2, filters])

    def separable(op: str) -> tuple[Any, Any]:
        y, used = x, []
        for repeat in range(_REPEATS):
            step = strides if repeat == 0 else 1
            depthwise = kernels[f"{op}/depthwise"][repeat]
            y = tf.nn.depthwise_conv2d(tf.nn.relu(y), depthwise, [1, step, step, 1], "SAME")
            y = paths.pointwise(y, kernels[f"{op}/pointwise"][repeat])
            scale, shift = kernels[f"{op}/scale"][repeat], kernels[f"{op}/shift"][repeat]
            y, statistics = paths.normalize(y, scale, shift, None if fixed is None else fixed[repeat])
            used.append(statistics)
        return y, tf.stack(used)

    def skip() -> tuple[Any, Any]:
        if strides == 1:
            return tf.identity(x), none
        y = paths.factorized(x, kernels["skip_connect"])
        scale, shift = kernels["skip_connect/scale"], kernels["skip_connect/shift"]
        y, statistics = paths.normalize(y, scale, shift, None if fixed is None else fixed[0])
        return y, tf.stack([statistics, none[1]])

    return [
        lambda: separable("sep_conv_3x3"),
        lambda: separable("sep_conv_5x5"),
        lambda: (tf.nn.avg_pool2d(x, 3, strides, "SAME"), none),
        lambda: (tf.nn.max_pool2d(x, 3, strides, "SAME"), none),
        skip,
    ]


def body_of(path: np.ndarray) -> Cells:
    """Returns the cells that a path (2, nodes, 2, 2) stands for."""
    graphs = []
    for cell in path.tolist():
        nodes = tuple(Node(tuple(Edge(MICRO_OPS[op], state) for state, op in edges)) for edges in cell)
        read = {edge.state for node in nodes for edge in node.edges}
        loose = [state for state in range(INPUT_STATES, INPUT_STATES + len(nodes)) if state not in read]
        graphs.append(CellGraph(nodes, tuple(loose)))
    return Cells(*graphs)


def layers_of(net: MicroSupernet, vector: np.ndarray, path: np.ndarray, statistics: np.ndarray) -> dict[str, list]:
    """Returns the weights under a path as the layers of zoo/families/enas.py have them: name of a layer -> arrays."""
    weights, used = net.packing.unpack(vector), net.statistics.unpack(statistics)
    layers: dict[str, list] = {"stem_conv": [weights["stem"]]}
    layers["stem_bn"] = [weights["stem/scale"], weights["stem/shift"], *used["stem"]]
    nodes = [_loose_nodes(part) for part in path]
    before: list[Any] = [None, None]  # the nodes that h[c-2] and h[c-1] are joined of
    for number, place in enumerate(net.places):
        name, cell = f"cell{number}", f"cell{number:02d}" + ("_reduce" if place.reducing else "")
        for part, chosen in zip(("input0", "calibrate"), before, strict=True):
            kernel = weights[f"{name}/{part}"]
            kernel = kernel if chosen is None else kernel.take(chosen, axis=-3)
            kernel = kernel.reshape(*kernel.shape[:-3], -1, kernel.shape[-1])
            affine = weights[f"{name}/{part}/scale"], weights[f"{name}/{part}/shift"]
            layers |= convolution_layers(f"{cell}_{part}", kernel, *affine, used[f"{name}/{part}"])
        affine = weights[f"{name}/input1/scale"], weights[f"{name}/input1/shift"]
        layers |= convolution_layers(f"{cell}_input1", weights[f"{name}/input1"], *affine, used[f"{name}/input1"])
        part = path[int(place.reducing)]
        rows = net.first_rows + part[..., 0]
        stacks = _stacks(name, weights)
        for (node, side), row in np.ndenumerate(rows):
            edge = f"{cell}_node{INPUT_STATES + node}_edge{side}"
            kernels = {key: stack[row] for key, stack in stacks.items()}
            layers |= _edge_layers(edge, MICRO_OPS[part[node, side, 1]], kernels, used[f"{name}/edges"][node, side])
        before = [before[1], nodes[int(place.reducing)]]
    kernel = weights["classifier"].take(before[1], axis=0)
    return layers | {"predictions": [kernel.reshape(-1, kernel.shape[-1])]}


def _edge_layers(edge: str, op: str, kernels: Any, used: np.ndarray) -> dict[str, list]:
    if op == "skip_connect" and "skip_connect" in kernels:
        affine = kernels["skip_connect/scale"], kernels["skip_connect/shift"]
        return convolution_layers(edge, kernels["skip_connect"], *affine, used[0])
    layers: dict[str, list] = {}
    for repeat in range(_REPEATS if op in _SEPARABLE else 0):
        layers[f"{edge}_dw{repeat + 1}"] = [kernels[f"{op}/depthwise"][repeat]]
        layers[f"{edge}_pw{repeat + 1}"] = [kernels[f"{op}/pointwise"][repeat][None, None]]
        affine = kernels[f"{op}/scale"][repeat], kernels[f"{op}/shift"][repeat]
        layers[f"{edge}_bn{repeat + 1}"] = [*affine, *used[repeat]]
    return layers


def _loose_nodes(part: np.ndarray) -> list[int]:
    return [node for node in range(len(part)) if INPUT_STATES + node not in part[..., 0]]
