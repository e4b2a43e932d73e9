"""DARTS: cells by gradient. Several searches with a seed each; what they find is trained briefly, the best one wins.

    python -m recipes.darts                              # embedded images, on 2 cores
    python -m recipes.darts --algorithm=random           # random cells of the space alone, trained alike
    python -m recipes.darts --order=2                    # second order
    python -m recipes.darts --preset=paper --dry_run     # one step, and what the search would need on this machine

The result is runs/darts/genotype.json; runs/darts/card shows how the strengths of the operations and the cells evolved,
with losses, accuracies, skip connections and the largest eigenvalue, all of which runs/darts/seeds holds for each seed.
runs/darts/baseline holds random cells of the space, trained as the found ones; with 12 or more of them
runs/darts/ranking.json says how well the supernet ranks them. Killed and started again with the same command, it goes
on where it was.

Source: Liu et al., "DARTS: Differentiable Architecture Search", ICLR 2019, and quark0/darts; guards against collapse by
Zela et al., ICLR 2020 (eigenvalue) and Liang et al., 2019 (number of skip connections); epochs of warm-up by Chen et
al., "Progressive Differentiable Architecture Search", ICCV 2019. Departures: the halves are drawn by the seed, and
validation batches come in shuffled epochs where quark0/darts draws them with replacement.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from recipes import _search
from recipes.darts import strengths, training
from recipes.darts.config import PRESETS, Config
from recipes.darts.space import DartsSpace
from recipes.engine import children as child_networks
from recipes.engine import tuner
from recipes.engine.children import Children
from recipes.engine.dry_run import peak_memory, time_steps
from recipes.images import augment
from recipes.images import sources as image_data
from recipes.training.progress import Observe
from zoo.genotype import Genotype

__all__ = ["PRESETS", "Config", "search"]


def search(config: Config, observe: Observe | None = None) -> Genotype:
    """Searches and returns the best cells; `observe` gets the state of the search instead of a progress bar."""
    images = child_networks.load_images(config)
    scale = {"cells": config.cells, "stem": "cifar"}
    presets = {"small": scale | {"filters": 2 * config.filters}, "search": scale | {"filters": config.filters}}
    if config.dry_run:
        return dry_run(config, images, presets)
    cells = Children(config, DartsSpace(config.nodes), "darts", presets, images)
    if config.algorithm == "random":
        return _search.search_randomly(cells, "darts", observe)
    find = functools.partial(find_cells, config, images)
    judge = functools.partial(shared_accuracies, config, images)
    return _search.search_by_seeds(cells, "darts", find, judge, config.random_cells, observe)


def find_cells(
    config: Config, images: image_data.Data, seed: int, state: Path, report: Callable[[float, str], None]
) -> dict[str, Any]:
    """Returns what a supernet finds with this seed, and draws how its strengths evolved; resumes from `state`."""
    found = training.find_cells(config, images, seed, state, report)
    tuner.forget_models()
    strengths.draw(found["history"], f"seed {seed}", state.with_name(f"seed{seed}.png"))
    return found


def shared_accuracies(
    config: Config, images: image_data.Data, states: Mapping[int, Path], cells: Sequence[Any]
) -> Iterator[tuple[int, list[float]]]:
    """Yields each seed whose supernet is still there, with the accuracies of `cells` by its weights."""
    normalized = augment.Normalization.of(images.train.images)(images.validation.images)
    for seed, file in states.items():
        state = training.begin(config, images, seed)
        state.restore(file)
        if state.step:  # else the file is gone, and with it the weights
            yield seed, [state.accuracy(each, normalized, images.validation.labels) for each in cells]


def dry_run(config: Config, images: image_data.Data, presets: Mapping[str, Any]) -> Genotype:
    """Takes some steps of the supernet, prints what the search would need, and returns the cells of that moment."""
    halves = training.HalvedImages(config, images, config.seed)
    state = training.begin(config, images, config.seed)

    def take_step(number: int) -> None:
        place = number % halves.steps
        state.learn(halves.batch(0, 0, place), halves.batch(1, 0, place), training.rate_at(0, config.search_epochs))

    size, steps = config.search_batch_size, halves.steps * config.search_epochs
    cost = time_steps(take_step, size, 1 + config.dry_run_steps)
    print(
        f"dry run: {state.weights.size:,} weights, {cost.describe(size, 'images of each half')}, "
        f"{peak_memory():.2f} GiB at most\n"
        f"predicted: {steps:,} steps a search, {config.trials} x {steps * cost.step / 3600:.2f} h on this machine, "
        "and the trainings that compare the results"
    )
    return Genotype("darts_dry_run", "darts", state.cells(), {}, presets)
