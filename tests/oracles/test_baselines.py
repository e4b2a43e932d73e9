"""Local and Bayesian search: their moves by hand, with several workers, and that nothing interrupts them."""

import dataclasses
import importlib
import sys

import keras_tuner
import numpy as np
import pytest

from recipes import mnasnet, pnasnet
from recipes.engine import children as child_networks
from recipes.engine import spaces
from recipes.oracles import AgingEvolution, BayesianSearch, ControllerOracle, LocalSearch, ProgressiveOracle
from recipes.oracles.choices import Choices
from recipes.oracles.evolution import GenerationalEvolution
from recipes.tinynas.space import TinySpace

OBJECTIVE = keras_tuner.Objective("score", "max")
BASELINES = (LocalSearch, BayesianSearch)


def numbers(*counts: int) -> keras_tuner.HyperParameters:
    """Choices a, b, .. of the numbers from 0."""
    hyperparameters = keras_tuner.HyperParameters()
    for name, count in zip("abcdef", counts, strict=False):
        hyperparameters.Choice(name, list(range(count)))
    return hyperparameters


def height(values: dict) -> float:
    """Has one summit on any grid of numbers, at 2, 2, .."""
    return -float(sum((number - 2) ** 2 for number in values.values()))


def run(oracle, score, trials: int, first: int = 0) -> list[dict]:
    seen = []
    for identity in range(first, first + trials):
        proposal = oracle.ask(identity)
        if proposal is None:
            break
        seen.append(proposal.values)
        oracle.tell(identity, score(proposal.values))
    return seen


def ask(oracle, identity):
    """The proposal, which there is."""
    proposal = oracle.ask(identity)
    assert proposal is not None
    return proposal


def test_neighbours_differ_in_one_choice():
    assert Choices(numbers(3, 2)).list_neighbours((1, 0)) == [(0, 0), (2, 0), (1, 1)]


def test_local_search_tries_neighbours_of_where_it_stands_until_none_is_better_and_then_starts_anew():
    oracle = LocalSearch(OBJECTIVE, hyperparameters=numbers(4, 4, 4), seed=0, max_redraws=10_000)
    stands = run(oracle, height, 1)[0]
    identity = 1
    while height(stands) < 0:
        (tried,) = run(oracle, height, 1, identity)
        assert sum(tried[name] != stands[name] for name in stands) == 1
        stands, identity = (tried if height(tried) > height(stands) else stands), identity + 1
    around = run(oracle, height, 9, identity)  # 3 other values of each of 3 choices, of which some are known
    beyond = [tried for tried in around if sum(number != 2 for number in tried.values()) > 1]
    assert beyond[0] == around[-len(beyond)]  # first all that is left around the summit, then a new climb


def test_a_neighbour_of_an_ended_climb_that_proves_better_resumes_it(monkeypatch):
    oracle = LocalSearch(OBJECTIVE, hyperparameters=numbers(3, 3), seed=0)
    starts = iter([(0, 0), (1, 1), (2, 2)])
    monkeypatch.setattr(oracle, "random_genome", lambda: next(starts))
    oracle.ask("start")
    oracle.tell("start", 1.0)
    neighbours = {worker: ask(oracle, worker).genome for worker in range(4)}
    assert set(neighbours.values()) == {(0, 1), (0, 2), (1, 0), (2, 0)}
    assert [ask(oracle, "new").genome, ask(oracle, "other").genome] == [(1, 1), (2, 2)]  # nobody waits for the four
    oracle.tell(0, 0.5)  # worse than the climb's start
    oracle.tell("new", -3.0)
    oracle.tell(1, 0.9)  # better than the new climb, but not than its own
    assert oracle.centre == ((1, 1), -3.0)
    oracle.tell(2, 2.0)
    assert oracle.centre == (neighbours[2], 2.0)


def test_a_failed_trial_is_no_place_to_stand():
    oracle = LocalSearch(OBJECTIVE, hyperparameters=numbers(3, 3), seed=0)
    oracle.ask(0)
    oracle.tell(0, None, "no memory")
    assert oracle.centre is None
    second = ask(oracle, 1)
    oracle.tell(1, -5.0)
    assert oracle.centre == (second.genome, -5.0)


def test_the_process_proposes_what_its_results_promise():
    # A parabola over one counted feature: of the two points that are left the summit is close to the best ones.
    oracle = BayesianSearch(
        OBJECTIVE, hyperparameters=numbers(20), seed=0, first=2, features=lambda values: {"x": values["a"]}
    )
    for x in (n for n in range(20) if n not in (0, 8)):
        oracle.learn((x,), -float((x - 8) ** 2))
        oracle._known[oracle._key_of((x,))] = -float((x - 8) ** 2)
    assert ask(oracle, "next").values == {"a": 8}
    assert ask(oracle, "last").values == {"a": 0}


