"""Where the trials of a search run: in this process, or in worker processes whose death does not end the search.

    tuner = Tuner(oracle, None, folder, workers=LocalWorkers(evaluate, 4))

A local worker is a fresh Python process (spawned, not forked: TensorFlow does not survive a fork) that runs one trial
after another, so its imports are paid for once. It ends with its parent process, even if the parent is killed. The
number of workers changes only the order in which trials end: one worker gives the same search as this process.

This module imports only the standard library, because each worker imports it.
"""

import contextlib
import dataclasses
import errno
import logging
import math
import multiprocessing
import os
import platform
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from multiprocessing import connection
from pathlib import Path
from typing import Any, NamedTuple, Protocol

SILENCE = 1800.0  # s without a report from a trial after which its worker counts as dead
_REPORT_SECONDS = 0.5  # between two reports of a trial
_START_SECONDS = 600.0  # least silence that a new process is allowed, for its imports
_EXIT_SECONDS = 5.0  # that a worker has to exit by itself
_LONGEST_REASON = 300  # characters of an exception's text
_DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT)
_THREADS = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS")

_log = logging.getLogger(__name__)
Report = Callable[[float, str], None]  # (finished fraction of a trial, 0 to 1; a few words on what is running)


def ignore_report(fraction: float, text: str) -> None:
    """Stands in for `report`, which cannot be pickled, while a task is sent to another process."""


@dataclasses.dataclass(frozen=True)
class Task:
    """One trial as `evaluate` sees it.

    Attributes:
        number: from 0.
        values: decision -> choice.
        seed: of this trial alone; the same each time the trial is run.
        folder: for its checkpoints; not created yet. A trial that was killed finds its checkpoint there.
        report: call this with the finished fraction of the trial (0 to 1) and a few words on what is running.
    """

    number: int
    values: Mapping[str, Any]
    seed: int
    folder: Path
    report: Report = ignore_report


Evaluate = Callable[[Task], float | Mapping[str, float]]


class TrialResult(NamedTuple):
    """How an attempt at a trial ended.

    Attributes:
        number: of the trial.
        returned: what `evaluate` returned; None if it failed.
        reason: why it failed.
        lost: the worker died or fell silent; another attempt may succeed.
        fatal: every other trial would fail too, for example because the disk is full.
        seconds: duration of the attempt.
    """

    number: int
    returned: float | Mapping[str, float] | None
    reason: str = ""
    lost: bool = False
    fatal: bool = False
    seconds: float = 0.0


def describe_failure(error: BaseException) -> str:
    """Describes an exception in one line: its type and the start of its text."""
    text = " ".join(str(error).split())[:_LONGEST_REASON]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def is_fatal(error: BaseException) -> bool:
    """Returns whether every other trial would fail with this error too, so that the search must stop."""
    named_so = any(base.__name__ == "FatalError" for base in type(error).__mro__)  # keras_tuner's
    return named_so or (isinstance(error, OSError) and error.errno in _DISK_IS_FULL)


def run_trial(evaluate: Evaluate, task: Task) -> TrialResult:
    """Runs a trial in the calling process; an exception becomes a result with its reason."""
    begun = time.monotonic()
    try:
        results = evaluate(task)
        if isinstance(results, Mapping):
            results = {name: float(value) for name, value in results.items()}
        else:
            results = float(results)
        return TrialResult(task.number, results, seconds=time.monotonic() - begun)
    except Exception as error:  # noqa: BLE001 - whatever makes one network fail, the next may succeed
        _log.debug("trial %d failed", task.number, exc_info=True)
        seconds = time.monotonic() - begun
        return TrialResult(task.number, None, describe_failure(error), fatal=is_fatal(error), seconds=seconds)


class Workers(Protocol):
    """Where trials run."""

    @property
    def room(self) -> int:
        """How many more trials can be started now."""
        ...

    def start(self, task: Task) -> None:
        """Starts a trial."""

    def wait(self) -> TrialResult:
        """Waits until a trial has ended or its worker is lost, and returns its result."""
        ...

    def close(self) -> None:
        """Stops all workers and whatever they run."""


