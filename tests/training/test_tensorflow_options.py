"""How the programs of the searches share the cores."""

import os

import pytest

from recipes.training import tensorflow_options

VARIABLE = "TF_NUM_INTRAOP_THREADS"


@pytest.mark.parametrize(("cores", "expected"), [(1, "1"), (2, "1"), (8, "2"), (64, "16"), (None, "1")])
def test_an_operation_gets_a_quarter_of_the_cores_and_at_least_one(monkeypatch, cores, expected):
    monkeypatch.setenv(VARIABLE, "to be put back")
    del os.environ[VARIABLE]
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    tensorflow_options.run_branches_side_by_side()
    assert os.environ[VARIABLE] == expected


def test_what_the_user_has_set_stays(monkeypatch):
    monkeypatch.setenv(VARIABLE, "7")
    tensorflow_options.run_branches_side_by_side()
    assert os.environ[VARIABLE] == "7"
