"""The fixed cost of a child network (build, trace, first step) here and with plain keras.Model.compile/fit.

A few minutes, with `--smoke` one: a cell of one node. The networks are NASNet cells of a search's size. The sides run
one after the other, each in its own process, without counting imports and a first small network. Why ours takes less
(recipes/training/child_training.py):

* grappler's rewrites are off while the step is traced: for a graph of thousands of nodes that runs a few hundred times,
  they take longer than they save;
* only the training step is traced: metrics are computed from its outputs, and the evaluation runs eagerly;
* weight updates and batch normalisation are single operations instead of dozens;
* the step takes images from an array, without a tf.data pipeline.
"""

import argparse
import statistics
import subprocess
import sys
import time

from benchmarks.machine import describe_machine, make_parser

REPEATS = 3
NODES, FILTERS, BATCH, SIDE, CLASSES = 3, 8, 64, 14, 10
SEED = 0


def make_builders(nodes: int, repeats: int):
    """Yields functions that build networks of random cells: one for the warm-up, then those to measure."""
    import numpy as np

    import zoo
    from recipes.engine import children as child_networks
    from recipes.engine import spaces

    rng = np.random.default_rng(SEED)
    space, presets = spaces.nasnet(nodes), child_networks.cell_presets(1, FILTERS)
    for _ in range(repeats + 1):
        values = {decision.name: decision.choices[rng.integers(len(decision.choices))] for decision in space.decisions}
        genotype = zoo.Genotype("child", "nasnet", space.body(values), presets=presets)
        size = {"classes": CLASSES, "input_shape": (SIDE, SIDE, 1)}
        yield lambda genotype=genotype, size=size: zoo.build(genotype, "search", **size, classifier_activation=None)


def train_ours(build, images, labels) -> None:
    """Builds a network and takes one step, as recipes.training.child_training does."""
    from recipes.training import child_training
    from recipes.training.learner import Learner
    from recipes.training.tensorflow_options import without_rewrites

    with without_rewrites():
        learner = Learner(build(), child_training.make_child_settings(len(images), 1, BATCH, 0.05, 1e-4))
        float(learner.step(images, labels, 0.05)[0])


def train_plain(build, images, labels) -> None:
    """Builds the same network and takes one step with compile and fit."""
    import keras

    model = build()
    model.compile(
        keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True, weight_decay=1e-4, global_clipnorm=5.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(images, labels, batch_size=BATCH, epochs=1, verbose=0)


def measure(side: str, nodes: int, repeats: int) -> None:
    """Prints, for each network, wall and processor seconds."""
    import numpy as np

    from recipes.engine import tuner

    rng = np.random.default_rng(SEED)
    images = rng.random((BATCH, SIDE, SIDE, 1), np.float32)
    labels = rng.integers(0, CLASSES, BATCH).astype(np.int32)
    run = {"ours": train_ours, "plain": train_plain}[side]
    for number, build in enumerate(make_builders(nodes, repeats)):
        wall, processor = time.perf_counter(), time.process_time()
        run(build, images, labels)
        if number:
            print(time.perf_counter() - wall, time.process_time() - processor, flush=True)
        tuner.forget_models()


def main(nodes: int, repeats: int) -> None:
    """Runs both sides and prints the ratios."""
    print(f"{describe_machine('tensorflow', 'keras')}; seed {SEED}")
    print(f"{repeats} random NASNet cells of {nodes} nodes, 1 repeat, {FILTERS} filters, batch {BATCH}")
    medians = {}
    for side in ("ours", "plain"):
        command = [sys.executable, "-m", "benchmarks.trial_cost", "--in_this_process", side, str(nodes), str(repeats)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        rows = [[float(number) for number in line.split()] for line in output.splitlines()]
        wall, processor = zip(*rows, strict=True)
        medians[side] = statistics.median(wall), statistics.median(processor)
        print(
            f"{side:5} {medians[side][0]:.2f} s a network ({min(wall):.2f} to {max(wall):.2f}), "
            f"{medians[side][1]:.2f} s of processor ({min(processor):.2f} to {max(processor):.2f})",
            flush=True,
        )
    wall, processor = (ours / plain for ours, plain in zip(medians["ours"], medians["plain"], strict=True))
    print(f"ratio ours to plain: {wall:.2f} on the clock, {processor:.2f} of processor time (target: at most 0.5)")


if __name__ == "__main__":
    parser = make_parser(__doc__, smoke="a cell of one node, once")
    parser.add_argument("--in_this_process", nargs=3, help=argparse.SUPPRESS)  # side, nodes, repeats
    options = parser.parse_args()
    if options.in_this_process:
        side, *counts = options.in_this_process
        measure(side, *map(int, counts))
    else:
        main(*(1, 1) if options.smoke else (NODES, REPEATS))
