"""A search whose trials run somewhere else: the oracle and its journal stay here and learn in the order trials end.

Nothing but that order depends on the number of workers. With one worker it is the order of the trials, and the search
equals the one in this process.
"""

import collections
import errno
import time
from collections.abc import Callable
from typing import Any, Protocol

from recipes.engine.config import PlaceConfig
from recipes.engine.tasks import Evaluate, Outcome, Task


class Workers(Protocol):
    """Where trials run; recipes.engine.workers and recipes.engine.ray have the two kinds."""

    @property
    def room(self) -> int:
        """How many more trials can be started now."""
        ...

    def start(self, task: Task) -> None:
        """Gives a trial out."""
        ...

    def wait(self) -> Outcome:
        """Waits until a trial has ended or its worker is lost, and returns what came of it."""
        ...

    def close(self) -> None:
        """Ends whatever runs."""
        ...


class Runner(Protocol):
    """What recipes.engine.tuner.Tuner offers, and says more about."""

    at_once: int
    seconds_waited: float

    def unfinished(self) -> list[Any]:
        """Returns the trials that an earlier process left."""
        ...

    def ask(self) -> Any | None:
        """Returns a new trial, or None while there is none."""
        ...

    def task(self, trial: Any, report: Callable[[float, str], None]) -> Task:
        """Returns what a trial's worker has to know."""
        ...

    def lost(self, trial: Any, reason: str) -> int:
        """Returns how often a trial's worker was lost, this time included."""
        ...

    def end(self, trial: Any, outcome: Outcome) -> None:
        """Takes in a result."""
        ...

    def tell(self, share: float, text: str) -> None:
        """Shows how far the search is."""
        ...


def search(runner: Runner, workers: Workers, retries: int) -> None:
    """Runs trials until the oracle has no more; those that an earlier process left come first.

    An oracle that answers IDLE, such as a progressive one before the end of its level, is asked again when a trial
    has ended. A trial is over for good once its worker was lost `retries` + 1 times.

    Raises:
        OSError: a trial met what every other would meet too, such as a full disk.
    """
    waiting = collections.deque(runner.unfinished())
    running: dict[int, Any] = {}
    shares: dict[int, float] = {}

    def start(trial: Any) -> None:
        def report(share: float, text: str) -> None:
            shares[task.number] = share
            runner.tell(sum(shares.values()), text if len(running) == 1 else f"{len(running)} at once")

        task = runner.task(trial, report)
        workers.start(task)
        running[task.number] = trial
        shares[task.number] = 0.0

    while True:
        while workers.room > 0:
            trial = waiting.popleft() if waiting else runner.ask()
            if trial is None:
                break
            start(trial)
        if not running:
            return
        runner.at_once = len(running)
        begun = time.monotonic()
        outcome = workers.wait()
        runner.seconds_waited += time.monotonic() - begun
        trial = running.pop(outcome.number)
        del shares[outcome.number]
        if outcome.fatal:
            full = "" if "No space" not in outcome.reason else " Free some space."
            raise OSError(errno.EIO, f"trial {outcome.number} ended the search: {outcome.reason}.{full} What has ended "
                          "is kept; the same command goes on")  # fmt: skip
        if outcome.lost:
            times = runner.lost(trial, outcome.reason)
            if times <= retries:
                waiting.appendleft(trial)
                continue
            outcome = outcome._replace(reason=f"given out {times} times, in the end {outcome.reason}")
        runner.end(trial, outcome)


def make_workers(config: PlaceConfig, evaluate: Evaluate) -> Workers | None:
    """Returns the workers that run `evaluate` where `config` says, None for this process.

    Raises:
        ImportError: Ray is not installed.
        ConnectionError: the cluster at RAY_ADDRESS does not answer.
    """
    if not config.runs_elsewhere:
        return None
    if config.workers != "ray":
        from recipes.engine.workers import LocalWorkers

        return LocalWorkers(evaluate, int(config.workers), silence=config.silence)
    from recipes.engine.ray import RayWorkers

    return RayWorkers(
        evaluate,
        cpus=config.trial_cpus,
        gpus=config.trial_gpus,
        at_once=config.trials_at_once,
        retries=config.retries,
        silence=config.silence,
    )
