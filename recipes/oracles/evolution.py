"""Evolution: AmoebaNet's with ageing, once-for-all's with generations, and NSGA-II for several objectives."""

import dataclasses
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import keras_tuner
import numpy as np

from recipes.oracles.base import SearchOracle
from recipes.oracles.choices import Genome
from recipes.training import check_at_least, check_options

_MOST_FAMILIAR_DRAWS = 100  # known or refused proposals in a row, after which mutations become stronger


@dataclasses.dataclass(eq=False, repr=False, kw_only=True)
class AgingEvolution(SearchOracle):
    """Tournament selection and mutation in a population whose oldest member is removed.

    Source: Real et al., "Regularized Evolution for Image Classifier Architecture Search", AAAI 2019, Algorithm 1.

    The first `population` trials are random. Then the best of `sample` members, drawn with replacement, gets a mutated
    child. A child that equals a known architecture, as after the identity mutation, enters the population with the
    known score and without a trial; the paper trains it again.

    Args:
        objective, max_trials, hyperparameters, seed, key, check, max_redraws: see SearchOracle.
        population: members alive at once (paper: 100).
        sample: members drawn for each tournament (paper: 25).
        identity: probability that a child is its parent unchanged (paper: 0.05).
        kinds: kind of mutation -> names of the choices that it changes. A kind is drawn first, then one of its choices,
            then another value for the choice, all uniformly. By default all choices are one kind. The paper's kinds are
            hidden-state and op mutation.
        ageing: False removes the worst member instead of the oldest (the paper's non-aging variant).
    """

    population: int = 100
    sample: int = 25
    identity: float = 0.05
    kinds: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    ageing: bool = True

    def __post_init__(self):
        super().__post_init__()
        check_at_least(self, {"population": 1, "sample": 1})
        check_options(self, "identity", "a probability from 0 to less than 1", lambda value: 0 <= value < 1)
        self.members: deque[tuple[Genome, float]] = deque()  # oldest first
        self._filled = False

    def propose(self) -> Genome:
        """Returns a random genome until the population is full, then a child of a tournament's winner."""
        if not self.members or (not self._filled and len(self.members) + self.running < self.population):
            return self.random_genome()
        drawn = self.rng.integers(len(self.members), size=self.sample)
        parent, _ = max((self.members[i] for i in drawn), key=lambda member: member[1])
        self.made_from = (parent,)
        return self.mutate(parent)

    def mutate(self, genome: Genome) -> Genome:
        """Returns `genome` with one choice changed, or unchanged with probability `identity`."""
        if self.rng.random() < self.identity:
            return genome
        genome = self.choices.pad(genome)
        positions = self._draw_kind()
        position = positions[self.rng.integers(len(positions))]
        count = self.choices.counts[position]
        other = int(self.rng.integers(count - 1))
        other += other >= genome[position]
        return (*genome[:position], other, *genome[position + 1 :])

    def _draw_kind(self) -> list[int]:
        """Draws a kind uniformly and returns the indices of its choices with more than one value."""
        names = self.choices.names
        wanted = [set(members) for members in self.kinds.values()] or [set(names)]
        if unknown := set().union(*wanted) - set(names):
            raise ValueError(f"kinds names the choices {sorted(unknown)}; the search space has {names}")
        groups = [
            [i for i, name in enumerate(names) if name in group and self.choices.counts[i] > 1] for group in wanted
        ]
        groups = [group for group in groups if group]
        if not groups:
            raise ValueError(f"none of the choices {names} has two or more values; there is nothing to mutate")
        return groups[self.rng.integers(len(groups))] if len(groups) > 1 else groups[0]

    def learn(self, genome: Genome, fitness: float | None) -> None:
        """Adds the child, unless it failed, and removes the oldest (or worst) member of a full population."""
        if fitness is None:
            return
        self.members.append((genome, fitness))
        self._filled = self._filled or len(self.members) >= self.population
        if len(self.members) > self.population:
            if self.ageing:
                self.members.popleft()
            else:
                worst = min(range(len(self.members)), key=lambda i: self.members[i][1])
                del self.members[worst]

    def learned(self) -> dict[str, Any]:
        """Returns the population, oldest first."""
        return {"members": list(self.members), "filled": self._filled}

    def restore(self, learned: Mapping[str, Any]) -> None:
        """Takes back what `learned` returned."""
        self.members = deque((tuple(genome), fitness) for genome, fitness in learned["members"])
        self._filled = learned["filled"]


