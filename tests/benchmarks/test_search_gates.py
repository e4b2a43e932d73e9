"""Whether the searches search: on tables of trained networks, selected by validation, judged by test accuracy.

`benchmarks/search_gates.py` prints the numbers.
"""

import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import search_gates, table_search
from recipes import tables
from recipes.cards.truth import Truth

FILES = ("nas-bench-201_cifar10_12epochs.csv", "nas-bench-macro_cifar10.json")
CONTROLLERS = ("ppo", "reinforce")


@pytest.fixture(scope="module", params=FILES)
def table(request, reference) -> tables.Table:
    return tables.load(reference / "tables" / request.param)


_OUTCOMES: dict[tuple, tuple[np.ndarray, np.ndarray]] = {}  # of searches that two tests look at


def outcome(name: str, table: tables.Table, budgets: tuple[int, ...], seeds: int) -> tuple[np.ndarray, np.ndarray]:
    case = (name, table.name, budgets, seeds)
    if case not in _OUTCOMES:
        _OUTCOMES[case] = table_search.repeat_search(table_search.ORACLES[name], table, budgets, range(seeds))
    return _OUTCOMES[case]


def test_progressive_search_beats_random_search_in_fifty_evaluations_of_a_macro_network(reference):
    table = tables.load(reference / "tables" / FILES[1])
    means, errors = table_search.repeat_search(table_search.ORACLES["progressive"], table, (50,), range(3))
    assert means[0] - 2 * errors[0] > table.random_search(50)


def test_a_search_that_ends_early_keeps_its_best(tmp_path):
    path = tmp_path / "table.json"
    path.write_text('{"0": {"test_acc": [1, 2, 2]}, "1": {"test_acc": [3, 4, 4]}, "2": {"test_acc": [2, 9, 9]}}')
    table = tables.load(path)
    assert table_search.search(table_search.ORACLES["random"](table, 0), table, (3, 50)) == [4.0, 4.0]
    with pytest.raises(ValueError, match="expected two or more"):
        table_search.repeat_search(table_search.ORACLES["random"], table, (1,), range(1))


def test_searches_with_shared_weights_print_a_row_of_their_means(monkeypatch, capsys):
    truth = Truth(
        "abcd", np.array([[1.0], [2.0], [3.0], [4.0]]), np.array([[1.0], [2.0], [3.0], [4.0]]), 9.0, np.arange(4.0)
    )
    asked = []

    def search(recipe: str, table: str, seed: int, folder: Path, options: dict) -> dict:
        asked.append((recipe, table, seed, folder.name, options))
        return truth.rate("d", 6.0) | {"training_seconds": 2.0, "tau": 0.5}

    monkeypatch.setattr(table_search, "search_with_shared_weights", search)
    monkeypatch.setattr(sys, "argv", "x --shared darts=t.csv --seeds=2 --options search_epochs=3".split())
    search_gates.main()
    assert asked == [("darts", "t.csv", seed, f"darts-{seed}", {"search_epochs": 3}) for seed in (0, 1)]
    rows = {row[0]: row[1:] for row in cells_of(capsys.readouterr().out)}
    # The best of four; the best of three draws, which take as long as a search, is expected to be worth 3.75.
    found = rows["darts search_epochs=3"]
    assert found[:3] == ["87.50 ± 0.00", "0.00 ± 0.00", "0.50 ± 0.00"]
    assert found[3:6] == ["3.0", "4.0", "+0.25 ± 0.00"]
    assert rows["random search, in the same time"][1] == "0.25"
    assert rows["random among the largest 10% by MACs, in the same time"][1] == "0.00"  # the one largest is the best


def cells_of(text: str) -> list[list[str]]:
    """The cells of each row of the Markdown tables in `text`."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "seeds"),
    [("local", 100), ("bayesian", 12), ("plain evolution", 100), ("evolution", 100), ("progressive", 30)],
)
def test_a_search_beats_random_search_at_200_evaluations(table, name: str, seeds: int):
    means, errors = outcome(name, table, (50, 100, 200), seeds)
    assert means[2] - 2 * errors[2] > table.random_search(200)


@pytest.mark.slow
def test_bayesian_search_finds_in_a_hundred_evaluations_more_than_the_largest_networks_give_in_200(table):
    means, errors = outcome("bayesian", table, (50, 100, 200), 12)
    assert means[1] - 2 * errors[1] > table.random_largest(200)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONTROLLERS)
def test_a_controller_beats_random_search_at_1000_evaluations(table, name: str):
    means, errors = outcome(name, table, (1000,), 20)
    assert means[0] - 2 * errors[0] > table.random_search(1000)


@pytest.mark.slow
def test_progressive_search_reaches_at_100_evaluations_what_plain_evolution_reaches_at_200(table):
    own, own_errors = outcome("progressive", table, (50, 100, 200), 30)
    plain, _ = outcome("plain evolution", table, (50, 100, 200), 100)
    assert own[1] + 2 * own_errors[1] > plain[2]
