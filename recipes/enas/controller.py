"""The controllers of ENAS: an LSTM that draws a path choice by choice, with attention to the places that it may read.

Source: Pham et al., ICML 2018, section 2, and melodyguan/enas (micro_controller.py, general_controller.py), whose
settings are the defaults. Departures: a skip's entropy is that of its whole distribution, and its divergence from the
target is that of the probability it is drawn with (the code takes other expressions for both); the baseline begins at
the mean of the first rewards, where the code has 0.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from recipes.enas.tape import Tape, Value
from recipes.oracles.networks import Adam, Lstm, Parameters, sigmoid, softmax
from zoo.formats.enas import MACRO_OPS, MICRO_OPS
from zoo.genotype import INPUT_STATES

_INITIAL = 0.1  # weights are uniform in -0.1 .. 0.1
_FIRST_BIAS = (10.0, 10.0, 0.0, 0.0, 0.0)  # of micro operations: both convolutions are likelier at first
_CONSTANT_BIAS = (0.25, 0.25, -0.25, -0.25, -0.25)  # in the normal cell, never learned
_LEAST = 1e-6  # of a probability that a logarithm is taken of


@dataclasses.dataclass(frozen=True)
class Policy:
    """How a controller draws and learns.

    Attributes:
        hidden: units of the LSTM.
        temperature: logits are divided by it.
        tanh_constant: logits are this much of their tanh, so that no choice becomes certain.
        op_reduce: by which the constant is smaller for operations (micro).
        learning_rate: Adam's, whose first moment has no memory and whose epsilon is 0.001.
        entropy: weight of the choices' entropy in the reward.
        baseline: what stays of the moving average of rewards at each reward.
        skip_target, skip_weight: the share of skips that is wanted, and the weight of the divergence from it (macro).
    """

    hidden: int = 64
    temperature: float = 1.0
    tanh_constant: float = 1.1
    op_reduce: float = 2.5
    learning_rate: float = 0.0035
    entropy: float = 1e-4
    baseline: float = 0.99
    skip_target: float = 0.4
    skip_weight: float = 0.8


@dataclasses.dataclass
class Draw:
    """Paths that were drawn at once, with what is needed to learn from their rewards.

    Attributes:
        paths: (count, ..), int32.
        entropy: (count,), of all choices of each.
        chances: (count,), the logarithm of each path's probability.
    """

    paths: np.ndarray
    entropy: np.ndarray
    chances: np.ndarray
    tape: Tape
    choices: list[tuple[Value, np.ndarray, np.ndarray]]  # logits, their probabilities, and what was chosen
    skips: list[tuple[Value, np.ndarray, np.ndarray]]  # the same for bits: half logits, probability of a skip, bits


class _Adam(Adam):
    """Adam with beta1 = 0 and epsilon = 0.001, as ENAS has it for its controller."""

    def step(self, vector: np.ndarray, gradient: np.ndarray) -> None:
        """Moves `vector` in place."""
        self.steps += 1
        self.square += 0.001 * (gradient * gradient - self.square)
        rate = np.float32(self.learning_rate * np.sqrt(1 - 0.999**self.steps))
        vector -= rate * gradient / (np.sqrt(self.square) + np.float32(1e-3))


class Controller:
    """What both controllers share; a subclass says in which order it draws."""

    def __init__(self, policy: Policy, ops: int, seed: int):
        hidden, self.policy = policy.hidden, policy
        shapes = {"start": (1, hidden), **Lstm.shapes(hidden, hidden), "embedding": (ops, hidden)}
        shapes |= {"softmax": (hidden, ops), "bias": (ops,)}
        shapes |= {"anchor": (hidden, hidden), "query": (hidden, hidden), "attention": (hidden, 1)}
        self.parameters = Parameters(shapes)
        rng = np.random.default_rng(seed)
        self.parameters.vector[:] = rng.uniform(-_INITIAL, _INITIAL, self.parameters.vector.size)
        self.parameters["lstm_bias"][:] = 0
        self.parameters["bias"][:] = 0
        self.optimizer = _Adam(self.parameters.vector.size, policy.learning_rate)
        self.average: float | None = None  # of the rewards

    def draw(self, count: int, rng: np.random.Generator) -> Draw:
        """Draws paths."""
        return self._unroll(count, rng, None)

    def again(self, paths: np.ndarray) -> Draw:
        """Returns what drawing these paths would have returned."""
        return self._unroll(len(paths), None, paths)

    def _unroll(self, count: int, rng: np.random.Generator | None, given: np.ndarray | None) -> Draw:
        raise NotImplementedError

    def learn(self, draw: Draw, rewards: np.ndarray) -> None:
        """Takes one step of REINFORCE, and for skips one towards their target."""
        rewards = rewards + self.policy.entropy * draw.entropy
        if self.average is None:
            self.average = float(rewards.mean())
        advantages = []
        for reward in rewards:
            advantages.append(reward - self.average)
            self.average += (1 - self.policy.baseline) * (float(reward) - self.average)
        gradients = self.gradients(draw, np.array(advantages, np.float32))
        self.optimizer.step(self.parameters.vector, gradients.vector)

    def gradients(self, draw: Draw, advantages: np.ndarray) -> Parameters:
        """Returns the gradients of the mean over paths of -advantage x log probability + skip_weight x penalty."""
        count = len(advantages)
        for logits, probabilities, chosen in draw.choices:
            gradient = probabilities.copy()
            gradient[np.arange(count), chosen] -= 1
            logits.gradient += (gradient * advantages[:, None] / count).astype(np.float32)
        for half, probability, bits in draw.skips:
            gradient = 2 * (probability - bits) * advantages[:, None]
            inside = np.clip(probability, _LEAST, 1 - _LEAST)
            slope = np.log(inside / (1 - inside)) - np.log(self.policy.skip_target / (1 - self.policy.skip_target))
            weight = self.policy.skip_weight / len(draw.skips)
            gradient = gradient + weight * slope * 2 * probability * (1 - probability)
            half.gradient += (gradient / count).astype(np.float32)
        return draw.tape.back()

    def penalty(self, draw: Draw) -> np.ndarray:
        """Returns for each path the mean over layers of the skips' divergence from their target, (count,)."""
        target, found = self.policy.skip_target, []
        if not draw.skips:
            return np.zeros(len(draw.paths))
        for _, probability, _ in draw.skips:
            p = np.clip(probability, _LEAST, 1 - _LEAST)
            found.append((p * np.log(p / target) + (1 - p) * np.log((1 - p) / (1 - target))).sum(axis=1))
        return np.mean(found, axis=0)

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns the state."""
        average = np.nan if self.average is None else self.average
        numbers = np.array([average, self.optimizer.steps])
        return {"controller": self.parameters.vector, "controller_square": self.optimizer.square, "numbers": numbers}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Takes back what `arrays` returned."""
        self.parameters.vector[:] = arrays["controller"]
        self.optimizer.square[:] = arrays["controller_square"]
        average, steps = arrays["numbers"]
        self.average, self.optimizer.steps = None if np.isnan(average) else float(average), int(steps)


