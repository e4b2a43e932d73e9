"""The reproduction card of one search, or of several with different seeds: what was found, at what cost, on what.

    card.write_card([Path("runs/amoebanet")], [Path("runs/amoebanet-random")], Path("runs/amoebanet/card"))

Writes card.json, card.md (recipes.cards.page) and pictures. The same folders give the same bytes.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recipes.cards import compare, page, pictures, truth
from recipes.cards.read import JOURNAL, RecordedSearch, read_search
from zoo import atomic

BASELINE = "baseline"  # sub-folder of a search with its random search
_RANDOM_STARTS = {  # option -> what a search of no more trials than its value has not done
    "population": "never evolved",
    "controller_batch": "never updated its controller",
    "first": "never used its predictor",
}
_BASELINES = ("local", "bayesian")  # algorithms that have none of these options
CARD = "card"  # sub-folder of a search with its card
_DIGITS = 6
_SEARCH_FIELDS = ("algorithm", "seed", "planned", "refused", "finished", "stopped")


def write_card(folders: Sequence[Path], baselines: Sequence[Path] = (), target: Path | None = None) -> Path:
    """Writes a card into `target` and returns the path of its page.

    Args:
        folders: of searches by one recipe with one algorithm; the card names unfinished ones. Random searches among
            others become their baseline.
        baselines: folders of random searches; by default each search's own sub-folder "baseline", if it exists.
        target: the card's folder; by default the search's sub-folder "card", or runs/report for several searches.

    Raises:
        ValueError: a folder without a search, or searches that do not fit on one card.
    """
    searches, random = read_searches(folders, baselines)
    target = target or choose_target(searches)
    card = make_card(searches, random)
    card["pictures"] = pictures.draw_pictures(searches, random, card, target)
    atomic.write_atomically(target / "card.json", json.dumps(card, indent=1, sort_keys=True) + "\n")
    path = target / "card.md"
    atomic.write_atomically(path, page.write_page(card))
    return path


def read_searches(
    folders: Sequence[Path], baselines: Sequence[Path] = ()
) -> tuple[list[RecordedSearch], list[RecordedSearch]]:
    """Returns the searches of one card and their baseline; for arguments and errors see `write_card`."""
    searches = [read_search(folder) for folder in folders]
    random = [read_search(folder) for folder in baselines]
    if not random and not all(search.is_random for search in searches):
        random = [search for search in searches if search.is_random]
        searches = [search for search in searches if not search.is_random]
    if not random:
        own = [search.folder / BASELINE for search in searches]
        random = [read_search(folder) for folder in own if (folder / JOURNAL).is_file()]
    _check_alike(searches, random)
    return searches, random


def choose_target(searches: Sequence[RecordedSearch]) -> Path:
    """Returns the default folder for the card of these searches."""
    return searches[0].folder / CARD if len(searches) == 1 else Path("runs/report")


def make_card(searches: Sequence[RecordedSearch], random: Sequence[RecordedSearch]) -> dict[str, Any]:
    """Returns the card as JSON values, without its pictures."""
    first = searches[0]
    about = first.about
    compared = compare.compare(searches, random)
    fronts = compare.compare_fronts(searches, random, first.objectives) if first.objectives else None
    result = fronts or compared  # decides the status
    values = [search.best.score for search in searches if search.best is not None]
    mean, std = compare.mean_and_std(values) if values else (None, None)  # pyright: ignore[reportArgumentType]
    differ = about.get("paper")
    machines = [machine for search in (*searches, *random) for machine in search.about.get("machines", [])]
    word = compare.choose_status(
        len(searches),
        sum(search.finished for search in searches),
        result["gain"] if result else None,
        result["standard_error"] if result else None,
        differ == {},
    )
    return {
        "card": 1,
        "recipe": first.recipe,
        "algorithm": first.algorithm,
        "title": about.get("title", ""),
        "source": about.get("source", ""),
        "departures": about.get("departures", []),
        "status": {"word": word, "rests_on": _list_reasons(searches, random, compared, fronts, differ)},
        "score": {"name": first.objective, "better": "more" if first.sign > 0 else "less"},
        "searches": [_describe_search(search) for search in searches],
        "baseline": [_describe_search(search) for search in random],
        "best": _round_numbers({"mean": mean, "std": std, "values": values}),
        "comparison": _round_numbers(compared),
        "fronts": _round_numbers(fronts),
        "anytime": _round_numbers(compare.compare_anytime(searches, random)),
        "truth": _round_numbers(_summarize_truth(searches)),
        "settings": {name: value for name, value in about.get("config", {}).items() if name != "folder"},
        "paper": differ,
        "supernets": pictures.list_histories(searches),
        "machines": [machine for place, machine in enumerate(machines) if machine not in machines[:place]],
    }


def _check_alike(searches: Sequence[RecordedSearch], random: Sequence[RecordedSearch]) -> None:
    if not searches:
        raise ValueError("no search for the card; give the folders that searches wrote to")
    for name in ("recipe", "algorithm", "objective"):
        found = sorted({getattr(search, name) for search in searches})
        if len(found) > 1:
            raise ValueError(f"searches on one card must have one {name}, and these have {' and '.join(found)}")
    if len({search.seed for search in searches}) < len(searches):
        raise ValueError(f"two searches have one seed: {[search.seed for search in searches]}; give each its own seed")
    for search in random:
        if search.objective != searches[0].objective:
            raise ValueError(
                f"{search.folder} scores {search.objective}, but the searches score {searches[0].objective}"
            )
        if not search.is_random:
            raise ValueError(f"{search.folder} is not a random search but {search.algorithm}; it cannot be a baseline")


def _describe_search(search: RecordedSearch) -> dict[str, Any]:
    best, config = search.best, search.about.get("config", search.header)
    images = search.about.get("images", {})
    epochs = config.get("epochs")
    # Trials with inherited weights train nothing; with halving, a network's trials continue one training.
    trained = {
        trial.genome if search.uses_halving else trial.number: trial.metrics.get("epochs", epochs)
        for trial in search.trials
        if "loss" in trial.metrics
    }
    return {
        "folder": search.folder.name,
        **{name: getattr(search, name) for name in _SEARCH_FIELDS},
        "trials": len(search.trials),
        "failed": sum(trial.score is None for trial in search.trials),
        "best": None if best is None else {"trial": best.number, "score": best.score, "metrics": dict(best.metrics)},
        "seconds": round(search.seconds, 1),
        "epochs": int(sum(trained.values())) if trained and epochs else None,
        "training_images": images.get("training", config.get("training_images")),
        "validation_images": images.get("validation"),
        "mean": round(float(np.mean(search.scores)), _DIGITS) if search.scores else None,
        "result": _round_numbers(search.result),
    }


def _summarize_truth(searches: Sequence[RecordedSearch]) -> dict[str, Any] | None:
    """Returns the table's ratings of each search and of all together; None unless one table has all results."""
    tables = {search.truth.get("table") for search in searches}
    if len(tables) > 1 or None in [*tables, *(search.truth["worth"] for search in searches if search.truth)]:
        return None
    ratings = []
    for search in searches:
        taus = [found["tau"] for found in search.ranking.values() if found["tau"] is not None]
        rating = {name: value for name, value in search.truth.items() if name != "random"}
        ratings.append(rating | {"seed": search.seed, "tau": float(np.mean(taus)) if taus else None})
    taus = [rating["tau"] for rating in ratings if rating["tau"] is not None]
    together = truth.summarize_ratings([search.truth for search in searches], taus)
    first = searches[0].truth
    return {"table": first["table"], "networks": first["networks"], "finds": ratings, "together": together}


