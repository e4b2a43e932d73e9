"""The predictors of PNASNet (Liu et al., ECCV 2018, section 3.3): ensembles that learn scores from architectures.

What all have in common; the networks are in `recipes.oracles.predictors`.
"""

import dataclasses
import statistics
from typing import Any, Literal

import numpy as np

from recipes.oracles.layout import Grid, Layout
from recipes.oracles.networks import Adam, Parameters, sigmoid

_CHUNK = 16_384  # candidates that are scored at once


@dataclasses.dataclass(frozen=True)
class Fitting:
    """How predictors are made and trained; the numbers are the paper's where it has some.

    Attributes:
        network: "mlp" or "lstm".
        members: of the ensemble.
        share: of the data that each member is trained on.
        embedding, hidden: units.
        first_rate, rate: Adam's, of the first fit and of those after.
        steps: of a fit; not in the paper.
        batch: architectures a step; not in the paper.
        anew: every fit starts from new weights, with the first rate; the paper goes on from those that it has.
        target: "accuracy": the score itself, through a sigmoid, as the paper has it; "ranks": the normal quantile of
            its rank, which any objective has, and which tells the best apart where the worst are far away.
    """

    network: Literal["mlp", "lstm"] = "mlp"
    members: int = 5
    share: float = 0.8
    embedding: int = 100
    hidden: int = 100
    first_rate: float = 0.01
    rate: float = 0.002
    steps: int = 200
    batch: int = 256
    anew: bool = False
    target: Literal["accuracy", "ranks"] = "ranks"

    def __post_init__(self):
        if self.network not in ("mlp", "lstm") or self.target not in ("accuracy", "ranks"):
            raise ValueError(
                f"network is {self.network!r} and target {self.target!r}; expected mlp or lstm, accuracy or ranks"
            )
        for name in ("members", "embedding", "hidden", "steps", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a whole number from 1")
        if not 0 < self.share <= 1 or self.first_rate <= 0 or self.rate <= 0:
            raise ValueError(
                f"share is {self.share}, first_rate {self.first_rate} and rate {self.rate}; expected a share "
                "above 0 and up to 1, and rates above 0"
            )


class Surrogate:
    """An ensemble that predicts the score of an architecture; what differs is in its subclasses."""

    parameters: Parameters

    def __init__(self, layout: Layout, settings: Fitting):
        self.layout, self.settings, self.fits = layout, settings, 0

    def fit(self, genomes: np.ndarray, depths: np.ndarray, scores: np.ndarray, rng: np.random.Generator) -> None:
        """Trains each member on its own share of the data by the absolute error.

        Args:
            genomes: (n, decisions).
            depths: (n,) levels of each.
            scores: (n,), larger is better.
            rng: for the shares, the weights and the batches.

        Raises:
            ValueError: a score that no sigmoid can give.
        """
        settings, count = self.settings, len(genomes)
        targets = self._targets(scores)
        fresh = self.fits == 0 or settings.anew
        if fresh:
            self.start(rng, float(np.median(targets)))
        inputs = self.inputs(genomes, depths)
        size = max(1, round(settings.share * count))
        rows = np.stack([rng.permutation(count)[:size] for _ in range(settings.members)])
        vector = self.parameters.vector
        optimizer = Adam(vector.size, settings.first_rate if fresh else settings.rate)
        for _ in range(settings.steps):
            if size > settings.batch:
                drawn = rng.integers(size, size=(settings.members, settings.batch))
                batch = np.take_along_axis(rows, drawn, axis=1)
            else:
                batch = rows
            optimizer.step(vector, self.gradients(inputs, targets, batch))
        self.fits += 1

    def _targets(self, scores: np.ndarray) -> np.ndarray:
        if self.settings.target == "ranks":
            return quantiles(scores)
        if scores.min() < 0 or scores.max() > 1:
            raise ValueError(
                f"scores from {scores.min():.4g} to {scores.max():.4g} with target='accuracy'; "
                "expected 0 to 1. Use target='ranks' for other objectives"
            )
        return scores.astype(np.float32)

    def first_bias(self, target: float) -> float:
        """Returns what makes the first prediction `target`; the paper's 1.8 is that of an accuracy of 0.86."""
        if self.settings.target == "ranks":
            return target
        target = min(max(target, 0.01), 0.99)
        return float(np.log(target / (1 - target)))

    def _head(self, raw: np.ndarray) -> np.ndarray:
        return sigmoid(raw) if self.settings.target == "accuracy" else raw

    def error(self, raw: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Returns the gradient of the mean absolute error by what goes into the head; the batch is the last axis."""
        shown = self._head(raw)
        gradient = np.sign(shown - targets) / raw.shape[-1]
        return (gradient * shown * (1 - shown) if self.settings.target == "accuracy" else gradient).astype(np.float32)

    def start(self, rng: np.random.Generator, target: float) -> None:
        """Draws new weights; `target` is what the predictions begin at."""
        raise NotImplementedError

    def inputs(self, genomes: np.ndarray, depths: np.ndarray) -> Any:
        """Returns what the network reads."""
        raise NotImplementedError

    def gradients(self, inputs: Any, targets: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Returns the gradient of the error by all weights, valid until the next call; `rows` is (members, batch)."""
        raise NotImplementedError

    def predict(self, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
        """Returns the ensemble's mean for each candidate, and its standard deviation: (len(grid),) each."""
        step = max(1, _CHUNK // grid.combinations)
        means, deviations = [], []
        for first in range(0, len(grid.parents), step):
            members = self._head(self.raw(dataclasses.replace(grid, parents=grid.parents[first : first + step])))
            means.append(members.mean(axis=0))
            deviations.append(members.std(axis=0))
        return np.concatenate(means), np.concatenate(deviations)

    def raw(self, grid: Grid) -> np.ndarray:
        """Returns (members, len(grid)) predictions before the head."""
        raise NotImplementedError


def quantiles(scores: np.ndarray) -> np.ndarray:
    """Returns the standard normal quantiles of the ranks; equal scores get the same, that of their mean rank."""
    _, ranks, counts = np.unique(scores, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - counts / 2
    normal = statistics.NormalDist()
    return np.array([normal.inv_cdf(rank / len(scores)) for rank in middle], np.float32)[ranks]
