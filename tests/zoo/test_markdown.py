"""zoo.markdown: pages and tables."""

import pytest

from zoo.markdown import join_blocks, make_table


def test_a_table_has_a_line_for_the_head_one_for_the_rule_and_one_a_row():
    assert make_table(("name", "kB"), [("a", 1.5), ("b", None)]) == (
        "| name | kB |\n| --- | --- |\n| a | 1.5 |\n| b | - |"
    )


def test_columns_of_numbers_stand_to_the_right():
    assert make_table(("name", "kB", "ms"), [], numbers_from=1).splitlines()[1] == "| --- | ---: | ---: |"


def test_a_cell_with_a_bar_or_a_line_break_stays_one_cell():
    assert make_table(("text",), [("a|b\nc",)]).splitlines()[2] == "| a\\|b c |"


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="has 1 cells; expected 2: name, kB"):
        make_table(("name", "kB"), [("a",)])


def test_blocks_have_one_blank_line_between_them_and_empty_ones_leave_none():
    assert join_blocks("# head", "", "text\n", "\nmore") == "# head\n\ntext\n\nmore\n"
