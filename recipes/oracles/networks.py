"""Base of the searches' small networks: their state is a list of arrays, and each shape is traced once per process.

A search makes one controller, a benchmark hundreds, and tracing takes seconds. So all users of one shape share one
network: each passes its own state in and gets the changed state back.
"""

import base64
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

State = list[Any]  # arrays or tensors: all weights as one vector, then the optimizer's variables
OTHER_VERSION = (
    "the saved search has a network of another version. Finish it with the version that started it, or search in "
    "another folder"
)


class SharedNetwork:
    """Keras layers and their optimizer, as functions of a state that the caller keeps.

    The layers' weights are parts of one vector, so that the optimizer updates one variable instead of many: the time
    depends on the number of operations. Everything stays on the CPU, where networks this small are faster and a search
    resumes with the same numbers.

    Args:
        weights: of all layers.
        optimizer: a new one, not built yet.
    """

    def __init__(self, weights: Sequence[keras.Variable], optimizer: keras.optimizers.Optimizer):
        self.weights, self.optimizer = list(weights), optimizer
        self._sizes = [math.prod(weight.shape) for weight in self.weights]
        with tf.device("CPU:0"):
            self.vector = keras.Variable(np.zeros(sum(self._sizes), np.float32), name="weights")
            optimizer.build([self.vector])
        moments = [variable for variable in optimizer.variables if variable is not optimizer.learning_rate]
        self._state = [self.vector, *moments]

    def new_state(self, draw: Callable[[keras.Variable], np.ndarray]) -> State:
        """Returns weights drawn by draw(variable), and the state of a new optimizer."""
        drawn = np.concatenate([np.ravel(draw(weight)) for weight in self.weights]).astype(np.float32)
        return self.make_state(drawn)

    def make_state(self, vector: Any) -> State:
        """Returns these weights, and the state of a new optimizer."""
        return [vector, *(np.zeros(variable.shape, str(variable.dtype)) for variable in self._state[1:])]

    def split_weights(self, state: State) -> list[np.ndarray]:
        """Returns the weights of each variable, as views of the state."""
        parts = np.split(np.asarray(state[0]), np.cumsum(self._sizes)[:-1])
        return [part.reshape(weight.shape) for part, weight in zip(parts, self.weights, strict=True)]

    def with_weights(self, vector: Any = None) -> Any:
        """Returns a context in which the layers use the weights of `vector`, by default those of the current state."""
        parts = tf.split(tf.convert_to_tensor(self.vector if vector is None else vector), self._sizes)
        shaped = [tf.reshape(part, weight.shape) for part, weight in zip(parts, self.weights, strict=True)]
        return keras.StatelessScope(state_mapping=list(zip(self.weights, shaped, strict=True)))

    def on_state(self, function: Callable[..., Any], *signature: tf.TensorSpec) -> Callable[..., tuple[Any, State]]:
        """Compiles `function` to (state, *arguments) -> (result, next state); `signature` is of the arguments."""

        def run(state: Any, *arguments: Any) -> Any:
            for variable, value in zip(self._state, state, strict=True):
                variable.value.assign(value)
            result = function(*arguments)
            return result, [tf.identity(variable.value) for variable in self._state]

        specs = [tf.TensorSpec(variable.shape, str(variable.dtype)) for variable in self._state]
        compiled = tf.function(run, input_signature=[specs, *signature])

        def call(state: State, *arguments: Any) -> tuple[Any, State]:
            with tf.device("CPU:0"):
                return compiled(state, *arguments)

        return call

    def descend(self, loss: Callable[..., Any], *arguments: Any) -> Any:
        """Takes an optimizer step on loss(*arguments), or on its first result if it is a tuple; returns all results."""
        with tf.GradientTape() as tape, self.with_weights():
            results = loss(*arguments)
        value = results[0] if isinstance(results, tuple) else results
        self.optimizer.apply([tape.gradient(value, self.vector.value)], [self.vector])
        return results

    def decode_state(self, saved: Sequence[Mapping[str, Any]]) -> State:
        """Returns the state whose arrays, all or only the weights, were encoded by `encode_array`.

        Raises:
            ValueError: the state is not of this network.
        """
        state = [decode_array(array) for array in saved]
        if state[0].shape != self.vector.shape or len(state) not in (1, len(self._state)):
            raise ValueError(OTHER_VERSION)
        return state if len(state) > 1 else self.make_state(state[0])


class StackedDense(keras.layers.Layer):
    """A dense layer for each index of the first axis: (stack, batch, inputs) -> (stack, batch, units)."""

    def __init__(self, stack: int, inputs: int, units: int, use_bias: bool = True):
        super().__init__(dtype="float32")
        self.kernel = self.add_weight((stack, inputs, units), name="kernel")
        self.bias: Any = self.add_weight((stack, 1, units), name="bias") if use_bias else None
        self.built = True

    def call(self, inputs: Any) -> Any:
        """Returns inputs @ kernel + bias."""
        outputs = tf.matmul(inputs, self.kernel)
        return outputs if self.bias is None else outputs + self.bias


def run_lstm(cell: keras.layers.LSTMCell, inputs: Any) -> Any:
    """Returns the outputs of keras.layers.LSTM with this cell, in half the time for small batches.

    `inputs` are time-major, (steps, batch, units), and so is the result.
    """
    start = tf.zeros([tf.shape(inputs)[1], cell.units])
    return _lstm(lstm_weights(cell), inputs, start, start).h


def take_lstm_step(weights: tuple[Any, Any], inputs: Any, states: Sequence[Any]) -> tuple[Any, list[Any]]:
    """Returns the output (batch, units) of one step and the next states, as a Keras cell does."""
    output, kept = states
    step = _lstm(weights, inputs[None], kept, output)
    return step.h[0], [step.h[0], step.cs[0]]


def lstm_weights(cell: keras.layers.LSTMCell) -> tuple[Any, Any]:
    """Returns a cell's kernel and bias in the gate order of TensorFlow's op: input, candidate, forget, output."""
    weights = tf.concat([cell.kernel, cell.recurrent_kernel, cell.bias[None]], axis=0)
    opened, kept, new, shown = tf.split(weights, 4, axis=1)
    weights = tf.concat([opened, new, kept, shown], axis=1)
    return weights[:-1], weights[-1]


def _lstm(weights: tuple[Any, Any], inputs: Any, kept: Any, output: Any) -> Any:
    """Runs TensorFlow's LSTM op, which takes all steps at once, forward and backward.

    BlockLSTMV2 has Keras' gate order, but its gradient swaps the two middle gates.
    """
    unused = tf.zeros([output.shape[-1]])
    return tf.raw_ops.BlockLSTM(
        seq_len_max=tf.cast(tf.shape(inputs)[0], tf.int64),
        x=inputs, cs_prev=kept, h_prev=output, w=weights[0], b=weights[1],
        wci=unused, wcf=unused, wco=unused, forget_bias=0.0, cell_clip=-1.0, use_peephole=False,
    )  # fmt: skip


def encode_array(array: Any) -> dict[str, Any]:
    """Encodes an array or a tensor as JSON values, without loss."""
    array = np.asarray(array)
    data = base64.b64encode(array.tobytes()).decode()
    return {"type": str(array.dtype), "shape": list(array.shape), "bytes": data}


def decode_array(saved: Mapping[str, Any]) -> np.ndarray:
    """Decodes the result of `encode_array`."""
    return np.frombuffer(base64.b64decode(saved["bytes"]), saved["type"]).reshape(saved["shape"]).copy()
