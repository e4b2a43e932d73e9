"""Runs every search on tables of trained networks and prints Markdown tables: test accuracy +- its standard error.

    python -m benchmarks.search_gates nas-bench-201_cifar10_12epochs.csv nas-bench-macro_cifar10.json
    python -m benchmarks.search_gates TABLE --seeds=200 --budgets 24 --evolution 8:3 12:12 --only
    python -m benchmarks.search_gates --shared darts=darts enas=enas.csv tinynas=tinynas --seeds=3

Each search selects by validation accuracy. For random search, among all networks and among the tenth with the most
MACs, the exact expectation is printed. Seconds are processor time per seed: on 2 cores, 1 to 2 for 200 evaluations of
Bayesian search, 5 for 200 of the progressive search, 1 to 3 for 1,000 of a controller. The first two stop at 200
evaluations, so that everything takes half an hour.

--shared runs searches with shared weights, each in the space of a table of recipes.tabulate. It prints percentile,
points to the best and Kendall's tau of the shared weights (with its ceiling), as mean and standard deviation over the
seeds; the processor time of a search, in trainings of one network on this machine; how many trainings random search
needs to reach as much, and by how many points it falls short in the same time, with the standard error.
"""

import argparse
import functools
import importlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import table_search
from benchmarks.machine import describe_machine, make_parser
from recipes import _main, tables
from recipes.cards import truth
from zoo.markdown import make_table

BUDGETS = (50, 100, 200, 1000)
SHORT = 200  # most evaluations of the slow searches
SLOW = ("bayesian", "progressive")


def main() -> None:
    """Runs all searches and prints a row for each."""
    parser = make_parser(__doc__, smoke="two seeds and two evaluations, as in the tests")
    parser.add_argument("tables", nargs="*", type=Path, help="files of recipes.tables")
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--only", choices=list(table_search.ORACLES), nargs="*", help="searches to run; all by default")
    parser.add_argument("--budgets", type=int, nargs="+", help="numbers of evaluations, for all searches")
    parser.add_argument(
        "--evolution", nargs="*", default=[], metavar="POPULATION:SAMPLE", help="more rows of evolution"
    )
    parser.add_argument("--shared", nargs="+", default=[], metavar="RECIPE=TABLE", help="searches with shared weights")
    parser.add_argument("--first_seed", type=int, default=0, help="for searches with shared weights")
    parser.add_argument("--options", default="", help="changes to their laptop preset, such as search_epochs=8 ..")
    parser.add_argument("--folder", type=Path, default=Path("runs/shared"), help="where they write and resume")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.seeds, arguments.budgets, arguments.only = 2, [2], arguments.only or ["evolution"]
    if arguments.shared:
        print(f"{describe_machine()}; {arguments.seeds} seeds")
        for pair in arguments.shared:
            print_shared(*pair.split("="), arguments)
        return
    if not arguments.tables:  # as in `make bench`
        parser.print_help()
        return
    budgets = arguments.budgets or BUDGETS
    oracles = dict(table_search.ORACLES)
    for sizes in arguments.evolution:
        population, sample = map(int, sizes.split(":"))
        oracles[sizes] = functools.partial(table_search.evolution, population=population, sample=sample)
    names = [name for name in table_search.ORACLES if name != "random"] if arguments.only is None else arguments.only
    print(f"{describe_machine()}; {arguments.seeds} seeds")
    for path in arguments.tables:
        table = tables.load(path)
        head = [f"{table.name}, test accuracy, %", "seeds", *(f"{n:,}" for n in budgets), "s a seed"]
        print(f"\n{make_table(head, make_exact_rows(table, budgets), numbers_from=1)}", flush=True)
        for name in (*names, *arguments.evolution):
            short = name in SLOW and arguments.budgets is None
            given = [budget for budget in budgets if budget <= SHORT] if short else budgets
            start = time.process_time()
            means, errors = table_search.repeat_search(oracles[name], table, given, range(arguments.seeds))
            seconds = (time.process_time() - start) / arguments.seeds
            found = [f"{mean:.2f} ± {error:.2f}" for mean, error in zip(means, errors, strict=True)]
            cells = [*found, *[None] * (len(budgets) - len(found))]
            row = [name, arguments.seeds, *cells, f"{seconds:.2f}"]
            print(make_table(head, [row]).splitlines()[-1], flush=True)


def make_exact_rows(table: tables.Table, budgets: Sequence[int]) -> list[list[str | None]]:
    """Returns rows for the baselines whose expectation is known exactly."""
    baselines = {
        "random search": table.random_search,
        f"random among the largest {truth.LARGEST:.0%} by MACs": table.random_largest,
    }
    rows: list[list[str | None]] = []
    for name, expectation in baselines.items():
        values = [expectation(budget) if budget <= table.size else None for budget in budgets]
        rows.append([name, "exact", *(None if value is None else f"{value:.2f}" for value in values), None])
    return rows


def print_shared(recipe: str, table: str, arguments: argparse.Namespace) -> None:
    """Runs a recipe with each seed and prints a table."""
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    names = [word.partition("=")[0] for word in arguments.options.split()]
    config = _main.parse(
        [f"--{word}" for word in arguments.options.split()], importlib.import_module(f"recipes.{recipe}").PRESETS
    )
    options = {name: getattr(config, name) for name in names}
    ratings = [
        table_search.search_with_shared_weights(recipe, table, seed, arguments.folder / f"{recipe}-{seed}", options)
        for seed in seeds
    ]
    for seed, rating in zip(seeds, ratings, strict=True):
        print(f"  {recipe} seed {seed}: percentile {rating['percentile']:.1f}, {rating['regret']:.2f} points to the "
              f"best, tau {rating['tau']:.2f}, {rating['seconds']:.0f} s, "
              f"a training {rating['training_seconds']:.1f}")  # fmt: skip
    print(f"\n{describe_shared(f'{recipe} {arguments.options}'.strip(), ratings)}\n", flush=True)


def describe_shared(name: str, ratings: Sequence[Mapping[str, Any]]) -> str:
    """Returns a table of several searches' mean ratings, and of the baselines in the same time."""
    found = truth.summarize_ratings(ratings, [rating["tau"] for rating in ratings])

    def show(name: str) -> str:
        return f"{found[name]:.2f} ± {found[f'{name}_std'] or 0:.2f}"

    draws = found["seconds"] / float(np.mean([rating["training_seconds"] for rating in ratings]))
    enough = "never" if found["random_trainings"] is None else f"{found['random_trainings']:.1f}"
    ceiling = "" if found["ceiling"] is None else f" of {found['ceiling']:.2f}"
    head = ["search", "percentile", "points to the best", "tau", "time in trainings", "random needs", "gain", "status"]
    gain = f"{found['gain']:+.2f} ± {found['standard_error'] or 0:.2f}"
    row = [name, show("percentile"), show("regret"), show("tau") + ceiling, f"{draws:.1f}", enough, gain, found["word"]]
    rows: list[list[str | None]] = [row]
    for baseline, worth in (
        ("random search", found["worth"] - found["gain"]),
        (f"random among the largest {truth.LARGEST:.0%} by MACs", found["largest"]),
    ):
        if worth is not None:
            missing = found["worth"] + found["regret"] - worth
            rows.append([f"{baseline}, in the same time", None, f"{missing:.2f}", None, f"{draws:.1f}", *[None] * 3])
    return make_table(head, rows, numbers_from=1)


if __name__ == "__main__":
    main()
