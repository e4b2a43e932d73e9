"""The oracles of recipes/oracles, as any KerasTuner user would use them."""

import json
from collections.abc import Callable
from typing import Literal

import keras_tuner
import numpy as np
import pytest

from recipes import pnasnet
from recipes.engine import spaces
from recipes.oracles import (
    NSGA2,
    AgingEvolution,
    BayesianSearch,
    ControllerOracle,
    Fitting,
    LocalSearch,
    ProgressiveOracle,
    RandomSearch,
    SearchOracle,
    SuccessiveHalving,
)
from recipes.oracles.choices import Choices, SharedSpace
from recipes.oracles.evolution import GenerationalEvolution, measure_crowding, sort_fronts

OBJECTIVE = keras_tuner.Objective("score", "max")
TWO = [OBJECTIVE, keras_tuner.Objective("cost", "min")]


def two_choices(first: int = 4, second: int = 4) -> keras_tuner.HyperParameters:
    hyperparameters = keras_tuner.HyperParameters()
    hyperparameters.Choice("a", list(range(first)))
    hyperparameters.Choice("b", [f"b{i}" for i in range(second)])
    return hyperparameters


def answer(oracle, trial, score: float | None) -> None:
    if score is not None:
        oracle.update_trial(trial.trial_id, {oracle.objective.name: score})
    trial.status = "INVALID" if score is None else "COMPLETED"
    oracle.end_trial(trial)


def run(oracle, score, trials: int = 10_000) -> list[dict]:
    seen = []
    for _ in range(trials):
        trial = oracle.create_trial("tuner")
        if trial.status == "STOPPED":
            break
        seen.append(dict(trial.hyperparameters.values))
        answer(oracle, trial, score(trial.hyperparameters.values))
    return seen


def sum_of(values: dict) -> float:
    return values["a"] + int(values["b"][1:])


def test_seed_zero_is_a_seed():
    draws = [run(RandomSearch(OBJECTIVE, 5, two_choices(), seed=0), sum_of, 5) for _ in range(2)]
    assert draws[0] == draws[1]
    assert draws[0] != run(RandomSearch(OBJECTIVE, 5, two_choices(), seed=1), sum_of, 5)
    assert RandomSearch(OBJECTIVE, 5, two_choices(), seed=0).seed == 0


def test_random_search_visits_every_point_once_and_then_says_so():
    oracle = RandomSearch(OBJECTIVE, 100, two_choices(3, 5), seed=0)
    seen = run(oracle, sum_of, 100)
    assert len(seen) == len({tuple(values.items()) for values in seen}) == 15
    assert oracle.message == "exhausted: 15 of 15 points tried"


def test_points_with_the_same_key_are_tried_once():
    oracle = RandomSearch(OBJECTIVE, 100, two_choices(3, 5), seed=0, key=lambda values: values["a"])
    assert sorted(values["a"] for values in run(oracle, sum_of, 100)) == [0, 1, 2]
    assert oracle.message == "exhausted: 3 of 15 points tried, the other 12 are equal to one of these"


def test_a_point_that_the_check_refuses_is_never_tried():
    check = lambda values: "a is odd" if values["a"] % 2 else None  # noqa: E731
    oracle = AgingEvolution(OBJECTIVE, 100, two_choices(), seed=0, check=check, population=3, sample=2)
    assert {values["a"] for values in run(oracle, sum_of, 100)} == {0, 2}
    assert oracle.message == "exhausted: 16 of 16 points tried (8 refused)"


def test_failed_trials_never_end_the_search_and_are_not_repeated():
    oracle = AgingEvolution(OBJECTIVE, 100, two_choices(), seed=0, population=3, sample=2)
    seen = run(oracle, lambda values: None if values["a"] else 1.0, 100)
    assert len({tuple(values.items()) for values in seen}) == len(seen) == 16
    assert all(member[0][0] == 0 for member in oracle.members)


def test_a_score_that_is_not_a_number_is_a_failure():
    oracle = RandomSearch(OBJECTIVE, 3, two_choices(), seed=0)
    run(oracle, lambda values: float("nan"), 1)
    (trial,) = oracle.trials.values()
    assert (trial.status, trial.message) == ("INVALID", "score is nan")


def test_the_oldest_member_dies_with_ageing_and_the_worst_without():
    def members(ageing: bool) -> list[float]:
        oracle = AgingEvolution(OBJECTIVE, hyperparameters=two_choices(), seed=0, population=3, sample=2, ageing=ageing)
        for score in (5.0, 1.0, 3.0, 4.0):
            oracle.learn((0, 0), score)
        return [score for _, score in oracle.members]

    assert members(True) == [1.0, 3.0, 4.0]
    assert members(False) == [5.0, 3.0, 4.0]


