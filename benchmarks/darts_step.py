"""A DARTS search step here and of a plain Keras 3 supernet with one layer per operation: time, start, memory.

The plain supernet runs twice: with TensorFlow's default threads, and with those of the recipe. A few minutes for the
default (4 cells, 16 channels, batch 32); `--full` takes 8 cells and batch 64 as in the paper, `--smoke` 3 cells of one
node and batch 2. The sides run one after the other, each in its own process. First order: a step of the alphas, then
one of the weights.

`--full`, 2 cores of an Intel Xeon that did little else, 2026-11-25, TensorFlow 2.21.0: 4.18 s a step. Ratios to the
plain supernet: start 0.11, step 0.46 (0.46 by processor seconds), memory 0.54; with equal threads, step 0.56 (0.55).
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from benchmarks.machine import describe_machine, make_parser
from recipes.darts import supernet as supernet_darts
from recipes.darts.space import DartsSpace
from recipes.darts.supernet import CONVOLUTIONS
from recipes.darts.training import BilevelSearch
from recipes.training.supernet import EPSILON
from recipes.training.tensorflow_options import run_branches_side_by_side

STEPS = 5
OURS, PLAIN, SHARED = "ours", "plain", "plain_shared"
DILATION = {"dil_conv_3x3": 2, "dil_conv_5x5": 2}


class WeightedSum(layers.Layer):
    """The sum of operations, weighted by `columns` of one row of the softmax of the alphas."""

    def __init__(self, columns: list[int]):
        super().__init__()
        self.columns = columns

    def call(self, inputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Takes (strengths (ops,), outputs of the operations)."""
        strengths, *outputs = inputs
        return sum(strengths[column] * x for column, x in zip(self.columns, outputs, strict=True))


