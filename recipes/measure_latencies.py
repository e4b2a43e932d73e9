"""Measures the latency of each layer of the MnasNet space on this machine, and writes a table for recipes.mnasnet.

    python -m recipes.measure_latencies                                   # the space of the laptop preset
    python -m recipes.measure_latencies --preset=paper                    # 224 pixels; an hour on 2 cores

Writes runs/latency-table/table.json. If the program is stopped, the same command resumes. For a phone, replace the
numbers with those that its own tools measure. The sum of a network's layers differs from the network's latency: it is
larger by the overhead of each LiteRT run, some microseconds, and smaller if single layers fit into a cache.
"""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from recipes import _main, mnasnet
from recipes.training import check_at_least, progress
from recipes.training.progress import Observe, Status
from zoo import atomic

if TYPE_CHECKING:
    from recipes.engine.latency import LatencyTable


@dataclasses.dataclass(frozen=True)
class Config:
    """The space, with the option names of recipes.mnasnet."""

    image_size: int = 28  # side of the images in pixels
    channels: int = 1  # of the images
    classes: int = 10  # of the data
    width: float = 0.25  # factor on MobileNetV2's filters
    depth: float = 0.4  # factor on MobileNetV2's layers
    divisor: int = 2  # the numbers of filters are multiples of it
    strides: Literal["small", "imagenet"] = "small"  # small halves the images three times, imagenet five times
    most: int | None = None  # how many layers to measure now; none measures all
    folder: Path = Path("runs/latency-table")  # the table, and the state to resume from

    def __post_init__(self):
        least = {"image_size": 1, "channels": 1, "classes": 1, "divisor": 1, "most": 1}
        check_at_least(self, least)


PRESETS = {
    "laptop": Config(),
    "paper": Config(224, 3, 1000, 1.0, 1.0, 8, "imagenet", folder=Path("runs/latency-table-paper")),
    "smoke": Config(8, width=0.125, depth=0.1, most=3, folder=Path("runs/latency-table-smoke")),
}


def measure(config: Config, observe: Observe | None = None) -> "LatencyTable":
    """Measures the layers, writes the table and returns it; `observe` is called in place of a progress bar."""
    from recipes.engine import latency, tuner

    strides = mnasnet.SMALL_STRIDES if config.strides == "small" else mnasnet.STRIDES
    space = mnasnet.BlockSpace(config.width, config.depth, strides, config.divisor)
    shape = (config.image_size, config.image_size, config.channels)
    layers = list(mnasnet.iterate_layers(space, shape, config.classes))[: config.most]
    measured = latency.MeasuredLatencies(config.folder, {})
    milliseconds = {}
    try:
        with progress.show_progress("latencies", "latency") as show:
            for number, (name, build) in enumerate(layers):
                (observe or show)(Status(number, len(layers), None, None, 0.0, name))
                milliseconds[name] = measured(name, build)
                tuner.forget_models()
            (observe or show)(Status(len(layers), len(layers), None, 0.0, 0.0, ""))
    finally:
        measured.close()
    table = latency.LatencyTable(latency.name_machine(), milliseconds)
    atomic.write_atomically(config.folder / "table.json", json.dumps(dataclasses.asdict(table), indent=1) + "\n")
    return table


if __name__ == "__main__":
    _main.run(measure, PRESETS)
