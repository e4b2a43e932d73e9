"""The frame of the searches: seeds that find architectures, a baseline, and what the screen says."""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from recipes import _seeds, amoebanet, tables
from recipes.cards.read import read_search
from recipes.engine import children as child_networks
from recipes.engine import spaces
from recipes.engine.children import NetworkScorer

SMOKE = amoebanet.PRESETS["smoke"]
SPACE = spaces.amoebanet(nodes=1)
OPS = ("sep_conv_3x3", "max_pool_3x3", "avg_pool_3x3")


@pytest.fixture(autouse=True)
def untrained(monkeypatch):
    """Networks are built and not trained; those with separable convolutions are the best."""

    def train(build, *parts, seed, **options) -> dict[str, float]:
        params = float(build().count_params())
        return {"val_accuracy": params / 1e6, "params": params}

    monkeypatch.setattr(child_networks.child_training, "train", train)
    monkeypatch.setattr(child_networks.tuner, "forget_models", lambda: None)  # they are few, and to look for them slow


@functools.cache
def load_images() -> Any:
    return child_networks.load_images(SMOKE)


def scorer(folder: Path, trials: int = 3, table: str | None = None) -> NetworkScorer:
    config = dataclasses.replace(SMOKE, folder=folder, trials=trials, seed=2, table=table)
    presets = child_networks.cell_presets(1, 4)
    return NetworkScorer(config, SPACE, "amoebanet", presets, load_images())


def point(op: str) -> dict[str, Any]:
    return {decision.name: op if decision.kind == "op" else 0 for decision in SPACE.decisions}


def judge(states: Mapping[int, Path], bodies: Sequence[Any]) -> Any:
    for seed in states:
        yield seed, [float(place) for place in range(len(bodies))]


class Finder:
    """Finds one of three cells for each seed, and dies or fails where it is to."""

    def __init__(self, fails: int | None = None, dies: int | None = None, others: int = 0):
        self.fails, self.dies, self.searched, self.others = fails, dies, [], others

    def __call__(self, seed: int, state: Path, report: Any) -> dict[str, Any]:
        self.searched.append(seed)
        report(0.5, "supernet, epoch 1")
        if seed == self.dies:
            raise KeyboardInterrupt
        if seed == self.fails:
            raise FloatingPointError("the loss is nan")
        finds = [point(OPS[(seed + place) % 3]) for place in range(1 + self.others)]
        return {"values": finds[0], "others": finds[1:], "history": []}


def search(
    folder: Path, find: Finder, trials: int = 3, baseline: int = 0, observe: Any = lambda status: None,
    table: str | None = None,
) -> Any:  # fmt: skip
    finds = 1 + find.others
    return _seeds.search_by_seeds(scorer(folder, trials, table), "amoebanet", find, judge, baseline, observe, finds)


def test_what_each_seed_finds_is_trained_and_the_best_is_returned(tmp_path):
    seen = []
    genotype = search(tmp_path, Finder(), observe=seen.append)
    assert genotype.body == SPACE.body(point("sep_conv_3x3"))
    assert [trial.values(SPACE.decisions) for trial in read_search(tmp_path).trials] == [
        point(OPS[seed % 3]) for seed in (2000, 2001, 2002)
    ]
    assert (0, "supernet, epoch 1") in [(status.done, status.text) for status in seen]
    assert (2, "supernet, epoch 1") in [(status.done, status.text) for status in seen]


def test_a_search_that_was_ended_in_a_seed_resumes_with_that_seed_and_ends_alike(tmp_path):
    whole = search(tmp_path / "whole", Finder())
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "ended", Finder(dies=2001))
    finder = Finder()
    again = search(tmp_path / "ended", finder)
    assert finder.searched == [2001, 2002]
    assert (again.body, again.source["metrics"]) == (whole.body, whole.source["metrics"])
    assert search(tmp_path / "ended", Finder(dies=2000)).body == whole.body  # nothing is searched again


def test_a_genotype_of_somebody_in_the_folder_is_not_overwritten(tmp_path):
    (tmp_path / "genotype.json").write_text("somebody's")
    with pytest.raises(ValueError, match=r"json belongs to no search .*: move it away, or give another folder="):
        search(tmp_path, Finder())
    assert (tmp_path / "genotype.json").read_text() == "somebody's"


