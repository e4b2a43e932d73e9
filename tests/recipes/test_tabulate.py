"""Tables of a whole space: how they are made, what they hold, and what their page says."""

import dataclasses
import itertools
import json
import math
import sys
from pathlib import Path

import keras_tuner
import numpy as np
import pytest

from benchmarks import table_search
from recipes import tables, tabulate
from recipes.cards.compare import kendall_tau
from recipes.engine.workers import Task
from recipes.tables import TableRow, page
from recipes.tables.repeated import RepeatedScorer, load_all_images
from recipes.training import child_training
from tests.recipes.killed_search import kill_and_resume
from zoo.canonical import canonical_hash

SMOKE = tabulate.PRESETS["smoke"]
OPS = ("a", "b")
# Networks of two decisions, "x" and "y" of OPS: "ab" and "ba" are the same one
ABOUT = {
    "name": "letters",
    "command": "python -m recipes.tabulate --nodes=2",
    "date": "2026-11-26",
    "seeds": [0, 1],
    "config": {"epochs": 3},
    "machines": [{"hardware": {"processor": "abacus", "cores": 2}, "versions": {"keras": "3"}}],
    "latencies": None,
    "images": [300, 100],
    "training_seconds": 1.5,
    "decisions": [["x", OPS, "op"], ["y", OPS, "op"]],
    "levels": [["x", "y"]],
}
COSTS = {"params": 10.0, "macs": 100.0, "sram": 20.0, "flash": 30.0, "latency_ms": None}
NETWORKS = [
    TableRow("k0", ((0, 0),), (60.0, 62.0), (61.0, 63.0), COSTS),
    TableRow("k1", ((0, 1), (1, 0)), (70.0, 68.0), (71.0, 69.0), COSTS | {"macs": 200.0}),
    TableRow("k2", ((1, 1),), (80.0, 80.0), (75.0, 77.0), COSTS | {"macs": 300.0}),
]


@pytest.fixture
def written(tmp_path) -> Path:
    path = tmp_path / "table.csv"
    tables.write_networks(path, ABOUT, NETWORKS)
    return path


def test_a_table_is_read_as_it_was_written(written):
    about, networks = tables.read_networks(written)
    assert networks == NETWORKS
    assert about == json.loads(json.dumps({"table": 1, **ABOUT}))


def test_a_search_sees_the_first_training_and_the_mean_test_accuracy_is_reported(written):
    table = tables.load(written)
    assert table.evaluate({"x": "a", "y": "a"}) == (60.0, 62.0)
    assert table.evaluate({"x": "b", "y": "a"}) == table.evaluate({"x": "a", "y": "b"}) == (70.0, 70.0)


def test_equal_networks_count_once(written):
    table = tables.load(written)
    assert table.size == 3
    assert table.key({"x": "b", "y": "a"}) == table.key({"x": "a", "y": "b"}) != table.key({"x": "a", "y": "a"})
    # of the three pairs of networks two hold k2, the other's best is k1
    assert table.random_search(2) == pytest.approx((76 + 76 + 70) / 3)


def test_a_table_of_a_sample_says_what_it_lacks(tmp_path):
    path = tmp_path / "table.csv"
    tables.write_networks(path, ABOUT, NETWORKS[:1])
    table = tables.load(path)
    assert table.check({"x": "a", "y": "a"}) is None
    assert "no such network" in (table.check({"x": "b", "y": "b"}) or "")


def test_a_space_too_large_for_a_search_is_refused_by_load_alone(tmp_path):
    path = tmp_path / "table.csv"
    decisions = [[f"d{number}", OPS, "op"] for number in range(30)]
    network = NETWORKS[0]._replace(genomes=((0, 1) * 15,))
    tables.write_networks(path, ABOUT | {"decisions": decisions}, [network])
    assert tables.read_networks(path)[1] == [network]
    with pytest.raises(ValueError, match="1 networks of a space of 1,073,741,824 points"):
        tables.load(path)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [('"table": 1', '"table": 9', "another version"), ("k1,01 10,70.00", "k1,01 10,much", "line 4: .*much")],
)
def test_a_damaged_table_is_refused_with_the_place(written, before: str, after: str, message: str):
    written.write_text(written.read_text().replace(before, after))
    with pytest.raises(ValueError, match=message):
        tables.load(written)


def test_an_unknown_table_names_those_that_ship():
    with pytest.raises(ValueError, match=r"no table 'dart'.*darts, enas, tinynas"):
        tables.load("dart")


