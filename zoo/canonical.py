"""A hash shared by equal architectures, however they are written down."""

import hashlib
import json
from typing import Any

from zoo.genotype import INPUT_STATES, Blocks, Body, CellGraph, Cells, Chain, Edge, Genotype

_Nodes = dict[int, tuple[str, list[Edge]]]  # state -> combine, live edges
_Colours = dict[int, int]  # state -> colour; a finer colouring keeps the order of the coarser one


def canonical_hash(architecture: Genotype | Body | CellGraph) -> str:
    """Returns 32 hex digits, equal for architectures that differ only in how they are written down.

    In a cell, the order of nodes, edges and concat does not matter, nor do "none" edges and nodes that do not reach
    the output. In blocks, the grouping into rows does not matter. Names, presets and provenance never do.
    """
    body = architecture.body if isinstance(architecture, Genotype) else architecture
    if isinstance(body, CellGraph):
        form: Any = canonical_form(body)
    elif isinstance(body, Cells):
        form = ["cells", canonical_form(body.normal), body.reduce and canonical_form(body.reduce)]
    elif isinstance(body, Blocks):
        form = ["blocks", _write_blocks(body)]
    elif isinstance(body, Chain):
        form = ["chain", [[layer.op, sorted(layer.skips)] for layer in body.layers]]
    else:
        raise TypeError(f"canonical_hash of {architecture!r:.200}; expected a Genotype, a body or a CellGraph")
    return hashlib.sha256(json.dumps(form).encode()).hexdigest()[:32]


def canonical_form(graph: CellGraph) -> list[Any]:
    """Returns nested lists that are equal for two cells exactly if one is the other with its nodes renumbered.

    Nodes are coloured by what they read and what reads them. If several nodes keep one colour, each node of the first
    such tie is tried in first place and the smallest result wins, so the form is exact, not just likely.
    """
    live = sorted(state for state in graph.live_states() if state >= INPUT_STATES)
    nodes = {}
    for state in live:
        nodes[state] = (graph.nodes[state - INPUT_STATES].combine, [edge for _, edge in graph.edges_of(state)])
    return _find_least_form(nodes, frozenset(graph.concat), dict.fromkeys(live, 0))


def _find_least_form(nodes: _Nodes, concat: frozenset[int], colours: _Colours) -> list[Any]:
    colours = _refine_colours(nodes, concat, colours)
    tied = _find_first_tie(colours)
    if not tied:
        return _write_form(nodes, concat, colours)
    if len({_describe_links(nodes, concat, state) for state in tied}) == 1:
        return _find_least_form(nodes, concat, {**colours, tied[0]: -1})  # twins: swapping them changes nothing
    # If any way to break the ties after two tied nodes gives the same form, swapping the two changes nothing: one is
    # enough. Without this, ten identical branches would be tried in all their 3.6 million orders.
    branches: dict[str, _Colours] = {}
    for state in tied:
        first = {**colours, state: -1}
        branches.setdefault(json.dumps(_break_ties(nodes, concat, first)), first)
    return min(_find_least_form(nodes, concat, first) for first in branches.values())


def _describe_links(nodes: _Nodes, concat: frozenset[int], state: int) -> str:
    """Returns a node's operations, sources and readers by number; they are equal for twins."""
    combine, edges = nodes[state]
    readers = sorted((reader, op) for reader, (_, into) in nodes.items() for op, source in into if source == state)
    return repr((combine, sorted(edges), readers, state in concat))


def _break_ties(nodes: _Nodes, concat: frozenset[int], colours: _Colours) -> list[Any]:
    """Returns the form of one way to break all ties."""
    while tied := _find_first_tie(colours := _refine_colours(nodes, concat, colours)):
        colours = {**colours, tied[0]: -1}
    return _write_form(nodes, concat, colours)


def _find_first_tie(colours: _Colours) -> list[int]:
    """Returns the states of the smallest colour that several states have; empty if there is none."""
    ties: dict[int, list[int]] = {}
    for state, colour in colours.items():
        ties.setdefault(colour, []).append(state)
    return next((states for _, states in sorted(ties.items()) if len(states) > 1), [])


def _refine_colours(nodes: _Nodes, concat: frozenset[int], colours: _Colours) -> _Colours:
    """Refines the colours until they are stable; numbers them 0, 1, .. independently of the states' numbers."""
    while True:
        readers: dict[int, list[tuple[str, int]]] = {state: [] for state in nodes}
        for state, (_, edges) in nodes.items():
            for op, source in edges:
                if source in nodes:
                    readers[source].append((op, colours[state]))
        signatures = {
            state: (
                colours[state],
                combine,
                sorted((op, source >= INPUT_STATES, colours.get(source, source)) for op, source in edges),
                sorted(readers[state]),
                state in concat,
            )
            for state, (combine, edges) in nodes.items()
        }
        ranks = {repr(s): rank for rank, s in enumerate(sorted({repr(s): s for s in signatures.values()}.values()))}
        refined = {state: ranks[repr(signature)] for state, signature in signatures.items()}
        if len(set(refined.values())) == len(set(colours.values())):
            return refined
        colours = refined


def _write_form(nodes: _Nodes, concat: frozenset[int], colours: _Colours) -> list[Any]:
    number = {state: INPUT_STATES + colour for state, colour in colours.items()} | {0: 0, 1: 1}
    rows = sorted(
        [number[state], combine, sorted([op, number[source]] for op, source in edges)]
        for state, (combine, edges) in nodes.items()
    )
    return [rows, sorted(number[state] for state in concat)]


def _write_blocks(body: Blocks) -> list[Any]:
    """Returns stem, single blocks and head; settings that build the same layers are written in one way."""
    form: list[Any] = [body.stem_filters, body.head_filters]
    inputs = body.stem_filters
    for row in body.rows:
        for repeat in range(row.repeats):
            strides = row.strides if repeat == 0 else 1
            middle = row.mid_filters or round(inputs * row.expansion)
            op = "sep_conv" if row.op == "mb_conv" and middle == inputs else row.op
            skip = "none" if row.skip == "identity" and (strides > 1 or inputs != row.filters) else row.skip
            form.append([op, row.kernel_size, row.filters, strides, middle, float(row.se_ratio), skip])
            inputs = row.filters
    return form
