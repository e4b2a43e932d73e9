"""Trials in processes of their own on this machine: what kills one of them costs a trial's attempt, not the search.

    tuner = Tuner(oracle, None, folder, workers=LocalWorkers(evaluate, 4))

A worker is a fresh Python (spawned, not forked: TensorFlow does not survive a fork) that keeps running trials, so that
its imports are paid once. It ends with the process that started it, also where that one is killed.
"""

import contextlib
import math
import multiprocessing
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from multiprocessing import connection
from pathlib import Path
from typing import Any

from recipes.engine.tasks import Evaluate, Outcome, Parcel, Task, attempt

SILENCE = 1800.0  # s without a word from a trial after which its worker is given up
_REPORT_SECONDS = 0.5  # between two reports of a trial
_START_SECONDS = 600.0  # that a new process has for its imports, if `silence` is less
_FAREWELL_SECONDS = 5.0  # that a worker has to end by itself
_THREADS = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS")


class LocalWorkers:
    """Up to `count` processes of this machine, started when they are needed; see recipes.engine.parallel.Workers.

    Cores and GPUs are shared out evenly: a worker has all of them where it is the only one, so that it computes what
    this process would.

    Args:
        evaluate: as of recipes.engine.tuner.Tuner; a function of a module, or a method of an object that can be sent to
            another process.
        count: at least 1.
        silence: s; a trial that neither ends nor reports for so long has its worker killed.

    Raises:
        ValueError: a number is out of range, or (in `start`) `evaluate` cannot be sent.
    """

    def __init__(self, evaluate: Evaluate, count: int, *, silence: float = SILENCE):
        if count < 1 or not silence > 0:
            raise ValueError(f"count is {count} and silence {silence}; expected a whole number from 1, and seconds")
        self._evaluate, self._silence = evaluate, silence
        self._count = count
        self._workers: dict[int, _Worker] = {}  # by place
        self._busy: dict[int, _Worker] = {}

    @property
    def room(self) -> int:
        """How many more trials can be started now."""
        return self._count - len(self._busy)

    @property
    def processes(self) -> list[int]:
        """The ids of the processes that live."""
        return [worker.process.pid for worker in self._workers.values() if worker.process.is_alive()]

    def start(self, task: Task) -> None:
        """Gives a trial to an idle worker, or to a new one."""
        place = min(set(range(self._count)) - self._busy.keys())
        idle = self._workers.get(place)
        if idle is not None and not idle.take(task):  # it was killed while it had nothing to do
            idle.end()
            idle = None
        if idle is None:
            idle = self._workers[place] = _Worker(self._evaluate, variables_of(place, self._count))
            idle.take(task)
        self._busy[place] = idle

    def wait(self) -> Outcome:
        """Waits until a trial has ended or its worker is lost, and returns what came of it."""
        while True:
            deadline = min(worker.deadline(self._silence) for worker in self._busy.values())
            channels: dict[Any, int] = {worker.channel: place for place, worker in self._busy.items()}
            ready = connection.wait(list(channels), max(0.0, deadline - time.monotonic()))
            for channel in ready:
                place = channels[channel]
                outcome = self._busy[place].listen()
                if outcome is not None:
                    return self._ended(place, outcome)
            for place, worker in self._busy.items():
                if worker.deadline(self._silence) < time.monotonic():
                    worker.process.kill()
                    return self._ended(place, worker.loss(f"the worker said nothing for {self._silence:,.4g} s"))

    def _ended(self, place: int, outcome: Outcome) -> Outcome:
        worker = self._busy.pop(place)
        if outcome.lost or outcome.fatal:
            del self._workers[place]
            worker.end()
        return outcome

    def close(self) -> None:
        """Ends the workers; those in a trial are not waited for."""
        for worker in self._workers.values():
            if worker.task is not None:
                worker.process.kill()
            worker.channel.close()
        for worker in self._workers.values():
            worker.end()
        self._workers.clear()
        self._busy.clear()


