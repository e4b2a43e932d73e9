"""The file that a killed training resumes from: its variables, its history, and the settings that identify it.

    state = TrainingState(folder / "state.npz", settings)
    facts = state.restore({"weight": weights, "slot": slots})        # None if there is no file
    state.save({"step": 400, "history": [...]}, {"weight": weights, "slot": slots})

The file is replaced atomically, so it is always complete. It holds arrays and JSON only, no pickle.
"""

import contextlib
import json
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zoo import atomic

try:
    import fcntl
except ImportError:  # not a Unix; two processes in one folder then go unnoticed
    fcntl = None

_MISSING = np.zeros((0, 0), np.void)  # has a shape that no variable has


class StateError(ValueError):
    """The file is the state of another training, or damaged; the message says which, and what to do."""


class TrainingState:
    """Reads and writes the file.

    Args:
        path: of the file.
        settings: JSON values that identify this training; the state of a training with others is refused.
        strict: whether a file of another training, or a damaged one, is an error. Otherwise it is ignored and later
            overwritten, which suits work of minutes, such as a trial.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], *, strict: bool = True):
        self.path, self._strict = path, strict
        self._settings = json.loads(json.dumps(settings))

    def save(self, facts: Mapping[str, Any], groups: Mapping[str, Sequence[Any]]) -> None:
        """Saves facts (JSON values) and groups of variables or arrays."""
        arrays: dict[str, Any] = {
            f"{name}{index}": value if isinstance(value, np.ndarray) else value.numpy()
            for name, group in groups.items()
            for index, value in enumerate(group)
        }
        header = json.dumps({"settings": self._settings, "facts": facts})
        with atomic.replacing(self.path) as stream:
            np.savez(stream, header=np.frombuffer(header.encode(), np.uint8), **arrays)

    def restore(self, groups: Mapping[str, Sequence[Any]]) -> dict[str, Any] | None:
        """Loads the file into the variables (or arrays, in place) and returns the facts; None if there is no file.

        Raises:
            StateError: the file is of another training, or damaged; nothing has been changed.
        """
        if not self.path.exists():
            return None
        try:
            facts, arrays = self._read()
            pairs = [
                (variable, arrays.get(f"{name}{index}", _MISSING))
                for name, group in groups.items()
                for index, variable in enumerate(group)
            ]
            if any(array.shape != tuple(variable.shape) for variable, array in pairs):
                raise self._damaged("its arrays have other shapes than the network's")
        except StateError:
            if self._strict:
                raise
            return None
        for variable, array in pairs:
            if isinstance(variable, np.ndarray):
                variable[...] = array
            else:
                variable.assign(array)
        return facts

    def _read(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Returns the facts, and the arrays by group and index such as weight0."""
        try:
            # Opened here, since numpy does not close a file that is no archive.
            with self.path.open("rb") as stream, np.load(stream, allow_pickle=False) as found:
                header = json.loads(found["header"].tobytes())
                arrays = {name: found[name] for name in found.files if name != "header"}
        except (KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise self._damaged(error) from error
        there, here = header["settings"], self._settings
        changes = [
            f"{name}={there.get(name)} there and {here.get(name)} here"
            for name in {**there, **here}
            if there.get(name) != here.get(name)
        ]
        if changes:
            raise StateError(
                f"{self.path} is the state of another training ({', '.join(changes)}); resume it with its own options, "
                "choose another folder, or delete the file to start over"
            )
        return header["facts"], arrays

    def _damaged(self, reason: object) -> StateError:
        return StateError(f"{self.path} cannot be read ({reason}); delete it to start over")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Locks the folder for this process within the block; creates it if it is missing.

    Raises:
        BlockingIOError: another process holds the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        lock(descriptor, folder)
        yield
    finally:
        os.close(descriptor)


def lock(file: Any, path: Path) -> None:
    """Locks an open file, whose name is `path`, for this process until the file is closed or the process dies.

    Raises:
        BlockingIOError: another process holds the lock.
    """
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        # a new error, whose text does not begin with the error's number
        raise BlockingIOError(f"{path} is in use by another process; end that one, or choose another folder") from None