def test_a_smaller_score_is_fitter_where_the_objective_is_to_minimise():
    objective = keras_tuner.Objective("score", "min")
    oracle = AgingEvolution(objective, 60, two_choices(8, 8), seed=0, population=10, sample=5)
    run(oracle, sum_of, 40)
    assert oracle.get_best_trials()[0].score == min(trial.score for trial in oracle.trials.values()) == 0


def test_the_best_of_a_sample_is_the_parent():
    # With as many draws as this the best of four members is missing with a probability of 0.75^64 = 1e-8.
    oracle = AgingEvolution(OBJECTIVE, hyperparameters=two_choices(), seed=0, population=4, sample=64, identity=0.0)
    for genome, score in (((0, 0), 1.0), ((1, 1), 9.0), ((2, 2), 3.0), ((3, 3), 2.0)):
        oracle.learn(genome, score)
    for _ in range(20):
        child = oracle.propose()
        assert sum(a != b for a, b in zip(child, (1, 1), strict=True)) == 1


def test_kinds_of_mutation_are_equally_likely_whatever_their_number_of_choices():
    space = spaces.amoebanet(nodes=5)
    oracle = AgingEvolution(OBJECTIVE, hyperparameters=space.hyperparameters(), seed=0, kinds=space.kinds)
    names, parent = oracle.choices.names, oracle.random_genome()
    counts = {"state": 0, "op": 0, "identity": 0}
    for _ in range(4000):
        child = oracle.mutate(parent)
        changed = [name for name, a, b in zip(names, parent, child, strict=True) if a != b]
        assert len(changed) <= 1
        counts["identity" if not changed else "op" if "/op" in changed[0] else "state"] += 1
    assert counts["identity"] / 4000 == pytest.approx(0.05, abs=0.015)
    assert counts["state"] / 4000 == pytest.approx(0.475, abs=0.035)


def test_an_identity_mutation_costs_no_trial():
    oracle = AgingEvolution(OBJECTIVE, 16, two_choices(), seed=0, population=2, sample=1, identity=0.9)
    seen = run(oracle, sum_of, 16)
    assert len({tuple(values.items()) for values in seen}) == 16
    assert oracle.duplicates > 16


def generations(trials: int) -> tuple[GenerationalEvolution, list[tuple[int, ...]]]:
    """A search for large numbers in generations of ten, and what it tried."""
    hyperparameters = keras_tuner.HyperParameters()
    for name in "abcdefgh":
        hyperparameters.Choice(name, list(range(6)))
    oracle = GenerationalEvolution(OBJECTIVE, trials, hyperparameters, seed=0, population=10, parents=4)
    return oracle, [tuple(values.values()) for values in run(oracle, lambda values: sum(values.values()))]


def test_children_of_a_generation_are_mutations_or_crossings_of_the_best_until_then():
    _, seen = generations(20)
    parents = sorted(seen[:10], key=lambda genome: -sum(genome))[:4]
    for child in seen[15:]:  # the second half are crossings
        assert all(gene in {parent[place] for parent in parents} for place, gene in enumerate(child))
    assert len(set(seen)) == 20


def test_generations_become_better():
    oracle, seen = generations(60)
    sums = [sum(genome) for genome in seen]
    assert np.mean(sums[50:]) > np.mean(sums[:10]) + 5
    assert [fitness for _, fitness in oracle.best] == sorted(sums, reverse=True)[:4]


def evolution(**options) -> AgingEvolution:
    return AgingEvolution(OBJECTIVE, 40, population=5, sample=2, kinds=SPACE.kinds, **options)


def progressive(network: Literal["mlp", "lstm"], **options) -> ProgressiveOracle:
    space = pnasnet.pnasnet(3)
    options |= {"hyperparameters": space.hyperparameters(), "key": space.key, "levels": space.levels, "depth": "nodes"}
    fitting = Fitting(network=network, embedding=4, hidden=8, steps=5)
    options |= {"kinds": space.kinds, "pooled": True, "beam": 4, "first": 6, "round_size": 3, "explore": 1.0}
    return ProgressiveOracle(OBJECTIVE, 30, fitting=fitting, **options)


