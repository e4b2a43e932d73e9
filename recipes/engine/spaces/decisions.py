"""Named decisions, of which a search space consists."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from zoo.canonical import canonical_hash
from zoo.genotype import near


@dataclasses.dataclass(frozen=True)
class Decision:
    """One choice; `kind` groups the decisions that one kind of mutation changes."""

    name: str
    choices: tuple[Any, ...]
    kind: str


class Space:
    """What all spaces have in common; an heir says what its decisions are and what architecture their values make."""

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """In the order in which a controller takes them."""
        raise NotImplementedError

    def body(self, values: Mapping[str, Any]) -> Any:
        """Returns the architecture that `values` (decision -> choice) stand for."""
        raise NotImplementedError

    @property
    def kinds(self) -> dict[str, list[str]]:
        """Kind of mutation -> names of its decisions."""
        return kinds_of(self.decisions)

    @property
    def size(self) -> int:
        """How many ways there are to choose; equal architectures are counted once for each way to write them."""
        return math.prod(len(decision.choices) for decision in self.decisions)

    def hyperparameters(self) -> Any:
        """Returns the decisions as keras_tuner.HyperParameters."""
        return hyperparameters_of(self.decisions)

    def key(self, values: Mapping[str, Any]) -> str:
        """Returns a hash that equal architectures share."""
        return canonical_hash(self.body(values))


def kinds_of(decisions: Sequence[Decision]) -> dict[str, list[str]]:
    """Returns kind -> names, in the order of the decisions."""
    kinds: dict[str, list[str]] = {}
    for decision in decisions:
        kinds.setdefault(decision.kind, []).append(decision.name)
    return kinds


def hyperparameters_of(decisions: Sequence[Decision]) -> Any:
    """Returns one keras_tuner Choice for each decision."""
    import keras_tuner  # it brings TensorFlow, which a look at a space does not need

    hyperparameters = keras_tuner.HyperParameters()
    for decision in decisions:
        hyperparameters.Choice(decision.name, list(decision.choices), ordered=False)
    return hyperparameters


def check_values(values: Mapping[str, Any], decisions: Sequence[Decision]) -> dict[str, Any]:
    """Returns `values` in the order of the decisions.

    Raises:
        ValueError: a name or a value that the decisions do not have.
    """
    names = [decision.name for decision in decisions]
    for name in values:
        if name not in names:
            raise ValueError(f"there is no decision {name!r}{near(name, names)}; expected {', '.join(names[:6])} ..")
    for decision in decisions:
        if decision.name not in values:
            raise ValueError(f"no value for the decision {decision.name!r}; expected one of {list(decision.choices)}")
        if values[decision.name] not in decision.choices:
            raise ValueError(f"{decision.name} is {values[decision.name]!r}; expected one of {list(decision.choices)}")
    return {decision.name: values[decision.name] for decision in decisions}
