"""Compares searches with random search: exact expectations of the best of k draws, fronts, rankings, and a status."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from recipes.cards.read import RecordedSearch

REPRODUCED, AT_REDUCED_SCALE, PROCEDURE_ONLY = "reproduced", "reproduced at reduced scale", "procedure only"
LEAST_SEARCHES = 3  # with different seeds, for a result to count as reproduced
LEAST_NETWORKS = 12  # for a meaningful Kendall's tau
LARGEST = 0.25  # share of the random networks that count as the largest
ENOUGH_ERRORS = 2.0  # standard errors by which a search must beat random search
_MOST_POINTS = 200  # on a curve


class Best(NamedTuple):
    """Mean and standard deviation of the best of k random draws."""

    mean: float
    std: float


def expected_best(scores: Sequence[float], draws: int, sign: int = 1) -> Best:
    """Returns the exact mean and deviation of the best of `draws` scores, drawn without replacement.

    Args:
        scores: of networks drawn at random.
        draws: from 1 to the number of scores.
        sign: 1 if the largest is the best, -1 if the smallest is.
    """
    if not 1 <= draws <= len(scores):
        raise ValueError(f"the best of {draws} draws from {len(scores)} scores; expected 1 to {len(scores)} draws")
    worth = np.sort(sign * np.asarray(scores, np.float64))[::-1]
    shares = chance_to_be_best(len(worth), draws)
    kept = worth[: len(shares)]
    mean = float(shares @ kept)
    return Best(sign * mean, math.sqrt(max(0.0, float(shares @ (kept - mean) ** 2))))


def chance_to_be_best(count: int, draws: int) -> np.ndarray:
    """Returns the probability that the best of `draws` out of `count`, without replacement, is the i-th best of all.

    That is C(count - i, draws - 1) / C(count, draws), for i from 1 to count - draws + 1; beyond, it is 0.
    """
    above = np.arange(count - draws)  # number that are better than the rank before
    return np.cumprod(np.r_[draws / count, (count - above - draws) / (count - above - 1)])


def mean_and_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Returns the mean and the sample standard deviation, which is None for a single value."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def measure_gain(
    best: Sequence[float], random: Sequence[float], paired: bool, sign: int = 1
) -> tuple[float, float | None]:
    """Returns by how much searches beat random search on average, and the standard error of this gain.

    Args:
        best: the best score of each search.
        random: the expected best of random search at the same budget, for each random search.
        paired: whether both lists have the same seeds in the same order, and thus the same images.
        sign: 1 if more is better, -1 if less is.
    """
    difference = sign * (float(np.mean(best)) - float(np.mean(random)))
    if paired:
        if len(best) != len(random):
            raise ValueError(f"{len(best)} searches cannot be paired with {len(random)} random ones")
        _, spread = mean_and_std(np.subtract(best, random).tolist())
        return difference, None if spread is None else spread / math.sqrt(len(best))
    spreads = [mean_and_std(values)[1] for values in (best, random)]
    if any(spread is None for spread in spreads):
        return difference, None
    parts = zip(spreads, (best, random), strict=True)
    return difference, math.sqrt(sum((spread or 0.0) ** 2 / len(values) for spread, values in parts))


def choose_status(searches: int, finished: int, gain: float | None, error: float | None, as_in_paper: bool) -> str:
    """Returns the status word of a result.

    A result is reproduced if at least three searches, all finished, beat random search at the same budget by more than
    two standard errors; it is at reduced scale if the settings are not the paper's.
    """
    shown = gain is not None and error is not None and gain > ENOUGH_ERRORS * error
    if finished < max(searches, LEAST_SEARCHES) or not shown:
        return PROCEDURE_ONLY
    return REPRODUCED if as_in_paper else AT_REDUCED_SCALE


def is_budget_time(searches: Sequence[RecordedSearch], random: Sequence[RecordedSearch]) -> bool:
    """Returns whether the budget is time and not trials: a search also trained supernets, or trials are searches."""
    if not random:
        return False
    return any(search.seeds or search.header["choices"] != random[0].header["choices"] for search in searches)


def match_seeds(searches: Sequence[RecordedSearch], random: Sequence[RecordedSearch]) -> list[RecordedSearch]:
    """Returns the random search with each search's seed, in the order of `searches`; empty if the seeds differ."""
    by_seed = {search.seed: search for search in random}
    alike = len(random) == len(searches) and by_seed.keys() == {search.seed for search in searches}
    return [by_seed[search.seed] for search in searches] if alike else []