def _list_reasons(
    searches: Sequence[RecordedSearch],
    random: Sequence[RecordedSearch],
    compared: dict[str, Any] | None,
    fronts: dict[str, Any] | None,
    differ: dict | None,
) -> list[str]:
    found = [f"{_count(len(searches), 'search', 'searches')}, seed {', '.join(str(s.seed) for s in searches)}"]
    if len(searches) < compare.LEAST_SEARCHES:
        found[0] += f"; a result needs {compare.LEAST_SEARCHES}"
    for search in searches:
        if not search.finished:
            total = "an unknown number of" if search.planned is None else f"{search.planned:,}"
            found.append(f"{search.folder.name} stopped after {len(search.trials):,} of {total} trials")
    found += dict.fromkeys(
        filter(None, [describe(search) for describe in (_describe_images, _describe_length) for search in searches])
    )
    if compared is None:
        found.append("no random search to compare with" if not random else "no trial succeeded")
    else:
        result, what = (fronts, "hypervolume ") if fronts else (compared, "")
        error = result["standard_error"]
        shown = "one search has no standard error" if error is None else f"standard error {error:.4f}"
        found.append(f"{what}over random search at the same budget {result['gain']:+.4f}, {shown}")
        if short := compare.count_short(compared):
            found.append(f"{_count(short, 'baseline has', 'baselines have')} fewer networks than the budget allows")
    if differ is None:
        found.append("unknown whether the settings are the paper's")
    else:
        found.append(f"{_count(len(differ), 'setting', 'settings')} other than the paper's" if differ else
                     "the paper's settings")  # fmt: skip
    return found


def _describe_images(search: RecordedSearch) -> str:
    """Describes how precise accuracies on the validation images are; empty if that is unknown."""
    count = search.about.get("images", {}).get("validation")
    accuracies = [trial.metrics["val_accuracy"] for trial in search.trials if "val_accuracy" in trial.metrics]
    if not count or not accuracies:
        return ""
    best = max(accuracies)
    error = math.sqrt(best * (1 - best) / count)
    few = 2 * error >= best - float(np.median(accuracies))
    ranks = ": too few to rank these networks; the best is partly the luckiest" if few else ""
    return f"accuracies on {_count(count, 'validation image', 'validation images')}, standard error {error:.3f}{ranks}"


def _describe_length(search: RecordedSearch) -> str:
    """Describes a search that was too short to learn from its own results; empty for others."""
    config = search.about.get("config", {})
    starts = {"generation": "never evolved"} if search.objectives else _RANDOM_STARTS
    for name, what in starts.items():
        learns = "random" not in search.algorithm and search.algorithm not in _BASELINES
        if config.get(name) and learns and len(search.trials) <= config[name]:
            trials = _count(len(search.trials), "trial", "trials")
            return f"{trials} and a {name} of {config[name]}: the search {what}, all its networks are random"
    return ""


def _count(number: int, one: str, several: str) -> str:
    return f"{number:,} {one if number == 1 else several}"


def _round_numbers(value: Any) -> Any:
    """Rounds all numbers, so that a processor's last bit does not change a card."""
    if isinstance(value, dict):
        return {name: _round_numbers(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_round_numbers(part) for part in value]
    return round(value, _DIGITS) if isinstance(value, float) else value
