"""Trials in other processes: one process lost costs one attempt, and the search ends with what was asked for."""

import collections
import contextlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import keras_tuner
import pytest

from recipes.engine import spaces, tuner
from recipes.engine.workers import LocalWorkers, Task, TrialResult, choose_variables
from recipes.oracles import (
    NSGA2,
    AgingEvolution,
    ControllerOracle,
    LocalSearch,
    RandomSearch,
    SearchOracle,
    SuccessiveHalving,
)
from recipes.oracles.base import Wait
from tests import cheap_trials

OBJECTIVE = keras_tuner.Objective("score", "max")
SPACE = spaces.CellSpace("small", ("skip_connect", "sep_conv_3x3", "max_pool_3x3"), nodes=2, cells=("normal",))


def evolution(trials: int = 30, **options) -> AgingEvolution:
    return AgingEvolution(
        OBJECTIVE, trials, SPACE.hyperparameters(), seed=0, population=6, sample=3, kinds=SPACE.kinds, **options
    )


def outcome(history) -> list[tuple]:
    return [(record.number, tuple(record.values.items()), record.status, record.score) for record in history]


def search(folder, evaluate=cheap_trials.score, count: int = 2, make=evolution, **options) -> tuner.Tuner:
    """Runs a search in `count` processes; 0 is this one."""
    limits = {"silence": options.pop("silence")} if "silence" in options else {}
    workers = LocalWorkers(evaluate, count, **limits) if count else None
    runner = tuner.Tuner(make(), None if count else evaluate, folder, workers=workers, **options)
    runner.search()
    return runner


def check(folder: Path, trials: int, invalid: int = 0) -> list[dict]:
    """Asserts that a finished search has each trial once, with the score of its values; returns the journal."""
    runner = tuner.Tuner(evolution(trials), pytest.fail, folder)
    runner.search()
    assert sorted(record.number for record in runner.history) == list(range(trials))
    done = [record for record in runner.history if record.status == "COMPLETED"]
    assert len(done) == trials - invalid
    for record in done:
        assert record.score == cheap_trials.score_of(record.values)
    records = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    ends = collections.Counter(record["end"] for record in records if "end" in record)
    assert ends == dict.fromkeys(range(trials), 1)
    return records


class InTurn:
    """Workers in this process that end trials in an order of the test's choice."""

    def __init__(self, count: int, order, evaluate=cheap_trials.score_and_size):
        self.count, self.order, self.evaluate = count, order, evaluate
        self.tasks: list[Task] = []

    @property
    def room(self) -> int:
        return self.count - len(self.tasks)

    def start(self, task: Task) -> None:
        self.tasks.append(task)

    def wait(self) -> TrialResult:
        task = self.tasks.pop(self.order(len(self.tasks)))
        return TrialResult(task.number, self.evaluate(task), seconds=0.01)

    def close(self) -> None:
        self.tasks.clear()


def run_in_turn(folder, make, count: int, order, **options) -> tuner.Tuner:
    runner = tuner.Tuner(make(), None, folder, workers=InTurn(count, order), **options)
    runner.search()
    return runner


def last(running: int) -> int:
    return running - 1


