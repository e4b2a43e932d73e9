"""Trials on a Ray cluster: Ray finds each a node with its cores and GPUs, and runs it again where the node dies.

    export RAY_ADDRESS=...          # of the cluster; without, Ray starts on this machine alone
    python -m recipes.amoebanet --workers=ray --trial_gpus=1

Oracle and journal are in the process that makes this, and so is what decides: a cluster that dies costs the trials
that ran. Nodes need this package, its data, and the search's folder on a disk that they share, or trials that move to
another node begin anew.
"""

import dataclasses
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recipes.engine.workers import SILENCE, Evaluate, Outcome, Task, attempt, ignore_report

_LOCAL_OBJECTS = 100 * 2**20  # bytes of shared memory: what travels is small
_VARIABLES = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # a trial without GPUs keeps its environment
    "RAY_raylet_start_wait_time_s": "300",  # a busy machine takes longer to start Ray than the usual 60 s
}
_REPORT_SECONDS = 2.0  # between two reports of a trial
_LISTEN_SECONDS = 1.0  # between two looks at the reports, while no trial ends
_ROOM_SECONDS = 10.0  # between two looks at the size of the cluster


class RayWorkers:
    """Trials as tasks of Ray; see recipes.engine.workers.Workers. Joins RAY_ADDRESS, or starts Ray on this machine.

    Args:
        evaluate: as of recipes.engine.tuner.Tuner; it must be what can be sent to another process.
        cpus, gpus: that Ray gives to a trial; a share of a GPU is a number below 1.
        at_once: trials that Ray has at a time; what the cluster has room for unless given. A larger number has a
            cluster that grows by itself do so.
        retries: how often Ray itself runs a trial again whose process or node died.
        silence: s; a trial that has begun and neither ends nor reports for so long is cancelled and counts as lost.
        cores: of a Ray that is started here; as many as the machine has unless given.

    Raises:
        ImportError: Ray is not installed.
        ConnectionError: nothing answers at RAY_ADDRESS.
    """

    def __init__(
        self,
        evaluate: Evaluate,
        *,
        cpus: float = 1.0,
        gpus: float = 0.0,
        at_once: int | None = None,
        retries: int = 1,
        silence: float = SILENCE,
        cores: int | None = None,
    ):
        self._ray = ray = _import_ray()
        self._own = not ray.is_initialized()
        if self._own:
            _start(ray, cores)
        self._needs = {"CPU": cpus, "GPU": gpus}
        self._at_once, self._silence = at_once, silence
        self._size, self._sized = 0, -float("inf")
        self._reports = ray.remote(_Reports).options(num_cpus=0).remote()
        self._evaluate = ray.put(evaluate)
        options = {"num_cpus": cpus, "num_gpus": gpus, "max_retries": retries}
        self._function = ray.remote(_run_task).options(**options)
        self._running: dict[Any, Task] = {}  # reference of the result -> task
        self._begun: dict[int, float] = {}
        self._heard: dict[int, float] = {}  # number -> when its last report came; those that wait for a node have none
        self._listened = time.monotonic()

    @property
    def room(self) -> int:
        """How many more trials can be started now."""
        return self._most() - len(self._running)

    def _most(self) -> int:
        if self._at_once is not None:
            return self._at_once
        if time.monotonic() - self._sized > _ROOM_SECONDS:
            has = self._ray.cluster_resources()
            fits = [int(has.get(name, 0) / need) for name, need in self._needs.items() if need > 0]
            self._size = max(1, min(fits)) if fits else os.cpu_count() or 1
            self._sized = time.monotonic()
        return self._size

    def start(self, task: Task) -> None:
        """Hands a trial to Ray."""
        travels = dataclasses.replace(task, folder=Path(task.folder).absolute(), report=ignore_report)
        reference = self._function.remote([self._evaluate], travels, self._reports)
        self._running[reference] = task
        self._begun[task.number] = time.monotonic()

    def wait(self) -> Outcome:
        """Waits until a trial has ended or is lost, and returns what came of it."""
        while True:
            ready, _ = self._ray.wait(list(self._running), num_returns=1, timeout=_LISTEN_SECONDS)
            if ready:
                return self._ended(ready[0])
            if time.monotonic() - self._listened > _LISTEN_SECONDS:
                self._listen()
                for reference, task in self._running.items():
                    if time.monotonic() - self._heard.get(task.number, float("inf")) > self._silence:
                        self._ray.cancel(reference, force=True)
                        reason = f"the worker said nothing for {self._silence:,.4g} s"
                        return self._forget(reference)._replace(reason=reason, lost=True)

    def _listen(self) -> None:
        """Takes in what trials have reported since the last time."""
        self._listened = time.monotonic()
        numbers = {task.number: task for task in self._running.values()}
        for number, fraction, text in self._ray.get(self._reports.take.remote()):
            if number in numbers:
                self._heard[number] = time.monotonic()
                numbers[number].report(fraction, text)

    def _ended(self, reference: Any) -> Outcome:
        lost = self._forget(reference)
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:  # raised around the trial: what was sent could not be read
            return lost._replace(reason=" ".join(str(error).split())[-300:], fatal=True)
        except self._ray.exceptions.RayError as error:  # Ray has tried again as often as it was told to
            reason = str(error).strip().partition("\n")[0]
            return lost._replace(reason=f"the worker died: {type(error).__name__}: {reason}")

    def _forget(self, reference: Any) -> Outcome:
        number = self._running.pop(reference).number
        self._heard.pop(number, None)
        return Outcome(number, None, seconds=time.monotonic() - self._begun.pop(number))

    def close(self) -> None:
        """Cancels what runs, and ends a Ray that was started here."""
        for reference in self._running:
            self._ray.cancel(reference, force=True)
        self._running.clear()
        self._ray.kill(self._reports)
        if self._own:
            self._ray.shutdown()


