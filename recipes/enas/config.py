"""The options of recipes.enas, and their presets."""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar, Literal

from recipes.enas.space import ChainSpace, MicroSpace
from recipes.engine.config import SEEDS, ChildConfig, check_ops
from recipes.training import check_at_least, check_options
from zoo.formats.enas import MICRO_OPS


@dataclasses.dataclass(frozen=True)
class Config(ChildConfig):
    """Options of the search; `epochs` and what else a child has are those of the final trainings."""

    trials: int = 1  # searches, each with a seed of its own; random networks where the algorithm is random
    algorithm: Literal["enas", "uniform", "random"] = "enas"  # uniform and random are the baselines
    space: Literal["micro", "macro"] = "micro"  # cells, or a chain of layers
    epochs: int = 10  # of each final training; 3 would order networks otherwise (Kendall's tau 0.6 over 12)
    search_epochs: int = 60  # of the shared weights
    uniform_epochs: int = 0  # of these, the first, in which the weights learn from paths drawn uniformly
    search_batch_size: int = 32  # images in a step of the shared weights, and in a reward
    search_cells: int = 3  # normal cells of the supernet, two reductions come on top (micro); the paper has 6
    search_filters: int = 8  # of the supernet before the first reduction; the paper has 20 (micro) and 36 (macro)
    nodes: int = 3  # of each cell (micro); the paper has 5
    ops: tuple[str, ...] = MICRO_OPS  # that an edge chooses from (micro)
    fixed_reduction: bool = False  # search the normal cell alone (micro); the reduction cell has pools and identities
    layers: int = 6  # of the chain (macro); the paper has 12
    search_rate: float = 0.05  # of the shared weights at the beginning of a cosine period
    least_rate: float = 0.0005  # at its end
    rate_period: int = 60  # epochs of the first period; each is twice as long as the one before
    search_decay: float = 2e-4  # L2 on all shared weights
    shared_joins: bool = False  # what joins loose ends has a part that all states share (micro); not in the paper
    search_dropout: float = 0.1  # share of features that a step leaves out
    reward_images: int = 400  # training images that are kept for rewards and the choice of the path
    updates: int = 12  # of the controller after each epoch; the paper has 30 (micro) and 50 (macro)
    samples: int = 5  # paths in an update, each rewarded on a batch; the paper has 10 (micro) and 20 (macro)
    candidates: int = 50  # paths that are drawn at the end; each network is scored once, in a tenth of a second
    finalists: int = 1  # the best of these that are trained on their own; the best in validation wins
    score: Literal["accuracy", "loss"] = "accuracy"  # of these paths, and of networks that shared weights are to rank
    supernets: int = 1  # of each search, with seeds and controllers of their own; a path has the mean of their scores
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

    added: ClassVar[tuple[str, ...]] = ("uniform_epochs", "score", "supernets", "shared_joins", "finalists")
    free: ClassVar[tuple[str, ...]] = ("random_networks", "save_seconds")

    def __post_init__(self):
        super().__post_init__()
        least = {"search_epochs": 1, "search_batch_size": 2, "search_cells": 1, "nodes": 1, "layers": 1, "cells": 1}
        least |= {"search_filters": 2, "filters": 2, "rate_period": 1, "reward_images": 2, "updates": 1, "samples": 1}
        least |= {"candidates": 1, "finalists": 1, "hidden": 1, "supernets": 1, "random_networks": 0}
        least |= {"uniform_epochs": 0}
        check_at_least(self, least)
        check_ops(self.ops, MICRO_OPS)
        if self.space == "macro" and self.layers < 2:
            raise ValueError(f"layers is {self.layers}; expected 2 or more, for a chain has skips between layers")
        if self.space == "macro" and (self.fixed_reduction or self.ops != MICRO_OPS):
            raise ValueError("ops and fixed_reduction are of cells; leave them out, or take --space=micro")
        if self.search_filters % 2 or self.filters % 2:
            raise ValueError(
                f"search_filters is {self.search_filters} and filters {self.filters}; expected even numbers, "
                "for a factorized reduction halves them"
            )
        if self.trials > SEEDS and self.algorithm != "random":
            raise ValueError(f"trials is {self.trials}; expected at most {SEEDS} searches")
        positive = "search_rate controller_rate temperature tanh_constant op_reduce"
        check_options(self, positive, "a number above 0", lambda value: value > 0)
        from_zero = "least_rate search_decay entropy skip_weight save_seconds"
        check_options(self, from_zero, "0 or more", lambda value: value >= 0)
        check_options(self, "search_dropout baseline", "a share from 0 to less than 1", lambda value: 0 <= value < 1)
        check_options(self, "skip_target", "a share between 0 and 1", lambda value: 0 < value < 1)

    def make_space(self) -> MicroSpace | ChainSpace:
        """Returns all architectures that are searched."""
        if self.space == "macro":
            return ChainSpace(self.layers)
        return MicroSpace(self.nodes, self.ops, self.fixed_reduction)


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
    "laptop": Config(  # what finds best on the table enas: docs/results.md
        search_epochs=20, rate_period=20, uniform_epochs=20, shared_joins=True, score="loss", supernets=3,
        candidates=200, finalists=8,
    ),
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
