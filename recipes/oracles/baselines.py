"""Baselines that are strong when few networks can be trained: local search and Bayesian optimisation.

None of the seven papers uses them; a paper's search should find better networks than these at the same budget.
"""

import dataclasses
import math
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from recipes.oracles.base import SearchOracle, Values
from recipes.oracles.choices import Genome
from recipes.oracles.predictors import map_to_quantiles
from recipes.training import check_at_least

Features = Callable[[Values], Mapping[Hashable, int]]

_MOST_OBSERVATIONS = 500  # for the Gaussian process, whose time grows with their cube
_MOST_CANDIDATES = 500  # from which a proposal is chosen
_REFIT_GROWTH = 1.2  # kernel parameters are estimated again when the results have grown by this factor
_MOST_COUNTS = 20_000  # architectures in the cache of features
_JITTER = 1e-6  # added to the posterior's diagonal, for its Cholesky factor


@dataclasses.dataclass(eq=False, repr=False, kw_only=True)
class LocalSearch(SearchOracle):
    """Climbs from a random point to the first neighbour that scores higher; restarts when no neighbour does.

    A neighbour differs in one choice; neighbours are tried in random order. A known score costs no trial.
    With several workers, a climb moves to the first better neighbour that ends. When all neighbours have been proposed,
    the next climb starts at once; if a trial of an earlier climb then proves better, that climb resumes from it.

    Source: White et al., "Exploring the Loss Landscape in Neural Architecture Search", UAI 2021, which moves to the
    best neighbour; taking the first better one needs fewer trials.

    Args:
        objective, max_trials, hyperparameters, seed, key, check, max_redraws: see SearchOracle.
    """

    def __post_init__(self):
        super().__post_init__()
        self.centre: tuple[Genome, float] | None = None  # point and fitness of the climb; None before its first result
        self._left: list[Genome] = []  # neighbours of the centre that were not proposed yet, the next one last
        self._of_earlier_climbs: dict[Genome, float] = {}  # running trials -> the fitness that each has to beat

    def propose(self) -> Genome:
        """Returns the next neighbour, or a random point if the climb has ended."""
        if self.centre is not None and self._left:
            self.made_from = (self.centre[0],)
            return self._left.pop()
        if self.centre is not None:
            _, highest = self.centre
            self._of_earlier_climbs = {
                genome: self._of_earlier_climbs.get(genome, highest) for genome in self.running_genomes.values()
            }
            self.centre = None
        return self.random_genome()

    def learn(self, genome: Genome, fitness: float | None) -> None:
        """Moves to the point if it is better than the centre of its climb."""
        height = -math.inf if self.centre is None else self.centre[1]
        height = self._of_earlier_climbs.pop(genome, height)
        if fitness is None or fitness <= height:
            return
        self.centre = (genome, fitness)
        neighbours = self.choices.list_neighbours(genome)
        self._left = [neighbours[place] for place in self.rng.permutation(len(neighbours))]

    def learned(self) -> dict[str, Any]:
        """Returns the centre, its remaining neighbours, and the running trials of earlier climbs."""
        return {
            "centre": self.centre,
            "left": list(self._left),
            "of_earlier_climbs": list(self._of_earlier_climbs.items()),
        }

    def restore(self, learned: Mapping[str, Any]) -> None:
        """Restores what `learned` returned."""
        centre = learned["centre"]
        self.centre = None if centre is None else (tuple(centre[0]), centre[1])
        self._left = [tuple(genome) for genome in learned["left"]]
        self._of_earlier_climbs = {tuple(genome): height for genome, height in learned["of_earlier_climbs"]}


