"""The recipe: its command line, what it writes, and that it survives being killed."""

import dataclasses
import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

import zoo
from recipes import amoebanet
from recipes.cards.card import make_card
from recipes.cards.read import read_search
from recipes.engine import children as child_networks
from recipes.training import progress
from recipes.training.progress import Status
from tests.recipes.killed_search import kill_and_resume, outcome

SMOKE = amoebanet.PRESETS["smoke"]


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> tuple[zoo.Genotype, Path]:
    folder = tmp_path_factory.mktemp("smoke")
    return amoebanet.search(dataclasses.replace(SMOKE, folder=folder)), folder


def test_the_result_is_a_genotype_file_with_its_provenance(found):
    genotype, folder = found
    assert zoo.load(folder / "genotype.json") == genotype
    source = genotype.source
    assert source["recipe"] == "recipes/amoebanet.py"
    assert source["config"]["population"] == SMOKE.population
    assert source["seed"] == 0
    best = max(record[2]["val_accuracy"] for record in outcome(folder) if len(record) == 3)
    assert source["score"] == best


def test_the_result_builds_as_searched_and_larger(found):
    genotype, _ = found
    searched = zoo.build(genotype, "search", classes=10, input_shape=(8, 8, 1))
    assert zoo.build(genotype, classes=10, input_shape=(28, 28, 1)).count_params() > searched.count_params()


@pytest.mark.slow
def test_a_search_killed_in_the_middle_resumes_to_the_same_trials_and_scores(found, tmp_path, project):
    _, folder = found
    command = [sys.executable, "-m", "recipes.amoebanet", "--preset=smoke", f"--folder={tmp_path}"]
    # the pause leads into the next trial
    assert "genotype.json" in kill_and_resume(command, tmp_path, project, b'"end":1', pause=0.5)
    assert outcome(tmp_path) == outcome(folder)
    assert zoo.load(tmp_path / "genotype.json").body == zoo.load(folder / "genotype.json").body


