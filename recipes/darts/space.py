"""All cells that DARTS can end with."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from recipes.darts.supernet import OPS
from recipes.engine.spaces import Decision, Space
from zoo.genotype import INPUT_STATES, CellGraph, Cells, Edge, Node
from zoo.genotype_json import graph_from_dict


@dataclasses.dataclass(frozen=True)
class RandomCells(Space):
    """All cells that DARTS can end with: each node reads two different states, by operations other than "none"."""

    nodes: int

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """For each node the pair of states, and two operations."""
        found = []
        for cell in ("normal", "reduce"):
            for node in range(self.nodes):
                states = range(INPUT_STATES + node)
                pairs = tuple(f"{a},{b}" for b in states for a in states if a < b)
                found.append(Decision(f"{cell}/node{node}/states", pairs, "state"))
                found += [Decision(f"{cell}/node{node}/op{edge}", OPS[1:], "op") for edge in (0, 1)]
        return tuple(found)

    def body(self, values: Mapping[str, Any]) -> Cells:
        """Returns the cells that the values stand for."""
        graphs = []
        for cell in ("normal", "reduce"):
            nodes = []
            for node in range(self.nodes):
                at = f"{cell}/node{node}"
                states = [int(state) for state in values[f"{at}/states"].split(",")]
                edges = tuple(Edge(values[f"{at}/op{edge}"], state) for edge, state in enumerate(states))
                nodes.append(Node(edges))
            graphs.append(CellGraph(tuple(nodes), tuple(range(INPUT_STATES, INPUT_STATES + self.nodes))))
        return Cells(*graphs)


def cells_of(found: Mapping[str, Any]) -> Cells:
    """Returns the cells that a search has left in its file."""
    return Cells(graph_from_dict(found["normal"]), graph_from_dict(found["reduce"]))
