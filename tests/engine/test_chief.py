"""KerasTuner's own chief and workers with our oracles: a dead worker's trial goes to another, and the chief ends."""

import collections
import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import keras_tuner
import numpy as np
import pytest
from keras_tuner.engine import trial as trial_module

from recipes.oracles import RandomSearch
from tests import cheap_trials
from tests.engine.test_workers import SPACE

OBJECTIVE = keras_tuner.Objective("score", "max")
TRIALS = 8


@pytest.fixture
def chief(monkeypatch, tmp_path) -> RandomSearch:
    """An oracle that serves workers; the test is each of them."""
    monkeypatch.setenv("KERASTUNER_ORACLE_IP", "127.0.0.1")
    monkeypatch.setenv("KERASTUNER_TUNER_ID", "chief")
    oracle = RandomSearch(OBJECTIVE, 2, SPACE.hyperparameters(), seed=0)
    oracle.silence = 0.1
    return oracle


def end(oracle, trial, score: float = 1.0) -> None:
    oracle.update_trial(trial.trial_id, {"score": score})
    trial.status = trial_module.TrialStatus.COMPLETED
    oracle.end_trial(trial)


def copy(trial) -> trial_module.Trial:
    """What a worker holds: it came over the wire."""
    return trial_module.Trial.from_proto(trial.to_proto())


def test_a_silent_workers_trial_is_given_to_another_and_the_first_result_counts(chief):
    first = copy(chief.create_trial("a"))
    assert copy(chief.create_trial("b")).trial_id != first.trial_id
    time.sleep(0.15)
    chief.hear("1")
    again = copy(chief.create_trial("c"))
    assert again.trial_id == first.trial_id
    assert again.hyperparameters.values == first.hyperparameters.values
    end(chief, first, score=2.0)  # the silent one was only slow
    end(chief, again, score=3.0)
    assert chief.trials[first.trial_id].score == 2.0
    assert chief.end_order == [first.trial_id]


def test_a_word_from_the_trial_keeps_it(chief):
    trial = chief.create_trial("a")
    for _ in range(3):
        time.sleep(0.06)
        chief.get_trial(trial.trial_id)
    assert chief.create_trial("b").trial_id != trial.trial_id


def test_a_trial_that_silences_two_workers_is_invalid(chief):
    trial = chief.create_trial("a")
    time.sleep(0.15)
    assert chief.create_trial("b").trial_id == trial.trial_id
    time.sleep(0.15)
    assert chief.create_trial("c").trial_id != trial.trial_id
    assert trial.status == trial_module.TrialStatus.INVALID
    assert trial.message == "its worker was silent for 0.1 s, the last time b"


def test_workers_wait_while_trials_run_and_the_chief_forgets_the_dead(chief):
    first, second = copy(chief.create_trial("a")), copy(chief.create_trial("b"))
    end(chief, first)
    assert chief.create_trial("a").status == trial_module.TrialStatus.IDLE
    assert chief.tuner_ids == {"a", "b"}
    end(chief, second)
    assert chief.create_trial("a").status == trial_module.TrialStatus.STOPPED
    assert chief.tuner_ids == {"b"}
    time.sleep(0.15)  # b never asks again
    assert chief.tuner_ids == set()


PROGRAM = """
    import os, signal, sys, time
    import keras_tuner
    from recipes.oracles import RandomSearch
    from tests import cheap_trials
    from tests.engine.test_chief import OBJECTIVE, SPACE, TRIALS

    class Cheap(keras_tuner.Tuner):
        def run_trial(self, trial, *args, **kwargs):
            print("trial", trial.trial_id, flush=True)
            if self.tuner_id == "dies":
                time.sleep(600)
            time.sleep(0.3)
            return {"score": cheap_trials.score_of(trial.hyperparameters.values)}

    oracle = RandomSearch(OBJECTIVE, TRIALS, SPACE.hyperparameters(), seed=0)
    oracle.silence = 10.0
    Cheap(oracle=oracle, directory=sys.argv[1], project_name="search").search()
"""


@pytest.mark.slow
def test_a_chief_and_two_workers_one_of_which_is_killed(tmp_path, project: Path):
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])

    def start(name: str) -> subprocess.Popen:
        variables = os.environ | {"PYTHONPATH": str(project), "KERASTUNER_TUNER_ID": name}
        variables |= {"KERASTUNER_ORACLE_IP": "127.0.0.1", "KERASTUNER_ORACLE_PORT": port}
        command = [sys.executable, str(program), str(tmp_path)]
        return subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True)

    chief, victim = start("chief"), start("dies")
    lost = read_trial(victim)
    os.kill(victim.pid, signal.SIGKILL)
    victim.communicate()
    survivor = start("lives")
    output, _ = survivor.communicate(timeout=300)
    chief.communicate(timeout=120)
    assert chief.returncode == survivor.returncode == 0
    ran = [line.split()[1] for line in output.splitlines() if line.startswith("trial ")]
    assert collections.Counter(ran) == dict.fromkeys(map(str, range(TRIALS)), 1)
    assert lost in ran
    for trial in range(TRIALS):
        record = json.loads((tmp_path / "search" / f"trial_{trial}" / "trial.json").read_text())
        assert record["status"] == "COMPLETED"
        assert record["score"] == cheap_trials.score_of(record["hyperparameters"]["values"])


def read_trial(process: subprocess.Popen) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("trial "):
            return line.split()[1]
    raise AssertionError("the worker got no trial")


class Fails(keras_tuner.Tuner):
    def run_trial(self, trial, *args, **kwargs):
        if trial.trial_id in self.failing:
            raise ValueError("bad shape")
        return {"score": float(trial.trial_id)}


def search_with_failures(folder: Path, failing: str) -> Fails:
    oracle = RandomSearch(OBJECTIVE, 3, SPACE.hyperparameters(), seed=0)
    tuner = Fails(oracle=oracle, directory=str(folder), project_name="search")
    tuner.failing = failing
    tuner.search(verbose=0)
    return tuner


def test_a_failed_trial_is_never_among_the_best_of_kerastuners_own_tuner(tmp_path):
    tuner = search_with_failures(tmp_path, failing="2")
    assert [trial.trial_id for trial in tuner.oracle.get_best_trials(3)] == ["1", "0"]
    assert len(tuner.get_best_hyperparameters(3)) == 2


def test_a_search_of_kerastuners_own_tuner_in_which_all_trials_failed_ends_with_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="all 3 trials failed: 3 x ValueError: bad shape"):
        search_with_failures(tmp_path, failing="012")


@pytest.mark.slow
def test_the_example_for_kerastuners_own_tuner_runs(tmp_path, project: Path, capsys):
    guide = (project / "docs" / "clusters.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    example = example.replace("/shared", str(tmp_path)).replace("max_trials=1000", "max_trials=3")
    rng = np.random.default_rng(0)
    names = {"images": rng.normal(size=(40, 5)), "labels": rng.integers(0, 10, 40)}
    exec(compile(example, "docs/clusters.md", "exec"), names)
    assert "'units':" in capsys.readouterr().out
    assert len(names["oracle"].trials) == 3
