"""The cells of DARTS: as decisions, and as strengths of a supernet's operations."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from recipes.engine.spaces import Decision, Space, check_values
from zoo.genotype import INPUT_STATES, CellGraph, Cells, Edge, Node

# in the order of quark0/darts' PRIMITIVES
OPS = tuple(
    """none max_pool_3x3 avg_pool_3x3 skip_connect sep_conv_3x3 sep_conv_5x5 dil_conv_3x3 dil_conv_5x5""".split()
)
_NONE = OPS[0]
# DARTS' reduction cell, second order (Liu et al. 2019, figure 5); further nodes repeat the last
_FIXED = (
    (("max_pool_3x3", 0), ("max_pool_3x3", 1)),
    (("skip_connect", 2), ("max_pool_3x3", 1)),
    (("max_pool_3x3", 0), ("skip_connect", 2)),
    (("skip_connect", 2), ("max_pool_3x3", 1)),
)


@dataclasses.dataclass(frozen=True)
class DartsSpace(Space):
    """All cells that DARTS can find: each node reads two different states, by operations other than "none".

    Attributes:
        nodes: number of nodes of a cell.
        ops: operations that an edge chooses from, in the order of OPS.
        fixed_reduction: whether to search only the normal cell; the reduction cell then has the first nodes of the
            paper's, with pools and skip connections.
    """

    nodes: int
    ops: tuple[str, ...] = OPS[1:]
    fixed_reduction: bool = False

    @property
    def cells(self) -> tuple[str, ...]:
        """The cells that are searched."""
        return ("normal",) if self.fixed_reduction else ("normal", "reduce")

    @property
    def edges(self) -> int:
        """Number of edges of a cell in the supernet, in which each node reads every state before it."""
        return sum(INPUT_STATES + node for node in range(self.nodes))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the strengths: cells that are searched, edges, and operations with "none" first."""
        return len(self.cells), self.edges, 1 + len(self.ops)

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """For each node the pair of states that it reads, and two operations."""
        found = []
        for cell in self.cells:
            for node in range(self.nodes):
                states = range(INPUT_STATES + node)
                pairs = tuple(f"{a},{b}" for b in states for a in states if a < b)
                found.append(Decision(f"{cell}/node{node}/states", pairs, "state"))
                found += [Decision(f"{cell}/node{node}/op{edge}", self.ops, "op") for edge in (0, 1)]
        return tuple(found)

    def body(self, values: Mapping[str, Any]) -> Cells:
        """Returns the cells for the values of the decisions."""
        graphs = []
        for cell in self.cells:
            nodes = []
            for node in range(self.nodes):
                at = f"{cell}/node{node}"
                states = [int(state) for state in values[f"{at}/states"].split(",")]
                nodes.append(Node(tuple(Edge(values[f"{at}/op{edge}"], state) for edge, state in enumerate(states))))
            graphs.append(self._graph(nodes))
        return self._cells(graphs)

    def values(self, body: Cells) -> dict[str, Any]:
        """Returns the values of the decisions for these cells: the inverse of `body`."""
        found = {}
        for cell in self.cells:
            for number, node in enumerate(getattr(body, cell).nodes):
                first, second = sorted(node.edges, key=lambda edge: edge.state)
                found[f"{cell}/node{number}/states"] = f"{first.state},{second.state}"
                found |= {f"{cell}/node{number}/op0": first.op, f"{cell}/node{number}/op1": second.op}
        return check_values(found, self.decisions)

    def derive(self, strengths: Any) -> Cells:
        """Returns the cells that these strengths, an array of `shape`, select.

        Each node keeps the two edges with the strongest operations other than "none", and on each edge that operation.
        """
        graphs = []
        for table in strengths:
            found = []
            for rows in self.split_edges(table):
                rows = rows[:, 1:]  # without "none"
                strongest = sorted(range(len(rows)), key=lambda source, rows=rows: -rows[source].max())[:2]
                found.append(Node(tuple(Edge(self.ops[int(rows[s].argmax())], s) for s in sorted(strongest))))
            graphs.append(self._graph(found))
        return self._cells(graphs)

    def strengths(self, cells: Cells) -> np.ndarray:
        """Returns the strengths with which the supernet equals these cells: 1 for each of their operations, else 0.

        Raises:
            ValueError: the cells have another number of nodes, or no reduction cell.
        """
        graphs = [getattr(cells, name) for name in self.cells]
        if [len(graph.nodes) for graph in graphs if graph is not None] != [self.nodes] * len(graphs):
            raise ValueError(f"expected a {' and a '.join(self.cells)} cell of {self.nodes} nodes, as the supernet has")
        return np.stack([self.mark_edges(graph, (_NONE, *self.ops)) for graph in graphs])

    def mark_edges(self, graph: CellGraph, ops: tuple[str, ...]) -> np.ndarray:
        """Returns an array (edges, ops) with 1 for each operation of a cell, else 0."""
        table = np.zeros((self.edges, len(ops)), np.float32)
        for rows, node in zip(self.split_edges(table), graph.nodes, strict=True):
            for edge in node.edges:
                rows[edge.state, ops.index(edge.op)] = 1
        return table

    def split_edges(self, table: Any) -> list[Any]:
        """Splits an array (edges, ..) into the edges of each node; a node has an edge from each earlier state."""
        return np.split(table, np.cumsum([INPUT_STATES + node for node in range(self.nodes - 1)]))

    def fixed_cell(self) -> CellGraph:
        """Returns the reduction cell of a space that does not search it."""
        pairs = [_FIXED[min(node, len(_FIXED) - 1)] for node in range(self.nodes)]
        return self._graph([Node(tuple(Edge(*edge) for edge in pair)) for pair in pairs])

    def _graph(self, nodes: list[Node]) -> CellGraph:
        return CellGraph(tuple(nodes), tuple(range(INPUT_STATES, INPUT_STATES + self.nodes)))

    def _cells(self, searched: list[CellGraph]) -> Cells:
        return Cells(*searched, *([self.fixed_cell()] if self.fixed_reduction else []))
