"""The pictures of a card: the best score so far beside random search, two objectives against each other, best cells."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import zoo
from recipes.cards.reading import Search
from zoo.atomic import replacing

# Okabe and Ito's colours, told apart by colour-blind readers
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
DOTS = 150  # an inch
_NAMES = {
    "val_accuracy": "validation accuracy", "val_loss": "validation loss", "loss": "training loss",
    "params": "parameters", "macs": "multiply-accumulates an image", "peak_memory": "peak memory, bytes",
    "flash": "flash, bytes", "latency_ms": "latency, ms an image",
}  # fmt: skip


def name_of(metric: str) -> str:
    """Returns a metric's name in words."""
    return _NAMES.get(metric, metric.replace("_", " "))


def draw(searches: Sequence[Search], random: Sequence[Search], card: Mapping[str, Any], folder: Path) -> list[dict]:
    """Draws what there is to draw into `folder`, and returns {"file", "text"} of each picture."""
    found = []
    if any(search.scores for search in searches):
        anytime(card, folder / "anytime.png")
        found.append({"file": "anytime.png", "text": f"Best {name_of(searches[0].objective)} so far"})
    pareto = searches[0].about.get("config", {}).get("pareto", [])
    if len(pareto) == 2 and trade_off(searches, random, pareto, folder / "trade_off.png"):
        both = " and ".join(name_of(text.partition(":")[0]) for text in pareto)
        found.append({"file": "trade_off.png", "text": f"All networks: {both}"})
    for number, search in enumerate(searches):
        if search.finished:
            file = "best.png" if len(searches) == 1 else f"best_{number}.png"
            zoo.draw(search.genotype, folder / file)
            found.append({"file": file, "text": f"What the search with seed {search.seed} found"})
    return found


def new_figure(width: float, height: float) -> Any:
    """Returns an empty figure of this size in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Any, path: Path) -> None:
    """Writes the figure as PNG, whole or not at all."""
    with replacing(path) as stream:
        figure.savefig(stream, format="png", dpi=DOTS)


def plain(axes: Any) -> None:
    """Takes away the frame's upper and right line, and puts a light grid behind."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)


def anytime(card: Mapping[str, Any], path: Path) -> None:
    """Draws each search's best score so far, their mean, and the exact expectation of random search."""
    curve, searches = card["anytime"], card["searches"]
    timed = curve["unit"] == "seconds"
    x = [at / 60 for at in curve["x"]] if timed else curve["x"]
    figure = new_figure(7.5, 4.8)
    axes = figure.add_subplot()
    heights = [value for line in curve["each"] for value in line if value is not None]
    if "random_mean" in curve:
        heights += _random_curve(axes, x, curve["random_mean"], curve["random_std"], timed)
    _search_curves(axes, x, curve["each"], searches)
    room = 0.06 * (max(heights) - min(heights) or 1.0)
    axes.set_ylim(min(heights) - room, max(heights) + room)
    axes.set_xlabel("minutes of search" if timed else "trials")
    axes.set_ylabel(f"best {name_of(card['score']['name'])} so far")
    if not timed:
        axes.xaxis.get_major_locator().set_params(integer=True)
    plain(axes)
    figure.legend(loc="outside lower center", ncol=2, frameon=False, fontsize=9)
    several = f"{len(searches)} searches" if len(searches) > 1 else "1 search"
    axes.set_title(f"{card['recipe']}: {several}", loc="left", fontsize=11)
    save(figure, path)


def _random_curve(axes: Any, x: Sequence[float], mean: Sequence, std: Sequence, timed: bool) -> list[float]:
    """Draws the expectation with its deviation, where they are known, and returns the heights to make room for."""
    known = [place for place, value in enumerate(mean) if value is not None]
    wide = [place for place in known if std[place] is not None]
    low, high = ([mean[place] + side * std[place] for place in wide] for side in (-1, 1))
    axes.fill_between([x[place] for place in wide], low, high, color=COLOURS[4], alpha=0.25, linewidth=0,
                      step="post" if timed else None, label="± deviation of one random search")  # fmt: skip
    middle = [mean[place] for place in known]
    axes.plot([x[place] for place in known], middle, "--", color=COLOURS[1], linewidth=2,
              drawstyle="steps-post" if timed else "default", label="random search, expected")  # fmt: skip
    return middle + low[2:] + high[2:]  # the first are too wide for what follows


def _search_curves(axes: Any, x: Sequence[float], each: Sequence[Sequence], searches: Sequence[Mapping]) -> None:
    """Draws a line with a dot at its end for each search, and a thick one for the mean of several."""
    single, algorithm = len(each) == 1, searches[0]["algorithm"]
    label = f"{algorithm}, seed {searches[0]['seed']}" if single else f"{algorithm}, each of {len(each)} seeds"
    for line in each:
        known = [(at, value) for at, value in zip(x, line, strict=True) if value is not None]
        if known:
            axes.plot(*zip(*known, strict=True), color=COLOURS[0], linewidth=2.2 if single else 1,
                      alpha=1 if single else 0.5, drawstyle="steps-post", marker="o", markersize=5,
                      markevery=[len(known) - 1], label=label)  # fmt: skip
            label = None
    if not single:
        columns = list(zip(*each, strict=True))
        means = [sum(column) / len(column) if None not in column else float("nan") for column in columns]
        axes.plot(x, means, color=COLOURS[0], linewidth=2.5, drawstyle="steps-post", label="mean of the seeds")


def trade_off(searches: Sequence[Search], random: Sequence[Search], pareto: Sequence[str], path: Path) -> bool:
    """Draws all trained networks in two objectives, and the front of the searches; says whether there were any.

    Args:
        searches, random: whose networks they are.
        pareto: two texts such as "val_accuracy:max"; the first is drawn upwards.
        path: of the picture.
    """
    (tall, up), (wide, right) = (text.split(":") for text in pareto)

    def points(group: Sequence[Search]) -> list[tuple[float, float]]:
        found = [trial.metrics for search in group for trial in search.trials if trial.score is not None]
        return [(each[wide], each[tall]) for each in found if wide in each and tall in each]

    own, others = points(searches), points(random)
    if not own:
        return False
    figure = new_figure(7.5, 4.8)
    axes = figure.add_subplot()
    if others:
        axes.plot(*zip(*others, strict=True), "x", color=COLOURS[1], markersize=5, label="random networks")
    axes.plot(*zip(*own, strict=True), "o", color=COLOURS[0], markersize=5, alpha=0.7, label="networks of the search")
    front = front_of(own, right == "max", up == "max")
    axes.plot(*zip(*front, strict=True), color=COLOURS[2], linewidth=1.8, marker="o", markersize=7,
              markerfacecolor="none", label="no other is better in both")  # fmt: skip
    axes.set_xlabel(f"{name_of(wide)} ({'more' if right == 'max' else 'less'} is better)")
    axes.set_ylabel(name_of(tall))
    plain(axes)
    from matplotlib.ticker import EngFormatter

    if max(at for at, _ in own) >= 10_000:
        axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    figure.legend(loc="outside lower center", ncol=3, frameon=False, fontsize=9)
    axes.set_title(f"{searches[0].recipe}: {len(own)} networks", loc="left", fontsize=11)
    save(figure, path)
    return True


def front_of(points: Sequence[tuple[float, float]], right: bool, up: bool) -> list[tuple[float, float]]:
    """Returns the points that no other beats in both, from left to right; `right` and `up` say where better is."""
    found: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda point: (-point[0] if right else point[0], -point[1] if up else point[1])):
        if not found or (y > found[-1][1] if up else y < found[-1][1]):
            found.append((x, y))
    return sorted(found)
