"""A training step of ENAS' shared weights on one path against the same fixed network of zoo.build.

Four minutes for both spaces: 3 + 2 cells of 20 filters (micro), 6 layers of 36 (macro), batch 96 at 32 x 32. `--full`
has the paper's supernets and batches, and needs 16 GB. For each random path, both sides take alternating steps in this
process, so that another program on the machine slows both. The fixed network has the same optimizer; it is measured
with and without grappler's rewrites, and the faster of the two is compared.
"""

import contextlib
import statistics
import time
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import zoo
from benchmarks.machine import describe_machine, make_parser, one_of
from recipes.enas.macro import MacroSupernet
from recipes.enas.micro import MicroSupernet
from recipes.enas.space import ChainSpace, MicroSpace
from recipes.enas.training import SharedWeights
from recipes.training import tensorflow_options
from recipes.training.learner import Learner
from recipes.training.optimizer import Optimizer, Settings
from zoo.genotype import Genotype

SPACES = ("micro", "macro")
STEPS = 5
SIDE = 32


def time_call(function: Any) -> tuple[float, float]:
    """Returns the wall and the processor seconds of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    """Measures the spaces that the command line names, or both."""
    parser = make_parser(__doc__, smoke="one cell or three layers, batch 2")
    parser.add_argument("spaces", nargs="*", type=one_of(SPACES), metavar="micro|macro", help="both by default")
    parser.add_argument("--full", action="store_true", help="the paper's supernets and batches; needs 16 GB")
    parser.add_argument("--paths", type=int, default=2, help="random paths to compare")
    options = parser.parse_args()
    print(describe_machine("tensorflow", "keras"))
    for space in options.spaces or SPACES:
        compare(space == "macro", options.full, options.smoke, options.paths)


def compare(macro: bool, full: bool, smoke: bool, paths: int) -> None:
    """Prints both sides' seconds and their ratio for each path of a space."""
    batch = (128 if macro else 160) if full else 2 if smoke else 96
    if macro:
        net: Any = MacroSupernet(ChainSpace(12 if full else 3 if smoke else 6), 36, 10, 3)
    else:
        net = MicroSupernet(MicroSpace(5), 6 if full else 1 if smoke else 3, 20, 10, 3)
    print(f"{'macro' if macro else 'micro'}, {net.packing.size:,} shared weights, batch {batch}, {STEPS} steps, seed 0")
    rng = np.random.default_rng(0)
    images = tf.constant(rng.normal(size=(batch, SIDE, SIDE, 3)), tf.float32)
    labels = tf.constant(rng.integers(0, 10, batch), tf.int32)
    path = net.space.draw_path(rng)
    with tensorflow_options.without_rewrites():  # as the recipe does
        shared = SharedWeights(net, (SIDE, SIDE, 3))
        wall, cpu = time_call(lambda: shared.step(path, images, labels, 0.05, [0, 0]))
    print(f"shared weights: first step after {wall:.1f} s ({cpu:.1f} s of processor)", flush=True)
    ratios = []
    for number in range(paths):
        path = net.space.draw_path(rng)
        fixed = []
        for rewritten in (False, True):
            optimizer = Optimizer(nesterov=True, weight_decay=2e-4, clip=5.0)
            learner = Learner(build_fixed(net, path), Settings(optimizer=optimizer))

            def step(learner: Any = learner) -> float:
                return float(learner.step(images, labels, 0.05)[0])

            with contextlib.nullcontext() if rewritten else tensorflow_options.without_rewrites():
                wall, cpu = time_call(step)
            print(f"fixed network, {'with' if rewritten else 'without'} rewrites: first step after {wall:.1f} s "
                  f"({cpu:.1f} s of processor)", flush=True)  # fmt: skip
            fixed.append(step)
        sides = [lambda path=path: shared.step(path, images, labels, 0.05, [0, 1]), *fixed]
        times = []
        for _ in range(STEPS):
            with (
                tensorflow_options.without_rewrites()
            ):  # each side in its own mode: in the other, TensorFlow would prepare it again
                times.append([time_call(side) for side in sides[:2]])
            times[-1].append(time_call(sides[2]))
        wall, cpu = ([statistics.median(row[side][kind] for row in times) for side in range(3)] for kind in (0, 1))
        spread = [max(row[side][0] for row in times) - min(row[side][0] for row in times) for side in range(3)]
        ratios.append(wall[0] / min(wall[1:]))
        print(f"path {number}: shared {wall[0]:.3f} s (spread {spread[0]:.3f}), fixed {wall[1]:.3f} ({spread[1]:.3f}) "
              f"and, rewritten, {wall[2]:.3f} ({spread[2]:.3f}); ratio {ratios[-1]:.2f}, in processor seconds "
              f"{cpu[0] / min(cpu[1:]):.2f}", flush=True)  # fmt: skip
    print(f"ratio of a step: median {statistics.median(ratios):.2f}, largest {max(ratios):.2f}")


def build_fixed(net: Any, path: np.ndarray) -> keras.Model:
    """Returns the network of a path as an ordinary model."""
    micro = isinstance(net, MicroSupernet)
    scale = {"cells": net.cells, "filters": net.filters} if micro else {"filters": net.widths[0], "separable": True}
    genotype = Genotype("path", "enas", net.space.decode(path), {}, {"search": scale})
    return zoo.build(genotype, classes=10, input_shape=(SIDE, SIDE, 3), classifier_activation=None, dropout_rate=0.1)


if __name__ == "__main__":
    main()
