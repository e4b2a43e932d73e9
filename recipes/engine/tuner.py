"""Runs the trials of a search and loses nothing: kill it at any moment, start it again, get the same result.

    tuner = Tuner(oracle, evaluate, folder)   # evaluate(task) -> score, or a dict with the objective in it
    tuner.search()
    tuner.best.values

The state is an append-only journal, so the cost of a trial does not grow with the number of trials. A resumed search
replays the journal through the oracle, whose draws depend only on its seed and the results. Trials may run elsewhere
(`recipes.engine.workers`); oracle and journal are in this process, and the oracle learns in the order trials end.
"""

import collections
import dataclasses
import errno
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recipes.engine.journal import Journal, cannot_write
from recipes.engine.workers import Evaluate, InThisProcess, Task, TrialResult, Workers
from recipes.oracles.base import EPOCHS, SearchOracle
from recipes.training.progress import Status
from zoo import atomic

COMPLETED, INVALID = "COMPLETED", "INVALID"  # KerasTuner's names


@dataclasses.dataclass(frozen=True)
class FinishedTrial:
    """One trial that has ended; if it is INVALID, `score` is None and `message` the reason."""

    number: int
    values: Mapping[str, Any]
    status: str
    score: float | None
    metrics: Mapping[str, float]
    seconds: float
    message: str = ""

    @property
    def epochs(self) -> int:
        """Total epochs the network trains for in a multi-fidelity search, otherwise 0."""
        return self.values.get(EPOCHS, 0)


