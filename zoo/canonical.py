"""A hash that equal architectures share, however they are written down."""

import hashlib
import json
from typing import Any

from zoo.genotype import INPUT_STATES, Body, CellGraph, Cells, Chain, Edge, Genotype
from zoo.genotype_json import body_as_dict

_Nodes = dict[int, tuple[str, list[Edge]]]  # state -> combine, live edges


def canonical_hash(architecture: Genotype | Body | CellGraph) -> str:
    """Returns 32 hex digits, equal for architectures that differ only in how they are written down.

    Of a cell, the order of nodes, edges and concat does not count, nor do "none" edges and nodes that do not reach
    the output. Names, presets and provenance never count.
    """
    body = architecture.body if isinstance(architecture, Genotype) else architecture
    if isinstance(body, CellGraph):
        form: Any = canonical_form(body)
    elif isinstance(body, Cells):
        form = ["cells", canonical_form(body.normal), body.reduce and canonical_form(body.reduce)]
    else:
        form = body_as_dict(body)
        if isinstance(body, Chain):
            form = [[layer.op, sorted(layer.skips)] for layer in body.layers]
    return hashlib.sha256(json.dumps(form, sort_keys=True).encode()).hexdigest()[:32]


def canonical_form(graph: CellGraph) -> list[Any]:
    """Returns nested lists that two cells share exactly when one is the other with its nodes renumbered.

    Nodes get colours from what they read and who reads them. Where equal colours are left, each node of the first tie
    is tried in front and the least result wins, so the form is exact and not merely likely.
    """
    live = sorted(state for state in graph.live_states() if state >= INPUT_STATES)
    nodes = {}
    for state in live:
        node = graph.nodes[state - INPUT_STATES]
        nodes[state] = (node.combine, [edge for edge in node.edges if edge.op != "none"])
    return _least_form(nodes, frozenset(graph.concat), dict.fromkeys(live, 0))


def _least_form(nodes: _Nodes, concat: frozenset[int], colours: dict[int, int]) -> list[Any]:
    colours = _refined(nodes, concat, colours)
    ties: dict[int, list[int]] = {}
    for state, colour in colours.items():
        ties.setdefault(colour, []).append(state)
    tied = next((states for _, states in sorted(ties.items()) if len(states) > 1), None)
    if tied is None:
        return _form(nodes, concat, colours)
    if _are_twins(nodes, concat, tied):  # exchanging them changes nothing: any one may go first
        tied = tied[:1]
    return min(_least_form(nodes, concat, {**colours, state: -1}) for state in tied)


def _refined(nodes: _Nodes, concat: frozenset[int], colours: dict[int, int]) -> dict[int, int]:
    """Returns colours 0, 1, .. in an order that does not depend on the numbers of the states."""
    while True:
        readers: dict[int, list[Any]] = {state: [] for state in nodes}
        for state, (_, edges) in nodes.items():
            for op, source in edges:
                if source in nodes:
                    readers[source].append((op, colours[state]))
        signatures = {
            state: (
                colours[state],
                combine,
                sorted((op, *_colour(source, colours)) for op, source in edges),
                sorted(readers[state]),
                state in concat,
            )
            for state, (combine, edges) in nodes.items()
        }
        ranks = {signature: rank for rank, signature in enumerate(sorted({repr(s): s for s in signatures.values()}))}
        refined = {state: ranks[repr(signature)] for state, signature in signatures.items()}
        if len(set(refined.values())) == len(set(colours.values())):
            return refined
        colours = refined


def _colour(state: int, colours: dict[int, int]) -> tuple[int, int]:
    return (0, state) if state < INPUT_STATES else (1, colours[state])


def _are_twins(nodes: _Nodes, concat: frozenset[int], tied: list[int]) -> bool:
    def view(state: int) -> Any:
        combine, edges = nodes[state]
        readers = sorted((reader, op) for reader, (_, into) in nodes.items() for op, source in into if source == state)
        return combine, sorted(edges), readers, state in concat

    return all(view(state) == view(tied[0]) for state in tied)


def _form(nodes: _Nodes, concat: frozenset[int], colours: dict[int, int]) -> list[Any]:
    number = {state: INPUT_STATES + colour for state, colour in colours.items()} | {0: 0, 1: 1}
    rows = sorted(
        [number[state], combine, sorted([op, number[source]] for op, source in edges)]
        for state, (combine, edges) in nodes.items()
    )
    return [rows, sorted(number[state] for state in concat)]
