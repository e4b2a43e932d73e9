"""The space of PNASNet (Liu et al., ECCV 2018, section 3.1): one cell for both purposes, which grows node by node."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from recipes.engine.spaces import PNASNET_OPS, CellSpace, Decision, check_values
from zoo.genotype import INPUT_STATES, CellGraph, Cells, Edge, Node

DEPTH = "nodes"


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
