"""The runner: nothing lost, nothing doubled, whatever ends the process."""

import collections
import contextlib
import json
import math
import os
import random
import signal
import statistics
import subprocess
import sys
import textwrap
from pathlib import Path

import keras_tuner
import pytest

from recipes.engine import children as child_networks
from recipes.engine import spaces, tuner
from recipes.engine.journal import Journal
from recipes.engine.spaces import Decision
from recipes.oracles import AgingEvolution, RandomSearch, SuccessiveHalving
from tests.engine.test_workers import OBJECTIVE, SPACE, evolution, outcome
from zoo.genotype import Block, Blocks


def score(task: tuner.Task) -> float:
    return sum(len(str(value)) * (place + 1) for place, value in enumerate(task.values.values())) + task.seed % 7 / 10


def search(folder, evaluate=score, make_oracle=evolution, **options) -> tuner.Tuner:
    runner = tuner.Tuner(make_oracle(), evaluate, folder, **options)
    runner.search()
    return runner


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> list[tuple]:
    """What a search gives that nobody interrupts."""
    return outcome(search(tmp_path_factory.mktemp("whole")).history)


class Killed(BaseException):
    """Ends a search as Ctrl-C does: no `except Exception` sees it."""


@pytest.mark.parametrize("snapshot_seconds", [0.0, 1e9], ids=["snapshots", "replay"])
@pytest.mark.parametrize("last", [0, 1, 7, 29])
def test_a_search_that_was_ended_in_a_trial_resumes_as_if_it_had_not_been(tmp_path, whole, last, snapshot_seconds):
    def until(task: tuner.Task) -> float:
        if task.number == last:
            raise Killed
        return score(task)

    with pytest.raises(Killed):
        search(tmp_path, until, snapshot_seconds=snapshot_seconds)
    assert (tmp_path / "snapshot.json").exists() == (snapshot_seconds == 0 and last > 0)
    assert outcome(search(tmp_path, snapshot_seconds=snapshot_seconds).history) == whole


