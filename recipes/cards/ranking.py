"""How well one ranking agrees with another: Kendall's tau-b, for scores by shared weights against stand-alone ones."""

from collections.abc import Sequence
from typing import Any

import numpy as np

LEAST_NETWORKS = 12  # of which a tau says anything


def kendall_tau(a: Sequence[float], b: Sequence[float]) -> float:
    """Returns tau-b of two lists of scores: 1 where they order all pairs alike, -1 where oppositely, about 0 by chance.

    A pair that ties in one list counts for neither order, and the denominator leaves it out (Kendall 1945). Where a
    list is all ties there is no order to compare, and the result is NaN.

    Raises:
        ValueError: lists of different lengths, of fewer than two scores, or with a NaN.
    """
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if first.ndim != 1 or first.shape != second.shape or len(first) < 2:
        raise ValueError(f"scores of shapes {first.shape} and {second.shape}; expected two lists of one length from 2")
    if np.isnan(first).any() or np.isnan(second).any():
        raise ValueError("a score is NaN, which has no rank; leave that network out of both lists")
    above = np.triu_indices(len(first), 1)
    # Compared, not subtracted: the difference of two infinities is NaN.
    orders = [
        (scores[above[0]] > scores[above[1]]).astype(int) - (scores[above[0]] < scores[above[1]])
        for scores in (first, second)
    ]
    ordered = np.prod([np.count_nonzero(order) for order in orders], dtype=np.float64)
    return float((orders[0] * orders[1]).sum() / np.sqrt(ordered)) if ordered else float("nan")


def ranking(shared: Sequence[float], alone: Sequence[float]) -> dict[str, Any]:
    """Returns the accuracies by shared weights and stand-alone with their tau, as JSON holds them.

    `tau` is None where one of the two orders nothing, all its values being the same.
    """
    tau = kendall_tau(shared, alone)
    return {"shared": list(shared), "alone": list(alone), "tau": None if np.isnan(tau) else round(tau, 6)}
