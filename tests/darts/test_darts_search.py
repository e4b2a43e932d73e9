"""The DARTS recipe: its gradients, its guard, and that it resumes as if it had never been stopped."""

import dataclasses
import functools
import json
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import zoo
from recipes import _seeds, darts
from recipes.cards.read import read_search
from recipes.darts import seeds
from recipes.darts.space import DartsSpace
from recipes.darts.supernet import Supernet
from recipes.darts.training import SCHEDULE, BilevelSearch, largest_eigenvalue, select_by_perturbation
from recipes.engine.children import NetworkScorer, load_images
from recipes.training.supernet import list_states
from zoo.genotype import Cells

SMOKE = darts.PRESETS["smoke"]


class Quadratic:
    """A stand-in for a supernet: loss = sum(weights^2) x alpha / 2 on every batch, with one weight and one alpha."""

    def __call__(self, wanted: Any, batch: Any, weights: Any, alphas: Any, strengths: Any = None) -> list:
        weights, alphas = np.asarray(weights), np.asarray(alphas)
        gradients = {"alphas": weights**2 / 2, "weights": weights * alphas}
        return [np.array([7.0, 0.25]), *(gradients[name] for name in wanted)]

    @classmethod
    def search(cls, order: int) -> BilevelSearch:
        state = BilevelSearch(Supernet(DartsSpace(1), 3, 2, 2, 1), order, alpha_rate=0.1, seed=0)
        weights: Any = [tf.Variable(tf.constant([value])) for value in (2.0, 0.0, 3.0)]
        state.weights, state.slots, state.alphas, state.run = weights[0], weights[1:2], weights[2], cls()
        return state


def scorer(config: darts.Config) -> NetworkScorer:
    return NetworkScorer(config, config.make_space(), "darts", {}, load_images(config))


def test_second_order_gradient_is_that_of_the_unrolled_loss():
    _, gradient = Quadratic.search(2).alpha_gradient((0, 0), (0, 0), 0.1)
    # w' = w - 0.1 (a w + 3e-4 w) = w (1 - 0.1 a - 3e-5); L = a w'^2 / 2; dL/da = w'^2 / 2 - 0.1 a w w'
    unrolled = 2.0 * (0.7 - 3e-5)
    assert gradient[0] == pytest.approx(unrolled**2 / 2 - 0.1 * 3 * 2 * unrolled, rel=1e-3)


def test_largest_eigenvalue_of_a_quadratic_is_found():
    matrix = np.diag([5.0, 1.0, -2.0]).astype(np.float32)
    found = largest_eigenvalue(lambda x: matrix @ x, np.ones(3, np.float32), 20, np.random.default_rng(0))
    assert found == pytest.approx(5.0, rel=1e-3)


def test_learning_rate_falls_along_a_cosine_to_its_least():
    assert SCHEDULE.at(0, 50) == pytest.approx(0.025)
    assert SCHEDULE.at(25, 50) == pytest.approx(0.013)


def test_alphas_rest_while_the_weights_warm_up():
    state = Quadratic.search(1)
    metrics = state.learn((0, 0), None, 0.1)
    assert state.alphas.numpy() == [3.0]
    assert state.weights.numpy() == pytest.approx([2.0 - 0.1 * (5.0 + 3e-4 * 2)])  # the gradient, 6, is clipped to 5
    assert metrics == [7.0, 0.25]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warm_up_epochs": 2}, "warm_up_epochs is 2 of 2 search_epochs"),
        ({"search_filters": 3}, "search_filters is 3; expected an even number"),
        ({"ops": ("skip_conect",)}, r"ops names 'skip_conect'.*did you mean 'skip_connect'"),
        ({"ops": ("skip_connect", "skip_connect")}, "each operation once"),
        ({"supernets": 2, "selection": "perturbation"}, "perturbation selects by one"),
        ({"alpha_rate": 0.0}, r"alpha_rate is 0\.0; expected a rate above 0"),
    ],
)
def test_options_that_cannot_be_are_refused_with_the_reason(options, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMOKE, **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"nodes": 2},
        {
            "order": 2,
            "warm_up_epochs": 0,
            "ops": ("sep_conv_3x3", "skip_connect"),
            "fixed_reduction": True,
            "selection": "perturbation",
        },
    ],
    ids=["first-order", "second-order-reduced"],
)
def test_a_search_that_was_killed_at_any_step_ends_with_the_same_cells_and_strengths(options, tmp_path):
    networks = scorer(dataclasses.replace(SMOKE, save_seconds=0.0, **options))
    whole = seeds.find_cells(networks, 3, tmp_path / "whole.npz", lambda share, text: None)
    killed = tmp_path / "killed.npz"
    for step in (2, 3):  # of six: within an epoch, and where one has ended
        with pytest.raises(KeyboardInterrupt):
            seeds.find_cells(networks, 3, killed, functools.partial(kill_at, step / 6))
    assert seeds.find_cells(networks, 3, killed, lambda share, text: None) == whole
    with pytest.raises(ValueError, match=r"another training .seed=3 there and 4 here"):
        seeds.find_cells(networks, 4, killed, lambda share, text: None)


