"""Rates the result of a search against the truth: a table whose networks were all really trained.

If a table has every network of a space, a result has an exact percentile and regret, and the time of a search equals
an exact number of trainings by random search.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from recipes.cards.compare import chance_to_be_best, choose_status, mean_and_std

BEST_DECILE = 90.0  # goal for the mean percentile of the results
LEAST_TAU = 0.4  # goal for shared weights that rank networks
LARGEST = 0.1  # share of the networks that count as the largest
RANKED_NETWORKS = 120  # to compute a tau from, or all of a smaller table


@dataclasses.dataclass(frozen=True)
class Truth:
    """The networks of a table.

    Attributes:
        keys: the identity shared by equal architectures, one for each network.
        seen: (networks, seeds), validation accuracy of each training in percent, which a search may see.
        trained: (networks, seeds), accuracy of each training in percent, on all images that it did not learn from.
        seconds: of one training, on average.
        macs: (networks,), multiply-accumulates per image; None if they are unknown.
    """

    keys: Sequence[str]
    seen: np.ndarray
    trained: np.ndarray
    seconds: float
    macs: np.ndarray | None = None

    @classmethod
    def of(cls, networks: Sequence[Any], seconds: float, images: tuple[int, int] = (1, 1)) -> "Truth":
        """Returns the truth from the rows of a table (recipes.tables.TableRow).

        Args:
            networks: the rows.
            seconds: of one training.
            images: number of validation and of test images, which weight the two accuracies.
        """
        seen, tested = (np.array([getattr(row, part) for row in networks]) for part in ("validation", "test"))
        macs = [row.metrics.get("macs") for row in networks]
        known = None if None in macs else np.array(macs, np.float64)
        trained = (images[0] * seen + images[1] * tested) / sum(images)
        return cls([row.key for row in networks], seen, trained, seconds, known)

    @functools.cached_property
    def worth(self) -> np.ndarray:
        """The mean accuracy of each network over its trainings: (networks,)."""
        return self.trained.mean(axis=1)

    @functools.cached_property
    def ceiling(self) -> float | None:
        """Kendall's tau of a perfect ranking with the worth, which the luck of the trainings blurs.

        Follows from the correlation of the trainings by the Spearman-Brown formula, for normal distributions; None if
        each network was trained once.
        """
        if self.trained.shape[1] < 2:
            return None
        return 2 / math.pi * math.asin(math.sqrt(measure_reliability(self.trained)))

    def rate(self, key: str, seconds: float) -> dict[str, Any]:
        """Returns the rating of a search's result as JSON values; its worth is None if the table lacks the network.

        Args:
            key: of the result.
            seconds: that the search took, including the training of its result.
        """
        if key not in self.keys:
            return {"worth": None}
        worth = float(self.worth[self.keys.index(key)])
        return {
            "worth": worth,
            "percentile": self.percentile(worth),
            "regret": float(self.worth.max()) - worth,
            "seconds": seconds,
            "training_seconds": self.seconds,
            "ceiling": self.ceiling,
            "random": self.expect_random().tolist(),
            "largest": self.expect_largest().tolist(),
        }

    def percentile(self, worth: float) -> float:
        """Returns the share of networks that are worse, in percent; equally good ones count half."""
        return 100 * float(np.mean(self.worth < worth) + np.mean(self.worth == worth) / 2)

    def expect_random(self) -> np.ndarray:
        """Returns the expected worth of random search after 1, 2, .. trainings, without repetition: (networks,).

        It sees one training of each network and selects the best on validation. The worth is measured on the other
        trainings, because the seen one was selected for its luck.
        """
        return self._expect(np.full(len(self.seen), True))

    def expect_largest(self) -> np.ndarray:
        """Returns the same for random draws among the tenth of the networks with the most MACs; empty without MACs.

        MACs are known without a search. Networks that tie with the last of the tenth belong to it.
        """
        if self.macs is None:
            return np.zeros(0)
        return self._expect(find_largest(self.macs))

    def _expect(self, among: np.ndarray) -> np.ndarray:
        """Returns the expectation of random search among the networks for which `among` (networks,) is true."""
        found = []
        for seed, seen in enumerate(self.seen.T):
            others = np.delete(self.trained, seed, axis=1) if self.trained.shape[1] > 1 else self.trained
            found.append(expect_picks(seen[among], others.mean(axis=1)[among]))
        return np.mean(found, axis=0)


def measure_reliability(accuracies: np.ndarray) -> float:
    """Returns the share of the variance of the networks' means, 0 to 1, that is not due to luck in training.

    Its square root is the correlation of a noise-free ranking with these means.

    Args:
        accuracies: (networks, seeds), two or more seeds.
    """
    count = accuracies.shape[1]
    alike = float(np.corrcoef(accuracies.T)[np.triu_indices(count, 1)].mean())
    return max(0.0, count * alike / (1 + (count - 1) * alike))


def find_largest(macs: np.ndarray) -> np.ndarray:
    """Returns which networks are among the tenth with the most MACs: (networks,), true or false."""
    return macs >= np.sort(macs)[::-1][math.ceil(LARGEST * len(macs)) - 1]


def expect_picks(seen: Sequence[float] | np.ndarray, worth: Sequence[float] | np.ndarray) -> np.ndarray:
    """Returns the exact expected worth of the network with the largest `seen` of k draws, for k from 1 to all."""
    worth = np.asarray(worth, np.float64)[np.argsort(-np.asarray(seen), kind="stable")]
    count = len(worth)
    return np.array([chance_to_be_best(count, draws) @ worth[: count - draws + 1] for draws in range(1, count + 1)])


def count_trainings(expected: Sequence[float], worth: float) -> float:
    """Returns after how many trainings random search is expected to reach this worth; infinite if it never does.

    Args:
        expected: its expected worth after 1, 2, .. trainings, which is interpolated linearly.
        worth: of another search's result.
    """
    best = np.maximum.accumulate(expected)
    place = int(np.searchsorted(best, worth))
    if place == len(best):
        return math.inf
    if place == 0:
        return 1.0
    before, after = best[place - 1 : place + 1]
    return place + float((worth - before) / (after - before))


def expect_in(expected: Sequence[float], draws: float) -> float:
    """Returns the expected worth of random search after `draws` trainings, at least one."""
    return float(np.interp(draws, np.arange(1, len(expected) + 1), expected))


def summarize_ratings(ratings: Sequence[Mapping[str, Any]], taus: Sequence[float]) -> dict[str, Any]:
    """Compares the mean of several searches with random search in the same time, with a status word; JSON values.

    Args:
        ratings: results of `Truth.rate` by one table, one for each search.
        taus: Kendall's tau of each search's shared weights, if there are any.
    """
    found: dict[str, Any] = {"searches": len(ratings)}
    for name in ("worth", "percentile", "regret", "seconds"):
        found[name], found[f"{name}_std"] = mean_and_std([rating[name] for rating in ratings])
    found["tau"], found["tau_std"] = mean_and_std(taus) if taus else (None, None)
    found["ceiling"] = ratings[0]["ceiling"]
    random, training = ratings[0]["random"], float(np.mean([rating["training_seconds"] for rating in ratings]))
    draws = count_trainings(random, found["worth"])
    found["random_trainings"] = draws if math.isfinite(draws) else None  # None: it never gets as far
    found["random_seconds"] = draws * training if math.isfinite(draws) else None
    gain = found["worth"] - expect_in(random, found["seconds"] / training)
    largest = ratings[0].get("largest")
    found["largest"] = expect_in(largest, found["seconds"] / training) if largest else None
    error = None if found["worth_std"] is None else found["worth_std"] / math.sqrt(len(ratings))
    found |= {"gain": gain, "standard_error": error}
    found["word"] = choose_status(len(ratings), len(ratings), gain, error, as_in_paper=False)
    found["reached"] = {
        "best decile": found["percentile"] >= BEST_DECILE,
        f"tau of {LEAST_TAU}": not taus or found["tau"] >= LEAST_TAU,
        "less time than random search": found["random_seconds"] is None or found["random_seconds"] > found["seconds"],
    }
    return found
