"""Genotypes: what a search found, as frozen dataclasses. Needs the standard library only.

A genotype has one of three bodies:

* `Cells`: a normal and a reduction cell, each a small graph (NASNet, PNASNet, AmoebaNet, ENAS micro, DARTS);
* `Blocks`: one record a block (MnasNet, MCUNet);
* `Chain`: layers in a row with skips among them (ENAS macro).

States of a cell are numbered oldest input first: 0 is the output of the cell before the previous one, h[c-2]; 1 is
that of the previous cell, h[c-1]; 2 and above are the cell's nodes in the order of the file.
"""

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

INPUT_STATES = 2

OP_NAMES = frozenset(
    """none skip_connect
    avg_pool_3x3 max_pool_2x2 max_pool_3x3 max_pool_5x5 max_pool_7x7
    sep_conv_3x3 sep_conv_5x5 sep_conv_7x7 dil_conv_3x3 dil_conv_5x5
    conv_1x1 conv_3x3 conv_5x5 conv_1x3_3x1 conv_1x7_7x1 conv_7x1_1x7""".split()
)
COMBINERS = ("add", "concat")


class GenotypeError(ValueError):
    """A genotype that cannot be; the text gives the value, what was expected, and the remedy."""


class Edge(NamedTuple):
    """`op` applied to the state of this number."""

    op: str
    state: int


@dataclasses.dataclass(frozen=True)
class Node:
    """One node of a cell: its edges' results, added or concatenated along the channels."""

    edges: tuple[Edge, ...]
    combine: Literal["add", "concat"] = "add"

    def __post_init__(self):
        if not self.edges:
            raise GenotypeError("a node has no edges; expected at least one [op, state]")
        _check_choice("combine", self.combine, COMBINERS)
        for op, state in self.edges:
            _check_choice("op", op, OP_NAMES)
            if not _is_int(state) or state < 0:
                raise GenotypeError(f"an edge reads state {state!r}; expected a whole number from 0")


@dataclasses.dataclass(frozen=True)
class CellGraph:
    """A cell: nodes in an order in which each reads only what comes before it, and the states that are its output."""

    nodes: tuple[Node, ...]
    concat: tuple[int, ...]

    def __post_init__(self):
        if not self.nodes:
            raise GenotypeError("a cell has no nodes; expected at least one")
        for number, node in enumerate(self.nodes, start=INPUT_STATES):
            for op, state in node.edges:
                if state >= number:
                    raise GenotypeError(
                        f"node {number} reads state {state} ({op}): a cycle, or a reading before the writing. "
                        f"Node {number} may read the states 0 to {number - 1}; put the nodes in an order that allows it"
                    )
        states = INPUT_STATES + len(self.nodes)
        if not self.concat:
            raise GenotypeError(
                "a cell's concat is empty; expected the states that are its output, such as [2, 3, 4, 5]"
            )
        for state in self.concat:
            if not _is_int(state) or not 0 <= state < states:
                raise GenotypeError(f"concat names state {state!r}; this cell has the states 0 to {states - 1}")
        if len(set(self.concat)) < len(self.concat):
            raise GenotypeError(f"concat {list(self.concat)} names a state twice; expected each at most once")

    def live_states(self) -> frozenset[int]:
        """Returns the states that the output depends on, through edges other than "none"."""
        live, pending = set(), list(self.concat)
        while pending:
            state = pending.pop()
            if state not in live:
                live.add(state)
                if state >= INPUT_STATES:
                    pending += [edge.state for edge in self.nodes[state - INPUT_STATES].edges if edge.op != "none"]
        return frozenset(live)


@dataclasses.dataclass(frozen=True)
class Cells:
    """A normal and a reduction cell. Without `reduce`, the normal one run at stride 2 takes its place (PNASNet)."""

    normal: CellGraph
    reduce: CellGraph | None = None


