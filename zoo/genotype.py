"""Genotypes: what a search found, as frozen dataclasses. Needs the standard library only.

A genotype has one of three bodies:

* `Cells`: a normal and a reduction cell, each a small graph (NASNet, PNASNet, AmoebaNet, ENAS micro, DARTS);
* `Blocks`: one record a block (MnasNet, MCUNet);
* `Chain`: layers in a row with skips among them (ENAS macro).

States of a cell are numbered oldest input first: 0 is the output of the cell before the previous one, h[c-2]; 1 is
that of the previous cell, h[c-1]; 2 and above are the cell's nodes in the order of the file.
Sequences may be given as lists; the dataclasses keep tuples, so that genotypes are hashable and compare by value.
"""

import contextlib
import dataclasses
import difflib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, TypeGuard

INPUT_STATES = 2
MOST_NODES = 100  # limit of a cell's nodes (published: 4 to 7) and of a chain's layers (published: 24)
OP_NAMES = frozenset(
    """none skip_connect
    avg_pool_3x3 max_pool_2x2 max_pool_3x3 max_pool_5x5 max_pool_7x7
    sep_conv_3x3 sep_conv_5x5 sep_conv_7x7 dil_conv_3x3 dil_conv_5x5
    conv_1x1 conv_3x3 conv_5x5 conv_1x3_3x1 conv_1x7_7x1 conv_7x1_1x7""".split()
)
COMBINERS = ("add", "concat")
BLOCK_OPS = ("conv", "sep_conv", "mb_conv")
SKIPS = ("identity", "pool", "none")


class GenotypeError(ValueError):
    """An invalid genotype; the text gives the value, what was expected, and the remedy."""


@contextlib.contextmanager
def locating(place: str | os.PathLike) -> Iterator[None]:
    """Prefixes the text of a GenotypeError with the place where it happened."""
    try:
        yield
    except GenotypeError as error:
        raise GenotypeError(f"{place}: {error}") from error


class Edge(NamedTuple):
    """The operation `op` on the state numbered `state`."""

    op: str
    state: int


@dataclasses.dataclass(frozen=True)
class Node:
    """One node of a cell: its edges' results, added or concatenated along the channels."""

    edges: tuple[Edge, ...]
    combine: Literal["add", "concat"] = "add"

    def __post_init__(self):
        edges = _tuple_of("a node's edges", self.edges, "[op, state]")
        for edge in edges:
            if not isinstance(edge, (list, tuple)) or len(edge) != 2:
                raise GenotypeError(f'an edge is {edge!r:.200}; expected [op, state], such as ["sep_conv_3x3", 0]')
            check_choice("op", edge[0], OP_NAMES)
            check_whole("the state that an edge reads", edge[1], least=0)
        object.__setattr__(self, "edges", tuple(Edge(*edge) for edge in edges))
        check_choice("combine", self.combine, COMBINERS)


@dataclasses.dataclass(frozen=True)
class CellGraph:
    """A cell: nodes, each of which reads only earlier states, and the states that are concatenated as its output."""

    nodes: tuple[Node, ...]
    concat: tuple[int, ...]

    def __post_init__(self):
        nodes = _tuple_of("a cell's nodes", self.nodes, "Node", MOST_NODES)
        for number, node in enumerate(nodes, start=INPUT_STATES):
            if not isinstance(node, Node):
                raise GenotypeError(f"node {number} is {node!r:.200}; expected a Node")
            for op, state in node.edges:
                if state >= number:
                    raise GenotypeError(
                        f"node {number} reads state {state} ({op}), which does not come before it: a cycle, or the "
                        f"wrong order. Node {number} may read the states 0 to {number - 1}; reorder the nodes"
                    )
        states = INPUT_STATES + len(nodes)
        concat = _tuple_of("a cell's concat", self.concat, "the number of an output state", states)
        for state in concat:
            if not is_whole(state) or not 0 <= state < states:
                raise GenotypeError(f"concat names state {state!r:.200}; this cell has the states 0 to {states - 1}")
        if len(set(concat)) < len(concat):
            raise GenotypeError(f"concat {list(concat)} names a state twice; expected each at most once")
        object.__setattr__(self, "nodes", nodes)
        object.__setattr__(self, "concat", concat)

    def edges_of(self, number: int) -> list[tuple[int, Edge]]:
        """Returns the (place, edge) pairs of node `number` that contribute to it, in the node's order.

        "none" contributes nothing. Nor does an edge that reads a node without contributions: such a node is zero, and
        an operation turns zeros into a constant at most.
        """
        silent: set[int] = set()
        for earlier, node in enumerate(self.nodes[: number - INPUT_STATES], start=INPUT_STATES):
            if all(op == "none" or state in silent for op, state in node.edges):
                silent.add(earlier)
        edges = enumerate(self.nodes[number - INPUT_STATES].edges)
        return [(place, edge) for place, edge in edges if edge.op != "none" and edge.state not in silent]

    def live_states(self) -> frozenset[int]:
        """Returns the states that the output depends on, through the edges of `edges_of`."""
        live, pending = set(), list(self.concat)
        while pending:
            state = pending.pop()
            if state not in live:
                live.add(state)
                if state >= INPUT_STATES:
                    pending += [edge.state for _, edge in self.edges_of(state)]
        return frozenset(live)

    def count_paths(self, longest: int) -> Counter[tuple[int | str, ...]]:
        """Counts the paths from an input to the output; a path is the input's state, then the ops along the way.

        Identities are left out, so that a path says what is done to the input. "none" leads nowhere. Paths of more than
        `longest` ops are not counted.
        """
        paths: dict[int, Counter[tuple[int | str, ...]]] = {s: Counter({(s,): 1}) for s in range(INPUT_STATES)}
        for state in range(INPUT_STATES, INPUT_STATES + len(self.nodes)):
            found: Counter[tuple[int | str, ...]] = Counter()
            for _, (op, source) in self.edges_of(state):
                for path, count in paths[source].items():
                    longer = path if op == "skip_connect" else (*path, op)
                    if len(longer) <= 1 + longest:
                        found[longer] += count
            paths[state] = found
        return sum((paths[state] for state in self.concat), Counter())


