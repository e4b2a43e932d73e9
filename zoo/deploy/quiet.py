"""Keeps libraries that print from C++ off the console while they work."""

import contextlib
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator

_LOGGERS = ("absl", "tensorflow")


class Captured:
    """What was printed; `text` is filled when the block ends."""

    text: str = ""


@contextlib.contextmanager
def quiet() -> Iterator[Captured]:
    """Sends the process's standard output and error, C++ included, to a temporary file and drops warnings in the block.

    The file descriptors belong to the whole process: other threads are silent as long.
    """
    captured = Captured()
    _flush()
    with tempfile.TemporaryFile() as sink, contextlib.ExitStack() as undo:
        for descriptor in (1, 2):
            saved = os.dup(descriptor)
            undo.callback(os.close, saved)
            undo.callback(os.dup2, saved, descriptor)
            os.dup2(sink.fileno(), descriptor)
        for logger in map(logging.getLogger, _LOGGERS):
            undo.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.ERROR)
        undo.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        undo.callback(_read_back, sink, captured)
        yield captured


def _read_back(sink, captured: Captured) -> None:
    _flush()
    sink.seek(0)
    captured.text = sink.read().decode("utf-8", "replace")


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):  # none (pythonw), or closed by its owner
            stream.flush()
