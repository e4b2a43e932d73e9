"""An append-only file of JSON lines that survives kill -9: appended records stay, a torn last line is dropped."""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recipes.training.state import lock

_VERSION = 1
_LONGEST_UNSYNCED = 1.0  # s; losing a second of tabular trials is cheaper than waiting for the disk in each


class Journal:
    """Opens or makes the journal at `path` and locks it for this process.

    Each record reaches the operating system before `append` returns, so a killed process loses none. The journal waits
    for the disk at most once a second, so a power cut may lose the last second.

    Args:
        path: the file; parent folders are created.
        header: what must be equal for the file to be continued; stored in its first line.

    Raises:
        ValueError: the file has other settings or is damaged; the text gives the remedy.
        OSError: another process has it open, or it cannot be written.
    """

    def __init__(self, path: str | os.PathLike, header: Mapping[str, Any]):
        self.path = Path(path)
        self._synced = time.monotonic()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.length = 0  # records in the file
        # No buffer: after an error, a buffer would keep the rest of a line and write it later.
        self._stream = open(self.path, "a+b", buffering=0)  # noqa: SIM115 - stays open during the search
        try:
            lock(self._stream, self.path)
            self.records = self._read(json.loads(json.dumps(dict(header))))
        except BaseException:
            self._stream.close()
            raise

    def append(self, record: Mapping[str, Any]) -> None:
        """Adds one record, whole or, if the disk is full, not at all."""
        data = json.dumps(record, separators=(",", ":")).encode() + b"\n"
        try:
            end = self._stream.seek(0, os.SEEK_END)
            try:
                while data:
                    data = data[self._stream.write(data) :]
            except OSError:
                self._stream.truncate(end)
                raise
            self.length += 1
            if time.monotonic() - self._synced > _LONGEST_UNSYNCED:
                self.sync()
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def sync(self) -> None:
        """Waits until everything is on the disk."""
        os.fsync(self._stream.fileno())
        self._synced = time.monotonic()

    def close(self) -> None:
        """Waits for the disk and unlocks the file."""
        if not self._stream.closed:
            self.sync()
            self._stream.close()

    def _read(self, header: dict[str, Any]) -> list[dict[str, Any]]:
        self._stream.seek(0)
        data = self._stream.read()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):  # the process died in the middle of a line
            self._stream.truncate(whole)
        if not whole:
            self.append({"journal": _VERSION, **header})
            self.length = 0
            return []
        found, records = _parse_lines(self.path, data[:whole])
        self.length = len(records)
        if found.get("recipe") != header.get("recipe"):
            raise ValueError(
                f"{self.path} holds a search by {found.get('recipe')}, and this is {header.get('recipe')}; choose "
                "another folder"
            )
        differences = [
            f"{name} {found.get(name)!r} then, {header.get(name)!r} now"
            for name in sorted(found.keys() - {"journal"} | header.keys())
            if found.get(name) != header.get(name)
        ]
        if differences:
            raise ValueError(
                f"{self.path} holds a search with other settings: {'; '.join(differences)}. "
                "To resume, use the original settings. Otherwise choose another folder, or delete this one"
            )
        return records


def cannot_write(path: Path, error: OSError) -> OSError:
    """Returns the error for a file that cannot be written, with the remedy."""
    return type(error)(error.errno, f"cannot write {path}: {error.strerror}. Free some space; the same command resumes")


def read_journal(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Returns the header and records of a journal, which may be in use; a line that is being written is left out.

    Raises:
        ValueError: the journal is empty, damaged or of another version; the text gives the remedy.
    """
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if not whole:
        raise ValueError(f"{path} is empty: the search in {path.parent} has not begun")
    return _parse_lines(path, whole)


def _parse_lines(path: Path, data: bytes) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    records = []
    for number, line in enumerate(data.split(b"\n")[:-1], start=1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise ValueError(
                f"{path}, line {number} is damaged. Remove this line and all after it to resume from there, "
                "or delete the folder to start over"
            )
        records.append(record)
    header = records.pop(0)
    if header.get("journal") != _VERSION:
        raise ValueError(f"{path} is not a journal of this version; choose another folder, or delete this one")
    return header, records