def kill_at(last: float, share: float, text: str) -> None:
    if share >= last:
        raise KeyboardInterrupt


@pytest.mark.slow
def test_a_search_ends_early_where_skip_connections_take_over_also_when_it_is_resumed(tmp_path, monkeypatch):
    monkeypatch.setattr(seeds, "_count_skips", lambda graph: 2)
    networks = scorer(dataclasses.replace(SMOKE, stop_at_skips=2))
    found = seeds.find_cells(networks, 0, tmp_path / "state.npz", lambda share, text: None)
    assert len(found["history"]) == 1
    assert seeds.find_cells(networks, 0, tmp_path / "state.npz", lambda share, text: None) == found


@pytest.mark.slow
def test_a_dry_run_of_the_papers_search_needs_no_images(tmp_path, capsys):
    sizes: Any = {"search_cells": 3, "search_filters": 2, "nodes": 1, "search_batch_size": 8, "image_size": 8}
    config = dataclasses.replace(darts.PRESETS["paper"], dry_run=True, dry_run_steps=1, folder=tmp_path, **sizes)
    darts.search(config)
    steps = 50 * (49_999 // 2 // 8)  # one image stands in for validation
    assert f"{steps:,} steps a search, 4 x " in capsys.readouterr().out


@pytest.mark.slow
def test_the_result_is_a_genotype_file_that_builds(tmp_path):
    genotype = darts.search(dataclasses.replace(SMOKE, folder=tmp_path), observe=lambda status: None)
    assert zoo.load(tmp_path / "genotype.json") == genotype
    assert zoo.build(genotype, "search", classes=10, input_shape=(8, 8, 1)).output_shape == (None, 10)
    (found,) = (tmp_path / "seeds").glob("seed*.json")
    assert len(json.loads(found.read_text())["history"]) == SMOKE.search_epochs
    assert list((tmp_path / "card").glob("strengths_seed*.png"))


@pytest.mark.slow
def test_random_cells_are_trained_alike_and_ranked_by_the_shared_weights_too(tmp_path, monkeypatch):
    monkeypatch.setattr(_seeds, "LEAST_NETWORKS", 2)
    config = dataclasses.replace(SMOKE, folder=tmp_path, random_cells=2)
    darts.search(config, observe=lambda status: None)
    alone = [trial.score for trial in read_search(tmp_path / "baseline").trials]
    (found,) = json.loads((tmp_path / "ranking.json").read_text()).values()
    assert found["alone"] == alone
    assert len(found["shared"]) == 2
    assert found["tau"] is None or -1 <= found["tau"] <= 1


def test_strengths_of_cells_stand_for_these_cells():
    space = DartsSpace(3)
    rng = np.random.default_rng(0)
    values = {decision.name: decision.choices[rng.integers(len(decision.choices))] for decision in space.decisions}
    cells = space.body(values)
    assert space.derive(space.strengths(cells)) == cells
    assert space.values(cells) == values
    assert space.strengths(cells).sum() == 2 * 6  # two edges a node
    with pytest.raises(ValueError, match="of 2 nodes"):
        DartsSpace(2).strengths(cells)


def test_cells_are_ranked_by_the_strengths_of_what_they_do(tmp_path):
    config = dataclasses.replace(SMOKE, ops=("skip_connect", "sep_conv_3x3"), fixed_reduction=True)
    searched = scorer(config)
    state = seeds.make_search(config, searched.images, 3)
    state.alphas.assign(np.log([[[0.2, 0.3, 0.5], [0.1, 0.6, 0.3]]]))
    state.file(tmp_path / "3").save({}, state.variables)
    cells = [
        config.make_space().body({"normal/node0/states": "0,1", "normal/node0/op0": first, "normal/node0/op1": second})
        for first, second in (("skip_connect", "skip_connect"), ("sep_conv_3x3", "skip_connect"))
    ]
    ((seed, found),) = seeds.judge_cells(searched, {3: tmp_path / "3", 4: tmp_path / "gone"}, cells)
    assert seed == 3
    assert found == pytest.approx([np.log(0.3 * 0.6), np.log(0.5 * 0.6)])


def test_several_supernets_stand_for_the_cells_of_their_geometric_mean(tmp_path):
    config = dataclasses.replace(SMOKE, ops=("skip_connect", "sep_conv_3x3"), fixed_reduction=True, supernets=2)
    searched = scorer(config)
    files = list_states(3, config.supernets, tmp_path / "seed3.state.npz")
    for (seed, file), first_edge in zip(files.items(), ([0.1, 0.8, 0.1], [0.5, 0.1, 0.4]), strict=True):
        state = seeds.make_search(config, searched.images, seed)
        state.alphas.assign(np.log([[first_edge, [0.2, 0.2, 0.6]]]))
        state.file(file).save({}, state.variables)
    mean = seeds._mean_strengths(config, searched.images, files)
    assert mean == pytest.approx(np.array([[[0.05, 0.08, 0.04], [0.04, 0.04, 0.36]]]) ** 0.5)


def test_derived_cell_keeps_the_two_strongest_edges_and_never_none():
    strengths = np.zeros((2, 5, 8))
    strengths[:, :, 0] = 0.9  # "none" is everywhere strongest
    strengths[0, 2:5, 4] = [0.03, 0.01, 0.02]  # normal cell, second node: states 0 and 2 win with sep_conv_3x3
    strengths[0, 0:2, 3] = 0.05
    strengths[1, :, 1] = 0.1
    cells = DartsSpace(2).derive(strengths)
    assert cells.normal.nodes[0].edges == (("skip_connect", 0), ("skip_connect", 1))
    assert cells.normal.nodes[1].edges == (("sep_conv_3x3", 0), ("sep_conv_3x3", 2))
    assert cells.normal.concat == (2, 3)


def test_selection_by_perturbation_keeps_what_the_accuracy_falls_most_without():
    state = BilevelSearch(Supernet(DartsSpace(2, ("skip_connect", "sep_conv_3x3")), 3, 2, 2, 1), 1, 0.1, seed=0)
    worth = np.random.default_rng(0).uniform(size=state.net.space.shape)  # of each operation of each edge
    tuned = []

    def run(wanted: Any, batch: Any, weights: Any, strengths: Any) -> list:
        return [np.array([1.0, (worth * (strengths > 0)).sum()])]

    state.run = run
    cells = select_by_perturbation(
        state, [(0, 0)], lambda strengths: tuned.append(strengths.sum()), np.random.default_rng(1)
    )
    assert cells == state.net.space.derive(worth)
    assert len(tuned) == 2 * (5 + 1)  # after each edge's choice, and after that of the node with three edges
    assert tuned[-1] == 2 * 4  # two edges a node are left


def test_the_picture_of_the_strengths_has_a_column_of_panels_for_each_searched_cell(tmp_path):
    widths = []
    for fixed in (False, True):
        space = DartsSpace(2, ("skip_connect", "sep_conv_3x3"), fixed)
        tables = np.random.default_rng(0).dirichlet(np.ones(3), (2, *space.shape[:2])).round(5)  # two epochs
        records = [{"strengths": table.tolist()} for table in tables]
        seeds.draw_strengths(space, records, "seed 7", tmp_path / "seed7.png")
        with Image.open(tmp_path / "seed7.png") as picture:
            widths.append(picture.width)
    assert widths[0] == 2 * widths[1] > 1000


def test_a_reduced_space_has_its_operations_and_the_papers_reduction_cell():
    space = DartsSpace(2, ("skip_connect", "sep_conv_3x3", "dil_conv_5x5"), fixed_reduction=True)
    assert space.size == 3**2 * 3 * 3**2  # two operations a node; the second node has three pairs of states
    values = {decision.name: decision.choices[-1] for decision in space.decisions}
    cells = space.body(values)
    assert cells.normal.nodes[1].edges == (("dil_conv_5x5", 1), ("dil_conv_5x5", 2))
    published = zoo.load("darts").body
    assert isinstance(published, Cells)
    assert DartsSpace(4, fixed_reduction=True).fixed_cell() == published.reduce
    assert cells.reduce == space.fixed_cell()
    assert space.values(space.derive(space.strengths(cells))) == values


def test_a_state_of_another_version_stops_the_search_with_the_remedy_and_is_no_failure_of_its_seed(tmp_path):
    (tmp_path / "seeds").mkdir()
    np.savez(tmp_path / "seeds" / "seed0.state.npz", weights=np.zeros(3, np.float32))
    with pytest.raises(ValueError, match=r"seed0\.state\.npz cannot be read .* delete it to start over"):
        darts.search(dataclasses.replace(SMOKE, folder=tmp_path), observe=lambda status: None)
    assert not (tmp_path / "seeds" / "seed0.json").exists()
