"""Whole searches on a table of trained networks: in seconds they tell whether an oracle searches well.

    table = tables.load("nas-bench-201.csv")
    means, errors = table_search.repeated(table_search.ORACLES["progressive"], table, (50, 100, 200), seeds=range(100))

Every search selects by validation accuracy and reports the test accuracy of what it selected.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras_tuner
import numpy as np

from recipes.oracles import (
    AgingEvolution,
    BayesianSearch,
    ControllerOracle,
    Fitting,
    LocalSearch,
    ProgressiveOracle,
    RandomSearch,
    SearchOracle,
)
from recipes.tables import Table

OBJECTIVE = keras_tuner.Objective("val_accuracy", "max")
MakeOracle = Callable[[Table, int], SearchOracle]  # table, seed


def _arguments(table: Table, seed: int) -> dict[str, Any]:
    """Returns what every oracle is given; equal networks of a table, where it knows them, are one evaluation."""
    return {
        "objective": OBJECTIVE,
        "hyperparameters": table.hyperparameters(),
        "seed": seed,
        "key": table.key,
        "check": table.check,
    }


def local(table: Table, seed: int) -> SearchOracle:
    """Local search."""
    return LocalSearch(**_arguments(table, seed))


def bayesian(table: Table, seed: int) -> SearchOracle:
    """Bayesian search over paths and ops where the table has cells, over choices where it has not."""
    return BayesianSearch(**_arguments(table, seed), features=table.count_features)


def plain_evolution(table: Table, seed: int) -> SearchOracle:
    """Aging evolution as it is usually run on tables: population 10, sample 3, each child changes one choice."""
    return evolution(table, seed, population=10, sample=3)


def evolution(table: Table, seed: int, population: int = 20, sample: int = 10) -> SearchOracle:
    """Aging evolution with a larger sample: a few hundred evaluations are too few to wait for luck."""
    return AgingEvolution(
        **_arguments(table, seed),
        population=population,
        sample=sample,
        identity=0.0,
    )


def progressive(table: Table, seed: int) -> SearchOracle:
    """The progressive search with a narrow beam: most evaluations are rounds on complete networks."""
    return ProgressiveOracle(
        **_arguments(table, seed),
        max_trials=table.size,
        levels=table.levels,
        kinds=table.kinds,
        beam=5,
        explore=1.0,
        fitting=Fitting(embedding=8, hidden=32, first_rate=0.01, steps=120, anew=True),
    )


def ppo(table: Table, seed: int) -> SearchOracle:
    """The controller of NASNet; a thousand evaluations need larger steps than 20,000."""
    return ControllerOracle(
        **_arguments(table, seed),
        hidden=32,
        batch=20,
        learning_rate=0.003,
        entropy=0.05,
        standardize=True,
    )


def reinforce(table: Table, seed: int) -> SearchOracle:
    """The same controller with one step a batch."""
    return ControllerOracle(
        **_arguments(table, seed),
        algorithm="reinforce",
        hidden=32,
        batch=20,
        learning_rate=0.02,
        entropy=0.05,
        standardize=True,
    )


def uniform(table: Table, seed: int) -> SearchOracle:
    """Random search; `Table.random_search` is its expectation."""
    return RandomSearch(**_arguments(table, seed))


ORACLES: dict[str, MakeOracle] = {
    "random": uniform,
    "local": local,
    "bayesian": bayesian,
    "plain evolution": plain_evolution,
    "evolution": evolution,
    "progressive": progressive,
    "ppo": ppo,
    "reinforce": reinforce,
}


def search(oracle: SearchOracle, table: Table, budgets: Sequence[int]) -> list[float]:
    """Returns the test accuracy, in percent, of the best on validation after each number of evaluations.

    Args:
        oracle: new; a search that ends early keeps what it had.
        table: what it searches.
        budgets: numbers of evaluations; duplicates are none.
    """
    best, found = (-np.inf, np.nan), {}
    for evaluation in range(1, max(budgets) + 1):
        proposal = oracle.ask(evaluation)
        if proposal is None:
            break
        result = table.evaluate(proposal.values)
        oracle.tell(evaluation, result.validation)
        best = max(best, tuple(result))
        found[evaluation] = best[1]
    return [found.get(budget, best[1]) for budget in budgets]


def repeated(
    make_oracle: MakeOracle,
    table: Table,
    budgets: Sequence[int],
    seeds: Iterable[int],
    observe: Callable[[int], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean over seeds at each budget, and its standard error; `observe` gets each seed that is done."""
    found = []
    for seed in seeds:
        found.append(search(make_oracle(table, seed), table, budgets))
        if observe is not None:
            observe(seed)
    if len(found) < 2:
        raise ValueError(f"seeds are {len(found)}; expected two or more, for a standard error")
    return np.mean(found, axis=0), np.std(found, axis=0, ddof=1) / np.sqrt(len(found))