class InThisProcess:
    """Runs one trial at a time, inside `wait`; Ctrl-C, which is no Exception, ends the search."""

    def __init__(self, evaluate: Evaluate):
        self._evaluate = evaluate
        self._task: Task | None = None

    @property
    def room(self) -> int:
        """1, or 0 if a trial has been started."""
        return 1 if self._task is None else 0

    def start(self, task: Task) -> None:
        """Keeps the trial for `wait`."""
        self._task = task

    def wait(self) -> TrialResult:
        """Runs the trial."""
        assert self._task is not None
        task, self._task = self._task, None
        return run_trial(self._evaluate, task)

    def close(self) -> None:
        """Does nothing: no trial runs outside `wait`."""


class LocalWorkers:
    """Up to `count` processes on this machine, started when needed; see Workers.

    Cores and GPUs are divided evenly. A single worker has all of them, so that it computes what this process would.

    Args:
        evaluate: see recipes.engine.tuner.Tuner; a module's function, or a method of an object that can be pickled.
        count: at least 1.
        silence: s; the worker of a trial that neither ends nor reports for this long is killed.
        logs: folder for one file per worker, with what the worker and its libraries print; by default the terminal.

    Raises:
        ValueError: a number is out of range, or (in `start`) `evaluate` cannot be sent.
    """

    def __init__(self, evaluate: Evaluate, count: int, *, silence: float = SILENCE, logs: Path | None = None):
        if count < 1 or not silence > 0:
            raise ValueError(
                f"count is {count} and silence {silence}; expected a whole number from 1 and seconds above 0"
            )
        self._evaluate, self._silence, self._logs = evaluate, silence, logs
        self._count = count
        self._workers: dict[int, _Worker] = {}  # by place
        self._busy: dict[int, _Worker] = {}

    @property
    def room(self) -> int:
        """How many more trials can be started now."""
        return self._count - len(self._busy)

    def start(self, task: Task) -> None:
        """Gives a trial to an idle worker, or to a new one."""
        place = min(set(range(self._count)) - self._busy.keys())
        idle = self._workers.get(place)
        if idle is not None and not idle.take(task):  # the worker was killed while it was idle
            idle.end()
            idle = None
        if idle is None:
            log = None if self._logs is None else self._logs / f"worker_{place}.log"
            idle = self._workers[place] = _Worker(self._evaluate, choose_variables(place, self._count), log)
            idle.take(task)
        self._busy[place] = idle

    def wait(self) -> TrialResult:
        """Waits until a trial has ended or its worker is lost, and returns its result."""
        while True:
            deadline = min(worker.deadline(self._silence) for worker in self._busy.values())
            channels: dict[Any, int] = {worker.channel: place for place, worker in self._busy.items()}
            for channel in connection.wait(list(channels), max(0.0, deadline - time.monotonic())):
                place = channels[channel]
                result = self._busy[place].listen()
                if result is not None:
                    return self._end_trial(place, result)
            for place, worker in self._busy.items():
                if worker.deadline(self._silence) < time.monotonic():
                    worker.process.kill()
                    return self._end_trial(place, worker.make_loss(f"the worker was silent for {self._silence:,.4g} s"))

    def _end_trial(self, place: int, result: TrialResult) -> TrialResult:
        worker = self._busy.pop(place)
        if result.lost or result.fatal:
            del self._workers[place]
            worker.end()
        return result

    def close(self) -> None:
        """Ends the workers without waiting for running trials."""
        for worker in self._workers.values():
            if worker.task is not None:
                worker.process.kill()
            worker.channel.close()
        for worker in self._workers.values():
            worker.end()
        self._workers.clear()
        self._busy.clear()