def count_draws(search: RecordedSearch, random: RecordedSearch) -> int:
    """Returns how many random networks fit into this search's budget of trials or time."""
    if not is_budget_time([search], [random]):
        return len(search.scores)
    each = random.seconds / max(1, len(random.trials))
    return max(1, int(search.seconds / max(each, 1e-9)))


def compare(searches: Sequence[RecordedSearch], random: Sequence[RecordedSearch]) -> dict[str, Any] | None:
    """Compares the searches' best with random search at the same budget; None without a baseline."""
    searches = [search for search in searches if search.scores]
    random = [search for search in random if search.scores]
    if not searches or not random:
        return None
    sign = searches[0].sign
    paired = match_seeds(searches, random)
    others = list(zip(searches, paired, strict=True)) if paired else [(searches[0], other) for other in random]
    wanted = [count_draws(search, other) for search, other in others]
    given = [min(draws, len(other.scores)) for draws, (_, other) in zip(wanted, others, strict=True)]
    expected = [expected_best(other.scores, draws, sign).mean for draws, (_, other) in zip(given, others, strict=True)]
    best = [search.best.score for search in searches if search.best is not None and search.best.score is not None]
    difference, error = measure_gain(best, expected, bool(paired), sign)
    mean, std = mean_and_std(expected)
    return {
        "budget": "seconds" if is_budget_time(searches, random) else "trials",
        "draws": given,
        "draws_in_budget": wanted,
        "random": {"mean": mean, "std": std, "values": expected},
        "random_cell": float(np.mean([score for search in random for score in search.scores])),
        "largest": compare_largest([other for _, other in others], wanted, sign),
        "later_half": [float(np.mean(search.scores[len(search.scores) // 2 :])) for search in searches],
        "gain": difference,
        "standard_error": error,
        "paired": bool(paired),
    }


def count_short(compared: Mapping[str, Any]) -> int:
    """Returns how many baselines have fewer networks than the budget allows."""
    return sum(given < wanted for given, wanted in zip(compared["draws"], compared["draws_in_budget"], strict=True))


def compare_largest(random: Sequence[RecordedSearch], wanted: Sequence[int], sign: int) -> dict[str, Any] | None:
    """Returns the expected best of random draws among the largest networks, by MACs, which are known without training.

    The largest networks are the quarter of each random search with the most MACs; draws are as many as the budget
    allows, or all of them. None if a network's MACs are unknown or there are too few networks.

    Args:
        random: the baselines.
        wanted: number of networks in the budget, for each baseline.
        sign: 1 if more is better, -1 if less is.
    """
    trials = [search.scored for search in random]
    if any(len(each) < LEAST_NETWORKS or any("macs" not in trial.metrics for trial in each) for each in trials):
        return None
    counts = [math.ceil(LARGEST * len(each)) for each in trials]
    scores = [
        [trial.score or 0.0 for trial in sorted(each, key=lambda trial: -trial.metrics["macs"])[:count]]
        for each, count in zip(trials, counts, strict=True)
    ]
    draws = [min(each, count) for each, count in zip(wanted, counts, strict=True)]
    expected = [expected_best(each, count, sign).mean for each, count in zip(scores, draws, strict=True)]
    mean, std = mean_and_std(expected)
    return {
        "networks": counts,
        "of": [len(each) for each in trials],
        "draws": draws,
        "mean": mean,
        "std": std,
        "values": expected,
        "network": float(np.mean([score for each in scores for score in each])),
    }


def measure_hypervolume(points: np.ndarray, reference: Sequence[float] | np.ndarray) -> float:
    """Returns the exact volume between the reference and the front of the points, one per row; more is better.

    Slices it along the last objective, from the best point down: two and three objectives take milliseconds.
    """
    points = np.asarray(points, np.float64)
    points = keep_front(points[(points > np.asarray(reference)).all(1)])
    if not len(points):
        return 0.0
    if points.shape[1] == 1:
        return float(points.max() - reference[0])
    points = points[np.argsort(-points[:, -1], kind="stable")]
    heights = points[:, -1] - np.r_[points[1:, -1], reference[-1]]
    return float(
        sum(
            height * measure_hypervolume(points[: count + 1, :-1], reference[:-1])
            for count, height in enumerate(heights)
            if height
        )
    )


def keep_front(points: np.ndarray) -> np.ndarray:
    """Returns the points, one per row, that no other dominates; more is better."""
    return points[find_front(points)]


def frame_front(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the reference of a hypervolume and the sides of the box between it and the points' best values.

    The reference is worse than the front's worst values by a tenth of the front's range. In a dimension where the front
    has no range, that of all points counts, and 1 if they have none either.
    """
    front = keep_front(points)
    best, worst = front.max(0), front.min(0)
    worst = np.where(worst < best, worst, points.min(0))
    reference = worst - 0.1 * np.where(worst < best, best - worst, 1.0)
    return reference, best - reference


def find_front(points: np.ndarray) -> list[bool]:
    """Returns for each point, one per row, whether no other dominates it; more is better."""
    return [not ((points >= point).all(1) & (points > point).any(1)).any() for point in points]


def compare_fronts(
    searches: Sequence[RecordedSearch], random: Sequence[RecordedSearch], objectives: Mapping[str, str]
) -> dict[str, Any] | None:
    """Returns the hypervolumes of the searches' fronts and of equally many random networks; None without networks.

    A hypervolume is a share of the box from `frame_front` around all networks of the comparison.

    Args:
        searches, random: as for `compare`.
        objectives: two or three metrics -> "max" or "min".
    """
    signs = np.array([1.0 if direction == "max" else -1.0 for direction in objectives.values()])
    paired = match_seeds(searches, random)
    own, others = (
        [signs * search.read_points(tuple(objectives)) for search in group] for group in (searches, paired or random)
    )
    everyone = np.concatenate([*own, *others])
    if not len(everyone) or not all(map(len, own)):
        return None
    reference, box = frame_front(everyone)

    def measure(points: np.ndarray) -> float:
        return measure_hypervolume((points - reference) / box, np.zeros(len(signs)))

    draws = [min(len(points), len(own[place if paired else 0])) for place, points in enumerate(others)]
    found, by_chance = list(map(measure, own)), [measure(p[:n]) for p, n in zip(others, draws, strict=True)]
    gain, error = measure_gain(found, by_chance, bool(paired)) if others else (None, None)
    return {
        "objectives": dict(objectives),
        "reference": dict(zip(objectives, (signs * reference).tolist(), strict=True)),
        "search": found,
        "random": by_chance,
        "draws": draws,
        "gain": gain,
        "standard_error": error,
    }


def compare_anytime(searches: Sequence[RecordedSearch], random: Sequence[RecordedSearch]) -> dict[str, Any]:
    """Returns the best score so far of each search, and the expected best of random search at that budget.

    `x` counts trials, or seconds if the budget is time; scores are None before the first trial that succeeded.
    """
    timed, sign = is_budget_time(searches, random), searches[0].sign
    random = [search for search in random if search.scores]
    most = max((search.seconds if timed else len(search.trials)) for search in searches)
    if timed:
        x = np.linspace(0, most, _MOST_POINTS + 1)[1:]
    else:
        x = np.unique(np.linspace(1, max(1, most), min(_MOST_POINTS, max(1, int(most)))).round().astype(int))
    each = [_best_so_far(search, x, timed) for search in searches]
    found: dict[str, Any] = {"unit": "seconds" if timed else "trials", "x": x.tolist(), "each": each}
    if random:
        rates = [len(other.trials) / max(other.seconds, 1e-9) if timed else 1 for other in random]
        curve = []  # mean and deviation at each x, None if a random search has fewer networks
        for at in x:
            expected = [
                _expect_best(other.scores, int(at * rate), sign) for other, rate in zip(random, rates, strict=True)
            ]
            curve.append((None, None) if None in expected else np.mean(np.array(expected), axis=0).tolist())
        found["random_mean"], found["random_std"] = map(list, zip(*curve, strict=True))
    return found


def _best_so_far(search: RecordedSearch, x: Sequence[float] | np.ndarray, timed: bool) -> list[float | None]:
    at = (
        search.seconds_before + np.cumsum([trial.seconds for trial in search.trials])
        if timed
        else np.arange(1, len(search.trials) + 1)
    )
    scored = {trial.number for trial in search.scored}
    scores = [search.sign * (trial.score or 0.0) if trial.number in scored else -np.inf for trial in search.trials]
    best = np.maximum.accumulate(scores) if scores else np.zeros(0)
    places = np.searchsorted(at, np.asarray(x) + 1e-9, side="right") - 1
    last = at[-1] if len(at) else 0
    return [
        search.sign * float(best[place]) if place >= 0 and np.isfinite(best[place]) and here <= last + 1e-9 else None
        for place, here in zip(places, x, strict=True)
    ]


def _expect_best(scores: Sequence[float], draws: int, sign: int) -> tuple[float, float] | None:
    """Returns the expected best of `draws` draws and its deviation between random searches.

    The deviation is that of draws with replacement. Without, the best of all scores would be certain, which says
    nothing about another search. The i-th smallest of m is the largest of k with probability (i/m)^k - ((i-1)/m)^k.
    """
    if not 1 <= draws <= len(scores):
        return None
    worth = np.sort(sign * np.asarray(scores, np.float64))
    shares = np.diff((np.arange(len(worth) + 1) / len(worth)) ** draws)
    mean = float(shares @ worth)
    deviation = math.sqrt(max(0.0, float(shares @ (worth - mean) ** 2)))
    return expected_best(scores, draws, sign).mean, deviation


def kendall_tau(a: Sequence[float], b: Sequence[float]) -> float:
    """Returns tau-b of two lists of scores: 1 if they order all pairs alike, -1 if oppositely, about 0 by chance.

    A pair that ties in one list counts for neither order, and the denominator leaves it out (Kendall 1945). If all
    scores of a list tie, there is no order to compare and the result is NaN.

    Raises:
        ValueError: the lists differ in length, have fewer than two scores, or contain NaN.
    """
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if first.ndim != 1 or first.shape != second.shape or len(first) < 2:
        raise ValueError(f"scores of shapes {first.shape} and {second.shape}; expected two lists of one length from 2")
    if np.isnan(first).any() or np.isnan(second).any():
        raise ValueError("a score is NaN, which has no rank; leave its network out of both lists")
    above = np.triu_indices(len(first), 1)
    # Compared, not subtracted: the difference of two infinities is NaN.
    orders = [
        (scores[above[0]] > scores[above[1]]).astype(int) - (scores[above[0]] < scores[above[1]])
        for scores in (first, second)
    ]
    ordered = np.prod([np.count_nonzero(order) for order in orders], dtype=np.float64)
    return float((orders[0] * orders[1]).sum() / np.sqrt(ordered)) if ordered else float("nan")


def compare_rankings(shared: Sequence[float], alone: Sequence[float]) -> dict[str, Any]:
    """Returns accuracies with shared weights and stand-alone, and their tau, as JSON values.

    `tau` is None if all values of one list are equal.
    """
    tau = kendall_tau(shared, alone)
    return {"shared": list(shared), "alone": list(alone), "tau": None if np.isnan(tau) else round(tau, 6)}
