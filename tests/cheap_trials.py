"""Trials that cost nothing and go wrong in every way. A light module of its own: each worker process imports it."""

import errno
import os
import resource
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recipes.engine.workers import Task


def score_of(values: Mapping[str, Any]) -> float:
    return float(sum(sum(str(value).encode()) * (place + 1) for place, value in enumerate(values.values())))


def score(task: Task) -> float:
    return score_of(task.values)


def score_and_size(task: Task) -> dict[str, float]:
    return {"score": score(task), "size": float(sum(len(str(value)) for value in task.values.values()))}


def slow(task: Task) -> float:
    time.sleep(0.2)
    return score(task)


def interrupted(task: Task, number: int) -> float:
    if task.number == number:
        raise KeyboardInterrupt
    return score(task)


def raises_in_trial_3(task: Task) -> float:
    if task.number == 3:
        raise ValueError("bad shape (0, 3)")
    return score(task)


def dies_in_trials_3_and_6(task: Task) -> float:
    first = not task.folder.exists()
    if task.number == 3 or (task.number == 6 and first):
        task.folder.mkdir(parents=True, exist_ok=True)
        os.kill(os.getpid(), signal.SIGKILL)
    return score(task)


def hangs_in_trial_2(task: Task) -> float:
    if task.number == 2:
        time.sleep(600)
    return score(task)


def prints(task: Task) -> float:
    print(f"trial {task.number}", flush=True)
    return score(task)


def slow_but_talking(task: Task) -> float:
    for step in range(8):
        task.report(step / 8, "working")
        time.sleep(0.6)
    return score(task)


def needs_too_much_in_trial_1(task: Task) -> float:
    if task.number == 1:
        limits = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (2**30, limits[1]))
        try:
            bytearray(2**31)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, limits)
    return score(task)


def joins_a_group_and_fills_it_in_trial_1(task: Task) -> float:
    if task.number == 1:
        Path(os.environ["CHEAP_TRIALS_GROUP"]).write_text(str(os.getpid()))
        filled = [b"x" * 2**20 for _ in range(400)]
        return float(len(filled))
    return score(task)


def finds_the_disk_full_in_trial_3(task: Task) -> float:
    if task.number == 3:
        raise OSError(errno.ENOSPC, "No space left on device")
    return score(task)


class Unreadable:
    """Cannot be made again in another process."""

    def __call__(self, task: Task) -> float:
        return score(task)

    def __reduce__(self):
        return _fail, ()


def _fail():
    raise ValueError("no such data set")
