"""The `Genotype` tuple of quark0/darts (cnn/genotypes.py) and of the many searches that adopted it.

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

# Prints like the literals of genotypes.py, and equals that module's own tuples with the same fields.
DartsGenotype = collections.namedtuple("Genotype", FIELDS)


def from_darts(genotype: Mapping[str, Any] | Sequence[Any] | str, name: str = "darts_cell") -> Genotype:
    """Converts a DARTS genotype to a genotype of the family "darts".

    Args:
        genotype: a mapping or tuple with normal, normal_concat, reduce and reduce_concat, or a text that contains one:
            what Python prints, such as "Genotype(normal=[('sep_conv_3x3', 1), ...], normal_concat=range(2, 6), ...)",
            also within a line of a log, or JSON. The pairs may be grouped by node and have strengths in third place, as
            in [(('sep_conv_3x3', 1, 0.2), ('sep_conv_3x3', 0, 0.1)), ...].
        name: of the result.

    Raises:
        GenotypeError: this is no DARTS genotype, or it has an unknown operation.
    """
    fields = _read_fields(_parse(genotype) if isinstance(genotype, str) else genotype)
    graphs = []
    for cell in ("normal", "reduce"):
        with locating(f"DARTS genotype, cell {cell!r}"):
            graphs.append(_read_graph(fields[cell], fields[f"{cell}_concat"]))
    return Genotype(name, "darts", Cells(*graphs), source={"notation": "DARTS"})


def to_darts(genotype: Genotype | Cells) -> Any:
    """Returns the named tuple of quark0/darts; its `repr` is the text that genotypes.py holds.

    Raises:
        GenotypeError: a node without exactly two edges or with "concat", or an operation that quark0/darts lacks.
    """
    body = literals.get_body(genotype, Cells, "DARTS'")
    normal, reduce = body.normal, body.reduce or body.normal
    return DartsGenotype(_list_pairs(normal), list(normal.concat), _list_pairs(reduce), list(reduce.concat))


def _read_fields(genotype: Any) -> Mapping[str, Any]:
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


def _read_graph(edges: Any, states: Any) -> CellGraph:
    if not isinstance(edges, Sequence) or isinstance(edges, str) or not edges:
        raise GenotypeError(f"it is {edges!r:.200}; expected two (op, state) pairs for each node, as in {EXAMPLE}")
    nodes = edges if _is_node(edges[0]) else [edges[place : place + 2] for place in range(0, len(edges), 2)]
    if (nodes is not edges and len(edges) % 2) or not all(isinstance(node, (list, tuple)) for node in nodes):
        raise GenotypeError(f"it is {edges!r:.200}; expected two (op, state) pairs for each node, as in {EXAMPLE}")
    concat: Any = states
    if isinstance(states, Iterable) and not isinstance(states, str):
        concat = list(map(_to_int, states))
    return CellGraph(tuple(Node(tuple(map(_read_edge, node))) for node in nodes), concat)


def _is_node(item: Any) -> bool:
    """Returns whether `item` holds a node's pairs rather than being one pair."""
    return isinstance(item, Sequence) and bool(item) and isinstance(item[0], Sequence) and not isinstance(item[0], str)


def _read_edge(pair: Any) -> Any:
    """Returns (op, state) without a strength; anything else is left for Node to reject."""
    if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) not in (2, 3):
        return pair
    op, state, *strength = pair
    if strength and not isinstance(strength[0], numbers.Real):
        return pair
    return op, _to_int(state)


def _to_int(state: Any) -> Any:
    """Returns NumPy's whole numbers as int, and anything else as it is."""
    return int(state) if isinstance(state, numbers.Integral) and not isinstance(state, bool) else state


def _list_pairs(graph: CellGraph) -> list[tuple[str, int]]:
    literals.check_pairs(graph, "DARTS'")
    pairs = []
    for number, node in enumerate(graph.nodes, start=INPUT_STATES):
        for op, state in node.edges:
            if op not in OPS:
                raise GenotypeError(f"quark0/darts has no op {op!r} (node {number}); it has {', '.join(sorted(OPS))}")
            pairs.append((op, state))
    return pairs


def _parse(text: str) -> Any:
    """Returns the value of a text: of the only `Genotype(...)` in it, or else of the whole text."""
    calls = []
    if len(text) <= literals.LONGEST_TEXT:  # read_text rejects longer ones
        starts = [match.start() for match in re.finditer(r"\w*Genotype\w*\s*\(", text)]
        calls = sorted({_cut_call(text, start) for start in starts})
    if len(calls) > 1:
        raise GenotypeError(
            f"a DARTS genotype's text contains {len(calls)} different genotypes; expected one, {EXAMPLE}"
        )
    braces = re.search(r"\{.*\}", text, re.DOTALL)
    source = calls[0] if calls else braces[0] if braces else text
    return literals.read_text(source, "a DARTS genotype", EXAMPLE, FIELDS)


def _cut_call(text: str, start: int) -> str:
    """Returns the text from `start` to the bracket that closes the first one, or to the end of the text."""
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