class _Worker:
    """The parent's end of a worker process, which runs one trial at a time."""

    def __init__(self, evaluate: Evaluate, variables: dict[str, str], log: Path | None):
        context = multiprocessing.get_context("spawn")
        self.channel, other = context.Pipe()
        self.process: Any = context.Process(target=_serve, args=(other, log), daemon=True)
        self.task: Task | None = None
        self._log = log
        self.begun = self.heard = time.monotonic()
        self._ready = False
        with _set_variables(variables):
            self.process.start()
        other.close()
        try:
            self.channel.send(evaluate)
        except OSError:  # the process is dead already, which `listen` will report
            pass
        except Exception as error:  # noqa: BLE001 - pickling may raise anything
            self.process.kill()
            self.end()
            raise ValueError(
                f"{evaluate!r} cannot be sent to another process: {error}. Expected a function of a module or a method "
                "of an object that can be pickled; --workers=0 takes any callable"
            ) from None

    def take(self, task: Task) -> bool:
        """Sends a trial to the process; returns False if the process has died since its last trial."""
        self.begun = self.heard = time.monotonic()
        try:
            self.channel.send(dataclasses.replace(task, report=ignore_report))
        except OSError:
            if self._ready:
                return False
        self.task = task
        return True

    def deadline(self, silence: float) -> float:
        """Returns the time after which the worker counts as lost if it sends nothing."""
        return self.heard + (silence if self._ready else max(silence, _START_SECONDS))

    def listen(self) -> TrialResult | None:
        """Reads one message; returns the trial's result if this was it or the process is dead, otherwise None."""
        assert self.task is not None
        try:
            message = self.channel.recv()
        except (EOFError, OSError):
            self.process.join(_EXIT_SECONDS)
            return self.make_loss(_describe_death(self.process.exitcode))
        self.heard = time.monotonic()
        if isinstance(message, TrialResult):
            self.task = None
            return message
        if message is None:
            self._ready = True
        else:
            self.task.report(*message)
        return None

    def make_loss(self, reason: str) -> TrialResult:
        """Returns the result of a trial whose worker has died; fatal if the worker could not even start."""
        assert self.task is not None
        seconds = time.monotonic() - self.begun
        if not self._ready and self.process.exitcode is not None and self.process.exitcode > 0:
            reason = f"{reason} before it was ready: {_read_last_line(self._log)}"
            return TrialResult(self.task.number, None, reason, fatal=True, seconds=seconds)
        return TrialResult(self.task.number, None, reason, lost=True, seconds=seconds)

    def end(self) -> None:
        """Waits for the process to exit, and kills it if it does not."""
        self.channel.close()
        self.process.join(_EXIT_SECONDS)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.process.close()


def _serve(channel: connection.Connection, log: Path | None) -> None:
    """Worker main loop."""
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):  # TensorFlow's C++ code writes to these too
            os.dup2(file, stream)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches this process too, but the parent handles it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    evaluate = channel.recv()
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        channel.send(None)
        while True:
            report = throttle_reports(lambda *message: channel.send(message), _REPORT_SECONDS)
            channel.send(run_trial(evaluate, dataclasses.replace(channel.recv(), report=report)))


def throttle_reports(send: Report, seconds: float) -> Report:
    """Returns a report that calls `send` at once and then at most every `seconds`."""
    last = -math.inf

    def report(fraction: float, text: str) -> None:
        nonlocal last
        if time.monotonic() - last > seconds:
            last = time.monotonic()
            send(float(fraction), text)

    return report


def _read_last_line(log: Path | None) -> str:
    if log is None or not log.exists():
        return "its error is above"
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"{lines[-1] if lines else 'it printed nothing'} (full log: {log})"


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)  # even in the middle of a trial: its checkpoint is whole, and another worker may have the trial already


def _describe_death(code: int | None) -> str:
    if code is None or code >= 0:
        return f"the worker ended with exit code {code}"
    name = signal.Signals(-code).name
    hint = ", perhaps out of memory" if name in ("SIGKILL", "SIGABRT") else ""
    return f"the worker was killed by signal {-code} ({name}){hint}"


def name_processor() -> str:
    """Returns the name of this machine's processor, or its architecture if the name is not known."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def choose_variables(place: int, count: int) -> dict[str, str]:
    """Returns the environment variables that give the worker at `place` its share of cores and GPUs.

    Variables that the user has set stay. If workers share a GPU, TensorFlow allocates its memory as needed.
    """
    found: dict[str, str] = {}
    if count == 1:
        return found
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found |= {name: str(max(1, cores // count)) for name in _THREADS if name not in os.environ}
    gpus = _list_gpus()
    if gpus:
        first, last = place * len(gpus) // count, (place + 1) * len(gpus) // count
        found["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[first : max(last, first + 1)])
        if count > len(gpus):
            found.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    return found


def _list_gpus() -> list[str]:
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name.strip() for name in chosen.split(",") if name.strip() not in ("", "-1")]
    files = (re.fullmatch(r"nvidia(\d+)", path.name) for path in Path("/dev").glob("nvidia*"))
    return sorted((match[1] for match in files if match), key=int)


@contextlib.contextmanager
def _set_variables(variables: dict[str, str]) -> Iterator[None]:
    """Sets variables for the processes that the block starts, where TensorFlow reads them on import."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
