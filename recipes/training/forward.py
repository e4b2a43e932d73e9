"""A network's forward pass in training with fused normalisation: half the operations that Keras' own pass traces.

Keras spells a BatchNormalization out as 36 TensorFlow operations, four in five of a searched network's; here it is one
kernel and its variables. Those are the model's, and the values are Keras' up to rounding, but for the moving variance:
it takes in the sample's variance, n / (n-1) of the population's that Keras takes, as TF-slim and PyTorch do, with which
the published networks were trained.
"""

import inspect
from typing import Any

import keras
import tensorflow as tf

from zoo.deploy import graph


class TrainingPass:
    """What `model(images, training=True)` does, for a functional model; of another it is just that call."""

    def __init__(self, model: keras.Model):
        self._model = model
        try:
            self._calls = graph.calls(model)
        except graph.GraphError:
            self._calls = None

    def __call__(self, images: Any) -> Any:
        """Returns the model's outputs, as the model would; call it where the training step is traced."""
        if self._calls is None or len(self._model.inputs) != 1:
            return self._model(images, training=True)
        values = {id(self._model.inputs[0]): images}
        for call in self._calls:
            arguments, options = call.replay(values)
            if _can_be_fused(call.layer, arguments[0]):
                outputs = [_normalise(call.layer, arguments[0])]
            else:
                mode = {"training": True} if "training" in inspect.signature(call.layer.call).parameters else {}
                outputs = keras.tree.flatten(call.layer(*arguments, **{**options, **mode}))
            values.update(zip(map(id, call.outputs), outputs, strict=True))
        outputs = [values[id(tensor)] for tensor in self._model.outputs]
        return outputs[0] if len(outputs) == 1 else outputs


def _can_be_fused(layer: Any, x: Any) -> bool:
    if type(layer) is not keras.layers.BatchNormalization or not layer.trainable or layer.renorm:
        return False
    plain = layer.center and layer.scale and layer.axis in (-1, 3) and not layer.synchronized
    return plain and layer.compute_dtype == "float32" and len(x.shape) == 4


def _normalise(layer: Any, x: Any) -> Any:
    mean, variance = layer.moving_mean.value, layer.moving_variance.value
    y, new_mean, new_variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=x, scale=layer.gamma.value, offset=layer.beta.value, mean=mean, variance=variance, epsilon=layer.epsilon,
        exponential_avg_factor=1 - layer.momentum, is_training=True,
    )  # fmt: skip
    mean.assign(new_mean)
    variance.assign(new_variance)
    return y
