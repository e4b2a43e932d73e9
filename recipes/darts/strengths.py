"""A picture of a DARTS search: how the strengths of the operations evolved, and the cells that they stood for."""

import io
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import zoo
from recipes.cards.pictures import COLOURS, DOTS, new_figure
from recipes.darts.space import OPS, DartsSpace
from zoo.atomic import replacing
from zoo.genotype import INPUT_STATES, Genotype

_SHOWN_CELLS = 4  # epochs whose cells are drawn
_NONE = "#999999"  # the colour of "none", which is no choice of a cell


def draw(records: Sequence[Mapping[str, Any]], title: str, path: Path) -> None:
    """Draws one picture: the softmax of the alphas of each edge over the epochs, and the cells of some epochs.

    Args:
        records: of the epochs in their order; "strengths" is (2, edges, ops) in the order of quark0/darts.
        title: of the whole.
        path: of the PNG.
    """
    from PIL import Image

    tables = np.array([record["strengths"] for record in records])  # (epochs, 2, edges, ops)
    chosen = np.unique(np.linspace(0, len(tables) - 1, _SHOWN_CELLS).round().astype(int))
    figure = _draw_edges(tables, title)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=DOTS)
    top = Image.open(stream).convert("RGB")
    cells = [_draw_cells(tables[epoch], f"epoch_{epoch + 1}") for epoch in chosen]
    columns = min(2, len(cells))
    width = top.width // columns
    scale = min(1.0, *(width / cell.width for cell in cells))  # one for all: a longer cell is not drawn smaller
    cells = [
        cell.resize((round(cell.width * scale), round(cell.height * scale)), Image.Resampling.LANCZOS) for cell in cells
    ]
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    heights = [max(cell.height for cell in row) for row in rows]
    whole = Image.new("RGB", (top.width, top.height + sum(heights)), "white")
    whole.paste(top, (0, 0))
    y = top.height
    for row, height in zip(rows, heights, strict=True):
        for column, cell in enumerate(row):
            whole.paste(cell, (column * width, y))
        y += height
    with replacing(path) as file:
        whole.save(file, format="PNG", optimize=True)


def _draw_cells(table: np.ndarray, name: str) -> Any:
    """Returns the image of the cells that strengths stand for."""
    from PIL import Image

    cells = DartsSpace(count_nodes(table.shape[1])).derive(table)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "cell.png"
        zoo.draw(Genotype(name, "darts", cells, {}, {}), file)
        with Image.open(file) as image:
            return image.convert("RGB")


def count_nodes(edges: int) -> int:
    """Returns how many nodes a cell with so many edges has."""
    nodes, count = 0, 0
    while count < edges:
        count += INPUT_STATES + nodes
        nodes += 1
    if count != edges:
        raise ValueError(f"no cell has {edges} edges: expected 2, 5, 9, 14, ...")
    return nodes


def _draw_edges(tables: np.ndarray, title: str) -> Any:
    """Returns a figure with a panel for each edge: columns are what it reads, rows the node that it leads to."""
    nodes = count_nodes(tables.shape[2])
    last = DartsSpace(nodes).derive(tables[-1])
    figure = new_figure(14, 1.35 * nodes + 1.3)
    parts = figure.subfigures(1, 2, wspace=0.03)
    for part, kind, graph, table in zip(
        parts, ("normal", "reduction"), (last.normal, last.reduce), np.moveaxis(tables, 1, 0), strict=True
    ):
        part.suptitle(f"{title}, {kind} cell: softmax of the alphas over the epochs", fontsize=11, x=0.02, ha="left")
        _draw_panels(part, graph, table)
    for place, op in enumerate(OPS):
        parts[0].axes[0].plot([], [], color=_colour(place), linestyle=_style(place), linewidth=2.5, label=op)
    handles, labels = parts[0].axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncol=len(OPS), frameon=False, fontsize=9)
    return figure


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
                axes.plot(epochs, table[:, edge, place], color=_colour(place), linestyle=_style(place), linewidth=1.5,
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


def _colour(place: int) -> str:
    return _NONE if place == 0 else COLOURS[(place - 1) % len(COLOURS)]


def _style(place: int) -> str:
    return ":" if place == 0 else "-"