class Tuner:
    """Runs the trials that an oracle proposes.

    If the values include the epochs to train for (recipes.oracles.SuccessiveHalving), the trials of one network share
    seed and checkpoint: a later trial resumes where the one before it ended, or starts over if the checkpoint is gone.

    A trial that raises an exception is INVALID, with the reason, and the search continues; KeyboardInterrupt ends the
    search and keeps its state. A trial is also INVALID after this process died in it `attempts` times without progress,
    or after its worker died `retries` + 1 times.

    Args:
        oracle: its hyperparameters must be complete, as `recipes.engine.spaces` makes them.
        evaluate: task -> the objective, or a dict of numbers that includes the objective.
        folder: for the journal and the checkpoints.
        settings: what else must be equal for a journal to be continued; JSON values.
        keep: how many of the best trials keep their checkpoints.
        observe: called with a Status when something changes.
        snapshot_seconds: how often the oracle's state is saved, so that a resume has less to replay: replaying 20,000
            trials takes the controller of NASNet's paper 200 s of processor time, evolution 9 s.
        attempts: see above; running out of memory kills a process without an exception.
        workers: where the trials run, such as recipes.engine.workers.LocalWorkers; by default in this process.
            Workers have their own `evaluate`, and the one here is None.
        retries: how often a trial is retried after its worker died or fell silent.

    Raises:
        ValueError: the arguments do not fit together, or the folder holds a search with other settings.
        OSError: another process searches in the folder, or it cannot be written.
    """

    def __init__(
        self,
        oracle: SearchOracle,
        evaluate: Evaluate | None,
        folder: Path,
        *,
        settings: Mapping[str, Any] | None = None,
        keep: int = 3,
        observe: Callable[[Status], None] = lambda status: None,
        snapshot_seconds: float = 30.0,
        attempts: int = 5,
        workers: Workers | None = None,
        retries: int = 1,
    ):
        if (evaluate is None) == (workers is None):
            raise ValueError("expected evaluate or workers, and not both: workers have their own evaluate")
        if "KERASTUNER_ORACLE_IP" in os.environ:
            raise ValueError(
                "KERASTUNER_ORACLE_IP is set, but this tuner has its own workers. Unset it, or give the oracle "
                "to a keras_tuner.Tuner, whose chief and workers use this variable"
            )
        if not oracle.hyperparameters.space:
            raise ValueError("the oracle has no choices; give it hyperparameters=space.hyperparameters()")
        self.oracle, self.folder = oracle, Path(folder)
        self._keep, self._observe, self._snapshot_seconds = keep, observe, snapshot_seconds
        self._attempts, self._retries = attempts, retries
        self._runs_here = workers is None
        self._workers: Workers = InThisProcess(evaluate) if workers is None else workers  # pyright: ignore[reportArgumentType]
        self.history: list[FinishedTrial] = []
        self.seconds_waited = 0.0  # for trials; the rest of the time is the cost of the search itself
        self._started = 0
        self._running: dict[int, Mapping[str, Any]] = {}  # number -> values of the trials that have not ended
        self._first: dict[Any, int] = {}  # network -> number of its first trial, whose checkpoint later trials resume
        self._roots: dict[int, int] = {}  # trial number -> number of its network's first trial
        self._fractions: dict[int, float] = {}  # number -> finished fraction of each trial that a worker has
        self._losses: collections.Counter[int] = collections.Counter()  # number -> workers that died in it
        self._marks: dict[int, list[int]] = collections.defaultdict(list)  # number -> checkpoint marks at each resume
        self._best: list[FinishedTrial] = []  # best first
        self._intervals: collections.deque[float] = collections.deque(maxlen=50)  # s from one trial's end to the next
        self._last_end = self._last_snapshot = time.monotonic()
        self._checked: dict[tuple[int, ...], str | None] = {}  # genome -> why the oracle's check refused it, or None
        self._refusals = 0
        self.journal = Journal(self.folder / "journal.jsonl", self._header(settings or {}))
        try:
            self._resume()
        except BaseException:
            self.journal.close()
            raise

    @property
    def best(self) -> FinishedTrial:
        """The best trial so far; raises ValueError with the reasons if none has succeeded."""
        if self._best:
            return self._best[0]
        reasons = collections.Counter(record.message for record in self.history).most_common(3)
        listed = "; ".join(f"{count} x {reason}" for reason, count in reasons) or self.oracle.message
        last = next((reason for reason in reversed(self._checked.values()) if reason), None)
        listed += f"; {self._refusals:,} were refused before training, the last for {last}" if last else ""
        raise ValueError(f"no trial has succeeded, {len(self.history)} failed: {listed}")

    def search(self) -> None:
        """Runs trials until the oracle has no more; first finishes those that an earlier process left running.

        Raises:
            OSError: a trial failed in a way that every other trial would too, such as a full disk.
        """
        self._last_end = time.monotonic()
        waiting = collections.deque(sorted(self._running))
        try:
            while True:
                while self._workers.room > 0:
                    number = waiting.popleft() if waiting else self._start_trial()
                    if number is None:
                        break
                    self._give_out(number)
                if not self._fractions:
                    return
                begun = time.monotonic()
                result = self._workers.wait()
                self.seconds_waited += time.monotonic() - begun
                if self._handle_end(result):
                    waiting.appendleft(result.number)
        finally:
            self._workers.close()
            self.close()

    def close(self) -> None:
        """Syncs the journal and releases the folder; an unfinished search may be closed too."""
        self.journal.close()

    def save(self) -> None:
        """Saves the oracle's state next to the journal."""
        self.journal.sync()
        state = {
            "records": self.journal.length,
            "running": {number: list(genome) for number, genome in self.oracle.running_genomes.items()},
            "oracle": self.oracle.snapshot(),
        }
        try:
            atomic.write_atomically(self.folder / "snapshot.json", json.dumps(state))
        except OSError as error:
            raise cannot_write(self.folder / "snapshot.json", error) from error
        self._last_snapshot = time.monotonic()

    def report_status(self, text: str, note: str = "") -> None:
        """Reports the state of the search to `observe`; `note` is worth a line of its own."""
        total, fraction = self.oracle.max_trials, sum(self._fractions.values())
        left = None
        if total is not None and self._intervals:
            left = max(0.0, (total - len(self.history) - fraction) * float(np.mean(self._intervals)))
        best = self._best[0].score if self._best else None
        self._observe(Status(len(self.history), total, best, left, fraction, text, note))

    def _start_trial(self) -> int | None:
        """Journals a new trial and returns its number, or None if the oracle has none now."""
        if self.oracle.max_trials and self._started >= self.oracle.max_trials:
            return None
        proposal = self.oracle.ask(self._started, self._check)
        if proposal is None:
            if self.oracle.running:  # the oracle drew random numbers, which a replay has to draw too
                self.journal.append({"idle": len(self.history)})
            return None
        number = self._started
        self._count_start(number, proposal.values)
        parents = {"parents": self.oracle.made_from} if self.oracle.made_from else {}
        self.journal.append({"start": number, "genome": self.oracle.choices.genome(proposal.values), **parents})
        return number

    def _count_start(self, number: int, values: Mapping[str, Any]) -> None:
        self._started += 1
        self._running[number] = values
        if EPOCHS in values:
            self._roots[number] = self._first.setdefault(_describe_network(values), number)

    def _give_out(self, number: int) -> None:
        """Gives a trial to a worker, or ends it as INVALID if this process has died in it too often."""
        self._fractions[number] = 0.0
        if self._runs_here and number in self._unfinished:
            self._unfinished.discard(number)
            mark = self._checkpoint_mark(number)
            self.journal.append({"resume": number, "mark": mark})
            deaths = 1 + self._marks[number].count(mark)
            if deaths >= self._attempts:
                reason = f"MemoryError: the process died {deaths} times in this trial, perhaps out of memory"
                self._end_trial(TrialResult(number, None, reason))
                return

        def report(fraction: float, text: str) -> None:
            self._fractions[number] = fraction
            self.report_status(text if len(self._fractions) == 1 else f"{len(self._fractions)} at once")

        entropy = [self.oracle.seed, self._roots.get(number, number)]
        seed = int(np.random.SeedSequence(entropy).generate_state(1)[0] >> 1)
        self.report_status("")
        self._workers.start(Task(number, self._running[number], seed, self._checkpoint(number), report))

    def _handle_end(self, result: TrialResult) -> bool:
        """Handles the end of an attempt; returns whether the trial has to be retried."""
        if result.fatal:
            full = " Free some space." if "No space" in result.reason else ""
            raise OSError(errno.EIO, f"trial {result.number} ended the search: {result.reason}.{full} Finished trials "
                          "are kept; the same command resumes")  # fmt: skip
        if result.lost:
            self.journal.append({"lost": result.number, "message": result.reason})
            self._losses[result.number] += 1
            times = self._losses[result.number]
            again = times <= self._retries
            del self._fractions[result.number]
            self.report_status("", f"trial {result.number}: {result.reason}; " + ("retrying" if again else "given up"))
            if again:
                return True
            result = result._replace(reason=f"given up after {times} attempts; in the last, {result.reason}")
        self._end_trial(result)
        return False

    def _end_trial(self, result: TrialResult) -> None:
        """Tells the oracle, journals the result and removes checkpoints."""
        names, number = [objective.name for objective in self.oracle.objectives], result.number
        metrics, message = {}, {"message": result.reason} if result.reason else {}
        if result.returned is not None:
            results = result.returned if isinstance(result.returned, Mapping) else {names[0]: result.returned}
            for name in names:
                if name not in results:
                    raise ValueError(f"evaluate returned {sorted(results)}; expected the objective {name!r} among them")
            wrong = next((name for name in names if not math.isfinite(results[name])), None)
            if wrong is None:
                metrics = {key: float(value) for key, value in results.items() if math.isfinite(value)}
            else:
                message = {"message": f"FloatingPointError: {wrong} is {float(results[wrong])}"}
        self._fractions.pop(number, None)
        ended = {"end": number, "status": COMPLETED if metrics else INVALID, "metrics": metrics}
        ended |= {"seconds": round(result.seconds, 3), **message}
        self._add_finished(self._read_end(ended))
        self.journal.append(ended)
        self._intervals.append(time.monotonic() - self._last_end)
        self._last_end = time.monotonic()
        kept = [*self._running, *(record.number for record in self._best[: self._keep])]
        kept += [self._first[_describe_network(values)] for values in self.oracle.unfinished]
        self._keep_checkpoints(kept)
        self.report_status("")
        if time.monotonic() - self._last_snapshot > self._snapshot_seconds:
            self.save()

    def _add_finished(self, trial: FinishedTrial, learn: bool = True) -> None:
        """Records a trial that has ended; the oracle learns from it, or with learn=False only remembers it."""
        del self._running[trial.number]
        if learn:
            self.oracle.tell(trial.number, trial.score, trial.message, trial.metrics)
        else:
            self.oracle.adopt_ended(dict(trial.values), trial.score, trial.message)
        self.history.append(trial)
        if trial.score is not None:
            sign = -1.0 if self.oracle.objective.direction == "max" else 1.0
            self._best.append(trial)
            self._best.sort(key=lambda kept: (-kept.epochs, sign * (kept.score or 0.0), kept.number))
            del self._best[max(1, self._keep) :]

    def _check(self, values: dict[str, Any]) -> str | None:
        """Asks the oracle's check once per genome in the life of a search: the check may build a network."""
        if self.oracle.check is None:
            return None
        genome = self.oracle.choices.genome(values)
        if genome in self._checked:
            return self._checked[genome]
        reason = self._checked[genome] = self.oracle.check(values)
        if reason:
            self.journal.append({"refused": genome, "message": reason})
            self._refusals += 1
            self.report_status(f"{self._refusals:,} refused, the last for {reason}")
        return reason

    def _header(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        choices = self.oracle.choices
        return {
            "oracle": type(self.oracle).__name__,
            "objective": [part for each in self.oracle.objectives for part in (each.name, each.direction)],
            "seed": self.oracle.seed,
            "choices": dict(zip(choices.names, choices.counts.tolist(), strict=True)),
            **settings,
        }

    def _resume(self) -> None:
        """Brings the oracle to the end of the journal; what the snapshot covers is not proposed and learned again."""
        records, state = self.journal.records, self._read_snapshot()
        covered = state.get("records", 0)
        self._replay(records[:covered], learn=False)
        if covered:
            for number, genome in state["running"].items():
                self.oracle.adopt_running(int(number), tuple(genome))
            self.oracle.restore_snapshot(state["oracle"])
        self._replay(records[covered:], learn=True)
        self._unfinished = set(self._running)
        if records:
            self.report_status(f"resumed after {len(self.history)} trials")

    def _read_snapshot(self) -> dict[str, Any]:
        """Returns the state that `save` wrote, or {} if there is none or it is ahead of the journal."""
        path, length = self.folder / "snapshot.json", len(self.journal.records)
        state = json.loads(path.read_text(encoding="utf-8")) if length and path.exists() else {}
        return state if state.get("records", 0) <= length else {}

    def _replay(self, records: Sequence[Mapping[str, Any]], learn: bool) -> None:
        """Replays the journal's records; with `learn`, the oracle proposes them and learns from them again."""
        for record in records:
            if "refused" in record:
                genome, reason = tuple(record["refused"]), record["message"]
                self._checked[genome] = reason
                self._refusals += 1
                if not learn:  # otherwise the oracle proposes it again and is told
                    self.oracle.adopt_ended(self.oracle.choices.values(genome), None, reason)
            elif "start" in record:
                genome = tuple(record["genome"])
                self._checked[genome] = None
                values = self._replay_start(record) if learn else self.oracle.choices.values(genome)
                self._count_start(record["start"], values)
            elif "lost" in record:
                self._losses[record["lost"]] += 1
            elif "resume" in record:
                self._marks[record["resume"]].append(record["mark"])
            elif "end" in record:
                self._add_finished(self._read_end(record), learn)
            elif "idle" in record and learn:
                self.oracle.ask(self._started, self._check)

    def _replay_start(self, record: Mapping[str, Any]) -> Mapping[str, Any]:
        proposal = self.oracle.ask(record["start"], self._check)
        genome = [] if proposal is None else list(self.oracle.choices.genome(proposal.values))
        if proposal is None or genome != record["genome"]:
            raise ValueError(
                f"{self.journal.path}: trial {record['start']} was {record['genome']}, but the oracle now proposes "
                f"{genome or 'nothing'}. It is another version or has other settings; use the original ones, or choose "
                "another folder"
            )
        return proposal.values

    def _read_end(self, record: Mapping[str, Any]) -> FinishedTrial:
        number, status = record["end"], record["status"]
        score = record["metrics"][self.oracle.objective.name] if status == COMPLETED else None
        message = record.get("message", "")
        return FinishedTrial(
            number, self._running[number], status, score, record["metrics"], record["seconds"], message
        )

    def _checkpoint(self, number: int) -> Path:
        """Returns the folder of a trial's checkpoint, which need not exist."""
        return self.folder / "checkpoints" / f"trial_{self._roots.get(number, number):05d}"

    def _checkpoint_mark(self, number: int) -> int:
        """Returns a number that changes whenever the trial writes a checkpoint."""
        folder = self._checkpoint(number)
        return max((path.stat().st_mtime_ns for path in folder.rglob("*")), default=0) if folder.exists() else 0

    def _keep_checkpoints(self, numbers: Iterable[int]) -> None:
        """Removes the checkpoints of all other trials."""
        folder, kept = self.folder / "checkpoints", {self._checkpoint(number).name for number in numbers}
        for path in folder.iterdir() if folder.exists() else ():
            if path.name not in kept:
                shutil.rmtree(path, ignore_errors=True)


def _describe_network(values: Mapping[str, Any]) -> Any:
    """Returns the identity shared by all trials of one network, however many epochs each trains it."""
    return tuple(item for item in values.items() if item[0] != EPOCHS)


def forget_models() -> None:
    """Frees what Keras and TensorFlow keep of earlier trials' models."""
    import keras

    keras.backend.clear_session()  # collects garbage as well