def test_a_seed_that_fails_ends_alone_and_is_named(tmp_path):
    genotype = search(tmp_path, Finder(fails=2001))
    assert len(read_search(tmp_path).trials) == 2
    assert "seed 2001 failed: FloatingPointError: the loss is nan" in genotype.source["stopped"]
    assert read_search(tmp_path).finished


def test_a_search_can_be_given_more_seeds(tmp_path):
    search(tmp_path, Finder(), trials=1)
    finder = Finder()
    search(tmp_path, finder, trials=2)
    assert finder.searched == [2001]


def test_all_finds_of_a_seed_are_trained_before_the_next_seed_searches(tmp_path):
    seen = []
    search(tmp_path, Finder(others=1), trials=1, observe=seen.append)
    assert seen[-1].total == 2
    finder, more = Finder(others=1), scorer(tmp_path, trials=2)
    _seeds.search_by_seeds(more, "amoebanet", finder, judge, 0, lambda status: None, 2)
    assert finder.searched == [2001]
    found = [trial.values(SPACE.decisions) for trial in read_search(tmp_path).trials]
    assert found == [point(OPS[place]) for place in (2, 0, 1)]  # 2000 finds 2 and 0, 2001 finds 0, there already, and 1


def test_two_seeds_that_find_one_cell_train_it_once(tmp_path):
    search(tmp_path, Finder(), trials=6)
    assert len(read_search(tmp_path).trials) == 3
    assert read_search(tmp_path).finished


@pytest.mark.slow
def test_random_networks_are_trained_alike_and_ranked_by_each_seeds_weights(tmp_path):
    search(tmp_path, Finder(), trials=2, baseline=12)
    ranking = json.loads((tmp_path / "ranking.json").read_text())
    assert sorted(ranking) == ["2000", "2001"]
    assert ranking["2000"]["alone"] == read_search(tmp_path / "baseline").scores
    card = json.loads((tmp_path / "card" / "card.json").read_text())
    assert card["comparison"]["budget"] == "seconds"  # a seed costs more than its trial


def write_table(path: Path, space: spaces.CellSpace = SPACE) -> str:
    """A table of the three cells that are found: their test accuracies are 80, 60 and 70 percent."""
    networks = []
    for op, worth in zip(OPS, (80.0, 60.0, 70.0), strict=True):
        genome = tuple(d.choices.index(op) if d.kind == "op" else 0 for d in SPACE.decisions)
        networks.append(tables.TableRow(SPACE.key(point(op)), (genome,), (worth, worth), (worth - 1, worth + 1), {}))
    about = {"name": "three cells", "command": "by hand", "seeds": [0, 1], "levels": [], "training_seconds": 7.0}
    decisions = [dataclasses.astuple(decision) for decision in space.decisions]
    tables.write_networks(path, about | {"decisions": decisions}, networks)
    return str(path)


def test_a_table_of_trained_networks_ranks_the_find_and_the_shared_weights(tmp_path):
    table = write_table(tmp_path / "table.csv")
    search(tmp_path / "run", Finder(), trials=2, table=table)
    truth = json.loads((tmp_path / "run" / "truth.json").read_text())
    assert (truth["worth"], truth["regret"], truth["training_seconds"]) == (80, 0, 7)
    assert truth["percentile"] == pytest.approx(100 * 2.5 / 3)  # two of three are worse, and it is one of them itself
    assert truth["random"] == pytest.approx([70, (80 + 80 + 70) / 3, 80])
    ranking = json.loads((tmp_path / "run" / "ranking.json").read_text())
    assert sorted(ranking["2000"]["alone"]) == [60, 70, 80]
    card = json.loads((tmp_path / "run" / "card" / "card.json").read_text())["truth"]
    assert card["finds"][0]["tau"] == pytest.approx(ranking["2000"]["tau"])
    assert "Among 3 trained networks, table three cells" in (tmp_path / "run" / "card" / "card.md").read_text()


def test_a_table_of_another_space_is_refused_before_the_search(tmp_path):
    table = write_table(tmp_path / "table.csv", spaces.amoebanet(nodes=2))
    finder = Finder()
    with pytest.raises(ValueError, match=r"of 16 decisions .* the search of 8 decisions"):
        search(tmp_path / "run", finder, table=table)
    assert finder.searched == []


def test_fewer_trials_than_have_ended_is_said_so(tmp_path):
    search(tmp_path, Finder(), trials=3)
    seen = []
    search(tmp_path, Finder(), trials=2, observe=seen.append)
    assert "--trials=2, and 3 trials have ended: nothing left to do" in [status.note for status in seen]