class _Run:
    """One unrolling of the LSTM: its state, and the choices so far."""

    def __init__(self, controller: Controller, count: int, rng: np.random.Generator | None):
        self.policy, self.count, self.rng = controller.policy, count, rng
        self.tape = Tape(controller.parameters, controller.policy.hidden)
        names = ("embedding", "softmax", "bias", "anchor", "query", "attention")
        self.of = {name: self.tape.parameter(name) for name in names}
        self.start = self.tape.rows(self.tape.parameter("start"), np.zeros(count, np.int64))
        self.output, self.memory = self.zeros(), self.zeros()
        self.entropy, self.chances = np.zeros(count), np.zeros(count)
        self.choices: list[tuple[Value, np.ndarray, np.ndarray]] = []
        self.skips: list[tuple[Value, np.ndarray, np.ndarray]] = []

    def zeros(self) -> Value:
        """Returns a vector of zeros for each path."""
        return Value(np.zeros((self.count, self.policy.hidden), np.float32))

    def step(self, x: Value) -> Value:
        """Feeds the LSTM and returns its output."""
        self.output, self.memory = self.tape.lstm(x, self.output, self.memory)
        return self.output

    def attention(self, keys: list[Value]) -> Value:
        """Returns a number for each key, (count, keys, 1)."""
        query = self.tape.product(self.output, self.of["query"])
        both = self.tape.add(self.tape.stacked(keys), self.tape.stacked([query]))
        return self.tape.product(self.tape.squashed(both), self.of["attention"])

    def op_logits(self, factor: float) -> Value:
        """Returns the logits of the operations."""
        raw = self.tape.add(self.tape.product(self.output, self.of["softmax"]), self.of["bias"])
        return self.tape.squashed(raw, self.policy.temperature, factor)

    def choose(self, logits: Value, shift: Any, given: np.ndarray | None) -> np.ndarray:
        """Draws, or takes what is given, of softmax(logits + shift)."""
        probabilities = softmax(logits.data + shift)
        if self.rng is not None:
            below = probabilities.cumsum(axis=1) < self.rng.random((self.count, 1))
            chosen = np.minimum(below.sum(axis=1), probabilities.shape[1] - 1)
        else:
            chosen = np.asarray(given)
        logs = np.log(np.maximum(probabilities, _LEAST))
        self.entropy -= (probabilities * logs).sum(axis=1)
        self.chances += logs[np.arange(self.count), chosen]
        self.choices.append((logits, probabilities, chosen))
        return chosen

    def choose_skips(self, half: Value, given: np.ndarray | None) -> np.ndarray:
        """Draws bits, each set with the softmax of (-half, half)."""
        probability = sigmoid(2 * half.data)
        if self.rng is not None:
            bits = (self.rng.random(probability.shape) < probability).astype(np.int32)
        else:
            bits = np.asarray(given)
        inside = np.clip(probability, _LEAST, 1 - _LEAST)
        logs = np.log(inside), np.log(1 - inside)
        self.entropy -= (inside * logs[0] + (1 - inside) * logs[1]).sum(axis=1)
        self.chances += np.where(bits, *logs).sum(axis=1)
        self.skips.append((half, probability, bits))
        return bits

    def finish(self, paths: np.ndarray) -> Draw:
        """Returns the paths with what was noted."""
        return Draw(paths, self.entropy, self.chances, self.tape, self.choices, self.skips)


