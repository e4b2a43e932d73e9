"""Evolution: AmoebaNet's, in which the oldest die, and once-for-all's, in generations."""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from recipes.oracles.base import SearchOracle
from recipes.oracles.choices import Genome

_MEMBERS = ("best", "generation")  # of GenerationalEvolution
_MOST_FAMILIAR_DRAWS = 100  # in a row that were known or refused; beyond, its mutations become stronger


class AgingEvolution(SearchOracle):
    """Tournament selection and mutation in a population whose oldest member dies.

    Source: Real et al., "Regularized Evolution for Image Classifier Architecture Search", AAAI 2019, Algorithm 1.

    The first `population` trials are random. Then the best of `sample` members, drawn with replacement, gets a mutated
    child. A child that equals a known architecture, the identity mutation's among them, enters the population with the
    known score and without a trial; the paper trains it again.

    Args:
        objective, max_trials, hyperparameters, seed, key, check, max_redraws: see SearchOracle.
        population: members that are alive at once (paper: 100).
        sample: members drawn for one tournament (paper: 25).
        identity: probability that a child is its parent unchanged (paper: 0.05).
        kinds: kind of mutation -> names of the choices that it changes; a kind is drawn first, then one of its
            choices, then another value of it, all uniformly. All choices are one kind unless given. The paper's are
            hidden-state and op mutation.
        ageing: False removes the worst member instead of the oldest (the paper's non-aging variant).
    """

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
        sample: int = 25,
        identity: float = 0.05,
        kinds: Mapping[str, Sequence[str]] | None = None,
        ageing: bool = True,
    ):
        super().__init__(
            objective, max_trials, hyperparameters, seed=seed, key=key, check=check, max_redraws=max_redraws
        )
        if population < 1 or sample < 1:
            raise ValueError(f"population is {population} and sample {sample}; expected whole numbers from 1")
        if not 0 <= identity < 1:
            raise ValueError(f"identity is {identity}; expected a probability from 0 up to, not including, 1")
        self.population, self.sample, self.identity, self.ageing = population, sample, identity, ageing
        self.kinds = {kind: list(names) for kind, names in (kinds or {}).items()}
        self.members: deque[tuple[Genome, float]] = deque()  # oldest first
        self._filled = False

    def propose(self) -> Genome:
        """Returns a random genome until the population is full, then a child of a tournament's winner."""
        if not self.members or (not self._filled and len(self.members) + self.running < self.population):
            return self.random_genome()
        drawn = self.rng.integers(len(self.members), size=self.sample)
        parent, _ = max((self.members[i] for i in drawn), key=lambda member: member[1])
        self.made_from = (parent,)
        return self.mutated(parent)

    def mutated(self, genome: Genome) -> Genome:
        """Returns `genome` with one choice changed, or unchanged with the probability `identity`."""
        if self.rng.random() < self.identity:
            return genome
        genome = self.choices.padded(genome)
        positions = self._mutable()
        position = positions[self.rng.integers(len(positions))]
        count = self.choices.counts[position]
        other = int(self.rng.integers(count - 1))
        other += other >= genome[position]
        return (*genome[:position], other, *genome[position + 1 :])

    def _mutable(self) -> list[int]:
        """Returns the choices of one kind, drawn uniformly, that have more than one value."""
        names = self.choices.names
        wanted = [set(members) for members in self.kinds.values()] or [set(names)]
        if unknown := set().union(*wanted) - set(names):
            raise ValueError(f"kinds names the choices {sorted(unknown)}; the search space has {names}")
        groups = [
            [i for i, name in enumerate(names) if name in group and self.choices.counts[i] > 1] for group in wanted
        ]
        groups = [group for group in groups if group]
        if not groups:
            raise ValueError(f"no choice of {names} has two values or more; there is nothing to mutate")
        return groups[self.rng.integers(len(groups))] if len(groups) > 1 else groups[0]

    def learn(self, genome: Genome, fitness: float | None) -> None:
        """Lets the child in and the oldest (or worst) member out; a failed child never comes in."""
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
        return {"members": [[list(genome), fitness] for genome, fitness in self.members], "filled": self._filled}

    def restore(self, learned: Mapping[str, Any]) -> None:
        """Takes back what `learned` returned."""
        self.members = deque((tuple(genome), fitness) for genome, fitness in learned["members"])
        self._filled = learned["filled"]


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
        if len(self.generation) < self.population // 2 or self._draws > _MOST_FAMILIAR_DRAWS:
            self.made_from = (self._parent(),)
            return self.mutated(*self.made_from)
        self.made_from = (self._parent(), self._parent())
        return self.crossed(*self.made_from)

    def mutated(self, genome: Genome) -> Genome:
        """Returns `genome` with each choice drawn anew with the probability `mutation`, or more after many draws."""
        probability = self.mutation * max(1.0, self._draws / _MOST_FAMILIAR_DRAWS)
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