@pytest.mark.slow
def test_control_c_keeps_the_state_and_says_how_to_go_on(tmp_path, project):
    command = [sys.executable, "-m", "recipes.amoebanet", "--preset=smoke", f"--folder={tmp_path}"]
    process = subprocess.Popen(command, cwd=project, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    journal, deadline = tmp_path / "journal.jsonl", time.monotonic() + 120
    while not (journal.exists() and b'"end":0' in journal.read_bytes()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command resumes" in errors
    assert "Traceback" not in errors


@pytest.mark.slow
def test_limits_refuse_large_networks_before_they_are_trained(tmp_path):
    config = dataclasses.replace(SMOKE, folder=tmp_path, trials=1, epochs=1, max_params=2500)
    amoebanet.search(config, observe=lambda status: None)
    lines = (tmp_path / "journal.jsonl").read_text().splitlines()[1:]
    records = [json.loads(line) for line in lines]
    assert all(record["metrics"]["params"] <= 2500 for record in records if "end" in record)
    refused = [record for record in records if "refused" in record]
    assert refused
    assert refused[0]["message"].endswith("params, more than 2,500")


@pytest.mark.slow
def test_random_search_is_the_same_recipe(tmp_path):
    config = dataclasses.replace(SMOKE, folder=tmp_path, trials=1, epochs=1, algorithm="random", space="nasnet")
    seen: list[Status] = []
    genotype = amoebanet.search(config, observe=seen.append)
    assert genotype.family == "nasnet"
    assert genotype.source["config"]["algorithm"] == "random"
    assert [seen[0].done, seen[-1].done] == [0, 1]
    assert max(status.share for status in seen) == 1.0


def test_halving_trains_a_promoted_network_to_the_end_and_shows_only_such_ones(tmp_path):
    config = dataclasses.replace(SMOKE, fidelity="halving", halving_factor=2, trials=3, folder=tmp_path)
    genotype = amoebanet.search(config)
    trials = [record for record in outcome(tmp_path) if len(record) == 3]
    assert [metrics["epochs"] for _, _, metrics in trials] == [1, 1, 2]
    better = max(trials[:2], key=lambda trial: trial[2]["val_accuracy"])
    assert trials[2][2]["params"] == better[2]["params"]
    assert (genotype.source["trial"], genotype.source["config"]["fidelity"]) == (2, "halving")
    assert [path.name for path in (tmp_path / "pareto").glob("trial_*")] == ["trial_00002.json"]


@pytest.mark.slow
def test_a_search_by_halving_killed_in_a_promoted_training_ends_as_one_that_was_not(tmp_path, project):
    config = dataclasses.replace(SMOKE, fidelity="halving", halving_factor=2, trials=3, folder=tmp_path / "whole")
    amoebanet.search(config)
    folder = tmp_path / "killed"
    command = [sys.executable, "-m", "recipes.amoebanet", "--preset=smoke", f"--folder={folder}"]
    command += ["--fidelity=halving", "--halving_factor=2", "--trials=3"]
    kill_and_resume(command, folder, project, b'"start":2', pause=0.5)
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")


@pytest.mark.slow
def test_objectives_search_their_front_and_random_search_is_its_baseline(tmp_path):
    config = dataclasses.replace(SMOKE, objectives=("accuracy:max", "sram:min"), generation=2, trials=3)
    assert (config.algorithm, config.objectives) == ("nsga2", ("val_accuracy:max", "peak_memory:min"))
    amoebanet.search(dataclasses.replace(config, folder=tmp_path))
    header = json.loads((tmp_path / "journal.jsonl").read_text().splitlines()[0])
    assert (header["oracle"], header["objective"]) == ("NSGA2", ["val_accuracy", "max", "peak_memory", "min"])
    front = json.loads((tmp_path / "pareto" / "front.json").read_text())
    assert front["objectives"] == {"val_accuracy": "max", "peak_memory": "min"}
    amoebanet.search(dataclasses.replace(config, algorithm="random", folder=tmp_path / "baseline"))
    card = make_card([read_search(tmp_path)], [read_search(tmp_path / "baseline")])
    assert card["fronts"]["draws"] == [3]
    assert 0 < card["fronts"]["search"][0] <= 1


@pytest.mark.slow
def test_a_dry_run_trains_nothing_and_prints_what_is_needed(tmp_path, capsys):
    config = dataclasses.replace(SMOKE, folder=tmp_path, dry_run=True, trials=1000)
    amoebanet.search(config)
    printed = capsys.readouterr().out
    assert "predicted for the search" in printed
    assert "1,000 trials" in printed
    assert not list(tmp_path.iterdir())


def test_test_images_are_never_loaded_into_a_search():
    assert len(child_networks.load_images(SMOKE).test) == 0


def test_the_paper_preset_has_the_papers_numbers():
    paper = amoebanet.PRESETS["paper"]
    assert (paper.population, paper.sample, paper.trials, paper.epochs) == (100, 25, 20_000, 25)
    assert (paper.repeats, paper.filters, paper.nodes, paper.identity) == (3, 24, 5, 0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trials": 0}, "trials is 0"),
        ({"population": 0}, "population is 0"),
        ({"identity": 1.0}, "identity is 1.0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"image_size": 4}, "image_size is 4"),
        ({"fidelity": "halving", "epochs": 1}, "epochs is 1 and first_epochs 1: .* Give --epochs=9"),
        ({"algorithm": "nsga2"}, "there are no objectives"),
        ({"objectives": ("params:min",)}, "expected two or three"),
        ({"objectives": ("params:min", "sram")}, "objectives names 'sram' .*expected NAME:max or NAME:min"),
        ({"objectives": ("params:min", "mac:min")}, "did you mean 'macs'"),
        ({"objectives": ("params:min", "macs:min"), "fidelity": "halving"}, "Leave one of the two out"),
    ],
)
def test_options_out_of_range_are_refused(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        amoebanet.Config(**options)


def test_a_log_gets_few_lines_and_the_last_one():
    text = io.StringIO()
    with progress.show_progress("amoebanet", "accuracy", Console(file=text, width=200)) as show:
        for done in range(5):
            show(Status(done, 5, 0.5 + done / 10, 90.0, 0.0, "epoch 1 of 2"))
        show(Status(5, 5, 0.9, 0.0, 0.0, ""))
    assert text.getvalue().splitlines() == [
        "amoebanet: 0 of 5 trials done, best accuracy 0.5, about 1 min 30 s left, epoch 1 of 2",
        "amoebanet: 5 trials done, best accuracy 0.9",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59, "59 s"), (61, "1 min 1 s"), (3600, "1 h"), (7300, "2 h 1 min"), (9e5, "10 d")],
)
def test_durations_are_read_at_a_glance(seconds: float, text: str):
    assert progress.duration(seconds) == text
