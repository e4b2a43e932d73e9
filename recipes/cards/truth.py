"""What a search has found beside the truth: its rank among all networks of a table that were really trained.

Where a table has every network of a space, a find has a percentile and a regret, and the time of a search can be said
in trainings of random search, exactly.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from recipes.cards.compare import chance_to_be_best, judge, mean_and_std

BEST_DECILE = 90.0  # percentile that the finds of a search have on average
LEAST_TAU = 0.4  # of shared weights that rank
LARGEST = 0.1  # share of the networks that count as the largest
RANKED_NETWORKS = 120  # that a tau is of, where the table has so many


@dataclasses.dataclass(frozen=True)
class Truth:
    """The networks of a table.

    Attributes:
        keys: of each, what equal architectures share.
        seen: (networks, seeds), what a search may see of each: the validation accuracy of each training, in percent.
        trained: (networks, seeds), the accuracy of each training in percent, on all images that it did not learn from.
        seconds: of one training, on average.
        macs: (networks,), multiply-accumulates of an image; None where they are not known.
    """

    keys: Sequence[str]
    seen: np.ndarray
    trained: np.ndarray
    seconds: float
    macs: np.ndarray | None = None

    @classmethod
    def of(cls, networks: Sequence[Any], seconds: float, images: tuple[int, int] = (1, 1)) -> "Truth":
        """Returns the truth of the rows of a table (recipes.tables.Network).

        Args:
            networks: the rows.
            seconds: of one training.
            images: how many images the accuracies of validation and test are of.
        """
        seen, tested = (np.array([getattr(row, part) for row in networks]) for part in ("validation", "test"))
        macs = [row.metrics.get("macs") for row in networks]
        known = None if None in macs else np.array(macs, np.float64)
        trained = (images[0] * seen + images[1] * tested) / sum(images)
        return cls([row.key for row in networks], seen, trained, seconds, known)

    @functools.cached_property
    def worth(self) -> np.ndarray:
        """What each network is worth, the mean over its trainings: (networks,)."""
        return self.trained.mean(axis=1)

    @functools.cached_property
    def ceiling(self) -> float | None:
        """Kendall's tau that a perfect ranking would have with the worth, which the luck of its trainings blurs.

        By the correlation of the trainings, the formula of Spearman and Brown, and normal distributions; None where
        each network was trained once.
        """
        if self.trained.shape[1] < 2:
            return None
        return 2 / math.pi * math.asin(math.sqrt(measure_reliability(self.trained)))

    def judge(self, key: str, seconds: float) -> dict[str, Any]:
        """Returns what a find is worth beside the others, as JSON holds it; its worth is None where the table lacks it.

        Args:
            key: of the find.
            seconds: that its search took, with the training of what it found.
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
        """Returns which share of the networks is worse, in percent; as good ones count half."""
        return 100 * float(np.mean(self.worth < worth) + np.mean(self.worth == worth) / 2)

    def expect_random(self) -> np.ndarray:
        """Returns what random search without repetition is expected to find after 1, 2, .. trainings: (networks,).

        It sees one training of each network and takes the best on validation; what that is worth say the other
        trainings, for the seen one is the luckiest.
        """
        return self._expect(np.full(len(self.seen), True))

    def expect_largest(self) -> np.ndarray:
        """Returns the same of random draws among the tenth of the networks that have the most MACs; empty without MACs.

        It takes no search to know them. Networks of as many MACs as the last of the tenth belong to it.
        """
        if self.macs is None:
            return np.zeros(0)
        return self._expect(find_largest(self.macs))

    def _expect(self, among: np.ndarray) -> np.ndarray:
        """Returns the expectation of random search among these networks: (networks,), true or false."""
        found = []
        for seed, seen in enumerate(self.seen.T):
            others = np.delete(self.trained, seed, axis=1) if self.trained.shape[1] > 1 else self.trained
            found.append(expect_picks(seen[among], others.mean(axis=1)[among]))
        return np.mean(found, axis=0)


def measure_reliability(accuracies: np.ndarray) -> float:
    """Returns the share of the variance of the networks' means, 0 to 1, that is no luck of their trainings.

    The root of it is the correlation with these means that a ranking without any noise would have.

    Args:
        accuracies: (networks, seeds), two seeds or more.
    """
    count = accuracies.shape[1]
    alike = float(np.corrcoef(accuracies.T)[np.triu_indices(count, 1)].mean())
    return max(0.0, count * alike / (1 + (count - 1) * alike))


def find_largest(macs: np.ndarray) -> np.ndarray:
    """Returns which networks are the tenth with the most MACs: (networks,), true or false."""
    return macs >= np.sort(macs)[::-1][math.ceil(LARGEST * len(macs)) - 1]


def expect_picks(seen: Sequence[float] | np.ndarray, worth: Sequence[float] | np.ndarray) -> np.ndarray:
    """Returns the exact expected worth of the network with the largest `seen` of k, for k from 1 to all of them."""
    worth = np.asarray(worth, np.float64)[np.argsort(-np.asarray(seen), kind="stable")]
    count = len(worth)
    return np.array([chance_to_be_best(count, draws) @ worth[: count - draws + 1] for draws in range(1, count + 1)])


def count_draws(expected: Sequence[float], worth: float) -> float:
    """Returns after how many trainings random search is expected to find this much, infinite where it never does.

    Args:
        expected: what it finds after 1, 2, .. trainings; between two numbers the line is taken as straight.
        worth: of what another search has found.
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
    """Returns what random search is expected to find in so many trainings, of which it always takes one."""
    return float(np.interp(draws, np.arange(1, len(expected) + 1), expected))


def judge_together(finds: Sequence[Mapping[str, Any]], taus: Sequence[float]) -> dict[str, Any]:
    """Returns the means of several searches beside random search in the same time, and a word, as JSON holds it.

    Args:
        finds: what `Truth.judge` says of each, by one table.
        taus: Kendall's tau of each search's shared weights, where they have some.
    """
    found: dict[str, Any] = {"searches": len(finds)}
    for name in ("worth", "percentile", "regret", "seconds"):
        found[name], found[f"{name}_std"] = mean_and_std([find[name] for find in finds])
    found["tau"], found["tau_std"] = mean_and_std(taus) if taus else (None, None)
    found["ceiling"] = finds[0]["ceiling"]
    random, training = finds[0]["random"], float(np.mean([find["training_seconds"] for find in finds]))
    draws = count_draws(random, found["worth"])
    found["random_trainings"] = draws if math.isfinite(draws) else None  # None: it never finds as much
    found["random_seconds"] = draws * training if math.isfinite(draws) else None
    gain = found["worth"] - expect_in(random, found["seconds"] / training)
    largest = finds[0].get("largest")
    found["largest"] = expect_in(largest, found["seconds"] / training) if largest else None
    error = None if found["worth_std"] is None else found["worth_std"] / math.sqrt(len(finds))
    found |= {"gain": gain, "standard_error": error}
    found["word"] = judge(len(finds), len(finds), gain, error, as_in_paper=False)
    found["reached"] = {
        "best decile": found["percentile"] >= BEST_DECILE,
        f"tau of {LEAST_TAU}": not taus or found["tau"] >= LEAST_TAU,
        "less time than random search": found["random_seconds"] is None or found["random_seconds"] > found["seconds"],
    }
    return found