class MicroController(Controller):
    """Draws a normal and a reduction cell: for each node two states, then two operations."""

    def __init__(self, nodes: int, policy: Policy, seed: int):
        super().__init__(policy, len(MICRO_OPS), seed)
        self.nodes = nodes
        self.parameters["bias"][:] = _FIRST_BIAS

    def _unroll(self, count: int, rng: np.random.Generator | None, given: np.ndarray | None) -> Draw:
        run, policy = _Run(self, count, rng), self.policy
        paths = np.zeros((count, 2, self.nodes, 2, 2), np.int32)
        for cell, bias in enumerate((np.array(_CONSTANT_BIAS, np.float32), 0)):
            anchors, keys, x = [], [], run.start
            for _ in range(INPUT_STATES):
                anchors.append(run.zeros())
                keys.append(run.tape.product(run.step(x), run.of["anchor"]))
            for node in range(self.nodes):
                table = run.tape.stacked(anchors)
                for side in (0, 1):
                    run.step(x)
                    logits = run.tape.squashed(run.attention(keys), policy.temperature, policy.tanh_constant)
                    logits = _flat(run.tape, logits)
                    state = run.choose(logits, 0, None if given is None else given[:, cell, node, side, 0])
                    paths[:, cell, node, side, 0] = state
                    x = run.tape.mixed(np.eye(len(keys), dtype=np.float32)[state], table)
                for side in (0, 1):
                    run.step(x)
                    logits = run.op_logits(policy.tanh_constant / policy.op_reduce)
                    op = run.choose(logits, bias, None if given is None else given[:, cell, node, side, 1])
                    paths[:, cell, node, side, 1] = op
                    x = run.tape.rows(run.of["embedding"], op)
                anchors.append(run.step(x))
                keys.append(run.tape.product(anchors[-1], run.of["anchor"]))
                x = run.start
        return run.finish(paths)


class MacroController(Controller):
    """Draws layer by layer an operation, then which earlier states join."""

    def __init__(self, layers: int, policy: Policy, seed: int):
        super().__init__(policy, len(MACRO_OPS), seed)
        self.layers = layers

    def _unroll(self, count: int, rng: np.random.Generator | None, given: np.ndarray | None) -> Draw:
        run, policy = _Run(self, count, rng), self.policy
        paths = np.zeros((count, self.layers, 1 + self.layers), np.int32)
        anchors: list[Value] = []
        keys: list[Value] = []
        x = run.start
        for layer in range(self.layers):
            run.step(x)
            logits = run.op_logits(policy.tanh_constant)
            op = run.choose(logits, 0, None if given is None else given[:, layer, 0])
            paths[:, layer, 0] = op
            run.step(run.tape.rows(run.of["embedding"], op))
            x = run.start
            if layer:
                half = run.tape.squashed(run.attention(keys), policy.temperature, policy.tanh_constant)
                bits = run.choose_skips(
                    _flat(run.tape, half), None if given is None else given[:, layer, 1 : 1 + layer]
                )
                paths[:, layer, 1 : 1 + layer] = bits
                weights = (bits / (1 + bits.sum(axis=1, keepdims=True))).astype(np.float32)
                x = run.tape.mixed(weights, run.tape.stacked(anchors))
            anchors.append(run.output)
            keys.append(run.tape.product(run.output, run.of["anchor"]))
        return run.finish(paths)


def _flat(tape: Tape, x: Value) -> Value:
    """Drops the last axis, of length 1: views, so the gradient needs no note."""
    return Value(x.data[..., 0], x.gradient[..., 0])


def random_path(space: Any, rng: np.random.Generator) -> np.ndarray:
    """Draws every choice uniformly; `space` is a supernet or a controller."""
    if hasattr(space, "nodes"):
        path = np.zeros((2, space.nodes, 2, 2), np.int32)
        for node in range(space.nodes):
            path[:, node, :, 0] = rng.integers(INPUT_STATES + node, size=(2, 2))
        path[..., 1] = rng.integers(len(MICRO_OPS), size=path.shape[:-1])
        return path
    path = np.zeros((space.layers, space.layers + 1), np.int32)
    path[:, 0] = rng.integers(len(MACRO_OPS), size=space.layers)
    path[:, 1:] = np.tril(rng.integers(2, size=(space.layers, space.layers)), -1)
    return path
