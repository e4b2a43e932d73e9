"""The recipe of the NASNet search: what it writes, and the paper's numbers."""

import dataclasses

import pytest

import zoo
from recipes import nasnet


@pytest.mark.slow
def test_a_search_writes_a_nasnet_genotype_and_goes_on_where_it_was(tmp_path):
    config = dataclasses.replace(nasnet.PRESETS["smoke"], folder=tmp_path)
    short = nasnet.search(dataclasses.replace(config, trials=2), observe=lambda status: None)
    assert short.family == "nasnet"
    seen = []
    genotype = nasnet.search(config, observe=seen.append)
    assert seen[0].done == 2
    assert zoo.load(tmp_path / "genotype.json") == genotype
    assert genotype.source["recipe"] == "recipes/nasnet.py"
    assert genotype.source["score"] >= short.source["score"]


def test_the_paper_preset_has_the_papers_numbers():
    paper = nasnet.PRESETS["paper"]
    assert (paper.trials, paper.epochs, paper.repeats, paper.nodes) == (20_000, 20, 2, 5)
    assert (paper.hidden, paper.controller_rate, paper.controller_batch) == (100, 0.00035, 20)
    assert (paper.entropy, paper.baseline) == (0.00001, 0.95)


def test_options_out_of_range_are_refused():
    with pytest.raises(ValueError, match="hidden is 0"):
        nasnet.Config(hidden=0)
