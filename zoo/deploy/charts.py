"""Pictures of a file: when each tensor lives and where in the arena, and which operators lose the most in int8."""

import os
from typing import Any

from zoo.atomic import replacing
from zoo.deploy import memory_plan
from zoo.deploy.boards import Board
from zoo.deploy.doctor import Diagnosis
from zoo.deploy.planner import Plan

_COLOURS = {"input": "#4c78a8", "tensor": "#9ecae9", "peak": "#f58518", "scratch": "#bab0ac", "ram": "#e45756"}
_MEANINGS = {"peak": "alive at the peak", "input": "input", "tensor": "tensor", "scratch": "scratch"}
_MOST_NAMED = 12  # buffers in the list beside the chart
_FAR = 2.0  # heads, above which a line is only said to be there: it would flatten the picture


def draw_memory(plan: Plan, path: str | os.PathLike, title: str, board: Board | None = None) -> None:
    """Writes as PNG: a step of the network to the right, a byte of the arena upwards.

    The buffers alive at the peak are orange. They and the highest ones bear numbers, which the list on the right
    explains. With a board, a line shows the RAM that is left for them beside what TFLM keeps for good.
    """
    from matplotlib.patches import Patch, Rectangle

    figure, axes = _new_figure(13, 6)
    at_peak = {id(buffer) for buffer in plan.alive_at_peak()}
    named = []
    for buffer, offset in zip(plan.buffers, plan.offsets, strict=True):
        kind = "peak" if id(buffer) in at_peak else _kind(buffer)
        corner, width, height = (buffer.first - 0.5, offset / 1000), buffer.last - buffer.first + 1, buffer.size / 1000
        axes.add_patch(Rectangle(corner, width, height, facecolor=_COLOURS[kind], edgecolor="white", linewidth=0.5))
        if id(buffer) in at_peak or offset + memory_plan.aligned(buffer.size) == plan.head:
            named.append((buffer, corner[0] + width / 2, corner[1] + height / 2))
    named = sorted(named, key=lambda one: -one[0].size)[:_MOST_NAMED]
    for number, (_, x, y) in enumerate(named, start=1):
        circle = {"boxstyle": "circle,pad=0.15", "facecolor": "white", "edgecolor": "black", "linewidth": 0.6}
        axes.text(x, y, str(number), ha="center", va="center", fontsize=7, bbox=circle, zorder=3)
    names = [f"{number}  {buffer.name}, {buffer.size / 1000:,.1f} kB" for number, (buffer, *_) in enumerate(named, 1)]
    axes.text(1.01, 1, "\n".join(names), transform=axes.transAxes, va="top", fontsize=8, linespacing=1.5)
    axes.axhline(plan.head / 1000, color="black", linewidth=1)
    axes.axhline(plan.bound / 1000, color="black", linewidth=1, linestyle=":")
    axes.set_xlim(-0.5, len(plan.operators) + 0.5)
    axes.set_ylim(0, max(plan.head / 1000 * 1.12, 0.1))
    axes.set_xlabel("operator, in running order (0: the input is filled)")
    axes.set_ylabel("place in the arena, kB")
    axes.set_title(
        f"{title}: head {plan.head / 1000:,.1f} kB (line), most alive at once {plan.bound / 1000:,.1f} kB (dotted, at "
        f"{plan.peak or 'the input'})",
        fontsize=10,
    )
    handles: list[Any] = [Patch(color=_COLOURS[kind], label=label) for kind, label in _MEANINGS.items()]
    if board is not None:
        handles.append(_draw_ram(axes, plan, board))
    figure.legend(handles=handles, loc="outside lower center", ncols=5)
    _save(figure, path)


def _draw_ram(axes: Any, plan: Plan, board: Board) -> Any:
    """Draws what RAM the board leaves for the buffers, unless it is far above them; returns the legend's handle."""
    left = (board.ram - plan.tail) / 1000
    drawn = left <= _FAR * plan.head / 1000
    if drawn:
        axes.set_ylim(0, max(axes.get_ylim()[1], left * 1.08))
    return axes.axhline(
        left if drawn else -1,
        color=_COLOURS["ram"],
        linewidth=1.5,
        linestyle="--",
        label=f"{board.chip}: {board.ram / 1000:,.1f} kB of RAM less {plan.tail / 1000:,.1f} kB that TFLM keeps"
        + ("" if drawn else f", far above: {left:,.1f} kB"),
    )


def _kind(buffer: memory_plan.Buffer) -> str:
    if buffer.first == 0:
        return "input"
    return "scratch" if buffer.name.startswith("scratch of ") else "tensor"


def draw_noise(diagnosis: Diagnosis, path: str | os.PathLike, title: str, count: int = 20) -> None:
    """Writes as PNG the worst operators: a bar for the ratio each has alone, a dot for what reaches its output."""
    worst = diagnosis.worst(count)[::-1]  # bars are drawn from the bottom
    figure, axes = _new_figure(10, 1.6 + 0.28 * len(worst))
    places = range(len(worst))
    axes.barh(places, [finding.own_db for finding in worst], color="#4c78a8", label="this operator alone")
    axes.plot([finding.total_db for finding in worst], places, "o", color="#f58518", label="all up to here")
    axes.set_yticks(places, [str(finding.operator) for finding in worst], fontsize=8)
    axes.set_xlim(0, None)
    axes.set_ylim(-0.6, len(worst) - 0.4)
    axes.set_xlabel("signal to rounding noise, dB (6 dB are one bit)")
    axes.set_title(f"{title}: {diagnosis.output_db:.1f} dB at the output, n = {diagnosis.n} images", fontsize=10)
    figure.legend(loc="outside lower center", ncols=2)
    _save(figure, path)


def _new_figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _save(figure: Any, path: str | os.PathLike) -> None:
    with replacing(path) as stream:
        figure.savefig(stream, format="png", dpi=120)
