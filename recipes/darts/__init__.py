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

import dataclasses
import functools
import json
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from recipes.darts.ranking import SharedAccuracies
from recipes.darts.space import RandomCells, cells_of
from recipes.darts.supernet import Supernet
from recipes.darts.training import Bilevel, Rates
from recipes.engine import children as child_networks
from recipes.engine import seed_search, tuner
from recipes.engine.children import ChildConfig, Children
from recipes.engine.seeds import SEEDS, FoundBodies
from recipes.images import augment
from recipes.images import sources as image_data
from recipes.training import tensorflow_options
from zoo import atomic
from zoo.genotype import CellGraph, Genotype
from zoo.genotype_json import graph_as_dict


@dataclasses.dataclass(frozen=True)
class Config(ChildConfig):
    """Options of the search; `epochs` and what else a child has are those of the final, brief trainings."""

    trials: int = 2  # searches, each with a seed of its own; random cells where the algorithm is random
    algorithm: Literal["darts", "random"] = "darts"  # random is the baseline
    order: Literal[1, 2] = 1  # 2 differentiates through a step of the weights, at four times the cost of the alphas
    search_epochs: int = 8  # of a supernet
    warm_up_epochs: int = 2  # of these, in which only the weights learn; 0 in the paper, 10 of 25 in P-DARTS
    search_batch_size: int = 32  # images in a step of the supernet
    search_cells: int = 3  # of the supernet; the paper has 8
    search_filters: int = 4  # of its nodes before the first reduction; the paper has 16
    nodes: int = 3  # of each cell; the paper has 4
    alpha_rate: float = 0.03  # of Adam for the alphas; the paper's 3e-4 needs its 20,000 steps
    stop_at_skips: int | None = None  # skip connections in the normal cell at which a search ends early
    random_cells: int = 12  # of the space, trained alike after a search by gradient; 12 or more give Kendall's tau too
    eigenvalue: bool = True  # log the largest eigenvalue of the Hessian in alpha after each epoch
    save_seconds: float = 60.0  # between two saved states inside an epoch
    dry_run_steps: int = 2  # of a dry run, beside the first, which has the time of tracing in it
    cells: int = 3  # of the networks that are trained to compare results
    filters: int = 8  # of their nodes before the first reduction
    folder: Path = Path("runs/darts")  # results, and the state to resume from

    def __post_init__(self):
        super().__post_init__()
        least = {"search_epochs": 1, "search_batch_size": 2, "search_cells": 3, "nodes": 1, "cells": 1, "filters": 2}
        least |= {"search_filters": 2, "stop_at_skips": 1, "random_cells": 0, "warm_up_epochs": 0, "dry_run_steps": 1}
        for name, smallest in least.items():
            value = getattr(self, name)
            if value is not None and value < smallest:
                raise ValueError(f"{name} is {value}; expected a whole number from {smallest}")
        if self.warm_up_epochs >= self.search_epochs:
            raise ValueError(
                f"warm_up_epochs is {self.warm_up_epochs} of {self.search_epochs} search_epochs; expected fewer, for "
                "the alphas learn in the others"
            )
        if self.search_filters % 2 or self.filters % 2:
            raise ValueError(
                f"search_filters is {self.search_filters} and filters {self.filters}; expected even numbers, "
                "for a factorized reduction halves them"
            )
        if self.trials > SEEDS:
            raise ValueError(f"trials is {self.trials}; expected at most {SEEDS}")
        if self.alpha_rate <= 0 or self.save_seconds < 0:
            raise ValueError(
                f"alpha_rate is {self.alpha_rate} and save_seconds {self.save_seconds}; expected a rate above 0 and "
                "0 seconds or more"
            )

    def settings(self) -> dict[str, Any]:
        """Returns what must be equal for a search to go on: the numbers of random cells and dry steps need not."""
        free = ("random_cells", "dry_run_steps")
        return {name: value for name, value in super().settings().items() if name not in free}