def test_a_folder_of_the_same_name_does_not_hide_a_shipped_table(tmp_path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "darts").mkdir()
    monkeypatch.chdir(tmp_path)
    assert tables.load("darts").name.startswith("darts")


def test_the_page_says_how_well_a_seed_predicts_the_other_and_what_each_choice_adds(tmp_path):
    found = page.correlate_seeds(np.array([network.validation for network in NETWORKS]))
    # deviations from 70: (-10, 0, 10) and (-8, -2, 10)
    assert found["pearson"] == pytest.approx((80 + 0 + 100) / math.sqrt(200 * 168))
    assert found["tau"] == 1
    assert found["noise"] == pytest.approx(math.sqrt((2 + 2 + 0) / 3))
    assert found["ceiling"] == pytest.approx(math.sqrt(2 * found["pearson"] / (1 + found["pearson"])))
    # of three validation images to a test image: aa 61.25, ab 69.25, ba 69.25, bb 79; their mean is 69.6875
    assert page.measure_effects(ABOUT, NETWORKS)["x"] == pytest.approx({"a": 65.25 - 69.6875, "b": 74.125 - 69.6875})
    path = page.write_page(ABOUT, NETWORKS, tmp_path)
    text = path.read_text()
    assert "| validation | 61.00 | 69.00 | 80.00 |" in text
    assert "| 0.982 | 1.000 | 0.995 |" in text
    assert "b +4.44, a -4.44" in text
    assert "| latency, ms, measured | - | - | - | - |" in text
    assert (tmp_path / "space.png").read_bytes().startswith(b"\x89PNG")


def test_the_ceiling_is_what_a_ranking_without_noise_reaches():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=4000)
    accuracies = truth[:, None] + rng.normal(size=(4000, 2))  # as much noise as there is to know
    found = page.correlate_seeds(accuracies)
    assert found["pearson"] == pytest.approx(0.5, abs=0.03)
    assert np.corrcoef(truth, accuracies.mean(axis=1))[0, 1] == pytest.approx(found["ceiling"], abs=0.02)
    assert kendall_tau(truth[:1000], accuracies.mean(axis=1)[:1000]) == pytest.approx(found["tau_ceiling"], abs=0.03)


def test_one_training_and_equal_networks_say_nothing_of_noise():
    assert math.isnan(page.correlate_seeds(np.array([[70.0], [71.0]]))["pearson"])
    assert math.isnan(page.correlate_seeds(np.array([[70.0, 70.0], [70.0, 71.0]]))["ceiling"])


def test_every_architecture_of_a_space_is_trained_and_written(tmp_path):
    path = tabulate.tabulate(dataclasses.replace(SMOKE, folder=tmp_path, latency=False), observe=lambda status: None)
    about, networks = tables.read_networks(path)
    assert sorted(network.genomes for network in networks) == [((0, a, b),) for a in (0, 1) for b in (0, 1)]
    assert about["seeds"] == [0, 1]
    space = SMOKE.make_space()
    decisions = tables.read_decisions(about)
    assert decisions == space.decisions
    for network in networks:
        values = {each.name: each.choices[place] for each, place in zip(decisions, network.genomes[0], strict=True)}
        assert network.key == canonical_hash(space.body(values))
        assert len(network.validation) == len(network.test) == 2
        assert (network.metrics["flash"] or 0) > (network.metrics["params"] or 0) > 0
        assert network.metrics["latency_ms"] is None
    assert (tmp_path / "page" / "page.md").exists()


def test_a_killed_trial_keeps_the_trainings_that_were_finished(tmp_path, monkeypatch):
    images = load_all_images(SMOKE, 0.5)
    preset = {"search": {"cells": 3, "filters": 2, "stem": "cifar"}}
    scorer = RepeatedScorer(SMOKE, SMOKE.make_space(), "darts", preset, images, repeats=2, validation_fraction=0.5)
    values = {each.name: each.choices[0] for each in scorer.space.decisions}
    seeds = []

    def train(*arguments, seed: int, **options) -> dict[str, float]:
        seeds.append(seed)
        if len(seeds) == 2:
            raise KeyboardInterrupt
        return {"val_accuracy": 0.5 + seed, "test_accuracy": 0.25, "loss": 1.0}

    monkeypatch.setattr(child_training, "train", train)
    with pytest.raises(KeyboardInterrupt):
        scorer.score(Task(0, values, 9, tmp_path))
    found = scorer.score(Task(0, values, 9, tmp_path))
    assert seeds == [0, 1, 1]
    assert (found["val_accuracy_0"], found["val_accuracy_1"], found["val_accuracy"]) == (0.5, 1.5, 1.0)


