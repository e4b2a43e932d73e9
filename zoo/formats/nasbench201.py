"""Cell strings of NAS-Bench-201 (Dong and Yang, 2020, arXiv:2001.00326) and NATS-Bench.

"|op~0|+|op~0|op~1|+|op~0|op~1|op~2|": a group for each node after the input, an edge in it from each earlier node.
The benchmark's node 0, the cell's only input, is state 1 here (h[c-1]); node k is state k+1; state 0 is not read. The
last node is the output. The notation does not describe reductions: the benchmark uses residual blocks; the DARTS
skeleton, in which cells are built here, uses the cell at stride 2. So the benchmark's accuracies are not those of the
networks built here.
NASLib's form of the four-node cell is six numbers, one for each edge, in the order of NASLIB_EDGES.
A node with only "none" edges is zero; edges that read it are left out (their normalisation would add a constant). A
cell whose last node is zero cannot be built.
"""

import numbers
import re
from collections.abc import Iterable, Sequence
from typing import Any

from zoo.formats import literals
from zoo.genotype import INPUT_STATES, CellGraph, Cells, Edge, Genotype, GenotypeError, Node, near

OPS = {
    "none": "none",
    "skip_connect": "skip_connect",
    "nor_conv_1x1": "conv_1x1",
    "nor_conv_3x3": "conv_3x3",
    "avg_pool_3x3": "avg_pool_3x3",
}
NASLIB_OPS = ("skip_connect", "none", "nor_conv_3x3", "nor_conv_1x1", "avg_pool_3x3")
NASLIB_EDGES = ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))  # from a node to a later one
EXAMPLE = "'|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|nor_conv_1x1~1|none~2|'"
_NAMES = {ours: theirs for theirs, ours in OPS.items()}


def from_nasbench201(cell: Any, name: str = "nasbench201_cell") -> Genotype:
    """Returns the cell as a genotype of the family "darts", "none" edges included.

    Args:
        cell: the string; a text that contains it, such as AutoDL-Projects' "Structure(4 nodes with
            |nor_conv_3x3~0|+...)", or that object; its tuples, one for each node: ((('nor_conv_3x3', 0),), (...)); or
            NASLib's six numbers. Tuples and numbers may be given as text.
        name: of the result.

    Raises:
        GenotypeError: this is no such cell.
    """
    nodes = []
    for number, group in enumerate(_find_string(cell).split("+"), start=1):
        edges = group.strip("|").split("|")
        if len(edges) != number or f"|{'|'.join(edges)}|" != group:
            raise GenotypeError(
                f"node {number} of a NAS-Bench-201 cell is {group!r:.200}; expected {number} edges, such as "
                f"'|{'|'.join(f'nor_conv_3x3~{source}' for source in range(min(number, 5)))}|'"
            )
        nodes.append(Node(tuple(_read_edge(edge, source, number) for source, edge in enumerate(edges))))
    graph = CellGraph(tuple(nodes), (INPUT_STATES + len(nodes) - 1,))
    return Genotype(name, "darts", Cells(graph), source={"notation": "NAS-Bench-201"})


def to_nasbench201(genotype: Genotype | Cells | CellGraph) -> str:
    """Returns the string of a normal cell; a missing edge is written as "none".

    Raises:
        GenotypeError: a cell that the notation cannot express: it reads h[c-2], reads a state twice in one node,
            has another output than its last node, has its own reduction cell, or an operation that the benchmark lacks.
    """
    body = genotype.body if isinstance(genotype, Genotype) else genotype
    graph = body.normal if isinstance(body, Cells) else body
    if not isinstance(graph, CellGraph):
        raise GenotypeError(f"NAS-Bench-201's notation is for Cells, not for {type(body).__name__}")
    if isinstance(body, Cells) and body.reduce is not None and body.reduce != body.normal:
        raise GenotypeError("NAS-Bench-201's notation has no reduction cell; give the normal cell alone")
    last = INPUT_STATES + len(graph.nodes) - 1
    if graph.concat != (last,):
        raise GenotypeError(f"the cell's concat is {list(graph.concat)}; expected its last node alone, [{last}]")
    groups = [_write_node(number, node) for number, node in enumerate(graph.nodes, start=1)]
    return "+".join(groups)


def _find_string(cell: Any) -> str:
    """Returns the benchmark's string of a cell in any of the forms."""
    if not isinstance(cell, (str, Sequence)) and not (isinstance(cell, Iterable) and hasattr(cell, "dtype")):
        cell = str(cell)
    if isinstance(cell, str):
        found = sorted(set(re.findall(r"\|[\w~|+]*~[\w~|+]*\|", cell)))
        if len(found) > 1:
            raise GenotypeError(
                f"the text contains {len(found)} different NAS-Bench-201 cells; expected one, {EXAMPLE}"
            )
        if found or not cell.strip().startswith(("(", "[")):
            return found[0] if found else cell.strip()
        cell = literals.read_text(cell, "a NAS-Bench-201 cell", f"{EXAMPLE}, or six numbers as NASLib has them")
    items = list(cell) if isinstance(cell, Iterable) else []
    if len(items) == len(NASLIB_EDGES) and all(
        isinstance(item, numbers.Integral) and 0 <= int(item) < len(NASLIB_OPS) for item in items
    ):
        ops = {edge: NASLIB_OPS[int(item)] for edge, item in zip(NASLIB_EDGES, items, strict=True)}
        return "+".join(
            "|" + "".join(f"{ops[source, node]}~{source}|" for source in range(node)) for node in range(1, 4)
        )
    try:
        return "+".join("|" + "".join(f"{op}~{source}|" for op, source in node) for node in items)
    except (TypeError, ValueError) as error:
        raise GenotypeError(
            f"a NAS-Bench-201 cell is {cell!r:.200}; expected {EXAMPLE}, a list of (op, source) pairs for each node, "
            f"or NASLib's six numbers from 0 to {len(NASLIB_OPS) - 1}"
        ) from error


def _read_edge(text: str, source: int, number: int) -> Edge:
    match = re.fullmatch(r"([a-z0-9_]+)~([0-9]{1,3})", text)
    if match is None or match[2] != str(source):
        raise GenotypeError(f"edge {text!r:.200} of node {number} of a NAS-Bench-201 cell; expected OP~{source}")
    if match[1] not in OPS:
        raise GenotypeError(f"NAS-Bench-201 has no op {match[1]!r}{near(match[1], OPS)}; it has {', '.join(OPS)}")
    return Edge(OPS[match[1]], source + 1)


def _write_node(number: int, node: Node) -> str:
    ops: dict[int, str] = {}
    for op, state in node.edges:
        if state == 0 or state in ops:
            raise GenotypeError(
                f"node {number + 1} reads state {state}{' twice' if state else ', which is h[c-2]'}; "
                "NAS-Bench-201's notation has one edge from each earlier node, and one input"
            )
        if op not in _NAMES:
            raise GenotypeError(f"NAS-Bench-201 has no op {op!r}; it has {', '.join(_NAMES)}")
        ops[state] = _NAMES[op]
    if node.combine != "add" and len(node.edges) > 1:
        raise GenotypeError(f"node {number + 1} combines by {node.combine!r}; NAS-Bench-201's notation adds")
    return "|" + "".join(f"{ops.get(source + 1, 'none')}~{source}|" for source in range(number))
