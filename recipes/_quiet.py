"""Keeps what TensorFlow says of itself off the terminal of a program, whichever module imports it first."""

import importlib.abc
import importlib.machinery
import importlib.util
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from types import ModuleType


def mute_tensorflow() -> None:
    """Drops what TensorFlow's C++ code logs to stderr, during its import too, and Python logs below an error.

    TF_CPP_MIN_LOG_LEVEL is left as it is where the user has set it, and then nothing is dropped.
    """
    if "TF_CPP_MIN_LOG_LEVEL" in os.environ:
        return
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    for name in ("absl", "tensorflow"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # TensorFlow 2.21 heeds the variable only after its import, which prints six lines in any case.
    sys.meta_path.insert(0, _MutedImport())


class _MutedImport(importlib.abc.MetaPathFinder):
    """Makes the first `import tensorflow` run with stderr put aside; an import that fails prints it after all."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "tensorflow":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            loader = spec.loader
            execute = loader.exec_module
            loader.exec_module = lambda module: _with_stderr_aside(execute, module)
        return spec


def _with_stderr_aside(execute: Callable[[ModuleType], None], module: ModuleType) -> None:
    with tempfile.TemporaryFile() as aside:
        stderr = os.dup(2)
        os.dup2(aside.fileno(), 2)
        try:
            execute(module)
        except Exception:
            aside.seek(0)
            os.write(stderr, aside.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
