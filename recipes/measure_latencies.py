"""Measures the layers of the MnasNet space on this machine, one by one, and writes a table for recipes.mnasnet.

    python -m recipes.measure_latencies                                   # the space of the laptop preset
    python -m recipes.measure_latencies --preset=paper                         # 224 pixels; an hour on 2 cores

The result is runs/latency-table/table.json. Started again with the same command, it goes on. For a phone, put
what its own tools measure in the place of the numbers. A sum of layers is longer than the network by what each run of
LiteRT costs beside its operators, some microseconds, and shorter where the layers alone fit into a cache.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from recipes import _main
from recipes.engine import latency, latency_table, tuner
from recipes.engine.spaces_mnasnet import SMALL_STRIDES, STRIDES, BlockSpace
from recipes.engine.tuner import Status
from recipes.training import progress
from zoo import atomic


@dataclasses.dataclass(frozen=True)
class Config:
    """Which space; the names are those of recipes.mnasnet."""

    image_size: int = 28  # side in pixels
    channels: int = 1  # of the images
    classes: int = 10  # of the data
    width: float = 0.25  # of MobileNetV2's filters
    depth: float = 0.4  # of MobileNetV2's layers
    divisor: int = 2  # filters are multiples of it
    strides: Literal["small", "imagenet"] = "small"  # halve images three times, or five
    most: int | None = None  # layers to measure now; none measures all
    folder: Path = Path("runs/latency-table")  # the table, and the state to resume from

    def __post_init__(self):
        for name in ("image_size", "channels", "classes", "divisor", "most"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a whole number from 1")


PRESETS = {
    "laptop": Config(),
    "paper": Config(224, 3, 1000, 1.0, 1.0, 8, "imagenet", folder=Path("runs/latency-table-paper")),
    "smoke": Config(8, width=0.125, depth=0.1, most=3, folder=Path("runs/latency-table-smoke")),
}


def measure(config: Config, observe: Callable[[Status], None] | None = None) -> latency_table.Table:
    """Measures, writes the table and returns it; `observe` gets the state instead of a progress bar."""
    space = BlockSpace(
        config.width, config.depth, SMALL_STRIDES if config.strides == "small" else STRIDES, config.divisor
    )
    pieces = list(
        latency_table.pieces_of_space(space, (config.image_size, config.image_size, config.channels), config.classes)
    )[: config.most]
    found = latency.Measured(config.folder, {})
    milliseconds = {}
    try:
        with progress.shown("latencies", "latency") as show:
            for number, (name, build) in enumerate(pieces):
                (observe or show)(Status(number, len(pieces), None, None, 0.0, name))
                milliseconds[name] = found(name, build)
                tuner.forget_models()
            (observe or show)(Status(len(pieces), len(pieces), None, 0.0, 0.0, ""))
    finally:
        found.close()
    table = latency_table.Table(latency.machine(), milliseconds)
    atomic.write_atomically(config.folder / "table.json", json.dumps(dataclasses.asdict(table), indent=1) + "\n")
    return table


if __name__ == "__main__":
    _main.run(measure, PRESETS)
