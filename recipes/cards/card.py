"""The reproduction card of one search, or of several with seeds of their own: what was found, at what cost, on what.

    report_card.write([Path("runs/amoebanet")], [Path("runs/amoebanet-random")], Path("runs/amoebanet/card"))

Writes card.json, card.md (recipes.cards.page) and pictures. The same folders give the same bytes.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recipes.cards import comparison as report_comparison
from recipes.cards import page as report_page
from recipes.cards import pictures as report_pictures
from recipes.cards import reading as report_data
from recipes.cards import statistics as report_statistics
from recipes.cards import supernet_history as report_supernet
from recipes.cards.reading import Search
from zoo import atomic

BASELINE = "baseline"  # a folder of this name inside a search's own is its random search
CARD = "card"  # where in a search's folder its card is
_DIGITS = 6


def write(folders: Sequence[Path], baselines: Sequence[Path] = (), target: Path | None = None) -> Path:
    """Writes a card into `target` and returns the path of its page.

    Args:
        folders: of searches by one recipe with one algorithm; unfinished ones are told as such.
        baselines: of random searches; each search's own sub-folder "baseline", where there is one, unless given.
        target: the card's folder; the only search's own "card" unless given.

    Raises:
        ValueError: a folder without a search, or searches that cannot be on one card.
    """
    if target is None:
        if len(folders) != 1:
            raise ValueError(f"{len(folders)} folders need a place for their card; give one")
        target = folders[0] / CARD
    searches = [report_data.read(folder) for folder in folders]
    if not baselines:
        own = [folder / BASELINE for folder in folders]
        baselines = [folder for folder in own if (folder / report_data.JOURNAL).is_file()]
    random = [report_data.read(folder) for folder in baselines]
    _check_alike(searches, random)
    card = of(searches, random)
    pictures = report_pictures.draw(searches, random, card, target)
    pictures += report_supernet.draw(searches, target)
    card["pictures"] = pictures
    atomic.write_atomically(target / "card.json", json.dumps(card, indent=1, sort_keys=True) + "\n")
    page = target / "card.md"
    atomic.write_atomically(page, report_page.markdown(card))
    return page


def of(searches: Sequence[Search], random: Sequence[Search]) -> dict[str, Any]:
    """Returns the card as JSON holds it, without its pictures."""
    first = searches[0]
    about = first.about
    compared = report_comparison.comparison(searches, random)
    values = [search.best.score for search in searches if search.best is not None]
    mean, std = report_statistics.mean_and_std(values) if values else (None, None)  # pyright: ignore[reportArgumentType]
    differ = about.get("paper")
    word = report_statistics.status(
        len(searches),
        sum(search.finished for search in searches),
        compared["gain"] if compared else None,
        compared["standard_error"] if compared else None,
        differ == {},
    )
    return {
        "card": 1,
        "recipe": first.recipe,
        "algorithm": first.algorithm,
        "title": about.get("title", ""),
        "source": about.get("source", ""),
        "departures": about.get("departures", []),
        "status": {"word": word, "rests_on": _rests_on(searches, random, compared, differ)},
        "score": {"name": first.objective, "better": "more" if first.sign > 0 else "less"},
        "searches": [_search(search) for search in searches],
        "baseline": [_search(search) for search in random],
        "best": _rounded({"mean": mean, "std": std, "values": values}),
        "comparison": _rounded(compared),
        "anytime": _rounded(report_comparison.anytime(searches, random)),
        "settings": {name: value for name, value in about.get("config", {}).items() if name != "folder"},
        "paper": differ,
        "supernets": report_supernet.histories(searches),
        "machines": _machines([*searches, *random]),
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
        if "random" not in search.algorithm.lower():
            raise ValueError(f"{search.folder} is no random search, but {search.algorithm}; it cannot be the baseline")


def _search(search: Search) -> dict[str, Any]:
    best, config = search.best, search.about.get("config", search.header)
    images = config.get("training_images")
    epochs = config.get("epochs")
    done = len(search.scores)
    trained = sum("loss" in trial.metrics for trial in search.trials)  # inherited weights are not trained in a trial
    return {
        "folder": search.folder.name,
        "algorithm": search.algorithm,
        "seed": search.seed,
        "planned": search.planned,
        "trials": len(search.trials),
        "failed": len(search.trials) - done,
        "refused": search.refused,
        "finished": search.finished,
        "stopped": search.stopped,
        "best": None if best is None else {"trial": best.number, "score": best.score, "metrics": dict(best.metrics)},
        "seconds": round(search.seconds, 1),
        "epochs": trained * epochs if trained and epochs else None,
        "training_images": images,
        "mean": round(float(np.mean(search.scores)), _DIGITS) if done else None,
        "result": _rounded(search.result),
    }


def _rests_on(
    searches: Sequence[Search], random: Sequence[Search], compared: dict[str, Any] | None, differ: dict | None
) -> list[str]:
    unfinished = [search for search in searches if not search.finished]
    found = [f"{_count(len(searches), 'search', 'searches')}, seed {', '.join(str(s.seed) for s in searches)}"]
    if len(searches) < report_statistics.LEAST_SEARCHES:
        found[0] += f"; a result takes {report_statistics.LEAST_SEARCHES}"
    found += [f"{search.folder.name} stopped at {_stopped_at(search)}" for search in unfinished]
    if compared is None:
        found.append("no random search beside it" if not random else "no trial that succeeded")
    else:
        error = compared["standard_error"]
        shown = "one search has no standard error" if error is None else f"standard error {error:.4f}"
        found.append(f"over random search at the same budget {compared['gain']:+.4f}, {shown}")
        short = sum(
            given < wanted for given, wanted in zip(compared["draws"], compared["draws_in_budget"], strict=True)
        )
        if short:
            found.append(f"{_count(short, 'baseline has', 'baselines have')} fewer networks than the budget allows")
    if differ is None:
        found.append("whether the settings are the paper's is not known")
    else:
        found.append(f"{_count(len(differ), 'setting', 'settings')} other than the paper's" if differ else
                     "the paper's settings")  # fmt: skip
    return found


def _stopped_at(search: Search) -> str:
    total = "an unknown number" if search.planned is None else f"{search.planned:,}"
    return f"trial {len(search.trials):,} of {total}"


def _count(number: int, one: str, several: str) -> str:
    return f"{number:,} {one if number == 1 else several}"


def _machines(searches: Sequence[Search]) -> list[Any]:
    found = []
    for search in searches:
        found += [machine for machine in search.about.get("machines", []) if machine not in found]
    return found


def _rounded(value: Any) -> Any:
    """Rounds all numbers, so that another processor's last bit changes no card."""
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_rounded(part) for part in value]
    return round(value, _DIGITS) if isinstance(value, float) else value
