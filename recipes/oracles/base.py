"""Base of the oracles: any seed works, draws survive a restart, duplicates cost nothing.

Works around these faults of KerasTuner 1.4.8: `seed=0` counts as no seed, 20 colliding draws or three failed trials in
a row end a search, and each new trial copies the search space choice by choice (0.4 ms at 30 choices).
"""

import collections
import dataclasses
import math
import warnings
from collections.abc import Callable, Hashable, Mapping
from typing import Any, ClassVar, NamedTuple

import keras_tuner
import numpy as np
from keras_tuner.engine import trial as trial_module

from recipes.oracles.choices import Choices, Genome, SharedSpace
from recipes.oracles.leases import LeasingOracle, is_chief

Values = dict[str, Any]
Check = Callable[[Values], str | None]  # why a point must not be trained, or None
_MOST_KEYS = 100_000  # in the cache of keys
EPOCHS = "tuner/epochs"  # the choice of how long to train, in multi-fidelity searches; Hyperband's name for it
_LARGEST_ENUMERATION = 100_000  # points; a space up to this size is searched to its last point


class Wait(Exception):  # noqa: N818 - an answer, not an error
    """Raised by `propose` while it needs the results of running trials."""


class Proposal(NamedTuple):
    """A point to train: all choices as the oracle learns them, and the values of the active ones."""

    genome: Genome
    values: Values


