"""The DARTS recipe: its gradients, its guard, and that it goes on as if it had never been stopped."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import zoo
from recipes import darts
from recipes.cards import reading as report_data
from recipes.darts import ranking as supernet_ranking
from recipes.darts.space import RandomCells
from recipes.darts.supernet import Supernet, derive
from recipes.darts.training import Bilevel, Rates, largest_eigenvalue
from recipes.engine import children as child_networks
from recipes.engine import seed_search
from zoo.genotype import CellGraph, Cells, Edge, Node

SMOKE = darts.PRESETS["smoke"]


class Quadratic:
    """A stand-in for a supernet: loss = sum(weights^2) x alpha / 2 on every batch, with one weight and one alpha."""

    def __init__(self, bilevel: Bilevel):
        bilevel.weights = bilevel.velocity = np.zeros(1, np.float32)
        bilevel.weights, bilevel.alphas = np.array([2.0], np.float32), np.array([3.0], np.float32)
        bilevel._gradient = {"both": self.both}

    def both(self, weights: Any, alphas: Any, batch: Any) -> list:
        return [float(weights[0] ** 2 * alphas[0] / 2), weights**2 / 2, weights * alphas]


def test_second_order_gradient_is_that_of_the_unrolled_loss():
    state = Bilevel(Supernet(3, 2, 2, 1, nodes=1), Rates(order=2, weight_decay=0.0), seed=0)
    Quadratic(state)
    # w' = w - 0.1 a w = w (1 - 0.1 a); L = a w'^2 / 2; dL/da = w'^2 / 2 - 0.1 a w w'
    _, gradient = state.alpha_gradient((0, 0), (0, 0), 0.1)
    unrolled = 2.0 * 0.7
    assert gradient[0] == pytest.approx(unrolled**2 / 2 - 0.1 * 3 * 2 * unrolled, rel=1e-3)


def test_largest_eigenvalue_of_a_quadratic_is_found():
    matrix = np.diag([5.0, 1.0, -2.0]).astype(np.float32)
    found = largest_eigenvalue(lambda x: matrix @ x, np.ones(3, np.float32), 20, np.random.default_rng(0))
    assert found == pytest.approx(5.0, rel=1e-3)


def test_learning_rate_falls_along_a_cosine_to_its_least():
    rates = Rates()
    assert rates.at(0, 50) == pytest.approx(0.025)
    assert rates.at(25, 50) == pytest.approx(0.013)


def test_alphas_rest_while_the_weights_warm_up():
    state = Bilevel(Supernet(3, 2, 2, 1, nodes=1), Rates(weight_decay=0.0), seed=0)
    Quadratic(state)
    state._gradient["weights"] = lambda weights, alphas, batch: ([6.0, 0.5], weights * alphas)
    state._gradient["alphas"] = lambda weights, alphas, batch: (np.array([7.0, 0.25]), weights**2 / 2)
    state.learn((0, 0), None, 0.1)
    assert state.alphas == [3.0]
    assert state.weights == pytest.approx([2.0 - 0.1 * 5.0])  # the gradient, 6, is clipped to 5
    assert state.epoch_marks((0, 0)) == (6.0, 0.5, 7.0, 0.25)


def test_a_warm_up_of_all_epochs_is_refused_with_the_reason():
    with pytest.raises(ValueError, match="warm_up_epochs is 2 of 2 search_epochs"):
        dataclasses.replace(SMOKE, warm_up_epochs=2)


@pytest.mark.slow
@pytest.mark.parametrize(("order", "warm_up"), [(1, 1), (2, 0)])
def test_a_search_that_goes_on_from_any_saved_step_ends_with_the_same_cells_and_alphas(order, warm_up, tmp_path):
    config = dataclasses.replace(SMOKE, order=order, warm_up_epochs=warm_up)
    images = child_networks.load_images(config)
    whole = darts.find_cells(config, images, 3, tmp_path / "whole", lambda share, text: None)
    batches = darts.Batches(config, images, 3)
    state = darts.make(config, images, 3)
    validation = None if warm_up else batches.of(1, 0, 0)
    state.learn(batches.of(0, 0, 0), validation, state.rates.at(0, config.search_epochs))
    state.save(tmp_path / "again" / "seed3.state.npz")
    again = darts.find_cells(config, images, 3, tmp_path / "again", lambda share, text: None)
    assert again["strengths"] == whole["strengths"]
    assert again["normal"] == whole["normal"]
    assert again["history"] == whole["history"]


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


@pytest.mark.slow
def test_random_cells_are_trained_alike_and_ranked_by_the_shared_weights_too(tmp_path, monkeypatch):
    monkeypatch.setattr(seed_search, "LEAST_NETWORKS", 2)
    config = dataclasses.replace(SMOKE, folder=tmp_path, random_cells=2)
    darts.search(config, observe=lambda status: None)
    alone = [trial.score for trial in report_data.read(tmp_path / "baseline").trials]
    (found,) = json.loads((tmp_path / "ranking.json").read_text()).values()
    assert found["alone"] == alone
    assert len(found["shared"]) == 2
    assert found["tau"] is None or -1 <= found["tau"] <= 1


def test_alphas_of_cells_stand_for_these_cells():
    space = RandomCells(3)
    rng = np.random.default_rng(0)
    values = {decision.name: decision.choices[rng.integers(len(decision.choices))] for decision in space.decisions}
    cells = space.body(values)
    strengths = tf.nn.softmax(supernet_ranking.alphas_of(cells, 3)).numpy()
    assert derive(strengths, 3) == cells
    assert strengths[:, :, 0].sum() == pytest.approx(2 * (2 + 3 + 4) - 2 * 6)  # all edges but two a node are "none"


def test_shared_weights_judge_a_cell_as_the_supernet_does_with_all_strength_on_it():
    net = Supernet(3, 2, 2, 1, nodes=1)
    weights = net.packing.initial(0)
    rng = np.random.default_rng(0)
    images, labels = rng.standard_normal((6, 8, 8, 1)).astype(np.float32), rng.integers(0, 2, 6).astype(np.int32)
    cell = CellGraph((Node((Edge("sep_conv_3x3", 0), Edge("max_pool_3x3", 1))),), (2,))
    alphas = supernet_ranking.alphas_of(Cells(cell, cell), 1)
    right = np.mean(net.logits(weights, alphas, images).numpy().argmax(1) == labels)
    assert supernet_ranking.SharedAccuracies(net)(weights, [Cells(cell, cell)], images, labels) == [right]


def test_random_cells_read_two_different_states():
    space = RandomCells(2)
    values = {decision.name: decision.choices[-1] for decision in space.decisions}
    assert space.body(values).normal.nodes[1].edges == (("dil_conv_5x5", 1), ("dil_conv_5x5", 2))


def test_odd_filters_are_refused_with_the_reason():
    with pytest.raises(ValueError, match="even"):
        dataclasses.replace(SMOKE, search_filters=3)
