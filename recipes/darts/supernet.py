"""The supernet of DARTS: every edge does all operations, weighted by the softmax of its alphas.

Values are those of quark0/darts (cnn/model_search.py), computed otherwise: docs/darts_supernet.md says how and why.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf

from recipes.darts import normalized
from recipes.darts.space import OPS, DartsSpace
from recipes.training import supernet
from recipes.training.supernet import Packing, Shape
from zoo.genotype import INPUT_STATES

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
    """A network whose cells do everything; pure functions of a weight vector, strengths and images."""

    def __init__(self, space: DartsSpace, cells: int, filters: int, classes: int, channels: int):
        """Lays the weights out.

        Args:
            space: of the cells.
            cells: at least 3; those at one and two thirds reduce.
            filters: channels of a node before the first reduction; the stem has three times as many.
            classes, channels: of the images.
        """
        self.space, self.classes = space, classes
        self.places: list[Place] = []
        stem = 3 * filters
        widths, before = (stem, stem), False
        for number in range(cells):
            reducing = number in (cells // 3, 2 * cells // 3)
            filters *= 2 if reducing else 1
            self.places.append(Place(filters, reducing, before, widths))
            widths, before = (widths[1], space.nodes * filters), reducing
        shapes = [Shape("stem", (3, 3, channels, stem), 9 * channels)]
        shapes += [Shape("stem_scale", (stem,), constant=1.0), Shape("stem_shift", (stem,))]
        for number, place in enumerate(self.places):
            shapes += self._cell_shapes(f"cell{number}", place)
        shapes += [Shape("classifier", (widths[1], classes), widths[1]), Shape("classifier_bias", (classes,))]
        self.packing = Packing(shapes)

    def _cell_shapes(self, name: str, place: Place) -> list[Shape]:
        """The kernels of all edges are two weights, for a graph has one operation to cut a stack into its parts."""
        filters = place.filters
        oldest = (2, place.widths[0], filters // 2) if place.after_reduction else (place.widths[0], filters)
        shapes = [Shape(f"{name}/input0", oldest, place.widths[0])]
        shapes.append(Shape(f"{name}/input1", (place.widths[1], filters), place.widths[1]))
        for size in (3, 5):
            kernels = (len(KERNELS) * self.space.edges, size, size, filters, 1)
            shapes.append(Shape(f"{name}/depthwise{size}", kernels, size * size))
        for node in range(self.space.nodes):
            edges = INPUT_STATES + node
            shapes.append(Shape(f"{name}/node{node}/middle", (2 * edges, filters, filters), filters))
            shapes.append(Shape(f"{name}/node{node}/last", (4 * edges, filters, filters), filters))
            if place.reducing:
                shapes.append(Shape(f"{name}/node{node}/skip", (INPUT_STATES, 2, filters, filters // 2), filters))
        return shapes

    def logits(self, vector: Any, strengths: Any, images: Any) -> Any:
        """Returns the logits (batch, classes) for weights (size,), strengths (2, edges, ops) and normalised images."""
        weights, tables = self.packing.unpack(vector), tf.unstack(strengths)
        x = tf.nn.conv2d(images, weights["stem"], 1, "SAME")
        x = supernet.normalize(x) * weights["stem_scale"] + weights["stem_shift"]
        oldest, newest = x, x
        for number, place in enumerate(self.places):
            output = self._cell(f"cell{number}", place, weights, tables[int(place.reducing)], oldest, newest)
            oldest, newest = newest, output
        return tf.matmul(tf.reduce_mean(newest, [1, 2]), weights["classifier"]) + weights["classifier_bias"]

    def _cell(self, name: str, place: Place, weights: Any, strengths: Any, oldest: Any, newest: Any) -> Any:
        oldest, weight = tf.nn.relu(oldest), weights[f"{name}/input0"]
        if place.after_reduction:
            oldest, weight = supernet.factorized_input(oldest), supernet.factorized_kernel(weight)
        states = [_State(supernet.normalize(supernet.pointwise(oldest, weight)), place.reducing)]
        newest = supernet.pointwise(tf.nn.relu(newest), weights[f"{name}/input1"])
        states.append(_State(supernet.normalize(newest), place.reducing))
        edges = _edges(weights, name, strengths, place.filters)
        for node in range(self.space.nodes):
            at, incoming = f"{name}/node{node}", [next(edges) for _ in states]
            stacks = {kind: weights.get(f"{at}/{kind}") for kind in ("middle", "last", "skip")}
            states.append(_State(_node(incoming, states, stacks), reducing=False))
        return tf.concat([state.tensor for state in states[INPUT_STATES:]], -1)


class _State:
    """A state, and what all edges that read it share: its ReLU, normalised pools, and itself in other pixel orders."""

    def __init__(self, tensor: Any, reducing: bool):
        self.tensor, self.strides = tensor, 2 if reducing else 1
        self.relu = tf.nn.relu(tensor)
        pools = [tf.nn.max_pool2d(tensor, 3, 1, "SAME"), tf.nn.avg_pool2d(tensor, 3, 1, "SAME")]
        if reducing:  # PyTorch's strided windows lie around the pixels 0, 2, ..
            pools = [supernet.every_second(pool) for pool in pools]
            halved = supernet.factorized_input(self.relu)
            self.skip = supernet.as_rows(halved)  # a strided identity is a factorized reduction
            self.dilated = halved[..., : tensor.shape[-1]]  # strided dilated convolutions read every second pixel
        else:
            self.in_batch = not any(side % 2 for side in tensor.shape[1:3])
            self.dilated = supernet.space_to_batch(self.relu) if self.in_batch else self.relu
        shared = [supernet.normalize(pool) for pool in pools] + ([] if reducing else [tensor])
        self.shared = supernet.as_rows(tf.concat(shared, -1))


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


def _node(edges: Sequence[_Edge], states: Sequence[_State], stacks: dict[str, Any]) -> Any:
    """Returns sum(w * op(x) for w, op in zip(strengths, ops)), over the ops of all edges into one node."""
    read = list(zip(edges, states, strict=True))
    first = [supernet.depthwise(s.relu, e.kernels[size][0], s.strides) for e, s in read for size in (3, 5)]
    middle = normalized.multiply([supernet.as_rows(x) for x in first], stacks["middle"])
    seconds = [e.kernels[size][1] for e in edges for size in (3, 5)]
    plain = [
        supernet.depthwise(tf.nn.relu(supernet.as_image(x, first[0])), kernel)
        for x, kernel in zip(middle, seconds, strict=True)
    ]
    in_batch = []  # in the order of `space_to_batch`, on which neither statistics nor sums depend
    for edge, state in read:
        dilation = 2 if state.strides == 1 and not state.in_batch else 1
        found = [supernet.depthwise(state.dilated, edge.kernels[size][2], dilation=dilation) for size in (3, 5)]
        (in_batch if state.strides == 1 and state.in_batch else plain).extend(found)
    groups = [[supernet.as_rows(x) for x in group] for group in (plain, in_batch) if group]
    strengths = tf.stack([edge.strengths for edge in edges])
    strong = tf.concat([tf.reshape(strengths[:, ops], [-1]) for ops in (_SEPARABLE, _DILATED)], 0)
    sums = normalized.add_weighted(groups, stacks["last"], strong)
    parts = [tf.matmul(s.shared, e.shared[: s.shared.shape[1]]) for e, s in read]
    if stacks["skip"] is not None:
        skips, kernel = [[s.skip for s in states[:INPUT_STATES]]], supernet.factorized_kernel(stacks["skip"])
        parts += normalized.add_weighted(skips, kernel, strengths[:INPUT_STATES, _SKIP])
    if in_batch:
        parts.append(supernet.as_rows(supernet.batch_to_space(supernet.as_image(sums[1], in_batch[0]))))
    return supernet.as_image(tf.add_n([sums[0], *parts]), plain[0])
