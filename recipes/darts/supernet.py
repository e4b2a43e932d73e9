"""The supernet of DARTS: every edge does all eight operations, weighted by the softmax of its alphas.

Values are those of quark0/darts (cnn/model_search.py). The way there is another: ReLU, pools and their statistics are
made once a state; each 1x1 convolution with its normalisation is a matrix, and so is the weighted sum behind the last.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from recipes.darts import normalized
from recipes.training import supernet
from recipes.training.supernet import Packing, Shape
from zoo.genotype import INPUT_STATES, CellGraph, Cells, Edge, Node

# The order of quark0/darts' PRIMITIVES
OPS = tuple(
    """none max_pool_3x3 avg_pool_3x3 skip_connect sep_conv_3x3 sep_conv_5x5 dil_conv_3x3 dil_conv_5x5""".split()
)
KERNELS = ("first", "second", "dilated")  # of each size that an edge has: two of its separable convolution, and one
_SHARED = slice(OPS.index("max_pool_3x3"), OPS.index("skip_connect") + 1)
_SKIP = OPS.index("skip_connect")
_SEPARABLE = slice(OPS.index("sep_conv_3x3"), OPS.index("dil_conv_3x3"))
_DILATED = slice(OPS.index("dil_conv_3x3"), len(OPS))


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
        """The kernels of all edges are two weights, for a graph has one operation to cut a stack into its parts."""
        filters, edges = place.filters, self.edges
        oldest = (2, place.widths[0], filters // 2) if place.after_reduction else (place.widths[0], filters)
        shapes = [Shape(f"{name}/input0", oldest, place.widths[0])]
        shapes.append(Shape(f"{name}/input1", (place.widths[1], filters), place.widths[1]))
        for size in (3, 5):
            kernels = (len(KERNELS) * edges, size, size, filters, 1)
            shapes.append(Shape(f"{name}/depthwise{size}", kernels, size * size))
        for node in range(self.nodes):
            edges = INPUT_STATES + node
            shapes.append(Shape(f"{name}/node{node}/middle", (2 * edges, filters, filters), filters))
            shapes.append(Shape(f"{name}/node{node}/last", (4 * edges, filters, filters), filters))
            if place.reducing:
                shapes.append(Shape(f"{name}/node{node}/skip", (INPUT_STATES, 2, filters, filters // 2), filters))
        return shapes

    def logits(self, vector: Any, alphas: Any, images: Any) -> Any:
        """Returns the logits (batch, classes) for weights (size,), alphas (2, edges, ops) and normalised images."""
        weights, strengths = self.packing.unpack(vector), tf.unstack(tf.nn.softmax(alphas))
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
        edges = _edges(weights, name, strengths, place.filters)
        for node in range(self.nodes):
            at, incoming = f"{name}/node{node}", [next(edges) for _ in states]
            stacks = {kind: weights.get(f"{at}/{kind}") for kind in ("middle", "last", "skip")}
            states.append(_State(_node(incoming, states, stacks), reducing=False))
        return tf.concat([state.tensor for state in states[INPUT_STATES:]], -1)


class _State:
    """A state, and what all edges that read it share: its ReLU, normalised pools, and itself in other orders."""

    def __init__(self, tensor: Any, reducing: bool):
        self.tensor, self.strides = tensor, 2 if reducing else 1
        self.relu = tf.nn.relu(tensor)
        pools = [tf.nn.max_pool2d(tensor, 3, 1, "SAME"), tf.nn.avg_pool2d(tensor, 3, 1, "SAME")]
        if reducing:  # PyTorch's strided windows lie around the pixels 0, 2, ..
            pools = [supernet.every_second(pool) for pool in pools]
            halves = supernet.halves(self.relu)
            self.skip = supernet.rows(halves)  # a strided identity is a factorized reduction
            self.dilated = halves[..., : tensor.shape[-1]]  # strided dilated convolutions read every second pixel
        else:
            self.spread = not any(side % 2 for side in tensor.shape[1:3])
            self.dilated = supernet.spread(self.relu) if self.spread else self.relu
        shared = [supernet.normalize(pool) for pool in pools] + ([] if reducing else [tensor])
        self.shared = supernet.rows(tf.concat(shared, -1))


@dataclasses.dataclass(frozen=True)
class _Edge:
    """What an edge adds to the states: its strengths (ops,), kernels by size, and pools and identity as a matrix."""

    strengths: Any
    kernels: dict[int, list[Any]]
    shared: Any


def _edges(weights: Any, name: str, strengths: Any, filters: int) -> Iterator[_Edge]:
    """Cuts the stacks of a cell into its edges."""
    stacks = {size: tf.unstack(weights[f"{name}/depthwise{size}"]) for size in (3, 5)}
    shared = strengths[:, _SHARED, None, None] * tf.eye(filters)
    shared = tf.unstack(tf.reshape(shared, [-1, 3 * filters, filters]))
    for edge, (strong, matrix) in enumerate(zip(tf.unstack(strengths), shared, strict=True)):
        at = slice(len(KERNELS) * edge, len(KERNELS) * (edge + 1))
        yield _Edge(strong, {size: stack[at] for size, stack in stacks.items()}, matrix)


def _node(edges: list[_Edge], states: list[_State], stacks: dict[str, Any]) -> Any:
    """Returns the sum of all operations of all edges into one node."""
    read = list(zip(edges, states, strict=True))
    first = [supernet.depthwise(s.relu, e.kernels[size][0], s.strides) for e, s in read for size in (3, 5)]
    middle = normalized.products([supernet.rows(x) for x in first], stacks["middle"])
    seconds = [e.kernels[size][1] for e in edges for size in (3, 5)]
    plain = [
        supernet.depthwise(tf.nn.relu(supernet.like(x, first[0])), kernel)
        for x, kernel in zip(middle, seconds, strict=True)
    ]
    spread = []  # in the order of `supernet.spread`, which neither their statistics nor their sums depend on
    for edge, state in read:
        dilation = 2 if state.strides == 1 and not state.spread else 1
        found = [supernet.depthwise(state.dilated, edge.kernels[size][2], dilation=dilation) for size in (3, 5)]
        (spread if state.strides == 1 and state.spread else plain).extend(found)
    groups = [[supernet.rows(x) for x in group] for group in (plain, spread) if group]
    strengths = tf.stack([edge.strengths for edge in edges])
    strong = tf.concat([tf.reshape(strengths[:, ops], [-1]) for ops in (_SEPARABLE, _DILATED)], 0)
    sums = normalized.weighted_sums(groups, stacks["last"], strong)
    parts = [tf.matmul(s.shared, e.shared[: s.shared.shape[1]]) for e, s in read]
    if stacks["skip"] is not None:
        skips = [[state.skip for state in states[:INPUT_STATES]]]
        parts += normalized.weighted_sums(skips, supernet.two_paths(stacks["skip"]), strengths[:INPUT_STATES, _SKIP])
    if spread:
        parts.append(supernet.rows(supernet.gathered(supernet.like(sums[1], spread[0]))))
    return supernet.like(tf.add_n([sums[0], *parts]), plain[0])


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
