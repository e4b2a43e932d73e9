"""PNASNet: cells grow node by node, and a predictor says which of the many larger cells are worth training.

    python -m recipes.pnasnet                            # minutes on 2 cores, embedded images
    python -m recipes.pnasnet --algorithm=random         # cells of full size at random, at the same budget
    python -m recipes.pnasnet --preset=paper --dry_run   # what the paper's search would need on this machine

The result is runs/pnasnet/genotype.json. Killed and started again with the same command, the search goes on.

Source: Liu et al., "Progressive Neural Architecture Search", ECCV 2018: 136 cells of one node, then 256 of each size
up to 5, 1,160 networks of N=2, F=24 for 20 epochs. Departures: the result is the best cell of any size; steps and batch
of the predictor, which the paper does not state, are ours, as are the rounds after the last level; the laptop preset
trains some cells of one node only, its predictor learns ranks instead of accuracies, and it explores.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from recipes import _main
from recipes.engine import run as child_search
from recipes.engine import spaces_pnasnet, tuner
from recipes.engine.children import ChildConfig, Children
from recipes.oracles import Fitting, ProgressiveOracle, RandomSearch, SearchOracle
from recipes.training.tensorflow_options import run_branches_side_by_side
from zoo.genotype import Genotype


@dataclasses.dataclass(frozen=True)
class Config(ChildConfig):
    """Options of the search."""

    algorithm: Literal["progressive", "random"] = "progressive"  # random is the baseline
    nodes: int = 3  # of the largest cells; the paper has 5
    beam: int = 5  # K: cells trained of each size but the first
    first: int | None = 8  # cells of one node, drawn at random; none trains all 136
    round_size: int = 3  # cells between two fits of the predictor, once all sizes are done and trials are left
    explore: float = 1.0  # how many of the predictor's deviations the ranking strays at random; the paper has 0
    predictor: Literal["mlp", "lstm"] = "mlp"  # what predicts a cell's accuracy
    members: int = 5  # networks of the predictor
    target: Literal["accuracy", "ranks"] = "ranks"  # what the predictor learns
    embedding: int = 100  # units of the predictor's embeddings
    hidden: int = 100  # units of its hidden layers
    first_rate: float = 0.01  # its learning rate at first
    predictor_rate: float = 0.002  # its learning rate thereafter
    predictor_steps: int = 200  # of each of its fits
    repeats: int = 1  # N: cells before, between and behind the two strided ones, these counted in
    filters: int = 8  # F: of each node before the first reduction
    folder: Path = Path("runs/pnasnet")  # results, and the state to resume from

    def __post_init__(self):
        super().__post_init__()
        for name in ("nodes", "beam", "first", "round_size", "repeats", "filters"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; expected a whole number from 1")
        if self.explore < 0:
            raise ValueError(f"explore is {self.explore}; expected 0 or more")
        self.fitting()

    def fitting(self) -> Fitting:
        """Returns how the predictor is made and trained."""
        return Fitting(
            network=self.predictor,
            members=self.members,
            embedding=self.embedding,
            hidden=self.hidden,
            first_rate=self.first_rate,
            rate=self.predictor_rate,
            steps=self.predictor_steps,
            target=self.target,
        )


PRESETS = {
    "laptop": Config(),
    "paper": Config(
        trials=136 + 4 * 256,
        data="tfds:cifar10",
        image_size=None,
        training_images=None,
        validation_images=5000,
        epochs=20,
        batch_size=32,
        learning_rate=0.01,
        weight_decay=5e-4,
        augment=True,
        nodes=5,
        beam=256,
        first=None,
        round_size=256,
        explore=0.0,
        target="accuracy",
        repeats=2,
        filters=24,
        folder=Path("runs/pnasnet-paper"),
    ),
    "smoke": Config(
        trials=5,
        image_size=8,
        training_images=60,
        validation_images=100,
        epochs=1,
        nodes=2,
        beam=2,
        first=2,
        round_size=1,
        embedding=4,
        hidden=8,
        predictor_steps=20,
        filters=4,
        folder=Path("runs/pnasnet-smoke"),
    ),
}


def search(config: Config, observe: Callable[[tuner.Status], None] | None = None) -> Genotype:
    """Searches and returns the best cell; `observe` gets the state of the search instead of a progress bar."""
    space = spaces_pnasnet.pnasnet(config.nodes, growing=config.algorithm == "progressive")
    return child_search.of_cells(config, space, "pnasnet", "pnasnet", oracle, observe)


def oracle(config: Config, space: spaces_pnasnet.GrowingCellSpace, children: Children) -> SearchOracle:
    """Returns the oracle that `config` asks for."""
    arguments = child_search.oracle_arguments(config, space, children)
    if config.algorithm == "random":
        return RandomSearch(**arguments)
    return ProgressiveOracle(
        **arguments,
        levels=space.levels,
        depth=spaces_pnasnet.DEPTH,
        kinds=space.kinds,
        pooled=True,
        beam=config.beam,
        first=config.first,
        round_size=config.round_size,
        explore=config.explore,
        fitting=config.fitting(),
    )


if __name__ == "__main__":
    run_branches_side_by_side()
    _main.run(search, PRESETS)