PRESETS = {
    "laptop": Config(),
    "paper": Config(
        trials=4, data="tfds:cifar10", image_size=None, training_images=None, validation_images=None, epochs=100,
        batch_size=96, learning_rate=0.025, weight_decay=3e-4, augment=True, search_epochs=50, warm_up_epochs=0,
        search_batch_size=64, search_cells=8, search_filters=16, nodes=4, alpha_rate=3e-4, cells=20, filters=36,
        random_cells=24, folder=Path("runs/darts-paper"),
    ),
    "smoke": Config(
        trials=1, image_size=8, training_images=60, validation_images=50, epochs=1, search_epochs=2,
        warm_up_epochs=1, search_batch_size=10, search_filters=2, nodes=1, filters=2, random_cells=0,
        folder=Path("runs/darts-smoke"),
    ),
}  # fmt: skip


class SearchedChildren(Children):
    """Children whose cells a supernet finds first."""

    def score(self, task: tuner.Task) -> dict[str, float]:
        """Searches with the task's seed, unless that is done, then trains the network briefly."""
        config, space = self.config, self.space
        assert isinstance(config, Config)
        assert isinstance(space, FoundBodies)
        if not space.path(task.values).exists():
            result = find_cells(config, self.images, task.values["seed"], space.folder, task.report)
            atomic.write_atomically(space.path(task.values), json.dumps(result))
        return super().score(task)


def search(config: Config, observe: Callable[[tuner.Status], None] | None = None) -> Genotype:
    """Searches and returns the best cells; `observe` gets the state of the search instead of a progress bar."""
    images = child_networks.load_images(config)
    scale = {"cells": config.cells, "stem": "cifar"}
    presets = {"small": scale | {"filters": 2 * config.filters}, "search": scale | {"filters": config.filters}}
    if config.dry_run:
        return dry_run(config, images, presets)
    cells = Children(config, RandomCells(config.nodes), "darts", presets, images)
    if config.algorithm == "random":
        return seed_search.run(cells, "darts", observe)
    found = FoundBodies(config.folder / "seeds", cells_of)
    genotype = seed_search.run(SearchedChildren(config, found, "darts", presets, images), "darts", observe)
    if config.random_cells:
        judge = functools.partial(shared_accuracies, config, images)
        seed_search.add_baseline(cells, config.random_cells, "darts", judge, observe)
    return genotype


def shared_accuracies(
    config: Config, images: image_data.Data, seeds: Sequence[int], cells: Sequence[Any]
) -> Iterator[tuple[int, list[float]]]:
    """Yields each seed whose supernet is still there, with the accuracies of `cells` by its weights."""
    normalized = augment.Normalization.of(images.train.images)(images.validation.images)
    with tensorflow_options.without_rewrites():
        shared = SharedAccuracies(make(config, images, 0).net)
        for seed in seeds:
            state = make(config, images, seed)
            state.restore(seed_search.state_file(config.folder / "seeds", seed))
            if state.step:  # else the file is gone, and with it the weights
                yield seed, shared(state.weights, cells, normalized, images.validation.labels)


def find_cells(
    config: Config, images: image_data.Data, seed: int, folder: Path, report: Callable[[float, str], None]
) -> dict[str, Any]:
    """Trains a supernet and returns its cells, strengths and history, as JSON holds them.

    Raises:
        FloatingPointError: the loss is not a number any more.
    """
    batches = Batches(config, images, seed)
    state = make(config, images, seed)
    path = seed_search.state_file(folder, seed)
    state.restore(path)
    saved = time.monotonic()
    while state.step < config.search_epochs * batches.steps:
        epoch, number = divmod(state.step, batches.steps)
        report(0.9 * state.step / (config.search_epochs * batches.steps), f"supernet, epoch {epoch + 1}")
        rate = state.rates.at(epoch, config.search_epochs)
        validation = batches.of(1, epoch, number) if epoch >= config.warm_up_epochs else None
        state.learn(batches.of(0, epoch, number), validation, rate)
        if number + 1 == batches.steps:
            state.history.append(_record(config, state, batches.of(1, epoch, 0)))
            state.marks = []
            state.save(path)
            skips = state.history[-1]["normal_skips"]
            if config.stop_at_skips is not None and skips >= config.stop_at_skips:
                break
        elif time.monotonic() - saved > config.save_seconds:
            state.save(path)
            saved = time.monotonic()
    cells = state.cells()
    tuner.forget_models()
    return {
        "normal": graph_as_dict(cells.normal),
        "reduce": graph_as_dict(cells.reduce),
        "strengths": np.round(state.strengths(), 6).tolist(),
        "history": state.history,
    }


