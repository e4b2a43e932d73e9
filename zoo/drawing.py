"""Draws genotypes: cells as graphs from left to right, block rows as bars, a chain with its skips as arcs."""

import os
from pathlib import Path
from typing import Any, NamedTuple

from zoo import registry
from zoo.atomic import replacing
from zoo.genotype import INPUT_STATES, Block, Blocks, CellGraph, Cells, Chain, Genotype

FORMATS = ("png", "svg", "pdf")
_FILL = {"conv": "#9ecae9", "pool": "#ffbf79", "skip": "#e0e0e0", "state": "#ffffff", "output": "#c5b0d5"}
# Lines have the colour of the state that they come from (colours of Okabe and Ito, distinct for colour-blind readers).
_LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
_COLUMN, _BOX, _HALF = 2.9, 1.5, 0.19  # distance of columns; width of an operation's box; half its height
_NEXT = _COLUMN - _BOX - 0.55  # from a state to the boxes of the next column
_RIGHT = (0.2, 0.14)  # from the centre of an input, and of a node, to its right edge


def draw(genotype: str | os.PathLike | Genotype | Cells | Blocks | Chain | CellGraph, path: str | os.PathLike) -> None:
    """Draws a genotype, a body or a single cell into a picture file, which appears complete or not at all.

    Args:
        genotype: what to draw; also a name or path, as in `zoo.load`.
        path: of the picture; its extension gives the format: .png (150 dots per inch), .svg or .pdf.

    Raises:
        ValueError: another extension.
        GenotypeError, OSError: as in `zoo.load`; OSError also if the picture cannot be written.
    """
    kind = Path(path).suffix.removeprefix(".").lower()
    if kind not in FORMATS:
        raise ValueError(f"the picture's path is {os.fspath(path)!r}; expected the extension .png, .svg or .pdf")
    if isinstance(genotype, (str, os.PathLike)):
        genotype = registry.load(genotype)
    title = genotype.name if isinstance(genotype, Genotype) else ""
    body = genotype.body if isinstance(genotype, Genotype) else genotype
    figure = _make_figure(title, body)
    with replacing(path) as stream:
        figure.savefig(stream, format=kind, dpi=150)


def _make_figure(title: str, body: Cells | Blocks | Chain | CellGraph) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained")
    FigureCanvasAgg(figure)
    if isinstance(body, Blocks):
        _draw_rows(figure, title, body)
    elif isinstance(body, Chain):
        _draw_chain(figure, title, body)
    elif isinstance(body, CellGraph):
        _draw_cells(figure, title, {"": body})
    else:
        graphs = {"normal cell": body.normal}
        if body.reduce is not None:
            graphs["reduction cell"] = body.reduce
        _draw_cells(figure, title, graphs)
    return figure


class _Place(NamedTuple):
    """Where a state is drawn: its centre, and the height of each of its operations."""

    x: float
    y: float
    ops: tuple[float, ...] = ()