def test_a_draw_at_results_without_noise_is_what_was_seen():
    oracle = BayesianSearch(OBJECTIVE, hyperparameters=numbers(5), seed=0)
    for x, fitness in ((0, 1.0), (2, 3.0), (4, 2.0)):
        oracle.learn((x,), fitness)
    # constant 1, length scale 0.1 where distances are sqrt(2), noise 1e-10: each result stands for itself
    oracle._parameters, oracle._estimated_at = np.log([1.0, 0.1, 1e-10]).tolist(), 3
    drawn = oracle._draw([(0,), (2,), (4,)])
    third = 0.967421566  # the normal quantile of 5/6
    np.testing.assert_allclose(drawn, [-third, third, 0.0], atol=0.01)


def test_features_that_no_result_has_are_one_distance():
    oracle = BayesianSearch(OBJECTIVE, hyperparameters=numbers(3, 3, 3), seed=0)
    for genome, fitness in (((0, 1, 2), 1.0), ((0, 1, 1), 2.0)):
        oracle.learn(genome, fitness)
    oracle._fit_model()
    assert oracle._encode([(0, 1, 2), (0, 0, 0)]).tolist() == [[1, 1, 1, 0, 0], [1, 0, 0, 0, np.sqrt(2)]]


def test_of_many_results_the_process_sees_the_best_and_the_latest(monkeypatch):
    monkeypatch.setattr("recipes.oracles.baselines._MOST_OBSERVATIONS", 4)
    oracle = BayesianSearch(OBJECTIVE, hyperparameters=numbers(10), seed=0, first=2)
    for x, fitness in enumerate((9.0, 1.0, 8.0, 2.0, 3.0, 4.0)):
        oracle.learn((x,), fitness)
    assert oracle._fit_model().X_train_.tolist() == np.eye(4, 5).tolist()
    assert list(oracle._columns) == [("a", 0), ("a", 2), ("a", 4), ("a", 5)]


@pytest.mark.parametrize("make", BASELINES)
def test_a_small_space_is_searched_to_its_last_point(make):
    oracle = make(OBJECTIVE, hyperparameters=numbers(4, 5), seed=0)
    seen = run(oracle, lambda values: None if values["a"] == 1 else height(values), 30)
    assert len(seen) == len({tuple(values.values()) for values in seen}) == 20
    assert oracle.message == "exhausted: 20 of 20 points tried (5 refused)"


@pytest.mark.parametrize("make", BASELINES)
def test_equal_points_are_tried_once_and_refused_ones_never(make):
    oracle = make(
        OBJECTIVE,
        hyperparameters=numbers(4, 5),
        seed=0,
        key=lambda values: values["a"],
        check=lambda values: "a is 3" if values["a"] == 3 else None,
    )
    assert sorted(values["a"] for values in run(oracle, height, 30)) == [0, 1, 2]


@pytest.mark.parametrize("make", BASELINES)
def test_several_workers_get_different_points_at_once_and_find_the_summit(make):
    oracle = make(OBJECTIVE, hyperparameters=numbers(5, 5, 5, 5), seed=0)
    waiting = {number: ask(oracle, number) for number in range(4)}
    scores = []
    for number in range(4, 124):
        assert len({proposal.genome for proposal in waiting.values()}) == 4
        ended = min(waiting) if number % 3 else max(waiting)  # trials overtake each other
        scores.append(height(waiting.pop(ended).values))
        oracle.tell(ended, scores[-1])
        waiting[number] = oracle.ask(number)
    assert max(scores) == 0.0


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.gaussian_process", None)
    with pytest.raises(ImportError, match="pip install scikit-learn, or the project with its extra"):
        BayesianSearch(OBJECTIVE, hyperparameters=numbers(3))


@pytest.mark.parametrize(
    ("recipe", "own"),
    [
        ("nasnet", ControllerOracle),
        ("mnasnet", ControllerOracle),
        ("amoebanet", AgingEvolution),
        ("pnasnet", ProgressiveOracle),
        ("tinynas", GenerationalEvolution),
    ],
)
def test_each_recipe_offers_its_oracle_and_the_baselines_beside_it(recipe: str, own: type):
    module = importlib.import_module(f"recipes.{recipe}")
    assert recipe == "tinynas" or getattr(module, own.__name__) is own  # for tuners of one's own
    kinds = []
    for algorithm in (module.PRESETS["smoke"].algorithm, "local", "bayesian"):
        config = dataclasses.replace(module.PRESETS["smoke"], algorithm=algorithm)
        space = {
            "mnasnet": mnasnet.BlockSpace(0.125, 0.1),
            "pnasnet": pnasnet.pnasnet(2, growing=algorithm == "progressive"),
            "tinynas": TinySpace(0.25),
        }.get(recipe) or getattr(spaces, recipe)(2)
        scorer = child_networks.NetworkScorer(config, space, recipe, {}, None)  # pyright: ignore[reportArgumentType]
        oracle = (
            module.make_oracle(config, scorer) if recipe == "tinynas" else module.make_oracle(config, space, scorer)
        )
        proposals = [ask(oracle, "first")]
        if kinds:  # the paper's own search has tests of its own
            oracle.tell("first", 0.5)
            for number in range(11):
                proposals.append(ask(oracle, number))
                oracle.tell(number, number / 10)
        assert all(space.body(proposal.values) for proposal in proposals)
        kinds.append(type(oracle))
    assert kinds == [own, LocalSearch, BayesianSearch]