@dataclasses.dataclass(eq=False, repr=False, kw_only=True)
class GenerationalEvolution(SearchOracle):
    """A random population, then generations of equal size: children of the best `parents` networks so far.

    The first half of a generation are mutations of a parent, the second half crossovers of two parents, which take each
    choice from one or the other. A known or refused child is drawn again, so that each trial is a new network.

    Source: Cai et al., ICLR 2020, and its code (evolution_finder.py); numbers of Lin et al., arXiv:2007.10319.

    Args:
        objective, max_trials, hyperparameters, seed, key, check, max_redraws: see SearchOracle.
        population: networks per generation (paper: 100).
        parents: networks that become parents of the next generation (paper: 20).
        mutation: probability that a choice is redrawn (paper: 0.1); None redraws one choice per network on average.
    """

    population: int = 100
    parents: int = 20
    mutation: float | None = 0.1

    relearns: ClassVar[bool] = False

    def __post_init__(self):
        super().__post_init__()
        if not 1 <= self.parents <= self.population:
            raise ValueError(
                f"parents is {self.parents} and population {self.population}; expected 1 <= parents <= population"
            )
        check_options(self, "mutation", "a probability above 0, at most 1", lambda value: 0 < value <= 1)
        self.best: list[tuple[Genome, Any]] = []  # of all finished generations, best first
        self.generation: list[tuple[Genome, Any]] = []
        self._draws = 0  # since the last result

    def propose(self) -> Genome:
        """Returns a random genome, a mutation or a crossover; after too many known ones, a stronger mutation."""
        self._draws += 1
        if not self.best:
            return self.random_genome()
        if len(self.generation) < self.population // 2 or self._draws > _MOST_FAMILIAR_DRAWS:
            self.made_from = (self._draw_parent(),)
            return self.mutate(*self.made_from)
        self.made_from = (self._draw_parent(), self._draw_parent())
        return self.cross(*self.made_from)

    def mutate(self, genome: Genome) -> Genome:
        """Returns `genome` with each choice redrawn with probability `mutation`, or more after many vain draws."""
        probability = self.mutation or 1 / len(self.choices)
        probability *= max(1.0, self._draws / _MOST_FAMILIAR_DRAWS)
        genome = self.choices.pad(genome)
        drawn, other = self.rng.random(len(genome)) < probability, self.random_genome()
        return tuple(new if change else old for new, old, change in zip(other, genome, drawn, strict=True))

    def cross(self, one: Genome, other: Genome) -> Genome:
        """Returns a genome that takes each choice from one or the other."""
        one, other = self.choices.pad(one), self.choices.pad(other)
        from_one = self.rng.random(len(one)) < 0.5
        return tuple(a if first else b for a, b, first in zip(one, other, from_one, strict=True))

    def _draw_parent(self) -> Genome:
        return self.best[self.rng.integers(len(self.best))][0]

    def learn(self, genome: Genome, fitness: Any) -> None:
        """Adds a network to the generation; when that is full, selects the best of it and all before as parents."""
        self._draws = 0
        if fitness is None:
            return
        self.generation.append((genome, fitness))
        if len(self.generation) == self.population:
            everyone = [*self.best, *self.generation]
            order = self.rank([fitness for _, fitness in everyone])
            self.best, self.generation = [everyone[place] for place in order[: self.parents]], []

    def rank(self, fitnesses: Sequence[Any]) -> list[int]:
        """Returns the indices of the members, fittest first."""
        return sorted(range(len(fitnesses)), key=lambda place: -fitnesses[place])

    def learned(self) -> dict[str, Any]:
        """Returns the parents, the generation so far, and the draws since the last result."""
        return {"best": list(self.best), "generation": list(self.generation), "draws": self._draws}

    def restore(self, learned: Mapping[str, Any]) -> None:
        """Takes back what `learned` returned."""
        self.best = [(tuple(genome), fitness) for genome, fitness in learned["best"]]
        self.generation = [(tuple(genome), fitness) for genome, fitness in learned["generation"]]
        self._draws = learned.get("draws", 0)  # missing in the version before


