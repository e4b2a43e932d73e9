"""Keeps TensorFlow's log messages off a program's terminal, whichever module imports TensorFlow first."""

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
    """Drops what TensorFlow's C++ code logs to stderr, even during its import, and Python logs below an error.

    If the user has set TF_CPP_MIN_LOG_LEVEL, nothing is changed or dropped.
    """
    if "TF_CPP_MIN_LOG_LEVEL" in os.environ:
        return
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    for name in ("absl", "tensorflow"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # TensorFlow 2.21 reads the variable only after its import, which always prints six lines.
    sys.meta_path.insert(0, _MutedImport())


class _MutedImport(importlib.abc.MetaPathFinder):
    """Runs the first `import tensorflow` with stderr captured; if the import fails, its output is printed after all."""

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
            loader.exec_module = lambda module: _capture_stderr(execute, module)
        return spec


def _capture_stderr(execute: Callable[[ModuleType], None], module: ModuleType) -> None:
    with tempfile.TemporaryFile() as captured:
        stderr = os.dup(2)
        os.dup2(captured.fileno(), 2)
        try:
            execute(module)
        except Exception:
            captured.seek(0)
            os.write(stderr, captured.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
