"""How long NASNet-A takes to build and to take its first training step, against keras.applications; ten minutes.

Each network is built in its own process, and
the sides alternate. The first step is tracing and one step of gradient descent on random images, without XLA: by Keras'
`train_on_batch` on both sides, and for ours also by the step of recipes.train. Prints medians of wall-clock and
processor seconds (all threads), and the ratios to keras.applications; imports are not counted. Processor seconds are
more reliable if other programs share the machine.
"""

import argparse
import dataclasses
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.machine import describe_machine, make_parser

REPEATS = 3
BATCH = {"mobile": 8, "large": 1, "smoke": 2}
SIDE = {"mobile": 224, "large": 331, "smoke": 32}
SMALL = {"repeats": 1, "filters": 4, "stem": "cifar", "stem_filters": 8}  # preset of the smoke size
SIDES = ("ours", "ours, recipes.train", "keras.applications")


def measure(side: str, preset: str) -> dict[str, float]:
    """Builds in this process; returns wall and processor seconds of build and first step, layers and memory."""
    import keras
    import numpy as np

    import zoo
    from recipes.training.learner import Learner
    from recipes.training.optimizer import Settings

    keras.utils.set_random_seed(0)
    applications = keras.applications
    theirs = {
        "mobile": lambda: applications.NASNetMobile(weights=None),
        "large": lambda: applications.NASNetLarge(weights=None),
        "smoke": lambda: applications.MobileNet((32, 32, 3), alpha=0.25, weights=None),
    }
    genotype, build = zoo.load("nasnet_a"), zoo.build  # imports before the timing
    genotype = dataclasses.replace(genotype, presets={**genotype.presets, "smoke": SMALL})
    rng = np.random.default_rng(0)
    images = rng.normal(size=(BATCH[preset], SIDE[preset], SIDE[preset], 3)).astype("float32")
    labels = rng.integers(1000, size=BATCH[preset], dtype="int32")
    wall, processor = [time.perf_counter()], [time.process_time()]

    def lap() -> None:
        wall.append(time.perf_counter())
        processor.append(time.process_time())

    model = (
        theirs[preset]()
        if side == SIDES[2]
        else build(genotype, preset, classes=1000, input_shape=(SIDE[preset], SIDE[preset], 3))
    )
    lap()
    if side == SIDES[1]:
        Learner(model, Settings()).step(images, labels, 0.01)  # the extra softmax costs nothing
    else:
        model.compile(keras.optimizers.SGD(0.01, 0.9), "sparse_categorical_crossentropy", jit_compile=False)
        model.train_on_batch(images, labels)
    lap()
    return {
        "build, wall": wall[1] - wall[0],
        "build, processor": processor[1] - processor[0],
        "first step, wall": wall[2] - wall[1],
        "first step, processor": processor[2] - processor[1],
        "layers": len(model.layers),
        "peak memory, GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def main(repeats: int, smoke: bool) -> None:
    """Runs all measurements and prints them."""
    print(f"{describe_machine('tensorflow', 'keras')}; medians of {repeats}")
    for preset in ["smoke"] if smoke else ["mobile", "large"]:
        results: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
        for number in range(repeats * len(SIDES)):
            side = SIDES[number % len(SIDES)]
            command = [sys.executable, "-m", "benchmarks.build", "--in_this_process", side, preset]
            done = subprocess.run(
                command, capture_output=True, text=True, check=True, cwd=Path(__file__).resolve().parent.parent
            )
            results[side].append(json.loads(done.stdout.splitlines()[-1]))
        print(f"NASNet-A {preset}, {SIDE[preset]} pixels, batch {BATCH[preset]}")
        for what in results[SIDES[0]][0]:
            medians = {side: statistics.median(result[what] for result in results[side]) for side in SIDES}
            shown = (f"{side} {value:.2f} (x {value / medians[SIDES[2]]:.2f})" for side, value in medians.items())
            print(f"  {what:<22} {', '.join(shown)}", flush=True)


if __name__ == "__main__":
    parser = make_parser(__doc__, smoke="small networks, once")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="of each measurement")
    parser.add_argument("--in_this_process", nargs=2, help=argparse.SUPPRESS)  # side and preset
    options = parser.parse_args()
    if options.in_this_process:
        print(json.dumps(measure(*options.in_this_process)))
    else:
        main(1 if options.smoke else options.repeats, options.smoke)
