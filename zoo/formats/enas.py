"""The arcs of melodyguan/enas: whole numbers, as in its scripts cifar10_micro_final.sh and cifar10_macro_final.sh.

Micro: four numbers a node: state, op, state, op. States are numbered as here (0 is h[c-2]); the states that no node
reads are the output.
Macro: layer i (from 0) is an op and i bits. Bit 0 is a skip from the stem, bit j from layer j counted from 1. So the
code reads them (general_child.py keeps the stem first in its list); its README counts differently.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from zoo.formats import literals
from zoo.genotype import (
    INPUT_STATES,
    MOST_NODES,
    CellGraph,
    Cells,
    Chain,
    Edge,
    Genotype,
    GenotypeError,
    Layer,
    Node,
    locating,
)  # fmt: skip

MICRO_OPS = ("sep_conv_3x3", "sep_conv_5x5", "avg_pool_3x3", "max_pool_3x3", "skip_connect")
MACRO_OPS = ("conv_3x3", "sep_conv_3x3", "conv_5x5", "sep_conv_5x5", "avg_pool_3x3", "max_pool_3x3")

# "0 2 0 0", "[0 2 0 0]" as NumPy prints it, JSON; a list or an array; or lines of any of these
Arc = str | Sequence[int] | Sequence[str]


def from_enas_micro(normal: Arc, reduce: Arc | None = None, name: str = "enas_cell") -> Genotype:
    """Returns the genotype of the family "enas" with these two cells.

    Args:
        normal: the normal cell's arc; without `reduce`, followed by the reduction cell's arc, as in the scripts.
        reduce: the reduction cell's arc.
        name: of the result.

    Raises:
        GenotypeError: an invalid arc.
    """
    graphs, arcs = [], [_read_numbers(normal)]
    if reduce is not None:
        arcs.append(_read_numbers(reduce))
    else:
        half = len(arcs[0]) // 2
        if not half or len(arcs[0]) % 8:
            raise GenotypeError(
                f"an ENAS arc has {len(arcs[0])} numbers for a normal and a reduction cell; expected four a node, and "
                "as many nodes in one as in the other. Or give the arc of the reduction cell as reduce="
            )
        arcs = [arcs[0][:half], arcs[0][half:]]
    for cell, arc in zip(("normal", "reduce"), arcs, strict=True):
        with locating(f"ENAS arc, cell {cell!r}"):
            graphs.append(_read_graph(arc))
    return Genotype(name, "enas", Cells(*graphs), source={"notation": "ENAS micro"})


def to_enas_micro(genotype: Genotype | Cells) -> tuple[list[int], list[int]]:
    """Returns the arcs of the normal and the reduction cell; arcs do not keep the order of concat.

    Raises:
        GenotypeError: a cell that the notation cannot express.
    """
    body = literals.get_body(genotype, Cells, "ENAS' micro")
    return _write_graph(body.normal), _write_graph(body.reduce or body.normal)


def from_enas_macro(arc: Arc, name: str = "enas_chain") -> Genotype:
    """Returns the genotype of the family "enas" with this chain of layers.

    Raises:
        GenotypeError: an invalid arc.
    """
    numbers, layers, place = _read_numbers(arc), [], 0
    while place < len(numbers) and len(layers) < MOST_NODES:
        op, bits = numbers[place], numbers[place + 1 : place + 1 + len(layers)]
        place += 1 + len(layers)
        if place > len(numbers):
            raise GenotypeError(
                f"an ENAS macro arc has {len(numbers)} numbers; expected 1, 3, 6, 10, ...: "
                f"for layer {len(layers)} (from 0) its op and {len(layers)} bits"
            )
        if set(bits) - {0, 1}:
            raise GenotypeError(f"layer {len(layers)} (from 0) of an ENAS macro arc has the bits {bits}; expected 0, 1")
        layers.append(Layer(_op_of(op, MACRO_OPS), tuple(state for state, bit in enumerate(bits) if bit)))
    if place < len(numbers):
        raise GenotypeError(f"an ENAS macro arc has more than {MOST_NODES} layers; expected 1 to {MOST_NODES}")
    return Genotype(name, "enas", Chain(tuple(layers)), source={"notation": "ENAS macro"})


def to_enas_macro(genotype: Genotype | Chain) -> list[int]:
    """Returns the arc of a chain of layers.

    Raises:
        GenotypeError: an operation that the notation has no number for.
    """
    arc = []
    for number, layer in enumerate(literals.get_body(genotype, Chain, "ENAS' macro").layers):
        arc += [_number_of(layer.op, MACRO_OPS), *(int(state in layer.skips) for state in range(number))]
    return arc


def _read_graph(numbers: list[int]) -> CellGraph:
    if len(numbers) % 4:
        raise GenotypeError(f"it has {len(numbers)} numbers; expected four a node: state, op, state, op")
    nodes = []
    for place in range(0, len(numbers), 4):
        first, first_op, second, second_op = numbers[place : place + 4]
        nodes.append(Node((Edge(_op_of(first_op, MICRO_OPS), first), Edge(_op_of(second_op, MICRO_OPS), second))))
    return CellGraph(tuple(nodes), _find_loose_ends(nodes))


def _write_graph(graph: CellGraph) -> list[int]:
    if set(graph.concat) != set(loose := _find_loose_ends(graph.nodes)):
        raise GenotypeError(
            f"the cell's concat is {list(graph.concat)}; ENAS' notation is for cells whose output is what no node "
            f"reads, here {list(loose)}"
        )
    literals.check_pairs(graph, "ENAS'")
    edges = (edge for node in graph.nodes for edge in node.edges)
    return [number for op, state in edges for number in (state, _number_of(op, MICRO_OPS))]


def _find_loose_ends(nodes: Sequence[Node]) -> tuple[int, ...]:
    read = {edge.state for node in nodes for edge in node.edges}
    return tuple(state for state in range(INPUT_STATES + len(nodes)) if state not in read)


def _read_numbers(arc: Any) -> list[int]:
    text = " ".join(map(str, arc)) if isinstance(arc, Iterable) and not isinstance(arc, str) else str(arc)
    brackets = re.findall(r"\[[^\[\]]*\]", text)  # a line of a log has words around them
    words = re.sub(r"[\[\](),;]", " ", " ".join(brackets) or text).split()
    if not words or not all(re.fullmatch(r"[0-9]{1,4}(\.0*)?", word) for word in words):
        raise GenotypeError(f'an ENAS arc is {arc!r:.200}; expected whole numbers, such as "0 2 0 0 0 4 0 1"')
    return [int(float(word)) for word in words]


def _op_of(number: int, ops: tuple[str, ...]) -> str:
    if number >= len(ops):
        named = ", ".join(f"{place} {op}" for place, op in enumerate(ops))
        raise GenotypeError(f"ENAS op {number} is not known; expected one of {named}")
    return ops[number]


def _number_of(op: str, ops: tuple[str, ...]) -> int:
    if op not in ops:
        raise GenotypeError(f"ENAS' notation has no op {op!r}; it has {', '.join(ops)}")
    return ops.index(op)
