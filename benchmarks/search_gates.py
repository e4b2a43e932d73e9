"""Every search on tables of really trained networks, a Markdown table each: test accuracy +- standard error over seeds.

    python -m benchmarks.search_gates nas-bench-201_cifar10_12epochs.csv nas-bench-macro_cifar10.json
    python -m benchmarks.search_gates TABLE --seeds=200 --budgets 24 --evolution 8:3 12:12 --only

Each search selects by validation accuracy. Random search, of all networks and of the tenth with the most MACs, has its
exact expectation. Seconds are processor time of one seed: on 2 cores 1 to 2 for 200 evaluations of Bayesian search, 5
for 200 of the progressive one, 1 to 3 for 1,000 of a controller. The first two stop at 200, so that all is done in half
an hour.
"""

import argparse
import datetime
import functools
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import table_search
from recipes import tables
from zoo.markdown import make_table

BUDGETS = (50, 100, 200, 1000)
SHORT = 200  # evaluations, the most of those that take seconds for them
SLOW = ("bayesian", "progressive")


def main() -> None:
    """Runs all searches and prints a row for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", type=Path, help="files of recipes.tables")
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--smoke", action="store_true", help="two seeds and two evaluations, as the tests run it")
    parser.add_argument("--only", choices=list(table_search.ORACLES), nargs="*", help="searches to run; all by default")
    parser.add_argument("--budgets", type=int, nargs="+", help="numbers of evaluations, of all searches")
    parser.add_argument(
        "--evolution", nargs="*", default=[], metavar="POPULATION:SAMPLE", help="more rows of evolution"
    )
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.seeds, arguments.budgets, arguments.only = 2, [2], arguments.only or ["evolution"]
    if not arguments.tables:  # `make bench` has none
        parser.print_help()
        return
    budgets = arguments.budgets or BUDGETS
    oracles = dict(table_search.ORACLES)
    for sizes in arguments.evolution:
        population, sample = map(int, sizes.split(":"))
        oracles[sizes] = functools.partial(table_search.evolution, population=population, sample=sample)
    names = [name for name in table_search.ORACLES if name != "random"] if arguments.only is None else arguments.only
    date = datetime.datetime.now(datetime.UTC).date()
    print(f"{platform.machine()}, {os.cpu_count()} cores, {arguments.seeds} seeds, {date}")
    for path in arguments.tables:
        table = tables.load(path)
        head = [f"{table.name}, test accuracy, %", "seeds", *(f"{n:,}" for n in budgets), "s a seed"]
        print(f"\n{make_table(head, exact_rows(table, budgets), numbers_from=1)}", flush=True)
        for name in (*names, *arguments.evolution):
            short = name in SLOW and arguments.budgets is None
            given = [budget for budget in budgets if budget <= SHORT] if short else budgets
            start = time.process_time()
            means, errors = table_search.repeated(oracles[name], table, given, range(arguments.seeds))
            seconds = (time.process_time() - start) / arguments.seeds
            found = [f"{mean:.2f} ± {error:.2f}" for mean, error in zip(means, errors, strict=True)]
            cells = [*found, *[None] * (len(budgets) - len(found))]
            row = [name, arguments.seeds, *cells, f"{seconds:.2f}"]
            print(make_table(head, [row]).splitlines()[-1], flush=True)


def exact_rows(table: tables.Table, budgets: Sequence[int]) -> list[list[str | None]]:
    """Returns the rows of the baselines whose expectation is known exactly."""
    baselines = {
        "random search": table.random_search,
        f"random among the largest {tables.LARGEST:.0%} by MACs": table.random_largest,
    }
    rows: list[list[str | None]] = []
    for name, expectation in baselines.items():
        values = [expectation(budget) if budget <= table.size else None for budget in budgets]
        rows.append([name, "exact", *(None if value is None else f"{value:.2f}" for value in values), None])
    return rows


if __name__ == "__main__":
    main()
