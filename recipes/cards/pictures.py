"""The pictures of a card: the best score so far and random search's, trade-offs, best cells, supernets."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import zoo
from recipes.cards.compare import keep_front
from recipes.cards.read import RecordedSearch
from zoo.atomic import replacing, write_atomically

# Okabe and Ito's colours, which colour-blind readers can tell apart
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
DOTS = 150  # per inch
_NAMES = {
    "val_accuracy": "validation accuracy", "val_loss": "validation loss", "loss": "training loss",
    "params": "parameters", "macs": "multiply-accumulates per image", "peak_memory": "peak memory, bytes",
    "flash": "flash, bytes", "latency_ms": "latency, ms per image",
}  # fmt: skip
# title of a panel -> the values in it, the second dashed
_PANELS = {
    "loss: training half, validation half dashed": ("loss", "validation_loss"),
    "loss: mean of the sub-networks, largest dashed": ("loss", "first_loss"),
    "accuracy: training half, validation half dashed": ("accuracy", "validation_accuracy"),
    "reward, moving average dashed": ("reward", "baseline"),
    "skip connections: normal cell, reduction cell dashed": ("normal_skips", "reduce_skips"),
    "dominant eigenvalue of the Hessian in alpha": ("eigenvalue",),
}


def name_metric(metric: str) -> str:
    """Returns the name of a metric in words."""
    return _NAMES.get(metric, metric.replace("_", " "))


def draw_pictures(
    searches: Sequence[RecordedSearch], random: Sequence[RecordedSearch], card: Mapping[str, Any], folder: Path
) -> list[dict]:
    """Draws all pictures of a card into `folder`, and returns {"file", "text"} for each."""
    found = []
    if any(search.scores for search in searches):
        draw_anytime(card, folder / "anytime.png")
        found.append({"file": "anytime.png", "text": f"Best {name_metric(searches[0].objective)} so far"})
    config = searches[0].about.get("config", {})
    pareto = config.get("objectives") or config.get("pareto", [])
    if len(pareto) in (2, 3) and draw_trade_off(searches, random, pareto, folder / "trade_off.png"):
        names = [name_metric(text.partition(":")[0]) for text in pareto]
        text = f"All networks: {', '.join(names[:-1])} and {names[-1]}"
        found.append({"file": "trade_off.png", "text": text})
    for number, search in enumerate(searches):
        if search.finished:
            file = "best.png" if len(searches) == 1 else f"best_{number}.png"
            zoo.draw(search.genotype, folder / file)
            found.append({"file": file, "text": f"Result of the search with seed {search.seed}"})
    return found + _draw_supernets(searches, folder)


def new_figure(width: float, height: float) -> Any:
    """Returns an empty figure; width and height are in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Any, path: Path) -> None:
    """Writes the figure as PNG, whole or not at all."""
    with replacing(path) as stream:
        figure.savefig(stream, format="png", dpi=DOTS)


def style_axes(axes: Any) -> None:
    """Removes the frame's top and right lines, and adds a light grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)


def draw_anytime(card: Mapping[str, Any], path: Path) -> None:
    """Draws each search's best score so far, their mean, and the exact expectation of random search."""
    curve, searches = card["anytime"], card["searches"]
    timed = curve["unit"] == "seconds"
    x = [at / 60 for at in curve["x"]] if timed else curve["x"]
    figure = new_figure(7.5, 4.8)
    axes = figure.add_subplot()
    heights = [value for line in curve["each"] for value in line if value is not None]
    if "random_mean" in curve:
        heights += _draw_random(axes, x, curve["random_mean"], curve["random_std"], timed)
    _draw_searches(axes, x, curve["each"], searches)
    margin = 0.06 * (max(heights) - min(heights) or 1.0)
    axes.set_ylim(min(heights) - margin, max(heights) + margin)
    axes.set_xlabel("minutes of search" if timed else "trials")
    axes.set_ylabel(f"best {name_metric(card['score']['name'])} so far")
    if not timed:
        axes.xaxis.get_major_locator().set_params(integer=True)
    style_axes(axes)
    figure.legend(loc="outside lower center", ncol=2, frameon=False, fontsize=9)
    several = f"{len(searches)} searches" if len(searches) > 1 else "1 search"
    axes.set_title(f"{card['recipe']}: {several}", loc="left", fontsize=11)
    save_figure(figure, path)


