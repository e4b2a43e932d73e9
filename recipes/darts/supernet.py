"""The supernet of DARTS: each edge applies all operations and weights their outputs by the softmax of its alphas.

A node computes `sum(w * op(x) for w, op in zip(weights, ops))`, over the operations of all edges into it. The results
equal those of quark0/darts (cnn/model_search.py), but take far fewer operations:

- What all edges from a state need is computed once per state: ReLU, pools, and reordered pixels (`_State`).
- The pools and the skip connection of an edge are one matrix product.
- Each 1x1 convolution, its batch normalisation and its weight w are one matrix product
  (`recipes.training.supernet.add_weighted`).

docs/darts_supernet.md derives this.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from recipes.darts.space import OPS, DartsSpace
from recipes.training import supernet
from recipes.training.supernet import Packing, Shape
from zoo.genotype import INPUT_STATES

# operation -> kernel size, number of depthwise convolutions
CONVOLUTIONS = {"sep_conv_3x3": (3, 2), "sep_conv_5x5": (5, 2), "dil_conv_3x3": (3, 1), "dil_conv_5x5": (5, 1)}
_SEPARABLE, _DILATED = tuple(CONVOLUTIONS)[:2], tuple(CONVOLUTIONS)[2:]
_NO_CROPS = [[0, 0], [0, 0]]
_SHARED = ("max_pool_3x3", "avg_pool_3x3", "skip_connect")  # one matrix product per edge does all three


@dataclasses.dataclass(frozen=True)
class CellKind:
    """The operations of all normal cells, or of all reduction cells."""

    ops: tuple[str, ...]  # the columns of their strengths
    edge_ops: tuple[tuple[int, str], ...]  # each operation on each edge, without "none"

    def find(self, edges: Sequence[int], ops: Iterable[str]) -> list[tuple[int, str]]:
        """Returns those of `edge_ops` that are on one of these edges and one of these operations."""
        return [(edge, op) for edge, op in self.edge_ops if edge in edges and op in ops]


@dataclasses.dataclass(frozen=True)
class CellPlace:
    """A cell's place in the network: its kind, its width, and the sizes of its inputs h[c-2] and h[c-1]."""

    kind: CellKind
    filters: int
    reducing: bool
    after_reduction: bool  # whether the cell before reduces, so that h[c-2] is twice as large as h[c-1]
    widths: tuple[int, int]  # channels of h[c-2] and h[c-1]


