"""The supernet of ENAS' micro space: one set of weights for all cells of the space, of which a path runs one.

Given a path, the supernet computes the same as the network that zoo/families/enas.py builds from the path's cells. As
in melodyguan/enas, there is a weight for each cell, node, edge, operation and state that the edge reads.

Departure: that code searches with another network than it trains afterwards (reductions before the cells, loose ends
through one more 1x1 convolution); here they are the same, so that the network that is scored is the one built.
"""

import dataclasses
import functools
from typing import Any

import numpy as np
import tensorflow as tf

from recipes.enas import supernet
from recipes.enas.space import MicroSpace
from recipes.enas.supernet import Pass, norm_shapes
from recipes.training.supernet import Packing, Shape, pointwise
from zoo.formats.enas import MICRO_OPS
from zoo.genotype import INPUT_STATES

SEPARABLE = {"sep_conv_3x3": 3, "sep_conv_5x5": 5}
REPEATS = 2  # of the depthwise and the 1x1 convolution in a separable convolution


@dataclasses.dataclass(frozen=True)
class CellPlace:
    """A cell's place in the network: its width, whether it reduces, and its inputs."""

    filters: int
    reducing: bool
    after_reduction: bool
    oldest: tuple[int, int]  # h[c-2], as number of concatenated states and channels per state
    newest: tuple[int, int]  # h[c-1]


@dataclasses.dataclass(frozen=True)
class _Output:
    """The output of a cell or the stem: a concatenation of states."""

    tensor: Any
    chosen: Any = None  # the numbers of these states; None for all
    shared: bool = False  # whether a kernel that reads it has a part that all states share; see share_rows

    def kernel(self, weight: Any) -> Any:
        """Returns the rows (inputs, outputs) of a weight (.., states, channels, outputs) for the chosen states."""
        if self.chosen is not None:
            weight = share_rows(weight) if self.shared else weight
            weight = tf.gather(weight, self.chosen, axis=-3)
        *front, _, channels, outputs = weight.shape
        count = weight.shape[-3] if self.chosen is None else tf.shape(self.chosen)[0]
        return tf.ensure_shape(tf.reshape(weight, [*front, count * channels, outputs]), [*front, None, outputs])