@dataclasses.dataclass(eq=False, repr=False, kw_only=True)
class BayesianSearch(SearchOracle):
    """Thompson sampling from a Gaussian process over features of architectures; needs scikit-learn.

    After `first` random trials the process is fitted to the normal quantiles of the scores' ranks, over counted
    features: constant x squared-exponential kernel and noise (scikit-learn's GaussianProcessRegressor). One function is
    drawn from it, and the candidate where it is highest is tried. Candidates are the neighbours of the `parents` best
    points, which differ in one choice, and as many random points. A draw does not need the results of running trials,
    so several workers never wait and rarely try the same idea.

    To stay fast, kernel parameters are estimated again only after a fifth more results, and at most 500 results are
    fitted: the best 250, and the latest 250 of the others.

    Sources: Kandasamy et al., AISTATS 2018 (asynchronous Thompson sampling); White et al., AAAI 2021 (paths as
    features, neighbours of the best as candidates).

    Args:
        objective, max_trials, hyperparameters, seed, key, check, max_redraws: see SearchOracle.
        features: values -> feature -> count of the architecture (`Space.count_features`); by default each choice with
            its value, once.
        first: random trials before the first fit.
        parents: best points whose neighbours are candidates.

    Raises:
        ImportError: scikit-learn is not installed.
    """

    features: Features | None = None
    first: int = 10
    parents: int = 5

    relearns: ClassVar[bool] = False

    def __post_init__(self):
        super().__post_init__()
        check_at_least(self, {"first": 1, "parents": 1})
        try:
            import sklearn.gaussian_process as gaussian_process
        except ImportError as error:
            raise ImportError(
                "Bayesian search needs scikit-learn: pip install scikit-learn, or the project with its extra bayesian",
                name="sklearn",
            ) from error
        self._gaussian_process = gaussian_process
        self._results: list[tuple[Genome, float]] = []
        self._parameters: list[float] | None = None  # of the kernel, as logarithms: constant, length scale, noise
        self._estimated_at = 0  # number of results when the parameters were estimated
        self._columns: dict[Hashable, int] = {}  # feature -> column, for the features of the fitted results
        self._seen: set[frozenset] = set()  # the feature counts of all results
        self._counts: dict[Genome, tuple] = {}  # cache of feature counts
        self._model: Any = None  # fitted to the results; None until it is needed

    def propose(self) -> Genome:
        """Returns a random point at first, then the candidate where a draw from the process is highest."""
        if len(self._results) + self.running < self.first or len(self._results) < 2:
            return self.random_genome()
        candidates = self._draw_candidates()
        return candidates[int(np.argmax(self._draw(candidates)))] if candidates else self.random_genome()

    def _draw_candidates(self) -> list[Genome]:
        best = sorted(self._results, key=lambda result: -result[1])[: self.parents]
        near = list(dict.fromkeys(genome for parent, _ in best for genome in self.choices.list_neighbours(parent)))
        count = min(len(near), _MOST_CANDIDATES // 2)
        drawn = [near[place] for place in self.rng.permutation(len(near))[:count]]
        drawn += map(tuple, self.rng.integers(self.choices.counts, size=(count, len(self.choices))).tolist())
        return [
            genome
            for genome in dict.fromkeys(drawn)
            if frozenset(self._count_features(genome)) not in self._seen and self._is_open(genome)
        ]

    def _count_features(self, genome: Genome) -> tuple[tuple[Hashable, int], ...]:
        counts = self._counts.get(genome)
        if counts is None:
            if len(self._counts) >= _MOST_COUNTS:
                self._counts.clear()
            values = self.choices.values(genome)
            found = self.features(values) if self.features else dict.fromkeys(values.items(), 1)
            counts = self._counts[genome] = tuple(found.items())
        return counts

    def _draw(self, candidates: list[Genome]) -> np.ndarray:
        """Draws from the posterior at the candidates, without the noise."""
        model = self._fit_model()
        mean, covariance = model.predict(self._encode(candidates), return_cov=True)
        noise = model.kernel_.k2.noise_level
        spread = covariance + (_JITTER - noise) * np.eye(len(candidates))
        return mean + np.linalg.cholesky(spread) @ self.rng.standard_normal(len(candidates))

    def _fit_model(self) -> Any:
        """Returns the regressor, fitted to the results if there are new ones."""
        if self._model is not None:
            return self._model
        results = self._results
        if len(results) > _MOST_OBSERVATIONS:
            half = _MOST_OBSERVATIONS // 2
            order = sorted(range(len(results)), key=lambda place: -results[place][1])
            kept = sorted([*order[:half], *sorted(order[half:])[-half:]])
            results = [results[place] for place in kept]
        genomes = [genome for genome, _ in results]
        features = dict.fromkeys(feature for genome in genomes for feature, _ in self._count_features(genome))
        self._columns = {feature: column for column, feature in enumerate(features)}
        data = self._encode(genomes)
        targets = map_to_quantiles(np.array([fitness for _, fitness in results])).astype(np.float64)
        if self._parameters is None or len(self._results) >= _REFIT_GROWTH * self._estimated_at:
            self._parameters = self._estimate(data, targets)
            self._estimated_at = len(self._results)
        kernel = self._kernel(1.0).clone_with_theta(np.array(self._parameters))
        self._model = self._regressor(kernel, optimizer=None).fit(data, targets)
        return self._model

    def _estimate(self, data: np.ndarray, targets: np.ndarray) -> list[float]:
        """Returns the logarithms of the kernel parameters that maximise the likelihood of the targets."""
        from sklearn.exceptions import ConvergenceWarning

        distance = math.sqrt(2 * data.var(axis=0).sum())  # root mean square over pairs of architectures
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a parameter at its bound is fine
            model = self._regressor(self._kernel(max(1.0, distance))).fit(data, targets)
        return model.kernel_.theta.tolist()

    def _kernel(self, length_scale: float) -> Any:
        kernels = self._gaussian_process.kernels
        smooth = kernels.RBF(length_scale, (0.1, 1000.0))
        return kernels.ConstantKernel(1.0, (0.01, 100.0)) * smooth + kernels.WhiteKernel(0.1, (1e-4, 1.0))

    def _regressor(self, kernel: Any, optimizer: str | None = "fmin_l_bfgs_b") -> Any:
        return self._gaussian_process.GaussianProcessRegressor(kernel, optimizer=optimizer)

    def _encode(self, genomes: Sequence[Genome]) -> np.ndarray:
        """Returns a row of counts per genome; features that no fitted result has share the last column, as a norm."""
        rows = np.zeros((len(genomes), len(self._columns) + 1))
        for row, genome in zip(rows, genomes, strict=True):
            for feature, count in self._count_features(genome):
                column = self._columns.get(feature)
                if column is None:
                    row[-1] += count**2
                else:
                    row[column] = count
        rows[:, -1] **= 0.5
        return rows

    def learn(self, genome: Genome, fitness: float | None) -> None:
        """Adds a result for the next fit; a failed point teaches nothing and is not tried again."""
        if fitness is None:
            return
        genome = self.choices.pad(genome)
        self._results.append((genome, fitness))
        self._model = None
        self._seen.add(frozenset(self._count_features(genome)))

    def learned(self) -> dict[str, Any]:
        """Returns all results, the kernel parameters, and the number of results they were estimated from."""
        return {
            "results": list(self._results),
            "parameters": self._parameters,
            "estimated_at": self._estimated_at,
        }

    def restore(self, learned: Mapping[str, Any]) -> None:
        """Restores what `learned` returned."""
        self._results, self._seen = [], set()
        for genome, fitness in learned["results"]:
            self.learn(tuple(genome), fitness)
        self._parameters, self._estimated_at = learned["parameters"], learned["estimated_at"]
