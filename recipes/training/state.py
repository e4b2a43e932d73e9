"""The one file from which a killed training goes on: every variable after a whole epoch, and the history.

It is replaced at once, so there is always one that fits together. Arrays and JSON only, no pickle.
"""

import csv
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zoo import atomic

_MISSING = np.zeros((0, 0), np.void)  # of a shape that no variable has


class TrainingState:
    """Reads and writes the file; `settings` (JSON values) tells this training from another."""

    def __init__(self, path: Path, settings: Mapping[str, Any]):
        self._path = path
        self._settings = json.loads(json.dumps(settings))

    def save(self, facts: Mapping[str, Any], groups: Mapping[str, Sequence[Any]]) -> None:
        """Writes facts (JSON values) and groups of variables."""
        arrays = {
            f"{name}{index}": value.numpy() for name, group in groups.items() for index, value in enumerate(group)
        }
        header = json.dumps({"settings": self._settings, "facts": facts})
        with atomic.replacing(self._path) as stream:
            np.savez(stream, header=np.frombuffer(header.encode(), np.uint8), **arrays)

    def restore(self, groups: Mapping[str, Sequence[Any]]) -> dict[str, Any] | None:
        """Assigns what the file has to the variables and returns the facts; None where there is no file.

        Raises:
            ValueError: the file is of another training, or damaged; the text says so, and nothing is assigned.
        """
        if not self._path.exists():
            return None
        try:
            # Opened here: numpy leaves a file open that it finds to be no archive.
            with self._path.open("rb") as stream, np.load(stream, allow_pickle=False) as found:
                header = json.loads(found["header"].tobytes())
                arrays = {name: found[name] for name in found.files}
        except (KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise self._damaged(error) from error
        self._compare(header["settings"])
        values = {
            name: [arrays.get(f"{name}{index}", _MISSING) for index in range(len(group))]
            for name, group in groups.items()
        }
        for name, group in groups.items():
            if [array.shape for array in values[name]] != [tuple(variable.shape) for variable in group]:
                raise self._damaged("its arrays have other shapes than the network's")
        for name, group in groups.items():
            for variable, array in zip(group, values[name], strict=True):
                variable.assign(array)
        return header["facts"]

    def _compare(self, found: Mapping[str, Any]) -> None:
        names = [name for name in {**found, **self._settings} if found.get(name) != self._settings.get(name)]
        if names:
            changes = ", ".join(f"{name} {found.get(name)} there and {self._settings.get(name)} here" for name in names)
            raise ValueError(
                f"{self._path} is the state of another training ({changes}); go on with its options, take another "
                "folder, or delete the file to begin anew"
            )

    def _damaged(self, reason: object) -> ValueError:
        return ValueError(f"{self._path} cannot be read ({reason}); delete it to begin anew")


def write_history(folder: Path, history: Sequence[Mapping[str, float]]) -> None:
    """Writes one record an epoch into history.json and history.csv."""
    atomic.write_atomically(folder / "history.json", json.dumps(history, indent=1) + "\n")
    text = io.StringIO()
    table = csv.DictWriter(text, list(history[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(history)
    atomic.write_atomically(folder / "history.csv", text.getvalue())
