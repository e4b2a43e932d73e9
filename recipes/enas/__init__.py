"""ENAS: one network holds all; its weights are shared by all paths, and a controller learns which path is good.

    python -m recipes.enas                            # micro space: cells; embedded images, on 2 cores
    python -m recipes.enas --preset=laptop-macro      # macro space: a chain of layers with skips
    python -m recipes.enas --algorithm=uniform        # no controller: random paths of the same supernet and budget
    python -m recipes.enas --algorithm=random         # random networks of the space alone, trained alike
    python -m recipes.enas --preset=paper --dry_run   # a few steps, and what the search would need on this machine

Weights and controller learn by turns, epoch by epoch; then the controller draws some paths, and the one that tells most
reward images right with the shared weights is trained on its own. The result is runs/enas/genotype.json with its
picture; runs/enas/seeds holds, for each seed, the scores, the history, and the state with all shared weights.
runs/enas/baseline holds random networks of the space, trained as the found one; with 12 or more of them
runs/enas/ranking.json says how well the shared weights rank them. Killed and started again with the same command, it
goes on where it was.

Result: procedure only. The laptop preset (seeds 0 to 2, 2 cores, 2026-11-25) raises the controller's rewards from
0.10 to 0.71, 0.56 and 0.65 and finds networks of 0.828, 0.827 and 0.830 validation accuracy, where 12 random ones
each, trained alike, have 0.823, 0.813 and 0.814 on average and the time of a search buys the best of 14 to 21;
Kendall's tau of shared-weight and stand-alone accuracy is -0.06, 0.31 and 0.36.

Source: Pham et al., "Efficient Neural Architecture Search via Parameter Sharing", ICML 2018, and the scripts of
melodyguan/enas, whose settings the presets paper and paper-macro have (the paper's controller: rate 0.00035,
temperature 5, tanh_constant 2.5, entropy 0.1). Departures: paths are searched in the very network that is built
afterwards; reward images are kept apart from the validation images that judge results; all images reserved for rewards
choose the path, not one batch of them; statistics are those of the batch in the macro space too.
"""

import dataclasses
import functools
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

import zoo
from recipes import _search
from recipes.enas.controller import Controller, MacroController, MicroController, Policy, random_path
from recipes.enas.export import body_of
from recipes.enas.macro import MacroSupernet
from recipes.enas.micro import MicroSupernet
from recipes.enas.search import Images, Plan, Search, find_path
from recipes.enas.shared_weights import Descent, SharedWeights
from recipes.enas.space import ChainSpace, MicroSpace, path_of
from recipes.engine import children as child_networks
from recipes.engine import tuner
from recipes.engine.children import Children
from recipes.engine.config import SEEDS, ChildConfig
from recipes.images import sources as image_data
from recipes.images.augment import Normalization
from recipes.training import tensorflow_options
from recipes.training.progress import Observe
from zoo.genotype import Genotype

_DRY_RUN_IMAGES = 32  # in a step
_FREE = ("random_networks", "save_seconds")  # what may change when a search goes on


