"""Successive halving around any oracle: trains new networks for a few epochs, and only the best of them longer."""

import bisect
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from recipes.oracles.base import EPOCHS, Check, Proposal, SearchOracle, Values
from recipes.oracles.choices import Genome, SharedSpace

_WAITING = 10  # networks per rung, next in line for promotion, whose checkpoints are kept


class SuccessiveHalving(SearchOracle):
    """Asynchronous successive halving (ASHA) over the networks that another oracle proposes.

    A trial is a network at a rung. The rung is the total number of epochs to train for, the choice "tuner/epochs".
    Starting at the highest rung, the next trial promotes the best network that is among the best 1 / `factor` of its
    rung and was not promoted yet; if there is none, the trial is a new network at the first rung. So no worker waits
    for a rung to fill. A network is promoted once from each rung, and its trial may resume the earlier training.

    The wrapped oracle learns only the scores of the first rung, where all networks are trained for the same epochs. It
    does not see promotions, so that a population or a level fills as without halving.

    Source: Li et al., "A System for Massively Parallel Hyperparameter Tuning", MLSys 2020, Algorithm 2. Departures: new
    networks come from the wrapped oracle instead of at random, and only the highest rung counts for the best network.

    Args:
        oracle: proposes the networks; its hyperparameters must be complete, and none of its trials started.
        rungs: total epochs at each rung, two or more, ascending (paper: r, r x factor, r x factor^2, ...).
        factor: one in this many networks of a rung is promoted (paper: 4).
    """

    def __init__(self, oracle: SearchOracle, rungs: Sequence[int], factor: int = 3):
        if len(rungs) < 2 or list(rungs) != sorted(set(rungs)) or rungs[0] < 1 or factor < 2:
            raise ValueError(
                f"rungs is {list(rungs)} and factor {factor}; expected two or more ascending numbers of epochs, "
                "and a whole number from 2"
            )
        if len(oracle.objectives) > 1:
            raise ValueError(
                f"the oracle has the objectives {[objective.name for objective in oracle.objectives]}, but halving "
                "promotes by one score. Use an oracle with one objective, or leave out halving"
            )
        hyperparameters = SharedSpace.copy_of(oracle.hyperparameters)
        hyperparameters.Choice(EPOCHS, list(rungs), ordered=False)
        super().__init__(
            oracle.objective,
            oracle.max_trials,
            hyperparameters,
            seed=oracle.seed,
            key=lambda values: (oracle.key(_without_epochs(values)), values[EPOCHS]),
            check=oracle.check,
        )
        self.oracle, self.rungs, self.factor = oracle, list(rungs), factor
        self._results: list[list[tuple[float, int, Genome]]] = [[] for _ in rungs]  # (-fitness, place, network), sorted
        self._promoted: list[set[Genome]] = [set() for _ in rungs]

    @property
    def unfinished(self) -> list[Values]:
        """The networks of each rung that are next in line for promotion."""
        found = []
        for results, promoted in zip(self._results[:-1], self._promoted[:-1], strict=True):
            waiting = (genome for _, _, genome in results if genome not in promoted)
            found += [genome for genome, _ in zip(waiting, range(_WAITING), strict=False)]
        return [_without_epochs(self.choices.values((*genome, 0))) for genome in found]

    def ask(self, identity: Hashable, check: Check | None = None) -> Proposal | None:
        """Returns a promoted network, or a new one from the wrapped oracle; see SearchOracle."""
        genome, self.made_from = self._promote(), ()
        if genome is None:
            proposal = self.oracle.ask(identity, check)
            if proposal is None:
                self.message = self.oracle.message
                return None
            genome = (*proposal.genome, 0)
            self.made_from = tuple((*parent, 0) for parent in self.oracle.made_from)
        values = self.choices.values(genome)
        self._running[identity] = (genome, self.key(values))
        return Proposal(genome, values)

    def _promote(self) -> Genome | None:
        for rung in reversed(range(len(self.rungs) - 1)):
            results, promoted = self._results[rung], self._promoted[rung]
            for _, _, genome in results[: len(results) // self.factor]:
                if genome not in promoted:
                    promoted.add(genome)
                    return (*genome, rung + 1)
        return None

    def tell(
        self, identity: Hashable, score: float | None, reason: str = "", metrics: Mapping[str, float] | None = None
    ) -> None:
        """Records a trial's score, or why it failed; the wrapped oracle is told those of the first rung."""
        genome, _ = self._running[identity]
        super().tell(identity, score, reason, metrics)
        if genome[-1] == 0:
            self.oracle.tell(identity, score, reason, metrics)

    def learn(self, genome: Genome, fitness: float | None) -> None:
        """Adds the network to its rung, unless it failed."""
        if fitness is not None:
            *network, rung = self.choices.genome(self.choices.values(genome))  # inactive choices have their defaults
            results = self._results[rung]
            bisect.insort(results, (-fitness, len(results), tuple(network)))

    def adopt_ended(self, values: Values, score: float | None, reason: str = "") -> None:
        """Records a trial that has ended; see SearchOracle."""
        super().adopt_ended(values, score, reason)
        genome = self.choices.genome(values)
        self.learn(genome, None if score is None else self.fitness(score))
        if genome[-1] == 0:
            self.oracle.adopt_ended(_without_epochs(values), score, reason)
        else:
            self._promoted[genome[-1] - 1].add(genome[:-1])

    def adopt_running(self, identity: Hashable, genome: Genome) -> None:
        """Records a trial that an earlier process has started; see SearchOracle."""
        super().adopt_running(identity, genome)
        if genome[-1] == 0:
            self.oracle.adopt_running(identity, genome[:-1])
        else:
            self._promoted[genome[-1] - 1].add(genome[:-1])

    def learned(self) -> dict[str, Any]:
        """Returns the wrapped oracle's state; the rungs follow from the trials."""
        return {"oracle": self.oracle.snapshot()}

    def restore(self, learned: Mapping[str, Any]) -> None:
        """Restores what `learned` returned."""
        self.oracle.restore_snapshot(learned["oracle"])

    def get_best_trials(self, num_trials: int = 1) -> list[Any]:
        """Returns the best trials; those trained longest come first."""
        trials = super().get_best_trials(len(self.trials))
        return sorted(trials, key=lambda trial: -trial.hyperparameters.values[EPOCHS])[:num_trials]


def _without_epochs(values: Mapping[str, Any]) -> Values:
    return {name: value for name, value in values.items() if name != EPOCHS}
