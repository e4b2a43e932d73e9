"""One trial on its way: what goes to where it runs, and what comes back. Needs the standard library alone."""

import dataclasses
import errno
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

_LONGEST_REASON = 300  # characters of an exception's text
_DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclasses.dataclass(frozen=True)
class Task:
    """One trial as `evaluate` sees it.

    Attributes:
        number: from 0.
        values: decision -> choice.
        seed: of this trial alone; the same whenever the trial is run again.
        folder: for its checkpoints; not made yet. A killed trial finds there what it had written.
        report: to be called with the finished share of the trial (0 to 1) and a few words on what is running.
    """

    number: int
    values: Mapping[str, Any]
    seed: int
    folder: Path
    report: Callable[[float, str], None]


Evaluate = Callable[[Task], float | Mapping[str, float]]


class Parcel(NamedTuple):
    """A task without its `report`, which cannot travel to another process."""

    number: int
    values: dict[str, Any]
    seed: int
    folder: Path

    @classmethod
    def of(cls, task: Task) -> "Parcel":
        """Returns what of `task` travels."""
        return cls(task.number, dict(task.values), task.seed, task.folder)

    def task(self, report: Callable[[float, str], None]) -> Task:
        """Returns the task again."""
        return Task(*self, report)


class Outcome(NamedTuple):
    """How an attempt at a trial ended, as another process tells it.

    Attributes:
        number: of the trial.
        results: what `evaluate` returned; None where it did not.
        reason: of the failure.
        lost: the worker died or fell silent; the trial may do better elsewhere.
        fatal: no other trial would do better: the disk is full, say.
        seconds: of the attempt.
    """

    number: int
    results: float | Mapping[str, float] | None
    reason: str = ""
    lost: bool = False
    fatal: bool = False
    seconds: float = 0.0


class FailedElsewhereError(Exception):
    """A trial failed in another process; the text is that of the exception there, its type included."""


def reason_of(error: BaseException) -> str:
    """Returns an exception in one line: its type and the beginning of its text."""
    text = " ".join(str(error).split())[:_LONGEST_REASON]
    if isinstance(error, FailedElsewhereError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def is_fatal(error: BaseException) -> bool:
    """Says whether every other trial would fail of this too, so that the search has to stop and keep its state."""
    named_so = any(base.__name__ == "FatalError" for base in type(error).__mro__)  # keras_tuner's
    return named_so or (isinstance(error, OSError) and error.errno in _DISK_IS_FULL)


def attempt(evaluate: Evaluate, parcel: Parcel, report: Callable[[float, str], None]) -> Outcome:
    """Runs a trial in the process that calls this; whatever it raises is in the outcome."""
    begun = time.monotonic()
    try:
        results = evaluate(parcel.task(report))
        if isinstance(results, Mapping):
            results = {name: float(value) for name, value in results.items()}
        else:
            results = float(results)
        return Outcome(parcel.number, results, seconds=time.monotonic() - begun)
    except Exception as error:  # noqa: BLE001 - whatever a network fails of, the next one may not
        seconds = time.monotonic() - begun
        return Outcome(parcel.number, None, reason_of(error), fatal=is_fatal(error), seconds=seconds)