def make(config: Config, images: image_data.Data, seed: int) -> Bilevel:
    """Returns the supernet of `config` with its first state."""
    net = Supernet(config.search_cells, config.search_filters, images.classes, images.input_shape[2], config.nodes)
    return Bilevel(net, Rates(order=config.order, alpha_rate=config.alpha_rate), seed)


def _record(config: Config, state: Bilevel, validation: tuple[Any, Any]) -> dict[str, Any]:
    """Returns what is known after an epoch."""
    loss, accuracy, validation_loss, validation_accuracy = state.epoch_marks(validation)
    if not np.isfinite(loss) or not np.isfinite(validation_loss):
        raise FloatingPointError(f"the loss of the supernet is {loss}: the search diverged; lower its learning rate")
    cells = state.cells()
    return {
        "step": state.step,
        "loss": round(float(loss), 5),
        "accuracy": round(float(accuracy), 5),
        "validation_loss": round(float(validation_loss), 5),
        "validation_accuracy": round(float(validation_accuracy), 5),
        "normal_skips": _skips(cells.normal),
        "reduce_skips": _skips(cells.reduce),
        "eigenvalue": round(state.eigenvalue(validation), 6) if config.eigenvalue else None,
        "strengths": np.round(state.strengths(), 5).tolist(),
    }


def _skips(graph: CellGraph) -> int:
    return sum(edge.op == "skip_connect" for node in graph.nodes for edge in node.edges)


class Batches:
    """Training images in two halves drawn by the seed: 0 for the weights, 1 for the alphas."""

    def __init__(self, config: Config, images: image_data.Data, seed: int):
        self._config, self._seed = config, seed
        self._halves = images.train.split(0.5, seed)
        self._normalize = augment.Normalization.of(images.train.images)
        side = images.input_shape[0]
        self._augment = augment.cifar(side // 8, cutout_length=0) if config.augment else None
        self.steps = min(map(len, self._halves)) // config.search_batch_size
        if self.steps == 0:
            raise ValueError(
                f"{len(images.train)} training images make no two batches of {config.search_batch_size}; "
                "lower search_batch_size or take more training_images"
            )

    def of(self, half: int, epoch: int, number: int) -> tuple[Any, Any]:
        """Returns batch `number` of an epoch; it depends on nothing that came before."""
        part, size = self._halves[half], self._config.search_batch_size
        order = np.random.default_rng([self._seed, half, epoch]).permutation(len(part))
        chosen = order[number * size : (number + 1) * size]
        batch = part.take(chosen)
        images = batch.images
        if self._augment is not None:
            step = 2 * (epoch * self.steps + number) + half
            images = self._augment(tf.constant(images), tf.constant([self._seed, step]))
        return self._normalize(images), batch.labels


def dry_run(config: Config, images: image_data.Data, presets: Mapping[str, Any]) -> Genotype:
    """Takes some steps of the supernet, prints what the search would need, and returns the cells of that moment."""
    batches = Batches(config, images, config.seed)
    marks = [time.perf_counter()]
    state = make(config, images, config.seed)
    for number in range(1 + config.dry_run_steps):
        place = number % batches.steps
        state.learn(batches.of(0, 0, place), batches.of(1, 0, place), state.rates.learning_rate)
        marks.append(time.perf_counter())
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    first, *seconds = np.diff(marks)
    step, steps = float(np.median(seconds)), batches.steps * config.search_epochs
    print(
        f"dry run: {state.weights.size:,} weights, first step after {first:.1f} s, then {step:.2f} s a step of "
        f"2 x {config.search_batch_size} images (median of {len(seconds)}), {memory:.2f} GiB at most\n"
        f"predicted: {steps:,} steps a search, {config.trials} x {steps * step / 3600:.2f} h on this machine, "
        "and the trainings that compare the results"
    )
    return Genotype("darts_dry_run", "darts", state.cells(), {}, presets)
