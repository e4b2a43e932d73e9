"""Reads what a search has left in its folder, finished or not, without disturbing one that is still running."""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recipes.engine.spaces import Decision

JOURNAL = "journal.jsonl"
ABOUT = "about.json"  # written at the start of a search by recipes.cards.about


@dataclasses.dataclass(frozen=True)
class Trial:
    """A trial that has ended; `score` is None and `message` the reason where it failed.

    `genome` holds, for each decision of the space, the place of the choice.
    """

    number: int
    genome: tuple[int, ...]
    score: float | None
    metrics: Mapping[str, float]
    seconds: float
    message: str = ""

    def values(self, decisions: Sequence[Decision]) -> dict[str, Any]:
        """Returns decision -> choice."""
        pairs = zip(decisions, self.genome, strict=True)
        return {decision.name: decision.choices[place] for decision, place in pairs}


@dataclasses.dataclass(frozen=True)
class Search:
    """One search as its folder tells of it.

    Attributes:
        folder: where it is.
        header: the journal's first line: settings, objective, seed and the number of choices of each decision.
        trials: those that have ended, in their order.
        refused: architectures that a limit refused before any training.
        about: see recipes.cards.about; empty where the folder has none.
    """

    folder: Path
    header: Mapping[str, Any]
    trials: tuple[Trial, ...]
    refused: int
    about: Mapping[str, Any]

    @property
    def recipe(self) -> str:
        """Its name, without "recipes."."""
        return self.header.get("recipe", "search")

    @property
    def algorithm(self) -> str:
        """As the recipe's option has it, or the oracle's name."""
        return self.header.get("algorithm", self.header["oracle"])

    @property
    def seed(self) -> int:
        """Of the search."""
        return self.header["seed"]

    @property
    def objective(self) -> str:
        """The name of the score."""
        return self.header["objective"][0]

    @property
    def sign(self) -> int:
        """1 where more is better, -1 where less is."""
        return 1 if self.header["objective"][1] == "max" else -1

    @property
    def planned(self) -> int | None:
        """How many trials it is to have; None where nobody knows."""
        return self.about.get("trials")

    @property
    def finished(self) -> bool:
        """Whether it has come to its end: genotype.json is written then, and is not there before."""
        whole = self.planned is None or len(self.trials) >= self.planned
        return self.genotype.exists() and (whole or "exhausted" in self.stopped)

    @property
    def genotype(self) -> Path:
        """The file of the best architecture, which an unfinished search lacks."""
        return self.folder / "genotype.json"

    @functools.cached_property
    def stopped(self) -> str:
        """Why it ended, as its genotype has it; empty for an unfinished one."""
        return _json(self.genotype).get("source", {}).get("stopped", "")

    @functools.cached_property
    def result(self) -> dict[str, Any]:
        """What the recipe measured of the architecture that it found, where it does so."""
        return _json(self.folder / "result.json")

    @property
    def scores(self) -> list[float]:
        """Of the trials that did not fail."""
        return [trial.score for trial in self.trials if trial.score is not None]

    @property
    def best(self) -> Trial | None:
        """The first of the best trials; None where none has succeeded."""
        scored = [trial for trial in self.trials if trial.score is not None]
        return max(scored, key=lambda trial: self.sign * (trial.score or 0.0), default=None)

    @property
    def seconds(self) -> float:
        """What all trials took."""
        return sum(trial.seconds for trial in self.trials)


def read(folder: Path) -> Search:
    """Returns the search in a folder.

    Raises:
        ValueError: there is none, or its journal is damaged; the text says what to do.
        OSError: it cannot be read.
    """
    path = folder / JOURNAL
    if not path.is_file():
        raise ValueError(f"{folder} holds no search: there is no {JOURNAL}. Give the folder that a search wrote into")
    header, records = _journal(path)
    name = header["objective"][0]
    genomes = {record["start"]: tuple(record["genome"]) for record in records if "start" in record}
    trials = []
    for record in records:
        if "end" in record:
            score = record["metrics"].get(name) if record["status"] == "COMPLETED" else None
            number, message = record["end"], record.get("message", "")
            trials.append(Trial(number, genomes[number], score, record["metrics"], record["seconds"], message))
    refused = sum("refused" in record for record in records)
    return Search(folder, header, tuple(trials), refused, _json(folder / ABOUT))


def _journal(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Returns the header and the records; a last line that is being written is left out."""
    data = path.read_bytes()
    lines = data[: data.rfind(b"\n") + 1].splitlines()
    if not lines:
        raise ValueError(f"{path} is empty: the search in {path.parent} has not begun")
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(json.loads(line))
        except ValueError:
            raise ValueError(f"{path}, line {number} is damaged; remove the lines from {number} on") from None
    header = found[0]
    if not isinstance(header, dict) or not {"journal", "objective", "seed", "oracle"} <= header.keys():
        raise ValueError(f"{path} is no journal of a search; give the folder that a search wrote into")
    return header, found[1:]


def _json(path: Path) -> dict[str, Any]:
    """Returns the object in a file, or an empty one where there is no file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}. Delete it, or bring back what was there") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no object; delete it, or bring back what was there")
    return found
