"""Successive halving against plain searches for the same number of epochs, on tables; and how well early epochs rank.

    python -m benchmarks.halving_gates nas-bench-201_cifar10_12epochs.csv
    python -m benchmarks.halving_gates nas-bench-201_cifar10_12epochs.csv --overhead=1   # a trial costs an epoch more
    python -m benchmarks.halving_gates --cells=15    # trains 15 random cells of recipes.nasnet twice; half an hour

Rungs are 1, 3 and 9 epochs. If a table has no learning curves, they are simulated for each seed: the final accuracy
plus noise of a strength that gives the same Kendall's tau with the final order as the cells trained here. A search
selects on validation and reports the mean test accuracy, +- its standard error. Four minutes per table on 2 cores.
"""

import argparse
import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks import table_search
from benchmarks.machine import describe_machine, make_parser
from recipes import nasnet, tables
from recipes.cards.compare import kendall_tau
from recipes.oracles import SearchOracle, SuccessiveHalving
from recipes.oracles.base import EPOCHS
from recipes.tables import Table

RUNGS = (1, 3, 9)
TAUS = {1: 0.59, 3: 0.76}  # from `--cells=15`, with a cosine for each rung
FIRST_SEED = 1000  # lower seeds were used to choose the settings


def make_curves(table: Table, seed: int) -> dict[int, np.ndarray]:
    """Returns the table's own curves, or simulated ones."""
    if table.curves:
        return dict(table.curves)
    rng, known = np.random.default_rng(seed), np.flatnonzero(np.isfinite(table.validation))
    sample = np.random.default_rng(0).choice(known, min(400, len(known)), replace=False)
    found = {}
    for epochs, tau in TAUS.items():
        noise = rng.standard_normal(table.validation.shape)
        low, high = 0.0, 100.0
        for _ in range(20):
            middle = (low + high) / 2
            final = table.validation.flat[sample]
            reached = kendall_tau((final + middle * noise.flat[sample]).tolist(), final.tolist())
            low, high = (middle, high) if reached > tau else (low, middle)
        found[epochs] = table.validation + low * noise
    return found


def search(oracle: SearchOracle, table: Table, budgets: Sequence[float], overhead: float) -> list[float]:
    """Returns the test accuracy, in percent, of the best longest-trained network after each budget of epochs."""
    spent, best, trained = 0.0, (0, -np.inf, np.nan), {}
    left, found, number = sorted(budgets), [], 0
    while left:
        proposal = oracle.ask(number)
        assert proposal is not None
        epochs = proposal.values.get(EPOCHS, RUNGS[-1])
        network = tuple(value for name, value in proposal.values.items() if name != EPOCHS)
        spent += epochs - trained.get(network, 0) + overhead
        trained[network] = epochs
        while left and spent > left[0]:
            found.append(best[2])
            left.pop(0)
        result = table.evaluate(proposal.values)
        oracle.tell(number, result.validation)
        best = max(best, (epochs, result.validation, result.test))
        number += 1
    return found


def compare(path: str, arguments: argparse.Namespace) -> None:
    """Prints a row for each search of a table, a column for each budget."""
    table = tables.load(path)
    budgets = [RUNGS[-1] * networks for networks in arguments.networks]
    print(f"\n{table.name}: test accuracy, %, after the epochs of this many full trainings")
    print(f"{'':22}" + "".join(f"{networks:>16}" for networks in arguments.networks))
    for name in ("random", "evolution", "ppo"):
        for halving in (False, True):
            found = []
            for seed in range(FIRST_SEED, FIRST_SEED + arguments.seeds):
                curved = dataclasses.replace(table, curves=make_curves(table, seed))
                oracle = table_search.ORACLES[name](curved, seed)
                found.append(
                    search(SuccessiveHalving(oracle, RUNGS) if halving else oracle, curved, budgets, arguments.overhead)
                )
            means, errors = np.mean(found, axis=0), np.std(found, axis=0, ddof=1) / np.sqrt(len(found))
            cells = [f"{mean:.2f} +- {error:.2f}" for mean, error in zip(means, errors, strict=True)]
            row = f"{name}, halving" if halving else name
            print(f"{row:22}" + "".join(f"{cell:>16}" for cell in cells), flush=True)


def train_cells(count: int, config: nasnet.Config) -> None:
    """Trains random cells with one cosine and with one for each rung; prints how well each rung predicts the order."""
    from recipes.engine import children, spaces, tuner
    from recipes.engine.workers import Task

    found: dict[str, list[Mapping[int, float]]] = {"one cosine": [], "a cosine a rung": []}
    space, rng = spaces.nasnet(config.nodes), np.random.default_rng(123)
    images = children.load_images(config)
    for number in range(count):
        values = {each.name: each.choices[rng.integers(len(each.choices))] for each in space.decisions}
        for name, fidelity in zip(found, ("full", "halving"), strict=True):
            own = dataclasses.replace(config, fidelity=fidelity)
            scorer = children.NetworkScorer(own, space, "nasnet", children.cell_presets(1, own.filters), images)
            folder, accuracies = own.folder / f"{number}_{fidelity}", {}
            for epochs in RUNGS:  # each resumes where the one before it stopped
                task = Task(number, values | {EPOCHS: epochs}, seed=number, folder=folder)
                accuracies[epochs] = scorer.score(task)["val_accuracy"]
            found[name].append(accuracies)
            tuner.forget_models()
    for name, cells in found.items():
        final = [cell[RUNGS[-1]] for cell in cells]
        taus = [kendall_tau([cell[epochs] for cell in cells], final) for epochs in RUNGS[:-1]]
        listed = ", ".join(f"after {epochs}: {tau:.2f}" for epochs, tau in zip(RUNGS, taus, strict=False))
        print(f"{name}: Kendall's tau with the final order {listed}; mean final accuracy {np.mean(final):.4f}")


def main() -> None:
    """Runs the comparisons that the arguments ask for."""
    parser = make_parser(__doc__, smoke="two seeds and a small budget, as the tests run it")
    parser.add_argument("tables", nargs="*", help="files of recipes.tables, or names of shipped ones")
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--networks", type=int, nargs="+", default=[12, 24, 50, 100], help="budgets, in full trainings")
    parser.add_argument("--overhead", type=float, default=0.0, help="epochs that each trial costs before it trains")
    parser.add_argument("--cells", type=int, default=0, help="random cells to train, two or more")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.seeds, arguments.networks = 2, [3]
    if arguments.cells == 1:
        parser.error("--cells is 1, which has no order; expected two or more")
    if not arguments.tables and not arguments.cells:  # `make bench` has none
        parser.print_help()
        return
    print(f"{describe_machine('keras')}; {arguments.seeds} seeds")
    if arguments.cells:
        with tempfile.TemporaryDirectory() as folder:
            train_cells(arguments.cells, nasnet.Config(epochs=RUNGS[-1], folder=Path(folder)))
    for path in arguments.tables:
        compare(path, arguments)


if __name__ == "__main__":
    main()
