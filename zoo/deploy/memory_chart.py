"""The lifetimes of a file's tensors as a picture: a step of the network to the right, a byte of the arena upwards."""

import os

from zoo.atomic import replacing
from zoo.deploy import memory_plan
from zoo.deploy.planner import Plan

_COLOURS = {"input": "#4c78a8", "tensor": "#9ecae9", "peak": "#f58518", "scratch": "#bab0ac"}


def draw(plan: Plan, path: str | os.PathLike, title: str) -> None:
    """Writes the picture as PNG; the buffers alive at the peak are orange; they and the highest bear their names."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch, Rectangle

    figure = Figure(figsize=(12, 6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    at_peak = {id(buffer) for buffer in plan.alive_at_peak()}
    for buffer, offset in zip(plan.buffers, plan.offsets, strict=True):
        kind = "peak" if id(buffer) in at_peak else _kind(buffer)
        corner, width, height = (buffer.first - 0.5, offset / 1000), buffer.last - buffer.first + 1, buffer.size / 1000
        axes.add_patch(Rectangle(corner, width, height, facecolor=_COLOURS[kind], edgecolor="white", linewidth=0.5))
        if id(buffer) in at_peak or offset + memory_plan.aligned(buffer.size) == plan.head:
            text = f"{_shortened(buffer.name)} {buffer.size / 1000:,.0f} kB"
            right = buffer.first > len(plan.operators) / 2
            axes.annotate(
                text,
                (buffer.last + 0.5 if not right else buffer.first - 0.5, offset / 1000 + height / 2),
                (4 if not right else -4, 0),
                textcoords="offset points",
                va="center",
                ha="left" if not right else "right",
                fontsize=7,
            )
    axes.axhline(plan.head / 1000, color="black", linewidth=1)
    axes.axhline(plan.bound / 1000, color="black", linewidth=1, linestyle=":")
    axes.set_xlim(-0.5, len(plan.operators) + 0.5)
    axes.set_ylim(0, plan.head / 1000 * 1.12)
    axes.set_xlabel("operator, in running order (0: the input is filled)")
    axes.set_ylabel("place in the arena, kB")
    axes.set_title(
        f"{title}: head {plan.head / 1000:,.1f} kB (line), most alive at once {plan.bound / 1000:,.1f} kB (dotted, at "
        f"{plan.peak or 'the input'})",
        fontsize=10,
    )
    shown = [("peak", "alive at the peak"), ("input", "input"), ("tensor", "tensor"), ("scratch", "scratch")]
    axes.legend(handles=[Patch(color=_COLOURS[kind], label=label) for kind, label in shown], loc="upper right", ncols=4)
    with replacing(path) as stream:
        figure.savefig(stream, format="png", dpi=120)


def _kind(buffer: memory_plan.Buffer) -> str:
    if buffer.tensor is None:
        return "scratch"
    return "input" if buffer.first == 0 else "tensor"


def _shortened(name: str) -> str:
    return name if len(name) <= 28 else f"{name[:25]}..."
