"""Programs that search, train and deploy the zoo's architectures; `python -m recipes` lists them."""

import importlib
import sys
from types import ModuleType

_MOVED = {  # modules that users import as `from recipes import NAME`, and where they are now
    "data": "recipes.images.sources",
    "spaces": "recipes.engine.spaces",
    "trial": "recipes.training.child_training",
    "tuner": "recipes.engine.tuner",
}

if sys.argv[:1] == ["-m"]:  # Python's value while it looks for the program of `python -m recipes.NAME`
    from recipes import _quiet

    _quiet.mute_tensorflow()


def __getattr__(name: str) -> ModuleType:
    if name in _MOVED:
        return importlib.import_module(_MOVED[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
