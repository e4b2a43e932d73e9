"""What a search remembers of its trials, and the trials that no other beats."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Record:
    """One trial that has ended; `score` is None and `message` the reason where it is INVALID."""

    number: int
    values: Mapping[str, Any]
    status: str
    score: float | None
    metrics: Mapping[str, float]
    seconds: float
    message: str = ""


def pareto_front(history: Sequence[Record], objectives: Mapping[str, str]) -> list[Record]:
    """Returns the trials that no other beats in every objective, in the order of the first one, the best first.

    Args:
        history: `Tuner.history`.
        objectives: name of a metric -> "max" or "min"; one or more.
    """
    for name, direction in objectives.items():
        if direction not in ("max", "min"):
            raise ValueError(f"the direction of {name!r} is {direction!r}; expected 'max' or 'min'")
    signs = [1.0 if direction == "max" else -1.0 for direction in objectives.values()]
    points = []
    for record in history:
        if record.score is not None:
            missing = [name for name in objectives if record.metrics.get(name) is None]
            if missing:
                raise ValueError(f"trial {record.number} has no {missing[0]!r}; it has {sorted(record.metrics)}")
            points.append((tuple(s * record.metrics[name] for s, name in zip(signs, objectives, strict=True)), record))
    front = [
        (point, record)
        for point, record in points
        if not any(other != point and all(a >= b for a, b in zip(other, point, strict=True)) for other, _ in points)
    ]
    return [record for _, record in sorted(front, key=lambda entry: entry[0], reverse=True)]
