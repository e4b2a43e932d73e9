"""The progressive oracle and its predictors, on spaces small enough to be checked by hand."""

import dataclasses

import keras_tuner
import numpy as np
import pytest
import tensorflow as tf

from recipes import pnasnet
from recipes.oracles import Fitting, ProgressiveOracle
from recipes.oracles.choices import Choices
from recipes.oracles.layout import Grid, Layout
from recipes.oracles.predictors import Predictor, map_to_quantiles
from tests.oracles.test_oracles import answer, run

OBJECTIVE = keras_tuner.Objective("score", "max")
QUICK = Fitting(embedding=4, hidden=8, steps=30)


def cells(nodes: int, key: bool = True, **options) -> ProgressiveOracle:
    space = pnasnet.pnasnet(nodes)
    options = {"max_trials": None, "seed": 0, "fitting": QUICK, "pooled": True} | options
    return ProgressiveOracle(
        OBJECTIVE,
        hyperparameters=space.hyperparameters(),
        levels=space.levels,
        depth="nodes",
        kinds=space.kinds,
        key=space.key if key else None,
        **options,
    )


def digits(**options) -> ProgressiveOracle:
    """Numbers digit by digit; digits that are not reached yet are 0."""
    hyperparameters = keras_tuner.HyperParameters()
    names = [f"digit{level}" for level in range(3)]
    for name in names:
        hyperparameters.Choice(name, [0, 1, 2])
    options = {"seed": 0, "fitting": QUICK, "levels": [[name] for name in names], "kinds": {"digit": names}} | options
    return ProgressiveOracle(OBJECTIVE, hyperparameters=hyperparameters, **options)


def separable_convolutions(values: dict) -> float:
    """The share of separable convolutions among the ops, so that all levels have the same best score."""
    ops = [value for name, value in values.items() if "/op" in name]
    return sum(op.startswith("sep") for op in ops) / len(ops)


def test_there_are_136_cells_of_one_node():
    # 2 inputs x 8 ops = 16 operands; 16 x 17 / 2 unordered pairs of them.
    oracle = cells(1)
    assert len(run(oracle, separable_convolutions)) == 136
    assert oracle.message == "done: all 1 levels, 136 trials"


def test_each_level_expands_the_cells_of_the_level_before():
    seen = run(cells(3, first=6, beam=4), separable_convolutions)
    assert [values["nodes"] for values in seen] == [1] * 6 + [2] * 4 + [3] * 4
    for deep in seen[6:]:
        shallow = {name: value for name, value in deep.items() if f"/node{deep['nodes'] - 1}/" not in name}
        assert {**shallow, "nodes": deep["nodes"] - 1} in seen


def test_equal_cells_are_tried_once():
    space = pnasnet.pnasnet(2)
    keys = [space.key(values) for values in run(cells(2, first=30, beam=60), separable_convolutions)]
    assert len(keys) == len(set(keys)) == 90


@pytest.mark.parametrize("network", ["mlp", "lstm"])
@pytest.mark.parametrize("target", ["ranks", "accuracy"])
def test_larger_cells_are_those_that_the_predictor_finds_promising(network, target):
    fitting = dataclasses.replace(QUICK, network=network, target=target, steps=60, first_rate=0.03)
    scores = [
        separable_convolutions(values) for values in run(cells(2, beam=20, fitting=fitting), separable_convolutions)
    ]
    assert np.mean(scores[:136]) == pytest.approx(3 / 8, abs=0.02)
    assert np.mean(scores[136:]) > 0.8


def test_a_level_waits_for_its_last_trial():
    oracle = cells(2, first=2, beam=2)
    first, second = oracle.create_trial("one"), oracle.create_trial("two")
    answer(oracle, first, 0.5)
    assert oracle.create_trial("one").status == "IDLE"
    answer(oracle, second, 0.6)
    assert oracle.create_trial("one").hyperparameters.get("nodes") == 2


