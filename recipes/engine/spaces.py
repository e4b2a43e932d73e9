"""Search spaces: named decisions and the architecture that their values encode; the spaces of cells.

A cell grows node by node: which earlier states a node reads, and which op it applies to each. Node j may read the two
inputs and the nodes before it, so no draw or mutation has a cycle.
"""

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from recipes.training import check_at_least, check_options
from zoo.canonical import canonical_hash
from zoo.genotype import INPUT_STATES, CellGraph, Cells, Edge, Node, near

# Zoph et al. 2018, section 3; its "identity" is skip_connect here
NASNET_OPS = tuple(
    """skip_connect conv_1x3_3x1 conv_1x7_7x1 dil_conv_3x3 avg_pool_3x3 max_pool_3x3 max_pool_5x5 max_pool_7x7
    conv_1x1 conv_3x3 sep_conv_3x3 sep_conv_5x5 sep_conv_7x7""".split()
)
# Real et al. 2019, Methods; Liu et al. 2018 (PNASNet) uses the same eight
AMOEBANET_OPS = tuple(
    """skip_connect sep_conv_3x3 sep_conv_5x5 sep_conv_7x7 avg_pool_3x3 max_pool_3x3 dil_conv_3x3
    conv_1x7_7x1""".split()
)
PNASNET_OPS = AMOEBANET_OPS
_LONGEST_PATH = 3  # ops of a path that is a feature


@dataclasses.dataclass(frozen=True)
class Decision:
    """One decision and its choices; `kind` groups the decisions that one kind of mutation changes."""

    name: str
    choices: tuple[Any, ...]
    kind: str


class Space:
    """Base of all spaces; a subclass defines the decisions and the architecture that their values encode."""

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """All decisions, in the order in which a controller makes them."""
        raise NotImplementedError

    def body(self, values: Mapping[str, Any]) -> Any:
        """Returns the architecture that `values` (decision -> choice) encode."""
        raise NotImplementedError

    @property
    def kinds(self) -> dict[str, list[str]]:
        """Kind of mutation -> names of its decisions."""
        return group_kinds(self.decisions)

    @property
    def size(self) -> int:
        """Number of combinations of choices; an architecture counts once for each of its encodings."""
        return math.prod(len(decision.choices) for decision in self.decisions)

    def hyperparameters(self) -> Any:
        """Returns the decisions as keras_tuner.HyperParameters."""
        return make_hyperparameters(self.decisions)

    def sample(self, rng: np.random.Generator) -> dict[str, Any]:
        """Draws every decision uniformly."""
        return choose(self.decisions, rng.integers([len(decision.choices) for decision in self.decisions]).tolist())

    def key(self, values: Mapping[str, Any]) -> str:
        """Returns the hash shared by equal architectures."""
        return canonical_hash(self.body(values))

    def count_features(self, values: Mapping[str, Any]) -> Mapping[Hashable, int]:
        """Returns feature -> count of the architecture, for `recipes.oracles.BayesianSearch`.

        Unless a space overrides this, the features are the decisions with their values, once each.
        """
        return dict.fromkeys(values.items(), 1)


def count_cell_features(graph: CellGraph) -> Counter[Hashable]:
    """Counts each path of up to 3 ops, each op, and each combiner of a cell; equal cells have equal counts.

    Longer paths are many and tell almost nothing (White et al., NeurIPS 2020, on truncated path encodings).
    """
    found: Counter[Hashable] = Counter()
    found.update(graph.count_paths(_LONGEST_PATH))
    for state in graph.live_states():
        if state >= INPUT_STATES:
            found.update(op for _, (op, _) in graph.edges_of(state))
            found[graph.nodes[state - INPUT_STATES].combine] += 1
    return found


def group_kinds(decisions: Sequence[Decision]) -> dict[str, list[str]]:
    """Returns kind -> names of its decisions, in order."""
    kinds = dict.fromkeys(decision.kind for decision in decisions)
    return {kind: [decision.name for decision in decisions if decision.kind == kind] for kind in kinds}


def make_hyperparameters(decisions: Sequence[Decision]) -> Any:
    """Returns one keras_tuner Choice for each decision."""
    import keras_tuner  # imports TensorFlow, which reading a space does not need

    hyperparameters = keras_tuner.HyperParameters()
    for decision in decisions:
        hyperparameters.Choice(decision.name, list(decision.choices), ordered=False)
    return hyperparameters


def choose(decisions: Sequence[Decision], places: Sequence[int]) -> dict[str, Any]:
    """Returns decision -> choice, from the index of the choice in each decision."""
    return {each.name: each.choices[place] for each, place in zip(decisions, places, strict=True)}


