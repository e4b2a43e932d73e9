"""The `Genotype` tuple of quark0/darts (cnn/genotypes.py) and of the many searches that kept it.

Each node has two `(op, state)` pairs, one after the other in one flat list. States are numbered as here: 0 is h[c-2].
"""

import ast
import collections
from collections.abc import Mapping, Sequence
from typing import Any

from zoo.genotype import INPUT_STATES, MOST_NODES, CellGraph, Cells, Genotype, GenotypeError, Node

FIELDS = ("normal", "normal_concat", "reduce", "reduce_concat")
OPS = frozenset(
    """none avg_pool_3x3 max_pool_3x3 skip_connect sep_conv_3x3 sep_conv_5x5 sep_conv_7x7
    dil_conv_3x3 dil_conv_5x5 conv_7x1_1x7""".split()
)
LONGEST_TEXT = 20_000  # characters; published genotypes have 600

# Prints as the literal that genotypes.py holds, and compares with that module's own tuples field by field.
DartsGenotype = collections.namedtuple("Genotype", FIELDS)


def from_darts(genotype: Mapping[str, Any] | Sequence[Any] | str, name: str = "darts_cell") -> Genotype:
    """Returns the genotype of the family "darts" that a DARTS genotype stands for.

    Args:
        genotype: a mapping or tuple with normal, normal_concat, reduce and reduce_concat, or the text of one, such as
            "Genotype(normal=[('sep_conv_3x3', 1), ...], normal_concat=range(2, 6), reduce=..., reduce_concat=...)".
        name: of the result.

    Raises:
        GenotypeError: it is none, or an operation is not known.
    """
    fields = _fields(_parsed(genotype) if isinstance(genotype, str) else genotype)
    graphs = []
    for cell in ("normal", "reduce"):
        try:
            graphs.append(_graph(fields[cell], fields[f"{cell}_concat"]))
        except GenotypeError as error:
            raise GenotypeError(f"DARTS genotype, cell {cell!r}: {error}") from error
    return Genotype(name, "darts", Cells(*graphs), source={"notation": "DARTS"})


def to_darts(genotype: Genotype | Cells) -> Any:
    """Returns the named tuple of quark0/darts; its `repr` is the text that genotypes.py holds.

    Raises:
        GenotypeError: a node without exactly two edges or with "concat", or an operation that the code does not have.
    """
    body = genotype.body if isinstance(genotype, Genotype) else genotype
    if not isinstance(body, Cells):
        raise GenotypeError(f"DARTS' notation is for Cells, not for {type(body).__name__}")
    normal, reduce = body.normal, body.reduce or body.normal
    return DartsGenotype(_pairs(normal), list(normal.concat), _pairs(reduce), list(reduce.concat))


def _fields(genotype: Any) -> Mapping[str, Any]:
    if isinstance(genotype, Sequence) and len(genotype) == len(FIELDS):
        genotype = dict(zip(FIELDS, genotype, strict=True))
    if not isinstance(genotype, Mapping) or set(genotype) != set(FIELDS):
        raise GenotypeError(f"a DARTS genotype is {genotype!r:.200}; expected the fields {', '.join(FIELDS)}")
    return genotype


def _graph(pairs: Any, concat: Any) -> CellGraph:
    if not isinstance(pairs, Sequence) or isinstance(pairs, str) or len(pairs) % 2 or not pairs:
        raise GenotypeError(f"it is {pairs!r:.200}; expected two (op, state) pairs for each node, in one list")
    nodes = tuple(Node((pairs[place], pairs[place + 1])) for place in range(0, len(pairs), 2))
    return CellGraph(nodes, concat)


def _pairs(graph: CellGraph) -> list[tuple[str, int]]:
    pairs = []
    for number, node in enumerate(graph.nodes, start=INPUT_STATES):
        if len(node.edges) != 2 or node.combine != "add":
            raise GenotypeError(
                f"node {number} has {len(node.edges)} edges and combines by {node.combine!r}; "
                "DARTS' notation is for two edges that are added"
            )
        for op, state in node.edges:
            if op not in OPS:
                raise GenotypeError(f"quark0/darts has no op {op!r} (node {number}); it has {', '.join(sorted(OPS))}")
            pairs.append((op, state))
    return pairs


def _parsed(text: str) -> dict[str, Any]:
    """Reads the call's arguments as literals; the name that is called does not matter and nothing is called."""
    expected = "expected Genotype(normal=[...], normal_concat=[...], reduce=[...], reduce_concat=[...])"
    if len(text) > LONGEST_TEXT:
        raise GenotypeError(f"a DARTS genotype's text has {len(text)} characters; {expected}")
    try:
        statements = ast.parse(text.strip()).body
        call = getattr(statements[0], "value", None) if len(statements) == 1 else None
        if not isinstance(call, ast.Call) or len(call.args) > len(FIELDS):
            raise GenotypeError(f"a DARTS genotype's text is {text!r:.200}; {expected}")
        fields = dict(zip(FIELDS, map(_literal, call.args), strict=False))
        return fields | {str(keyword.arg): _literal(keyword.value) for keyword in call.keywords}
    except (SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise GenotypeError(f"a DARTS genotype's text is {text!r:.200} ({error}); {expected}") from error


def _literal(node: ast.expr) -> Any:
    try:
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range"):
            return ast.literal_eval(node)
        numbers = range(*map(ast.literal_eval, node.args))
    except ValueError as error:
        raise GenotypeError(f"{ast.unparse(node)[:200]} is no literal; expected lists, pairs and range(...)") from error
    if len(numbers) > MOST_NODES + INPUT_STATES:
        raise GenotypeError(f"{numbers} has {len(numbers)} states; a cell has at most {MOST_NODES} nodes")
    return list(numbers)
