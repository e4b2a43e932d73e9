"""The supernet of DARTS: every edge does all eight operations, weighted by the softmax of its alphas.

Values are those of quark0/darts (cnn/model_search.py). The way there is another: ReLU, pools and their statistics are
made once a state; the last 1x1 convolution of each operation, its normalisation and the weighted sum are one matrix.
"""

import dataclasses
from typing import Any

import tensorflow as tf

from recipes.supernets import base as supernet
from recipes.supernets.base import Packing, Shape
from zoo.genotype import INPUT_STATES, CellGraph, Cells, Edge, Node

# The order of quark0/darts' PRIMITIVES
OPS = tuple(
    """none max_pool_3x3 avg_pool_3x3 skip_connect sep_conv_3x3 sep_conv_5x5 dil_conv_3x3 dil_conv_5x5""".split()
)
CONVOLUTIONS = {
    "sep_conv_3x3": (3, 2, 1),
    "sep_conv_5x5": (5, 2, 1),
    "dil_conv_3x3": (3, 1, 2),
    "dil_conv_5x5": (5, 1, 2),
}
_FIRST_CONVOLUTION = OPS.index("sep_conv_3x3")


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a cell stands: its width, its strides, and the width and halvings of what it reads."""

    filters: int
    reducing: bool
    after_reduction: bool
    widths: tuple[int, int]  # channels of h[c-2] and h[c-1]


class Supernet:
    """A network whose cells do everything; pure functions of a weight vector, alphas and images."""

    def __init__(self, cells: int, filters: int, classes: int, channels: int, nodes: int = 4, stem_multiplier: int = 3):
        """Lays the weights out.

        Args:
            cells: at least 3; those at one and two thirds reduce.
            filters: channels of a node before the first reduction.
            classes, channels: of the images.
            nodes: of each cell.
            stem_multiplier: width of the stem over `filters`.
        """
        self.nodes, self.classes = nodes, classes
        self.edges = sum(INPUT_STATES + node for node in range(nodes))
        self.places: list[Place] = []
        stem = stem_multiplier * filters
        widths, before = (stem, stem), False
        for number in range(cells):
            reducing = number in (cells // 3, 2 * cells // 3)
            filters *= 2 if reducing else 1
            self.places.append(Place(filters, reducing, before, widths))
            widths, before = (widths[1], nodes * filters), reducing
        shapes = [Shape("stem", (3, 3, channels, stem), 9 * channels)]
        shapes += [Shape("stem_scale", (stem,), constant=1.0), Shape("stem_shift", (stem,))]
        for number, place in enumerate(self.places):
            shapes += self._cell_shapes(f"cell{number}", place)
        shapes += [Shape("classifier", (widths[1], classes), widths[1]), Shape("classifier_bias", (classes,))]
        self.packing = Packing(shapes)

    def _cell_shapes(self, name: str, place: Place) -> list[Shape]:
        filters = place.filters
        oldest = (2, place.widths[0], filters // 2) if place.after_reduction else (place.widths[0], filters)
        shapes = [Shape(f"{name}/input0", oldest, place.widths[0])]
        shapes.append(Shape(f"{name}/input1", (place.widths[1], filters), place.widths[1]))
        for node in range(self.nodes):
            for source in range(INPUT_STATES + node):
                edge = f"{name}/node{node}/state{source}"
                for op, (size, repeats, _) in CONVOLUTIONS.items():
                    shapes += [
                        Shape(f"{edge}/{op}/depthwise{repeat}", (size, size, filters, 1), size * size)
                        for repeat in range(repeats)
                    ]
                    if repeats > 1:
                        shapes.append(Shape(f"{edge}/{op}/pointwise", (filters, filters), filters))
                if place.reducing and source < INPUT_STATES:
                    shapes.append(Shape(f"{edge}/skip", (2, filters, filters // 2), filters))
            edges = INPUT_STATES + node
            shapes.append(Shape(f"{name}/node{node}/last", (edges * len(CONVOLUTIONS), filters, filters), filters))
        return shapes

    def logits(self, vector: Any, alphas: Any, images: Any) -> Any:
        """Returns the logits (batch, classes) for weights (size,), alphas (2, edges, ops) and normalised images."""
        weights, strengths = self.packing.unpack(vector), tf.nn.softmax(alphas)
        x = tf.nn.conv2d(images, weights["stem"], 1, "SAME")
        x = supernet.normalize(x) * weights["stem_scale"] + weights["stem_shift"]
        oldest, newest = x, x
        for number, place in enumerate(self.places):
            output = self._cell(f"cell{number}", place, weights, strengths[int(place.reducing)], oldest, newest)
            oldest, newest = newest, output
        return tf.matmul(tf.reduce_mean(newest, [1, 2]), weights["classifier"]) + weights["classifier_bias"]

    def _cell(self, name: str, place: Place, weights: Any, strengths: Any, oldest: Any, newest: Any) -> Any:
        oldest, weight = tf.nn.relu(oldest), weights[f"{name}/input0"]
        if place.after_reduction:
            oldest, weight = supernet.halves(oldest), supernet.two_paths(weight)
        states = [_State(supernet.normalize(supernet.pointwise(oldest, weight)), place.reducing)]
        newest = supernet.pointwise(tf.nn.relu(newest), weights[f"{name}/input1"])
        states.append(_State(supernet.normalize(newest), place.reducing))
        edge = 0
        for node in range(self.nodes):
            part = strengths[edge : edge + len(states)]
            states.append(_State(_node(f"{name}/node{node}", weights, part, states), reducing=False))
            edge += len(states) - 1
        return tf.concat([state.tensor for state in states[INPUT_STATES:]], -1)


class _State:
    """A state, with its ReLU, and the inputs and their moments that all edges which read it share."""

    def __init__(self, tensor: Any, reducing: bool):
        self.tensor, self.strides = tensor, 2 if reducing else 1
        self.relu = tf.nn.relu(tensor)
        step = self.strides
        pools = [tf.nn.max_pool2d(tensor, 3, 1, "SAME"), tf.nn.avg_pool2d(tensor, 3, 1, "SAME")]
        # PyTorch's strided windows lie around the pixels 0, 2, ..
        pools = [pool[:, ::step, ::step] for pool in pools] if reducing else pools
        both = supernet.halves(self.relu) if reducing else tensor
        self.subsampled = both[..., : tensor.shape[-1]]  # what strided dilated convolutions read
        self.shared = tf.concat([*pools, both], -1)
        flat = supernet.rows(self.shared)
        self.mean, self.covariance = supernet.moments([flat])
        filters = tensor.shape[-1]
        pooled = 2 * filters  # channels of `shared` that are pools
        scale = tf.math.rsqrt(tf.linalg.diag_part(self.covariance[0, :pooled, :pooled]) + supernet.EPSILON)
        # An identity is not normalised; a strided one is a factorized reduction, which differs from edge to edge.
        rows = tf.concat([scale] if reducing else [scale, tf.ones([filters])], 0)
        count = 2 if reducing else 3
        self._strong = slice(1, 1 + count)
        self._matrices = tf.linalg.diag(tf.reshape(rows, [count, filters]))
        shifts = tf.reshape(-self.mean[0, :pooled] * scale, [2, filters])
        self._shifts = shifts if reducing else tf.concat([shifts, tf.zeros([1, filters])], 0)

    def matrix(self, strengths: Any, skip: Any) -> tuple[Any, Any]:
        """Returns matrix and bias of pools and skip on `shared`, weighted by `strengths` (ops,)."""
        filters = self.tensor.shape[-1]
        strong = strengths[self._strong]
        matrix = tf.reshape(strong[:, None, None] * self._matrices, [-1, filters])
        bias = tf.reduce_sum(strong[:, None] * self._shifts, 0)
        if skip is None:
            return matrix, bias
        moments = self.mean[:, 2 * filters :], self.covariance[:, 2 * filters :, 2 * filters :]
        folded, shift = supernet.folded(supernet.two_paths(skip)[None], strengths[3:4], *moments)
        return tf.concat([matrix, folded[0]], 0), bias + shift


def _node(name: str, weights: Any, strengths: Any, states: list[_State]) -> Any:
    """Returns the sum of all operations of all edges into one node."""
    inputs, parts, biases = [], [], []
    table = tf.unstack(strengths, len(states))
    for source, state in enumerate(states):
        edge = f"{name}/state{source}"
        inputs += [_last_input(f"{edge}/{op}", op, weights, state) for op in CONVOLUTIONS]
        matrix, bias = state.matrix(table[source], weights.get(f"{edge}/skip") if state.strides > 1 else None)
        parts.append(tf.matmul(supernet.rows(state.shared), matrix))
        biases.append(bias)
    flat = [supernet.rows(x) for x in inputs]
    means, covariances = supernet.moments(flat)
    strength = tf.reshape(strengths[:, _FIRST_CONVOLUTION:], [-1])
    matrices, bias = supernet.folded(weights[f"{name}/last"], strength, means, covariances)
    parts += [tf.matmul(x, matrix) for x, matrix in zip(flat, tf.unstack(matrices), strict=True)]
    return supernet.like(tf.add_n(parts) + tf.add_n([*biases, bias]), inputs[0])


def _last_input(name: str, op: str, weights: Any, state: _State) -> Any:
    """Returns what the last 1x1 convolution of an operation reads."""
    _, repeats, dilation = CONVOLUTIONS[op]
    kernel = weights[f"{name}/depthwise0"]
    if dilation > 1 and state.strides > 1:
        x = supernet.depthwise(state.subsampled, kernel)
    else:
        x = supernet.depthwise(state.relu, kernel, state.strides, dilation)
    if repeats == 1:
        return x
    x = tf.nn.relu(supernet.normalize(supernet.pointwise(x, weights[f"{name}/pointwise"])))
    return supernet.depthwise(x, weights[f"{name}/depthwise1"])


def derive(strengths: Any, nodes: int) -> Cells:
    """Returns the cells that softmaxed alphas, an array (2, edges, ops), stand for.

    Each node keeps the two edges with the strongest operation other than "none", and on each the strongest of these.
    """
    graphs = []
    for table in strengths:
        found, start = [], 0
        for node in range(nodes):
            rows = table[start : start + INPUT_STATES + node, 1:]  # without "none"
            start += INPUT_STATES + node
            strongest = sorted(range(len(rows)), key=lambda source, rows=rows: -rows[source].max())[:2]
            found.append(Node(tuple(Edge(OPS[1 + int(rows[source].argmax())], source) for source in sorted(strongest))))
        graphs.append(CellGraph(tuple(found), tuple(range(INPUT_STATES, INPUT_STATES + nodes))))
    return Cells(*graphs)
