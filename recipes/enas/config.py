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
    """Options of the search; `epochs` and the other options of a child are for the final trainings."""

    trials: int = 1  # number of searches, each with its own seed; with --algorithm=random, number of random networks
    algorithm: Literal["enas", "uniform", "random"] = "enas"  # uniform and random are the baselines
    space: Literal["micro", "macro"] = "micro"  # cells, or a chain of layers
    epochs: int = 10  # epochs of each final training; 3 would rank networks differently (Kendall's tau 0.6 over 12)
    search_epochs: int = 60  # epochs of the shared weights
    uniform_epochs: int = 0  # first epochs, in which the weights learn from paths drawn uniformly
    search_batch_size: int = 32  # images per step of the shared weights, and per reward
    search_cells: int = 3  # normal cells of the supernet, besides two reduction cells (micro); 6 in the paper
    search_filters: int = 8  # its filters before the first reduction; 20 (micro) and 36 (macro) in the paper
    nodes: int = 3  # nodes per cell (micro); 5 in the paper
    ops: tuple[str, ...] = MICRO_OPS  # operations that an edge chooses from (micro)
    fixed_reduction: bool = False  # search only the normal cell (micro); the reduction cell has pools and skips
    layers: int = 6  # layers of the chain (macro); 12 in the paper
    search_rate: float = 0.05  # learning rate of the shared weights at the start of a cosine period
    least_rate: float = 0.0005  # learning rate at the end of a period
    rate_period: int = 60  # epochs of the first period; each period is twice as long as the one before
    search_decay: float = 2e-4  # L2 decay of all shared weights
    shared_joins: bool = False  # convolutions that read a cell's output share a part among states (micro); not in paper
    search_dropout: float = 0.1  # share of the features that a step drops
    reward_images: int = 400  # training images reserved for rewards and the choice of the path
    updates: int = 12  # updates of the controller after each epoch; 30 (micro) and 50 (macro) in the paper
    samples: int = 5  # paths per update, each rewarded on a batch; 10 (micro) and 20 (macro) in the paper
    candidates: int = 50  # paths drawn at the end; each network is scored once, in a tenth of a second
    finalists: int = 1  # the best candidates, which are trained on their own; the best in validation wins
    score: Literal["accuracy", "loss"] = "accuracy"  # ranks the candidates, and networks compared by shared weights
    supernets: int = 1  # per search, each with its own seed and controller; a path's score is the mean over them
    hidden: int = 64  # units of the controller
    controller_rate: float = 0.005  # the controller's learning rate; 0.0035 in the scripts; at 0.02 its LSTM saturates
    temperature: float = 1.0  # the controller's logits are divided by it
    tanh_constant: float = 2.5  # factor of the logits' tanh; 1.1 (micro) and 1.5 (macro) in the scripts
    op_reduce: float = 2.5  # the tanh constant is divided by it for operations (micro)
    entropy: float = 0.0001  # weight of the choices' entropy in a reward
    baseline: float = 0.95  # decay of the moving average of rewards; 0.99 in the paper
    skip_target: float = 0.4  # share of skips that the controller is drawn to (macro)
    skip_weight: float = 0.8  # how strongly the controller is drawn to skip_target (macro)
    random_networks: int = 12  # random networks, trained alike to compare; 12 or more give Kendall's tau too
    save_seconds: float = 60.0  # seconds between two saves of the state within an epoch
    cells: int = 3  # normal cells of the networks that are trained to compare results (micro)
    filters: int = 8  # filters of these networks before the first reduction
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
            raise ValueError(f"layers is {self.layers}; expected 2 or more, since a chain has skips between layers")
        if self.space == "macro" and (self.fixed_reduction or self.ops != MICRO_OPS):
            raise ValueError("ops and fixed_reduction are options of cells; omit them, or use --space=micro")
        if self.search_filters % 2 or self.filters % 2:
            raise ValueError(
                f"search_filters is {self.search_filters} and filters {self.filters}; expected even numbers, "
                "since a factorized reduction halves them"
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
    "laptop": Config(  # the best on the table enas: docs/results.md
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