def check_values(values: Mapping[str, Any], decisions: Sequence[Decision]) -> dict[str, Any]:
    """Returns `values` in the order of the decisions.

    Raises:
        ValueError: a name or a value that the decisions do not have.
    """
    names = [decision.name for decision in decisions]
    for name in values:
        if name not in names:
            raise ValueError(f"there is no decision {name!r}{near(name, names)}; expected {', '.join(names[:6])} ..")
    for decision in decisions:
        if decision.name not in values:
            raise ValueError(f"no value for the decision {decision.name!r}; expected one of {list(decision.choices)}")
        if values[decision.name] not in decision.choices:
            raise ValueError(f"{decision.name} is {values[decision.name]!r}; expected one of {list(decision.choices)}")
    return {decision.name: values[decision.name] for decision in decisions}


@dataclasses.dataclass(frozen=True)
class CellSpace(Space):
    """Cells of `nodes` nodes; each node reads two earlier states, applies one op to each, and combines the results.

    The nodes that no other node reads are concatenated along the channels into the cell's output.

    Attributes:
        name: for messages and provenance.
        ops: names of zoo.genotype.OP_NAMES.
        nodes: nodes per cell; the paper calls them blocks or combinations, and has 5.
        combiners: ("add",), or ("add", "concat") as in NASNet's space.
        cells: ("normal", "reduce"), or ("normal",) if one cell does both (PNASNet).
    """

    name: str
    ops: tuple[str, ...]
    nodes: int = 5
    combiners: tuple[str, ...] = ("add",)
    cells: tuple[str, ...] = ("normal", "reduce")

    def __post_init__(self):
        check_at_least(self, {"nodes": 1})
        check_options(self, "ops", "at least one, such as sep_conv_3x3", bool)

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """In the order of the NASNet controller: cell by cell, node by node: inputs, ops, combiner."""
        found = []
        for cell, node in itertools.product(self.cells, range(self.nodes)):
            states = tuple(range(INPUT_STATES + node))
            found += [Decision(f"{cell}/node{node}/state{edge}", states, "state") for edge in (0, 1)]
            found += [Decision(f"{cell}/node{node}/op{edge}", self.ops, "op") for edge in (0, 1)]
            if len(self.combiners) > 1:
                found.append(Decision(f"{cell}/node{node}/combine", self.combiners, "combine"))
        return tuple(found)

    def body(self, values: Mapping[str, Any]) -> Cells:
        """Returns the cells that `values` (decision -> choice) encode."""
        graphs = {cell: self._graph(cell, values) for cell in self.cells}
        return Cells(graphs["normal"], graphs.get("reduce"))

    def count_features(self, values: Mapping[str, Any]) -> Mapping[Hashable, int]:
        """Counts the paths, ops and combiners of each cell; equal architectures have equal counts."""
        counts = {cell: count_cell_features(self._graph(cell, values)) for cell in self.cells}
        return {(cell, feature): count for cell, found in counts.items() for feature, count in found.items()}

    def values(self, body: Cells) -> dict[str, Any]:
        """Returns the values that encode `body`: the inverse of the method `body`, for cells of this space.

        Raises:
            ValueError: a cell has another number of nodes, or an op or combiner that the space lacks.
        """
        found = {}
        for cell in self.cells:
            graph = getattr(body, cell)
            if graph is None or len(graph.nodes) != self.nodes:
                count = 0 if graph is None else len(graph.nodes)
                raise ValueError(f"the {cell} cell has {count} nodes; the space {self.name} has {self.nodes}")
            for number, node in enumerate(graph.nodes):
                for edge, (op, state) in enumerate(node.edges):
                    found[f"{cell}/node{number}/state{edge}"] = state
                    found[f"{cell}/node{number}/op{edge}"] = op
                if len(self.combiners) > 1:
                    found[f"{cell}/node{number}/combine"] = node.combine
        return check_values(found, self.decisions)

    def _graph(self, cell: str, values: Mapping[str, Any]) -> CellGraph:
        nodes = []
        for number in range(self.nodes):
            at = f"{cell}/node{number}"
            edges = tuple(Edge(values[f"{at}/op{edge}"], values[f"{at}/state{edge}"]) for edge in (0, 1))
            nodes.append(Node(edges, values.get(f"{at}/combine", self.combiners[0])))
        used = {edge.state for node in nodes for edge in node.edges}
        loose = tuple(state for state in range(INPUT_STATES, INPUT_STATES + self.nodes) if state not in used)
        return CellGraph(tuple(nodes), loose)


def nasnet(nodes: int = 5) -> CellSpace:
    """The space of NASNet: 13 ops, results added or concatenated."""
    return CellSpace("nasnet", NASNET_OPS, nodes, combiners=("add", "concat"))


def amoebanet(nodes: int = 5) -> CellSpace:
    """The space of AmoebaNet: 8 ops, results added."""
    return CellSpace("amoebanet", AMOEBANET_OPS, nodes)


def uniform_cells(space: CellSpace) -> list[dict[str, Any]]:
    """Returns, for each op, the values of the deepest cells with only this op; the largest network is among them."""
    return [{d.name: op if d.kind == "op" else d.choices[-1] for d in space.decisions} for op in space.ops]