class Supernet:
    """A network whose edges apply all operations: a function of a weight vector, strengths and images."""

    def __init__(self, space: DartsSpace, cells: int, filters: int, classes: int, channels: int):
        """Lists the shapes of all weights, `packing`.

        Args:
            space: the cells that are searched.
            cells: number of cells, at least 3; those at one third and two thirds reduce.
            filters: channels of a node before the first reduction; the stem has three times as many.
            classes, channels: of the images.
        """
        self.space, self.classes = space, classes
        ops = (OPS[0], *space.ops)
        normal = reduction = CellKind(ops, tuple((edge, op) for edge in range(space.edges) for op in space.ops))
        self._fixed = None  # strengths of a reduction cell that is not searched
        if space.fixed_reduction:
            used = {edge.op for node in space.fixed_cell().nodes for edge in node.edges}
            ops = tuple(op for op in OPS if op in used)
            self._fixed = space.mark_edges(space.fixed_cell(), ops)
            reduction = CellKind(ops, tuple((int(edge), ops[column]) for edge, column in np.argwhere(self._fixed)))
        self.places: list[CellPlace] = []
        stem = 3 * filters
        widths, before = (stem, stem), False
        for number in range(cells):
            reducing = number in (cells // 3, 2 * cells // 3)
            filters *= 2 if reducing else 1
            self.places.append(CellPlace(reduction if reducing else normal, filters, reducing, before, widths))
            widths, before = (widths[1], space.nodes * filters), reducing
        shapes = [Shape("stem", (3, 3, channels, stem), 9 * channels)]
        shapes += [Shape("stem_scale", (stem,), constant=1.0), Shape("stem_shift", (stem,))]
        for number, place in enumerate(self.places):
            shapes += self._cell_shapes(f"cell{number}", place)
        shapes += [Shape("classifier", (widths[1], classes), widths[1]), Shape("classifier_bias", (classes,))]
        self.packing = Packing(shapes)

    def _cell_shapes(self, name: str, place: CellPlace) -> list[Shape]:
        """Returns the shapes of a cell's weights; kernels of one size are stacked, for one operation unstacks them."""
        filters, kind = place.filters, place.kind
        oldest = (2, place.widths[0], filters // 2) if place.after_reduction else (place.widths[0], filters)
        shapes = [Shape(f"{name}/input0", oldest, place.widths[0])]
        shapes.append(Shape(f"{name}/input1", (place.widths[1], filters), place.widths[1]))
        for size in (3, 5):
            count = sum(CONVOLUTIONS[op][1] for _, op in kind.edge_ops if CONVOLUTIONS.get(op, (0,))[0] == size)
            shapes.append(Shape(f"{name}/depthwise{size}", (count, size, size, filters, 1), size * size))
        for node, edges in enumerate(self.space.split_edges(np.arange(self.space.edges))):
            skipping = edges[: INPUT_STATES if place.reducing else 0]
            for part, stack, shape in (
                ("middle", kind.find(edges, _SEPARABLE), (filters, filters)),
                ("last", kind.find(edges, CONVOLUTIONS), (filters, filters)),
                ("skip", kind.find(skipping, ["skip_connect"]), (2, filters, filters // 2)),
            ):
                shapes.append(Shape(f"{name}/node{node}/{part}", (len(stack), *shape), filters))
        return [shape for shape in shapes if shape.size]

    def logits(self, vector: Any, strengths: Any, images: Any) -> Any:
        """Returns the logits (batch, classes) for weights (packing.size,), strengths (space.shape) and images."""
        weights, tables = self.packing.unpack(vector), tf.unstack(strengths)
        tables += [] if self._fixed is None else [tf.constant(self._fixed)]
        x = tf.nn.conv2d(images, weights["stem"], 1, "SAME")
        x = supernet.normalize(x) * weights["stem_scale"] + weights["stem_shift"]
        oldest, newest = x, x
        for number, place in enumerate(self.places):
            output = self._cell(f"cell{number}", place, weights, tables[int(place.reducing)], oldest, newest)
            oldest, newest = newest, output
        return tf.matmul(tf.reduce_mean(newest, [1, 2]), weights["classifier"]) + weights["classifier_bias"]

    def _cell(self, name: str, place: CellPlace, weights: Any, strengths: Any, oldest: Any, newest: Any) -> Any:
        """Returns the output of a cell; `oldest` is h[c-2], `newest` h[c-1], and `strengths` (edges, ops)."""
        oldest, weight = tf.nn.relu(oldest), weights[f"{name}/input0"]
        if place.after_reduction:
            oldest, weight = supernet.factorized_input(oldest), supernet.factorized_kernel(weight)
        kind, filters = place.kind, place.filters
        states = [_State(supernet.normalize(supernet.pointwise(oldest, weight)), kind.ops, place.reducing)]
        newest = supernet.pointwise(tf.nn.relu(newest), weights[f"{name}/input1"])
        states.append(_State(supernet.normalize(newest), kind.ops, place.reducing))
        unstacked = {size: iter(tf.unstack(weights.get(f"{name}/depthwise{size}", ()))) for size in (3, 5)}
        kernels = {}
        for edge, op in kind.find(range(self.space.edges), CONVOLUTIONS):
            size, count = CONVOLUTIONS[op]
            kernels[edge, op] = [next(unstacked[size]) for _ in range(count)]
        shared: list[Any] = []  # for each edge the matrix [s_1 I; s_2 I; s_3 I] of its pools and its skip connection
        if columns := [column for column, op in enumerate(kind.ops) if op in _SHARED]:
            matrices = strengths[:, columns[0] : columns[-1] + 1, None, None] * tf.eye(filters)
            shared = tf.unstack(tf.reshape(matrices, [-1, len(columns) * filters, filters]))
        for node, edges in enumerate(self.space.split_edges(np.arange(self.space.edges))):
            stacks = {part: weights.get(f"{name}/node{node}/{part}") for part in ("middle", "last", "skip")}
            reads = dict(zip(edges.tolist(), states, strict=True))
            states.append(_State(_node(kind, reads, strengths, kernels, shared, stacks), kind.ops, reducing=False))
        return tf.concat([state.tensor for state in states[INPUT_STATES:]], -1)


class _State:
    """A state, and what all edges from it need: its ReLU, its normalised pools, and its pixels in other orders."""

    def __init__(self, tensor: Any, ops: Sequence[str], reducing: bool):
        self.tensor, self.strides = tensor, 2 if reducing else 1
        self.sides = [-(-side // self.strides) for side in tensor.shape[1:3]]  # height and width after an edge
        self.relu = tf.nn.relu(tensor)
        pools = {"max_pool_3x3": tf.nn.max_pool2d, "avg_pool_3x3": tf.nn.avg_pool2d}
        pools = [pool(tensor, 3, 1, "SAME") for op, pool in pools.items() if op in ops]
        self.permuted = False  # whether `dilated` has its pixels in the order of tf.space_to_batch
        if reducing:  # PyTorch's strided windows are centred on the pixels 0, 2, ..
            pools = [supernet.every_second(pool) for pool in pools]
            halved = supernet.factorized_input(self.relu)
            self.skip = supernet.as_rows(halved)  # a strided skip connection is a factorized reduction
            self.dilated = halved[..., : tensor.shape[-1]]  # strided dilated convolutions read every second pixel
        else:
            self.permuted = not any(side % 2 for side in tensor.shape[1:3])
            self.dilated = tf.space_to_batch(self.relu, [2, 2], _NO_CROPS) if self.permuted else self.relu
        shared = [supernet.normalize(pool) for pool in pools]
        shared += [tensor] if "skip_connect" in ops and not reducing else []
        self.shared = supernet.as_rows(tf.concat(shared, -1)) if shared else None


def _node(
    kind: CellKind, reads: dict[int, _State], strengths: Any, kernels: Any, shared: Any, stacks: dict[str, Any]
) -> Any:
    """Returns sum(w * op(x) for w, op in zip(strengths, ops)), over the operations of all edges into one node.

    Args:
        kind: of the cell.
        reads: edge into the node -> the state that it reads.
        strengths: (edges, ops) of the cell.
        kernels: edge and operation -> kernels of its depthwise convolutions.
        shared: the matrix of pools and skip connection of each edge.
        stacks: the node's 1x1 convolutions: "middle" and "last" ones of edges, and "skip", of strided skip connections.
    """

    def strengths_of(edge_ops: Any) -> Any:
        places = [edge * len(kind.ops) + kind.ops.index(op) for edge, op in edge_ops]
        return tf.gather(tf.reshape(strengths, [-1]), places)

    separable, dilated = (kind.find(list(reads), ops) for ops in (_SEPARABLE, _DILATED))
    first = [supernet.depthwise(reads[edge].relu, kernels[edge, op][0], reads[edge].strides) for edge, op in separable]
    middle = supernet.multiply_normalized([supernet.as_rows(x) for x in first], stacks["middle"]) if first else []
    plain = [
        supernet.depthwise(tf.nn.relu(supernet.as_image(x, first[0])), kernels[each][1])
        for x, each in zip(middle, separable, strict=True)
    ]
    permuted = []  # pixels in the order of tf.space_to_batch, on which neither statistics nor sums depend
    for edge, op in dilated:
        state = reads[edge]
        dilation = 2 if state.strides == 1 and not state.permuted else 1
        x = supernet.depthwise(state.dilated, kernels[edge, op][0], dilation=dilation)
        (permuted if state.permuted else plain).append(x)
    groups = [[supernet.as_rows(x) for x in group] for group in (plain, permuted) if group]
    parts = supernet.add_weighted(groups, stacks["last"], strengths_of(separable + dilated)) if groups else []
    if permuted:
        image = tf.batch_to_space(supernet.as_image(parts[-1], permuted[0]), [2, 2], _NO_CROPS)
        parts[-1] = supernet.as_rows(image)
    for edge, state in reads.items():
        if state.shared is not None and kind.find([edge], _SHARED):
            parts.append(tf.matmul(state.shared, shared[edge][: state.shared.shape[1]]))
    if skips := kind.find([edge for edge, state in reads.items() if state.strides > 1], ["skip_connect"]):
        kernel = supernet.factorized_kernel(stacks["skip"])
        parts += supernet.add_weighted([[reads[edge].skip for edge, _ in skips]], kernel, strengths_of(skips))
    sides = next(iter(reads.values())).sides
    return tf.reshape(tf.add_n(parts), [-1, *sides, parts[0].shape[-1]])
