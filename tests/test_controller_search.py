"""The LSTM controller: its gradients are those of its objective, it learns, and it goes on where it was."""

import json

import keras_tuner
import numpy as np
import pytest

from recipes.oracles import ControllerOracle
from recipes.oracles.controller import Policy

OBJECTIVE = keras_tuner.Objective("score", "max")


def choices() -> keras_tuner.HyperParameters:
    hyperparameters = keras_tuner.HyperParameters()
    for name in "abcde":
        hyperparameters.Choice(name, list(range(4)))
    return hyperparameters


def run(oracle: ControllerOracle, trials: int) -> list[float]:
    scores = []
    for _ in range(trials):
        trial = oracle.create_trial("tuner")
        scores.append(sum(trial.hyperparameters.values.values()) / 15)
        oracle.update_trial(trial.trial_id, {"score": scores[-1]})
        trial.status = "COMPLETED"
        oracle.end_trial(trial)
    return scores


def objective(policy: Policy, genomes, advantages, before, entropy: float) -> float:
    """The mean over genomes of the decisions' ratio x advantage + entropy, by following each step."""
    output, memory = policy.lstm.start(len(genomes))
    total = np.zeros(len(genomes))
    for place in range(len(policy.counts)):
        output, memory, _ = policy.lstm.step(policy._input(genomes, place), output, memory)
        probabilities = policy._probabilities(output, place)
        total += probabilities[np.arange(len(genomes)), genomes[:, place]] / before[:, place] * advantages
        total -= entropy * (probabilities * np.log(probabilities)).sum(axis=1)
    return float(total.mean())


def test_gradients_are_the_slopes_of_the_objective():
    rng = np.random.default_rng(0)
    policy = Policy([3, 2, 4], hidden=5, learning_rate=0.1)
    vector = policy.parameters.vector
    vector[:] = rng.uniform(-0.5, 0.5, vector.size)
    genomes = policy.sample(6, rng)
    advantages = rng.normal(size=6).astype(np.float32)
    before = policy.probabilities(genomes) * np.float32(0.9)
    found = policy.gradients(genomes, advantages, before, 0.3, np.inf).vector
    for place in rng.choice(vector.size, 60, replace=False):
        value, step = float(vector[place]), 1e-2
        vector[place] = value + step
        above = objective(policy, genomes, advantages, before, 0.3)
        vector[place] = value - step
        below = objective(policy, genomes, advantages, before, 0.3)
        vector[place] = value
        assert -found[place] == pytest.approx((above - below) / (2 * step), abs=2e-3)


def test_probabilities_of_all_genomes_add_up_to_one():
    policy = Policy([3, 2], hidden=4, learning_rate=0.1)
    policy.parameters.vector[:] = np.random.default_rng(0).uniform(-1, 1, policy.parameters.vector.size)
    genomes = np.array([(a, b) for a in range(3) for b in range(2)])
    assert policy.probabilities(genomes).prod(axis=1).sum() == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize(("algorithm", "rate"), [("ppo", 0.003), ("reinforce", 0.03)])
def test_a_controller_learns_which_choices_score(algorithm, rate):
    oracle = ControllerOracle(OBJECTIVE, 160, choices(), seed=0, algorithm=algorithm, learning_rate=rate, hidden=20)
    scores = run(oracle, 160)  # of 1,024 points: later, the best ones are used up
    assert np.mean(scores[:40]) == pytest.approx(0.5, abs=0.1)
    assert np.mean(scores[120:]) > 0.62


@pytest.mark.parametrize("after", [3, 45])
def test_a_controller_goes_on_from_its_snapshot(after: int):
    def oracle() -> ControllerOracle:
        return ControllerOracle(OBJECTIVE, 90, choices(), seed=0, learning_rate=0.003, hidden=20)

    whole = run(oracle(), 80)
    first, second = oracle(), oracle()
    start = run(first, after)
    for trial in first.trials.values():
        second.adopt_ended(trial.hyperparameters.values, trial.score)
    second.restore_snapshot(json.loads(json.dumps(first.snapshot())))
    assert [*start, *run(second, 80 - after)] == whole


def test_wrong_arguments_say_what_was_expected():
    with pytest.raises(ValueError, match="expected ppo or reinforce"):
        ControllerOracle(OBJECTIVE, 9, choices(), algorithm="sarsa")
    with pytest.raises(ValueError, match="batch is 0"):
        ControllerOracle(OBJECTIVE, 9, choices(), batch=0)
    with pytest.raises(ValueError, match="learning_rate is 0"):
        ControllerOracle(OBJECTIVE, 9, choices(), learning_rate=0)