def test_a_table_of_fewer_repeats_is_taken_over(tmp_path, monkeypatch):
    def train(*arguments, seed: int, **options) -> dict[str, float]:
        return {"val_accuracy": 0.5 + seed / 10, "test_accuracy": 0.25, "loss": 1.0}

    def tabulated(name: str, **options) -> Path:
        config = dataclasses.replace(SMOKE, folder=tmp_path / name, latency=False, **options)
        return tabulate.tabulate(config, observe=lambda status: None)

    monkeypatch.setattr(child_training, "train", train)
    known = tabulated("two")
    about, networks = tables.read_networks(known)
    measured = [row._replace(metrics=row.metrics | {"latency_ms": 1.5}) for row in networks]
    tables.write_networks(known, about | {"latencies": "abacus", "machines": ABOUT["machines"]}, measured)
    seeds = []
    monkeypatch.setattr(
        child_training, "train", lambda *arguments, seed, **options: seeds.append(seed) or train(seed=seed)
    )
    about, networks = tables.read_networks(tabulated("three", repeats=3, known=str(known)))
    assert seeds == [2] * 4
    assert (about["seeds"], about["latencies"], about["machines"][0]) == ([0, 1, 2], "abacus", ABOUT["machines"][0])
    assert networks[0].validation == pytest.approx((50, 60, 70))
    assert networks[0].metrics == measured[0].metrics
    with pytest.raises(ValueError, match="not in epochs, repeats"):
        tabulated("other", repeats=3, epochs=2, known=str(known))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ops": ("sep_conv",)}, "ops names 'sep_conv'"),
        ({"repeats": 0}, "repeats is 0"),
        ({"validation_fraction": 1.0}, "validation_fraction is 1.0"),
        ({"space": "tinynas", "stages": 7}, "stages is 7"),
    ],
)
def test_what_no_table_can_have_is_refused(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMOKE, **options)


@pytest.mark.parametrize("name", ["darts", "enas", "tinynas"])
class TestShippedTables:
    def test_it_is_the_whole_space_of_its_preset(self, name: str):
        config = tabulate.PRESETS["laptop" if name == "darts" else name]
        about, networks = tables.read_networks(name)
        table, space = tables.load(name), config.make_space()
        assert table.decisions == space.decisions
        assert not np.isnan(table.validation).any()
        assert table.size == len(networks) == len({network.key for network in networks})
        for setting, value in json.loads(json.dumps(config.settings())).items():
            assert about["config"][setting] == value, setting
        genome = networks[-1].genomes[-1]
        values = {each.name: each.choices[n] for each, n in zip(table.decisions, genome, strict=True)}
        assert canonical_hash(space.body(values)) == networks[-1].key
        assert table.evaluate(values).validation == networks[-1].validation[0]

    def test_its_page_prints_how_one_seed_predicts_the_other(self, name: str):
        about, networks = tables.read_networks(name)
        pairs = list(itertools.combinations(np.array([network.validation for network in networks]).T, 2))
        correlation = np.mean([np.corrcoef(*pair)[0, 1] for pair in pairs])
        tau = np.mean([kendall_tau(*pair) for pair in pairs])
        assert f"| {correlation:.3f} | {tau:.3f} |" in page.make_page(about, networks)
        assert correlation > 0.45
        assert tau > 0.3

    @pytest.mark.parametrize("oracle", ["evolution", "progressive", "ppo"])
    def test_an_oracle_searches_it(self, name: str, oracle: str):
        table = tables.load(name)
        found = [table_search.search(table_search.ORACLES[oracle](table, seed), table, [30]) for seed in range(3)]
        assert np.mean(found) > np.nanmedian(table.test)
        assert isinstance(table.hyperparameters(), keras_tuner.HyperParameters)


@pytest.mark.slow
def test_killed_in_the_middle_it_resumes_to_the_same_table(tmp_path, project):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    tabulate.tabulate(dataclasses.replace(SMOKE, folder=whole, latency=False), observe=lambda status: None)
    command = [sys.executable, "-m", "recipes.tabulate", "--preset=smoke", "--nolatency", f"--folder={killed}"]
    kill_and_resume(command, killed, project, b'"end"')
    rows = [(folder / "table.csv").read_text().splitlines()[1:] for folder in (whole, killed)]
    assert rows[0] == rows[1]
