"""Scoring sub-networks of TinyNAS' once-for-all network, against inference of the stand-alone networks.

A few minutes, with `--smoke` one: two networks once. Both sides run the same 2,000 images of 28 x 28 in batches of 500,
alternately in the same process; the stand-alone network is the flat Keras model with the inherited weights, compiled by
tf.function. Building and tracing are timed separately; for scoring they happen once for all sub-networks. Then 1,000
checks of the memory limits.
"""

import statistics
import time

import numpy as np
import tensorflow as tf

from benchmarks.machine import describe_machine, make_parser
from recipes.tinynas.children import InheritedAccuracy, build_standalone
from recipes.tinynas.needs import Budget, predict_needs
from recipes.tinynas.space import SMALL_STRIDES, TinySpace
from recipes.tinynas.supernet import Supernet
from zoo.genotype import Genotype

IMAGES, BATCH, REPEATS, NETWORKS = 2000, 500, 9, 5
SHAPE, CLASSES = (28, 28, 1), 10


def time_call(function):
    """Returns the wall-clock seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measure(scorer, values, images, repeats):
    """Returns seconds of scoring, recalibration, stand-alone inference and building, then ratios and difference."""
    net, space = scorer.net, scorer.net.space
    preset = {"search": {"input_shape": list(SHAPE), "classes": CLASSES}}
    moments = scorer.statistics(values)
    start = time.perf_counter()
    genotype = Genotype("found", "mcunet", space.body(values), {}, preset)
    model = build_standalone(net, scorer.weights[0].numpy(), moments, values, genotype)
    predict = tf.function(lambda image: model(image, training=False), [tf.TensorSpec([None, *SHAPE])], autograph=False)
    batches = [tf.constant(images[first : first + BATCH]) for first in range(0, len(images), BATCH)]

    shared = scorer.predictor(values, moments)

    def score(predict):
        return np.concatenate([predict(batch).numpy() for batch in batches])

    expected = score(predict)
    making = time.perf_counter() - start
    difference = np.abs(score(shared) - expected).max()
    rounds = [
        (
            time_call(lambda: score(shared)),
            time_call(lambda: scorer.statistics(values)),
            time_call(lambda: score(predict)),
        )
        for _ in range(repeats)
    ]
    ratios = [ours / theirs for ours, _, theirs in rounds]
    medians = [statistics.median(column) for column in zip(*rounds, strict=True)]
    return *medians, making, statistics.median(ratios), min(ratios), max(ratios), float(difference)


def main():
    """Prints seconds and ratios."""
    smoke = make_parser(__doc__, smoke="two networks, once").parse_args().smoke
    repeats, count, drawn_networks = (1, 2, 20) if smoke else (REPEATS, NETWORKS, 1000)
    print(
        f"{describe_machine('tensorflow', 'keras')}; {IMAGES} images, batches of {BATCH}, median of {repeats}, seed 0"
    )
    space, rng = TinySpace(0.3, SMALL_STRIDES, depths=(1, 2)), np.random.default_rng(0)
    net = Supernet(space, CLASSES, SHAPE[2])
    images = rng.normal(size=(IMAGES, *SHAPE)).astype(np.float32)
    scorer = InheritedAccuracy(
        net, net.initial(0)[None], images[:512].reshape(8, 64, *SHAPE), images, np.zeros(IMAGES, int)
    )
    first = time_call(lambda: scorer(space.largest()))
    print(f"tracing for all sub-networks, once: {first:.1f} s")
    networks = {"largest": space.largest(), "smallest": space.smallest()}
    networks |= {f"random {number}": space.sample(rng) for number in range(count - len(networks))}
    for name, values in networks.items():
        scoring, recalibrating, alone, making, ratio, least, most, difference = measure(scorer, values, images, repeats)
        print(
            f"{name:9} scoring {scoring:.3f} s, stand-alone {alone:.3f} s: ratio {ratio:.2f} ({least:.2f} to "
            f"{most:.2f}); recalibration by 512 images {recalibrating:.3f} s; to build and "
            f"trace the stand-alone network {making:.1f} s; outputs differ by {difference:.1e}",
            flush=True,
        )
    budget, large = Budget.from_board("stm32f746"), TinySpace(0.4)
    drawn = [large.sample(rng) for _ in range(drawn_networks)]
    begin, cpu = time.perf_counter(), time.process_time()
    fitting = sum(
        budget.find_excess(predict_needs(large.body(values), (128, 128, 3), 1000)) is None for values in drawn
    )
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    print(f"{drawn_networks:,} checks of RAM and flash: {seconds:.2f} s, {cpu:.2f} s of a core; {fitting} networks fit")


if __name__ == "__main__":
    main()