def _draw_random(axes: Any, x: Sequence[float], mean: Sequence, std: Sequence, timed: bool) -> list[float]:
    """Draws the expectation with its deviation, as far as they are known, and returns the heights to fit in."""
    known = [place for place, value in enumerate(mean) if value is not None]
    wide = [place for place in known if std[place] is not None]
    low, high = ([mean[place] + side * std[place] for place in wide] for side in (-1, 1))
    axes.fill_between([x[place] for place in wide], low, high, color=COLOURS[4], alpha=0.25, linewidth=0,
                      step="post" if timed else None, label="± deviation of one random search")  # fmt: skip
    middle = [mean[place] for place in known]
    axes.plot([x[place] for place in known], middle, "--", color=COLOURS[1], linewidth=2,
              drawstyle="steps-post" if timed else "default", label="random search, expected")  # fmt: skip
    return middle + low[2:] + high[2:]  # the first deviations are too wide for the axes


def _draw_searches(axes: Any, x: Sequence[float], each: Sequence[Sequence], searches: Sequence[Mapping]) -> None:
    """Draws a line with a dot at its end for each search, and a thick line for the mean of several."""
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


def draw_trade_off(
    searches: Sequence[RecordedSearch], random: Sequence[RecordedSearch], pareto: Sequence[str], path: Path
) -> bool:
    """Draws all trained networks, the first objective over each of the others; returns False if there are none.

    If the search was for a front, draws its front and that of the random networks; otherwise the front of all networks.

    Args:
        searches, random: whose networks to draw.
        pareto: two or three texts such as "val_accuracy:max"; the first is on the vertical axis.
        path: of the picture.
    """
    names, directions = zip(*(text.split(":") for text in pareto), strict=True)
    signs = np.array([1.0 if direction == "max" else -1.0 for direction in directions])

    from matplotlib.ticker import EngFormatter

    nothing = np.zeros((0, len(names)))
    own, others = (
        np.concatenate([nothing, *(search.read_points(names) for search in group)]) for group in (searches, random)
    )
    if not len(own):
        return False
    better = "both" if len(names) == 2 else "all"
    fronts = [(np.concatenate([own, others]), COLOURS[2], f"no other is better in {better}")]
    if searches[0].objectives and len(others):
        fronts = [(own, COLOURS[2], "front of the search"), (others, COLOURS[1], "front of the random networks")]
    figure = new_figure(7.5 if len(names) == 2 else 12, 4.8)
    panels = figure.subplots(1, len(names) - 1, squeeze=False)[0]
    for place, axes in enumerate(panels, start=1):
        if len(others):
            axes.plot(others[:, place], others[:, 0], "x", color=COLOURS[1], markersize=5, label="random networks")
        axes.plot(own[:, place], own[:, 0], "o", color=COLOURS[0], markersize=5, alpha=0.7,
                  label="networks of the search")  # fmt: skip
        for points, colour, label in fronts:
            front = keep_front(points * signs) * signs
            front = front[np.argsort(front[:, place], kind="stable")]
            line = "-" if len(names) == 2 else "none"
            axes.plot(front[:, place], front[:, 0], linestyle=line, color=colour, linewidth=1.8, marker="o",
                      markersize=8, markerfacecolor="none", label=label)  # fmt: skip
        axes.set_xlabel(f"{name_metric(names[place])} ({'more' if directions[place] == 'max' else 'less'} is better)")
        style_axes(axes)
        if np.concatenate([own, others])[:, place].max() >= 10_000:
            axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    panels[0].set_ylabel(name_metric(names[0]))
    handles, labels = panels[0].get_legend_handles_labels()
    columns = 2 if len(labels) > 3 and len(names) == 2 else len(labels)
    figure.legend(handles, labels, loc="outside lower center", ncol=columns, frameon=False, fontsize=9)
    beside = f" and {len(others)} random ones" if len(others) else ""
    panels[0].set_title(f"{searches[0].recipe}: {len(own)} networks{beside}", loc="left", fontsize=11)
    save_figure(figure, path)
    return True


def _collect_histories(search: RecordedSearch) -> dict[int, Mapping[str, Any]]:
    """Returns the results of a search's supernets: seed -> {"history": one record per epoch} and more."""
    found = {seed: result for seed, result in search.seeds.items() if result.get("history")}
    return found | ({search.seed: {"history": search.supernet}} if search.supernet else {})


def list_histories(searches: Sequence[RecordedSearch]) -> list[dict[str, Any]]:
    """Returns, for each search with supernets, its folder's name, their histories and rankings."""
    found = []
    for search in searches:
        seeds = _collect_histories(search)
        if seeds:
            plain_history = {
                str(seed): [
                    {name: record[name] for name in record if name != "strengths"} for record in each["history"]
                ]
                for seed, each in seeds.items()
            }
            found.append({"folder": search.folder.name, "history": plain_history, "ranking": search.ranking})
    return found


