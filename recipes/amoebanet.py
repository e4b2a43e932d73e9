"""AmoebaNet: aging evolution over cells, and random search as its baseline.

    python -m recipes.amoebanet                            # minutes on 2 cores, embedded images
    python -m recipes.amoebanet --algorithm=random         # the baseline at the same budget
    python -m recipes.amoebanet --algorithm=bayesian       # or local: baselines that the paper lacks, for small budgets
    python -m recipes.amoebanet --preset=paper --dry_run   # what the paper's search would need on this machine

The result is runs/amoebanet/genotype.json, which zoo.build and every other recipe accept. Killed and started again with
the same command, the search resumes.

Source: Real et al., "Regularized Evolution for Image Classifier Architecture Search", AAAI 2019: population 100, sample
25, 20,000 networks of N=3, F=24 for 25 epochs. Departures: cells equal to a known one are not trained again.
"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from recipes import _main
from recipes.engine import spaces
from recipes.engine.config import PAPER_CIFAR10, SMOKE, TrialConfig, offer_oracle
from recipes.training import check_at_least, check_options
from recipes.training.progress import Observe
from recipes.training.tensorflow_options import run_branches_side_by_side
from zoo.genotype import Genotype

if TYPE_CHECKING:
    from recipes.engine.children import NetworkScorer
    from recipes.oracles import SearchOracle


@dataclasses.dataclass(frozen=True)
class Config(TrialConfig):
    """Options of the search."""

    # random is the paper's baseline; local and bayesian are ours, strong when few networks can be trained; nsga2 goes
    # with objectives
    algorithm: Literal["evolution", "random", "local", "bayesian", "nsga2"] = "evolution"
    space: Literal["amoebanet", "nasnet"] = "amoebanet"  # the 8 ops of AmoebaNet, or the 13 and two combiners of NASNet
    nodes: int = 3  # nodes per cell; the paper has 5
    population: int = 12  # cells alive at once
    sample: int = 12  # cells drawn for each tournament, with replacement; large samples suit short searches
    identity: float = 0.05  # probability that a child equals its parent
    ageing: bool = True  # remove the oldest cell; otherwise the worst
    repeats: int = 1  # N: normal cells before, between and after the two reductions
    filters: int = 8  # F: filters of each node before the first reduction
    folder: Path = Path("runs/amoebanet")  # results, and the state to resume from

    def __post_init__(self):
        super().__post_init__()
        check_at_least(self, {"nodes": 1, "population": 1, "sample": 1, "repeats": 1, "filters": 1})
        check_options(self, "identity", "a probability from 0 to less than 1", lambda value: 0 <= value < 1)


PRESETS = {
    "laptop": Config(),
    "paper": Config(
        **PAPER_CIFAR10, trials=20_000, epochs=25, learning_rate=0.025, nodes=5, population=100, sample=25, repeats=3,
        filters=24, folder=Path("runs/amoebanet-paper"),
    ),
    "smoke": Config(
        **SMOKE, epochs=2, trials=4, nodes=1, population=2, sample=2, filters=4, folder=Path("runs/amoebanet-smoke"),
    ),
}  # fmt: skip


def search(config: Config, observe: Observe | None = None) -> Genotype:
    """Searches and returns the best cells; `observe` receives the search's state in place of a progress bar."""
    from recipes import _search

    space = spaces.amoebanet(config.nodes) if config.space == "amoebanet" else spaces.nasnet(config.nodes)
    return _search.search_cells(config, space, config.space, "amoebanet", make_oracle, observe)


def make_oracle(config: Config, space: spaces.CellSpace, scorer: "NetworkScorer") -> "SearchOracle":
    """Returns the oracle that `config` asks for."""
    from recipes.oracles import AgingEvolution

    return scorer.baseline_oracle(config.algorithm) or AgingEvolution(
        **scorer.oracle_arguments(),
        population=config.population,
        sample=config.sample,
        identity=config.identity,
        kinds=space.kinds,
        ageing=config.ageing,
    )


__getattr__ = offer_oracle("AgingEvolution", __name__)


if __name__ == "__main__":
    run_branches_side_by_side()
    _main.run(search, PRESETS)
