"""The folders in which trials keep their checkpoints."""

import dataclasses
import shutil
from collections.abc import Iterable
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """A folder with one for each trial, by its number."""

    folder: Path

    def of(self, number: int) -> Path:
        """Returns the folder of a trial, which need not exist."""
        return self.folder / f"trial_{number:05d}"

    def mark(self, number: int) -> int:
        """Returns a number that changes when the trial has written a checkpoint."""
        folder = self.of(number)
        return max((path.stat().st_mtime_ns for path in folder.rglob("*")), default=0) if folder.exists() else 0

    def keep(self, numbers: Iterable[int]) -> None:
        """Removes the checkpoints of all other trials."""
        wanted = {self.of(number).name for number in numbers}
        for path in self.folder.iterdir() if self.folder.exists() else ():
            if path.name not in wanted:
                shutil.rmtree(path, ignore_errors=True)
