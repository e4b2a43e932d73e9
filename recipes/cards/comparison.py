"""Searches beside random search at the same budget: at their end, and at every moment before."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from recipes.cards import statistics as report_statistics
from recipes.cards.reading import Search

_MOST_POINTS = 200  # of a curve


def by_seconds(searches: Sequence[Search], random: Sequence[Search]) -> bool:
    """Says whether a budget is time: where a trial of the search is no trial of the baseline, but a search itself."""
    return any(search.header["choices"] != random[0].header["choices"] for search in searches) if random else False


def draws_of(search: Search, random: Search) -> int:
    """Returns how many random networks this search's budget trains: as many trials, or as many as fit in its time."""
    if not by_seconds([search], [random]):
        return len(search.scores)
    each = random.seconds / max(1, len(random.trials))
    return max(1, int(search.seconds / max(each, 1e-9)))


def comparison(searches: Sequence[Search], random: Sequence[Search]) -> dict[str, Any] | None:
    """Returns the searches' best beside what random search reaches at the same budget; None without a baseline."""
    searches = [search for search in searches if search.scores]
    random = [search for search in random if search.scores]
    if not searches or not random:
        return None
    sign = searches[0].sign
    seeds = [search.seed for search in searches]
    paired = sorted(seeds) == sorted(search.seed for search in random)
    by_seed = {search.seed: search for search in random}
    pairs = [(search, by_seed[search.seed]) for search in searches] if paired else []
    others = pairs or [(searches[0], other) for other in random]
    wanted = [draws_of(search, other) for search, other in others]
    given = [min(draws, len(other.scores)) for draws, (_, other) in zip(wanted, others, strict=True)]
    expected = [
        report_statistics.expected_best(other.scores, draws, sign).mean
        for draws, (_, other) in zip(given, others, strict=True)
    ]
    best = [search.best.score for search in searches if search.best is not None and search.best.score is not None]
    difference, error = report_statistics.gain(best, expected, paired, sign)
    mean, std = report_statistics.mean_and_std(expected)
    return {
        "budget": "seconds" if by_seconds(searches, random) else "trials",
        "draws": given,
        "draws_in_budget": wanted,
        "random": {"mean": mean, "std": std, "values": expected},
        "random_cell": float(np.mean([score for search in random for score in search.scores])),
        "later_half": [float(np.mean(search.scores[len(search.scores) // 2 :])) for search in searches],
        "gain": difference,
        "standard_error": error,
        "paired": paired,
    }


def anytime(searches: Sequence[Search], random: Sequence[Search]) -> dict[str, Any]:
    """Returns the best score so far of each search, and what random search is expected to have at that budget.

    `x` counts trials or, where a trial is a search itself, seconds; None stands before the first trial that succeeded.
    """
    timed, sign = by_seconds(searches, random), searches[0].sign
    random = [search for search in random if search.scores]
    most = max((search.seconds if timed else len(search.trials)) for search in searches)
    if timed:
        x = np.linspace(0, most, _MOST_POINTS + 1)[1:]
    else:
        x = np.unique(np.linspace(1, max(1, most), min(_MOST_POINTS, max(1, int(most)))).round().astype(int))
    each = [_best_so_far(search, x, timed) for search in searches]
    found: dict[str, Any] = {"unit": "seconds" if timed else "trials", "x": x.tolist(), "each": each}
    if random:
        curves = []
        for other in random:
            rate = len(other.trials) / max(other.seconds, 1e-9) if timed else 1
            draws = [int(at * rate) for at in x]
            curves.append([_expected(other, count, sign) for count in draws])
        found["random_mean"] = [_mean([curve[place][0] for curve in curves]) for place in range(len(x))]
        found["random_std"] = [_mean([curve[place][1] for curve in curves]) for place in range(len(x))]
    return found


def _best_so_far(search: Search, x: Sequence[float] | np.ndarray, timed: bool) -> list[float | None]:
    at = np.cumsum([trial.seconds for trial in search.trials]) if timed else np.arange(1, len(search.trials) + 1)
    scores = [-np.inf if trial.score is None else search.sign * trial.score for trial in search.trials]
    best = np.maximum.accumulate(scores) if scores else np.zeros(0)
    places = np.searchsorted(at, np.asarray(x) + 1e-9, side="right") - 1
    last = at[-1] if len(at) else 0
    return [
        search.sign * float(best[place]) if place >= 0 and np.isfinite(best[place]) and here <= last + 1e-9 else None
        for place, here in zip(places, x, strict=True)
    ]


def _expected(search: Search, draws: int, sign: int) -> tuple[float | None, float | None]:
    if not 1 <= draws <= len(search.scores):
        return None, None
    best = report_statistics.expected_best(search.scores, draws, sign)
    # Of nearly all scores the best is nearly certain, which says nothing of another search.
    return best.mean, best.std if 2 * draws <= len(search.scores) else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None
