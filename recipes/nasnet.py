"""NASNet: an LSTM controller draws cells with 13 operations and two combiners, and learns from their scores.

    python -m recipes.nasnet                            # minutes on 2 cores, embedded images
    python -m recipes.nasnet --algorithm=random         # the paper's baseline at the same budget
    python -m recipes.nasnet --algorithm=bayesian       # or local: baselines that the paper lacks, for small budgets
    python -m recipes.nasnet --preset=paper --dry_run   # what the paper's search would need on this machine

The result is runs/nasnet/genotype.json. Killed and started again with the same command, the search resumes.

Source: Zoph et al., "Learning Transferable Architectures for Scalable Image Recognition", CVPR 2018, section 3 and
appendix A. Departures: equal cells are trained once; PPO's clip and passes, which the paper does not state, have their
usual values; a cell's output consists only of the nodes that no other reads; the laptop preset learns ten times as
fast, because it has 24 trials.
"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from recipes import _main
from recipes.engine import spaces
from recipes.engine.config import PAPER_CIFAR10, SMOKE, ControllerConfig, offer_oracle
from recipes.training import check_at_least
from recipes.training.progress import Observe
from recipes.training.tensorflow_options import run_branches_side_by_side
from zoo.genotype import Genotype

if TYPE_CHECKING:
    from recipes.engine.children import NetworkScorer
    from recipes.oracles import SearchOracle


@dataclasses.dataclass(frozen=True)
class Config(ControllerConfig):
    """Options of the search."""

    nodes: int = 3  # nodes per cell; the paper has 5
    repeats: int = 1  # N: normal cells before, between and after the two reductions
    filters: int = 8  # F: filters of each node before the first reduction
    folder: Path = Path("runs/nasnet")  # results, and the state to resume from

    def __post_init__(self):
        super().__post_init__()
        check_at_least(self, {"nodes": 1, "repeats": 1, "filters": 1})


PRESETS = {
    "laptop": Config(),
    "paper": Config(
        **PAPER_CIFAR10, trials=20_000, epochs=20, learning_rate=0.025, nodes=5, controller_rate=0.00035,
        controller_batch=20, repeats=2, filters=32,  # not stated in the paper
        folder=Path("runs/nasnet-paper"),
    ),
    "smoke": Config(
        **SMOKE, epochs=1, trials=3, nodes=1, hidden=10, controller_batch=2, filters=4,
        folder=Path("runs/nasnet-smoke"),
    ),
}  # fmt: skip


def search(config: Config, observe: Observe | None = None) -> Genotype:
    """Searches and returns the best cells; `observe` receives the search's state in place of a progress bar."""
    from recipes import _search

    return _search.search_cells(config, spaces.nasnet(config.nodes), "nasnet", "nasnet", make_oracle, observe)


def make_oracle(config: Config, space: spaces.CellSpace, scorer: "NetworkScorer") -> "SearchOracle":
    """Returns the oracle that `config` asks for."""
    return scorer.baseline_oracle(config.algorithm) or config.make_controller(scorer.oracle_arguments())


__getattr__ = offer_oracle("ControllerOracle", __name__)


if __name__ == "__main__":
    run_branches_side_by_side()
    _main.run(search, PRESETS)
