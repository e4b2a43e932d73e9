"""Latency of networks for searches: measured with LiteRT on this machine, or summed from a table of another device.

Other work on the machine makes a measurement larger, never smaller. So a network is measured before it is trained, in
rounds, each the median of many runs, until the two fastest rounds agree; the fastest is the result. A network is
measured once in the life of a search: a file keeps the result for a resumed search.

A table for layers of mobile networks is a JSON file: {"machine": "Pixel 1, one big core", "milliseconds": {NAME: 0.31,
...}}. `python -m recipes.measure_latencies` makes one for this machine, with all names that a search needs.
"""

import dataclasses
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import keras

from recipes.engine.journal import Journal
from recipes.engine.workers import name_processor
from zoo.deploy import measure, tflite
from zoo.genotype import Block, Blocks, near

_ROUND_SECONDS = 0.1  # longest round, but at least three runs
_MOST_RUNS, _LEAST_ROUNDS, _MOST_ROUNDS = 50, 3, 12
_AGREEMENT = 1.03  # largest ratio of the two fastest rounds
_PAUSE = 0.02  # s between two rounds, so that one disturbance does not hit all of them

Shape = tuple[int, int, int]  # height, width, channels


def measure_latency(model: keras.Model) -> float:
    """Returns the time of one image in ms, in float32 on one thread of this machine, with LiteRT."""
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


def name_machine() -> str:
    """Returns the processor's name and core count: latencies of two machines must not be mixed."""
    return f"{name_processor()}, {os.cpu_count()} cores"


class MeasuredLatencies:
    """Latencies of a search's networks, each measured once and stored in folder/latency.jsonl.

    Args:
        folder: of the search.
        network: what a latency depends on besides the network's key, such as the size of the images.
        measure: model -> ms.

    Raises:
        ValueError: the file in the folder is of another machine or other networks.
    """

    def __init__(
        self, folder: Path, network: Mapping[str, Any], measure: Callable[[keras.Model], float] = measure_latency
    ):
        self._measure = measure
        self._journal = Journal(folder / "latency.jsonl", {"machine": name_machine(), **network})
        self._known: dict[str, float] = {record["network"]: record["ms"] for record in self._journal.records}

    def __call__(self, key: str, build: Callable[[], keras.Model]) -> float:
        """Returns the ms of the network with this key; `build` makes the network if it has not been measured yet."""
        if key not in self._known:
            self._known[key] = self._measure(build())
            self._journal.append({"network": key, "ms": self._known[key]})
        return self._known[key]

    def close(self) -> None:
        """Releases the file."""
        self._journal.close()


def stem_name(height: int, width: int, channels: int, filters: int) -> str:
    """Returns the name of a stem in a table."""
    return f"stem {height}x{width}x{channels} {filters}"


def layer_name(height: int, width: int, inputs: int, row: Block, strides: int) -> str:
    """Returns the name of one layer of a row in a table, such as "14x14x24 mb_conv k3 s1 m144 se0.25 identity 24".

    The first numbers are the input's shape, m is the width between the convolutions, the last number is the filters of
    the output. An identity skip that the shapes do not allow is named none, and an mb_conv without its first
    convolution is named sep_conv.
    """
    middle = row.mid_filters or round(inputs * row.expansion)
    op = "sep_conv" if row.op == "mb_conv" and middle == inputs else row.op
    skip = "none" if row.skip == "identity" and (strides > 1 or inputs != row.filters) else row.skip
    between = f" m{middle}" if op == "mb_conv" else ""
    size = f"{height}x{width}x{inputs}"
    return f"{size} {op} k{row.kernel_size} s{strides}{between} se{row.se_ratio:g} {skip} {row.filters}"


def head_name(height: int, width: int, inputs: int, filters: int | None, classes: int) -> str:
    """Returns the name of the last convolution and the classifier in a table."""
    return f"head {height}x{width}x{inputs} {filters or 'none'} {classes}"


def name_layers(body: Blocks, input_shape: Shape, classes: int) -> list[str]:
    """Returns the names that a table has for a network's layers, from the stem to the classifier."""
    height, width, channels = input_shape
    found = [stem_name(height, width, channels, body.stem_filters)]
    inputs, height, width = body.stem_filters, -(-height // 2), -(-width // 2)
    for row in body.rows:
        for repeat in range(row.repeats):
            strides = row.strides if repeat == 0 else 1
            found.append(layer_name(height, width, inputs, row, strides))
            inputs, height, width = row.filters, -(-height // strides), -(-width // strides)
    return [*found, head_name(height, width, inputs, body.head_filters, classes)]


@dataclasses.dataclass(frozen=True)
class LatencyTable:
    """Latencies of layers by name, in ms; a network's latency is their sum."""

    machine: str
    milliseconds: Mapping[str, float]

    @classmethod
    def load(cls, path: Path) -> "LatencyTable":
        """Reads a table file.

        Raises:
            ValueError: the file has another layout; the text says where.
            OSError: the file cannot be read.
        """
        try:
            record = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        except ValueError as error:
            raise ValueError(f"{path} is not JSON: {error}; expected a table of latencies") from error
        if (
            not isinstance(record, dict)
            or record.keys() != {"machine", "milliseconds"}
            or not isinstance(record["milliseconds"], dict)
        ):
            raise ValueError(
                f'{path} is not a table of latencies; expected {{"machine": "...", "milliseconds": {{name: number}}}}'
            )
        for name, value in record["milliseconds"].items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                raise ValueError(f"{path}: {name!r} is {value!r}; expected milliseconds, a number from 0")
        return cls(str(record["machine"]), record["milliseconds"])

    def latency(self, body: Blocks, input_shape: Shape, classes: int) -> float:
        """Returns the ms of a network.

        Raises:
            ValueError: the network has a layer that the table lacks.
        """
        names = name_layers(body, input_shape, classes)
        self.require(names)
        return sum(self.milliseconds[name] for name in names)

    def require(self, names: Iterable[str]) -> None:
        """Raises ValueError if the table lacks any of `names`."""
        missing = [name for name in names if name not in self.milliseconds]
        if missing:
            raise ValueError(
                f"the table of {self.machine} lacks {len(missing):,} of the layers that networks of this search may "
                f"have, such as {missing[0]!r}{near(missing[0], self.milliseconds)}. Measure these too: "
                "python -m recipes.measure_latencies with the options of the search"
            )
