"""Rank, regret and random search beside a table, against numbers that were counted by hand."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest

from recipes.cards import truth
from recipes.cards.truth import Truth

# Five networks, two trainings each: validation accuracies, and accuracies on all images; they are worth 0.5, 0.6, 0.7,
# 0.8 and 0.75
SEEN = np.array([[0.50, 0.51], [0.60, 0.58], [0.70, 0.69], [0.80, 0.82], [0.90, 0.70]])
TRAINED = np.array([[0.48, 0.52], [0.6, 0.6], [0.7, 0.7], [0.8, 0.8], [0.74, 0.76]])
TABLE = Truth("abcde", SEEN, TRAINED, seconds=10.0)


def test_percentile_is_the_share_of_worse_networks_and_half_of_equal_ones():
    assert TABLE.percentile(0.8) == 90  # 4 of 5 are worse, and it is itself one of 5
    assert TABLE.percentile(0.5) == 10
    assert TABLE.percentile(0.65) == 40  # of a network that the table does not have


def test_regret_is_what_the_best_network_has_more():
    assert TABLE.rate("c", 1.0)["regret"] == pytest.approx(0.1)
    assert TABLE.rate("d", 1.0)["regret"] == 0


def test_random_search_is_expected_to_pick_what_counting_all_draws_gives():
    seen, worth = [3, 1, 4, 2, 0], [30.0, 10.0, 25.0, 50.0, 5.0]
    counted = [
        np.mean([worth[max(drawn, key=lambda place: seen[place])] for drawn in itertools.combinations(range(5), draws)])
        for draws in range(1, 6)
    ]
    assert truth.expect_picks(seen, worth) == pytest.approx(counted)
    assert counted[-1] == 25  # all five: the one that looks best, not the best


def test_random_search_sees_one_training_of_each_network_and_is_worth_what_the_other_says():
    # Of all five the first training picks the last one, of which the second says 0.76; the second picks that of 0.8.
    assert TABLE.expect_random()[-1] == pytest.approx((0.76 + 0.8) / 2)
    assert TABLE.expect_random()[0] == pytest.approx(TABLE.worth.mean())


def test_the_largest_tenth_is_drawn_from_where_macs_are_known():
    assert TABLE.expect_largest().tolist() == []
    # a tenth of five is one network, and "c" has as many MACs as "b"
    sized = Truth(TABLE.keys, SEEN, TRAINED, 10.0, np.array([1.0, 9.0, 9.0, 2.0, 3.0]))
    assert sized.expect_largest() == pytest.approx([0.65, 0.7])
    assert truth.summarize_ratings([sized.rate("d", 15.0)], [])["largest"] == pytest.approx(0.675)
    assert truth.summarize_ratings([TABLE.rate("d", 15.0)], [])["largest"] is None


def test_trainings_of_random_search_are_counted_until_it_is_expected_to_find_as_much():
    expected = Truth(
        "abc", np.array([[1.0], [2.0], [3.0]]), np.array([[1.0], [2.0], [3.0]]), seconds=10.0
    ).expect_random()
    assert expected == pytest.approx([2, 8 / 3, 3])  # the pairs (1,2), (1,3) and (2,3) have 2, 3 and 3
    assert truth.count_trainings(expected, 1.5) == 1
    assert truth.count_trainings(expected, 8 / 3) == pytest.approx(2)
    assert truth.count_trainings(expected, 2 + 1 / 3) == pytest.approx(1.5)  # half way from 2 to 8/3
    assert math.isinf(truth.count_trainings(expected, 3.1))


def test_several_searches_are_judged_by_their_means():
    finds = [TABLE.rate(key, seconds) for key, seconds in (("d", 4.0), ("d", 5.0), ("a", 6.0))]
    together = truth.summarize_ratings(finds, [0.6, 0.5, 0.4])
    assert together["percentile"] == pytest.approx((90 + 90 + 10) / 3)
    assert together["regret"] == pytest.approx(0.1)
    assert together["tau"] == pytest.approx(0.5)
    # Their mean worth is 0.7; a random draw is worth 0.67, and the better looking of two more.
    of_two = np.mean(
        [TRAINED[max(pair, key=lambda place: SEEN[place, seed]), 1 - seed]
         for seed in (0, 1) for pair in itertools.combinations(range(5), 2)]
    )  # fmt: skip
    trainings = 1 + (0.7 - 0.67) / (of_two - 0.67)
    assert together["random_trainings"] == pytest.approx(trainings)
    assert together["random_seconds"] == pytest.approx(10 * trainings)
    assert together["reached"] == {"best decile": False, "tau of 0.4": True, "less time than random search": True}


def test_the_word_is_by_what_random_search_finds_in_the_same_time():
    expected = TABLE.expect_random()
    assert truth.expect_in(expected, 1.5) == pytest.approx((expected[0] + expected[1]) / 2)
    assert truth.expect_in(expected, 0.2) == expected[0]
    assert truth.expect_in(expected, 99) == expected[-1]
    finds = [TABLE.rate(key, 5.0) for key in "dde"]  # 0.8, 0.8 and 0.75; in 5 s one training is not over
    together = truth.summarize_ratings(finds, [])
    assert together["gain"] == pytest.approx(2.35 / 3 - 0.67)
    assert together["standard_error"] == pytest.approx(np.std([0.8, 0.8, 0.75], ddof=1) / math.sqrt(3))
    assert together["word"] == "reproduced at reduced scale"
    assert truth.summarize_ratings(finds[:2], [])["word"] == "procedure only"  # a result takes three searches


def test_a_search_that_takes_longer_than_random_search_has_not_reached_the_goal():
    (*_, faster) = truth.summarize_ratings([TABLE.rate("c", 100.0)], [])["reached"].values()
    assert not faster


def test_what_random_search_of_the_whole_table_never_finds_has_no_time():
    together = truth.summarize_ratings([TABLE.rate("d", 100.0)], [])
    assert together["random_seconds"] is None
    assert together["reached"]["less time than random search"]


def test_a_find_that_a_sampled_table_lacks_has_no_worth():
    assert TABLE.rate("x", 1.0) == {"worth": None}


def test_what_a_network_is_worth_is_the_mean_over_all_images_that_it_did_not_learn_from():
    rows = [SimpleNamespace(key="a", validation=(60.0, 62.0), test=(50.0, 54.0), metrics={})]
    made = Truth.of(rows, 3.0, images=(3, 1))
    assert (list(made.keys), made.seen.tolist(), made.seconds) == (["a"], [[60, 62]], 3)
    assert made.trained.tolist() == [[57.5, 60]]
    assert made.worth.tolist() == [58.75]


def test_trainings_that_disagree_set_a_ceiling_to_any_tau():
    # Correlation 0.5: the mean of both has a reliability of 2 x 0.5 / 1.5 = 2/3.
    trained = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [0.0, 0.0], [1.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    assert Truth("abcdefgh", trained, trained, 1.0).ceiling == pytest.approx(2 / math.pi * math.asin(math.sqrt(2 / 3)))
    assert Truth("ab", SEEN[:2], np.array([[1.0, 1.0], [2.0, 2.0]]), 1.0).ceiling == pytest.approx(1)
    assert Truth("ab", SEEN[:2, :1], np.array([[1.0], [2.0]]), 1.0).ceiling is None
