"""Trials on a Ray cluster: Ray finds a node with enough cores and GPUs for each, and reruns a trial if its node dies.

    export RAY_ADDRESS=...          # of the cluster; if unset, Ray starts on this machine alone
    python -m recipes.amoebanet --workers=ray --trial_gpus=1

Oracle, journal and all decisions stay in the process that creates RayWorkers: a cluster that dies costs only the trials
that were running. Nodes need this package, its data, and the search's folder on a shared disk; without the shared disk,
a trial that moves to another node starts over.
"""

import dataclasses
import functools
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recipes.engine.workers import SILENCE, Evaluate, Task, TrialResult, ignore_report, run_trial, throttle_reports

_LOCAL_OBJECTS = 100 * 2**20  # bytes of shared memory; the objects sent are small
_VARIABLES = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray leaves CUDA_VISIBLE_DEVICES alone in trials without GPUs
    "RAY_raylet_start_wait_time_s": "300",  # a busy machine takes longer to start Ray than the default 60 s
}
_REPORT_SECONDS = 2.0  # between two reports of a trial
_LISTEN_SECONDS = 1.0  # between two reads of the reports, while no trial ends
_ROOM_SECONDS = 10.0  # between two queries of the cluster's size


class RayWorkers:
    """Runs trials as Ray tasks; see recipes.engine.workers.Workers. Joins RAY_ADDRESS, or starts Ray on this machine.

    Args:
        evaluate: see recipes.engine.tuner.Tuner; must be picklable.
        cpus, gpus: that Ray gives each trial; a number below 1 is a share of a GPU.
        at_once: trials submitted to Ray at a time; by default as many as the cluster has room for. A larger number
            makes an autoscaling cluster grow.
        retries: how often Ray itself reruns a trial whose process or node died.
        silence: s; a trial that has started but neither ends nor reports for this long is cancelled and counts as lost.
        cores: of a Ray that is started here; by default all cores of the machine.

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
        self._heard: dict[int, float] = {}  # number -> time of its last report; trials that wait for a node have none
        self._listened = time.monotonic()

    @property
    def room(self) -> int:
        """How many more trials can be started now."""
        return self._count_places() - len(self._running)

    def _count_places(self) -> int:
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
        sent = dataclasses.replace(task, folder=Path(task.folder).absolute(), report=ignore_report)
        reference = self._function.remote([self._evaluate], sent, self._reports)
        self._running[reference] = task
        self._begun[task.number] = time.monotonic()

    def wait(self) -> TrialResult:
        """Waits until a trial has ended or is lost, and returns its result."""
        while True:
            ready, _ = self._ray.wait(list(self._running), num_returns=1, timeout=_LISTEN_SECONDS)
            if ready:
                return self._collect(ready[0])
            if time.monotonic() - self._listened > _LISTEN_SECONDS:
                self._listen()
                for reference, task in self._running.items():
                    if time.monotonic() - self._heard.get(task.number, float("inf")) > self._silence:
                        self._ray.cancel(reference, force=True)
                        reason = f"the worker was silent for {self._silence:,.4g} s"
                        return self._forget(reference)._replace(reason=reason, lost=True)

    def _listen(self) -> None:
        """Passes on what trials have reported since the last call."""
        self._listened = time.monotonic()
        numbers = {task.number: task for task in self._running.values()}
        for number, fraction, text in self._ray.get(self._reports.take.remote()):
            if number in numbers:
                self._heard[number] = time.monotonic()
                numbers[number].report(fraction, text)

    def _collect(self, reference: Any) -> TrialResult:
        lost = self._forget(reference)
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:  # raised outside the trial: the task could not be unpickled
            return lost._replace(reason=" ".join(str(error).split())[-300:], fatal=True)
        except self._ray.exceptions.RayError as error:  # Ray has already retried `retries` times
            reason = str(error).strip().partition("\n")[0]
            return lost._replace(reason=f"the worker died: {type(error).__name__}: {reason}")

    def _forget(self, reference: Any) -> TrialResult:
        number = self._running.pop(reference).number
        self._heard.pop(number, None)
        return TrialResult(number, None, seconds=time.monotonic() - self._begun.pop(number))

    def close(self) -> None:
        """Cancels the running trials, and shuts Ray down if it was started here."""
        for reference in self._running:
            self._ray.cancel(reference, force=True)
        self._running.clear()
        self._ray.kill(self._reports)
        if self._own:
            self._ray.shutdown()


class _Reports:
    """Ray actor that collects the reports of trials across the cluster until the search takes them."""

    def __init__(self):
        self._last: dict[int, tuple[float, str]] = {}

    def put(self, number: int, fraction: float, text: str) -> None:
        """Keeps a report in place of the trial's previous report."""
        self._last[number] = (fraction, text)

    def take(self) -> Sequence[tuple[int, float, str]]:
        """Returns (number, fraction, text) of the trials that have reported since the last call."""
        found = [(number, fraction, text) for number, (fraction, text) in self._last.items()]
        self._last.clear()
        return found


_known: dict[str, Evaluate] = {}  # in a worker's process, so that images and the like are read once


def _run_task(reference: Sequence[Any], task: Task, reports: Any) -> TrialResult:
    """Runs one trial, on the node that Ray has chosen; `reference` is in a list so that Ray does not resolve it."""
    identity = reference[0].hex()
    if identity not in _known:
        _known.clear()
        _known[identity] = _import_ray().get(reference[0])
    report = throttle_reports(functools.partial(reports.put.remote, task.number), _REPORT_SECONDS)
    report(0.0, "started")
    return run_trial(_known[identity], dataclasses.replace(task, report=report))


def _import_ray() -> Any:
    for name, value in _VARIABLES.items():  # Ray reads them on import
        os.environ.setdefault(name, value)
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError('workers=ray needs Ray, which is not installed: pip install "ray[default]"') from error
    return ray


def _start(ray: Any, cores: int | None) -> None:
    """Joins the cluster at RAY_ADDRESS, or starts a small one here that ends with this process."""
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