SPACE = spaces.amoebanet(nodes=2)
ORACLES: dict[str, Callable[..., SearchOracle]] = {
    "evolution": evolution,
    "halving": lambda **options: SuccessiveHalving(evolution(**options), (1, 2, 4), factor=2),
    "generations": lambda **options: GenerationalEvolution(OBJECTIVE, 40, population=6, parents=2, **options),
    "local": lambda **options: LocalSearch(OBJECTIVE, 40, **options),
    "bayesian": lambda **options: BayesianSearch(
        OBJECTIVE, 40, **options | {"hyperparameters": two_choices(6, 6), "key": None}
    ),
    "controller": lambda **options: ControllerOracle(OBJECTIVE, 40, batch=4, hidden=4, learning_rate=0.01, **options),
    "mlp": lambda **options: progressive("mlp", **options),
    "lstm": lambda **options: progressive("lstm", **options),
}


@pytest.mark.parametrize("after", [1, 8, 17])
@pytest.mark.parametrize("make", ORACLES.values(), ids=ORACLES)
def test_an_oracle_resumes_from_its_state_as_if_nothing_had_happened(after: int, make: Callable[..., SearchOracle]):
    def oracle() -> SearchOracle:
        return make(hyperparameters=SPACE.hyperparameters(), key=SPACE.key, seed=3)

    def score(values: dict) -> float:
        return sum(len(str(value)) for value in values.values())

    whole = run(oracle(), score, 25)
    first, second = oracle(), oracle()
    start = run(first, score, after)
    running = first.create_trial("tuner")
    state = json.loads(json.dumps(first.get_state()))
    second.trials = dict(first.trials)
    second.set_state(state)
    answer(second, running, score(running.hyperparameters.values))
    assert [*start, running.hyperparameters.values, *run(second, score, 24 - after)] == whole


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (AgingEvolution, {"population": 3, "sample": 2}),
        (LocalSearch, {}),
        (BayesianSearch, {}),
        (ProgressiveOracle, {"levels": [["a"], ["b"]], "beam": 2, "fitting": Fitting(embedding=4, hidden=8, steps=30)}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_keras_tuner_takes_the_oracle_and_resumes_it_from_its_folder(tmp_path, kind, options: dict):
    class Sum(keras_tuner.Tuner):
        def run_trial(self, trial):
            return {"score": float(sum_of(trial.hyperparameters.values))}

    def make(trials: int) -> SearchOracle:
        return kind(OBJECTIVE, trials, two_choices(3, 3), seed=0, **options)

    def search(trials: int) -> keras_tuner.Tuner:
        tuner = Sum(oracle=make(trials), directory=tmp_path, project_name="sum")
        tuner.search()
        return tuner

    search(4)
    resumed = search(9)
    trials = [resumed.oracle.trials[str(number)].hyperparameters.values for number in range(9)]
    assert trials == run(make(9), sum_of)
    assert resumed.get_best_hyperparameters()[0].values == {"a": 2, "b": "b2"}


def test_choices_that_a_hypermodel_declares_while_it_builds_join_the_search():
    oracle = AgingEvolution(OBJECTIVE, 30, two_choices(), seed=0, population=3, sample=2)
    for _ in range(30):
        trial = oracle.create_trial("tuner")
        trial.hyperparameters.Choice("late", [7, 8, 9])
        answer(oracle, trial, trial.hyperparameters.get("late"))
    assert oracle.get_best_trials()[0].hyperparameters.get("late") == 9


def test_a_choice_under_a_condition_has_a_value_only_where_it_is_active():
    hyperparameters = keras_tuner.HyperParameters()
    hyperparameters.Choice("kind", ["plain", "deep"])
    with hyperparameters.conditional_scope("kind", ["deep"]):
        hyperparameters.Choice("layers", [2, 3, 4])
    seen = run(RandomSearch(OBJECTIVE, 20, hyperparameters, seed=0), lambda values: 1.0, 20)
    assert sorted(seen, key=str) == [
        {"kind": "deep", "layers": 2},
        {"kind": "deep", "layers": 3},
        {"kind": "deep", "layers": 4},
        {"kind": "plain"},
    ]


def test_numbers_with_a_step_are_choices_and_ranges_are_refused():
    hyperparameters = keras_tuner.HyperParameters()
    hyperparameters.Int("i", 1, 7, step=3)
    hyperparameters.Boolean("b")
    hyperparameters.Float("f", 0.0, 1.0, step=0.5)
    hyperparameters.Fixed("x", 5)
    assert Choices(hyperparameters).counts.tolist() == [3, 2, 3, 1]
    assert Choices(hyperparameters).values((2, 1, 1, 0)) == {"i": 7, "b": True, "f": 0.5, "x": 5}
    hyperparameters.Float("rate", 0.0, 1.0)
    with pytest.raises(ValueError, match=r"'rate'.*need choices"):
        Choices(hyperparameters)


def test_copies_of_a_shared_space_part_when_one_gets_a_new_choice():
    one = SharedSpace.copy_of(two_choices())
    other = one.copy()
    other.Choice("c", [1, 2])
    assert [len(one.space), len(other.space)] == [2, 3]
    assert "c" not in one.values


def test_two_workers_never_run_the_same_point():
    oracle = RandomSearch(OBJECTIVE, 9, two_choices(3, 3), seed=0)
    trials = [oracle.create_trial(f"worker{i}") for i in range(9)]
    assert len({tuple(trial.hyperparameters.values.items()) for trial in trials}) == 9


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (RandomSearch, {"objective": [OBJECTIVE, keras_tuner.Objective("latency", "min")]}, "expected one"),
        (AgingEvolution, {"population": 0}, "population is 0"),
        (AgingEvolution, {"identity": 1}, "identity is 1"),
        (GenerationalEvolution, {"parents": 0}, "parents is 0"),
        (GenerationalEvolution, {"mutation": 0.0}, "mutation is 0.0"),
        (BayesianSearch, {"first": 0}, "first is 0; expected a whole number from 1"),
        (ControllerOracle, {"algorithm": "sarsa"}, "expected ppo or reinforce"),
        (ControllerOracle, {"batch": 0}, "batch is 0"),
        (ControllerOracle, {"learning_rate": 0}, "learning_rate is 0"),
        (ProgressiveOracle, {"levels": [], "beam": 0}, "beam is 0"),
        (ProgressiveOracle, {"levels": [], "explore": -1}, "explore is -1"),
        (NSGA2, {"objective": [OBJECTIVE]}, "expected two or more"),
        (NSGA2, {"objective": [OBJECTIVE, OBJECTIVE]}, "with different names"),
        (NSGA2, {"objective": "score"}, "expected two or more"),
        (NSGA2, {"objective": TWO, "crossover": 2}, "crossover is 2"),
    ],
)
def test_wrong_arguments_say_what_was_expected(make, options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        make(**{"objective": OBJECTIVE, "max_trials": 3, "hyperparameters": two_choices()} | options)


def test_what_only_the_space_shows_to_be_wrong_is_said_at_the_first_draw():
    oracle = AgingEvolution(OBJECTIVE, hyperparameters=two_choices(), kinds={"op": ["nothing"]}, identity=0.0)
    with pytest.raises(ValueError, match="nothing"):
        oracle.mutate((0, 0))
    with pytest.raises(ValueError, match="network is cnn"):
        Fitting(network="cnn")  # pyright: ignore[reportArgumentType]


def test_draws_do_not_touch_the_global_random_state():
    before = np.random.get_state()[1].copy()
    run(AgingEvolution(OBJECTIVE, 10, two_choices(), seed=0, population=3, sample=2), sum_of, 10)
    assert (np.random.get_state()[1] == before).all()


def as_told(oracle, number: int, score: float | None) -> tuple:
    """Asks for a trial, ends it with the score, and returns which network it trained for how many epochs."""
    values = oracle.ask(number).values
    oracle.tell(number, score, "" if score is not None else "failed")
    return values["a"], values["b"], values["tuner/epochs"]


def test_halving_promotes_the_best_third_of_each_rung_as_soon_as_there_is_one():
    oracle = SuccessiveHalving(RandomSearch(OBJECTIVE, 99, two_choices(), seed=0), (1, 3, 9), factor=3)
    seen: list[tuple] = []

    def go_on(score: float | None) -> tuple:
        seen.append(as_told(oracle, len(seen), score))
        return seen[-1]

    assert [go_on(score)[2] for score in (5.0, 3.0, 4.0)] == [1, 1, 1]
    assert go_on(50.0) == (*seen[0][:2], 3)  # the best of three
    assert go_on(9.0)[2] == 1
    assert go_on(None) == (*seen[4][:2], 3)  # the best of four; it fails, and is in no rung
    assert [go_on(score)[2] for score in (1.0, 2.0, 8.0)] == [1, 1, 1]  # of six, two are promoted already
    assert go_on(40.0) == (*seen[8][:2], 3)  # of seven, 9 and 8 are the best two
    assert [go_on(score)[2] for score in (7.0, 0.0)] == [1, 1]
    assert go_on(60.0) == (*seen[10][:2], 3)  # of nine, 9, 8 and 7 are the best three
    assert go_on(99.0) == (*seen[10][:2], 9)  # the second rung has 60, 50 and 40
    assert go_on(0.0)[2] == 1
    assert len({network[:2] for network in seen}) == 10


def test_of_the_networks_that_wait_for_a_promotion_the_first_ten_are_worth_a_checkpoint():
    oracle = SuccessiveHalving(RandomSearch(OBJECTIVE, 99, two_choices(), seed=0), (1, 3), factor=15)
    seen = [as_told(oracle, number, float(number % 7)) for number in range(14)]
    best = sorted(range(14), key=lambda number: -(number % 7))[:10]  # of equals the first
    assert [(values["a"], values["b"]) for values in oracle.unfinished] == [seen[number][:2] for number in best]


def test_the_oracle_under_halving_learns_from_the_first_rung_alone_and_no_point_is_lost():
    own = AgingEvolution(OBJECTIVE, 99, two_choices(), seed=0, population=99, sample=2)
    oracle = SuccessiveHalving(own, (1, 2), factor=2)
    seen = run(oracle, lambda values: sum_of(values) + 100 * (values["tuner/epochs"] - 1), 99)
    assert {score for _, score in own.members} == set(range(7))  # and no hundreds
    assert [values["tuner/epochs"] for values in seen].count(1) == 16
    longer = sorted(values["a"] + int(values["b"][1:]) for values in seen if values["tuner/epochs"] == 2)
    assert longer[-8:] == [3, 3, 4, 4, 4, 5, 5, 6]  # the better half, and perhaps what was among the better half once
    assert oracle.message == "exhausted: 16 of 16 points tried"
    assert [trial.hyperparameters.values["tuner/epochs"] for trial in oracle.get_best_trials(2)] == [2, 2]


def test_fronts_and_crowding_of_a_set_drawn_by_hand():
    # The first three beat none of one another; the second is better than (1, 4) and (2, 2), and both than (0, 2).
    points = np.array([(1.0, 5.0), (2.0, 4.0), (4.0, 1.0), (1.0, 4.0), (2.0, 2.0), (0.0, 2.0)])
    assert sort_fronts(points) == [[0, 1, 2], [3, 4], [5]]
    # The second lies between the others: (4 - 1) of a range of 3, and (5 - 1) of a range of 4.
    assert measure_crowding(points[:3]).tolist() == [np.inf, 2.0, np.inf]
    assert measure_crowding(np.array([(0.0, 4.0), (1.0, 3.0), (3.0, 1.0), (4.0, 0.0)])).tolist() == [
        np.inf, 3 / 4 + 3 / 4, 3 / 4 + 3 / 4, np.inf,
    ]  # fmt: skip
    assert sort_fronts(np.array([(1.0, 1.0), (1.0, 1.0)])) == [[0, 1]]  # equals do not dominate each other


def run_front(oracle, trials: int) -> list[dict]:
    """Two scores at odds: the sum of both choices, which should be large, and the square of one, which should not."""
    seen = []
    for _ in range(trials):
        trial = oracle.create_trial("tuner")
        values = dict(trial.hyperparameters.values)
        oracle.update_trial(trial.trial_id, {"score": sum_of(values), "cost": values["a"] ** 2})
        trial.status = "COMPLETED"
        oracle.end_trial(trial)
        seen.append(values)
    return seen


def test_nsga2_finds_a_front_that_random_search_misses():
    oracle = NSGA2(TWO, 120, two_choices(12, 40), seed=0, population=8)
    front = {(values["a"], values["b"]) for values in run_front(oracle, 120) if values["b"] == "b39"}
    random = run(RandomSearch(OBJECTIVE, 120, two_choices(12, 40), seed=0), sum_of, 120)
    assert len(front) >= 9 > 6 >= sum(values["b"] == "b39" for values in random)
    assert oracle.get_best_trials()[0].score == max(trial.score for trial in oracle.trials.values())
    assert len(oracle.best) == 8


def test_a_trial_without_one_of_its_objectives_is_a_failure_that_says_which():
    oracle = NSGA2(TWO, 3, two_choices(), seed=0)
    answer(oracle, oracle.create_trial("tuner"), 1.0)
    (trial,) = oracle.trials.values()
    assert (trial.status, trial.message) == ("INVALID", "cost is not among the metrics")


@pytest.mark.parametrize("rungs", [(3,), (3, 1)])
def test_halving_needs_ascending_rungs_and_one_score(rungs):
    with pytest.raises(ValueError, match="two or more ascending"):
        SuccessiveHalving(RandomSearch(OBJECTIVE, 3, two_choices()), rungs)
    with pytest.raises(ValueError, match="halving promotes by one score"):
        SuccessiveHalving(NSGA2(TWO, 3, two_choices()), (1, 3))
