"""Runs models of keras.applications through every deployment tool: what works, and which layer prevents it.

    python -m benchmarks.foreign_models                              # half an hour on 2 cores
    python -m benchmarks.foreign_models --readme=docs/quantization.md    # also writes the table into the document
    python -m benchmarks.foreign_models --names=MobileNetV2,Xception --training    # also prunes and trains for int8

Writes table.md into the folder, and table.json, from which a stopped run resumes. The models have fresh weights, ten
classes and images of 80 x 80. A copy counts as working if its outputs equal the original's, a file if it runs.
"""

import dataclasses
import functools
import gc
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import keras
import numpy as np

from benchmarks.machine import describe_machine
from benchmarks.zoo_table import publish, replace_between
from recipes import _main
from zoo import graph
from zoo.atomic import write_atomically
from zoo.deploy import compact, doctor, planner, quantize, tf_keras_twin, tflite, turn
from zoo.markdown import make_table

NAMES = (
    "MobileNetV2", "MobileNetV3Small", "EfficientNetB0", "ResNet50", "DenseNet121", "Xception", "ConvNeXtTiny",
    "NASNetMobile",
)  # fmt: skip
SIDE, CLASSES, IMAGES = 80, 10, 4
TOOLS = ("flat", "turned", "twin", "int8", "memory plan", "doctor", "compact")
TRAINING = ("pruned", "int8 by training")
LONGEST = 110  # characters of an error in a cell


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the table."""

    names: tuple[str, ...] = NAMES  # classes of keras.applications
    training: bool = False  # also prune and train for int8
    readme: Path | None = None  # document in which the table replaces the text between its two marker comments
    folder: Path = Path("runs/foreign-models")  # table.md, and table.json to resume from

    def __post_init__(self):
        for name in self.names:
            if not hasattr(keras.applications, name):
                raise ValueError(f"names has {name!r}, which keras.applications lacks; expected names like MobileNetV2")


PRESETS = {"laptop": Config(), "smoke": Config(names=("MobileNetV2",), folder=Path("runs/foreign-models-smoke"))}


def write_table(config: Config) -> str:
    """Tries what is not in the folder yet; prints, writes and returns the table as Markdown.

    Raises:
        ValueError: the document lacks the markers.
    """
    if config.readme is not None:
        replace_between(config.readme.read_text(encoding="utf-8"), "foreign-models", "")  # raises before the work
    store = config.folder / "table.json"
    tools = (*TOOLS, *TRAINING) if config.training else TOOLS
    known: dict[str, dict[str, str]] = json.loads(store.read_text(encoding="utf-8")) if store.exists() else {}
    for name in config.names:
        for tool, cell in try_tools(name, known.setdefault(name, {}), tools):
            print(f"{name}, {tool}: {cell}", file=sys.stderr, flush=True)
            known[name][tool] = cell
            write_atomically(store, json.dumps(known, indent=1) + "\n")
        gc.collect()
    rows = [(name, *(known[name][tool] for tool in tools)) for name in config.names]
    text = (
        f"{make_table(('model', *tools), rows)}\n\n`python -m benchmarks.foreign_models`, {describe_machine()}, Keras "
        f"{keras.__version__}; keras.applications with fresh weights, {CLASSES} classes, images of {SIDE} x {SIDE}.\n"
    )
    publish("foreign-models", text, config.folder, config.readme)
    return text


def try_tools(name: str, known: dict[str, str], tools: Sequence[str] = TOOLS) -> Iterator[tuple[str, str]]:
    """Yields each tool without a known result, and its result: a number, or the error that names the layer."""
    wanted = [tool for tool in tools if tool not in known]
    if not wanted:
        return
    keras.utils.set_random_seed(0)
    model = getattr(keras.applications, name)(input_shape=(SIDE, SIDE, 3), weights=None, classes=CLASSES)
    attempts = _Attempts(model).make()
    for tool in wanted:
        yield tool, _run(attempts[tool])


def _run(attempt: Callable[[], str]) -> str:
    try:
        return attempt()
    except ValueError as error:  # the tools' own errors; any other exception is a bug to show
        reason = str(error).split(". ")[0]
        return f"no: {reason[:LONGEST]}{'...' if len(reason) > LONGEST else ''}"


class _Attempts:
    def __init__(self, model: keras.Model) -> None:
        self.model = model
        self.images = np.random.default_rng(0).uniform(0, 255, (IMAGES, SIDE, SIDE, 3)).astype(np.float32)
        self.labels = np.arange(IMAGES) % CLASSES

    def make(self) -> dict[str, Callable[[], str]]:
        """Returns tool -> a function that tries it on the model and describes the result."""
        return {
            "flat": lambda: f"{len(graph.flatten(self.model).layers)} layers",
            "twin": lambda: f"{len(tf_keras_twin.to_keras(tf_keras_twin.to_tf_keras(self.model)).layers)} layers",
            "pruned": self._prune,
            "int8": lambda: f"{len(self._int8) / 1000:,.0f} kB",
            "int8 by training": self._train,
            "memory plan": lambda: f"arena {planner.plan(self._int8).arena / 1000:,.0f} kB",
            "turned": lambda: f"{len(turn.turn(self.model).layers)} layers",
            "compact": lambda: (
                f"arena {planner.plan(compact.convert_smallest(self.model, self.images)).arena / 1000:,.0f} kB"
            ),
            "doctor": lambda: f"{doctor.diagnose(self._int8, self.images[:2]).output_db:.0f} dB",
        }

    @functools.cached_property
    def _int8(self) -> bytes:
        return tflite.convert(self.model, quantize="int8", calibration=self.images)

    def _prune(self) -> str:
        pruned = quantize.prune(self.model, self.images, self.labels, epochs=1, batch_size=IMAGES)
        kernels = [layer.kernel.numpy() for layer in pruned.layers if isinstance(layer, keras.layers.Conv2D)]
        return f"{np.mean([np.mean(kernel == 0) for kernel in kernels]):.0%} zeros"

    def _train(self) -> str:
        aware = quantize.prepare(self.model, self.images)
        quantize.fine_tune(aware, self.images, self.labels, batch_size=IMAGES)
        return f"{len(quantize.convert(aware)) / 1000:,.0f} kB"


if __name__ == "__main__":
    _main.run(write_table, PRESETS)
