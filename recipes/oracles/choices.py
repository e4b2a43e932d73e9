"""The choices of a keras_tuner.HyperParameters as numbers: a genome holds the index of each choice."""

from collections.abc import Mapping
from typing import Any

import keras_tuner
import numpy as np
from keras_tuner.engine import hyperparameters as hp_module

Genome = tuple[int, ...]
_MOST_CHOICES = 10_000  # of one number; more counts as a range


class Choices:
    """The decisions of a search space, in order, as they are at the time of the call."""

    def __init__(self, hyperparameters: keras_tuner.HyperParameters):
        self._entries = list(hyperparameters.space)
        self.options = [_list_options(entry) for entry in self._entries]  # the values of each decision
        self._conditional = any(entry.conditions for entry in self._entries)
        self.names = [entry.name for entry in self._entries]
        self.counts = np.array([len(options) for options in self.options], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._entries)

    def values(self, genome: Genome) -> dict[str, Any]:
        """Returns name -> value of the active choices; a genome of a smaller space is filled up with defaults."""
        genome = self.pad(genome)
        if not self._conditional:
            return {name: options[index] for name, options, index in zip(self.names, self.options, genome, strict=True)}
        values = {}
        for entry, options, index in zip(self._entries, self.options, genome, strict=True):
            if all(condition.is_active(values) for condition in entry.conditions):
                values[entry.name] = options[index]
        return values

    def genome(self, values: Mapping[str, Any]) -> Genome:
        """Returns the indices of `values`; choices that are not active have the index of their default."""
        return tuple(
            options.index(values[entry.name])
            if entry.name in values and values[entry.name] in options
            else _find_default(entry, options)
            for entry, options in zip(self._entries, self.options, strict=True)
        )

    def list_neighbours(self, genome: Genome) -> list[Genome]:
        """Returns all genomes that differ from this one in one choice, in the order of the choices."""
        genome = self.pad(genome)
        return [
            (*genome[:place], index, *genome[place + 1 :])
            for place, count in enumerate(self.counts.tolist())
            for index in range(count)
            if index != genome[place]
        ]

    def pad(self, genome: Genome) -> Genome:
        """Fills up a genome of an earlier, smaller space with the defaults of the missing choices."""
        if len(genome) == len(self._entries):
            return genome
        missing = zip(self._entries[len(genome) :], self.options[len(genome) :], strict=True)
        return (*genome, *(_find_default(entry, options) for entry, options in missing))


def _find_default(entry: Any, options: list[Any]) -> int:
    return options.index(entry.default) if entry.default in options else 0


def _list_options(entry: Any) -> list[Any]:
    if isinstance(entry, hp_module.Fixed):
        return [entry.value]
    if isinstance(entry, hp_module.Boolean):
        return [False, True]
    if isinstance(entry, hp_module.Choice):
        return list(entry.values)
    if isinstance(entry, (hp_module.Int, hp_module.Float)) and entry.step is not None and entry.sampling == "linear":
        count = round((entry.max_value - entry.min_value) / entry.step) + 1
        if count <= _MOST_CHOICES:
            values = [entry.min_value + i * entry.step for i in range(count)]
            return [value for value in values if value <= entry.max_value + 1e-9]
    raise ValueError(
        f"hyperparameter {entry.name!r} is {entry!r}; these oracles need choices: "
        "a Choice, a Boolean, a Fixed, or an Int or Float with a step and linear sampling"
    )


class SharedSpace(keras_tuner.HyperParameters):
    """HyperParameters whose copies share the list of choices until one of them gets a new choice."""

    @classmethod
    def copy_of(cls, hyperparameters: keras_tuner.HyperParameters) -> "SharedSpace":
        """Returns a copy of any HyperParameters."""
        shared = cls()
        original = hyperparameters.copy()
        shared._hps, shared._space, shared.values = original._hps, original._space, original.values
        return shared

    def copy(self) -> "SharedSpace":
        """Returns a copy without copying the choices, only their values."""
        twin = type(self)()
        twin._hps, twin._space, twin.values = self._hps, self._space, dict(self.values)
        return twin

    def _register(self, hyperparameter: Any, overwrite: bool = False) -> Any:
        own = keras_tuner.HyperParameters.from_config({"space": [], "values": {}})._hps
        own.update({name: list(entries) for name, entries in self._hps.items()})
        self._hps, self._space = own, list(self._space)
        return super()._register(hyperparameter, overwrite)
