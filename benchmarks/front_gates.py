"""NSGA-II and random search on tables of trained networks: hypervolumes of their fronts, mean +- standard error.

    python -m benchmarks.front_gates nas-bench-201_cifar10_12epochs.csv nas-bench-macro_cifar10.json tinynas
    python -m benchmarks.front_gates tinynas --objectives=val_accuracy:max,macs:min,sram:min --seeds=50

The front is selected by the validation accuracies that the search saw, and its hypervolume is measured with test
accuracies, as a share of the whole table's. The reference is worse than the worst values of the table's front by a
tenth of its range. One or two minutes per table on 2 cores.
"""

import functools
from collections.abc import Mapping, Sequence

import keras_tuner
import numpy as np

from benchmarks.machine import describe_machine, make_parser
from recipes import tables
from recipes.cards.compare import find_front, frame_front, keep_front, measure_hypervolume
from recipes.engine.config import read_directions
from recipes.oracles import NSGA2, RandomSearch, SearchOracle
from recipes.tables import Table

FIRST_SEED = 1000  # lower seeds were used to choose the settings


class FrontMeter:
    """Measures hypervolumes against that of the whole table.

    Args:
        table: with a metric for each objective.
        objectives: metric -> "max" or "min".
    """

    def __init__(self, table: Table, objectives: Mapping[str, str]):
        self.objectives = objectives
        self._signs = np.array([1.0 if direction == "max" else -1.0 for direction in objectives.values()])
        known = np.isfinite(table.validation)
        columns = [table.test if name == "val_accuracy" else table.metrics[name] for name in objectives]
        whole = np.unique(np.stack([column[known] for column in columns], axis=1) * self._signs, axis=0)
        front = keep_front(whole)
        self._reference, self._box = frame_front(whole)
        self.front = len(front)
        self._whole = self._measure(front)

    def _measure(self, points: np.ndarray) -> float:
        return measure_hypervolume((points - self._reference) / self._box, [0.0] * len(self._signs))

    def measure(self, metrics: Sequence[Mapping[str, float]], test: Sequence[float]) -> float:
        """Returns the hypervolume of these networks' front with test accuracies, as a share of the table's."""
        points = np.array([[each[name] for name in self.objectives] for each in metrics]) * self._signs
        found = find_front(points)
        for column, name in enumerate(self.objectives):
            if name == "val_accuracy":
                points[:, column] = test
        return self._measure(points[found]) / self._whole


def search(oracle: SearchOracle, table: Table, budgets: Sequence[int], meter: FrontMeter) -> list[float]:
    """Returns the hypervolume after each number of evaluations in `budgets`."""
    found: list[dict[str, float]] = []
    test: list[float] = []
    while len(found) < max(budgets) and (proposal := oracle.ask(len(found))) is not None:
        metrics = table.measure(proposal.values)
        oracle.tell(len(found), metrics[oracle.objective.name], "", metrics)
        found.append(metrics)
        test.append(table.evaluate(proposal.values).test)
    return [meter.measure(found[:budget], test[:budget]) for budget in budgets]


def main() -> None:
    """Runs both searches on each table and prints a row for each."""
    parser = make_parser(__doc__, smoke="two seeds and a few evaluations, as in the tests")
    parser.add_argument("tables", nargs="*", help="files of recipes.tables, or names of shipped ones")
    parser.add_argument("--objectives", default="val_accuracy:max,macs:min", help="metrics of the tables")
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--budgets", type=int, nargs="+", default=[50, 100, 200], help="numbers of evaluations")
    parser.add_argument("--populations", type=int, nargs="+", default=[8, 20], help="of NSGA-II")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.seeds, arguments.budgets, arguments.populations = 2, [8], [4]
    if not arguments.tables:  # as in `make bench`
        parser.print_help()
        return
    print(f"{describe_machine()}; {arguments.seeds} seeds, {arguments.objectives}")
    for path in arguments.tables:
        table = tables.load(path)
        objectives = read_directions(
            "objectives", tuple(arguments.objectives.split(",")), ("val_accuracy", *table.metrics)
        )
        meter = FrontMeter(table, objectives)
        several = [keras_tuner.Objective(*each) for each in objectives.items()]
        common = {"hyperparameters": table.hyperparameters(), "key": table.key, "check": table.check}
        makers = {"random": functools.partial(RandomSearch, several[0], **common)} | {
            f"nsga2, {size}": functools.partial(NSGA2, several, population=size, **common)
            for size in arguments.populations
        }
        budgets = [min(budget, table.size) for budget in arguments.budgets]
        seeds = range(FIRST_SEED, FIRST_SEED + arguments.seeds)
        print(f"\n{table.name}: {meter.front} networks on its front; % of its hypervolume")
        print(f"{'':16}" + "".join(f"{budget:>16}" for budget in budgets))
        for name, make in makers.items():
            found = 100 * np.array([search(make(seed=seed), table, budgets, meter) for seed in seeds])
            means, errors = found.mean(0), found.std(0, ddof=1) / np.sqrt(len(found))
            cells = [f"{mean:.2f} +- {error:.2f}" for mean, error in zip(means, errors, strict=True)]
            print(f"{name:16}" + "".join(f"{cell:>16}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
