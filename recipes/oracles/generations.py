"""Evolution in generations (once-for-all, MCUNet): the best of all that was tried have mutated and crossed children."""

from collections.abc import Mapping
from typing import Any

from recipes.oracles.base import SearchOracle
from recipes.oracles.choices import Genome

_MEMBERS = ("best", "generation")
_PATIENCE = 100  # draws in a row that were known or refused


class GenerationalEvolution(SearchOracle):
    """A random population, then generations of as many children of the best `parents` networks until then.

    The first half of a generation are mutations of a parent, the others crossings of two: each choice is that of one of
    them. A child that is known or refused is drawn again, so that each trial tells something new.

    Source: Cai et al., ICLR 2020, and its code (evolution_finder.py); numbers of Lin et al., arXiv:2007.10319.

    Args:
        objective, max_trials, hyperparameters, seed, key, check, max_redraws: see SearchOracle.
        population: networks of a generation (paper: 100).
        parents: of the next generation (paper: 20).
        mutation: probability that a choice is drawn anew (paper: 0.1).
    """

    relearns = False

    def __init__(
        self,
        objective: Any = "val_accuracy",
        max_trials: int | None = None,
        hyperparameters: Any = None,
        *,
        seed: int | None = None,
        key: Any = None,
        check: Any = None,
        max_redraws: int = 1000,
        population: int = 100,
        parents: int = 20,
        mutation: float = 0.1,
    ):
        super().__init__(
            objective, max_trials, hyperparameters, seed=seed, key=key, check=check, max_redraws=max_redraws
        )
        if not 1 <= parents <= population:
            raise ValueError(f"parents is {parents} and population {population}; expected 1 <= parents <= population")
        if not 0 < mutation <= 1:
            raise ValueError(f"mutation is {mutation}; expected a probability above 0, at most 1")
        self.population, self.parents, self.mutation = population, parents, mutation
        self.best: list[tuple[Genome, float]] = []  # of the finished generations, the best first
        self.generation: list[tuple[Genome, float]] = []
        self._draws = 0  # since the last result

    def propose(self) -> Genome:
        """Returns a random genome, a mutation or a crossing; where too many are known, a stronger mutation."""
        self._draws += 1
        if not self.best:
            return self.random_genome()
        if len(self.generation) < self.population // 2 or self._draws > _PATIENCE:
            return self.mutated(self._parent())
        return self.crossed(self._parent(), self._parent())

    def mutated(self, genome: Genome) -> Genome:
        """Returns `genome` with each choice drawn anew with the probability `mutation`, or more after many draws."""
        probability = self.mutation * max(1.0, self._draws / _PATIENCE)
        drawn, other = self.rng.random(len(genome)) < probability, self.random_genome()
        return tuple(new if change else old for new, old, change in zip(other, genome, drawn, strict=True))

    def crossed(self, one: Genome, other: Genome) -> Genome:
        """Returns a genome that has each choice from one or the other."""
        from_one = self.rng.random(len(one)) < 0.5
        return tuple(a if first else b for a, b, first in zip(one, other, from_one, strict=True))

    def _parent(self) -> Genome:
        return self.best[self.rng.integers(len(self.best))][0]

    def learn(self, genome: Genome, fitness: float | None) -> None:
        """Lets a network into the generation; a full one is over, and the best of it and of all before stay."""
        self._draws = 0
        if fitness is None:
            return
        self.generation.append((genome, fitness))
        if len(self.generation) == self.population:
            everyone = sorted([*self.best, *self.generation], key=lambda member: -member[1])
            self.best, self.generation = everyone[: self.parents], []

    def learned(self) -> dict[str, Any]:
        """Returns the parents and the generation so far."""
        return {name: [[list(genome), fitness] for genome, fitness in getattr(self, name)] for name in _MEMBERS}

    def restore(self, learned: Mapping[str, Any]) -> None:
        """Takes back what `learned` returned."""
        for name in _MEMBERS:
            setattr(self, name, [(tuple(genome), fitness) for genome, fitness in learned[name]])
