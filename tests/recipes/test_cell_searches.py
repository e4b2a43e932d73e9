"""The searches of cells, AmoebaNet's, NASNet's and PNASNet's: what they write, and that they survive being killed."""

import dataclasses
import importlib
import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import zoo
from recipes import amoebanet, mnasnet, nasnet, pnasnet
from recipes.cards.card import make_card
from recipes.cards.read import read_search
from recipes.engine import children as child_networks
from recipes.training import progress
from recipes.training.progress import Status
from tests.recipes.killed_search import kill_and_resume, outcome

SMOKE = amoebanet.PRESETS["smoke"]


def search(recipe: str, folder: Path, **options) -> tuple[zoo.Genotype, list[Status]]:
    """The smoke preset with these options: what it finds, and what it shows meanwhile."""
    module, seen = importlib.import_module(f"recipes.{recipe}"), []
    config = dataclasses.replace(module.PRESETS["smoke"], folder=folder, **options)
    return module.search(config, observe=seen.append), seen


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
@pytest.mark.parametrize(
    ("recipe", "options", "written", "pause"),
    [
        ("amoebanet", {}, b'"end":1', 0.5),  # the pause leads into the next trial
        ("amoebanet", {"fidelity": "halving", "halving_factor": 2, "trials": 3}, b'"start":2', 0.5),  # a promoted one
        ("pnasnet", {}, b'"end":2', 0.0),
    ],
)
def test_a_search_killed_in_the_middle_resumes_to_the_same_trials_and_scores(
    tmp_path, project, recipe: str, options: dict[str, Any], written: bytes, pause: float
):
    whole, _ = search(recipe, tmp_path / "whole", **options)
    killed = tmp_path / "killed"
    command = [sys.executable, "-m", f"recipes.{recipe}", "--preset=smoke", f"--folder={killed}"]
    command += [f"--{name}={value}" for name, value in options.items()]
    assert "genotype.json" in kill_and_resume(command, killed, project, written, pause)
    assert outcome(killed) == outcome(tmp_path / "whole")
    assert zoo.load(killed / "genotype.json").body == whole.body


@pytest.mark.slow
def test_control_c_keeps_the_state_and_says_how_to_resume(tmp_path, project):
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
    search("amoebanet", tmp_path, trials=1, epochs=1, max_params=2500)
    records = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()[1:]]
    assert all(record["metrics"]["params"] <= 2500 for record in records if "end" in record)
    refused = [record for record in records if "refused" in record]
    assert refused[0]["message"].endswith("params, more than 2,500")


@pytest.mark.slow
def test_random_search_is_the_same_recipe_and_has_cells_of_full_size(tmp_path):
    genotype, seen = search("amoebanet", tmp_path / "a", trials=1, epochs=1, algorithm="random", space="nasnet")
    assert genotype.family == "nasnet"
    assert genotype.source["config"]["algorithm"] == "random"
    assert [seen[0].done, seen[-1].done] == [0, 1]
    assert max(status.share for status in seen) == 1.0
    genotype, _ = search("pnasnet", tmp_path / "p", trials=1, algorithm="random")
    assert len(genotype.body.normal.nodes) == 2  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["nasnet", "pnasnet"])
def test_a_search_writes_a_genotype_of_its_family_and_can_be_made_longer(tmp_path, recipe: str):
    options: dict[str, Any] = {"first": 1, "beam": 1} if recipe == "pnasnet" else {}
    short, _ = search(recipe, tmp_path, trials=2, **options)
    genotype, seen = search(recipe, tmp_path, trials=3, **options)
    assert seen[0].done == 2
    assert zoo.load(tmp_path / "genotype.json") == genotype
    assert (genotype.family, genotype.source["recipe"]) == (recipe, f"recipes/{recipe}.py")
    assert genotype.source["score"] >= short.source["score"]
    assert set(genotype.presets) == {"small", "search"}
    if recipe == "pnasnet":
        assert genotype.body.reduce is None  # pyright: ignore[reportAttributeAccessIssue]
        nodes = [record[1][0] + 1 for record in outcome(tmp_path) if len(record) == 2]
        assert nodes == [1, 2, 2]  # the last in a round of its own


def test_halving_trains_a_promoted_network_to_the_end_and_shows_only_such_ones(tmp_path):
    genotype, _ = search("amoebanet", tmp_path, fidelity="halving", halving_factor=2, trials=3)
    trials = [record for record in outcome(tmp_path) if len(record) == 3]
    assert [metrics["epochs"] for _, _, metrics in trials] == [1, 1, 2]
    better = max(trials[:2], key=lambda trial: trial[2]["val_accuracy"])
    assert trials[2][2]["params"] == better[2]["params"]
    assert (genotype.source["trial"], genotype.source["config"]["fidelity"]) == (2, "halving")
    assert [path.name for path in (tmp_path / "pareto").glob("trial_*")] == ["trial_00002.json"]


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
@pytest.mark.parametrize("recipe", ["amoebanet", "pnasnet"])
def test_a_dry_run_trains_nothing_and_prints_what_is_needed(tmp_path, capsys, recipe: str):
    search(recipe, tmp_path, dry_run=True, trials=1160)
    printed = capsys.readouterr().out
    assert "predicted for the search" in printed
    assert "1,160 trials" in printed
    assert not list(tmp_path.iterdir())


