"""The cost of a tabular trial with its state on disk: 20,000 trials of aging evolution with 32 choices; half a minute.

Prints the time per trial in parts of the search, the size on disk, and the time for KerasTuner's random search over 200
trials in the same run.
"""

import itertools
import tempfile
import time
from pathlib import Path

import keras_tuner

from benchmarks.machine import describe_machine, make_parser
from benchmarks.ray_scaling import score
from recipes.engine import spaces, tuner
from recipes.oracles import AgingEvolution

TRIALS, POPULATION, SAMPLE, SEED = 20_000, 100, 25, 0
MARKS = (100, 1_000, 2_000, 5_000, 10_000, 15_000, 20_000)
SPACE = spaces.amoebanet(nodes=4)


class PlainTuner(keras_tuner.Tuner):
    """A tuner of KerasTuner's own kind."""

    def run_trial(self, trial, *args, **kwargs):
        """Returns the score."""
        return {"score": score(trial.hyperparameters.values)}


def main() -> None:
    """Runs both and prints the results."""
    trials = 1000 if make_parser(__doc__, smoke="1,000 trials of ours").parse_args().smoke else TRIALS
    print(f"{describe_machine('keras-tuner')}; seed {SEED}")
    objective = keras_tuner.Objective("score", "max")
    times: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        oracle = AgingEvolution(
            objective, trials, SPACE.hyperparameters(), seed=SEED, population=POPULATION, sample=SAMPLE,
            kinds=SPACE.kinds,
        )  # fmt: skip
        start = time.perf_counter()
        runner = tuner.Tuner(
            oracle,
            lambda task: score(task.values),
            Path(folder) / "own",
            observe=lambda status: times.setdefault(status.done, time.perf_counter() - start),
        )
        runner.search()
        for before, after in itertools.pairwise(mark for mark in MARKS if mark <= trials):
            print(
                f"trials {before:>6,} to {after:>6,}: {(times[after] - times[before]) / (after - before) * 1e3:.2f} ms"
            )
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        print(f"all: {times[trials] / trials * 1e3:.2f} ms a trial, {size / 1e6:.1f} MB on disk")
        plain = keras_tuner.oracles.RandomSearchOracle(objective, 200, hyperparameters=SPACE.hyperparameters(), seed=1)
        other = PlainTuner(oracle=plain, directory=folder, project_name="plain")
        start = time.perf_counter()
        other.search(verbose=0)
        seconds = time.perf_counter() - start
        print(f"KerasTuner's random search, 200 trials: {seconds / 200 * 1e3:.2f} ms a trial; "
              f"ratio {seconds / 200 / (times[trials] / trials):.0f}")  # fmt: skip


if __name__ == "__main__":
    main()
