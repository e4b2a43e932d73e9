"""A search that is killed in the middle, and what its journal says."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path


def outcome(folder: Path) -> list[tuple]:
    """What the journal says of trials and scores; not how long they took."""
    records = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()[1:]]
    starts = [(record["start"], record["genome"]) for record in records if "start" in record]
    return [*starts, *((record["end"], record["status"], record["metrics"]) for record in records if "end" in record)]


def kill_when(command: Sequence[str], project: Path, reached: Callable[[], bool], pause: float = 0.0) -> None:
    """Starts a search and kills it `pause` seconds after it has `reached` some point."""
    process = subprocess.Popen(command, cwd=project, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not reached():
        assert process.poll() is None, "the search ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(pause)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def kill_and_resume(command: Sequence[str], folder: Path, project: Path, written: bytes, pause: float = 0.0) -> str:
    """Kills a search `pause` seconds after its journal has `written`; returns what it prints when started again."""
    journal = folder / "journal.jsonl"
    kill_when(command, project, lambda: journal.exists() and written in journal.read_bytes(), pause)
    return subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=300, check=True).stdout