def test_test_images_are_never_loaded_into_a_search():
    assert len(child_networks.load_images(SMOKE).test) == 0


@pytest.mark.parametrize(
    ("recipe", "numbers"),
    [
        (amoebanet, {"population": 100, "sample": 25, "trials": 20_000, "epochs": 25}),
        (amoebanet, {"repeats": 3, "filters": 24, "nodes": 5, "identity": 0.05}),
        (nasnet, {"trials": 20_000, "epochs": 20, "repeats": 2, "nodes": 5, "entropy": 0.00001, "baseline": 0.95}),
        (nasnet, {"hidden": 100, "controller_rate": 0.00035, "controller_batch": 20}),
        (pnasnet, {"trials": 1160, "beam": 256, "first": None, "nodes": 5}),
        (pnasnet, {"repeats": 2, "filters": 24, "epochs": 20, "learning_rate": 0.01}),
        (mnasnet, {"trials": 8000, "epochs": 5, "target": 75.0, "alpha": -0.07, "beta": -0.07}),
        (mnasnet, {"width": 1.0, "depth": 1.0, "strides": "imagenet", "image_size": 224}),
        (mnasnet, {"hidden": 100, "controller_rate": 0.00035, "controller_batch": 20}),
    ],
)
def test_the_paper_preset_has_the_papers_numbers(recipe, numbers: dict[str, Any]):
    paper = recipe.PRESETS["paper"]
    assert {name: getattr(paper, name) for name in numbers} == numbers


def test_the_papers_predictor_has_the_papers_numbers():
    fitting = pnasnet.PRESETS["paper"].make_fitting()
    assert (fitting.members, fitting.share, fitting.embedding, fitting.hidden) == (5, 0.8, 100, 100)
    assert (fitting.first_rate, fitting.rate, fitting.target) == (0.01, 0.002, "accuracy")


def test_the_published_cell_lies_in_the_space_and_comes_back_the_same():
    space, body = pnasnet.pnasnet(), zoo.load("pnasnet_5").body
    values = space.values(body)
    assert values["nodes"] == 5
    assert space.body(values) == body
    with pytest.raises(ValueError, match="1 to 4 nodes; this has 5"):
        pnasnet.pnasnet(4).values(body)


def test_the_size_of_a_cell_decides_which_choices_it_has():
    space = pnasnet.pnasnet(2)
    one = {"nodes": 1} | dict(zip(space.levels[0], (0, 1, "sep_conv_3x3", "max_pool_3x3"), strict=True))
    graph = space.body(one).normal
    assert (len(graph.nodes), graph.concat) == (1, (2,))
    assert space.values(space.body(one)) == one
    assert space.levels[1] == [f"normal/node1/{name}" for name in ("state0", "state1", "op0", "op1")]


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        (amoebanet, {"trials": 0}, "trials is 0"),
        (amoebanet, {"population": 0}, "population is 0"),
        (amoebanet, {"identity": 1.0}, "identity is 1.0"),
        (amoebanet, {"learning_rate": 0.0}, "learning_rate is 0.0"),
        (amoebanet, {"image_size": 4}, "image_size is 4"),
        (amoebanet, {"fidelity": "halving", "epochs": 1}, "epochs is 1 and first_epochs 1: .* Give --epochs=9"),
        (amoebanet, {"algorithm": "nsga2"}, "there are no objectives"),
        (amoebanet, {"objectives": ("params:min",)}, "expected two or three"),
        (amoebanet, {"objectives": ("params:min", "sram")}, "objectives names 'sram' .*expected NAME:max or NAME:min"),
        (amoebanet, {"objectives": ("params:min", "mac:min")}, "did you mean 'macs'"),
        (amoebanet, {"objectives": ("params:min", "macs:min"), "fidelity": "halving"}, "Leave out one of the two"),
        (nasnet, {"hidden": 0}, "hidden is 0"),
        (pnasnet, {"beam": 0}, "beam is 0"),
        (pnasnet, {"first": 0}, "first is 0"),
        (pnasnet, {"explore": -1.0}, "explore is -1"),
        (pnasnet, {"members": 0}, "members is 0"),
        (mnasnet, {"target": 0.0}, "target is 0.0"),
        (mnasnet, {"alpha": 0.07}, "alpha is 0.07"),
        (mnasnet, {"latency_table": Path("nowhere.json")}, "there is no file nowhere.json"),
        (mnasnet, {"pareto": ("latency:min",)}, "did you mean 'latency_ms'"),
        (mnasnet, {"pareto": ("latency_ms",)}, "expected NAME:max or NAME:min"),
        (mnasnet, {"max_latency": 0.0}, "max_latency is 0.0"),
        (mnasnet, {"max_sram": 0}, "max_sram is 0"),
    ],
)
def test_options_out_of_range_are_refused(recipe, options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        recipe.Config(**options)


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
