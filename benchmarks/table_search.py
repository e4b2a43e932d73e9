"""Whole searches on a table of trained networks, which show in seconds whether an oracle searches well.

    table, make = tables.load("nas-bench-201.csv"), table_search.ORACLES["progressive"]
    means, errors = table_search.repeat_search(make, table, (50, 100, 200), seeds=range(100))

Every search selects by validation accuracy and reports the test accuracy of its selection.
"""

import dataclasses
import functools
import importlib
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras_tuner
import numpy as np

from recipes import tables, tabulate
from recipes.cards.read import read_search
from recipes.engine.workers import Task
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
from recipes.training.progress import Status
from zoo import atomic

_SIDE = 28  # pixels of the embedded images
OBJECTIVE = keras_tuner.Objective("val_accuracy", "max")
MakeOracle = Callable[[Table, int], SearchOracle]  # table, seed


def _arguments(table: Table, seed: int) -> dict[str, Any]:
    """Returns the arguments of every oracle; networks that the table knows to be equal count as one evaluation."""
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
    """Bayesian search over paths and ops if the table knows its cells, otherwise over choices."""
    return BayesianSearch(**_arguments(table, seed), features=table.count_features)


def plain_evolution(table: Table, seed: int) -> SearchOracle:
    """Aging evolution as it is usually run on tables: population 10, sample 3, each child changes one choice."""
    return evolution(table, seed, population=10, sample=3)


def evolution(table: Table, seed: int, population: int = 20, sample: int = 10) -> SearchOracle:
    """Aging evolution with a larger sample, which suits a few hundred evaluations."""
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
        fitting=Fitting(embedding=8, hidden=32, first_rate=0.01, steps=120, from_scratch=True),
    )


def ppo(table: Table, seed: int) -> SearchOracle:
    """The controller of NASNet, with larger steps for a thousand evaluations instead of 20,000."""
    return ControllerOracle(
        **_arguments(table, seed),
        hidden=32,
        batch=20,
        learning_rate=0.003,
        entropy=0.05,
        standardize=True,
    )


def reinforce(table: Table, seed: int) -> SearchOracle:
    """The same controller with one step per batch."""
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


_TRAINING_OPTIONS = "data image_size training_images epochs batch_size learning_rate weight_decay augment".split()
_CELL_OPTIONS = "nodes ops fixed_reduction cells filters".split()
_STAGE_OPTIONS = "stages kernels expansions depths shares".split()
# Recipe -> options that the table sets, and other options, which leave out everything but the search
SHARED: dict[str, tuple[list[str], dict[str, Any]]] = {
    "darts": (_TRAINING_OPTIONS + _CELL_OPTIONS, {"random_cells": 0, "eigenvalue": False}),
    "enas": ([*_TRAINING_OPTIONS, "validation_images", *_CELL_OPTIONS], {"random_networks": 0}),
    "tinynas": (_TRAINING_OPTIONS + _STAGE_OPTIONS, {"random_networks": 0, "board": "stm32f746"}),  # all networks fit
}


def search_with_shared_weights(
    recipe: str, table: str, seed: int, folder: Path, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Runs a recipe's laptop preset in the space of a table; returns the rating of the result by the table.

    Seconds of the search and of a training are processor time of all cores, whatever else the machine does.

    Args:
        recipe: a key of SHARED.
        table: see recipes.tables.load.
        seed: of the search.
        folder: of the search, which resumes from it.
        options: of the recipe that differ from the preset's.
    """
    module = importlib.import_module(f"recipes.{recipe}")
    made, (names, others) = tables.read_networks(table)[0]["config"], SHARED[recipe]
    taken = {name: tuple(made[name]) if isinstance(made[name], list) else made[name] for name in names}
    if recipe == "tinynas":
        taken |= {"widths": (made["width"],), "image_size": made["image_size"] or _SIDE}
    chosen = taken | others | {"seed": seed, "folder": folder, "table": table} | options
    cost = folder / "processor_seconds.json"
    if folder.exists() and not cost.exists():
        raise ValueError(f"the search in {folder} was interrupted, so that its processor time is not known; delete it")
    begun, spent = time.process_time(), 0.0

    def observe(status: Status) -> None:
        nonlocal spent
        if status.done < (status.total or 0):  # afterwards the table is ranked and the result converted
            spent = time.process_time() - begun

    module.search(dataclasses.replace(module.PRESETS["laptop"], **chosen), observe=observe)
    if not cost.exists():
        atomic.write_atomically(cost, json.dumps(spent))
    found = read_search(folder)
    times = {"seconds": json.loads(cost.read_text(encoding="utf-8")), "training_seconds": time_training(table)}
    return found.truth | times | {"tau": np.mean([each["tau"] for each in found.ranking.values()])}


@functools.cache
def time_training(table: str, networks: int = 3) -> float:
    """Returns the mean processor seconds of one of the table's trainings on this machine, over `networks` networks."""
    made = tables.read_networks(table)[0]["config"]
    fields = {field.name for field in dataclasses.fields(tabulate.Config) if field.init}
    taken: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in made.items() if name in fields
    }
    once: dict[str, Any] = {"repeats": 1}
    scorer, rng = tabulate.make_scorer(tabulate.Config(**(taken | once))), np.random.default_rng(0)
    begun = time.process_time()
    for number in range(networks):
        values = {each.name: each.choices[rng.integers(len(each.choices))] for each in scorer.space.decisions}
        with tempfile.TemporaryDirectory() as folder:
            scorer.score(Task(number, values, seed=number, folder=Path(folder)))
    return (time.process_time() - begun) / networks


def search(oracle: SearchOracle, table: Table, budgets: Sequence[int]) -> list[float]:
    """Returns the test accuracy, in percent, of the best on validation after each number of evaluations.

    Args:
        oracle: a new one; if it stops early, its last result counts for all larger budgets.
        table: to search.
        budgets: numbers of evaluations; duplicates do not count.
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


def repeat_search(
    make_oracle: MakeOracle,
    table: Table,
    budgets: Sequence[int],
    seeds: Iterable[int],
    observe: Callable[[int], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean over seeds at each budget and its standard error; calls `observe` with each finished seed."""
    found = []
    for seed in seeds:
        found.append(search(make_oracle(table, seed), table, budgets))
        if observe is not None:
            observe(seed)
    if len(found) < 2:
        raise ValueError(f"there are {len(found)} seeds; expected two or more, for a standard error")
    return np.mean(found, axis=0), np.std(found, axis=0, ddof=1) / np.sqrt(len(found))
