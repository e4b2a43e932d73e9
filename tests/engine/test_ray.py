"""Trials on a Ray of this machine: what Ray retries, what is given up, and what outlives the head."""

import contextlib
import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest

from recipes.engine import tuner
from recipes.engine.ray import _VARIABLES, RayWorkers
from tests import cheap_trials
from tests.engine import test_workers
from tests.engine.test_workers import evolution, outcome, wait_until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster():
    """Ray with four cores, whatever the machine has."""
    for name, value in _VARIABLES.items():
        os.environ.setdefault(name, value)
    ray = pytest.importorskip("ray")
    ray.init(
        address="local", num_cpus=4, object_store_memory=100 * 2**20, include_dashboard=False, log_to_driver=False,
        logging_level="ERROR",
    )  # fmt: skip
    yield ray
    ray.shutdown()


def search(folder, evaluate=cheap_trials.score, trials: int = 20, retries: int = 1, **options) -> tuner.Tuner:
    workers = RayWorkers(evaluate, retries=retries, **options)
    runner = tuner.Tuner(evolution(trials), None, folder, workers=workers, retries=retries)
    runner.search()
    return runner


def test_one_trial_at_once_gives_the_serial_search(tmp_path, cluster):
    serial = test_workers.search(tmp_path / "serial", count=0, make=lambda: evolution(20))
    one = search(tmp_path / "one", at_once=1)
    assert outcome(one.history) == outcome(serial.history)


def test_as_many_trials_run_as_the_cluster_has_room_for(tmp_path, cluster):
    workers = RayWorkers(cheap_trials.score, cpus=2)
    assert workers.room == 2
    workers.close()
    search(tmp_path, trials=12)
    test_workers.check(tmp_path, 12)


@pytest.mark.parametrize(("evaluate", "trials", "failing", "reason"), test_workers.FAILURES[:3])
def test_what_goes_wrong_in_a_trial_costs_this_trial_alone(tmp_path, cluster, evaluate, trials, failing, reason):
    """Ray itself tries once more what was killed."""
    runner = search(tmp_path, evaluate, trials=trials, silence=5.0)
    (invalid,) = [record for record in runner.history if record.status == "INVALID"]
    assert invalid.number == failing
    assert re.search("the worker died: " if "SIGKILL" in reason else reason, invalid.message)
    test_workers.check(tmp_path, trials, invalid=1)


def test_what_cannot_be_read_on_the_node_ends_the_search(tmp_path, cluster):
    with pytest.raises(OSError, match="no such data set"):
        search(tmp_path, cheap_trials.Unreadable())


def test_reports_reach_the_search(tmp_path, cluster):
    seen = []
    workers = RayWorkers(cheap_trials.slow_but_talking)
    runner = tuner.Tuner(evolution(1), None, tmp_path, workers=workers, observe=seen.append)
    runner.search()
    assert any(0 < status.share < 1 and status.text == "working" for status in seen)


PROGRAM = """
    import sys
    from pathlib import Path
    from recipes.engine import tuner
    from recipes.engine.ray import RayWorkers
    from tests import cheap_trials
    from tests.engine.test_workers import evolution

    if __name__ == "__main__":
        workers = RayWorkers(cheap_trials.slow, cores=2)
        runner = tuner.Tuner(evolution(), None, Path(sys.argv[1]), workers=workers, snapshot_seconds=0.2)
        print("ready", flush=True)
        runner.search()
        print("done", flush=True)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes in /proc")
@pytest.mark.parametrize("both", [False, True], ids=["head", "both"])
def test_kill_9_of_the_head_loses_no_finished_trial(tmp_path, project, monkeypatch, both):
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ADDRESS", "")
    folder = tmp_path / "search"
    process = test_workers.start(folder, project, tmp_path, PROGRAM)
    before = test_workers.lines_of(folder)
    wait_until(lambda: test_workers.lines_of(folder) > before + 8)
    trials = trials_of(process.pid)
    if both:
        for victim in trials:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
    process.kill()
    process.communicate()
    assert 0 < test_workers.count_ended(folder) < 30
    wait_until(lambda: not any(map(test_workers.alive, trials)))  # none continues without its head
    output, _ = test_workers.start(folder, project, tmp_path, PROGRAM).communicate(timeout=300)
    assert output == "done\n"
    test_workers.check(folder, 30)


def trials_of(head: int) -> list[int]:
    """The processes of Ray's workers below `head`."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])

    def below(process: int) -> bool:
        while process in parents:
            process = parents[process]
            if process == head:
                return True
        return False

    found = []
    for process in filter(below, parents):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{process}/cmdline").read_bytes().startswith((b"ray::", b"ray::IDLE")):
                found.append(process)
    return found


def test_without_ray_the_text_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"ray\[default\]"):
        RayWorkers(cheap_trials.score)


def test_a_cluster_that_does_not_answer_is_named(monkeypatch):
    ray = pytest.importorskip("ray")
    if ray.is_initialized():
        ray.shutdown()
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr(ray, "init", lambda **options: (_ for _ in ()).throw(ConnectionError("refused")))
    begun = time.monotonic()
    with pytest.raises(ConnectionError, match=r"RAY_ADDRESS=127.0.0.1:1: refused.*unset RAY_ADDRESS"):
        RayWorkers(cheap_trials.score)
    assert time.monotonic() - begun < 60
