"""How a tabular search scales with workers on Ray, and how many GPU workers one oracle could feed; two minutes.

    python -m benchmarks.ray_scaling                       # 2,000 trials of 0.1 s on 8 workers
    python -m benchmarks.ray_scaling --trials=500 --seconds=0.5

A trial sleeps and then scores a cell by a formula, so that eight workers fit on two cores. The ideal is
trials x seconds / workers; the rest is Ray's overhead and that of the oracle with its journal, whose share is printed.
The second part runs only the oracle and the journal.
"""

import importlib.util
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras_tuner

from benchmarks.machine import describe_machine, make_parser
from recipes.engine import spaces, tuner
from recipes.engine.ray import RayWorkers
from recipes.engine.workers import Task
from recipes.oracles import AgingEvolution

SEED = 0
SPACE = spaces.amoebanet(nodes=5)
WORKERS_ON_PAPER = 1000
MINUTES_OF_A_TRIAL = (1, 10, 60)  # of a child network on a GPU; see docs/clusters.md


def score(values: Mapping[str, Any]) -> float:
    """Returns a cheap number that depends on each choice."""
    return float(sum(len(str(value)) * (place % 5 + 1) for place, value in enumerate(values.values())))


class Sleeping:
    """A trial that takes `seconds` but no core."""

    def __init__(self, seconds: float):
        self.seconds = seconds

    def __call__(self, task: Task) -> float:
        """Sleeps and returns the score."""
        time.sleep(self.seconds)
        return score(task.values)


def rest() -> None:
    """Occupies a worker for two seconds."""
    time.sleep(2.0)


def make_oracle(trials: int) -> AgingEvolution:
    """Returns aging evolution at the paper's scale."""
    return AgingEvolution(
        keras_tuner.Objective("score", "max"), trials, SPACE.hyperparameters(), seed=SEED, kinds=SPACE.kinds
    )


def measure_scaling(trials: int, seconds: float, workers: int, at_once: int) -> None:
    """Prints the speed-up with `workers` workers."""
    import ray

    ray_workers = RayWorkers(Sleeping(seconds), cores=workers, at_once=at_once)
    with tempfile.TemporaryDirectory() as folder:
        # Ray starts its processes with the first tasks, a one-time cost that is not measured here.
        warm = ray.remote(rest)
        ray.get([warm.remote() for _ in range(workers)])
        runner = tuner.Tuner(make_oracle(trials), None, Path(folder) / "search", workers=ray_workers)
        start = time.perf_counter()
        runner.search()
        took = time.perf_counter() - start
    ideal = trials * seconds / workers
    print(f"{trials:,} trials of {seconds} s on {workers} workers, {at_once} given to Ray at a time: {took:.1f} s, "
          f"ideal {ideal:.1f} s")  # fmt: skip
    print(f"speed-up {trials * seconds / took:.2f} of {workers}: {ideal / took:.0%} of the ideal one")
    own = took - runner.seconds_waited
    print(
        f"oracle, journal and hand-out: {own:.1f} s, {own / took:.1%} of the time, {own / trials * 1e3:.2f} ms a trial"
    )


def estimate_rate(trials: int) -> None:
    """Prints how many trials per hour one oracle proposes, learns and journals, and how many GPUs would train."""
    with tempfile.TemporaryDirectory() as folder:
        runner = tuner.Tuner(make_oracle(trials), lambda task: score(task.values), Path(folder) / "search")
        start = time.process_time()
        runner.search()
        seconds = (time.process_time() - start) / trials
    most = 3600 / seconds
    print(f"oracle and journal alone: {seconds * 1e3:.2f} ms of processor time a trial over {trials:,} trials, "
          f"{most:,.0f} trials an hour")  # fmt: skip
    for minutes in MINUTES_OF_A_TRIAL:
        asked = WORKERS_ON_PAPER * 60 / minutes
        print(f"{WORKERS_ON_PAPER:,} GPU workers, {minutes} min a trial: {asked:,.0f} trials an hour, "
              f"{asked / most:.2%} of that")  # fmt: skip


def main() -> None:
    """Runs both parts and prints the results."""
    parser = make_parser(__doc__, smoke="20 trials of 0.01 s on 2 workers")
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=0.1)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument(
        "--at_once", type=int, default=0, help="trials submitted to Ray at a time; 0: as many as workers"
    )
    options = parser.parse_args()
    if options.smoke:
        options.trials, options.seconds, options.workers = 20, 0.01, 2
    print(f"{describe_machine('keras-tuner')}; seed {SEED}")
    if importlib.util.find_spec("ray") is None:
        print('Ray is not installed (pip install "ray[default]"): no scaling')
    else:
        measure_scaling(options.trials, options.seconds, options.workers, options.at_once or options.workers)
    estimate_rate(options.trials)


if __name__ == "__main__":
    main()