@dataclasses.dataclass(frozen=True)
class Config(ChildConfig):
    """Options of the search; `epochs` and what else a child has are those of the final trainings."""

    trials: int = 1  # searches, each with a seed of its own; random networks where the algorithm is random
    algorithm: Literal["enas", "uniform", "random"] = "enas"  # uniform and random are the baselines
    space: Literal["micro", "macro"] = "micro"  # cells, or a chain of layers
    epochs: int = 10  # of each final training; 3 would order networks otherwise (Kendall's tau 0.6 over 12)
    search_epochs: int = 60  # of the shared weights
    search_batch_size: int = 32  # images in a step of the shared weights, and in a reward
    search_cells: int = 3  # normal cells of the supernet, two reductions come on top (micro); the paper has 6
    search_filters: int = 8  # of the supernet before the first reduction; the paper has 20 (micro) and 36 (macro)
    nodes: int = 3  # of each cell (micro); the paper has 5
    layers: int = 6  # of the chain (macro); the paper has 12
    search_rate: float = 0.05  # of the shared weights at the beginning of a cosine period
    least_rate: float = 0.0005  # at its end
    rate_period: int = 60  # epochs of the first period; each is twice as long as the one before
    search_decay: float = 2e-4  # L2 on all shared weights
    search_dropout: float = 0.1  # share of features that a step leaves out
    reward_images: int = 400  # training images that are kept for rewards and the choice of the path
    updates: int = 12  # of the controller after each epoch; the paper has 30 (micro) and 50 (macro)
    samples: int = 5  # paths in an update, each rewarded on a batch; the paper has 10 (micro) and 20 (macro)
    candidates: int = 50  # paths that are scored at the end, seconds in all
    hidden: int = 64  # units of the controller
    controller_rate: float = 0.005  # the controller's learning rate; 0.0035 in the scripts; at 0.02 its LSTM saturates
    temperature: float = 1.0  # by which its logits are divided
    tanh_constant: float = 2.5  # logits are this much of their tanh; the scripts have 1.1 (micro) and 1.5 (macro)
    op_reduce: float = 2.5  # by which the constant is smaller for operations (micro)
    entropy: float = 0.0001  # weight of the choices' entropy in a reward
    baseline: float = 0.95  # what stays of the moving average of rewards at each reward; the paper has 0.99
    skip_target: float = 0.4  # share of skips that the controller is drawn to (macro)
    skip_weight: float = 0.8  # how strongly
    random_networks: int = 12  # of the space, trained alike after a search; 12 or more give Kendall's tau too
    save_seconds: float = 60.0  # between two saved states inside an epoch
    cells: int = 3  # normal cells of the networks that are trained to compare results (micro)
    filters: int = 8  # of these networks before the first reduction
    folder: Path = Path("runs/enas")  # results, and the state to resume from

    def __post_init__(self):
        super().__post_init__()
        least = {"search_epochs": 1, "search_batch_size": 2, "search_cells": 1, "nodes": 1, "layers": 1, "cells": 1}
        least |= {"search_filters": 2, "filters": 2, "rate_period": 1, "reward_images": 2, "updates": 1, "samples": 1}
        least |= {"candidates": 1, "hidden": 1, "random_networks": 0}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a whole number from {smallest}")
        if self.search_filters % 2 or self.filters % 2:
            raise ValueError(
                f"search_filters is {self.search_filters} and filters {self.filters}; expected even numbers, "
                "for a factorized reduction halves them"
            )
        if self.trials > SEEDS and self.algorithm != "random":
            raise ValueError(f"trials is {self.trials}; expected at most {SEEDS} searches")
        for name in ("search_rate", "controller_rate", "temperature", "tanh_constant", "op_reduce"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a number above 0")
        for name in ("least_rate", "search_decay", "entropy", "skip_weight", "save_seconds"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 or more")
        for name in ("search_dropout", "baseline", "skip_target"):
            if not 0 <= getattr(self, name) < 1 or (name == "skip_target" and self.skip_target == 0):
                raise ValueError(f"{name} is {getattr(self, name)}; expected a share from 0 to less than 1")

    def settings(self) -> dict[str, Any]:
        """Returns what must be equal for a search to go on."""
        return {name: value for name, value in super().settings().items() if name not in _FREE}


_MACRO: dict[str, Any] = {"space": "macro", "search_decay": 5e-4}
_PAPER: dict[str, Any] = {
    "data": "tfds:cifar10", "image_size": None, "training_images": None, "validation_images": None, "augment": True,
    "learning_rate": 0.05, "weight_decay": 4e-4, "rate_period": 10, "reward_images": 5000, "baseline": 0.99,
    "random_networks": 24,
}  # fmt: skip
_SMOKE: dict[str, Any] = {
    "image_size": 8, "training_images": 60, "validation_images": 50, "epochs": 1, "search_epochs": 2,
    "search_batch_size": 10, "search_cells": 1, "search_filters": 2, "nodes": 2, "layers": 3, "rate_period": 2,
    "reward_images": 20, "updates": 2, "samples": 2, "candidates": 2, "hidden": 8, "random_networks": 0, "cells": 1,
    "filters": 2,
}  # fmt: skip
PRESETS: dict[str, Config] = {
    "laptop": Config(),
    "paper": Config(
        epochs=630, batch_size=144, search_epochs=150, search_batch_size=160, search_cells=6, search_filters=20,
        nodes=5, updates=30, samples=10, controller_rate=0.0035, tanh_constant=1.1, cells=15, filters=36,
        folder=Path("runs/enas-paper"), **_PAPER,
    ),
    "smoke": Config(folder=Path("runs/enas-smoke"), **_SMOKE),
    "laptop-macro": Config(folder=Path("runs/enas-macro"), **_MACRO),
    "paper-macro": Config(
        epochs=310, batch_size=100, search_epochs=310, search_batch_size=128, layers=12, search_filters=36,
        controller_rate=0.001, tanh_constant=1.5, updates=50, samples=20, filters=96,
        folder=Path("runs/enas-paper-macro"), **(_PAPER | _MACRO),
    ),
    "smoke-macro": Config(folder=Path("runs/enas-smoke-macro"), **(_SMOKE | _MACRO)),
}  # fmt: skip


def search(config: Config, observe: Observe | None = None) -> Genotype:
    """Searches and returns the best architecture; `observe` gets the search's state instead of a progress bar."""
    images = child_networks.load_images(config)
    if config.dry_run:
        return dry_run(config, images)
    children = Children(config, space_of(config), "enas", presets_of(config), images)
    if config.algorithm == "random":
        return _search.search_randomly(children, "enas", observe)
    find = functools.partial(find_architecture, config, children)
    judge = functools.partial(shared_accuracies, config, images)
    genotype = _search.search_by_seeds(children, "enas", find, judge, config.random_networks, observe)
    zoo.draw(genotype, config.folder / "genotype.png")
    return genotype


def find_architecture(
    config: Config, children: Children, seed: int, path: Path, report: Callable[[float, str], None]
) -> dict[str, Any]:
    """Returns the values of what the search with this seed finds, and its history; resumes from the state in `path`."""
    space: Any = children.space

    def refuse(found: np.ndarray) -> str | None:
        return children.check(space.values(body_of(found)))

    with tensorflow_options.without_rewrites():
        result = find_path(make(config, children.images, seed), path, report, refuse)
    tuner.forget_models()
    return {**result, "values": space.values(body_of(np.array(result["path"], np.int32)))}


def shared_accuracies(
    config: Config, images: image_data.Data, states: Mapping[int, Path], bodies: Sequence[Any]
) -> Iterator[tuple[int, list[float]]]:
    """Yields each seed whose shared weights are still there, with the accuracies of `bodies` by them."""
    paths = [path_of(body) for body in bodies]
    normalized = np.asarray(Normalization.of(images.train.images)(images.validation.images), np.float32)
    for seed, state in states.items():
        with tensorflow_options.without_rewrites():
            finished = make(config, images, seed)
            finished.restore(state)
            if not finished.done:  # the state is gone, and with it the weights
                continue
            batches = finished.images.in_batches(normalized, images.validation.labels)
            accuracies = [finished.score(path, batches) for path in paths]
        yield seed, accuracies


def presets_of(config: Config) -> dict[str, dict[str, Any]]:
    """Returns the sizes in which a found architecture can be built: for small images, and as it was compared."""
    scale: Mapping[str, Any] = {"cells": config.cells} if config.space == "micro" else {"separable": True}
    return {"small": {**scale, "filters": 2 * config.filters}, "search": {**scale, "filters": config.filters}}


def space_of(config: Config) -> MicroSpace | ChainSpace:
    """Returns all architectures of the space."""
    return MicroSpace(config.nodes) if config.space == "micro" else ChainSpace(config.layers)


def make(config: Config, images: image_data.Data, seed: int) -> Search:
    """Returns the search with this seed at its beginning."""
    policy = Policy(
        config.hidden, config.temperature, config.tanh_constant, config.op_reduce, config.controller_rate,
        config.entropy, config.baseline, config.skip_target, config.skip_weight,
    )  # fmt: skip
    filters, classes, channels = config.search_filters, images.classes, images.input_shape[2]
    if config.space == "micro":
        net: Any = MicroSupernet(config.search_cells, filters, classes, channels, config.nodes)
        controller: Controller = MicroController(config.nodes, policy, seed)
    else:
        net = MacroSupernet(config.layers, filters, classes, channels)
        controller = MacroController(config.layers, policy, seed)
    plan = Plan(
        config.search_epochs, config.search_batch_size, config.updates, config.samples, config.candidates,
        config.reward_images, config.augment, config.algorithm == "uniform", config.save_seconds,
    )  # fmt: skip
    descent = Descent(
        config.search_rate, config.least_rate, config.rate_period,
        weight_decay=config.search_decay, dropout=config.search_dropout,
    )  # fmt: skip
    path = random_path(controller, np.random.default_rng(0))
    shared = SharedWeights(net, path.shape, images.input_shape, descent, seed)
    return Search(shared, controller, Images(images, plan, seed), plan, seed)


def dry_run(config: Config, images: image_data.Data) -> Genotype:
    """Takes three steps and a reward, prints what the search would need, and returns the path that was rewarded.

    The steps are of at most 32 images, for this machine may lack the memory for more.
    """
    begin = time.perf_counter()
    batch_size = min(config.search_batch_size, _DRY_RUN_IMAGES)
    part = images.train.take(np.resize(np.arange(len(images.train)), 4 * batch_size))
    small = dataclasses.replace(config, search_batch_size=batch_size, reward_images=batch_size)
    with tensorflow_options.without_rewrites():
        search = make(small, dataclasses.replace(images, train=part), config.seed)
        marks = []
        for _ in range(3):  # the path, and with it the time of a step, differs
            search.step()
            marks.append(time.perf_counter())
        path = search.controller.draw(1, np.random.default_rng(config.seed)).paths[0]
        batch = search.images.reward_batch(np.random.default_rng(config.seed))
        search.shared.accuracy(path, *batch)
        traced = time.perf_counter()
        search.shared.accuracy(path, *batch)
        reward = time.perf_counter() - traced
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    larger = config.search_batch_size / batch_size
    step, reward = larger * (marks[2] - marks[0]) / 2, larger * reward
    steps = (len(images.train) - config.reward_images) // config.search_batch_size * config.search_epochs
    rewards = config.search_epochs * config.updates * config.samples
    print(
        f"dry run: {search.shared.net.packing.size:,} shared weights, first step after {marks[0] - begin:.1f} s, then "
        f"{step:.2f} s a step of {config.search_batch_size} images and {reward:.2f} s a reward, told by {batch_size} "
        f"images, which took {memory:.2f} GiB at most\npredicted: {steps:,} steps and {rewards:,} rewards a search, "
        f"{config.trials} x {(steps * step + rewards * reward) / 3600:.2f} h on this machine, and the trainings that "
        "compare the results"
    )
    return Genotype("enas_dry_run", "enas", body_of(path), {}, presets_of(config))
