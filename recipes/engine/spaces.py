"""Search spaces: named decisions, and the genotype that their values stand for; those of cells are here too.

A cell grows node by node: which earlier states a node reads, and what it does to them. Node j may read the two inputs
and the nodes before it, so whatever is drawn or mutated has no cycle.
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
_LONGEST_PATH = 3  # ops; of a feature


@dataclasses.dataclass(frozen=True)
class Decision:
    """One choice; `kind` groups the decisions that one kind of mutation changes."""

    name: str
    choices: tuple[Any, ...]
    kind: str


class Space:
    """What all spaces share; a subclass says which decisions it has and which architecture their values make."""

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """In the order in which a controller takes them."""
        raise NotImplementedError

    def body(self, values: Mapping[str, Any]) -> Any:
        """Returns the architecture that `values` (decision -> choice) stand for."""
        raise NotImplementedError

    @property
    def kinds(self) -> dict[str, list[str]]:
        """Kind of mutation -> names of its decisions."""
        return kinds_of(self.decisions)

    @property
    def size(self) -> int:
        """How many ways there are to choose; equal architectures are counted once for each way to write them."""
        return math.prod(len(decision.choices) for decision in self.decisions)

    def hyperparameters(self) -> Any:
        """Returns the decisions as keras_tuner.HyperParameters."""
        return hyperparameters_of(self.decisions)

    def sample(self, rng: np.random.Generator) -> dict[str, Any]:
        """Draws every decision uniformly."""
        return choose(self.decisions, rng.integers([len(decision.choices) for decision in self.decisions]).tolist())

    def key(self, values: Mapping[str, Any]) -> str:
        """Returns a hash that equal architectures share."""
        return canonical_hash(self.body(values))

    def count_features(self, values: Mapping[str, Any]) -> Mapping[Hashable, int]:
        """Returns how often the architecture has what, for `recipes.oracles.BayesianSearch`.

        That is each decision with its value, once, unless a space knows better.
        """
        return dict.fromkeys(values.items(), 1)


def count_cell_features(graph: CellGraph) -> Counter[Hashable]:
    """Returns how often a cell has each path of up to 3 ops, each op, and each combiner; equal cells have equal counts.

    Longer paths are many, and tell next to nothing (White et al., NeurIPS 2020, on truncated path encodings).
    """
    found: Counter[Hashable] = Counter()
    found.update(graph.count_paths(_LONGEST_PATH))
    for state in graph.live_states():
        if state >= INPUT_STATES:
            found.update(op for _, (op, _) in graph.edges_of(state))
            found[graph.nodes[state - INPUT_STATES].combine] += 1
    return found


def kinds_of(decisions: Sequence[Decision]) -> dict[str, list[str]]:
    """Returns kind -> names, in the order of the decisions."""
    kinds = dict.fromkeys(decision.kind for decision in decisions)
    return {kind: [decision.name for decision in decisions if decision.kind == kind] for kind in kinds}


def hyperparameters_of(decisions: Sequence[Decision]) -> Any:
    """Returns one keras_tuner Choice for each decision."""
    import keras_tuner  # it brings TensorFlow, which a look at a space does not need

    hyperparameters = keras_tuner.HyperParameters()
    for decision in decisions:
        hyperparameters.Choice(decision.name, list(decision.choices), ordered=False)
    return hyperparameters


def choose(decisions: Sequence[Decision], places: Sequence[int]) -> dict[str, Any]:
    """Returns decision -> choice, of the place of the choice in each decision."""
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
    """Cells of `nodes` nodes; each node reads two earlier states, does one op to each, and combines the results.

    What no node reads is the cell's output, joined along the channels.

    Attributes:
        name: for messages and provenance.
        ops: names of zoo.genotype.OP_NAMES.
        nodes: nodes a cell; the paper calls them blocks or combinations, and has 5.
        combiners: ("add",), or with "concat" as NASNet's space has it.
        cells: ("normal", "reduce"), or ("normal",) where one cell does both (PNASNet).
    """

    name: str
    ops: tuple[str, ...]
    nodes: int = 5
    combiners: tuple[str, ...] = ("add",)
    cells: tuple[str, ...] = ("normal", "reduce")

    def __post_init__(self):
        check_at_least(self, {"nodes": 1})
        check_options(self, "ops", "one at least, such as sep_conv_3x3", bool)

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
        """Returns the cells that `values` (decision -> choice) stand for."""
        graphs = {cell: self._graph(cell, values) for cell in self.cells}
        return Cells(graphs["normal"], graphs.get("reduce"))

    def count_features(self, values: Mapping[str, Any]) -> Mapping[Hashable, int]:
        """Returns how often each cell has a path, an op or a combiner; equal architectures have equal counts."""
        counts = {cell: count_cell_features(self._graph(cell, values)) for cell in self.cells}
        return {(cell, feature): count for cell, found in counts.items() for feature, count in found.items()}

    def values(self, body: Cells) -> dict[str, Any]:
        """Returns the values that stand for `body`: the inverse of `body`, for cells that lie in this space.

        Raises:
            ValueError: the cell has another number of nodes, or an op or combiner that the space lacks.
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
    """The space of NASNet: 13 ops, results added or joined."""
    return CellSpace("nasnet", NASNET_OPS, nodes, combiners=("add", "concat"))


def amoebanet(nodes: int = 5) -> CellSpace:
    """The space of AmoebaNet: 8 ops, results added."""
    return CellSpace("amoebanet", AMOEBANET_OPS, nodes)


def uniform_cells(space: CellSpace) -> list[dict[str, Any]]:
    """Returns, for each op, the values of the deepest cells that have nothing but it: the largest network is one."""
    return [{d.name: op if d.kind == "op" else d.choices[-1] for d in space.decisions} for op in space.ops]
