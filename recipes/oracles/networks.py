"""What the small networks of the searches share: their state is a list of arrays, and a shape is traced once a process.

A search makes one controller, a benchmark hundreds, and tracing one takes seconds. So a network belongs to all users of
its shape: each hands its state in and takes it back, changed.
"""

import base64
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

State = list[Any]  # arrays or tensors: all weights as one vector, then what the optimizer remembers
OTHER_VERSION = (
    "the saved search has a network of another version. Finish it with the version that began it, or search in "
    "another folder"
)


class Network:
    """Keras layers and the optimizer that trains them, as functions of a state.

    The weights of the layers are parts of one vector, so that a step of the optimizer is one step and not one for each
    of them: the time goes into the number of operations. All of it stays on the CPU: networks this small are faster
    there, and a search resumes with the same numbers.

    Args:
        weights: of the layers.
        optimizer: new.
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
        """Returns weights from `draw`, which gets each variable, and an optimizer that has not seen a gradient."""
        drawn = np.concatenate([np.ravel(draw(weight)) for weight in self.weights]).astype(np.float32)
        return self.state_of(drawn)

    def state_of(self, vector: Any) -> State:
        """Returns these weights, and an optimizer that has not seen a gradient."""
        return [vector, *(np.zeros(variable.shape, str(variable.dtype)) for variable in self._state[1:])]

    def weights_of(self, state: State) -> list[np.ndarray]:
        """Returns the weights one by one, as views of the state."""
        parts = np.split(np.asarray(state[0]), np.cumsum(self._sizes)[:-1])
        return [part.reshape(weight.shape) for part, weight in zip(parts, self.weights, strict=True)]

    def with_weights(self, vector: Any = None) -> Any:
        """Returns a context in which the layers have the weights of a state's vector, or of the state at hand."""
        parts = tf.split(tf.convert_to_tensor(self.vector if vector is None else vector), self._sizes)
        shaped = [tf.reshape(part, weight.shape) for part, weight in zip(parts, self.weights, strict=True)]
        return keras.StatelessScope(state_mapping=list(zip(self.weights, shaped, strict=True)))

    def on_state(self, function: Callable[..., Any], *signature: tf.TensorSpec) -> Callable[..., tuple[Any, State]]:
        """Compiles (state, *arguments) -> (result, state afterwards); `signature` is of the arguments."""

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
        """Takes a step of the optimizer down loss(*arguments), or its first result, and returns what that returned."""
        with tf.GradientTape() as tape, self.with_weights():
            results = loss(*arguments)
        value = results[0] if isinstance(results, tuple) else results
        self.optimizer.apply([tape.gradient(value, self.vector.value)], [self.vector])
        return results

    def unpacked(self, saved: Sequence[Mapping[str, Any]]) -> State:
        """Returns the state of which `packed` was given all arrays or the weights alone.

        Raises:
            ValueError: it is not of this network.
        """
        state = [unpacked(array) for array in saved]
        if state[0].shape != self.vector.shape or len(state) not in (1, len(self._state)):
            raise ValueError(OTHER_VERSION)
        return state if len(state) > 1 else self.state_of(state[0])


class StackedDense(keras.layers.Layer):
    """A dense layer for each place of the first axis: (stack, batch, inputs) -> (stack, batch, units)."""

    def __init__(self, stack: int, inputs: int, units: int, use_bias: bool = True):
        super().__init__(dtype="float32")
        self.kernel = self.add_weight((stack, inputs, units), name="kernel")
        self.bias: Any = self.add_weight((stack, 1, units), name="bias") if use_bias else None
        self.built = True

    def call(self, inputs: Any) -> Any:
        """Returns inputs @ kernel + bias."""
        outputs = tf.matmul(inputs, self.kernel)
        return outputs if self.bias is None else outputs + self.bias


def lstm_outputs(cell: keras.layers.LSTMCell, inputs: Any) -> Any:
    """Returns what keras.layers.LSTM with this cell returns of a sequence, in half the time where batches are small.

    `inputs` are (steps, batch, units), the time first; so is the result.
    """
    start = tf.zeros([tf.shape(inputs)[1], cell.units])
    return _lstm(lstm_weights(cell), inputs, start, start).h


def take_lstm_step(weights: tuple[Any, Any], inputs: Any, states: Sequence[Any]) -> tuple[Any, list[Any]]:
    """Returns the output of one step (batch, units), and the states after it, as a Keras cell does."""
    output, kept = states
    step = _lstm(weights, inputs[None], kept, output)
    return step.h[0], [step.h[0], step.cs[0]]


def lstm_weights(cell: keras.layers.LSTMCell) -> tuple[Any, Any]:
    """Returns kernel and bias of a cell as TensorFlow's kernel takes them: input, candidate, forget, output."""
    weights = tf.concat([cell.kernel, cell.recurrent_kernel, cell.bias[None]], axis=0)
    opened, kept, new, shown = tf.split(weights, 4, axis=1)
    weights = tf.concat([opened, new, kept, shown], axis=1)
    return weights[:-1], weights[-1]


def _lstm(weights: tuple[Any, Any], inputs: Any, kept: Any, output: Any) -> Any:
    """TensorFlow's kernel, which takes all steps at once, forward and back.

    BlockLSTMV2 has Keras' order of the gates, but its gradient confuses the two in the middle.
    """
    unused = tf.zeros([output.shape[-1]])
    return tf.raw_ops.BlockLSTM(
        seq_len_max=tf.cast(tf.shape(inputs)[0], tf.int64),
        x=inputs, cs_prev=kept, h_prev=output, w=weights[0], b=weights[1],
        wci=unused, wcf=unused, wco=unused, forget_bias=0.0, cell_clip=-1.0, use_peephole=False,
    )  # fmt: skip


def packed(array: Any) -> dict[str, Any]:
    """Returns an array or a tensor as JSON can hold it, to the last bit."""
    array = np.asarray(array)
    data = base64.b64encode(array.tobytes()).decode()
    return {"type": str(array.dtype), "shape": list(array.shape), "bytes": data}


def unpacked(saved: Mapping[str, Any]) -> np.ndarray:
    """Returns what `packed` was given."""
    return np.frombuffer(base64.b64decode(saved["bytes"]), saved["type"]).reshape(saved["shape"]).copy()