class MicroSupernet:
    """A network as a function of a weight vector, a path of the space, and images."""

    def __init__(
        self, space: MicroSpace, cells: int, filters: int, classes: int, channels: int, shared_joins: bool = False
    ):
        """Lists the shapes of all weights, `packing`.

        Args:
            space: the cells that are searched.
            cells: number of normal cells; there are two reduction cells besides.
            filters: channels of a node before the first reduction.
            classes, channels: of the images.
            shared_joins: whether the 1x1 convolutions that read a cell's output, the concatenation of its loose ends,
                have a part that all states share; see share_rows.
        """
        self.space, self.classes, self.filters, self.cells = space, classes, filters, cells
        self.shared_joins = shared_joins
        nodes = space.nodes
        self.states = INPUT_STATES + nodes  # per cell
        self.places: list[CellPlace] = []
        self._edges = {strides: supernet.trace_once(functools.partial(_run_op, strides)) for strides in (1, 2)}
        third, outputs, before = cells // 3, [(3, filters), (3, filters)], False
        for number in range(cells + 2):
            reducing = number in (third, 2 * third + 1)
            filters *= 2 if reducing else 1
            self.places.append(CellPlace(filters, reducing, before, *outputs))
            outputs, before = [outputs[1], (self.states, filters)], reducing
        # the row of edge (node, side) in a stacked weight, if it reads state 0; add the number of the state it reads
        self.first_rows = np.array([[2 * sum(range(INPUT_STATES, INPUT_STATES + node)) + side * (INPUT_STATES + node)
                                      for side in (0, 1)] for node in range(nodes)], np.int32)  # fmt: skip
        self._rows = 2 * sum(range(INPUT_STATES, INPUT_STATES + nodes))
        stem = 3 * self.filters
        shapes = [Shape("stem", (3, 3, channels, stem), 9 * channels), *norm_shapes("stem", (), stem)]
        for number, place in enumerate(self.places):
            shapes += self._cell_shapes(f"cell{number}", place)
        states, filters = outputs[1]
        shapes.append(Shape("classifier", (states, filters, classes), states * filters))
        self.packing = Packing(shapes)

    def _cell_shapes(self, name: str, place: CellPlace) -> list[Shape]:
        filters, shapes = place.filters, []
        halved = (2, *place.oldest, filters // 2) if place.after_reduction else (*place.oldest, filters)
        for part, shape in (("input0", halved), ("calibrate", (*place.newest, filters))):
            shapes.append(Shape(f"{name}/{part}", shape, shape[-3] * shape[-2]))
            shapes += norm_shapes(f"{name}/{part}", (), filters)
        shapes += [Shape(f"{name}/input1", (filters, filters), filters), *norm_shapes(f"{name}/input1", (), filters)]
        for op, size in SEPARABLE.items():
            stack = (self._rows, REPEATS)
            shapes.append(Shape(f"{name}/{op}/depthwise", (*stack, size, size, filters, 1), size * size))
            shapes.append(Shape(f"{name}/{op}/pointwise", (*stack, filters, filters), filters))
            shapes += norm_shapes(f"{name}/{op}", stack, filters)
        if place.reducing:
            stack = (self._rows,)
            shapes.append(Shape(f"{name}/skip_connect", (*stack, 2, filters, filters // 2), filters))
            shapes += norm_shapes(f"{name}/skip_connect", stack, filters)
            for end in (f"{name}/output{state}" for state in range(INPUT_STATES)):
                shapes += [Shape(end, (2, filters, filters // 2), filters), *norm_shapes(end, (), filters)]
        return shapes

    def logits(self, vector: Any, path: Any, images: Any, drop: Any = None) -> Any:
        """Returns logits; see PathSupernet."""
        run = Pass(self, vector)
        stem = run.stem(images)
        outputs = [_Output(stem), _Output(stem)]
        for number, place in enumerate(self.places):
            name = f"cell{number}"
            newest = self._calibrate(run, f"{name}/calibrate", place.newest, place.filters, outputs[1])
            newest = pointwise(tf.nn.relu(newest), run.weights[f"{name}/input1"])
            newest = run.norm(newest, f"{name}/input1")
            oldest = self._align_oldest(run, name, place, outputs[0])
            part = path[int(place.reducing)]
            outputs = [outputs[1], self._cell(run, name, place, part, (oldest, newest))]
        return supernet.classify(tf.nn.relu(outputs[1].tensor), outputs[1].kernel(run.weights["classifier"]), drop)

    def _calibrate(self, run: Pass, name: str, source: tuple[int, int], filters: int, output: _Output) -> Any:
        """Returns a cell's output with the width of the next cell: unchanged if equal, else by ReLU, 1x1 and BN."""
        height, width = output.tensor.shape[1:3]

        def project() -> Any:
            return run.norm(pointwise(tf.nn.relu(output.tensor), output.kernel(run.weights[name])), name)

        states, channels = source
        count = filters // channels if filters % channels == 0 else states + 1
        if output.chosen is None:
            x = output.tensor if count == states else project()
        else:
            equal = tf.equal(tf.shape(output.chosen)[0], count)
            x = tf.cond(equal, lambda: tf.identity(output.tensor), project) if count <= states else project()
        return tf.ensure_shape(x, [None, height, width, filters])

    def _align_oldest(self, run: Pass, name: str, place: CellPlace, output: _Output) -> Any:
        """Returns h[c-2] with the size and width of the cell."""
        name = f"{name}/input0"
        if not place.after_reduction:
            return self._calibrate(run, name, place.oldest, place.filters, output)
        return run.norm(supernet.reduce_factorized(tf.nn.relu(output.tensor), output.kernel(run.weights[name])), name)

    def _cell(self, run: Pass, name: str, place: CellPlace, path: Any, inputs: Any) -> _Output:
        """Returns the output of a cell for its part of the path, (nodes, 2, 2)."""
        sides, nodes = inputs[1].shape[1:3], self.space.nodes
        after = [-(-side // 2) for side in sides] if place.reducing else sides
        unread = self._find_unread(path)
        states, unhalved = supernet.make_states(self.states, after, place.filters), None
        if place.reducing:  # the inputs are larger than the other states
            unhalved = supernet.make_states(INPUT_STATES, sides, place.filters)
            for number, x in enumerate(inputs):
                unhalved = unhalved.write(number, x)
            inputs = [self._halve_unread(run, f"{name}/output{n}", x, unread[n]) for n, x in enumerate(inputs)]
        for number, x in enumerate(inputs):
            states = states.write(number, x)
        rows = tf.reshape(self.first_rows + path[..., 0], [-1])
        chosen = {key: tf.unstack(tf.gather(stack, rows)) for key, stack in find_stacks(name, run.weights).items()}
        for node in range(nodes):
            sums = []
            for side in (0, 1):
                kernels = {key: parts[2 * node + side] for key, parts in chosen.items()}
                x = self._run_edge(node, path[node, side], unhalved, states, kernels)
                sums.append(tf.ensure_shape(x, [None, *after, place.filters]))
            states = states.write(INPUT_STATES + node, sums[0] + sums[1])
        loose = tf.cast(tf.where(unread)[:, 0], tf.int32)
        return _Output(supernet.join(states, loose, nodes + 1), loose, self.shared_joins)

    def _run_edge(self, node: int, choice: Any, unhalved: Any, states: tf.TensorArray, kernels: Any) -> Any:
        """Runs one edge of a node; `unhalved` are the inputs of a reduction cell, which are read at stride 2."""
        state, op = choice[0], choice[1]
        if unhalved is None:
            return self._edges[1](op, states.read(state), None, kernels)
        if node == 0:
            return self._edges[2](op, unhalved.read(state), None, kernels)
        inner = states.read(tf.maximum(state, INPUT_STATES))
        op += len(MICRO_OPS) * tf.cast(state >= INPUT_STATES, tf.int32)
        return self._edges[2](op, unhalved.read(tf.minimum(state, INPUT_STATES - 1)), inner, kernels)

    def _halve_unread(self, run: Pass, name: str, x: Any, unread: Any) -> Any:
        """Returns an input of a reduction cell for its output: halved if no node reads it, else zeros, unused."""

        def halve() -> Any:
            return run.norm(supernet.reduce_factorized(x, run.weights[name]), name)

        def make_zeros() -> Any:
            height, width = (-(-side // 2) for side in x.shape[1:3])
            return tf.zeros([tf.shape(x)[0], height, width, x.shape[-1]])

        return tf.cond(unread, halve, make_zeros)

    def _find_unread(self, path: Any) -> Any:
        """Returns for each state of a cell whether no node reads it."""
        return tf.reduce_sum(tf.one_hot(tf.reshape(path[..., 0], [-1]), self.states), 0) < 0.5


def share_rows(weight: Any) -> Any:
    """Adds to each state's rows of a weight (.., states, channels, outputs) the sum of all states' rows, and rescales.

    The variance of the weight is kept. Every step then changes the rows of all states, and those of the path's loose
    ends most. Otherwise the rows of states that are rarely loose ends would hardly learn, and cells with more loose
    ends would look worse than they are: on the table enas, Kendall's tau is 0.38 with shared rows and 0.21 without
    (seed 10, by the loss).
    """
    states = weight.shape[-3]
    return (weight + tf.reduce_sum(weight, axis=-3, keepdims=True)) / (states + 3) ** 0.5


def find_stacks(cell: str, weights: Any) -> dict[str, Any]:
    """Returns the stacked weights of a cell, which have a row per edge and state, by their name within the cell."""
    names = [f"{op}/{part}" for op in SEPARABLE for part in ("depthwise", "pointwise", "scale", "shift")]
    names += ["skip_connect", "skip_connect/scale", "skip_connect/shift"]
    return {name: weights[f"{cell}/{name}"] for name in names if f"{cell}/{name}" in weights}


def _run_op(strides: int, op: Any, x: Any, inner: Any, kernels: Any) -> Any:
    """Runs an operation of MICRO_OPS: number `op` on `x`, or number `op` - len(MICRO_OPS), at stride 1, on `inner`."""
    operations = _list_operations(x, kernels, strides)
    return tf.switch_case(op, operations + ([] if inner is None else _list_operations(inner, kernels, 1)))


def _list_operations(x: Any, kernels: Any, strides: int) -> list[Any]:
    """Returns the operations on a state, in the order of MICRO_OPS, as functions without arguments."""

    def separable(op: str) -> Any:
        y = x
        for repeat in range(REPEATS):
            step = strides if repeat == 0 else 1
            depthwise = kernels[f"{op}/depthwise"][repeat]
            y = tf.nn.depthwise_conv2d(tf.nn.relu(y), depthwise, [1, step, step, 1], "SAME")
            y = pointwise(y, kernels[f"{op}/pointwise"][repeat])
            y = supernet.normalize(y, kernels[f"{op}/scale"][repeat], kernels[f"{op}/shift"][repeat])
        return y

    def skip() -> Any:
        if strides == 1:
            return tf.identity(x)
        y = supernet.reduce_factorized(x, kernels["skip_connect"])
        return supernet.normalize(y, kernels["skip_connect/scale"], kernels["skip_connect/shift"])

    return [
        lambda: separable("sep_conv_3x3"),
        lambda: separable("sep_conv_5x5"),
        lambda: tf.nn.avg_pool2d(x, 3, strides, "SAME"),
        lambda: supernet.max_pool(x, strides),
        skip,
    ]