def test_failed_trials_count_in_their_level_and_are_not_expanded():
    failing = lambda values: None if values.get("normal/node0/op0") == "sep_conv_3x3" else 0.5  # noqa: E731
    seen = run(cells(2, first=40, beam=10), failing)
    assert [values["nodes"] for values in seen] == [1] * 40 + [2] * 10
    assert any(failing(values) is None for values in seen[:40])
    assert all(failing(values) for values in seen[40:])


def test_a_search_whose_trials_all_fail_ends():
    oracle = cells(3, first=5, beam=4)
    with pytest.raises(RuntimeError, match="all 5 trials failed"):
        run(oracle, lambda values: None)


def test_refused_cells_give_their_place_to_the_next_ones():
    check = lambda values: "too large" if "sep_conv_7x7" in values.values() else None  # noqa: E731
    seen = run(cells(2, first=10, beam=10, check=check), separable_convolutions)
    assert [values["nodes"] for values in seen] == [1] * 10 + [2] * 10
    assert not any(check(values) for values in seen)


def test_choices_that_are_not_reached_yet_have_their_defaults():
    seen = run(digits(beam=2), lambda values: sum(values.values()))
    assert [values["digit2"] for values in seen[:-2]] == [0] * (len(seen) - 2)
    assert {values["digit0"] for values in seen[:3]} == {0, 1, 2}
    assert all(values["digit1"] == values["digit2"] == 0 for values in seen[:3])


def test_rounds_after_the_last_level_try_all_of_a_small_space():
    oracle = digits(beam=2, max_trials=100)
    seen = run(oracle, lambda values: sum(values.values()))
    assert len({tuple(values.items()) for values in seen}) == len(seen) == 27
    assert oracle.message == "no candidate is left after 27 trials"


def test_rounds_of_a_large_space_try_what_is_left_of_the_expansions():
    seen = run(cells(3, first=4, beam=3, round_size=2, max_trials=25, explore=0.0), separable_convolutions)
    assert [values["nodes"] for values in seen] == [1] * 4 + [2] * 3 + [3] * 18
    parents = [{**values, "nodes": 3} for values in seen[4:7]]
    assert all(any(parent.items() <= values.items() for parent in parents) for values in seen[7:])


def layout(pooled: bool, partial: bool) -> tuple[Choices, Layout]:
    space = pnasnet.pnasnet(3)
    choices = Choices(space.hyperparameters())
    return choices, Layout(choices, space.levels, space.kinds, pooled, partial)