class PlainSupernet:
    """The same supernet written the plain way: quark0/darts' modules as Keras layers."""

    def __init__(self, like: supernet_darts.Supernet, input_shape: tuple[int, int, int]):
        self.like = like
        self.layers: dict[str, layers.Layer] = {}
        image = keras.Input(input_shape)
        tables = [keras.Input(batch_shape=like.space.shape[1:]) for _ in like.space.cells]
        stem = like.places[0].widths[0]
        x: Any = self._named("stem", layers.Conv2D(stem, 3, padding="same", use_bias=False))(image)
        x = self._named("stem_bn", layers.BatchNormalization(epsilon=EPSILON))(x)
        states = [x, x]
        for number, place in enumerate(like.places):
            table = np.ones((like.space.edges, len(place.kind.ops)), "float32")  # for a cell that is not searched
            if int(place.reducing) < len(tables):
                table = tables[int(place.reducing)]
            output = self._cell(f"cell{number}", place, table, *states)
            states = [states[1], output]
        x = layers.GlobalAveragePooling2D()(states[1])
        self.model = keras.Model([image, *tables], self._named("classifier", layers.Dense(like.classes))(x))

    def _named(self, name, layer):
        self.layers[name] = layer
        return layer

    def _conv(self, name, filters, strides=1):
        return self._named(name, layers.Conv2D(filters, 1, strides, use_bias=False))

    def _norm(self, x):
        return layers.BatchNormalization(epsilon=EPSILON, center=False, scale=False)(x)

    def _reduce(self, name, x, filters):
        x = layers.ReLU()(x)
        shifted = layers.Cropping2D(((1, 0), (1, 0)))(x)
        paths = [self._conv(f"{name}/0", filters // 2, 2)(x), self._conv(f"{name}/1", filters // 2, 2)(shifted)]
        return self._norm(layers.Concatenate()(paths))

    def _cell(self, name, place, table, oldest, newest):
        filters = place.filters
        if place.after_reduction:
            states = [self._reduce(f"{name}/input0", oldest, filters)]
        else:
            states = [self._norm(self._conv(f"{name}/input0", filters)(layers.ReLU()(oldest)))]
        states.append(self._norm(self._conv(f"{name}/input1", filters)(layers.ReLU()(newest))))
        row = 0
        for node in range(self.like.space.nodes):
            sums = []
            for source, state in enumerate(states):
                strides = 2 if place.reducing and source < 2 else 1
                ops = [op for edge, op in place.kind.edge_ops if edge == row]
                if ops:
                    outputs = self._operations(f"{name}/node{node}/state{source}", ops, state, filters, strides)
                    sums.append(WeightedSum([place.kind.ops.index(op) for op in ops])([table[row], *outputs]))
                row += 1
            states.append(layers.Add()(sums))
        return layers.Concatenate()(states[2:])

    def _operations(self, name, ops, x, filters, strides):
        found = []
        for op in ops:
            if op in CONVOLUTIONS:
                found.append(self._convolutions(f"{name}/{op}", op, x, filters, strides))
            elif op == "skip_connect":
                found.append(self._reduce(f"{name}/skip", x, filters) if strides > 1 else x)
            else:
                pool = layers.MaxPooling2D if op.startswith("max") else layers.AveragePooling2D
                y = pool(3, 1, "same")(x)
                found.append(self._norm(layers.MaxPooling2D(1, strides)(y) if strides > 1 else y))
        return found

    def _convolutions(self, name, op, x, filters, strides):
        size, repeats = CONVOLUTIONS[op]
        dilation = DILATION.get(op, 1)
        for repeat in range(repeats):
            x = layers.ReLU()(x)
            if strides > 1 and dilation > 1:
                x, strides, dilation = layers.MaxPooling2D(1, 2)(x), 1, 1
            x = layers.ZeroPadding2D(size // 2)(x) if strides > 1 else x
            padding = "valid" if strides > 1 else "same"
            depthwise = layers.DepthwiseConv2D(size, strides, padding, use_bias=False, dilation_rate=dilation)
            x = self._named(f"{name}/depthwise{repeat}", depthwise)(x)
            x = self._norm(self._conv(f"{name}/pointwise{repeat}", filters)(x))
            strides = 1
        return x

    def set_weights(self, vector: np.ndarray) -> None:
        """Sets the layers' weights from the flat vector."""
        ours = self.like.packing.unpack(vector)
        for name, layer in self.layers.items():
            layer.set_weights([*self.weights_of(name, ours), *layer.get_weights()[2:]])

    def weights_of(self, name: str, ours: Any) -> list:
        """Returns a layer's trainable weights, or their gradients, from an unpacked flat vector."""
        if name == "stem_bn":
            return [ours["stem_scale"], ours["stem_shift"]]
        if name == "classifier":
            return [ours[name], ours["classifier_bias"]]
        if name not in ours:
            weight = self.of_edge(name, ours) if "/state" in name else ours[name[:-2]][int(name[-1])]
            return [weight if weight.ndim == 4 else weight[None, None]]
        weight = ours[name]
        return [weight[None, None] if weight.ndim == 2 else weight]

    def of_edge(self, name: str, ours: Any) -> np.ndarray:
        """Returns the weight of a layer such as cell0/node1/state2/sep_conv_3x3/depthwise0 from our stacks."""
        cell, node, state, op, part = name.split("/")
        kind = self.like.places[int(cell.removeprefix("cell"))].kind
        edges = self.like.space.split_edges(np.arange(self.like.space.edges))[int(node.removeprefix("node"))]
        edge = int(edges[int(state.removeprefix("state"))])
        if op == "skip":
            skips = kind.find(edges[:2], ["skip_connect"])
            return ours[f"{cell}/{node}/skip"][skips.index((edge, "skip_connect")), int(part)]
        size, repeats = CONVOLUTIONS[op]
        if part.startswith("depthwise"):
            stack = [(e, o, n) for e, o in kind.find(range(self.like.space.edges), CONVOLUTIONS)
                     if CONVOLUTIONS[o][0] == size for n in range(CONVOLUTIONS[o][1])]  # fmt: skip
            return ours[f"{cell}/depthwise{size}"][stack.index((edge, op, int(part[-1])))]
        separable = [op for op, (_, repeats) in CONVOLUTIONS.items() if repeats > 1]
        stack = kind.find(edges, separable)
        if part == "pointwise0" and repeats > 1:
            return ours[f"{cell}/{node}/middle"][stack.index((edge, op))]
        stack += kind.find(edges, [op for op in CONVOLUTIONS if op not in separable])
        return ours[f"{cell}/{node}/last"][stack.index((edge, op))]

    def logits(self, alphas, images):
        """Returns logits in batch-statistics mode."""
        return self.model([images, *tf.unstack(tf.nn.softmax(alphas))], training=True)


def make_our_step(net: supernet_darts.Supernet, images: np.ndarray, labels: np.ndarray) -> Callable[[], object]:
    """Returns a function that takes a step of the alphas and the weights as in the recipe."""
    state = BilevelSearch(net, order=1, alpha_rate=3e-4, seed=0)
    return lambda: state.learn((images, labels), (images, labels), 0.025)


def make_plain_step(net: supernet_darts.Supernet, images: np.ndarray, labels: np.ndarray) -> Callable[[], object]:
    """Returns the same for the plain supernet, with Keras' optimizers in one traced function."""
    plain = PlainSupernet(net, images.shape[1:])
    plain.set_weights(net.packing.initial(0))
    keras_weights: Any = plain.model.trainable_weights
    keras_alphas: Any = keras.Variable(np.zeros(net.space.shape, "float32"))
    optimizers: Any = keras.optimizers.SGD(0.025, 0.9, global_clipnorm=5.0), keras.optimizers.Adam(3e-4, 0.5)
    batch: Any = tf.constant(images), tf.constant(labels)

    def gradients(variables: Any) -> Any:
        with tf.GradientTape() as tape:
            logits = plain.logits(keras_alphas.value, batch[0])
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(batch[1], logits))
        return tape.gradient(loss, variables)

    def update() -> None:
        optimizers[1].apply_gradients([(gradients([keras_alphas.value])[0], keras_alphas)])
        found = gradients([variable.value for variable in keras_weights])
        optimizers[0].apply_gradients(zip(found, keras_weights, strict=True))

    optimizers[0].build(keras_weights)
    optimizers[1].build([keras_alphas])
    return tf.function(update, autograph=False)


def measure(kind: str, cells: int, batch: int, nodes: int, start: float) -> None:
    """Takes steps of one side in this process, which started at time `start`, and prints a line."""
    net = supernet_darts.Supernet(DartsSpace(nodes), cells, 16, 10, 3)
    rng = np.random.default_rng(0)
    if kind != PLAIN:
        run_branches_side_by_side()
    images = rng.normal(size=(batch, 32, 32, 3)).astype(np.float32)
    labels = rng.integers(0, 10, batch).astype(np.int32)
    step = (make_our_step if kind == OURS else make_plain_step)(net, images, labels)
    step()
    first, first_processor = time.time() - start, time.process_time()
    seconds, processor = [], []
    for _ in range(STEPS):
        begin = time.perf_counter(), time.process_time()
        step()
        seconds.append(time.perf_counter() - begin[0])
        processor.append(time.process_time() - begin[1])
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(first, first_processor, statistics.median(seconds), statistics.median(processor), memory)


def main(cells: int, batch: int, nodes: int) -> None:
    """Runs both sides and prints the ratios."""
    print(describe_machine("tensorflow", "keras"))
    print(f"{cells} cells of {nodes} nodes, 16 channels, batch {batch}, {STEPS} steps, seed 0")
    print("In brackets: seconds of the processor")
    results = {}
    for kind in (OURS, PLAIN, SHARED):
        sizes = [str(cells), str(batch), str(nodes), str(time.time())]
        command = [sys.executable, "-m", "benchmarks.darts_step", "--in_this_process", kind, *sizes]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        results[kind] = [float(value) for value in output.split()[-5:]]
        text = "{:12} first step after {:.1f} s ({:.1f}), then {:.3f} s ({:.3f}) a step, {:.2f} GiB at most"
        print(text.format(kind, *results[kind]), flush=True)
    for kind in (PLAIN, SHARED):
        ratios = [a / b for a, b in zip(results[OURS], results[kind], strict=True)]
        print("{} / {}: start {:.2f} ({:.2f}), step {:.2f} ({:.2f}), memory {:.2f}".format(OURS, kind, *ratios))


if __name__ == "__main__":
    parser = make_parser(__doc__, smoke="3 cells of one node, batch 2")
    parser.add_argument("--full", action="store_true", help="8 cells and batch 64, as in the paper")
    parser.add_argument("--in_this_process", nargs=5, help=argparse.SUPPRESS)  # kind, cells, batch, nodes, start
    options = parser.parse_args()
    if options.in_this_process:
        kind, *sizes, start = options.in_this_process
        measure(kind, *map(int, sizes), start=float(start))
    else:
        main(*((8, 64, 4) if options.full else (3, 2, 1) if options.smoke else (4, 32, 4)))
