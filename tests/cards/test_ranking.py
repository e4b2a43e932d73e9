"""Kendall's tau-b, against values counted by hand."""

import math

import pytest

from recipes.cards.compare import kendall_tau


def test_equal_orders_give_one_and_opposite_ones_minus_one():
    assert kendall_tau([0.1, 0.5, 0.9], [10, 20, 30]) == 1
    assert kendall_tau([0.1, 0.5, 0.9], [3, 2, 1]) == -1


def test_one_swapped_pair_of_six_gives_two_thirds():
    assert kendall_tau([1, 2, 3, 4], [1, 2, 4, 3]) == pytest.approx(4 / 6)  # 5 pairs agree, 1 does not


def test_ties_leave_the_denominator():
    # Pairs: (1,2) agrees, (1,3) agrees, (2,3) ties in the first list: 2 / sqrt(2 x 3).
    assert kendall_tau([1, 2, 2], [1, 2, 3]) == pytest.approx(2 / math.sqrt(6))
    # (1,2) ties in the first, (3,4) in the second, the other four agree: 4 / sqrt(5 x 5).
    assert kendall_tau([1, 1, 2, 3], [1, 2, 3, 3]) == pytest.approx(4 / 5)


def test_a_list_of_ties_has_no_order():
    assert math.isnan(kendall_tau([1, 1, 1], [1, 2, 3]))


def test_infinite_scores_are_ranked_too():
    assert kendall_tau([-math.inf, -math.inf, 1], [1, 2, 3]) == pytest.approx(2 / math.sqrt(6))


@pytest.mark.parametrize("lists", [([1, 2], [1]), ([1], [1]), ([1, math.nan], [1, 2])])
def test_what_has_no_ranks_is_refused(lists):
    with pytest.raises(ValueError, match="score"):
        kendall_tau(*lists)
