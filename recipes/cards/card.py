"""The reproduction card of one search, or of several with seeds of their own: what was found, at what cost, on what.

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
from recipes.cards.read import JOURNAL, Search, read_search
from zoo import atomic

BASELINE = "baseline"  # a folder of this name inside a search's own is its random search
_RANDOM_STARTS = {  # option -> what needs more trials than it says
    "population": "never evolved",
    "controller_batch": "never updated its controller",
    "first": "never used its predictor",
}
_BASELINES = ("local", "bayesian")  # algorithms that have none of these options
CARD = "card"  # where in a search's folder its card is
_DIGITS = 6
_OF_A_SEARCH = ("algorithm", "seed", "planned", "refused", "finished", "stopped")


def write_card(folders: Sequence[Path], baselines: Sequence[Path] = (), target: Path | None = None) -> Path:
    """Writes a card into `target` and returns the path of its page.

    Args:
        folders: of searches by one recipe with one algorithm; unfinished ones are named. Random searches beside others
            are their baseline.
        baselines: of random searches; each search's own sub-folder "baseline", where there is one, unless given.
        target: the card's folder; the only search's own "card" unless given, and runs/report for several.

    Raises:
        ValueError: a folder without a search, or searches that cannot be on one card.
    """
    searches, random = read_searches(folders, baselines)
    target = target or choose_target(searches)
    card = make_card(searches, random)
    card["pictures"] = pictures.draw_pictures(searches, random, card, target)
    atomic.write_atomically(target / "card.json", json.dumps(card, indent=1, sort_keys=True) + "\n")
    path = target / "card.md"
    atomic.write_atomically(path, page.write_page(card))
    return path


def read_searches(folders: Sequence[Path], baselines: Sequence[Path] = ()) -> tuple[list[Search], list[Search]]:
    """Returns the searches of one card and the random searches beside them; arguments and errors: see `write_card`."""
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


def choose_target(searches: Sequence[Search]) -> Path:
    """Returns where the card of these searches is unless somebody says otherwise."""
    return searches[0].folder / CARD if len(searches) == 1 else Path("runs/report")


def make_card(searches: Sequence[Search], random: Sequence[Search]) -> dict[str, Any]:
    """Returns the card as JSON holds it, without its pictures."""
    first = searches[0]
    about = first.about
    compared = compare.compare(searches, random)
    fronts = compare.compare_fronts(searches, random, first.objectives) if first.objectives else None
    result = fronts or compared  # what the word rests on
    values = [search.best.score for search in searches if search.best is not None]
    mean, std = compare.mean_and_std(values) if values else (None, None)  # pyright: ignore[reportArgumentType]
    differ = about.get("paper")
    machines = [machine for search in (*searches, *random) for machine in search.about.get("machines", [])]
    word = compare.judge(
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
        "status": {"word": word, "rests_on": _rests_on(searches, random, compared, fronts, differ)},
        "score": {"name": first.objective, "better": "more" if first.sign > 0 else "less"},
        "searches": [_search(search) for search in searches],
        "baseline": [_search(search) for search in random],
        "best": _rounded({"mean": mean, "std": std, "values": values}),
        "comparison": _rounded(compared),
        "fronts": _rounded(fronts),
        "anytime": _rounded(compare.compare_anytime(searches, random)),
        "truth": _rounded(_judge_by_table(searches)),
        "settings": {name: value for name, value in about.get("config", {}).items() if name != "folder"},
        "paper": differ,
        "supernets": pictures.list_histories(searches),
        "machines": [machine for place, machine in enumerate(machines) if machine not in machines[:place]],
    }


def _check_alike(searches: Sequence[Search], random: Sequence[Search]) -> None:
    if not searches:
        raise ValueError("a card of no search; give the folders that searches wrote into")
    for name in ("recipe", "algorithm", "objective"):
        found = sorted({getattr(search, name) for search in searches})
        if len(found) > 1:
            raise ValueError(f"searches of one card have one {name}, and these have {' and '.join(found)}")
    if len({search.seed for search in searches}) < len(searches):
        raise ValueError(f"two searches have one seed: {[search.seed for search in searches]}; give each its own")
    for search in random:
        if search.objective != searches[0].objective:
            raise ValueError(f"{search.folder} scores {search.objective}, and the searches {searches[0].objective}")
        if not search.is_random:
            raise ValueError(f"{search.folder} is no random search, but {search.algorithm}; it cannot be the baseline")


def _search(search: Search) -> dict[str, Any]:
    best, config = search.best, search.about.get("config", search.header)
    images = search.about.get("images", {})
    epochs = config.get("epochs")
    # Inherited weights are not trained in a trial; the trials of halving train a network further.
    trained = {
        trial.genome if search.halves else trial.number: trial.metrics.get("epochs", epochs)
        for trial in search.trials
        if "loss" in trial.metrics
    }
    return {
        "folder": search.folder.name,
        **{name: getattr(search, name) for name in _OF_A_SEARCH},
        "trials": len(search.trials),
        "failed": sum(trial.score is None for trial in search.trials),
        "best": None if best is None else {"trial": best.number, "score": best.score, "metrics": dict(best.metrics)},
        "seconds": round(search.seconds, 1),
        "epochs": int(sum(trained.values())) if trained and epochs else None,
        "training_images": images.get("training", config.get("training_images")),
        "validation_images": images.get("validation"),
        "mean": round(float(np.mean(search.scores)), _DIGITS) if search.scores else None,
        "result": _rounded(search.result),
    }


def _judge_by_table(searches: Sequence[Search]) -> dict[str, Any] | None:
    """Returns what a table says of each search and of all together; None where not one table has all."""
    tables = {search.truth.get("table") for search in searches}
    if len(tables) > 1 or None in [*tables, *(search.truth["worth"] for search in searches if search.truth)]:
        return None
    finds = []
    for search in searches:
        taus = [found["tau"] for found in search.ranking.values() if found["tau"] is not None]
        find = {name: value for name, value in search.truth.items() if name != "random"}
        finds.append(find | {"seed": search.seed, "tau": float(np.mean(taus)) if taus else None})
    taus = [find["tau"] for find in finds if find["tau"] is not None]
    together = truth.judge_together([search.truth for search in searches], taus)
    first = searches[0].truth
    return {"table": first["table"], "networks": first["networks"], "finds": finds, "together": together}


def _rests_on(
    searches: Sequence[Search],
    random: Sequence[Search],
    compared: dict[str, Any] | None,
    fronts: dict[str, Any] | None,
    differ: dict | None,
) -> list[str]:
    found = [f"{_count(len(searches), 'search', 'searches')}, seed {', '.join(str(s.seed) for s in searches)}"]
    if len(searches) < compare.LEAST_SEARCHES:
        found[0] += f"; a result takes {compare.LEAST_SEARCHES}"
    for search in searches:
        if not search.finished:
            total = "an unknown number of" if search.planned is None else f"{search.planned:,}"
            found.append(f"{search.folder.name} stopped after {len(search.trials):,} of {total} trials")
    found += dict.fromkeys(
        filter(None, [judge(search) for judge in (_judge_images, _judge_length) for search in searches])
    )
    if compared is None:
        found.append("no random search beside it" if not random else "no trial that succeeded")
    else:
        result, what = (fronts, "hypervolume ") if fronts else (compared, "")
        error = result["standard_error"]
        shown = "one search has no standard error" if error is None else f"standard error {error:.4f}"
        found.append(f"{what}over random search at the same budget {result['gain']:+.4f}, {shown}")
        if short := compare.count_short(compared):
            found.append(f"{_count(short, 'baseline has', 'baselines have')} fewer networks than the budget allows")
    if differ is None:
        found.append("whether the settings are the paper's is not known")
    else:
        found.append(f"{_count(len(differ), 'setting', 'settings')} other than the paper's" if differ else
                     "the paper's settings")  # fmt: skip
    return found


def _judge_images(search: Search) -> str:
    """Says how precise accuracies of so many validation images are; empty where that is not known."""
    count = search.about.get("images", {}).get("validation")
    accuracies = [trial.metrics["val_accuracy"] for trial in search.trials if "val_accuracy" in trial.metrics]
    if not count or not accuracies:
        return ""
    best = max(accuracies)
    error = math.sqrt(best * (1 - best) / count)
    few = 2 * error >= best - float(np.median(accuracies))
    ranks = ": too few to rank these networks, the best is partly the luckiest" if few else ""
    return f"accuracies of {_count(count, 'validation image', 'validation images')}, standard error {error:.3f}{ranks}"


def _judge_length(search: Search) -> str:
    """Says where a search was too short to learn from its own results."""
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


def _rounded(value: Any) -> Any:
    """Rounds all numbers, so that another processor's last bit changes no card."""
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_rounded(part) for part in value]
    return round(value, _DIGITS) if isinstance(value, float) else value
