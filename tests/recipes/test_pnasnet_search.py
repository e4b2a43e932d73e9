"""The recipe of the PNASNet search and its space: what it writes, and the paper's numbers."""

import dataclasses
import sys

import pytest

import zoo
from recipes import pnasnet
from tests.recipes.killed_search import kill_and_resume, outcome

SMOKE = pnasnet.PRESETS["smoke"]


@pytest.mark.slow
def test_a_search_writes_a_pnasnet_genotype_and_goes_on_where_it_was(tmp_path):
    config = dataclasses.replace(SMOKE, folder=tmp_path, first=1, beam=1, trials=3)
    pnasnet.search(dataclasses.replace(config, trials=2), observe=lambda status: None)
    seen = []
    genotype = pnasnet.search(config, observe=seen.append)
    assert seen[0].done == 2
    assert zoo.load(tmp_path / "genotype.json") == genotype
    assert (genotype.family, genotype.source["recipe"]) == ("pnasnet", "recipes/pnasnet.py")
    assert genotype.source["config"]["beam"] == 1
    assert genotype.body.reduce is None
    nodes = [record[1][0] + 1 for record in outcome(tmp_path) if len(record) == 2]
    assert nodes == [1, 2, 2]  # the last in a round of its own
    assert set(genotype.presets) == {"small", "search"}


@pytest.mark.slow
def test_random_search_has_cells_of_full_size(tmp_path):
    config = dataclasses.replace(SMOKE, folder=tmp_path, trials=2, algorithm="random")
    genotype = pnasnet.search(config, observe=lambda status: None)
    assert len(genotype.body.normal.nodes) == 2
    assert genotype.source["config"]["algorithm"] == "random"


@pytest.mark.slow
def test_a_search_killed_in_the_middle_resumes_to_the_same_trials_and_scores(tmp_path, project):
    pnasnet.search(dataclasses.replace(SMOKE, folder=tmp_path / "whole"), observe=lambda status: None)
    killed = tmp_path / "killed"
    command = [sys.executable, "-m", "recipes.pnasnet", "--preset=smoke", f"--folder={killed}"]
    kill_and_resume(command, killed, project, b'"end":2')
    assert outcome(killed) == outcome(tmp_path / "whole")


@pytest.mark.slow
def test_a_dry_run_trains_nothing_and_prints_what_is_needed(tmp_path, capsys):
    pnasnet.search(dataclasses.replace(SMOKE, folder=tmp_path, dry_run=True, trials=1160))
    printed = capsys.readouterr().out
    assert "predicted for the search" in printed
    assert "1,160 trials" in printed
    assert not list(tmp_path.iterdir())


def test_the_paper_preset_has_the_papers_numbers():
    paper = pnasnet.PRESETS["paper"]
    assert (paper.trials, paper.beam, paper.first, paper.nodes) == (1160, 256, None, 5)
    assert (paper.repeats, paper.filters, paper.epochs, paper.learning_rate) == (2, 24, 20, 0.01)
    fitting = paper.fitting()
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
    ("options", "message"),
    [
        ({"beam": 0}, "beam is 0"),
        ({"first": 0}, "first is 0"),
        ({"explore": -1.0}, "explore is -1"),
        ({"members": 0}, "members is 0"),
    ],
)
def test_options_out_of_range_are_refused(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        pnasnet.Config(**options)
