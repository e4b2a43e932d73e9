"""The operators that lose the most in int8 as a bar chart."""

import os

from zoo.atomic import replacing
from zoo.deploy.doctor import Diagnosis

BIT_DB = 6.02  # of one bit


def draw(diagnosis: Diagnosis, path: str | os.PathLike, title: str, count: int = 20) -> None:
    """Writes the picture as PNG: the worst operators, a bar for the ratio each has alone, a dot for what reaches it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    worst = diagnosis.worst(count)[::-1]  # bars are drawn from the bottom
    figure = Figure(figsize=(10, 1.6 + 0.28 * len(worst)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    places = range(len(worst))
    axes.barh(places, [finding.own_db for finding in worst], color="#4c78a8", label="this operator alone")
    axes.plot([finding.total_db for finding in worst], places, "o", color="#f58518", label="all up to here")
    axes.set_yticks(places, [str(finding.operator) for finding in worst], fontsize=8)
    axes.set_xlim(0, None)
    axes.set_ylim(-0.6, len(worst) - 0.4)
    axes.set_xlabel(f"signal to rounding noise, dB ({BIT_DB:.0f} dB are one bit)")
    axes.set_title(f"{title}: {diagnosis.output_db:.1f} dB at the output, n = {diagnosis.n} images", fontsize=10)
    figure.legend(loc="outside lower center", ncols=2)
    with replacing(path) as stream:
        figure.savefig(stream, format="png", dpi=120)
