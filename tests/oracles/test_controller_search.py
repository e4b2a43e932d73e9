"""The controllers: probabilities and losses that can be computed by hand; they learn, and resume where they were."""

import copy
import functools
from typing import Any

import keras
import keras_tuner
import numpy as np
import pytest
import tensorflow as tf

from recipes.enas.controller import MacroController, MicroController
from recipes.enas.space import ChainSpace, MicroSpace
from recipes.oracles import ControllerOracle
from recipes.oracles.controller import get_controller_network
from recipes.oracles.networks import run_lstm
from tests.oracles import test_oracles

OBJECTIVE = keras_tuner.Objective("score", "max")


def choices() -> keras_tuner.HyperParameters:
    hyperparameters = keras_tuner.HyperParameters()
    for name in "abcde":
        hyperparameters.Choice(name, list(range(4)))
    return hyperparameters


def mean_of(values: dict) -> float:
    return sum(values.values()) / 15


def run(oracle: ControllerOracle, trials: int) -> list[float]:
    return [mean_of(values) for values in test_oracles.run(oracle, mean_of, trials)]


def network_and_state(counts: tuple[int, ...], scale: float = 1.0):
    network = get_controller_network(counts, hidden=4)
    return network, network.new_state(lambda weight: np.random.default_rng(0).uniform(-scale, scale, weight.shape))


def log_probs_of(network, state, genomes: np.ndarray) -> np.ndarray:
    with network.with_weights(state[0]):
        found = network.log_probs(tf.constant(genomes, tf.int32)).numpy()
    return np.take_along_axis(found, genomes.T[..., None], axis=2)[..., 0].T


