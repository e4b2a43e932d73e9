"""From a flat keras.Model to a file on a phone or a microcontroller; nothing here knows a family or a genotype.

The modules, in the order of use: `tflite` (convert), `measure` (accuracy, latency and arena, MEASURED), `report` (all
files of one model on one page), `planner` (arena and flash, estimated from the file alone), `boards` (does the file
fit, and what runs on the neural processor), `compact` (a smaller arena), `tf_keras_twin` and `quantize` (training for
int8, pruning, clustering), `doctor` (where int8 loses accuracy), `c_array` (the file as C source), `firmware` (a
program around it). Import the module you need; importing this package loads none of them.
"""

import importlib
from typing import Any

_MOVED = {"compress": "zoo.deploy.quantize", "graph": "zoo.graph", "strips": "zoo.deploy.compact"}


def __getattr__(name: str) -> Any:
    """Loads the module that now holds a module of version 0.1."""
    if name in _MOVED:
        return importlib.import_module(_MOVED[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
