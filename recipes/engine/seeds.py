"""The space of an outer selection: searches with a seed each, and the architectures that they have left in a folder."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from recipes.engine.spaces import Decision, Space

SEEDS = 1000  # that an outer selection chooses from


@dataclasses.dataclass(frozen=True)
class FoundBodies(Space):
    """One decision, the seed; it stands for what the search with this seed has found.

    Args:
        folder: of the results, a file seedN.json each.
        read: makes the architecture of what such a file holds.
    """

    folder: Path
    read: Callable[[Mapping[str, Any]], Any]

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """One: the seed."""
        return (Decision("seed", tuple(range(SEEDS)), "seed"),)

    def path(self, values: Mapping[str, Any]) -> Path:
        """Returns the file of this seed's result."""
        return self.folder / f"seed{values['seed']}.json"

    def body(self, values: Mapping[str, Any]) -> Any:
        """Returns the architecture that was found with this seed."""
        return self.read(json.loads(self.path(values).read_text(encoding="utf-8")))

    def key(self, values: Mapping[str, Any]) -> str:
        """Returns the seed: what a search finds is not known before."""
        return str(values["seed"])
