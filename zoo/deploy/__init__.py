"""From a flat keras.Model to a file on a phone or a microcontroller; nothing here knows a family or a genotype.

The modules, in the order of use: `tflite` (convert), `measure` (accuracy, latency, arena: MEASURED), `report` (all
files of one model on one page), `planner` and `boards` (arena, flash and fit, estimated from the file alone), `compact`
(less arena: turned, in strips, well placed), `tf_keras_twin`, `quantize` and `compress` (training for int8, pruning,
clustering), `doctor` (where int8 loses accuracy), `c_array` (the file as C source). Import the module that you need;
importing this package loads none of them.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    """Loads `zoo.graph`, which was `zoo.deploy.graph` once."""
    if name == "graph":
        from zoo import graph

        return graph
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
