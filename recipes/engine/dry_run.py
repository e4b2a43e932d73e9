"""What a whole search would need on this machine, told by one training step of its largest network."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console

import zoo
from recipes.engine import child_training as trial
from recipes.engine import tuner
from recipes.engine.children import Children
from recipes.training import progress
from zoo.genotype import Genotype

_MEMORY = 2**30  # bytes that the step may take


def dry_run(children: Children, candidates: Sequence[Mapping[str, Any]], console: Console | None = None) -> Genotype:
    """Builds the largest of `candidates`, takes one training step, and prints what the whole search would need.

    The step is of fewer images than a real one where this machine had no memory for that.
    """
    console = console or Console()
    config, images = children.config, children.images
    largest, most = candidates[0], -1
    for values in candidates:
        macs = zoo.cost.of(children.build(values)).macs
        tuner.forget_models()
        if macs > most:
            largest, most = values, macs
    model = children.build(largest)
    params = model.count_params()
    activations = sum(int(np.prod(layer.output.shape[1:])) for layer in model.layers)
    tuner.forget_models()
    # values and their gradients; weights, momenta, gradients
    memory = 4 * (2 * activations * config.batch_size + 4 * params)
    batch = max(1, min(config.batch_size, _MEMORY // (8 * activations)))
    settings = dataclasses.replace(children.training(), epochs=1, batch_size=batch)
    start = time.perf_counter()
    marks: list[float] = []
    trial.train(
        lambda: children.build(largest),
        images.train.take(np.resize(np.arange(len(images.train)), 2 * batch)),
        images.validation.first(1),
        settings,
        seed=config.seed,
        report=lambda share, text: marks.append(time.perf_counter()),
    )
    step, fixed = (marks[2] - marks[1]) * config.batch_size / batch, marks[1] - start
    steps = -(-len(images.train) // config.batch_size) * config.epochs
    total = config.trials * (fixed + steps * step)
    told = "" if batch == config.batch_size else f", told by a step of {batch}"
    console.print(
        f"dry run of the largest network: {params:,} parameters, {most:,} multiply-adds, first step after "
        f"{fixed:.1f} s, then {step:.2f} s a step of {config.batch_size} images{told}\n"
        f"predicted for the search, at most: {memory / 2**30:.2f} GiB for a network in training, "
        f"{steps:,} steps a trial, {progress.duration(total)} for {config.trials:,} trials on this machine",
        highlight=False,
        soft_wrap=True,
    )
    tuner.forget_models()
    return children.genotype(largest, name="largest")