def _draw_supernets(searches: Sequence[RecordedSearch], folder: Path) -> list[dict[str, str]]:
    """Draws histories and rankings, copies pictures that a search drew, and returns {"file", "text"} for each."""
    found = []
    for number, search in enumerate(searches):
        seeds, mark = _collect_histories(search), "" if len(searches) == 1 else f"_{number}"
        space = search.folder / "space.png"  # drawn by a search that first chose its space
        if space.exists():
            write_atomically(folder / f"space{mark}.png", space.read_bytes())
            found.append({"file": f"space{mark}.png", "text": f"The spaces that {search.folder.name} chose from"})
        if not seeds:
            continue
        whose = f"supernets of {search.folder.name}"
        draw_history(seeds, folder / f"history{mark}.png")
        found.append({"file": f"history{mark}.png", "text": f"The {whose}, epoch by epoch"})
        if search.ranking:
            draw_ranking(search.ranking, folder / f"ranking{mark}.png")
            found.append({"file": f"ranking{mark}.png", "text": f"Networks as ranked by the {whose}"})
        for seed in seeds:
            picture = search.folder / "seeds" / f"seed{seed}.png"
            if picture.exists():
                write_atomically(folder / f"strengths{mark}_seed{seed}.png", picture.read_bytes())
                text = f"How strengths and cells evolved, supernet of seed {seed}"
                found.append({"file": f"strengths{mark}_seed{seed}.png", "text": text})
    return found


def draw_history(seeds: Mapping[int, Mapping[str, Any]], path: Path) -> None:
    """Draws each seed's records over the epochs: losses, accuracies, skip connections and the like."""
    panels = list_panels([record for result in seeds.values() for record in result["history"]])
    columns = min(2, len(panels))
    rows = -(-len(panels) // max(1, columns))
    figure = new_figure(4.5 * max(1.3, columns), 2.4 * rows + 0.8)
    grid = figure.subplots(max(1, rows), max(1, columns), squeeze=False)
    for spare in grid.ravel()[len(panels) :]:
        spare.set_axis_off()
    for axes, (title, names) in zip(grid.ravel(), panels.items(), strict=False):
        integers = True
        for place, (seed, result) in enumerate(seeds.items()):
            epochs = range(1, len(result["history"]) + 1)
            whose = f"supernet of seed {seed}" if axes is grid[0, 0] else None
            for name, style in zip(names, ("-", "--"), strict=False):
                values = [record.get(name) for record in result["history"]]
                if None not in values:
                    axes.plot(epochs, values, style, color=COLOURS[place % len(COLOURS)], marker=".",
                              label=whose)  # fmt: skip
                    integers &= all(isinstance(value, int) for value in values)
                whose = None
        axes.set_title(title, loc="left", fontsize=10)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.yaxis.get_major_locator().set_params(integer=integers)
        axes.set_xlabel("epoch of the supernet")
        style_axes(axes)
    figure.legend(loc="outside lower center", ncol=4, frameon=False, fontsize=9)
    save_figure(figure, path)


def list_panels(records: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, ...]]:
    """Returns title -> names of one or two values, for all numbers in the records."""
    held = {name for record in records for name, value in record.items() if isinstance(value, (int, float))}
    held -= {"step", "seconds"}
    panels = {title: names for title, names in _PANELS.items() if held.issuperset(names)}
    paired = {name for names in panels.values() for name in names}
    return panels | {name_metric(name): (name,) for name in sorted(held - paired)}


def draw_ranking(ranking: Mapping[str, Any], path: Path) -> None:
    """Draws stand-alone accuracies over those with shared weights, in one colour per supernet."""
    figure = new_figure(6, 4.5)
    axes = figure.add_subplot()
    for place, (seed, found) in enumerate(ranking.items()):
        tau = "no order" if found["tau"] is None else f"Kendall's tau {found['tau']:.2f}"
        axes.plot(found["shared"], found["alone"], "osD^v"[place % 5], color=COLOURS[place % len(COLOURS)],
                  alpha=0.8, label=f"supernet of seed {seed}: {tau}")  # fmt: skip
    axes.set_xlabel("validation accuracy with the supernet's weights")
    axes.set_ylabel("accuracy, trained alone")
    count = len(next(iter(ranking.values()))["alone"])
    axes.set_title(f"{count} networks", loc="left", fontsize=11)
    style_axes(axes)
    figure.legend(loc="outside lower center", frameon=False, fontsize=9)
    save_figure(figure, path)