def test_the_fused_lstm_and_its_gradient_are_those_of_keras():
    keras.utils.set_random_seed(0)
    layer = keras.layers.LSTM(3, return_sequences=True, use_cudnn=False, bias_initializer="random_normal")
    inputs = tf.random.normal([2, 5, 3], stddev=2.0)
    fused = lambda x: tf.transpose(run_lstm(layer.cell, tf.transpose(x, [1, 0, 2])), [1, 0, 2])  # noqa: E731
    results = []
    for outputs_of in (layer, fused):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = outputs_of(inputs)
            loss = tf.reduce_sum(tf.sin(3 * outputs))
        results.append([outputs, *tape.gradient(loss, [inputs, *layer.trainable_variables])])
    for expected, found in zip(*results, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_probabilities_of_all_genomes_add_up_to_one_and_are_the_frequencies_of_the_draws():
    network, state = network_and_state((3, 2))
    genomes = np.array([(a, b) for a in range(3) for b in range(2)])
    probabilities = np.exp(log_probs_of(network, state, genomes).sum(axis=1))
    assert probabilities.sum() == pytest.approx(1, rel=1e-5)
    drawn, _ = network.sample(state, np.random.default_rng(0).random((20_000, 2), np.float32))
    found = np.bincount(drawn.numpy() @ [2, 1], minlength=6) / 20_000
    np.testing.assert_allclose(found, probabilities, atol=0.01)
    assert probabilities.max() - probabilities.min() > 0.05


def test_the_loss_is_clipped_ratios_and_entropy():
    # Without weights every choice is equally likely: 1/2 of the first decision and 1/4 of the second.
    network, state = network_and_state((2, 4), scale=0.0)
    genomes = tf.constant([[0, 1], [1, 3]])
    ratios = np.array([[1.5, 1.1], [0.5, 0.9]])  # (genome, decision)
    before = np.log([[1 / 2, 1 / 4]]) - np.log(ratios)
    with network.with_weights(state[0]):
        loss = network.loss(genomes, tf.constant(before.T, tf.float32), tf.constant([1.0, -2.0]), 0.1, 0.2)
    # 1.5 counts as 1.2; 0.5 as 0.8, for the genome scored below the average.
    gains = np.array([1.2 + 1.1, -2 * (0.8 + 0.9)]) + 0.1 * (np.log(2) + np.log(4))
    assert float(loss) == pytest.approx(-gains.mean(), rel=1e-5)


def test_a_step_makes_what_scored_above_the_average_likelier():
    network, state = network_and_state((3, 2))
    genomes = np.array([[0, 0], [2, 1]], np.int32)
    before = log_probs_of(network, state, genomes).sum(axis=1)
    _, state = network.update(state, genomes, np.array([1, -1], np.float32), 0.01, 0.0, np.inf, 1)
    after = log_probs_of(network, state, genomes).sum(axis=1)
    assert after[0] > before[0]
    assert after[1] < before[1]


def test_searches_of_one_shape_share_a_trace_and_nothing_else():
    alone = run(ControllerOracle(OBJECTIVE, 50, choices(), seed=1, hidden=8, batch=5), 30)
    one, other = (ControllerOracle(OBJECTIVE, 50, choices(), seed=seed, hidden=8, batch=5) for seed in (1, 2))
    assert one.network is other.network
    found = []
    for _ in range(30):
        found += run(one, 1)
        run(other, 1)
    assert found == alone


@pytest.mark.parametrize(("algorithm", "rate"), [("ppo", 0.003), ("reinforce", 0.03)])
def test_a_controller_learns_which_choices_score(algorithm, rate):
    oracle = ControllerOracle(OBJECTIVE, 160, choices(), seed=0, algorithm=algorithm, learning_rate=rate, hidden=20)
    scores = run(oracle, 160)  # of 1,024 points: later, the best ones are used up
    assert np.mean(scores[:40]) == pytest.approx(0.5, abs=0.1)
    assert np.mean(scores[120:]) > 0.62


@pytest.mark.parametrize(
    "learned", [{"average": 0.5, "queue": [], "results": [], "weights": [], "steps": 3}, {"network": "of 10 units"}]
)
def test_the_state_of_another_network_is_refused_in_words(learned):
    oracle, other = (ControllerOracle(OBJECTIVE, 9, choices(), seed=0, hidden=hidden) for hidden in (8, 10))
    if "network" in learned:
        other.propose()
        learned = other.learned()
    with pytest.raises(ValueError, match="search in another folder"):
        oracle.restore(learned)


@functools.cache
def traced(kind, space: Any, settings: tuple):
    return kind(space, **dict(settings))


def enas(kind, space: Any, zero: bool = False, **settings):
    """A controller of a space, or of one of so many nodes or layers, at its beginning; equal ones share a trace."""
    if isinstance(space, int):
        space = (MicroSpace if kind is MicroController else ChainSpace)(space)
    defaults = {"hidden": 6, "temperature": 1.0, "tanh_constant": 2.5, "op_reduce": 2.5, "learning_rate": 0.01}
    defaults |= {"entropy": 0.0, "baseline": 0.9, "skip_target": 0.4, "skip_weight": 0.8, "seed": 0}
    controller = copy.copy(traced(kind, space, tuple((defaults | settings).items())))
    *controller.state, controller._average = [array.copy() for array in controller.arrays]
    if zero:
        controller.state = controller.new_state(lambda weight: np.zeros(weight.shape))
    return controller


def test_without_weights_micro_states_are_equally_likely_and_operations_have_their_bias():
    controller = enas(MicroController, 2, zero=True)
    paths = controller.sample(3, np.random.default_rng(0))
    paths[:, 0, :, :, 1] = np.array([0, 4, 4])[
        :, None, None
    ]  # the separable convolution is likelier in the normal cell
    found = controller.update(paths, [0.0, 0.0, 0.0])
    softmax = np.exp([0.25, 0.25, -0.25, -0.25, -0.25]) / np.exp([0.25, 0.25, -0.25, -0.25, -0.25]).sum()
    states = 4 * np.log(1 / 2) + 4 * np.log(1 / 3)  # two edges of each of two cells: 2 states, then 3
    others = states + 4 * np.log(1 / 5)  # the four operations of the reduction cell
    expected = others + 4 * np.log(softmax[[0, 4, 4]])
    np.testing.assert_allclose(found["log_prob"], expected, rtol=1e-5)
    entropy = -others - 4 * (softmax * np.log(softmax)).sum()
    np.testing.assert_allclose(found["entropy"], [entropy] * 3, rtol=1e-5)
    assert not found["skip_penalty"].any()


def test_without_weights_a_skip_is_a_coin_and_its_penalty_the_divergence_from_the_target():
    controller = enas(MacroController, 3, zero=True)
    paths = controller.sample(2, np.random.default_rng(0))
    assert not np.triu(paths[:, :, 1:]).any()
    found = controller.update(paths, [0.0, 1.0])
    log_prob = 3 * np.log(1 / 6) + 3 * np.log(1 / 2)  # three operations; 1 + 2 skips
    np.testing.assert_allclose(found["log_prob"], [log_prob] * 2, rtol=1e-5)
    np.testing.assert_allclose(found["entropy"], [-log_prob] * 2, rtol=1e-5)
    divergence = 0.5 * np.log(0.5 / 0.4) + 0.5 * np.log(0.5 / 0.6)
    np.testing.assert_allclose(found["skip_penalty"], [divergence * (1 + 2) / 2] * 2, rtol=1e-4)  # of two layers


@pytest.mark.parametrize("kind", [MicroController, MacroController])
def test_probabilities_of_all_paths_add_up_to_one(kind):
    if kind is MicroController:  # one node: two states and two operations a cell
        digits = np.stack(np.meshgrid(*[np.arange(n) for n in (2, 5, 2, 5) * 2], indexing="ij"), -1)
        paths = digits.reshape(-1, 2, 1, 2, 2)
    else:
        paths = np.array([[[a, 0, 0], [b, skip, 0]] for a in range(6) for b in range(6) for skip in range(2)])
    controller = enas(kind, 1 if kind is MicroController else 2)
    controller.state = controller.new_state(lambda weight: np.random.default_rng(0).uniform(-1, 1, weight.shape))
    found = np.exp(controller.update(paths, np.zeros(len(paths)))["log_prob"])
    assert found.sum() == pytest.approx(1, rel=1e-4)
    assert found.max() > 3 * found.min()


def test_a_controller_of_a_reduced_space_draws_its_operations_and_leaves_the_reduction_cell_alone():
    space = MicroSpace(2, ("skip_connect", "sep_conv_5x5"), fixed_reduction=True)
    controller = enas(MicroController, space, zero=True)
    paths = controller.sample(20, np.random.default_rng(0))
    assert paths.shape == (20, 2, 2, 2, 2)
    assert set(paths[:, 0, :, :, 1].ravel()) == {1, 4}  # of MICRO_OPS
    assert all(space.body(space.values(space.decode(path))) == space.decode(path) for path in paths)
    reduction = space.decode(paths[0]).reduce
    assert reduction is not None
    assert [node.edges for node in reduction.nodes] == [
        (("max_pool_3x3", 0), ("max_pool_3x3", 1)), (("skip_connect", 2), ("max_pool_3x3", 1))
    ]  # fmt: skip
    paths[:, 0] = [[[0, 4], [0, 4]], [[0, 4], [0, 4]]]
    found = controller.update(paths, np.zeros(20))
    skip = np.exp(-0.25) / (np.exp(-0.25) + np.exp(0.25))  # by the biases of the normal cell
    expected = 2 * np.log(1 / 2) + 2 * np.log(1 / 3) + 4 * np.log(skip)
    np.testing.assert_allclose(found["log_prob"], [expected] * 20, rtol=1e-5)


def test_each_reward_moves_the_baseline_for_the_next():
    controller = enas(MacroController, 2)
    paths = controller.sample(2, np.random.default_rng(0))
    controller.update(paths, [1.0, 3.0])  # begins at the mean, 2; then 2 - 0.1 and 1.9 + 0.11
    assert controller.average == pytest.approx(2.01)


def test_a_controller_comes_to_draw_what_is_rewarded():
    controller = enas(MicroController, 1)
    rng = np.random.default_rng(0)

    def share() -> float:
        return float((controller.sample(200, rng)[:, 0, 0, 0, 1] == 3).mean())

    before = share()
    for _ in range(300):
        paths = controller.sample(10, rng)
        controller.update(paths, paths[:, 0, 0, 0, 1] == 3)
    assert before < 0.2
    assert share() > 2 * before  # logits lie between -1 and 1, so that no choice becomes certain


@pytest.mark.parametrize("target", [0.2, 0.6])
def test_without_differences_in_reward_skips_come_to_their_target(target):
    controller = enas(MacroController, 4, hidden=16, tanh_constant=1.5, skip_target=target)
    rng = np.random.default_rng(0)
    for _ in range(150):
        controller.update(controller.sample(5, rng), np.zeros(5))
    bits = controller.sample(200, rng)[:, :, 1:].sum() / (200 * 6)  # six skips are possible in four layers
    assert bits == pytest.approx(target, abs=0.06)


def test_a_restored_controller_draws_and_learns_the_same():
    first, second = enas(MicroController, 2), enas(MicroController, 2, zero=True)
    first.update(first.sample(3, np.random.default_rng(0)), np.arange(3.0))
    for array, value in zip(second.arrays, first.arrays, strict=True):
        array[...] = value
    for controller in (first, second):
        controller.update(controller.sample(3, np.random.default_rng(1)), np.arange(3.0))
    assert all(np.array_equal(a, b) for a, b in zip(first.state, second.state, strict=True))
    assert first.average == second.average
