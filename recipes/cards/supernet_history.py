"""How supernets trained: their history, how well they rank networks, and the pictures that their search drew."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recipes.cards.pictures import COLOURS, name_of, new_figure, plain, save
from recipes.cards.reading import Search
from zoo.atomic import write_atomically

_PAIRS = {
    "loss: training half, validation half dashed": ("loss", "validation_loss"),
    "loss: mean of the sub-networks, largest one dashed": ("loss", "first_loss"),
    "accuracy: training half, validation half dashed": ("accuracy", "validation_accuracy"),
    "reward, moving average dashed": ("reward", "baseline"),
    "skip connections: normal cell, reduction cell dashed": ("normal_skips", "reduce_skips"),
    "dominant eigenvalue of the Hessian in alpha": ("eigenvalue",),
}


def results(search: Search) -> dict[int, dict[str, Any]]:
    """Returns what the supernets of `search` have left: seed -> {"history": a record an epoch} and more."""
    paths = (search.folder / "seeds").glob("seed*.json")
    found = {int(path.stem.removeprefix("seed")): json.loads(path.read_text(encoding="utf-8")) for path in paths}
    only = search.folder / "supernet.json"
    if only.exists():
        found[search.seed] = {"history": json.loads(only.read_text(encoding="utf-8"))}
    return dict(sorted(found.items()))


def histories(searches: Sequence[Search]) -> list[dict[str, Any]]:
    """Returns, for each search that has supernets, its folder's name, their histories, and how well they rank cells."""
    found = []
    for search in searches:
        seeds = results(search)
        if seeds:
            plain_history = {
                str(seed): [_without_strengths(record) for record in result["history"]]
                for seed, result in seeds.items()
            }
            found.append({"folder": search.folder.name, "history": plain_history, "ranking": _ranking(search)})
    return found


def _without_strengths(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != "strengths"}


def _ranking(search: Search) -> dict[str, Any]:
    """Returns seed -> accuracies of random networks by shared weights and alone, with their tau."""
    path = search.folder / "ranking.json"
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    random = search.result.get("random", {})
    if not random.get("shared_accuracies"):
        return {}
    pair = {"shared": random["shared_accuracies"], "alone": random["val_accuracies"]}
    return {str(search.seed): {**pair, "tau": search.result["kendall_tau"]}}


def draw(searches: Sequence[Search], folder: Path) -> list[dict[str, str]]:
    """Draws histories and rankings into `folder`, copies what a search drew, and returns {"file", "text"} of each."""
    found = []
    for number, search in enumerate(searches):
        seeds, mark = results(search), "" if len(searches) == 1 else f"_{number}"
        space = search.folder / "space.png"  # of a search that chose its space first
        if space.exists():
            write_atomically(folder / f"space{mark}.png", space.read_bytes())
            found.append({"file": f"space{mark}.png", "text": f"The spaces that {search.folder.name} chose from"})
        if not seeds:
            continue
        whose = f"supernets of {search.folder.name}"
        history(seeds, folder / f"history{mark}.png")
        found.append({"file": f"history{mark}.png", "text": f"The {whose}, epoch by epoch"})
        ranking = _ranking(search)
        if ranking:
            rank(ranking, folder / f"ranking{mark}.png")
            found.append({"file": f"ranking{mark}.png", "text": f"Random networks as the {whose} rank them"})
        for seed in seeds:
            picture = search.folder / "seeds" / f"seed{seed}.png"
            if picture.exists():
                write_atomically(folder / f"strengths{mark}_seed{seed}.png", picture.read_bytes())
                text = f"Strengths and cells as they evolved, supernet of seed {seed}"
                found.append({"file": f"strengths{mark}_seed{seed}.png", "text": text})
    return found


def history(seeds: Mapping[int, Mapping[str, Any]], path: Path) -> None:
    """Draws what the records of each seed hold over the epochs: losses, accuracies, skip connections and the like."""
    panels = _panels_of([record for result in seeds.values() for record in result["history"]])
    columns = min(2, len(panels))
    rows = -(-len(panels) // max(1, columns))
    figure = new_figure(4.5 * max(1.3, columns), 2.4 * rows + 0.8)
    grid = figure.subplots(max(1, rows), max(1, columns), squeeze=False)
    for spare in grid.ravel()[len(panels) :]:
        spare.set_axis_off()
    for axes, (title, names) in zip(grid.ravel(), panels.items(), strict=False):
        whole = True
        for place, (seed, result) in enumerate(seeds.items()):
            epochs = range(1, len(result["history"]) + 1)
            whose = f"supernet of seed {seed}" if axes is grid[0, 0] else None
            for name, style in zip(names, ("-", "--"), strict=False):
                values = [record.get(name) for record in result["history"]]
                if None not in values:
                    axes.plot(epochs, values, style, color=COLOURS[place % len(COLOURS)], marker=".",
                              label=whose)  # fmt: skip
                    whole &= all(isinstance(value, int) for value in values)
                whose = None
        axes.set_title(title, loc="left", fontsize=10)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.yaxis.get_major_locator().set_params(integer=whole)
        axes.set_xlabel("epoch of the supernet")
        plain(axes)
    figure.legend(loc="outside lower center", ncol=4, frameon=False, fontsize=9)
    save(figure, path)


def _panels_of(records: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, ...]]:
    """Returns title -> names of one or two values, for every number that the records hold."""
    held = {name for record in records for name, value in record.items() if isinstance(value, (int, float))}
    held -= {"step"}
    panels = {title: names for title, names in _PAIRS.items() if held.issuperset(names)}
    paired = {name for names in panels.values() for name in names}
    return panels | {name_of(name): (name,) for name in sorted(held - paired)}


def rank(ranking: Mapping[str, Any], path: Path) -> None:
    """Draws stand-alone accuracies over those by shared weights, a colour for each supernet."""
    figure = new_figure(6, 4.5)
    axes = figure.add_subplot()
    for place, (seed, found) in enumerate(ranking.items()):
        tau = "no order" if found["tau"] is None else f"Kendall's tau {found['tau']:.2f}"
        axes.plot(found["shared"], found["alone"], "osD^v"[place % 5], color=COLOURS[place % len(COLOURS)],
                  alpha=0.8, label=f"supernet of seed {seed}: {tau}")  # fmt: skip
    axes.set_xlabel("validation accuracy with the supernet's weights")
    axes.set_ylabel("validation accuracy, trained alone")
    count = len(next(iter(ranking.values()))["alone"])
    axes.set_title(f"{count} random networks", loc="left", fontsize=11)
    plain(axes)
    figure.legend(loc="outside lower center", frameon=False, fontsize=9)
    save(figure, path)
