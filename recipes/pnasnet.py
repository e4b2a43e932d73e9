"""PNASNet: cells grow node by node, and a predictor selects which of the many larger cells to train.

    python -m recipes.pnasnet                            # minutes on 2 cores, embedded images
    python -m recipes.pnasnet --algorithm=random         # random cells of full size, at the same budget
    python -m recipes.pnasnet --algorithm=bayesian       # or local: cells of full size, by our baselines
    python -m recipes.pnasnet --preset=paper --dry_run   # what the paper's search would need on this machine

The result is runs/pnasnet/genotype.json. Killed and started again with the same command, the search resumes.

Source: Liu et al., "Progressive Neural Architecture Search", ECCV 2018: 136 cells of one node, then 256 of each size
up to 5, 1,160 networks of N=2, F=24 for 20 epochs. Departures: the result is the best cell of any size; the predictor's
steps and batch size, which the paper does not state, are ours, and so are the rounds after the last level; the laptop
preset trains only some cells of one node, its predictor learns ranks instead of accuracies, and it explores.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from recipes import _main
from recipes.engine.config import PAPER_CIFAR10, SMOKE, TrialConfig, offer_oracle
from recipes.engine.spaces import PNASNET_OPS, CellSpace, Decision, check_values
from recipes.training import check_at_least, check_options
from recipes.training.progress import Observe
from recipes.training.tensorflow_options import run_branches_side_by_side
from zoo.genotype import INPUT_STATES, CellGraph, Cells, Edge, Genotype, Node

if TYPE_CHECKING:
    from recipes.engine.children import NetworkScorer
    from recipes.oracles import Fitting, SearchOracle

DEPTH = "nodes"


@dataclasses.dataclass(frozen=True)
class Config(TrialConfig):
    """Options of the search."""

    # random is the paper's baseline; local and bayesian are ours, strong when few networks can be trained; nsga2 goes
    # with objectives
    algorithm: Literal["progressive", "random", "local", "bayesian", "nsga2"] = "progressive"
    nodes: int = 3  # nodes of the largest cells; the paper has 5
    beam: int = 5  # K: cells to train of each size but the first
    first: int | None = 8  # cells of one node to draw at random; none trains all 136
    round_size: int = 3  # cells between two fits of the predictor, for the trials left after all sizes
    explore: float = 1.0  # random noise in the ranking, in standard deviations of the predictor; the paper has 0
    predictor: Literal["mlp", "lstm"] = "mlp"  # network that predicts a cell's accuracy
    members: int = 5  # networks in the predictor's ensemble
    target: Literal["accuracy", "ranks"] = "ranks"  # what the predictor learns to predict
    embedding: int = 100  # units of the predictor's embeddings
    hidden: int = 100  # units of the predictor's hidden layers
    first_rate: float = 0.01  # learning rate of the predictor's first fit
    predictor_rate: float = 0.002  # learning rate of its later fits
    predictor_steps: int = 200  # training steps of each fit
    repeats: int = 1  # N: cells before, between and after the two strided cells, including these
    filters: int = 8  # F: filters of each node before the first reduction
    folder: Path = Path("runs/pnasnet")  # results, and the state to resume from

    def __post_init__(self):
        super().__post_init__()
        least = {"nodes": 1, "beam": 1, "first": 1, "round_size": 1, "repeats": 1, "filters": 1}
        check_at_least(self, least | {"members": 1, "embedding": 1, "hidden": 1, "predictor_steps": 1})
        check_options(self, "first_rate predictor_rate", "a rate above 0", lambda value: value > 0)
        check_options(self, "explore", "0 or more", lambda value: value >= 0)

    def make_fitting(self) -> "Fitting":
        """Returns how the predictor is built and trained."""
        from recipes.oracles import Fitting

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
        **PAPER_CIFAR10, trials=136 + 4 * 256, epochs=20, learning_rate=0.01, nodes=5, beam=256, first=None,
        round_size=256, explore=0.0, target="accuracy", repeats=2, filters=24, folder=Path("runs/pnasnet-paper"),
    ),
    "smoke": Config(
        **SMOKE, epochs=1, trials=5, nodes=2, beam=2, first=2, round_size=1, embedding=4, hidden=8,
        predictor_steps=20, filters=4, folder=Path("runs/pnasnet-smoke"),
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class GrowingCellSpace(CellSpace):
    """Cells of 1 to `nodes` nodes, all of which form the output; with stride 2, a cell is its own reduction cell.

    Attributes:
        growing: cells may have fewer nodes, by the decision "nodes". Otherwise all cells have `nodes` nodes, as in the
            paper's random baseline.
    """

    growing: bool = True

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """The number of nodes, then node by node: inputs, ops."""
        own = super().decisions
        return (Decision(DEPTH, tuple(range(1, self.nodes + 1)), DEPTH), *own) if self.growing else own

    @property
    def levels(self) -> list[list[str]]:
        """The names of each node's decisions."""
        names = [decision.name for decision in self.decisions if decision.kind != DEPTH]
        return [names[4 * node : 4 * node + 4] for node in range(self.nodes)]

    @property
    def kinds(self) -> dict[str, list[str]]:
        """Kind -> names of the decisions with the same meaning."""
        return {kind: names for kind, names in super().kinds.items() if kind != DEPTH}

    def hyperparameters(self) -> Any:
        """Returns the decisions as keras_tuner.HyperParameters; those of missing nodes are inactive."""
        if not self.growing:
            return super().hyperparameters()
        import keras_tuner

        hyperparameters = keras_tuner.HyperParameters()
        counts = list(range(1, self.nodes + 1))
        hyperparameters.Choice(DEPTH, counts, ordered=False)
        choices = {decision.name: list(decision.choices) for decision in self.decisions}
        for number, level in enumerate(self.levels):
            with hyperparameters.conditional_scope(DEPTH, counts[number:]):
                for name in level:
                    hyperparameters.Choice(name, choices[name], ordered=False)
        return hyperparameters

    def values(self, body: Cells) -> dict[str, Any]:
        """Returns the values that encode `body`, without those of missing nodes.

        Raises:
            ValueError: the cell has too many nodes, an op that the space lacks, or a separate reduction cell.
        """
        count = len(body.normal.nodes)
        if body.reduce is not None or count > self.nodes or (count < self.nodes and not self.growing):
            allowed = f"1 to {self.nodes}" if self.growing else str(self.nodes)
            raise ValueError(f"expected one cell of {allowed} nodes; this has {count}, and reduce={body.reduce!r:.60}")
        found: dict[str, Any] = {DEPTH: count} if self.growing else {}
        for names, node in zip(self.levels[:count], body.normal.nodes, strict=True):
            (op0, state0), (op1, state1) = node.edges
            found |= dict(zip(names, (state0, state1, op0, op1), strict=True))
        present = {name for names in self.levels[:count] for name in names} | {DEPTH}
        return check_values(found, [decision for decision in self.decisions if decision.name in present])

    def _graph(self, cell: str, values: Mapping[str, Any]) -> CellGraph:
        nodes = []
        for names in self.levels[: values.get(DEPTH, self.nodes)]:
            state0, state1, op0, op1 = (values[name] for name in names)
            nodes.append(Node((Edge(op0, state0), Edge(op1, state1))))
        return CellGraph(tuple(nodes), tuple(range(INPUT_STATES, INPUT_STATES + len(nodes))))