class _Reports:
    """Keeps the reports of trials all over the cluster until the search takes them."""

    def __init__(self):
        self._last: dict[int, tuple[float, str]] = {}

    def put(self, number: int, fraction: float, text: str) -> None:
        """Keeps a report; the one before it is of no use any more."""
        self._last[number] = (fraction, text)

    def take(self) -> Sequence[tuple[int, float, str]]:
        """Returns (number, fraction, text) of those that have come since the last call."""
        found = [(number, fraction, text) for number, (fraction, text) in self._last.items()]
        self._last.clear()
        return found


_known: dict[str, Evaluate] = {}  # in a worker's process: images and the like are read once


def _run_task(reference: Sequence[Any], task: Task, reports: Any) -> Outcome:
    """Runs one trial, on the node that Ray has chosen; `reference` is in a list so that Ray leaves it alone."""
    identity = reference[0].hex()
    if identity not in _known:
        _known.clear()
        _known[identity] = _import_ray().get(reference[0])
    last = time.monotonic()
    reports.put.remote(task.number, 0.0, "started")

    def report(fraction: float, text: str) -> None:
        nonlocal last
        if time.monotonic() - last > _REPORT_SECONDS:
            last = time.monotonic()
            reports.put.remote(task.number, float(fraction), text)

    return attempt(_known[identity], dataclasses.replace(task, report=report))


def _import_ray() -> Any:
    for name, value in _VARIABLES.items():  # Ray reads them when it is imported
        os.environ.setdefault(name, value)
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError('workers=ray needs Ray, which is not installed: pip install "ray[default]"') from error
    return ray


def _start(ray: Any, cores: int | None) -> None:
    """Joins the cluster at RAY_ADDRESS, or starts a small one here that this process takes with it."""
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    address = os.environ.get("RAY_ADDRESS")
    if address:
        try:
            ray.init(address=address, **quiet)
        except (ConnectionError, RuntimeError) as error:
            raise ConnectionError(
                f"no Ray cluster answers at RAY_ADDRESS={address}: {' '.join(str(error).split())[:200]}. "
                "Start one (docs/clusters.md), or unset RAY_ADDRESS for this machine alone"
            ) from error
        return
    ray.init(address="local", num_cpus=cores, object_store_memory=_LOCAL_OBJECTS, include_dashboard=False, **quiet)
