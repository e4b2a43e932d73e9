"""What a search is worth beside random search: exact expectations of the best of k draws, and a word for the result."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

REPRODUCED, AT_REDUCED_SCALE, PROCEDURE_ONLY = "reproduced", "reproduced at reduced scale", "procedure only"
LEAST_SEARCHES = 3  # with seeds of their own, for a result to be called reproduced
ENOUGH_ERRORS = 2.0  # standard errors by which a search must beat random search


@dataclasses.dataclass(frozen=True)
class Best:
    """Mean and standard deviation of the best of k draws, for one search that draws at random."""

    mean: float
    std: float


def expected_best(scores: Sequence[float], draws: int, sign: int = 1) -> Best:
    """Returns the exact mean and deviation of the best of `draws` of these scores, drawn without replacement.

    The i-th smallest of m is the largest of k with probability C(i-1, k-1) / C(m, k).

    Args:
        scores: of networks that were drawn at random.
        draws: 1 to as many as there are scores.
        sign: 1 where the largest is the best, -1 where the smallest is.
    """
    if not 1 <= draws <= len(scores):
        raise ValueError(f"the best of {draws} draws from {len(scores)} scores; expected 1 to {len(scores)} draws")
    worth = np.sort(sign * np.asarray(scores, np.float64))[::-1]
    count = len(worth)
    above = np.arange(count - draws)  # how many are better than the place before
    shares = np.cumprod(np.r_[draws / count, (count - above - draws) / (count - above - 1)])
    kept = worth[: len(shares)]
    mean = float(shares @ kept)
    return Best(sign * mean, math.sqrt(max(0.0, float(shares @ (kept - mean) ** 2))))


def mean_and_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Returns the mean and the sample standard deviation, which a single value does not have."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def gain(best: Sequence[float], random: Sequence[float], paired: bool, sign: int = 1) -> tuple[float, float | None]:
    """Returns by how much searches are better than random search on average, and the standard error of this.

    Args:
        best: the best score of each search.
        random: what random search is expected to reach at the same budget, for each of its own searches.
        paired: whether both lists have the same seeds in the same order, and so the same images.
        sign: 1 where more is better, -1 where less is.
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


def status(searches: int, finished: int, difference: float | None, error: float | None, as_in_paper: bool) -> str:
    """Returns the word for a result.

    Reproduced is what at least three finished searches show by beating random search at the same budget by more than
    two standard errors; at reduced scale where the settings are not the paper's.
    """
    shown = difference is not None and error is not None and difference > ENOUGH_ERRORS * error
    if min(searches, finished) < LEAST_SEARCHES or finished < searches or not shown:
        return PROCEDURE_ONLY
    return REPRODUCED if as_in_paper else AT_REDUCED_SCALE