def test_a_journal_cut_off_at_any_byte_gives_the_same_search(tmp_path, whole):
    search(tmp_path / "whole")
    data = (tmp_path / "whole" / "journal.jsonl").read_bytes()
    header = data.index(b"\n") + 1
    for number, cut in enumerate([1, header - 1, header, header + 9, len(data) // 2, len(data) - 20, len(data) - 1]):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "journal.jsonl").write_bytes(data[:cut])
        assert outcome(search(folder).history) == whole


def test_a_finished_search_started_again_runs_no_trial(tmp_path, whole):
    search(tmp_path)
    assert outcome(search(tmp_path, evaluate=lambda task: pytest.fail("ran a trial")).history) == whole


def test_a_finished_search_can_be_made_longer(tmp_path, whole):
    search(tmp_path, make_oracle=lambda: evolution(trials=9))
    assert outcome(search(tmp_path).history) == whole


def test_a_failed_trial_is_invalid_with_its_reason_and_the_search_continues(tmp_path):
    def evaluate(task: tuner.Task) -> float:
        if task.number % 2:
            raise MemoryError("no room for 3 GB")
        return score(task)

    history = search(tmp_path, evaluate, lambda: evolution(trials=12)).history
    assert [record.status for record in history] == ["COMPLETED", "INVALID"] * 6
    assert history[1].message == "MemoryError: no room for 3 GB"
    again = search(tmp_path, evaluate, lambda: evolution(trials=12)).history
    assert outcome(again) == outcome(history)


def test_a_search_of_failures_only_says_why(tmp_path):
    def evaluate(task: tuner.Task) -> float:
        raise ValueError("bad shape")

    runner = search(tmp_path, evaluate, lambda: evolution(trials=5))
    with pytest.raises(ValueError, match="no trial has succeeded, 5 failed: 5 x ValueError: bad shape"):
        _ = runner.best


def test_a_trial_in_which_the_process_dies_again_and_again_is_given_up(tmp_path):
    def evaluate(task: tuner.Task) -> float:
        if task.number == 3:
            raise Killed
        return score(task)

    for _ in range(3):
        with pytest.raises(Killed):
            search(tmp_path, evaluate, lambda: evolution(trials=6), attempts=3)
    history = search(tmp_path, evaluate, lambda: evolution(trials=6), attempts=3).history
    assert history[3].status == "INVALID"
    assert "died 3 times" in history[3].message
    assert len(history) == 6


@pytest.mark.parametrize("snapshot_seconds", [0.0, 1e9], ids=["snapshots", "replay"])
def test_what_the_check_refuses_is_asked_once_in_the_life_of_a_search(tmp_path, snapshot_seconds):
    asked = []

    def check(values: dict) -> str | None:
        asked.append(tuple(values.values()))
        return "too large" if values["normal/node0/op0"] == "sep_conv_3x3" else None

    def make() -> AgingEvolution:
        return evolution(trials=20, check=check)

    first = search(tmp_path, make_oracle=make, snapshot_seconds=snapshot_seconds)
    count = len(asked)
    assert all(record.values["normal/node0/op0"] != "sep_conv_3x3" for record in first.history)
    again = search(tmp_path, make_oracle=make)
    assert outcome(again.history) == outcome(first.history)
    assert again.oracle.refused == first.oracle.refused
    assert len(asked) == len(set(asked)) == count


def test_a_space_that_is_used_up_ends_the_search_with_a_count(tmp_path):
    hyperparameters = keras_tuner.HyperParameters()
    hyperparameters.Choice("a", [1, 2, 3])
    runner = search(
        tmp_path, lambda task: task.values["a"], lambda: RandomSearch(OBJECTIVE, 9, hyperparameters, seed=0)
    )
    assert len(runner.history) == 3
    assert runner.oracle.message == "exhausted: 3 of 3 points tried"
    assert runner.best.values == {"a": 3}


def test_as_many_checkpoints_are_kept_as_were_asked_for(tmp_path):
    def evaluate(task: tuner.Task) -> float:
        task.folder.mkdir(parents=True)
        (task.folder / "weights").write_text(str(task.number))
        return [5, 9, 1, 8, 2, 7, 0][task.number]

    search(tmp_path, evaluate, lambda: evolution(trials=7), keep=2)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "trial_00001",
        "trial_00003",
    ]


def halved(trials: int = 30) -> SuccessiveHalving:
    return SuccessiveHalving(evolution(trials), (1, 3, 9), factor=2)


@pytest.mark.parametrize("snapshot_seconds", [0.0, 1e9], ids=["snapshots", "replay"])
def test_a_promoted_network_is_trained_on_from_its_own_checkpoint_whatever_dies(tmp_path, snapshot_seconds):
    epochs, seeds = collections.Counter(), collections.defaultdict(set)  # of each network
    promotions, deadly = 0, [2, 5]

    def train(task: tuner.Task) -> float:
        nonlocal promotions
        network = tuple(value for name, value in task.values.items() if name != "tuner/epochs")
        seeds[network].add(task.seed)
        file, until = task.folder / "epochs", task.values["tuner/epochs"]
        task.folder.mkdir(parents=True, exist_ok=True)
        done = int(file.read_text()) if file.exists() else 0
        promotions += done > 0
        for epoch in range(done, until):
            epochs[network] += 1
            file.write_text(str(epoch + 1))
            if promotions in deadly and epoch + 1 < until:  # in the midst of a promoted training
                deadly.remove(promotions)
                raise Killed
        return score(task)

    for _ in range(3):
        with contextlib.suppress(Killed):
            runner = search(tmp_path, train, halved, snapshot_seconds=snapshot_seconds)
    assert not deadly
    records = [record for record in runner.history if record.epochs == 9]
    assert len(records) >= 3
    assert max(epochs.values()) == 9  # none twice
    assert sum(epochs.values()) == sum(
        max(record.epochs for record in runner.history if dict(record.values).items() >= dict(network).items())
        for network in {
            tuple((name, value) for name, value in record.values.items() if name != "tuner/epochs")
            for record in runner.history
        }
    )
    assert all(len(each) == 1 for each in seeds.values())
    assert runner.best.epochs == 9
    assert runner.best.score == max(record.score or 0.0 for record in records)


def test_checkpoints_stay_of_the_best_and_of_those_next_in_line_for_a_promotion(tmp_path):
    def save(task: tuner.Task) -> float:
        task.folder.mkdir(parents=True, exist_ok=True)
        return float(task.number)

    make = lambda: SuccessiveHalving(RandomSearch(OBJECTIVE, 60, SPACE.hyperparameters(), seed=0), (1, 3), factor=4)  # noqa: E731
    runner = search(tmp_path, save, make, keep=1)
    # Each network is better than those before it. So from the fourth on each is in the best quarter, and is promoted.
    assert [record.number for record in runner.history if record.epochs == 3] == list(range(4, 60, 2))
    kept = sorted(int(path.name.removeprefix("trial_")) for path in (tmp_path / "checkpoints").iterdir())
    assert kept == [0, 1, 2, 57, 59]  # trial 58, the best, resumed from 57


def test_trial_seeds_differ_and_are_the_same_in_every_run(tmp_path):
    def seeds(folder) -> list[int]:
        found = []
        search(folder, lambda task: found.append(task.seed) or 1.0)
        return found

    first = seeds(tmp_path / "1")
    assert len(set(first)) == 30
    assert seeds(tmp_path / "2") == first


def test_other_settings_are_refused_with_the_difference(tmp_path):
    search(tmp_path, settings={"epochs": 2})
    with pytest.raises(ValueError, match=r"epochs 2 then, 3 now.*another folder"):
        search(tmp_path, settings={"epochs": 3})
    with pytest.raises(ValueError, match="holds a search by None, and this is nasnet; choose another folder"):
        search(tmp_path, settings={"recipe": "nasnet"})
    with pytest.raises(ValueError, match="oracle 'AgingEvolution' then, 'RandomSearch' now"):
        search(tmp_path, make_oracle=lambda: RandomSearch(OBJECTIVE, 30, SPACE.hyperparameters(), seed=0))


def test_a_damaged_line_is_named(tmp_path):
    search(tmp_path)
    path = tmp_path / "journal.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:4], b"{oops\n", *lines[5:]]))
    with pytest.raises(ValueError, match="line 5 is damaged"):
        search(tmp_path)


def test_two_processes_cannot_run_one_search(tmp_path):
    first = tuner.Tuner(evolution(), score, tmp_path)
    with pytest.raises(OSError, match="in use by another process"):
        tuner.Tuner(evolution(), score, tmp_path)
    first.close()
    search(tmp_path)


def test_an_oracle_without_choices_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no choices"):
        tuner.Tuner(AgingEvolution(OBJECTIVE, 3), score, tmp_path)


def test_the_status_counts_trials_and_knows_the_best(tmp_path):
    seen = []
    runner = search(tmp_path, observe=seen.append)
    assert [status.done for status in seen] == sorted(status.done for status in seen)
    assert seen[-1].done == seen[-1].total == 30
    assert seen[-1].best == runner.best.score == max(record.score for record in runner.history)
    assert seen[-1].seconds_left == 0


def test_a_journal_survives_a_torn_line_and_keeps_what_is_whole(tmp_path):
    journal = Journal(tmp_path / "j.jsonl", {"seed": 0})
    journal.append({"a": 1})
    journal.close()
    with (tmp_path / "j.jsonl").open("ab") as stream:
        stream.write(b'{"b": 2')
    journal = Journal(tmp_path / "j.jsonl", {"seed": 0})
    journal.append({"c": 3})
    assert journal.records == [{"a": 1}]
    journal.close()
    assert [json.loads(line) for line in (tmp_path / "j.jsonl").read_text().splitlines()[1:]] == [{"a": 1}, {"c": 3}]


# TensorFlow is loaded once. Each line of input is a size, a time and a folder: a process of its own searches there, and
# is killed so many seconds after the journal has grown to so many bytes.
SERVER = """
    import os, signal, sys, time, traceback
    sys.path.insert(0, sys.argv[1])
    from pathlib import Path
    from tests.engine import test_tuner_search as t

    def slow(task):
        time.sleep(0.02)
        return t.score(task)

    for line in sys.stdin:
        size, seconds, folder = line.rstrip().split(" ", 2)
        child = os.fork()
        if child == 0:
            try:
                t.search(Path(folder), slow, snapshot_seconds=0.1)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        journal, ended = Path(folder) / "journal.jsonl", (0, 0)
        while not ended[0] and not (journal.exists() and journal.stat().st_size >= float(size)):
            time.sleep(0.001)
            ended = os.waitpid(child, os.WNOHANG)
        if not ended[0]:
            time.sleep(float(seconds))
            os.kill(child, signal.SIGKILL)  # it cannot be another's number: it has not been waited for
            ended = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(ended[1]), flush=True)
"""


class Searches:
    """Runs searches in processes that can be killed."""

    def __init__(self, project: Path):
        command = [sys.executable, "-c", textwrap.dedent(SERVER), str(project)]
        self.server = subprocess.Popen(command, cwd=project, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, folder: Path, size: float = math.inf, seconds: float = 0.0) -> int:
        """Searches in `folder` and returns the exit code: -9 if the process was killed, by the journal's size."""
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.write(f"{size} {seconds} {folder}\n")
        self.server.stdin.flush()
        return int(self.server.stdout.readline())

    def close(self) -> None:
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.close()
        self.server.stdout.close()
        self.server.wait()


@pytest.fixture(scope="module")
def searches(project):
    server = Searches(project)
    yield server
    server.close()


def assert_nothing_lost_or_doubled(folder, whole) -> None:
    assert outcome(search(folder, evaluate=lambda task: pytest.fail("a trial was missing")).history) == whole
    records = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    for kind in ("start", "end"):
        assert [record[kind] for record in records if kind in record] == list(range(30))


@pytest.mark.slow
def test_a_search_killed_at_any_of_twenty_random_moments_ends_as_one_that_was_not(tmp_path, searches, whole):
    assert searches.run(tmp_path / "whole") == 0
    size = (tmp_path / "whole" / "journal.jsonl").stat().st_size
    rng = random.Random(0)
    for number in range(20):
        folder = tmp_path / str(number)
        assert searches.run(folder, rng.uniform(0.0, 0.95 * size), rng.uniform(0.0, 0.02)) == -signal.SIGKILL
        assert searches.run(folder) == 0
        assert_nothing_lost_or_doubled(folder, whole)


@pytest.mark.slow
def test_a_search_killed_five_times_over_ends_as_one_that_was_not(tmp_path, searches, whole):
    rng = random.Random(1)
    for number in range(4):
        folder = tmp_path / str(number)
        for _ in range(5):
            grown = folder / "journal.jsonl"
            size = grown.stat().st_size if grown.exists() else 0
            assert searches.run(folder, size + rng.uniform(0, 300), rng.uniform(0.0, 0.02)) == -signal.SIGKILL
        assert searches.run(folder) == 0
        assert_nothing_lost_or_doubled(folder, whole)


def resident_memory() -> float:
    """MiB of this process that are in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


class TwoBlocks(spaces.Space):
    """Networks of two blocks, so that two hundred are trained in minutes.

    All have one width: the libraries below keep a compiled kernel for each shape, up to some thousand: no leak.
    """

    decisions = tuple(
        Decision(f"block{block}/{kind}", choices, kind)
        for block in (0, 1)
        for kind, choices in {
            "op": ("conv", "sep_conv"), "kernel": (3, 5), "se": (0.0, 0.25), "skip": ("identity", "pool", "none")
        }.items()
    )  # fmt: skip

    def body(self, values) -> Blocks:
        rows = []
        for block in (0, 1):
            op, kernel, se, skip = (values[f"block{block}/{kind}"] for kind in ("op", "kernel", "se", "skip"))
            rows.append(Block(op, kernel, filters=8, se_ratio=se, skip=skip))
        return Blocks(tuple(rows), stem_filters=8)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the memory of a process in /proc, on Linux")
def test_memory_does_not_grow_over_two_hundred_trained_networks(tmp_path):
    config = child_networks.ChildConfig(
        trials=220, image_size=8, training_images=32, validation_images=32, batch_size=32, epochs=1, folder=tmp_path
    )
    space = TwoBlocks()
    scorer = child_networks.NetworkScorer(config, space, "mnasnet", {"search": {}}, child_networks.load_images(config))
    sizes = []

    def evaluate(task: tuner.Task) -> dict[str, float]:
        found = scorer.score(task)
        sizes.append(resident_memory())
        return found

    objective = keras_tuner.Objective("val_accuracy", "max")
    random_search = RandomSearch(objective, 220, spaces.make_hyperparameters(space.decisions), seed=0, key=space.key)
    runner = tuner.Tuner(random_search, evaluate, tmp_path)
    runner.search()
    assert len(sizes) == len(runner.history) == 220
    assert all(record.status == "COMPLETED" for record in runner.history)
    early, late = statistics.median(sizes[10:40]), statistics.median(sizes[-30:])
    print(f"{early:.0f} MiB, then {late:.0f}, {max(sizes):.0f} at most")
    assert late - early < 40  # MiB over 180 trials