def _draw_cells(figure: Any, title: str, graphs: dict[str, CellGraph]) -> None:
    places = [_place_nodes(graph) for graph in graphs.values()]
    widths = [_get_width(each) for each in places]
    lowest = [max(place.y for place in each.values()) for each in places]
    # the line of an input that is part of the output runs around the nodes: h[c-2] above them, h[c-1] below
    tops = [-0.4 - 0.5 * (0 in graph.concat) for graph in graphs.values()]
    bottoms = [y + 0.6 + 0.6 * (1 in graph.concat) for y, graph in zip(lowest, graphs.values(), strict=True)]
    heights = [bottom - top + 0.4 for top, bottom in zip(tops, bottoms, strict=True)]
    figure.set_size_inches(0.78 * max(widths), 0.72 * sum(heights) + 0.5)
    axes = figure.subplots(len(graphs), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, (name, graph), place, top, bottom in zip(axes, graphs.items(), places, tops, bottoms, strict=True):
        _draw_cell(axis, graph, place)
        axis.set_xlim(-0.9, max(widths) - 0.9)
        axis.set_ylim(bottom, top)
        axis.set_axis_off()
        axis.set_title(", ".join(filter(None, (title, name))), loc="left", fontsize=11, pad=0)


def _get_width(places: dict[int, _Place]) -> float:
    return max(place.x for place in places.values()) + 3.0


def _place_nodes(graph: CellGraph) -> dict[int, _Place]:
    """Places each node in its own rows, in numerical order, and in the column of its longest path from an input."""
    depths = dict.fromkeys(range(INPUT_STATES), 0)
    places: dict[int, _Place] = {}
    y = 0.0
    for number in range(INPUT_STATES, INPUT_STATES + len(graph.nodes)):
        sources = [edge.state for _, edge in graph.edges_of(number)]
        depths[number] = 1 + max((depths[state] for state in sources), default=0)
        ops = tuple(y + 0.5 * place for place in range(len(sources)))
        y = (ops[-1] if ops else y) + 0.8
        middle = sum(ops) / len(ops) if ops else y - 0.8
        places[number] = _Place(_COLUMN * depths[number], middle, ops)
    middle, apart = (y - 0.8) / 2, max(0.3, 0.2 * (y - 0.8))  # in a cell of one node, the boxes would touch
    places[0], places[1] = _Place(0.0, middle - apart), _Place(0.0, middle + apart)
    return places


def _draw_cell(axes: Any, graph: CellGraph, places: dict[int, _Place]) -> None:
    end = _get_width(places) - 1.8
    live = graph.live_states()
    for number, node in enumerate(graph.nodes, start=INPUT_STATES):
        place = places[number]
        faded = 0.3 if number not in live else 1.0
        edges = [edge for _, edge in graph.edges_of(number)]
        for edge, y in zip(edges, place.ops, strict=True):
            left, right = place.x - _BOX - 0.5, place.x - 0.5
            _draw_line(axes, places, edge.state, (left, y), faded)
            _draw_curve(axes, (right, y), (place.x - _RIGHT[1], place.y), place.x - _RIGHT[1], number, faded)
            _draw_box(axes, left, y, _BOX, edge.op.replace("_", " "), _FILL[_kind_of(edge.op)], faded)
        if number in graph.concat:
            _draw_line(axes, places, number, (end, place.y), faded)
        _draw_circle(axes, place, str(number), "||" if node.combine == "concat" else "", faded)
    rows = {number: places[number].y for number in graph.concat}
    for number, name in enumerate(("h[c-2]", "h[c-1]")):
        here = places[number]
        if number in graph.concat:
            rows[number] = -0.55 if number == 0 else max(place.y for place in places.values()) + 0.8
            _draw_line(axes, places, number, (end, rows[number]), 1.0)
        _draw_box(axes, -0.75, here.y, 0.95, name, _FILL["state"], 1.0 if number in live else 0.3)
    outputs = list(rows.values())
    top, bottom = min(outputs) - 0.3, max(outputs) + 0.3
    _draw_box(axes, end, (top + bottom) / 2, 0.5, "concat" if len(outputs) > 1 else "output", _FILL["output"], 1.0,
         height=bottom - top, rotation=90)  # fmt: skip


def _kind_of(op: str) -> str:
    return "skip" if op == "skip_connect" else "pool" if "pool" in op else "conv"


def _draw_line(axes: Any, places: dict[int, _Place], state: int, end: tuple[float, float], alpha: float) -> None:
    """Draws a line from a state to a reader: up or down in the gap before the next column, then along the reader's row.

    No box is in the way, because a row belongs to one node.
    """
    x, y, _ = places[state]
    _draw_curve(axes, (x + _RIGHT[state >= INPUT_STATES], y), end, x + _NEXT, state, alpha)


def _draw_curve(
    axes: Any, start: tuple[float, float], end: tuple[float, float], level: float, state: int, alpha: float
) -> None:
    """Draws a curve that reaches the height of its end at x = `level`."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Curve

    (x0, y0), (x1, y1) = start, end
    middle = (x0 + level) / 2
    curve = Curve([(x0, y0), (middle, y0), (middle, y1), (level, y1), (x1, y1)],
                  [Curve.MOVETO, Curve.CURVE4, Curve.CURVE4, Curve.CURVE4, Curve.LINETO])  # fmt: skip
    colour = _LINES[state % len(_LINES)]
    axes.add_patch(PathPatch(curve, facecolor="none", edgecolor=colour, linewidth=1.5, alpha=alpha, zorder=1))


def _draw_box(
    axes: Any, left: float, y: float, width: float, text: str, fill: str, alpha: float,
    height: float = 2 * _HALF, rotation: int = 0,
) -> None:  # fmt: skip
    from matplotlib.patches import FancyBboxPatch

    shape = FancyBboxPatch((left, y - height / 2), width, height, boxstyle="round,pad=0.02,rounding_size=0.08",
                           facecolor=fill, edgecolor="black", linewidth=0.8, zorder=2)  # fmt: skip
    axes.add_patch(shape)
    axes.text(left + width / 2, y, text, ha="center", va="center", fontsize=8, rotation=rotation, zorder=3,
              color="black" if alpha == 1 else "#777777")  # fmt: skip


def _draw_circle(axes: Any, place: _Place, text: str, mark: str, alpha: float) -> None:
    colour = "black" if alpha == 1 else "#777777"
    axes.plot([place.x], [place.y], "o", markersize=16, markerfacecolor="white", markeredgecolor=colour, zorder=2)
    axes.text(place.x, place.y, text, ha="center", va="center", fontsize=8, zorder=3, color=colour)
    if mark:
        axes.text(place.x + 0.2, place.y - 0.3, mark, fontsize=8, zorder=3, color=colour)


def _draw_rows(figure: Any, title: str, body: Blocks) -> None:
    """Draws one bar for each row, from the input down; its length is the number of filters."""
    rows = [(f"stem, conv 3x3, stride 2, {body.stem_filters} filters", body.stem_filters, "skip")]
    rows += [(_describe_row(row), row.filters, "pool" if row.se_ratio else "conv") for row in body.rows]
    if body.head_filters:
        rows.append((f"head, conv 1x1, {body.head_filters} filters", body.head_filters, "skip"))
    figure.set_size_inches(9, 0.34 * len(rows) + 1.2)
    axes = figure.add_subplot()
    axes.barh(range(len(rows)), [filters for _, filters, _ in rows], height=0.72,
              color=[_FILL[kind] for *_, kind in rows], edgecolor="black", linewidth=0.8)  # fmt: skip
    for number, (text, filters, _) in enumerate(rows):
        axes.annotate(text, (filters, number), (5, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 1.9 * max(filters for _, filters, _ in rows))
    axes.set_yticks([])
    axes.set_xlabel("filters of the output")
    axes.spines[["top", "right", "left"]].set_visible(False)
    orange = "; orange: with squeeze-and-excitation" if any(row.se_ratio for row in body.rows) else ""
    axes.set_title(", ".join(filter(None, (title, "blocks from the input down"))) + orange, loc="left", fontsize=11)


def _describe_row(row: Block) -> str:
    size = f"{row.kernel_size}x{row.kernel_size}"
    times = f"{row.repeats} x " if row.repeats > 1 else ""
    if row.op == "mb_conv":
        inner = f", {row.mid_filters} within" if row.mid_filters else f", expansion {row.expansion:g}"
    else:
        inner = ""
    strides = f", stride {row.strides}" if row.strides > 1 else ""
    return f"{times}{row.op.replace('_', ' ')} {size}{inner}{strides}, {row.filters} filters"


def _draw_chain(figure: Any, title: str, body: Chain) -> None:
    """Draws the layers in a row, each with its number and operation, and skips as arcs to the layers that join them.

    An arc has the colour of the layer that it comes from.
    """
    from matplotlib.patches import Arc

    count = len(body.layers)
    figure.set_size_inches(0.52 * count + 1.6, 0.11 * count + 2.8)
    axes = figure.add_subplot()
    axes.plot([0, count], [0, 0], color="black", linewidth=1, zorder=1)
    highest = 1.0
    for number, layer in enumerate(body.layers, start=1):
        for state in layer.skips:
            span = number - state
            highest = max(highest, 0.35 * span)
            axes.add_patch(Arc(((number + state) / 2, 0), span, 0.7 * span, theta1=0, theta2=180, zorder=1,
                               edgecolor=_LINES[state % len(_LINES)], linewidth=1.3))  # fmt: skip
    fills = [_FILL["output"], *(_FILL[_kind_of(layer.op)] for layer in body.layers)]
    names = ["stem", *(layer.op.replace("_", " ") for layer in body.layers)]
    axes.scatter(range(count + 1), [0] * (count + 1), s=230, c=fills, edgecolors="black", linewidths=0.8, zorder=2)
    for number, name in enumerate(names):
        axes.text(number, 0, str(number), ha="center", va="center", fontsize=8, zorder=3)
        axes.text(number, -0.55, name, ha="center", va="top", rotation=90, fontsize=8)
    axes.set_xlim(-0.8, count + 0.8)
    axes.set_ylim(-3.2, highest + 0.4)
    axes.set_axis_off()
    axes.set_title(", ".join(filter(None, (title, "layers, and the earlier outputs that join them"))),
                   loc="left", fontsize=11)  # fmt: skip
