"""Estimates what a whole search or training would need on this machine, from a few steps."""

import dataclasses
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

import zoo
from recipes.engine import tuner
from recipes.engine.children import NetworkScorer
from recipes.training import child_training
from recipes.training.progress import duration
from zoo.genotype import Genotype

_MEMORY = 2**30  # most bytes for the activations of a step


class StepCost(NamedTuple):
    """Seconds of the first step, with tracing, and of each later step, at `batch_size` images."""

    first: float
    step: float
    batch_size: int

    def describe(self, batch_size: int, images: str = "images") -> str:
        """Returns the times in words, scaled to `batch_size`."""
        text = (
            f"first step after {self.first:.1f} s, then {self.scale(batch_size):.2f} s a step of {batch_size} {images}"
        )
        return text + ("" if batch_size == self.batch_size else f", estimated from one of {self.batch_size}")

    def scale(self, batch_size: int) -> float:
        """Returns the seconds of a step of `batch_size` images."""
        return self.step * batch_size / self.batch_size


def time_steps(take_step: Callable[[int], object], batch_size: int, count: int = 3) -> StepCost:
    """Times `take_step(0)` to `take_step(count - 1)`; a later step costs the median of all but the first."""
    marks = [time.perf_counter()]
    for number in range(count):
        take_step(number)
        marks.append(time.perf_counter())
    first, *others = np.diff(marks)
    return StepCost(float(first), float(np.median(others)), batch_size)


def limit_batch(batch_size: int, bytes_an_image: float) -> int:
    """Returns the batch size of a dry run: as asked for, or smaller if its activations would exceed 1 GiB."""
    return max(1, min(batch_size, int(_MEMORY // bytes_an_image)))


def peak_memory() -> float:
    """Returns the peak memory of this process in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def dry_run(scorer: NetworkScorer, candidates: Sequence[Mapping[str, Any]]) -> Genotype:
    """Builds the largest of `candidates`, takes one training step, and prints what the whole search would need."""
    config, images = scorer.config, scorer.images
    macs = []
    for values in candidates:
        macs.append(zoo.cost.of(scorer.build(values)).macs)
        tuner.forget_models()
    largest = candidates[int(np.argmax(macs))]
    model = scorer.build(largest)
    params = model.count_params()
    activations = sum(int(np.prod(layer.output.shape[1:])) for layer in model.layers)
    tuner.forget_models()
    # activations and their gradients; weights, momenta and gradients
    memory = 4 * (2 * activations * config.batch_size + 4 * params)
    batch = limit_batch(config.batch_size, 8 * activations)
    marks = [time.perf_counter()]
    child_training.train(
        lambda: scorer.build(largest),
        images.train.take(np.resize(np.arange(len(images.train)), 2 * batch)),
        images.validation.first(1),
        dataclasses.replace(scorer.training(), epochs=1, batch_size=batch),
        seed=config.seed,
        report=lambda share, text: marks.append(time.perf_counter()),
    )
    # reports come before the first step, after it, and after the second
    cost = StepCost(marks[2] - marks[0], marks[3] - marks[2], batch)
    steps = -(-len(images.train) // config.batch_size) * config.epochs
    total = config.trials * (cost.first + steps * cost.scale(config.batch_size))
    print(
        f"dry run of the largest network: {params:,} parameters, {max(macs):,} multiply-adds, "
        f"{cost.describe(config.batch_size)}\n"
        f"predicted for the search, at most: {memory / 2**30:.2f} GiB for a network in training, "
        f"{steps:,} steps a trial, {duration(total)} for {config.trials:,} trials on this machine"
    )
    tuner.forget_models()
    return scorer.genotype(largest, name="largest")