@dataclasses.dataclass(eq=False, repr=False, kw_only=True)
class NSGA2(GenerationalEvolution):
    """Searches the Pareto front of several objectives: the networks that no other dominates.

    Children of a generation compete with their parents. Networks that no other dominates come first, then those that
    only the first dominate, and so on; within each such front, networks in less crowded regions come first.

    Source: Deb et al., "A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II", IEEE Transactions on
    Evolutionary Computation 6(2), 2002. Departures: crossover is uniform and mutation redraws choices, because the
    paper's operators are for numbers and bits; a known or refused child is drawn again; children are proposed while
    their generation is still training.

    Args:
        objective: two or more keras_tuner.Objective; the first is the score.
        max_trials, hyperparameters, seed, key, check, max_redraws: see SearchOracle.
        population: survivors of a generation, and children in it (paper: 100).
        crossover: probability that a child has two parents (paper: 0.9).
        mutation: probability that a choice is redrawn; None (paper) redraws one choice per network on average.
    """

    parents: int = dataclasses.field(init=False)
    mutation: float | None = None
    crossover: float = 0.9

    def __post_init__(self):
        several = list(self.objective) if isinstance(self.objective, (list, tuple)) else [self.objective]
        names = [getattr(each, "name", each) for each in several]
        if len(set(names)) < max(2, len(names)) or isinstance(several[0], str):
            raise ValueError(f"objective is {names}; expected two or more keras_tuner.Objective with different names")
        check_options(self, "crossover", "a probability", lambda value: 0 <= value <= 1)
        self._objectives, self.objective, self.parents = several, several[0], self.population
        super().__post_init__()

    @property
    def objectives(self) -> list[keras_tuner.Objective]:
        """The metrics that each trial has to return; the first is the score."""
        return self._objectives

    def propose(self) -> Genome:
        """Returns a random genome in the first generation, then a mutation of a parent or of a crossover of two."""
        self._draws += 1
        if not self.best:
            return self.random_genome()
        crosses = self.rng.random() < self.crossover
        self.made_from = tuple(self._draw_parent() for _ in range(1 + crosses))
        return self.mutate(self.cross(*self.made_from) if crosses else self.made_from[0])

    def _draw_parent(self) -> Genome:
        """Draws two members and returns the better: `best` is in the order of the crowded comparison."""
        return self.best[self.rng.integers(len(self.best), size=2).min()][0]

    def fitness(self, score: float, metrics: Mapping[str, float] | None = None) -> list[float]:
        """Returns a trial's result in all objectives, each with the sign that makes more better."""
        signs = [1.0 if objective.direction == "max" else -1.0 for objective in self.objectives]
        return [sign * (metrics or {})[each.name] for sign, each in zip(signs, self.objectives, strict=True)]

    def rank(self, fitnesses: Sequence[Sequence[float]]) -> list[int]:
        """Returns the indices of the members front by front, the least crowded first."""
        points = np.asarray(fitnesses, np.float64)
        order = []
        for front in sort_fronts(points):
            distances = measure_crowding(points[front])
            order += [front[place] for place in np.argsort(-distances, kind="stable")]
        return order


def sort_fronts(points: np.ndarray) -> list[list[int]]:
    """Returns the indices of the points that no other dominates, then of those that only these dominate, and so on.

    A point dominates another that is nowhere better and somewhere worse. Each row of `points` is one; more is better.
    """
    no_worse = (points[:, None] >= points[None]).all(-1)
    dominates = no_worse & ~no_worse.T
    left, fronts = np.ones(len(points), bool), []
    while left.any():
        front = left & ~(dominates & left[:, None]).any(0)
        fronts.append(np.flatnonzero(front).tolist())
        left &= ~front
    return fronts


def measure_crowding(points: np.ndarray) -> np.ndarray:
    """Returns each point's crowding distance: the gap between its neighbours as a share of the range, summed.

    The sum is over the objectives. The first and last in any objective have an infinite distance, to keep both ends.
    """
    distances = np.zeros(len(points))
    for values in points.T:
        order = np.argsort(values, kind="stable")
        ordered = values[order]
        distances[order[[0, -1]]] = np.inf
        if ordered[-1] > ordered[0]:
            distances[order[1:-1]] += (ordered[2:] - ordered[:-2]) / (ordered[-1] - ordered[0])
    return distances
