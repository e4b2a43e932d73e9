"""Small networks in numpy, with gradients by hand: a search calls them thousands of times on a few numbers.

One update of the NASNet controller on the six decisions of NAS-Bench-201 takes 3 ms here; a TensorFlow graph needs as
long for its launch alone, and seconds to be traced anew in each of a hundred searches.
"""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


class Parameters:
    """Named arrays that lie in one vector, so that an optimizer and a file see a single array."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], vector: np.ndarray | None = None):
        sizes = {name: int(np.prod(shape)) for name, shape in shapes.items()}
        self.vector = np.zeros(sum(sizes.values()), np.float32) if vector is None else vector
        self._shapes, self._views, start = dict(shapes), {}, 0
        for name, shape in shapes.items():
            self._views[name] = self.vector[start : start + sizes[name]].reshape(shape)
            start += sizes[name]

    def __getitem__(self, name: str) -> np.ndarray:
        return self._views[name]

    def like(self) -> "Parameters":
        """Returns zeros of the same names and shapes, for gradients."""
        return Parameters(self._shapes)


class Adam:
    """The optimizer of Kingma and Ba, 2015, on one vector."""

    def __init__(self, size: int, learning_rate: float, epsilon: float = 1e-8):
        self.learning_rate, self.epsilon = learning_rate, epsilon
        self.mean, self.square, self.steps = np.zeros(size, np.float32), np.zeros(size, np.float32), 0

    def step(self, vector: np.ndarray, gradient: np.ndarray) -> None:
        """Moves `vector` in place."""
        self.steps += 1
        self.mean += 0.1 * (gradient - self.mean)
        self.square += 0.001 * (gradient * gradient - self.square)
        rate = self.learning_rate * np.sqrt(1 - 0.999**self.steps) / (1 - 0.9**self.steps)
        vector -= np.float32(rate) * self.mean / (np.sqrt(self.square) + self.epsilon)


class Lstm:
    """One LSTM layer over a sequence of vectors; gates in the order input, forget, output, candidate."""

    def __init__(self, parameters: Parameters, hidden: int):
        self.parameters, self.hidden = parameters, hidden

    @staticmethod
    def shapes(inputs: int, hidden: int) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of its parameters."""
        return {"lstm_input": (inputs, 4 * hidden), "lstm_state": (hidden, 4 * hidden), "lstm_bias": (4 * hidden,)}

    def start(self, batch: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the output and the memory before the first step."""
        return np.zeros((batch, self.hidden), np.float32), np.zeros((batch, self.hidden), np.float32)

    def step(
        self, x: np.ndarray, output: np.ndarray, memory: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, ...]]:
        """Returns output, memory and what `back` needs; `x` is (batch, inputs)."""
        weights, hidden = self.parameters, self.hidden
        gates = x @ weights["lstm_input"] + output @ weights["lstm_state"] + weights["lstm_bias"]
        gates[:, : 3 * hidden] = sigmoid(gates[:, : 3 * hidden])
        gates[:, 3 * hidden :] = np.tanh(gates[:, 3 * hidden :])
        opened, kept, shown, new = (gates[:, i * hidden : (i + 1) * hidden] for i in range(4))
        memory_after = kept * memory + opened * new
        squashed = np.tanh(memory_after)
        return shown * squashed, memory_after, (x, output, memory, gates, squashed)

    def back(
        self, cache: tuple[np.ndarray, ...], output: np.ndarray, memory: np.ndarray, gradients: Parameters
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Adds to `gradients` and returns those of x, of the output and of the memory before the step.

        `output` and `memory` are the gradients of what the step returned.
        """
        x, output_before, memory_before, gates, squashed = cache
        hidden, weights = self.hidden, self.parameters
        opened, kept, shown, new = (gates[:, i * hidden : (i + 1) * hidden] for i in range(4))
        memory = memory + output * shown * (1 - squashed * squashed)
        raw = np.empty_like(gates)
        raw[:, :hidden] = memory * new * opened * (1 - opened)
        raw[:, hidden : 2 * hidden] = memory * memory_before * kept * (1 - kept)
        raw[:, 2 * hidden : 3 * hidden] = output * squashed * shown * (1 - shown)
        raw[:, 3 * hidden :] = memory * opened * (1 - new * new)
        gradients["lstm_input"][...] += x.T @ raw
        gradients["lstm_state"][...] += output_before.T @ raw
        gradients["lstm_bias"][...] += raw.sum(axis=0)
        return raw @ weights["lstm_input"].T, raw @ weights["lstm_state"].T, memory * kept


def sigmoid(x: np.ndarray) -> np.ndarray:
    """Returns 1 / (1 + exp(-x)) without overflow."""
    return 0.5 * (np.tanh(0.5 * x) + 1)


def softmax(x: np.ndarray) -> np.ndarray:
    """Returns probabilities along the last axis."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def packed(arrays: Sequence[np.ndarray]) -> list[dict[str, Any]]:
    """Returns arrays as JSON can hold them, to the last bit."""
    return [
        {"type": str(array.dtype), "shape": list(array.shape), "bytes": base64.b64encode(array.tobytes()).decode()}
        for array in arrays
    ]


def unpacked(entries: Sequence[Mapping[str, Any]]) -> list[np.ndarray]:
    """Returns what `packed` was given."""
    return [
        np.frombuffer(base64.b64decode(entry["bytes"]), entry["type"]).reshape(entry["shape"]).copy()
        for entry in entries
    ]
