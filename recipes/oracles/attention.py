"""An LSTM that draws choice by choice, some by attention to its earlier outputs; recipes.enas.controller has two.

    controller = MicroController(space, **settings, seed=0)
    paths = controller.sample(count, rng)       # int32 (count, ..); all randomness comes from rng
    found = controller.update(paths, rewards)   # one step; returns each path's entropy and skip_penalty before the step

Source: Pham et al., ICML 2018, section 2, and melodyguan/enas (micro_controller.py, general_controller.py). Departures:
a skip's entropy is that of its whole distribution, and its divergence from the target uses the probability with which
it is drawn (the code has other expressions for both); the baseline starts at the mean of the first rewards, not at 0.
"""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from recipes.oracles.networks import SharedNetwork, lstm_weights, take_lstm_step

_INITIAL = 0.1  # weights are uniform in -0.1 .. 0.1
_MASKED = -1e9  # logit of a choice that is not allowed
_LEAST = 1e-6  # least probability in a divergence


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of the LSTM.

    Attributes:
        chooses: an operation, one of the places written before ("state"), any number of them ("skips"), or nothing.
        visible: number of places, from 0, that may be chosen.
        writes: the place where its output is stored for later attention.
        blank: attention sees the stored output, but reading the place gives zeros.
        then: what the next step reads: the start vector, the embedding of the operation, or the chosen places' outputs.
        bias: added to the operations' logits; not trained.
    """

    chooses: Literal["op", "state", "skips"] | None = None
    visible: int = 0
    writes: int | None = None
    blank: bool = False
    then: Literal["start", "op", "places"] = "start"
    bias: Sequence[float] | float = 0.0


class AttentionController(SharedNetwork):
    """Draws paths step by step and learns from their rewards; a subclass maps choices to paths and back.

    Args:
        steps: the steps that draw one path.
        ops: number of operations to choose from.
        hidden: units of the LSTM.
        temperature: divides the logits.
        tanh_constant: logits are this times their tanh, so that no choice becomes certain.
        op_reduce: divides the constant for operations (micro).
        learning_rate: Adam's, whose first moment has no memory and whose epsilon is 0.001.
        entropy: weight of the choices' entropy in the reward.
        baseline: decay of the moving average of rewards.
        skip_target, skip_weight: the target share of skips, and the weight of the divergence from it (macro).
        seed: for the initial weights.
    """

    reduces_ops = True  # see op_reduce

    def __init__(
        self,
        steps: Sequence[Step],
        ops: int,
        *,
        hidden: int,
        temperature: float,
        tanh_constant: float,
        op_reduce: float,
        learning_rate: float,
        entropy: float,
        baseline: float,
        skip_target: float,
        skip_weight: float,
        seed: int,
    ):
        self._hidden, self._ops, self._temperature, self._tanh_constant = hidden, ops, temperature, tanh_constant
        self._op_constant = tanh_constant / op_reduce if self.reduces_ops else tanh_constant
        self._entropy, self._baseline = entropy, baseline
        self._skip_target, self._skip_weight = skip_target, skip_weight
        self._make_tables(steps)
        with tf.device("CPU:0"):
            dense = {"use_bias": False, "dtype": "float32"}
            self.embedding = keras.layers.Embedding(1 + ops, hidden, dtype="float32")  # row 0 is the start vector
            self.cell = keras.layers.LSTMCell(hidden, dtype="float32")
            self.op_head = keras.layers.Dense(ops, dtype="float32")
            self.key, self.query = keras.layers.Dense(hidden, **dense), keras.layers.Dense(hidden, **dense)
            self.attention = keras.layers.Dense(1, **dense)
            layers = (self.embedding, self.cell, self.op_head, self.key, self.query, self.attention)
            for layer in layers:
                layer.build(() if layer is self.embedding else (None, hidden))
        weights = [weight for layer in layers for weight in layer.trainable_variables]
        super().__init__(weights, keras.optimizers.Adam(learning_rate, beta_1=0.0, beta_2=0.999, epsilon=1e-3))
        rng = np.random.default_rng(seed)
        self.state = self.new_state(lambda weight: self.draw_weight(weight, rng))
        self._average = np.array(np.nan)  # of the rewards
        choices = tf.TensorSpec([len(steps), None, self._width])
        self._sample = self.on_state(self._draw_choices, choices)
        self._update = self.on_state(self._take_step, choices, tf.TensorSpec([None]), tf.TensorSpec([]))

    @property
    def average(self) -> float | None:
        """The moving average of the rewards, or None before the first."""
        return None if np.isnan(self._average) else float(self._average)

    @property
    def arrays(self) -> list[np.ndarray]:
        """The whole state; `update` changes the arrays in place."""
        return [*self.state, self._average]

    def _make_tables(self, steps: Sequence[Step]) -> None:
        """Turns the steps into tables, so that one loop in the graph runs all steps."""
        self._steps = steps
        self._places = max([1, *(step.visible for step in steps)])
        self._width = max(self._ops, self._places)

        def rows(value: Any) -> np.ndarray:
            return np.array([value(step) for step in steps], np.float32)

        visible = np.arange(self._width) < rows(lambda step: step.visible)[:, None]
        writes = rows(lambda step: np.arange(self._places) == step.writes)
        last = np.array([[-1] * self._places, *writes * np.arange(1, 1 + len(steps))[:, None] - 1])
        self._written = np.maximum(np.maximum.accumulate(last, axis=0)[:-1], 0).astype(np.int32)  # the step of a place
        is_op, skips = rows(lambda step: step.chooses == "op"), rows(lambda step: step.chooses == "skips")
        choosable = np.where(is_op[:, None] > 0, np.arange(self._width) < self._ops, visible)
        self._skipping = int(skips.sum())  # number of layers with skips
        tables = {
            "is_op": is_op,
            "one_of": is_op + rows(lambda step: step.chooses == "state"),
            "last": choosable.sum(axis=1) - 1,
            "masks": np.where(choosable, 0, _MASKED),
            "bias": rows(lambda step: np.broadcast_to(step.bias, self._ops)),
            "open": skips[:, None] * visible,
            "writes": writes,
            "shows": writes * rows(lambda step: not step.blank)[:, None],
            **{kind: rows(lambda step, kind=kind: step.then == kind) for kind in ("start", "op", "places")},
        }
        parts = [table.reshape(len(steps), -1).astype(np.float32) for table in tables.values()]
        self._table, self._columns = np.concatenate(parts, axis=1), [part.shape[1] for part in parts]
        self._row = collections.namedtuple("_Row", tables)

    def draw_weight(self, weight: keras.Variable, rng: np.random.Generator) -> np.ndarray:
        """Draws the initial values of a weight; biases are 0."""
        if weight is self.cell.bias or weight is self.op_head.bias:
            return np.zeros(weight.shape)
        return rng.uniform(-_INITIAL, _INITIAL, weight.shape)

    def sample(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Draws `count` paths at once: (count, ..)."""
        choices, _ = self._sample(self.state, rng.random((len(self._steps), count, self._width), np.float32))
        return self._paths(choices.numpy())

    def update(self, paths: np.ndarray, rewards: Sequence[float]) -> dict[str, np.ndarray]:
        """Takes one step of REINFORCE, which for skips includes the divergence from their target.

        Returns:
            Values of each path before the step: its "log_prob", the "entropy" of all its choices, and "skip_penalty",
            the mean over layers of the skips' divergence from their target.
        """
        given = self._choices(np.asarray(paths)), np.asarray(rewards, np.float32), np.float32(self._average)
        (average, log_prob, entropy, penalty), state = self._update(self.state, *given)
        for array, value in zip(self.arrays, [*state, average], strict=True):
            array[...] = value
        return {"log_prob": log_prob.numpy(), "entropy": entropy.numpy(), "skip_penalty": penalty.numpy()}

    def _paths(self, choices: np.ndarray) -> np.ndarray:
        """Returns the paths (count, ..) of choices (steps, count, width), one-hot or, for skips, multi-hot."""
        raise NotImplementedError

    def _choices(self, paths: np.ndarray) -> np.ndarray:
        """Returns the choices of paths: the inverse of `_paths`."""
        raise NotImplementedError

    def _draw_choices(self, uniform: Any) -> Any:
        """Draws choices (steps, count, width) from uniform numbers of the same shape."""
        with self.with_weights():
            count, rows = tf.shape(uniform)[1], tf.constant(self._table)
            x, states = self.embedding(tf.zeros([count], tf.int32)), [tf.zeros([count, self._hidden])] * 2
            places = keys = tf.zeros([count, self._places, self._hidden])
            choices = tf.TensorArray(tf.float32, len(self._steps), element_shape=[None, self._width])
            for step in tf.range(len(self._steps)):
                row = self._row(*tf.split(rows[step], self._columns))
                output, states = self.cell(x, states)
                chosen = self._draw(row, output, keys, uniform[step])
                choices = choices.write(step, chosen)
                known, read = self._read(row, chosen)
                x = known + tf.linalg.matvec(places, read, transpose_a=True)
                stays, writes, shows = (part[:, None] for part in (1 - row.writes, row.writes, row.shows))
                places, keys = (
                    places * stays + shows * output[:, None],
                    keys * stays + writes * self.key(output)[:, None],
                )
            return choices.stack()

    def _take_step(self, choices: Any, rewards: Any, average: Any) -> Any:
        _, *found = self.descend(self.loss, choices, rewards, average)
        return found

    def loss(self, choices: Any, rewards: Any, average: Any) -> Any:
        """Returns the mean over paths of -advantage x log probability + skip_weight x penalty.

        Then follow the moving average of the rewards, and log probability, entropy and penalty of each path.
        """
        row = self._row(*tf.split(tf.constant(self._table)[:, None], self._columns, axis=-1))
        log_prob, entropy, penalty = self._measure_paths(row, choices, self._run_steps(row, choices))
        rewards += self._entropy * tf.stop_gradient(entropy)
        average = tf.where(tf.math.is_nan(average), tf.reduce_mean(rewards), average)
        advantages = tf.TensorArray(tf.float32, 0, dynamic_size=True, element_shape=[])
        for place in tf.range(len(rewards)):
            advantage = rewards[place] - average
            advantages = advantages.write(place, advantage)
            average += (1 - self._baseline) * advantage
        loss = tf.reduce_mean(-advantages.stack() * log_prob + self._skip_weight * penalty)
        return loss, average, log_prob, entropy, penalty

    def _run_steps(self, row: Any, choices: Any) -> Any:
        """Returns the LSTM's outputs (steps, count, hidden) for given choices.

        Unrolled in Python: this halves the time of an update against a loop in the graph, for 2 s of tracing.
        """
        known, read = (tf.unstack(each, len(self._steps)) for each in self._read(row, choices))
        zeros, weights = tf.zeros([tf.shape(choices)[1], self._hidden]), lstm_weights(self.cell)
        x, states, outputs = zeros + self.embedding.embeddings[0], [zeros, zeros], []
        places: dict[int, Any] = {}
        for number, step in enumerate(self._steps):
            output, states = take_lstm_step(weights, x, states)
            outputs.append(output)
            x = known[number] + zeros
            if step.then == "places" and step.visible:
                seen = tf.stack([places[place] for place in range(step.visible)], axis=1)
                x += tf.linalg.matvec(seen, read[number][:, : step.visible], transpose_a=True)
            if step.writes is not None:
                places[step.writes] = zeros if step.blank else output
        return tf.stack(outputs)

    def _read(self, row: Any, chosen: Any) -> tuple[Any, Any]:
        """Returns the next input without the places, after choices (.., width), and the weights of the places."""
        embedded = tf.matmul(chosen[..., : self._ops], self.embedding.embeddings[1:])
        weights = row.places * chosen[..., : self._places]
        if self._skipping:  # the mean over the chosen places and a zero vector
            weights /= 1 + tf.reduce_sum(weights, axis=-1, keepdims=True)
        return row.start * self.embedding.embeddings[0] + row.op * embedded, weights

    def _draw(self, row: Any, output: Any, keys: Any, uniform: Any) -> Any:
        """Draws a step's choices, (count, width)."""
        ops, attention = self._op_logits(row, output), self._place_logits(output, keys)
        below = tf.cumsum(tf.exp(self._log_probs(row, ops, attention)), axis=-1) < uniform[:, :1]
        place = tf.minimum(tf.reduce_sum(tf.cast(below, tf.float32), axis=-1), row.last)
        chosen = row.one_of * tf.one_hot(tf.cast(place, tf.int32), self._width)
        if self._skipping:  # skips are drawn from the softmax of (-attention, attention)
            chosen += row.open * tf.cast(uniform < tf.sigmoid(2 * attention), tf.float32)
        return chosen

    def _measure_paths(self, row: Any, choices: Any, outputs: Any) -> tuple[Any, Any, Any]:
        """Returns log probability, entropy and penalty of each path, (count,), over all steps at once."""
        attending = np.array([step for step, each in enumerate(self._steps) if each.chooses in ("state", "skips")])
        keys = tf.transpose(tf.gather(self.key(outputs), self._written[attending]), [0, 2, 1, 3])
        attention = self._place_logits(tf.gather(outputs, attending), keys)
        attention = tf.scatter_nd(attending[:, None], attention, tf.shape(choices, tf.int64))
        log_probs = self._log_probs(row, self._op_logits(row, outputs), attention)
        log_prob = row.one_of * choices * log_probs
        entropy = -row.one_of * tf.exp(log_probs) * log_probs
        penalty = tf.zeros_like(entropy)
        if self._skipping:
            probability = tf.sigmoid(2 * attention)
            log_on, log_off = tf.math.log_sigmoid(2 * attention), tf.math.log_sigmoid(-2 * attention)
            log_prob += row.open * (choices * log_on + (1 - choices) * log_off)
            entropy -= row.open * (probability * log_on + (1 - probability) * log_off)
            inside, target = tf.clip_by_value(probability, _LEAST, 1 - _LEAST), self._skip_target
            penalty = inside * tf.math.log(inside / target) + (1 - inside) * tf.math.log((1 - inside) / (1 - target))
            penalty *= row.open / self._skipping
        log_prob, entropy, penalty = (tf.reduce_sum(each, axis=[0, 2]) for each in (log_prob, entropy, penalty))
        return log_prob, entropy, penalty

    def _op_logits(self, row: Any, output: Any) -> Any:
        return self._pad(self._op_constant * tf.tanh(self.op_head(output) / self._temperature) + row.bias)

    def _place_logits(self, output: Any, keys: Any) -> Any:
        """Returns the attention (.., count, width) of outputs to the places' keys (.., count, places, hidden)."""
        attention = self.attention(tf.tanh(keys + self.query(output)[..., None, :]))[..., 0]
        return self._pad(self._tanh_constant * tf.tanh(attention / self._temperature))

    def _log_probs(self, row: Any, ops: Any, attention: Any) -> Any:
        """Returns the log probabilities of a step that chooses one operation or one place."""
        return tf.nn.log_softmax(row.is_op * ops + (1 - row.is_op) * attention + row.masks)

    def _pad(self, logits: Any) -> Any:
        """Pads with zeros to the width of a choice."""
        missing = [[0, 0]] * (len(logits.shape) - 1) + [[0, self._width - logits.shape[-1]]]
        return tf.pad(logits, missing) if missing[-1][1] else logits
