"""The cells of DARTS: as decisions, and as the strengths of a supernet's operations."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from recipes.engine.spaces import Decision, Space, check_values
from zoo.genotype import INPUT_STATES, CellGraph, Cells, Edge, Node

# The order of quark0/darts' PRIMITIVES
OPS = tuple(
    """none max_pool_3x3 avg_pool_3x3 skip_connect sep_conv_3x3 sep_conv_5x5 dil_conv_3x3 dil_conv_5x5""".split()
)


@dataclasses.dataclass(frozen=True)
class DartsSpace(Space):
    """All cells that DARTS can end with: each node reads two different states, by operations other than "none"."""

    nodes: int

    @property
    def edges(self) -> int:
        """How many edges a cell of the supernet has: each node reads every state before it."""
        return sum(INPUT_STATES + node for node in range(self.nodes))

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
                nodes.append(Node(tuple(Edge(values[f"{at}/op{edge}"], state) for edge, state in enumerate(states))))
            graphs.append(self._graph(nodes))
        return Cells(*graphs)

    def values(self, body: Cells) -> dict[str, Any]:
        """Returns the values that stand for `body`: the inverse of `body`."""
        found = {}
        for cell, graph in (("normal", body.normal), ("reduce", body.reduce)):
            assert graph is not None
            for number, node in enumerate(graph.nodes):
                first, second = sorted(node.edges, key=lambda edge: edge.state)
                found[f"{cell}/node{number}/states"] = f"{first.state},{second.state}"
                found |= {f"{cell}/node{number}/op0": first.op, f"{cell}/node{number}/op1": second.op}
        return check_values(found, self.decisions)

    def derive(self, strengths: Any) -> Cells:
        """Returns the cells that strengths, an array (2, edges, ops), stand for.

        Each node keeps the two edges with the strongest operation other than "none", and on each its strongest one.
        """
        graphs = []
        for table in strengths:
            found = []
            for rows in self.split_edges(table):
                rows = rows[:, 1:]  # without "none"
                strongest = sorted(range(len(rows)), key=lambda source, rows=rows: -rows[source].max())[:2]
                edges = (Edge(OPS[1 + int(rows[source].argmax())], source) for source in sorted(strongest))
                found.append(Node(tuple(edges)))
            graphs.append(self._graph(found))
        return Cells(*graphs)

    def strengths(self, cells: Cells) -> np.ndarray:
        """Returns the strengths (2, edges, ops) with which the supernet is these cells: 1 for each of their operations.

        Raises:
            ValueError: cells of another number of nodes, or without a reduction cell.
        """
        graphs = [graph for graph in (cells.normal, cells.reduce) if graph is not None]
        if [len(graph.nodes) for graph in graphs] != [self.nodes] * 2:
            raise ValueError(
                f"expected a normal and a reduction cell of {self.nodes} nodes each, as the supernet has them"
            )
        strengths = np.zeros((2, self.edges, len(OPS)), np.float32)
        for table, graph in zip(strengths, graphs, strict=True):
            for rows, node in zip(self.split_edges(table), graph.nodes, strict=True):
                for edge in node.edges:
                    rows[edge.state, OPS.index(edge.op)] = 1
        return strengths

    def split_edges(self, table: Any) -> list[Any]:
        """Cuts (edges, ..) into the edges of each node, one a state that it may read."""
        return np.split(table, np.cumsum([INPUT_STATES + node for node in range(self.nodes - 1)]))

    def _graph(self, nodes: list[Node]) -> CellGraph:
        return CellGraph(tuple(nodes), tuple(range(INPUT_STATES, INPUT_STATES + self.nodes)))
