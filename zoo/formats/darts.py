"""The `Genotype` tuple of quark0/darts (cnn/genotypes.py) and of the many searches that kept it.

Each node has two `(op, state)` pairs, one after the other in one flat list. States are numbered as here: 0 is h[c-2].
"""

import collections
import numbers
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from zoo.formats import literals
from zoo.genotype import INPUT_STATES, CellGraph, Cells, Genotype, GenotypeError, Node, locating

FIELDS = ("normal", "normal_concat", "reduce", "reduce_concat")
OPS = frozenset(
    """none avg_pool_3x3 max_pool_3x3 skip_connect sep_conv_3x3 sep_conv_5x5 sep_conv_7x7
    dil_conv_3x3 dil_conv_5x5 conv_7x1_1x7""".split()
)
UNUSED_FIELDS = ("connectN", "connects")
EXAMPLE = (
    "Genotype(normal=[('sep_conv_3x3', 0), ('skip_connect', 1), ...], normal_concat=[2, 3, 4, 5], "
    "reduce=[...], reduce_concat=[2, 3, 4, 5])"
)

# Prints as the literal that genotypes.py holds, and compares with that module's own tuples field by field.
DartsGenotype = collections.namedtuple("Genotype", FIELDS)


def from_darts(genotype: Mapping[str, Any] | Sequence[Any] | str, name: str = "darts_cell") -> Genotype:
    """Returns the genotype of the family "darts" that a DARTS genotype stands for.

    Args:
        genotype: a mapping or tuple with normal, normal_concat, reduce and reduce_concat, or text with one in it: what
            Python prints, such as "Genotype(normal=[('sep_conv_3x3', 1), ...], normal_concat=range(2, 6), ...)", a
            line of a log around it, or JSON. The pairs may be gathered by node and have strengths as third, as in
            [(('sep_conv_3x3', 1, 0.2), ('sep_conv_3x3', 0, 0.1)), ...].
        name: of the result.

    Raises:
        GenotypeError: it is none, or an operation is not known.
    """
    fields = _fields(_parsed(genotype) if isinstance(genotype, str) else genotype)
    graphs = []
    for cell in ("normal", "reduce"):
        with locating(f"DARTS genotype, cell {cell!r}"):
            graphs.append(_graph(fields[cell], fields[f"{cell}_concat"]))
    return Genotype(name, "darts", Cells(*graphs), source={"notation": "DARTS"})


def to_darts(genotype: Genotype | Cells) -> Any:
    """Returns the named tuple of quark0/darts; its `repr` is the text that genotypes.py holds.

    Raises:
        GenotypeError: a node without exactly two edges or with "concat", or an operation that the code does not have.
    """
    body = literals.get_body(genotype, Cells, "DARTS'")
    normal, reduce = body.normal, body.reduce or body.normal
    return DartsGenotype(_pairs(normal), list(normal.concat), _pairs(reduce), list(reduce.concat))


def _fields(genotype: Any) -> Mapping[str, Any]:
    """Returns the four fields; AutoDL-Projects' tuples have two more, which are None for such cells."""
    if isinstance(genotype, Sequence) and len(genotype) in (len(FIELDS), len(FIELDS) + len(UNUSED_FIELDS)):
        genotype = dict(zip((*FIELDS, *UNUSED_FIELDS), genotype, strict=False))
    if isinstance(genotype, Mapping):
        genotype = {key: genotype[key] for key in genotype if key not in UNUSED_FIELDS or genotype[key] is not None}
    if not isinstance(genotype, Mapping) or set(genotype) != set(FIELDS):
        raise GenotypeError(
            f"a DARTS genotype is {genotype!r:.200}; expected the fields {', '.join(FIELDS)}, as in {EXAMPLE}"
        )
    return genotype


def _graph(edges: Any, states: Any) -> CellGraph:
    if not isinstance(edges, Sequence) or isinstance(edges, str) or not edges:
        raise GenotypeError(f"it is {edges!r:.200}; expected two (op, state) pairs for each node, as in {EXAMPLE}")
    nodes = edges if _is_node(edges[0]) else [edges[place : place + 2] for place in range(0, len(edges), 2)]
    if (nodes is not edges and len(edges) % 2) or not all(isinstance(node, (list, tuple)) for node in nodes):
        raise GenotypeError(f"it is {edges!r:.200}; expected two (op, state) pairs for each node, as in {EXAMPLE}")
    concat: Any = states
    if isinstance(states, Iterable) and not isinstance(states, str):
        concat = list(map(_plain, states))
    return CellGraph(tuple(Node(tuple(map(_edge, node))) for node in nodes), concat)


def _is_node(item: Any) -> bool:
    """Whether it is a node's pairs, not a pair."""
    return isinstance(item, Sequence) and bool(item) and isinstance(item[0], Sequence) and not isinstance(item[0], str)


def _edge(pair: Any) -> Any:
    """Returns (op, state) without a strength; what is none is left for the Node to refuse."""
    if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) not in (2, 3):
        return pair
    op, state, *strength = pair
    if strength and not isinstance(strength[0], numbers.Real):
        return pair
    return op, _plain(state)


def _plain(state: Any) -> Any:
    """Returns NumPy's whole numbers as Python's, and what else there is as it is."""
    return int(state) if isinstance(state, numbers.Integral) and not isinstance(state, bool) else state


def _pairs(graph: CellGraph) -> list[tuple[str, int]]:
    literals.check_pairs(graph, "DARTS'")
    pairs = []
    for number, node in enumerate(graph.nodes, start=INPUT_STATES):
        for op, state in node.edges:
            if op not in OPS:
                raise GenotypeError(f"quark0/darts has no op {op!r} (node {number}); it has {', '.join(sorted(OPS))}")
            pairs.append((op, state))
    return pairs


def _parsed(text: str) -> Any:
    """Returns what the text holds: the arguments of the one call of a Genotype in it, or else all of it."""
    calls = []
    if len(text) <= literals.LONGEST_TEXT:  # read_text refuses longer ones
        starts = [match.start() for match in re.finditer(r"\w*Genotype\w*\s*\(", text)]
        calls = sorted({_call_at(text, start) for start in starts})
    if len(calls) > 1:
        raise GenotypeError(
            f"a DARTS genotype's text has {len(calls)} different genotypes in it; expected one, {EXAMPLE}"
        )
    braces = re.search(r"\{.*\}", text, re.DOTALL)
    source = calls[0] if calls else braces[0] if braces else text
    return literals.read_text(source, "a DARTS genotype", EXAMPLE, FIELDS)


def _call_at(text: str, start: int) -> str:
    """Returns the text from `start` to the bracket that closes the first one, or to its end."""
    depth, quote = 0, ""
    for place in range(start, len(text)):
        sign = text[place]
        if quote or sign in "'\"":
            quote = "" if sign == quote else quote or sign
        else:
            depth += (sign == "(") - (sign == ")")
            if depth == 0 and sign == ")":
                return text[start : place + 1]
    return text[start:]