def drawn(choices: Choices, count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(choices.counts, size=(count, len(choices)))


@pytest.mark.parametrize("network", ["mlp", "lstm"])
def test_without_weights_all_predictions_are_the_median_and_the_error_is_known(network):
    choices, read = layout(pooled=True, partial=True)
    predictor = Predictor(read, Fitting(network=network, target="accuracy", embedding=3, hidden=5, members=2))
    state = predictor.network.new_state(lambda weight: np.zeros(weight.shape))
    predictor.network.split_weights(state)[-1][...] = np.log(0.6 / 0.4)  # the output's bias: 0.6 after the sigmoid
    genomes, targets = drawn(choices, 4), np.array([0.5, 0.6, 0.7, 1.0], np.float32)
    data = [np.stack([array] * 2) for array in predictor.network.read(read, genomes, np.array([1, 2, 3, 3]))]
    with predictor.network.with_weights(state[0]):
        error = predictor.network.error(*(tf.constant(array) for array in data), targets)
    assert float(error) == pytest.approx(2 * (0.1 + 0.0 + 0.1 + 0.4) / 4, rel=1e-5)  # of two members


@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("network", ["mlp", "lstm"])
def test_members_learn_each_from_their_own_data(network, pooled):
    choices, read = layout(pooled, partial=True)
    fitting = Fitting(network=network, embedding=4, hidden=16, steps=150, first_rate=0.03, share=1.0, members=2)
    predictor = Predictor(read, fitting)
    genomes, depths = drawn(choices, 6), np.array([1, 2, 3, 3, 2, 1])
    scores = np.array([0.1, 0.9, 0.4, 0.7, 0.2, 0.3])
    predictor.fit(genomes, depths, scores, np.random.default_rng(0))
    grids = [Grid(row[None], (), (), int(depth)) for row, depth in zip(genomes, depths, strict=True)]
    members = np.concatenate([predictor.network.predict(predictor.state, read, grid) for grid in grids], axis=1)
    assert np.abs(members - map_to_quantiles(scores)).mean() < 0.15
    assert not np.array_equal(*members)


def test_batches_smaller_than_the_data_are_drawn_from_it():
    choices, read = layout(pooled=False, partial=False)
    predictor = Predictor(read, Fitting(embedding=4, hidden=16, steps=200, batch=4, share=1.0, first_rate=0.02))
    genomes, scores = drawn(choices, 12), np.random.default_rng(1).random(12)
    predictor.fit(genomes, np.full(12, 3), scores, np.random.default_rng(0))
    means = [predictor.predict(Grid(row[None], (), (), 3))[0].item() for row in genomes]
    assert np.corrcoef(means, map_to_quantiles(scores))[0, 1] > 0.9


@pytest.mark.parametrize(("pooled", "partial"), [(True, True), (False, True), (False, False)])
@pytest.mark.parametrize("network", ["mlp", "lstm"])
def test_a_grid_of_candidates_scores_as_each_does_alone(network, pooled, partial):
    choices, read = layout(pooled, partial)
    predictor = Predictor(read, Fitting(network=network, embedding=3, hidden=5))
    predictor.state = predictor.network.draw_state(np.random.default_rng(0), 0.5)
    places = tuple(choices.names.index(name) for name in pnasnet.pnasnet(3).levels[1])
    grid = Grid(drawn(choices, 2), places, tuple(choices.counts[list(places)].tolist()), 2)
    assert len(grid) == 2 * 3 * 3 * 8 * 8
    means, deviations = predictor.predict(grid)
    for number in (0, 5, 77, 640, 1151):
        genome = np.array([grid.genome(number)])
        data = [np.stack([array] * 5) for array in predictor.network.read(read, genome, np.array([2]))]
        with predictor.network.with_weights(predictor.state[0]):
            alone = predictor.network.raw(*map(tf.constant, data)).numpy()
        assert means[number] == pytest.approx(alone.mean(), abs=1e-5)
        assert deviations[number] == pytest.approx(alone.std(), abs=1e-5)


def test_ranks_become_normal_quantiles_and_equal_scores_stay_equal():
    # The middles of three thirds: quantiles of 1/6, 1/2 and 5/6.
    assert map_to_quantiles(np.array([9.0, -1.0, 3.0])) == pytest.approx([0.96742, -0.96742, 0.0], abs=1e-5)
    assert map_to_quantiles(np.array([2.0, 2.0, 5.0, 2.0]))[[0, 1, 3]] == pytest.approx([-0.31864] * 3, abs=1e-5)


def test_wrong_arguments_say_what_was_expected():
    with pytest.raises(ValueError, match=r"levels leave out \['digit2'\]"):
        run(digits(levels=[["digit0"], ["digit1"]]), lambda values: 1.0)
    with pytest.raises(ValueError, match=r"name \['digit9'\]"):
        run(digits(levels=[["digit0"], ["digit9"]]), lambda values: 1.0)
    with pytest.raises(ValueError, match="expected a choice with a value for each level"):
        run(digits(levels=[["digit1"], ["digit2"]], depth="digit0"), lambda values: 1.0)
    with pytest.raises(ValueError, match="Use target='ranks'"):
        run(digits(fitting=Fitting(target="accuracy")), lambda values: sum(values.values()))
