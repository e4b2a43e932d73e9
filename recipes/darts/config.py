"""The options of recipes.darts, and their presets."""

import dataclasses
from pathlib import Path
from typing import ClassVar, Literal

from recipes.darts.space import OPS, DartsSpace
from recipes.engine.config import SEEDS, ChildConfig, check_ops
from recipes.training import check_at_least, check_options


@dataclasses.dataclass(frozen=True)
class Config(ChildConfig):
    """Options of the search; `epochs` and the other options of a child are for the brief final trainings."""

    trials: int = 2  # number of searches, each with its own seed; with --algorithm=random, number of random cells
    algorithm: Literal["darts", "random"] = "darts"  # random is the baseline
    order: Literal[1, 2] = 1  # 2 differentiates through a step of the weights; an alpha step then takes 4 times as long
    supernets: int = 1  # per search, each with its own seed; the mean of their strengths selects the cells
    search_epochs: int = 8  # epochs of each supernet
    warm_up_epochs: int = 2  # first epochs, in which only the weights learn; 0 in the paper, 10 of 25 in P-DARTS
    search_batch_size: int = 32  # images per step of the supernet
    search_cells: int = 3  # cells of the supernet; 8 in the paper
    search_filters: int = 4  # filters of its nodes before the first reduction; 16 in the paper
    nodes: int = 3  # nodes per cell; 4 in the paper
    ops: tuple[str, ...] = OPS[1:]  # operations that an edge chooses from, besides none
    fixed_reduction: bool = False  # search only the normal cell; the reduction cell has pools and skip connections
    alpha_rate: float = 0.03  # Adam's learning rate for the alphas; the paper's 3e-4 needs its 20,000 steps
    selection: Literal["strength", "perturbation"] = "strength"  # by alphas, or by the loss of accuracy without a part
    selection_batches: int = 8  # batches of validation images that score a perturbation
    tuning_steps: int = 10  # steps of the weights after each choice by perturbation
    stop_at_skips: int | None = None  # number of skip connections in the normal cell that ends a search early
    random_cells: int = 12  # random cells trained like those found, to compare; 12 or more give Kendall's tau too
    eigenvalue: bool = True  # log the largest eigenvalue of the Hessian in alpha after each epoch
    save_seconds: float = 60.0  # seconds between two saves of the state within an epoch
    dry_run_steps: int = 2  # steps of a dry run after the first, whose time includes tracing
    cells: int = 3  # cells of the networks that are trained to compare results
    filters: int = 8  # filters of these networks' nodes before the first reduction
    folder: Path = Path("runs/darts")  # results, and the state to resume from

    added: ClassVar[tuple[str, ...]] = ("supernets",)
    free: ClassVar[tuple[str, ...]] = ("random_cells", "dry_run_steps")

    def __post_init__(self):
        super().__post_init__()
        least = {"search_epochs": 1, "search_batch_size": 2, "search_cells": 3, "nodes": 1, "cells": 1, "filters": 2}
        least |= {"search_filters": 2, "stop_at_skips": 1, "random_cells": 0, "warm_up_epochs": 0, "dry_run_steps": 1}
        least |= {"supernets": 1, "selection_batches": 1, "tuning_steps": 0}
        check_at_least(self, least)
        check_ops(self.ops, OPS[1:])
        if self.selection == "perturbation" and self.supernets > 1:
            raise ValueError(
                f"supernets is {self.supernets}; perturbation selects by one. Use --supernets=1 and raise --trials"
            )
        if self.warm_up_epochs >= self.search_epochs:
            raise ValueError(
                f"warm_up_epochs is {self.warm_up_epochs} of {self.search_epochs} search_epochs; expected fewer, since "
                "the alphas learn in the others"
            )
        even = "an even number, since a factorized reduction halves it"
        check_options(self, "search_filters filters", even, lambda value: value % 2 == 0)
        check_options(self, "trials", f"at most {SEEDS}", lambda value: value <= SEEDS)
        check_options(self, "alpha_rate", "a rate above 0", lambda value: value > 0)
        check_options(self, "save_seconds", "0 seconds or more", lambda value: value >= 0)

    def make_space(self) -> DartsSpace:
        """Returns all cells that are searched."""
        return DartsSpace(self.nodes, tuple(op for op in OPS if op in self.ops), self.fixed_reduction)


PRESETS = {
    "laptop": Config(trials=1, supernets=5),  # the best on the table darts: docs/results.md
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