def pnasnet(nodes: int = 5, growing: bool = True) -> GrowingCellSpace:
    """The space of PNASNet: 8 ops, results added, one cell."""
    return GrowingCellSpace("pnasnet", PNASNET_OPS, nodes, cells=("normal",), growing=growing)


def search(config: Config, observe: Observe | None = None) -> Genotype:
    """Searches and returns the best cell; `observe` receives the search's state in place of a progress bar."""
    from recipes import _search

    space = pnasnet(config.nodes, growing=config.algorithm == "progressive")
    return _search.search_cells(config, space, "pnasnet", "pnasnet", make_oracle, observe)


def make_oracle(config: Config, space: GrowingCellSpace, scorer: "NetworkScorer") -> "SearchOracle":
    """Returns the oracle that `config` asks for."""
    from recipes.oracles import ProgressiveOracle

    return scorer.baseline_oracle(config.algorithm) or ProgressiveOracle(
        **scorer.oracle_arguments(),
        levels=space.levels,
        depth=DEPTH,
        kinds=space.kinds,
        pooled=True,
        beam=config.beam,
        first=config.first,
        round_size=config.round_size,
        explore=config.explore,
        fitting=config.make_fitting(),
    )


__getattr__ = offer_oracle("ProgressiveOracle", __name__)


if __name__ == "__main__":
    run_branches_side_by_side()
    _main.run(search, PRESETS)