@dataclasses.dataclass(frozen=True)
class Block:
    """`repeats` blocks in a row; strides and the change of width happen in the first of them."""

    op: Literal["conv", "sep_conv", "mb_conv"]  # plain; depthwise then 1x1; 1x1, depthwise, 1x1
    kernel_size: int
    filters: int
    strides: int = 1
    expansion: float = 1  # of mb_conv: the width between is expansion x the input's
    repeats: int = 1
    se_ratio: float = 0  # squeeze-and-excite width over the block's input width; 0 leaves it out
    skip: Literal["identity", "pool", "none"] = "identity"
    mid_filters: int | None = None  # the width between, where it is not expansion x the input's

    def __post_init__(self):
        _check_choice("op", self.op, ("conv", "sep_conv", "mb_conv"))
        _check_choice("skip", self.skip, ("identity", "pool", "none"))
        for name in ("kernel_size", "filters", "strides", "repeats"):
            if not _is_int(getattr(self, name)) or getattr(self, name) < 1:
                raise GenotypeError(f"a block's {name} is {getattr(self, name)!r}; expected a whole number from 1")
        if self.kernel_size % 2 == 0:
            raise GenotypeError(f"a block's kernel_size is {self.kernel_size}; expected an odd number")
        if self.mid_filters is not None and (not _is_int(self.mid_filters) or self.mid_filters < 1):
            raise GenotypeError(
                f"a block's mid_filters is {self.mid_filters!r}; expected a whole number from 1, or none"
            )
        for name, least in (("expansion", 0.01), ("se_ratio", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= 100:
                raise GenotypeError(f"a block's {name} is {value!r}; expected a number from {least} to 100")


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Stem, rows of blocks, and the 1x1 convolution before the classifier (`head_filters`; None leaves it out)."""

    rows: tuple[Block, ...]
    stem_filters: int
    head_filters: int | None = None

    def __post_init__(self):
        if not self.rows:
            raise GenotypeError("blocks has no rows; expected at least one block")
        for name in ("stem_filters", "head_filters"):
            value = getattr(self, name)
            if not (value is None and name == "head_filters") and (not _is_int(value) or value < 1):
                raise GenotypeError(f"{name} is {value!r}; expected a whole number from 1")


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer of a chain and the earlier states that are joined to its input: 0 the stem, k the k-th layer."""

    op: str
    skips: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Chain:
    """Layers in a row; layer k (from 1) reads state k-1 and adds skips from states before that."""

    layers: tuple[Layer, ...]

    def __post_init__(self):
        if not self.layers:
            raise GenotypeError("a chain has no layers; expected at least one")
        for number, layer in enumerate(self.layers, start=1):
            _check_choice("op", layer.op, OP_NAMES - {"none"})
            for state in layer.skips:
                if not _is_int(state) or not 0 <= state < number:
                    raise GenotypeError(
                        f"layer {number} has a skip from state {state!r}; expected one of 0 (the stem) to {number - 1}"
                    )
            if len(set(layer.skips)) < len(layer.skips):
                raise GenotypeError(
                    f"layer {number} names a skip twice: {list(layer.skips)}; expected each at most once"
                )


Body = Cells | Blocks | Chain


@dataclasses.dataclass(frozen=True)
class Genotype:
    """An architecture with its provenance; `zoo.build` makes a network of it.

    Attributes:
        name: lower-case letters, digits, `_`, `.`, `-`; also the name of its file.
        family: the builder, a module of zoo/families.
        body: the architecture itself.
        source: where it is from: paper and code, or recipe, config, seed and score.
        presets: name -> what the family's skeleton needs besides the body; the first is the default.
        published: preset -> params, MACs, accuracy as published, and the counts that this body really has.
        notes: what a reader should know, such as variants that are left out.
        represents_family: whether the family's bare name means this one.
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
                f"name is {self.name!r}; expected up to 100 of a-z, 0-9, '_', '.', '-', such as 'my_cell'"
            )
        if not isinstance(self.family, str) or not re.fullmatch(r"[a-z][a-z0-9_]{0,40}", self.family):
            raise GenotypeError(
                f"family is {self.family!r}; expected the name of a module of zoo/families, such as 'darts'"
            )
        for name in ("source", "presets", "published"):
            if not isinstance(getattr(self, name), Mapping):
                raise GenotypeError(f"{name} is {getattr(self, name)!r}; expected an object of names and values")
        for name, preset in self.presets.items():
            if not isinstance(preset, Mapping):
                raise GenotypeError(f'preset {name!r} is {preset!r}; expected an object such as {{"filters": 36}}')


def _check_choice(what: str, value: Any, choices: Iterable[str]) -> None:
    if value not in (known := sorted(choices)):
        raise GenotypeError(
            f"{what} {value!r} is not known{near(str(value), known)}; expected one of {', '.join(known)}"
        )


def near(name: str, names: Iterable[str]) -> str:
    """Returns " (did you mean ...?)" where one of `names` is like `name`, else nothing."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
