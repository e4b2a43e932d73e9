"""A picture of a DARTS search: how the strengths of the operations evolved, and the cells that they stood for."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import zoo
from recipes.cards.pictures import COLOURS, DOTS, new_figure, save_figure
from recipes.darts.space import OPS, DartsSpace
from zoo.genotype import INPUT_STATES, Cells, Genotype

_SHOWN_CELLS = 4  # epochs whose cells are drawn
_NONE = "#999999"  # the colour of "none", which is no choice of a cell


def draw(space: DartsSpace, records: Sequence[Mapping[str, Any]], title: str, path: Path) -> None:
    """Draws one picture: the softmax of the alphas of each edge over the epochs, and the cells of some epochs.

    There is a record an epoch, whose "strengths" are of the space's shape.
    """
    tables = np.array([record["strengths"] for record in records])  # (epochs, cells, edges, ops)
    chosen = np.unique(np.linspace(0, len(tables) - 1, _SHOWN_CELLS).round().astype(int))
    cells = [_render(space.derive(tables[epoch]), f"epoch_{epoch + 1}") for epoch in chosen]
    width, columns = 7.0 * len(space.cells), min(2, len(cells))
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    dots = max(columns * max(cell.shape[1] for cell in cells) / width, DOTS)  # an inch of cells; one scale for all
    heights = [1.35 * space.nodes + 1.3, *(max(cell.shape[0] for cell in row) / dots for row in rows)]
    figure = new_figure(width, sum(heights))
    top, *bands = figure.subfigures(len(heights), 1, height_ratios=heights)
    _draw_edges(top, space, tables, title)
    for band, row, height in zip(bands, rows, heights[1:], strict=True):
        for column, cell in enumerate(row):
            size = cell.shape[1] / dots / width, cell.shape[0] / dots / height
            axes = band.add_axes((column / columns, 1 - size[1], *size))
            axes.imshow(cell, aspect="auto")
            axes.set_axis_off()
    save_figure(figure, path)


def _render(cells: Cells, name: str) -> np.ndarray:
    """Returns the pixels of drawn cells."""
    from matplotlib.image import imread

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "cell.png"
        zoo.draw(Genotype(name, "darts", cells, {}, {}), file)
        return imread(file)


def _draw_edges(figure: Any, space: DartsSpace, tables: np.ndarray, title: str) -> None:
    """Draws a panel for each edge: columns are what it reads, rows the node that it leads to."""
    last = space.derive(tables[-1])
    parts = figure.subfigures(1, len(space.cells), wspace=0.03, squeeze=False)[0]
    kinds = {"normal": ("normal", last.normal), "reduce": ("reduction", last.reduce)}
    for part, cell, table in zip(parts, space.cells, np.moveaxis(tables, 1, 0), strict=True):
        kind, graph = kinds[cell]
        part.suptitle(f"{title}, {kind} cell: softmax of the alphas over the epochs", fontsize=11, x=0.02, ha="left")
        _draw_panels(part, graph, table)
    axes = parts[0].axes[0]
    for place, op in enumerate((OPS[0], *space.ops)):
        axes.plot([], [], **_look(place), linewidth=2.5, label=op)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncol=4 * len(parts), frameon=False, fontsize=9)


def _draw_panels(part: Any, graph: Any, table: np.ndarray) -> None:
    """Draws the edges of one cell; `table` is (epochs, edges, ops), `graph` what it ended with."""
    nodes = len(graph.nodes)
    sources = INPUT_STATES + nodes - 1
    grid = part.subplots(nodes, sources, sharex=True, sharey=True, squeeze=False)
    names = ["h[c-2]", "h[c-1]", *(f"node {INPUT_STATES + number}" for number in range(nodes))]
    epochs, edge = np.arange(1, len(table) + 1), 0
    for node in range(nodes):
        kept = {each.state: each.op for each in graph.nodes[node].edges}
        for source in range(sources):
            axes = grid[node, source]
            if source >= INPUT_STATES + node:
                axes.set_axis_off()
                continue
            for place in range(table.shape[2]):
                axes.plot(epochs, table[:, edge, place], **_look(place), linewidth=1.5,
                          marker="." if len(epochs) == 1 else None)  # fmt: skip
            if node == max(0, source - INPUT_STATES + 1):  # the topmost panel of its column
                axes.set_title(f"from {names[source]}", fontsize=9)
            if source == 0:
                axes.set_ylabel(f"to {names[INPUT_STATES + node]}", fontsize=9)
            if node == nodes - 1:
                axes.set_xlabel("epoch", fontsize=8)
            _mark(axes, kept.get(source))
            edge += 1
    least, most = float(table.min()), float(table.max())
    span = most - least or 1.0
    grid[0, 0].set_ylim(least - 0.05 * span, most + 0.3 * span)  # room for the name of what was kept
    grid[0, 0].xaxis.get_major_locator().set_params(integer=True)


def _mark(axes: Any, op: str | None) -> None:
    """Frames a panel whose edge is in the cell at the end, and names its operation."""
    axes.tick_params(labelsize=7)
    axes.spines[:].set_color("black" if op else "#cccccc")
    axes.spines[:].set_linewidth(1.8 if op else 0.8)
    if op:
        axes.text(0.5, 0.96, op.replace("_", " "), transform=axes.transAxes, ha="center", va="top", fontsize=8)


def _look(place: int) -> dict[str, Any]:
    """Returns the colour and the style of the line of an operation."""
    if not place:
        return {"color": _NONE, "linestyle": ":"}
    return {"color": COLOURS[(place - 1) % len(COLOURS)], "linestyle": "-"}
