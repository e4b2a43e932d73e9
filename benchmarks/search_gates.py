"""Every search on tables of really trained networks: mean test accuracy +- standard error over 100 seeds.

    python -m benchmarks.search_gates nas-bench-201_cifar10_12epochs.csv nas-bench-macro_cifar10.json
    python -m benchmarks.search_gates TABLE --seeds=200 --budgets 24 --evolution 8:3 12:12 --only

Each search selects by validation accuracy. Random search has its exact expectation. Up to half an hour on 2 cores: a
seed of a controller takes 1 to 3 s of processor time for 1,000 evaluations, one of the progressive search 5 for 200.
"""

import argparse
import datetime
import functools
import os
import platform
import time
from pathlib import Path

from benchmarks import table_search
from recipes import tables

BUDGETS = (50, 100, 200)
LONG = 1000  # evaluations of the controllers, which need more to learn from
CONTROLLERS = ("ppo", "reinforce")


def main() -> None:
    """Runs all searches and prints a row for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", type=Path, help="files of recipes.tables")
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--smoke", action="store_true", help="two seeds and two evaluations, as the tests run it")
    parser.add_argument("--only", choices=list(table_search.ORACLES), nargs="*", help="searches to run; all by default")
    parser.add_argument("--budgets", type=int, nargs="+", default=BUDGETS, help="numbers of evaluations")
    parser.add_argument(
        "--evolution", nargs="*", default=[], metavar="POPULATION:SAMPLE", help="more rows of evolution"
    )
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.seeds, arguments.budgets, arguments.only = 2, [2], arguments.only or ["evolution"]
    if not arguments.tables:  # `make bench` has none
        parser.print_help()
        return
    budgets = tuple(arguments.budgets)
    oracles = dict(table_search.ORACLES)
    for sizes in arguments.evolution:
        population, sample = map(int, sizes.split(":"))
        oracles[sizes] = functools.partial(table_search.evolution, population=population, sample=sample)
    names = [name for name in table_search.ORACLES if name != "random"] if arguments.only is None else arguments.only
    date = datetime.datetime.now(datetime.UTC).date()
    print(f"{platform.machine()}, {os.cpu_count()} cores, {arguments.seeds} seeds, {date}")
    for path in arguments.tables:
        table = tables.load(path)
        print(f"\n{table.name}: test accuracy, %\n{'':16}" + "".join(f"{n:>16}" for n in (*budgets, LONG)))
        expected = [table.random_search(n) for n in (*budgets, LONG)]
        print(f"{'random (exact)':16}" + "".join(f"{value:>16.3f}" for value in expected))
        for name in (*names, *arguments.evolution):
            evaluations = (*budgets, LONG) if name in CONTROLLERS else budgets
            start = time.perf_counter()
            means, errors = table_search.repeated(oracles[name], table, evaluations, range(arguments.seeds))
            cells = [f"{mean:.3f} +- {error:.3f}" for mean, error in zip(means, errors, strict=True)]
            seconds = (time.perf_counter() - start) / arguments.seeds
            print(f"{name:16}" + "".join(f"{cell:>16}" for cell in cells) + f"   {seconds:.2f} s a seed", flush=True)


if __name__ == "__main__":
    main()