@dataclasses.dataclass(eq=False, repr=False)
class SearchOracle(LeasingOracle):
    """An oracle over categorical choices; a subclass decides what to try next and what to learn from a result.

    KerasTuner's tuners drive it through keras_tuner.Oracle's methods and keep its state in oracle.json. Other drivers,
    such as recipes.engine.tuner, need only `ask` and `tell`, which cost less; such a driver keeps the state itself.

    A subclass implements `propose`, `learn`, `learned` and `restore`, and draws only from `self.rng`; its options are
    its fields. A proposal whose key is known does not become a trial: the oracle learns the known score at once (if
    `relearns`) and proposes again.

    Args:
        objective: name or keras_tuner.Objective of the score; see keras_tuner.Oracle.
        max_trials: trials to run; duplicates and refused proposals do not count.
        hyperparameters: the choices, unless the hypermodel declares them: Choice, Boolean, Fixed, and Int and Float
            with a step.
        seed: 0 is a valid seed; None draws one.
        key: values -> the identity shared by equal architectures, such as a canonical hash; by default the values.
        check: values -> why they must not be trained, or None; asked once per key, before a trial starts.
        max_redraws: after this many known or refused proposals in a row, an unseen point is drawn at random.
    """

    objective: Any = "val_accuracy"
    max_trials: int | None = None
    hyperparameters: Any = None
    _: dataclasses.KW_ONLY
    seed: Any = None
    key: Any = None
    check: Check | None = None
    max_redraws: int = 1000

    relearns: ClassVar[bool] = True  # whether a known score is learned again each time its point is proposed

    def __post_init__(self):
        if isinstance(self.objective, (list, tuple)):
            raise ValueError(
                f"objective is {self.objective!r}, which KerasTuner would add up unscaled; expected one objective. "
                "Search their front with recipes.oracles.NSGA2, or name a reward of your own that the trial returns"
            )
        seed = int(np.random.SeedSequence().generate_state(1)[0]) if self.seed is None else self.seed
        super().__init__(self.objective, self.max_trials, self.hyperparameters)
        self.seed, self.rng = seed, np.random.default_rng(seed)
        self.hyperparameters = SharedSpace.copy_of(self.hyperparameters)
        self.key = self.key or (lambda values: tuple(sorted(values.items())))
        self.message = ""  # why the search stopped
        self.made_from: tuple[Genome, ...] = ()  # parents of the last proposal, if it has any
        self.refused: dict[Hashable, str] = {}  # key -> why it is never trained (again)
        self.duplicates = 0
        self.verbose = 0
        self._known: dict[Hashable, float] = {}  # key -> score
        self._running: dict[Hashable, tuple[Genome, Hashable]] = {}
        self._directory = None  # KerasTuner's tuners set it
        self._keys: dict[Genome, Hashable] = {}  # cache: late in a search, most proposals are known
        self._choices = Choices(self.hyperparameters)

    def propose(self) -> Genome | None:
        """Returns the choices to try next, or None after setting `self.message` if nothing is left.

        Raises:
            Wait: ask again when a running trial has ended.
        """
        raise NotImplementedError

    def learn(self, genome: Genome, fitness: float | None) -> None:
        """Learns from a result: larger `fitness` is better for any objective; None means that the trial failed."""

    def learned(self) -> dict[str, Any]:
        """Returns all state that `learn` and `propose` change, except `self.rng`, as JSON values."""
        return {}

    def restore(self, learned: Mapping[str, Any]) -> None:
        """Restores what `learned` returned."""

    @property
    def objectives(self) -> list[keras_tuner.Objective]:
        """The metrics that each trial has to return; the first is the score."""
        return [self.objective]

    @property
    def unfinished(self) -> list[Values]:
        """The points, without epochs, whose training a later trial may continue from a checkpoint."""
        return []

    @property
    def choices(self) -> Choices:
        """The decisions of the current search space; a hypermodel may declare more while it builds."""
        if len(self._choices) != len(self.hyperparameters.space):
            self._choices = Choices(self.hyperparameters)
            self._keys.clear()
        return self._choices

    @property
    def running(self) -> int:
        """Number of trials that have started and not ended."""
        return len(self._running)

    @property
    def running_genomes(self) -> dict[Hashable, Genome]:
        """Identity -> choices of the trials that have started and not ended."""
        return {identity: genome for identity, (genome, _) in self._running.items()}

    def random_genome(self) -> Genome:
        """Draws every choice uniformly."""
        return tuple(int(index) for index in self.rng.integers(self.choices.counts))

    def ask(self, identity: Hashable, check: Check | None = None) -> Proposal | None:
        """Returns a point to train, or None: ask again when a running trial has ended, or, if none runs, never.

        Args:
            identity: of the trial; `tell` takes the same.
            check: replaces the oracle's own, for a driver that remembers the answers.
        """
        for _ in range(self.max_redraws):
            self.made_from = ()
            try:
                genome = self.propose()
            except Wait:
                return None
            if genome is None:
                return None
            proposal = self._start_unless_settled(identity, genome, check)
            if proposal is not None:
                return proposal
        self.made_from = ()
        return self._ask_unseen(identity, check)

    def tell(
        self, identity: Hashable, score: float | None, reason: str = "", metrics: Mapping[str, float] | None = None
    ) -> None:
        """Records a trial's score, or why it failed, and learns from it; several objectives need `metrics`."""
        genome, key = self._running.pop(identity)
        self._settle(key, score, reason)
        self.learn(genome, None if score is None else self.fitness(score, metrics))

    def _start_unless_settled(self, identity: Hashable, genome: Genome, check: Check | None) -> Proposal | None:
        """Marks a point as running and returns it, or None if it is known, running or refused."""
        key = self._key_of(genome)
        if key in self._known:
            self.duplicates += 1
            if self.relearns:
                self.learn(genome, self.fitness(self._known[key]))
            return None
        if not self._is_open(genome):
            return None
        values, check = self.choices.values(genome), check or self.check
        if check is not None and (reason := check(values)):
            self.refused[key] = reason
            return None
        self._running[identity] = (genome, key)
        return Proposal(genome, values)

    def _key_of(self, genome: Genome) -> Hashable:
        key = self._keys.get(genome)
        if key is None:
            if len(self._keys) >= _MOST_KEYS:
                self._keys.clear()
            key = self._keys[genome] = self.key(self.choices.values(genome))
        return key

    def _is_open(self, genome: Genome) -> bool:
        """Returns whether no equal point is known, refused or running."""
        key = self._key_of(genome)
        if key in self._known or key in self.refused:
            return False
        return all(key != other for _, other in self._running.values())

    def _ask_unseen(self, identity: Hashable, check: Check | None) -> Proposal | None:
        """Starts a random untried point, after `max_redraws` vain proposals; sets `message` if there is none."""
        size = math.prod(self.choices.counts)
        tried = len(self._known) + len(self.refused)
        if size > _LARGEST_ENUMERATION:
            self.message = (
                f"stopped: {self.max_redraws:,} proposals in a row were known or refused, "
                f"after {tried:,} of {size:,} points"
            )
            return None
        for flat in self.rng.permutation(size):
            genome = tuple(int(index) for index in np.unravel_index(flat, self.choices.counts))
            proposal = self._start_unless_settled(identity, genome, check)
            if proposal is not None:
                return proposal
        if not self._running:
            refused = f" ({len(self.refused):,} refused)" if self.refused else ""
            equal = size - tried
            same = f", the other {equal:,} are equal to one of these" if equal else ""
            self.message = f"exhausted: {tried:,} of {size:,} points tried{refused}{same}"
        return None

    def fitness(self, score: float, metrics: Mapping[str, float] | None = None) -> Any:
        """Returns the fitness of a result for `learn`: more is better."""
        return score if self.objective.direction == "max" else -score

    def create_trial(self, tuner_id: str) -> Any:
        """Returns the next trial; see keras_tuner.Oracle.

        Raises:
            RuntimeError: the search is over and every trial has failed.
        """
        trial = super().create_trial(tuner_id)
        if trial.status == trial_module.TrialStatus.STOPPED and self.trials and not self._known and not is_chief():
            lines = [(failed.message or failed.status).strip().splitlines()[-1] for failed in self.trials.values()]
            listed = "; ".join(f"{count} x {line}" for line, count in collections.Counter(lines).most_common(3))
            raise RuntimeError(f"all {len(self.trials)} trials failed: {listed}")
        return trial

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """Returns {"status", "values"} of the next trial; see keras_tuner.Oracle."""
        proposal = self.ask(trial_id)
        if proposal is not None:
            return {"status": "RUNNING", "values": proposal.values}
        return {"status": "IDLE" if self._running else "STOPPED"}

    def get_best_trials(self, num_trials: int = 1) -> list[Any]:
        """Returns the best trials, best first; unlike keras_tuner.Oracle's, they never include failed ones."""
        completed = [t for t in self.trials.values() if t.status == trial_module.TrialStatus.COMPLETED]
        more_is_better = self.objective.direction == "max"
        return sorted(completed, key=lambda trial: trial.score, reverse=more_is_better)[:num_trials]

    @keras_tuner.synchronized
    def update_trial(self, trial_id: str, metrics: dict[str, float], step: int = 0) -> Any:
        """Records the metrics of a running trial; see keras_tuner.Oracle, whose warnings about NaN are silenced."""
        self.hear(trial_id)
        if trial_id not in self._running:  # its worker was silent for so long that another has ended the trial
            return self.trials[trial_id]
        if all(value == value for value in metrics.values()):
            return super().update_trial(trial_id, metrics, step)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "All-NaN", RuntimeWarning)
            return super().update_trial(trial_id, metrics, step)

    @keras_tuner.synchronized
    def end_trial(self, trial: Any) -> None:
        """Records a trial that has ended; unlike keras_tuner.Oracle's, failed trials never end the search."""
        own = self.trials[trial.trial_id]
        self.hear(own.trial_id)
        if own.trial_id not in self._running:  # see update_trial
            return
        if own.trial_id in self._retry_queue:
            self._retry_queue.remove(own.trial_id)
        own.hyperparameters, own.status, own.message = trial.hyperparameters, trial.status, trial.message
        self.update_space(own.hyperparameters)
        metrics = {}
        if own.status == trial_module.TrialStatus.COMPLETED:
            for objective in self.objectives:
                history = own.metrics.get_history(objective.name) if own.metrics.exists(objective.name) else []
                scores = [observed.mean() for observed in history]
                if np.isfinite(scores).any():
                    metrics[objective.name] = (np.nanmax if objective.direction == "max" else np.nanmin)(scores)
                else:
                    own.status = trial_module.TrialStatus.INVALID
                    own.message = f"{objective.name} is {scores[-1] if scores else 'not among the metrics'}"
        if own.status == trial_module.TrialStatus.COMPLETED:
            self.score_trial(own)
        self._record_values(own)
        self.end_order.append(own.trial_id)
        completed = own.status == trial_module.TrialStatus.COMPLETED
        self.tell(own.trial_id, own.score if completed else None, own.message or own.status, metrics)
        self._save_trial(own)
        self.save()
        self._display.on_trial_end(own)
        for tuner_id, ongoing in list(self.ongoing_trials.items()):
            if ongoing.trial_id == own.trial_id:
                self.ongoing_trials.pop(tuner_id)

    def _settle(self, key: Hashable, score: float | None, reason: str) -> None:
        if score is None:
            self.refused[key] = reason
        else:
            self._known[key] = score

    def snapshot(self) -> dict[str, Any]:
        """Returns what the algorithm has learned and the state of its draws, without the trials."""
        return {"rng": self.rng.bit_generator.state, "duplicates": self.duplicates, "learned": self.learned()}

    def restore_snapshot(self, snapshot: Mapping[str, Any]) -> None:
        """Restores what `snapshot` returned."""
        self.rng.bit_generator.state = snapshot["rng"]
        self.duplicates = snapshot["duplicates"]
        self.restore(snapshot["learned"])

    def adopt_ended(self, values: Values, score: float | None, reason: str = "") -> None:
        """Records a trial that has ended, or a point that was refused, without learning from it.

        The snapshot that is restored afterwards holds what was learned.
        """
        self._settle(self.key(values), score, reason)

    def adopt_running(self, identity: Hashable, genome: Genome) -> None:
        """Records a trial that an earlier process has started."""
        self._running[identity] = (genome, self.key(self.choices.values(genome)))

    def get_state(self) -> dict[str, Any]:
        """Returns all state but the trials, which have their own files; see keras_tuner.Oracle."""
        running = {trial_id: list(genome) for trial_id, genome in self.running_genomes.items()}
        return super().get_state() | {"search": self.snapshot() | {"running": running, "message": self.message}}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restores what `get_state` returned; `self.trials` must be there already."""
        super().set_state(state)
        self.hyperparameters = SharedSpace.copy_of(self.hyperparameters)
        self._choices = Choices(self.hyperparameters)
        self.message = state["search"]["message"]
        self._running.clear()
        for trial_id in self.end_order:
            trial = self.trials[trial_id]
            completed = trial.status == trial_module.TrialStatus.COMPLETED
            score, reason = (trial.score if completed else None), trial.message or trial.status
            self.adopt_ended(trial.hyperparameters.values, score, reason)
        for trial_id, genome in state["search"]["running"].items():
            self.adopt_running(trial_id, tuple(genome))
        self.restore_snapshot(state["search"])

    def save(self) -> None:
        """Writes oracle.json if one of KerasTuner's tuners has set a folder."""
        if self._directory is not None:
            super().save()

    def _save_trial(self, trial: Any) -> None:
        if self._directory is not None:
            super()._save_trial(trial)


class RandomSearch(SearchOracle):
    """Uniform draws without repetition: the baseline of every search."""

    def propose(self) -> Genome:
        """Returns a uniform draw."""
        return self.random_genome()
