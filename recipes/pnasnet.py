"""PNASNet: cells grow node by node, and a predictor says which of the many larger cells are worth training.

    python -m recipes.pnasnet                            # minutes on 2 cores, embedded images
    python -m recipes.pnasnet --algorithm=random         # cells of full size at random, at the same budget
    python -m recipes.pnasnet --algorithm=bayesian       # or local: cells of full size, by our baselines
    python -m recipes.pnasnet --preset=paper --dry_run   # what the paper's search would need on this machine

The result is runs/pnasnet/genotype.json. Killed and started again with the same command, the search resumes.

Source: Liu et al., "Progressive Neural Architecture Search", ECCV 2018: 136 cells of one node, then 256 of each size
up to 5, 1,160 networks of N=2, F=24 for 20 epochs. Departures: the result is the best cell of any size; steps and batch
of the predictor, which the paper does not state, are ours, as are the rounds after the last level; the laptop preset
trains some cells of one node only, its predictor learns ranks instead of accuracies, and it explores.
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

    # random is the paper's baseline; local and bayesian are ours, strong where few networks can be trained; nsga2 goes
    # with objectives
    algorithm: Literal["progressive", "random", "local", "bayesian", "nsga2"] = "progressive"
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
    repeats: int = 1  # N: cells before, between and after the two strided ones, these included
    filters: int = 8  # F: of each node before the first reduction
    folder: Path = Path("runs/pnasnet")  # results, and the state to resume from

    def __post_init__(self):
        super().__post_init__()
        least = {"nodes": 1, "beam": 1, "first": 1, "round_size": 1, "repeats": 1, "filters": 1}
        check_at_least(self, least | {"members": 1, "embedding": 1, "hidden": 1, "predictor_steps": 1})
        check_options(self, "first_rate predictor_rate", "a rate above 0", lambda value: value > 0)
        check_options(self, "explore", "0 or more", lambda value: value >= 0)

    def fitting(self) -> "Fitting":
        """Returns how the predictor is made and trained."""
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
    """Cells of 1 to `nodes` nodes, all of which are the output; the cell runs at stride 2 as its own reduction cell.

    Attributes:
        growing: cells may have fewer nodes; the decision "nodes" says how many. Without, all have `nodes`, as the
            paper's random baseline has it.
    """

    growing: bool = True

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """How many nodes, then node by node: inputs, ops."""
        own = super().decisions
        return (Decision(DEPTH, tuple(range(1, self.nodes + 1)), DEPTH), *own) if self.growing else own

    @property
    def levels(self) -> list[list[str]]:
        """Names of the decisions of each node."""
        names = [decision.name for decision in self.decisions if decision.kind != DEPTH]
        return [names[4 * node : 4 * node + 4] for node in range(self.nodes)]

    @property
    def kinds(self) -> dict[str, list[str]]:
        """Kind -> names of the decisions with the same meaning."""
        return {kind: names for kind, names in super().kinds.items() if kind != DEPTH}

    def hyperparameters(self) -> Any:
        """Returns the decisions as keras_tuner.HyperParameters; those of nodes that a cell lacks are not active."""
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
        """Returns the values that stand for `body`; those of nodes that it lacks are left out.

        Raises:
            ValueError: the cell has more nodes than the space, or ops that it lacks, or a reduction cell of its own.
        """
        count = len(body.normal.nodes)
        if body.reduce is not None or count > self.nodes or (count < self.nodes and not self.growing):
            fitting = f"1 to {self.nodes}" if self.growing else str(self.nodes)
            raise ValueError(f"expected one cell of {fitting} nodes; this has {count}, and reduce={body.reduce!r:.60}")
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
    """Searches and returns the best cell; `observe` gets the state of the search instead of a progress bar."""
    from recipes import _search

    space = pnasnet(config.nodes, growing=config.algorithm == "progressive")
    return _search.search_cells(config, space, "pnasnet", "pnasnet", oracle, observe)


def oracle(config: Config, space: GrowingCellSpace, scorer: "NetworkScorer") -> "SearchOracle":
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
        fitting=config.fitting(),
    )


__getattr__ = offer_oracle("ProgressiveOracle", __name__)


if __name__ == "__main__":
    run_branches_side_by_side()
    _main.run(search, PRESETS)
