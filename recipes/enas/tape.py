"""Gradients by a tape, for networks in numpy whose shape depends on what they draw: a controller with attention.

Each operation returns a Value and notes how its gradient flows back; `Tape.back` replays the notes in reverse.
"""

from collections.abc import Callable, Sequence

import numpy as np

from recipes.oracles.networks import Lstm, Parameters


class Value:
    """An array, and the gradient of the loss in it, which whoever reads the array adds to."""

    def __init__(self, data: np.ndarray, gradient: np.ndarray | None = None):
        self.data = data
        self.gradient = np.zeros_like(data) if gradient is None else gradient


class Tape:
    """Operations on values; those of parameters add to `gradients`."""

    def __init__(self, parameters: Parameters, hidden: int):
        self.parameters, self.gradients = parameters, parameters.like()
        self._lstm = Lstm(parameters, hidden)
        self._notes: list[Callable[[], None]] = []

    def back(self) -> Parameters:
        """Returns the gradients of all parameters, for the gradients that the caller has put into values."""
        for note in reversed(self._notes):
            note()
        return self.gradients

    def parameter(self, name: str) -> Value:
        """Returns a parameter."""
        return Value(self.parameters[name], self.gradients[name])

    def rows(self, table: Value, index: np.ndarray) -> Value:
        """Returns rows (batch, ..) of a table."""
        result = Value(table.data[index])
        self._notes.append(lambda: np.add.at(table.gradient, index, result.gradient))
        return result

    def product(self, x: Value, matrix: Value) -> Value:
        """Returns x (.., inputs) @ matrix (inputs, outputs)."""
        result = Value(x.data @ matrix.data)

        def note() -> None:
            x.gradient += result.gradient @ matrix.data.T
            flat = result.gradient.reshape(-1, result.data.shape[-1])
            matrix.gradient += x.data.reshape(-1, x.data.shape[-1]).T @ flat

        self._notes.append(note)
        return result

    def add(self, x: Value, y: Value) -> Value:
        """Returns x + y; y is repeated along those axes that it lacks or where it has length 1."""
        result = Value(x.data + y.data)

        def note() -> None:
            x.gradient += result.gradient
            extra = tuple(range(result.data.ndim - y.data.ndim))
            gradient = result.gradient.sum(axis=extra)
            short = tuple(axis for axis, size in enumerate(y.data.shape) if size == 1 and gradient.shape[axis] > 1)
            y.gradient += gradient.sum(axis=short, keepdims=True) if short else gradient

        self._notes.append(note)
        return result

    def squashed(self, x: Value, divisor: float = 1.0, factor: float = 1.0) -> Value:
        """Returns factor x tanh(x / divisor)."""
        tanh = np.tanh(x.data / divisor)
        result = Value(np.float32(factor) * tanh)

        def note() -> None:
            x.gradient += result.gradient * np.float32(factor / divisor) * (1 - tanh * tanh)

        self._notes.append(note)
        return result

    def stacked(self, values: Sequence[Value]) -> Value:
        """Returns values (batch, size) as one (batch, count, size)."""
        values = tuple(values)  # the caller's list may grow
        result = Value(np.stack([value.data for value in values], axis=1))

        def note() -> None:
            for place, value in enumerate(values):
                value.gradient += result.gradient[:, place]

        self._notes.append(note)
        return result

    def mixed(self, weights: np.ndarray, stack: Value) -> Value:
        """Returns the sum over a stack (batch, count, size), weighted by constants (batch, count)."""
        result = Value(np.einsum("bn,bns->bs", weights, stack.data))

        def note() -> None:
            stack.gradient += weights[:, :, None] * result.gradient[:, None, :]

        self._notes.append(note)
        return result

    def lstm(self, x: Value, output: Value, memory: Value) -> tuple[Value, Value]:
        """Returns output and memory of one more step."""
        shown, kept, cache = self._lstm.step(x.data, output.data, memory.data)
        after = Value(shown), Value(kept)

        def note() -> None:
            gradients = self._lstm.back(cache, after[0].gradient, after[1].gradient, self.gradients)
            for value, gradient in zip((x, output, memory), gradients, strict=True):
                value.gradient += gradient

        self._notes.append(note)
        return after