class _Worker:
    """This side of a process that runs one trial at a time."""

    def __init__(self, evaluate: Evaluate, variables: dict[str, str]):
        context = multiprocessing.get_context("spawn")
        self.channel, other = context.Pipe()
        self.process: Any = context.Process(target=_serve, args=(evaluate, other), daemon=True)
        self.task: Task | None = None
        self.begun = self.heard = time.monotonic()
        self._ready = False
        try:
            with _set(variables):
                self.process.start()
        except OSError:
            raise
        except Exception as error:  # noqa: BLE001 - what cannot be sent raises whatever it likes
            raise ValueError(
                f"{evaluate!r} cannot be sent to another process: {error}. Expected a function of a module or a method "
                "of an object that can be pickled; --workers=0 takes any"
            ) from None
        finally:
            other.close()

    def take(self, task: Task) -> bool:
        """Sends a trial over; False where nobody is there any more."""
        self.begun = self.heard = time.monotonic()
        try:
            self.channel.send(Parcel.of(task))
        except OSError:
            if self._ready:
                return False
        self.task = task
        return True

    def deadline(self, silence: float) -> float:
        """Returns when it counts as lost, unless it says something before."""
        return self.heard + (silence if self._ready else max(silence, _START_SECONDS))

    def listen(self) -> Outcome | None:
        """Reads one message; returns the trial's outcome where it was that, or where the process is gone."""
        assert self.task is not None
        try:
            message = self.channel.recv()
        except (EOFError, OSError):
            self.process.join(_FAREWELL_SECONDS)
            return self.loss(_death(self.process.exitcode))
        self.heard = time.monotonic()
        if isinstance(message, Outcome):
            self.task = None
            return message
        if message is None:
            self._ready = True
        else:
            self.task.report(*message)
        return None

    def loss(self, reason: str) -> Outcome:
        """Returns the outcome of a trial whose worker is no more."""
        assert self.task is not None
        seconds = time.monotonic() - self.begun
        if not self._ready and self.process.exitcode is not None and self.process.exitcode > 0:
            reason = f"{reason} before it was ready: its error is above"
            return Outcome(self.task.number, None, reason, fatal=True, seconds=seconds)
        return Outcome(self.task.number, None, reason, lost=True, seconds=seconds)

    def end(self) -> None:
        """Sees the process off."""
        self.channel.close()
        self.process.join(_FAREWELL_SECONDS)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.process.close()


def _serve(evaluate: Evaluate, channel: connection.Connection) -> None:
    """Is what the worker's process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches it too, and is the other process's business
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        channel.send(None)
        while True:
            parcel = channel.recv()
            channel.send(attempt(evaluate, parcel, _Reports(channel)))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)  # in the middle of a trial: its checkpoint is whole, and another worker may be at it already


class _Reports:
    """Sends a trial's reports, but not each."""

    def __init__(self, channel: connection.Connection):
        self._channel, self._last = channel, -math.inf

    def __call__(self, share: float, text: str) -> None:
        if time.monotonic() - self._last > _REPORT_SECONDS:
            self._last = time.monotonic()
            self._channel.send((float(share), text))


def _death(code: int | None) -> str:
    if code is None or code >= 0:
        return f"the worker ended with exit code {code}"
    name = signal.Signals(-code).name
    hint = ", perhaps for want of memory" if name in ("SIGKILL", "SIGABRT") else ""
    return f"the worker was ended by signal {-code} ({name}){hint}"


def variables_of(place: int, count: int) -> dict[str, str]:
    """Returns the environment variables that give the worker of this place its share of cores and GPUs.

    What the user has set stays. Fewer GPUs than workers are shared, and TensorFlow then takes memory as it needs it.
    """
    found: dict[str, str] = {}
    if count == 1:
        return found
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found |= {name: str(max(1, cores // count)) for name in _THREADS if name not in os.environ}
    gpus = _gpus()
    if gpus:
        first, last = place * len(gpus) // count, (place + 1) * len(gpus) // count
        found["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[first : max(last, first + 1)])
        if count > len(gpus):
            found.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    return found


def _gpus() -> list[str]:
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name.strip() for name in chosen.split(",") if name.strip() not in ("", "-1")]
    files = (re.fullmatch(r"nvidia(\d+)", path.name) for path in Path("/dev").glob("nvidia*"))
    return sorted((match[1] for match in files if match), key=int)


@contextlib.contextmanager
def _set(variables: dict[str, str]) -> Iterator[None]:
    """Sets variables for the processes that the block starts: TensorFlow reads them when it is imported there."""
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
