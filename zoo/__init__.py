"""Searched architectures in Keras 3: NASNet, PNASNet, AmoebaNet, MnasNet, ENAS, DARTS, MCUNet.

    model = zoo.build("darts", classes=10, input_shape=(32, 32, 3))
    zoo.list_models("*nas*")
    zoo.info("nasnet_a")["published"]

`import zoo` is light; Keras is loaded when the first network is built.
"""

import importlib
import importlib.abc
import importlib.util
import sys
from typing import TYPE_CHECKING, Any

from zoo.genotype import Genotype, GenotypeError
from zoo.genotype_json import save
from zoo.registry import info, list_models, load

if TYPE_CHECKING:
    from zoo import cost, formats, weights
    from zoo.builder import build
    from zoo.cell import Cell
    from zoo.class_names import decode_predictions
    from zoo.drawing import draw
    from zoo.pretrained import from_pretrained, save_pretrained
    from zoo.weights.published import preprocess

__version__ = "0.1.0"  # setup.py reads it here

__all__ = [
    "Cell", "Genotype", "GenotypeError", "build", "cost", "decode_predictions", "draw", "formats", "from_pretrained",
    "info", "list_models", "load", "preprocess", "save", "save_pretrained", "weights",
]  # fmt: skip
_LAZY = {  # name -> module that defines it; None if the name is a module
    "Cell": "zoo.cell", "build": "zoo.builder", "cost": None, "decode_predictions": "zoo.class_names",
    "draw": "zoo.drawing", "formats": None, "from_pretrained": "zoo.pretrained", "preprocess": "zoo.weights.published",
    "save_pretrained": "zoo.pretrained", "weights": None,
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Imports a member that needs Keras or NumPy on first access."""
    if name not in _LAZY:
        raise AttributeError(f"module 'zoo' has no attribute {name!r}")
    owner = _LAZY[name]
    value = importlib.import_module(f"zoo.{name}") if owner is None else getattr(importlib.import_module(owner), name)
    globals()[name] = value
    return value


class _CellRegistrar(importlib.abc.MetaPathFinder):
    """Registers `Cell` with Keras as soon as Keras is imported, so that `keras.models.load_model` knows the class."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Returns Keras' spec with the registration added to its loader; None for every other module."""
        if name != "keras":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_register(module: Any) -> None:
                run(module)
                if "zoo.blocks" not in sys.modules:  # otherwise its import may have led here, before `Cell` exists
                    importlib.import_module("zoo.cell")

            spec.loader.exec_module = run_and_register
        return spec


if "keras" in sys.modules:
    importlib.import_module("zoo.cell")
else:
    sys.meta_path.insert(0, _CellRegistrar())


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