MAKERS = {
    "evolution": evolution,
    "controller": lambda: ControllerOracle(
        OBJECTIVE, 30, SPACE.hyperparameters(), seed=0, batch=4, hidden=2, learning_rate=0.01, passes=1
    ),
    "random": lambda: RandomSearch(OBJECTIVE, 30, SPACE.hyperparameters(), seed=0),
    "halving": lambda: SuccessiveHalving(evolution(), (1, 3, 9), factor=2),
    "nsga2": lambda: NSGA2(
        [OBJECTIVE, keras_tuner.Objective("size", "min")], 30, SPACE.hyperparameters(), seed=0, population=6
    ),
    "local": lambda: LocalSearch(OBJECTIVE, 30, SPACE.hyperparameters(), seed=0),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_one_worker_gives_the_serial_search(tmp_path, make):
    serial = search(tmp_path / "serial", cheap_trials.score_and_size, count=0, make=make)
    one = run_in_turn(tmp_path / "one", make, 1, last)
    assert outcome(one.history) == outcome(serial.history)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("snapshot_seconds", [0.0, 1e9], ids=["snapshots", "replay"])
def test_a_journal_of_overlapping_trials_resumes_at_every_record(tmp_path, make, snapshot_seconds):
    """Three at once, the last one first: cut anywhere, the oracle stands where it stood then."""
    run_in_turn(tmp_path / "whole", make, 3, last)
    data = (tmp_path / "whole" / "journal.jsonl").read_bytes()
    ends = [position for position, byte in enumerate(data) if byte == ord("\n")]
    for number, cut in enumerate(ends[2 :: len(ends) // 3]):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "journal.jsonl").write_bytes(data[: cut + 9])
        runner = run_in_turn(folder, make, 3, last, snapshot_seconds=snapshot_seconds)
        assert (folder / "snapshot.json").exists() == (snapshot_seconds == 0)
        assert sorted(record.number for record in runner.history) == list(range(30))
        again = tuner.Tuner(make(), pytest.fail, folder)
        again.search()
        assert outcome(again.history) == outcome(runner.history)
        assert again.oracle.snapshot() == runner.oracle.snapshot()


def test_a_search_with_workers_resumes_in_one_process_and_the_other_way_round(tmp_path):
    def until(task: Task) -> float:
        if task.number == 7:
            raise KeyboardInterrupt
        return cheap_trials.score(task)

    runner = tuner.Tuner(evolution(), None, tmp_path, workers=InTurn(3, last, until))
    with pytest.raises(KeyboardInterrupt):
        runner.search()
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, lambda task: cheap_trials.interrupted(task, 15), count=0)
    run_in_turn(tmp_path, evolution, 2, last)
    check(tmp_path, 30)


def test_learning_follows_the_order_in_which_trials_end(tmp_path):
    learned = []

    class Watched(AgingEvolution):
        relearns = False

        def learn(self, genome, fitness):
            learned.append(fitness)
            super().learn(genome, fitness)

    def make() -> Watched:
        return Watched(OBJECTIVE, 12, SPACE.hyperparameters(), seed=0, population=4, sample=2, identity=0.0)

    history = run_in_turn(tmp_path, make, 4, last).history
    assert [record.number for record in history] == [3, 4, 5, 6, 7, 8, 9, 10, 11, 2, 1, 0]
    assert learned == [record.score for record in history]


class Pairs(SearchOracle):
    """Two random trials a level; the next level waits for both."""

    def __init__(self, trials: int):
        super().__init__(OBJECTIVE, trials, SPACE.hyperparameters(), seed=0)
        self.started = 0

    def propose(self):
        if self.started and self.started % 2 == 0 and self.running:
            raise Wait
        self.started += 1
        return self.random_genome()


def test_an_oracle_that_waits_for_its_level_gets_no_more_than_that_at_once(tmp_path):
    seen = []

    class Watching(InTurn):
        def wait(self) -> TrialResult:
            seen.append(sorted(task.number for task in self.tasks))
            return super().wait()

    runner = tuner.Tuner(Pairs(6), None, tmp_path, workers=Watching(5, last))
    runner.search()
    assert seen == [[0, 1], [0], [2, 3], [2], [4, 5], [4]]
    again = tuner.Tuner(Pairs(6), pytest.fail, tmp_path)
    again.search()
    assert outcome(again.history) == outcome(runner.history)


def test_a_lost_trial_is_given_out_again_once_and_then_invalid(tmp_path):
    attempts = collections.Counter()

    class Loses(InTurn):
        def wait(self) -> TrialResult:
            task = self.tasks.pop(0)
            attempts[task.number] += 1
            if task.number == 3 or (task.number == 5 and attempts[5] == 1):
                return TrialResult(task.number, None, "the worker was killed by signal 9 (SIGKILL)", lost=True)
            return TrialResult(task.number, self.evaluate(task))

    notes = []
    observe = lambda status: notes.append(status.note)  # noqa: E731
    runner = tuner.Tuner(evolution(9), None, tmp_path, workers=Loses(2, last), observe=observe)
    runner.search()
    killed = "the worker was killed by signal 9 (SIGKILL)"
    assert [note for note in notes if note.startswith("trial 3")] == [
        f"trial 3: {killed}; retrying", f"trial 3: {killed}; given up"
    ]  # fmt: skip
    assert attempts[3] == attempts[5] == 2
    invalid = [record for record in runner.history if record.status == "INVALID"]
    assert [record.number for record in invalid] == [3]
    assert "given up after 2 attempts; in the last, the worker was killed by signal 9 (SIGKILL)" in invalid[0].message
    check(tmp_path, 9, invalid=1)


def test_cores_and_gpus_are_shared_out(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,5")
    assert choose_variables(0, 1) == {}  # it is to compute what this process would
    assert choose_variables(1, 2)["CUDA_VISIBLE_DEVICES"] == "2,5"
    assert choose_variables(1, 2)["OMP_NUM_THREADS"] == "4"
    assert [choose_variables(place, 8)["CUDA_VISIBLE_DEVICES"] for place in range(8)] == list("00112255")
    assert choose_variables(0, 8)["TF_FORCE_GPU_ALLOW_GROWTH"] == "true"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "OMP_NUM_THREADS" not in choose_variables(0, 2)
    assert "CUDA_VISIBLE_DEVICES" not in choose_variables(0, 2)


@pytest.mark.parametrize(("count", "silence"), [(0, 1.0), (1, 0.0)])
def test_workers_out_of_range_are_refused(count, silence):
    with pytest.raises(ValueError, match=f"count is {count} and silence"):
        LocalWorkers(cheap_trials.score, count, silence=silence)


def test_what_cannot_be_sent_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(ValueError, match=r"cannot be sent to another process.*function of a module"):
        search(tmp_path, evaluate=lambda task: 1.0, count=1)


def test_a_tuner_takes_workers_or_a_function(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="evaluate or workers, and not both"):
        tuner.Tuner(evolution(), cheap_trials.score, tmp_path, workers=InTurn(1, last))
    monkeypatch.setenv("KERASTUNER_ORACLE_IP", "127.0.0.1")
    with pytest.raises(ValueError, match="KERASTUNER_ORACLE_IP is set"):
        tuner.Tuner(evolution(), cheap_trials.score, tmp_path)


def test_two_processes_run_a_search(tmp_path):
    seen = []
    search(tmp_path, count=2, observe=seen.append)
    check(tmp_path, 30)
    assert seen[-1].done == 30


@pytest.mark.slow
def test_one_process_gives_the_serial_search(tmp_path):
    serial = search(tmp_path / "serial", count=0)
    assert outcome(search(tmp_path / "one", count=1).history) == outcome(serial.history)


# evaluate, trials, the one that fails whenever it is tried, and the reason; kill -9 is met once more, in trial 6
FAILURES = [
    (cheap_trials.raises_in_trial_3, 8, 3, r"^ValueError: bad shape \(0, 3\)$"),
    (cheap_trials.dies_in_trials_3_and_6, 10, 3, r"signal 9 \(SIGKILL\), perhaps out of memory"),
    (cheap_trials.hangs_in_trial_2, 6, 2, "given up after 2 attempts; in the last, the worker was silent for 5 s"),
    (cheap_trials.needs_too_much_in_trial_1, 5, 1, "MemoryError"),  # by RLIMIT_AS, which Python tells as an exception
]


@pytest.mark.slow
@pytest.mark.parametrize(("evaluate", "trials", "failing", "reason"), FAILURES)
def test_what_goes_wrong_in_a_trial_costs_this_trial_alone(tmp_path, evaluate, trials, failing, reason):
    runner = search(tmp_path, evaluate, make=lambda: evolution(trials), silence=5.0)
    (invalid,) = [record for record in runner.history if record.status == "INVALID"]
    assert invalid.number == failing
    assert re.search(reason, invalid.message)
    records = check(tmp_path, trials, invalid=1)
    if evaluate is cheap_trials.dies_in_trials_3_and_6:
        assert [record["lost"] for record in records if "lost" in record].count(6) == 1


@pytest.mark.slow
def test_a_trial_that_reports_is_not_silent(tmp_path):
    search(tmp_path, cheap_trials.slow_but_talking, make=lambda: evolution(2), silence=2.0, count=1)
    check(tmp_path, 2)


@pytest.fixture
def little_memory():
    """A control group of 100 MB, in which the kernel kills what takes more; its processes file."""
    group = Path("/sys/fs/cgroup/memory") / f"searched_zoo_{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(100 * 2**20))
    except OSError as error:
        pytest.skip(f"no memory control group of version 1 can be made here: {error}")
    yield group / "cgroup.procs"
    for _ in range(50):
        with contextlib.suppress(OSError):
            group.rmdir()
            return
        time.sleep(0.1)


@pytest.mark.slow
def test_a_worker_that_the_kernel_kills_for_its_memory_costs_one_trial(tmp_path, little_memory, monkeypatch):
    monkeypatch.setenv("CHEAP_TRIALS_GROUP", str(little_memory))
    runner = search(tmp_path, cheap_trials.joins_a_group_and_fills_it_in_trial_1, make=lambda: evolution(5))
    (invalid,) = [record for record in runner.history if record.status == "INVALID"]
    assert invalid.number == 1
    assert "SIGKILL" in invalid.message
    check(tmp_path, 5, invalid=1)


PROGRAM = """
    import sys
    from pathlib import Path
    from tests import cheap_trials
    from tests.engine import test_workers

    if __name__ == "__main__":
        print("ready", flush=True)
        test_workers.search(Path(sys.argv[1]), cheap_trials.slow, count=2, snapshot_seconds=0.2)
        print("done", flush=True)
"""


def start(folder: Path, project: Path, tmp_path: Path, text: str = PROGRAM) -> subprocess.Popen:
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(text))
    variables = os.environ | {"PYTHONPATH": str(project)}
    command = [sys.executable, str(program), str(folder)]
    process = subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def children_of(process: int) -> list[int]:
    """The worker processes: those that spawn started for it, without its resource tracker."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == process and b"spawn_main" in (path / "cmdline").read_bytes():
                found.append(int(path.name))
    return found


def wait_until(condition, seconds: float = 300.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def lines_of(folder: Path) -> int:
    path = folder / "journal.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def count_ended(folder: Path) -> int:
    """The trials that whole lines of the journal say have ended."""
    lines = (folder / "journal.jsonl").read_bytes().splitlines(keepends=True)
    return sum("end" in json.loads(line) for line in lines if line.endswith(b"\n"))


def alive(process: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes in /proc")
@pytest.mark.parametrize("victims", ["worker", "head", "both"])
def test_kill_9_loses_no_finished_trial(tmp_path, project, victims):
    folder = tmp_path / "search"
    for place in range(2):
        process = start(folder, project, tmp_path)
        before = lines_of(folder)
        wait_until(lambda before=before: lines_of(folder) > before + 8)
        workers = children_of(process.pid)
        assert workers
        killed = {"worker": workers[:1], "head": [process.pid], "both": [*workers, process.pid]}[victims]
        for victim in killed:
            with contextlib.suppress(ProcessLookupError):  # its parent's death may have been faster
                os.kill(victim, signal.SIGKILL)
        if victims == "worker":
            break
        process.communicate()
        assert count_ended(folder) > place
        wait_until(lambda workers=workers: not any(map(alive, workers)))  # none continues without its head
    else:
        process = start(folder, project, tmp_path)
    output, _ = process.communicate(timeout=300)
    assert output == "done\n"
    check(folder, 30)


FULL = """
    import sys
    from pathlib import Path
    from tests.engine import test_workers

    if __name__ == "__main__":
        try:
            test_workers.search(Path(sys.argv[1]), make=lambda: test_workers.evolution(60))
        except OSError as error:
            print(error)
            sys.exit(3)
"""


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 8 kB; a journal of sixty trials is longer than the half of it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8k", "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a disk can be mounted by root only")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk_ends_the_search_which_resumes_when_there_is_room(tmp_path, small_disk, project):
    program = tmp_path / "full.py"
    program.write_text(textwrap.dedent(FULL))
    (small_disk / "other").write_bytes(b"x" * 4096)
    command = [sys.executable, str(program), str(small_disk / "search")]
    variables = os.environ | {"PYTHONPATH": str(project)}
    options = {"env": variables, "capture_output": True, "text": True, "check": False, "timeout": 300}
    done = subprocess.run(command, **options)
    assert done.returncode == 3, done.stderr
    assert "No space left on device" in done.stdout
    assert "Free some space" in done.stdout
    journal = small_disk / "search" / "journal.jsonl"
    assert journal.read_bytes().endswith(b"\n")  # nothing of the line that had no room
    before = [line for line in journal.read_text().splitlines() if '"end"' in line]
    assert before
    (small_disk / "other").unlink()
    subprocess.run(["mount", "-o", "remount,size=1m", str(small_disk)], check=True)
    assert subprocess.run(command, **options).returncode == 0
    check(small_disk / "search", 60)
    after = [line for line in journal.read_text().splitlines() if '"end"' in line]
    assert after[: len(before)] == before


def test_a_file_that_may_not_grow_keeps_whole_lines(tmp_path):
    """RLIMIT_FSIZE stands for a full disk where none can be mounted."""
    from recipes.engine.journal import Journal

    journal = Journal(tmp_path / "j.jsonl", {})
    journal.append({"a": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    size = (tmp_path / "j.jsonl").stat().st_size
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, hard))
        with pytest.raises(OSError, match="Free some space; the same command resumes"):
            journal.append({"text": "x" * 100})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert (tmp_path / "j.jsonl").stat().st_size == size
    journal.append({"b": 2})
    journal.close()
    lines = (tmp_path / "j.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines[1:]] == [{"a": 1}, {"b": 2}]


@pytest.mark.slow
def test_a_trial_that_finds_the_disk_full_ends_the_search_and_is_not_counted(tmp_path):
    with pytest.raises(OSError, match=r"trial 3 ended the search: OSError.*No space left"):
        search(tmp_path, cheap_trials.finds_the_disk_full_in_trial_3)
    search(tmp_path)
    check(tmp_path, 30)


@pytest.mark.slow
def test_what_workers_print_is_in_a_file_of_their_own(tmp_path, capfd):
    workers = LocalWorkers(cheap_trials.prints, 1, logs=tmp_path / "logs")
    tuner.Tuner(evolution(2), None, tmp_path / "search", workers=workers).search()
    assert (tmp_path / "logs" / "worker_0.log").read_text().splitlines() == ["trial 0", "trial 1"]
    assert capfd.readouterr() == ("", "")
    workers = LocalWorkers(cheap_trials.Unreadable(), 1, logs=tmp_path / "logs")
    with pytest.raises(OSError, match=r"before it was ready: ValueError: no such data set \(full log: "):
        tuner.Tuner(evolution(2), None, tmp_path / "other", workers=workers).search()


@pytest.mark.slow
def test_workers_that_cannot_start_end_the_search_with_the_reason(tmp_path, capfd):
    with pytest.raises(OSError, match="exit code 1 before it was ready"):
        search(tmp_path, cheap_trials.Unreadable())
    assert "no such data set" in capfd.readouterr().err