@dataclasses.dataclass(frozen=True)
class Cells:
    """A normal and a reduction cell. Without `reduce`, the normal cell at stride 2 replaces it (PNASNet)."""

    normal: CellGraph
    reduce: CellGraph | None = None

    def __post_init__(self):
        for name, graph in (("normal", self.normal), ("reduce", self.reduce)):
            if not isinstance(graph, CellGraph) and not (name == "reduce" and graph is None):
                raise GenotypeError(f"the {name} cell is {graph!r:.200}; expected a CellGraph")


@dataclasses.dataclass(frozen=True)
class Block:
    """`repeats` consecutive blocks; only the first has the strides and changes the width."""

    op: Literal["conv", "sep_conv", "mb_conv"]  # plain; depthwise then 1x1; 1x1, depthwise, 1x1
    kernel_size: int
    filters: int
    strides: int = 1
    expansion: float = 1  # of mb_conv: inner width / input width; 1 leaves out the first 1x1
    repeats: int = 1
    se_ratio: float = 0  # squeeze-and-excite width / the block's input width; 0 leaves it out
    skip: Literal["identity", "pool", "none"] = "identity"  # identity only if input and output have the same shape
    mid_filters: int | None = None  # of mb_conv: inner width, in place of expansion x input width

    def __post_init__(self):
        check_choice("a block's op", self.op, BLOCK_OPS)
        check_choice("a block's skip", self.skip, SKIPS)
        for name in ("kernel_size", "filters", "strides", "repeats"):
            check_whole(f"a block's {name}", getattr(self, name))
        if self.repeats > MOST_NODES:
            raise GenotypeError(f"a block's repeats is {self.repeats}; expected 1 to {MOST_NODES}")
        if self.kernel_size % 2 == 0:
            raise GenotypeError(f"a block's kernel_size is {self.kernel_size}; expected an odd number")
        if self.mid_filters is not None:
            check_whole("a block's mid_filters", self.mid_filters)
        for name, least in (("expansion", 0.01), ("se_ratio", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= 100:
                raise GenotypeError(f"a block's {name} is {value!r:.200}; expected a number from {least} to 100")
        if self.op != "mb_conv" and (self.expansion != 1 or self.mid_filters is not None):
            raise GenotypeError(
                f"a {self.op} block has expansion {self.expansion} and mid_filters {self.mid_filters}; only mb_conv "
                "has an inner width. Leave both out, or make it mb_conv"
            )


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Stem, rows of blocks, and the 1x1 convolution before the classifier (`head_filters`; None leaves it out)."""

    rows: tuple[Block, ...]
    stem_filters: int
    head_filters: int | None = None

    def __post_init__(self):
        rows = _tuple_of("blocks' rows", self.rows, "Block")
        for number, row in enumerate(rows, start=1):
            if not isinstance(row, Block):
                raise GenotypeError(f"row {number} of blocks is {row!r:.200}; expected a Block")
        check_whole("stem_filters", self.stem_filters)
        if self.head_filters is not None:
            check_whole("head_filters", self.head_filters)
        object.__setattr__(self, "rows", rows)


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer of a chain: `op` on the previous state, its output joined with the skips, which are earlier states.

    State 0 is the stem, state k the k-th layer.
    """

    op: str
    skips: tuple[int, ...] = ()

    def __post_init__(self):
        check_choice("op", self.op, OP_NAMES - {"none"})
        skips = self.skips
        if not isinstance(skips, Iterable) or isinstance(skips, str):
            raise GenotypeError(f"a layer's skips is {skips!r:.200}; expected a list of states, such as [0, 2]")
        object.__setattr__(self, "skips", tuple(skips))


@dataclasses.dataclass(frozen=True)
class Chain:
    """Consecutive layers; layer k (from 1) reads state k-1, and its skips come from states 0 to k-2."""

    layers: tuple[Layer, ...]

    def __post_init__(self):
        layers = _tuple_of("a chain's layers", self.layers, "Layer", MOST_NODES)
        for number, layer in enumerate(layers, start=1):
            if not isinstance(layer, Layer):
                raise GenotypeError(f"layer {number} is {layer!r:.200}; expected a Layer")
            for state in layer.skips:
                if not is_whole(state) or not 0 <= state < number - 1:
                    allowed = f"states from 0 (the stem) to {number - 2}" if number > 1 else "none"
                    raise GenotypeError(f"layer {number} has a skip from state {state!r:.200}; expected {allowed}")
            if len(set(layer.skips)) < len(layer.skips):
                raise GenotypeError(f"layer {number} names a skip twice: {list(layer.skips)}; expected each once")
        object.__setattr__(self, "layers", layers)


Body = Cells | Blocks | Chain


@dataclasses.dataclass(frozen=True)
class Genotype:
    """An architecture with its provenance; `zoo.build` turns it into a network.

    Attributes:
        name: lower-case letters, digits, `_`, `.`, `-`; also the name of its file.
        family: the builder, a module of zoo/families.
        body: the architecture itself.
        source: where it comes from: paper and code, or recipe, config, seed and score.
        presets: name -> what the family needs besides the body, such as filters; the first is the default.
        published: preset -> parameters, MACs and accuracy as published, and the counts of the network built here.
        notes: remarks for the reader, such as variants that are left out.
        represents_family: whether the family's bare name means this genotype.
    """

    name: str
    family: str
    body: Body
    source: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    presets: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict, hash=False)
    published: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict, hash=False)
    notes: str = ""
    represents_family: bool = False

    def __post_init__(self):
        if not isinstance(self.name, str) or not re.fullmatch(r"[a-z0-9][a-z0-9_.-]{0,99}", self.name):
            raise GenotypeError(
                f"name is {self.name!r:.200}; expected up to 100 of a-z, 0-9, '_', '.', '-', such as 'my_cell'"
            )
        if not isinstance(self.family, str) or not re.fullmatch(r"[a-z][a-z0-9_]{0,40}", self.family):
            raise GenotypeError(
                f"family is {self.family!r:.200}; expected the name of a module of zoo/families, such as 'darts'"
            )
        if not isinstance(self.body, Body):
            raise GenotypeError(f"body is {self.body!r:.200}; expected Cells, Blocks or Chain")
        for name in ("source", "presets", "published"):
            if not isinstance(getattr(self, name), Mapping):
                raise GenotypeError(f"{name} is {getattr(self, name)!r:.200}; expected an object of names and values")
        for kind in ("presets", "published"):
            for name, values in getattr(self, kind).items():
                if not isinstance(values, Mapping):
                    raise GenotypeError(
                        f'{kind}: {name!r} is {values!r:.200}; expected an object such as {{"filters": 36}}'
                    )
        if not isinstance(self.notes, str) or not isinstance(self.represents_family, bool):
            raise GenotypeError(
                f"notes is {self.notes!r:.200} and represents_family {self.represents_family!r:.200}; "
                "expected a text, and true or false"
            )


