"""Latency of networks for searches, measured by LiteRT on this machine; `latency_table` adds it up instead.

A training beside it makes a measurement larger, never smaller. So a network is measured before it is trained, in
rounds, each the median of many runs, until the two least rounds agree; the least is taken. It is measured once in the
life of a search: what a resumed search needs again stands in a file.
"""

import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras

from recipes.engine.journal import Journal
from zoo.deploy import measure, tflite

_ROUND_SECONDS = 0.1  # of runs; at most so long, but three runs at least
_MOST_RUNS, _LEAST_ROUNDS, _MOST_ROUNDS = 50, 3, 12
_AGREEMENT = 1.03  # of the two least rounds
_PAUSE = 0.02  # s between two rounds, so that one disturbance does not hit all of them


def measured(model: keras.Model) -> float:
    """Returns the time of one image in ms, in float32 on one thread of this machine, under LiteRT."""
    file = tflite.convert(model)
    one = measure.latency(file, runs=3, warmup=2).median_ms
    runs = max(3, min(_MOST_RUNS, int(1000 * _ROUND_SECONDS / max(one, 1e-3))))
    medians: list[float] = []
    while len(medians) < _MOST_ROUNDS:
        medians.append(measure.latency(file, runs=runs, warmup=1).median_ms)
        least = sorted(medians)[:2]
        if len(medians) >= _LEAST_ROUNDS and least[1] <= _AGREEMENT * least[0]:
            break
        time.sleep(_PAUSE)
    return min(medians)


def machine() -> str:
    """Returns the processor's name: latencies of two machines must not be mixed."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor()
    return f"{name or platform.machine()}, {os.cpu_count()} cores"


class Measured:
    """Latencies of a search's networks, each measured once; with a folder they are kept there, in latency.jsonl.

    Args:
        folder: of the search; None keeps nothing.
        network: what else but a network's key tells it from others, such as the size of the images.
        measure: model -> ms.

    Raises:
        ValueError: the file in the folder is from another machine or of other networks.
    """

    def __init__(
        self, folder: Path | None, network: Mapping[str, Any], measure: Callable[[keras.Model], float] = measured
    ):
        self._measure = measure
        self._journal = None
        self._known: dict[str, float] = {}
        if folder is not None:
            self._journal = Journal(folder / "latency.jsonl", {"machine": machine(), **network})
            self._known = {record["network"]: record["ms"] for record in self._journal.records}

    def __call__(self, key: str, build: Callable[[], keras.Model]) -> float:
        """Returns the ms of the network of this key; `build` makes it where it has not been measured yet."""
        if key not in self._known:
            milliseconds = self._measure(build())
            if self._journal is not None:
                self._journal.append({"network": key, "ms": milliseconds})
            self._known[key] = milliseconds
        return self._known[key]

    def close(self) -> None:
        """Lets go of the file."""
        if self._journal is not None:
            self._journal.close()
