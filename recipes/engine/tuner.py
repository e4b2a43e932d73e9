"""Runs the trials of a search so that nothing is lost: kill it at any moment, start it again, get the same result.

    tuner = Tuner(oracle, evaluate, folder)   # evaluate(task) -> score, or a dict with the objective in it
    tuner.search()
    tuner.best.values

It is a KerasTuner tuner whose state is an append-only journal: the cost of a trial does not grow with their number. A
resumed search replays the journal through the oracle, whose draws depend on its seed and the results alone.
"""

import collections
import gc
import itertools
import json
import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from keras_tuner.engine import base_tuner
from keras_tuner.engine import trial as trial_module

from recipes.engine import parallel
from recipes.engine.checkpoints import Checkpoints
from recipes.engine.journal import Journal
from recipes.engine.records import Record, pareto_front
from recipes.engine.tasks import Evaluate, FailedElsewhereError, Outcome, Task, is_fatal, reason_of
from recipes.oracles.base import SearchOracle
from recipes.training.progress import Status
from zoo import atomic

__all__ = ["Record", "Status", "Task", "Tuner", "forget_models", "pareto_front"]

_log = logging.getLogger(__name__)


class Tuner(base_tuner.BaseTuner):
    """Runs `evaluate` on what the oracle proposes.

    A trial that raises an exception is INVALID, with the reason, and the search goes on; KeyboardInterrupt ends it
    and keeps the state. A trial in which the process itself died `attempts` times without getting further is INVALID.

    Args:
        oracle: its hyperparameters must be complete; `recipes.engine.spaces` makes them.
        evaluate: task -> the objective, or name -> number with the objective among the names.
        folder: of journal and checkpoints.
        settings: what else must be equal for a journal to be continued, as JSON can hold it.
        keep: checkpoints of this many best trials stay, and those of the last.
        observe: called with a Status when something has changed.
        snapshot_seconds: the oracle's state is saved this often, so that a resume has less to replay.
        attempts: see above; out of memory kills a process without an exception.
        workers: where the trials run, such as recipes.engine.workers.LocalWorkers; in this process unless given.
            `evaluate` is then theirs, and None here. A trial whose worker died `retries` + 1 times is INVALID.
        retries: how often a trial is given out again after its worker died or fell silent.
    """

    def __init__(
        self,
        oracle: SearchOracle,
        evaluate: Evaluate | None,
        folder: Path,
        *,
        settings: Mapping[str, Any] | None = None,
        keep: int = 3,
        observe: Callable[[Status], None] | None = None,
        snapshot_seconds: float = 30.0,
        attempts: int = 5,
        workers: parallel.Workers | None = None,
        retries: int = 1,
    ):
        if (evaluate is None) == (workers is None):
            raise ValueError("expected evaluate or workers, and not both: workers have an evaluate of their own")
        if "KERASTUNER_ORACLE_IP" in os.environ:
            raise ValueError(
                "KERASTUNER_ORACLE_IP is set, and this tuner has workers of its own. Unset it, or give the oracle to a "
                "keras_tuner.Tuner, whose chief and workers it names"
            )
        if not oracle.hyperparameters.space:
            raise ValueError("the oracle has no choices; give it hyperparameters=space.hyperparameters()")
        self.folder, self.checkpoints = Path(folder), Checkpoints(Path(folder) / "checkpoints")
        self._evaluate, self._keep, self._observe = evaluate, keep, observe
        self._snapshot_seconds, self._attempts = snapshot_seconds, attempts
        self._workers, self._retries = workers, retries
        self.at_once = 1  # trials that run; for the time left
        self.seconds_waited = 0.0  # for trials elsewhere; the rest is the cost of the search itself
        self.history: list[Record] = []
        self._started: dict[str, int] = {}  # trial id -> number
        self._losses: collections.Counter[int] = collections.Counter()  # number -> workers that died in it
        self._begun = self._snapshotted = time.monotonic()
        self._kept: list[tuple[float, int, Record]] = []  # the best first
        self._best: Record | None = None
        self._recent: collections.deque[float] = collections.deque(maxlen=50)  # s a trial, of this process
        oracle.persistent = False
        self._own_check, oracle.check = oracle.check, self._recorded_check
        self._checked: dict[tuple[int, ...], str | None] = {}
        self._refusals = 0
        self._replaying = True
        super().__init__(oracle, directory=str(self.folder.parent), project_name=self.folder.name)
        self.journal = Journal(self.folder / "journal.jsonl", self._header(settings or {}))
        self._resume()

    @property
    def best(self) -> Record:
        """The best trial so far.

        Raises:
            ValueError: none has succeeded; the text gives the reasons.
        """
        if self._best is None:
            reasons = collections.Counter(record.message for record in self.history).most_common(3)
            listed = "; ".join(f"{count} x {reason}" for reason, count in reasons) or self.oracle.message
            last = next((reason for reason in reversed(self._checked.values()) if reason), None)
            listed += f"; {self._refusals:,} were refused before a training, the last for {last}" if last else ""
            raise ValueError(f"no trial has succeeded, {len(self.history)} failed: {listed}")
        return self._best

    def search(self, *fit_args: Any, **fit_kwargs: Any) -> None:
        """Runs trials until the oracle has no more; what is left of an earlier process is finished first."""
        try:
            if self._workers is not None:
                parallel.search(self, self._workers, self._retries)
                return
            for trial in self.unfinished():
                self.on_trial_begin(trial)
                self._try_run_and_update_trial(trial)
                self.on_trial_end(trial)
            super().search(*fit_args, **fit_kwargs)
        finally:
            if self._workers is not None:
                self._workers.close()
            self.close()

    def unfinished(self) -> list[Any]:
        """Returns the trials that have started and not ended, in the order of their numbers."""
        return sorted(self.oracle.ongoing_trials.values(), key=lambda trial: self._started[trial.trial_id])

    def ask(self) -> Any | None:
        """Returns a new trial that has started, or None while the oracle has none; for `recipes.engine.parallel`."""
        if self.oracle.max_trials and len(self.oracle.trials) >= self.oracle.max_trials:
            return None
        trial = self.oracle.create_trial(self._slot())
        if trial.status == trial_module.TrialStatus.RUNNING:
            self.on_trial_begin(trial)
            return trial
        if self.oracle.running:  # asking took draws, which a replay has to take too
            self.journal.append({"idle": len(self.history)})
        return None

    def lost(self, trial: Any, reason: str) -> int:
        """Journals that a trial's worker was lost and returns how often that was so; for `recipes.engine.parallel`."""
        number = self._started[trial.trial_id]
        self.journal.append({"lost": number, "message": reason})
        self._losses[number] += 1
        return self._losses[number]

    def end(self, trial: Any, outcome: Outcome) -> None:
        """Takes in what came of a trial elsewhere; for `recipes.engine.parallel`."""
        self._begun = time.monotonic() - outcome.seconds
        self._try_run_and_update_trial(trial, outcome=outcome)
        self.on_trial_end(trial)

    def task(self, trial: Any, report: Callable[[float, str], None]) -> Task:
        """Returns what `evaluate` gets of a trial that has started."""
        number = self._started[trial.trial_id]
        seed = np.random.SeedSequence([self.oracle.seed, number]).generate_state(1)[0]
        return Task(number, trial.hyperparameters.values, int(seed >> 1), self.checkpoints.of(number), report)

    def close(self) -> None:
        """Saves the state and lets go of the folder; a search that was not run to its end may be closed too."""
        self.journal.close()

    def run_trial(self, trial: Any, *args: Any, outcome: Outcome | None = None, **kwargs: Any) -> Any:
        """Evaluates one trial, or takes `outcome` from elsewhere; called by KerasTuner."""
        if outcome is None:
            results = self._run_here(trial)
        elif outcome.results is None:
            raise FailedElsewhereError(outcome.reason)
        else:
            results = outcome.results
        name = self.oracle.objective.name
        metrics = results if isinstance(results, Mapping) else {name: results}
        if name in metrics and not math.isfinite(metrics[name]):
            raise FloatingPointError(f"{name} is {float(metrics[name])}")
        return {name: float(value) for name, value in metrics.items() if math.isfinite(value)}

    def _run_here(self, trial: Any) -> float | Mapping[str, float]:
        assert self._evaluate is not None
        self._begun = time.monotonic()
        self.tell(0.0, "")
        if self._died(self._started[trial.trial_id]) >= self._attempts:
            raise MemoryError(f"the process died {self._attempts} times in this trial, perhaps for want of memory")
        return self._evaluate(self.task(trial, self.tell))

    def _try_run_and_update_trial(self, trial: Any, *args: Any, **kwargs: Any) -> None:
        """Turns a failure into a reason; KerasTuner's own prints every traceback, over the progress bar too."""
        try:
            self._run_and_update_trial(trial, *args, **kwargs)
            trial.status = trial_module.TrialStatus.COMPLETED
        except Exception as error:
            if is_fatal(error):
                raise
            trial.status = trial_module.TrialStatus.INVALID
            trial.message = reason_of(error)
            _log.debug("trial %s failed", trial.trial_id, exc_info=True)

    def on_trial_begin(self, trial: Any) -> None:
        """Journals the start; called by KerasTuner."""
        if trial.trial_id in self._started:  # of an earlier process
            if self._workers is not None:  # the process that died was not the one that ran it
                return
            number = self._started[trial.trial_id]
            self.journal.append({"resume": number, "mark": self.checkpoints.mark(number)})
            self.journal.records.append({"resume": number, "mark": self.checkpoints.mark(number)})
            return
        number = self._started[trial.trial_id] = len(self._started)
        self.journal.append({"start": number, "genome": self.oracle.choices.genome(trial.hyperparameters.values)})

    def on_trial_end(self, trial: Any) -> None:
        """Lets the oracle learn, journals the result and removes checkpoints; called by KerasTuner."""
        seconds = time.monotonic() - self._begun
        self.oracle.end_trial(trial)
        record = self._record(self.oracle.trials[trial.trial_id], seconds)
        self.journal.append(
            {
                "end": record.number,
                "status": record.status,
                "metrics": record.metrics,
                "seconds": round(seconds, 3),
                **({"message": record.message} if record.message else {}),
            }
        )
        self._count(record)
        self._recent.append(seconds)
        running = [self._started[trial_id] for trial_id in self.oracle.running_genomes]
        self.checkpoints.keep([record.number, *running, *(number for _, number, _ in self._kept[: self._keep])])
        self.tell(0.0, "")
        if time.monotonic() - self._snapshotted > self._snapshot_seconds:
            self.save()

    def save(self) -> None:
        """Saves the oracle's state beside the journal; called by KerasTuner at other times too."""
        if self._replaying:
            return
        self.journal.sync()
        genomes = self.oracle.running_genomes
        state = {
            "records": self.journal.length,
            "running": {self._started[trial_id]: list(genome) for trial_id, genome in genomes.items()},
            "oracle": self.oracle.snapshot(),
        }
        atomic.write_atomically(self.folder / "snapshot.json", json.dumps(state))
        self._snapshotted = time.monotonic()

    def reload(self) -> None:
        """Does nothing: the constructor has read the journal."""

    def _header(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        choices = self.oracle.choices
        return {
            "oracle": type(self.oracle).__name__,
            "objective": [self.oracle.objective.name, self.oracle.objective.direction],
            "seed": self.oracle.seed,
            "choices": dict(zip(choices.names, choices.counts.tolist(), strict=True)),
            **settings,
        }

    def _resume(self) -> None:
        """Takes the oracle to where the journal ends."""
        records = self.journal.records
        for record in records:
            if "refused" in record:
                self._checked[tuple(record["refused"])] = record["message"]
                self._refusals += 1
            elif "start" in record:
                self._checked[tuple(record["genome"])] = None
            elif "lost" in record:
                self._losses[record["lost"]] += 1
        for record in records[self._restore_snapshot(records) :]:
            if "start" in record:
                self._replay_start(record)
            elif "end" in record:
                self._replay_end(record)
            elif "idle" in record:
                self.oracle.create_trial(self._slot())
        self._replaying = False
        if records:
            self.tell(0.0, f"resumed after {len(self.history)} trials")

    def _restore_snapshot(self, records: Sequence[Mapping[str, Any]]) -> int:
        """Returns how many records the snapshot covers; 0 where there is none, or the journal is shorter."""
        path = self.folder / "snapshot.json"
        state = json.loads(path.read_text(encoding="utf-8")) if records and path.exists() else {}
        covered = state.get("records", 0)
        if not 0 < covered <= len(records):
            return 0
        ends = {record["end"]: record for record in records[:covered] if "end" in record}
        for record in records[:covered]:
            if "start" in record:
                number = record["start"]
                self._adopt(number, record["genome"], ends.get(number), state["running"].get(str(number)))
        self.oracle.end_order = [self._trial_id(number) for number in ends]
        for number, end in ends.items():
            self._count(self._record(self.oracle.trials[self._trial_id(number)], end["seconds"]))
        self.oracle.restore_snapshot(state["oracle"])
        return covered

    def _adopt(self, number: int, genome: list[int], end: Mapping[str, Any] | None, running: list[int] | None) -> None:
        hyperparameters = self.oracle.get_space()
        hyperparameters.values = self.oracle.choices.values(tuple(genome))
        trial = trial_module.Trial(hyperparameters, trial_id=self._trial_id(number))
        self._started[trial.trial_id] = number
        if end is None:
            self.oracle.adopt(trial, tuple(running or genome))
            self.oracle.ongoing_trials[self._slot()] = trial
            return
        self._fill(trial, end)
        if trial.status == trial_module.TrialStatus.COMPLETED:
            self.oracle.score_trial(trial)
        self.oracle.adopt(trial)

    def _replay_start(self, record: Mapping[str, Any]) -> None:
        trial = self.oracle.create_trial(self._slot())
        genome = list(self.oracle.choices.genome(trial.hyperparameters.values)) if trial.hyperparameters.values else []
        if trial.status != trial_module.TrialStatus.RUNNING or genome != record["genome"]:
            raise ValueError(
                f"{self.journal.path}: trial {record['start']} was {record['genome']}, and the oracle now proposes "
                f"{genome or 'nothing'}. It is another version or has other settings; use those, or another folder"
            )
        self._started[trial.trial_id] = record["start"]

    def _replay_end(self, record: Mapping[str, Any]) -> None:
        trial = self.oracle.trials[self._trial_id(record["end"])]
        self._fill(trial, record)
        self.oracle.end_trial(trial)
        self._count(self._record(trial, record["seconds"]))

    def _slot(self) -> str:
        """Returns the first tuner id without a trial: the oracle gives one trial to each."""
        names = (self.tuner_id if place == 0 else f"{self.tuner_id}.{place}" for place in itertools.count())
        return next(name for name in names if name not in self.oracle.ongoing_trials)

    def _fill(self, trial: Any, record: Mapping[str, Any]) -> None:
        trial.status, trial.message = record["status"], record.get("message")
        for name, value in record["metrics"].items():
            direction = self.oracle.objective.direction if name == self.oracle.objective.name else None
            trial.metrics.register(name, direction=direction or "min")
            trial.metrics.update(name, value, step=0)

    def _trial_id(self, number: int) -> str:
        """Returns the id that KerasTuner gives to its trial of this number."""
        return f"{number:0{len(str(self.oracle.max_trials))}d}"

    def _record(self, trial: Any, seconds: float) -> Record:
        metrics = {name: float(history.get_last_value()) for name, history in trial.metrics.metrics.items()}
        completed = trial.status == trial_module.TrialStatus.COMPLETED
        return Record(
            self._started[trial.trial_id],
            trial.hyperparameters.values,
            trial.status,
            float(trial.score) if completed else None,
            metrics,
            seconds,
            trial.message or "",
        )

    def _count(self, record: Record) -> None:
        self.history.append(record)
        if record.score is None:
            return
        maximize = self.oracle.objective.direction == "max"
        self._kept.append((-record.score if maximize else record.score, record.number, record))
        self._kept.sort(key=lambda kept: kept[:2])
        self._best = self._kept[0][2]
        del self._kept[max(1, self._keep) :]

    def _died(self, number: int) -> int:
        """Returns how often the process died in this trial since its last checkpoint."""
        marks = [record["mark"] for record in self.journal.records if record.get("resume") == number]
        return sum(mark == marks[-1] for mark in marks) if marks else 0

    def _recorded_check(self, values: dict[str, Any]) -> str | None:
        """Asks the oracle's own check once in the life of a search; its answer may have cost building a network."""
        if self._own_check is None:
            return None
        genome = self.oracle.choices.genome(values)
        if genome in self._checked:
            return self._checked[genome]
        reason = self._checked[genome] = self._own_check(values)
        if reason:
            self.journal.append({"refused": genome, "message": reason})
            self._refusals += 1
            self.tell(0.0, f"{self._refusals:,} refused, the last for {reason}")
        return reason

    def tell(self, share: float, text: str) -> None:
        """Gives `observe` the state of the search; `share` is what is finished of the running trials, in trials."""
        if self._observe is None:
            return
        total = self.oracle.max_trials
        left = None
        if total is not None and self._recent:
            left = max(0.0, (total - len(self.history) - share) * float(np.mean(self._recent)) / self.at_once)
        best = None if self._best is None else self._best.score
        self._observe(Status(len(self.history), total, best, left, share, text))


def forget_models() -> None:
    """Frees what Keras and TensorFlow keep of the models of earlier trials."""
    import keras

    keras.backend.clear_session()
    gc.collect()