def near(name: str, names: Iterable[str]) -> str:
    """Returns " (did you mean ...?)" if one of `names` resembles `name`, otherwise ""."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def check_choice(what: str, value: Any, choices: Iterable[str]) -> None:
    """Raises GenotypeError, with a similar name, if `value` is not one of `choices`."""
    if value not in (known := sorted(choices)):
        raise GenotypeError(
            f"{what} {value!r:.200} is not known{near(str(value)[:200], known)}; expected one of {', '.join(known)}"
        )


def check_whole(what: str, value: Any, least: int = 1) -> None:
    """Raises GenotypeError if `value` is not a whole number from `least`."""
    if not is_whole(value) or value < least:
        raise GenotypeError(f"{what} is {value!r:.200}; expected a whole number from {least}")


def is_whole(value: Any) -> TypeGuard[int]:
    """Returns whether `value` is an int; True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def _tuple_of(what: str, values: Any, item: str, most: int | None = None) -> tuple[Any, ...]:
    """Returns `values` as a tuple; raises GenotypeError if they are not iterable, empty, or more than `most`."""
    if not isinstance(values, Iterable) or isinstance(values, str):
        raise GenotypeError(f"{what} is {values!r:.200}; expected a list, each entry {item}")
    values = tuple(values)
    if not values or (most is not None and len(values) > most):
        limit = "at least one" if most is None else f"1 to {most}"
        raise GenotypeError(f"{what} has {len(values)} entries; expected {limit}, each {item}")
    return values
