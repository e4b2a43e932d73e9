"""What TF-MOT needs to be told to train these graphs for int8: own quantizers, and which tensor of a layer gets one.

TF-MOT's defaults do not do here: they give a depthwise convolution one scale for all its channels, start every range
at [-6, 6] and move it by a thousandth a step (a fine-tuning of some hundred steps never gets away from it), and refuse
Multiply.
Imports tf_keras and TF-MOT; only `zoo.deploy.quantize` and `zoo.deploy.compress` import this module.
"""

import contextlib
import math
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras

RANGE_MOMENTUM = 0.99  # of the running range of an activation, by training step
SMALLEST_RANGE = 1e-9  # of a channel that is all zeros, which has no scale of its own
KERNELS = {"Conv2D": "kernel", "Dense": "kernel", "DepthwiseConv2D": "depthwise_kernel"}

_EXPORTING = ContextVar("exporting", default=False)

QuantizeWrapper = tfmot.quantization.keras.QuantizeWrapperV2


class RunningRange(tfmot.quantization.keras.quantizers.Quantizer):
    """Rounds a tensor to 8 bits between the running minimum and maximum of its batches."""

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        """Makes the two variables of the range; `zoo.deploy.quantize.prepare` sets them before the first step."""
        return {end: layer.add_weight(f"{name}_{end}", initializer="zeros", trainable=False) for end in ("min", "max")}

    def __call__(self, inputs: Any, training: bool, weights: dict[str, Any], **kwargs: Any) -> Any:
        """Moves the range in training, and rounds."""
        low, high = weights["min"], weights["max"]
        if training:
            batch_low = tf.minimum(tf.reduce_min(inputs), 0.0)  # zero must have a code: padding is made of it
            batch_high = tf.maximum(tf.reduce_max(inputs), 0.0)
            low = low.assign(RANGE_MOMENTUM * low + (1 - RANGE_MOMENTUM) * batch_low)
            high = high.assign(RANGE_MOMENTUM * high + (1 - RANGE_MOMENTUM) * batch_high)
        return tf.quantization.fake_quant_with_min_max_vars(inputs, low, high, num_bits=8)

    def get_config(self) -> dict[str, Any]:
        """Nothing to configure."""
        return {}


class ChannelGrid(tfmot.quantization.keras.quantizers.Quantizer):
    """Rounds a kernel, symmetric, with one scale for each output channel, from its values of the moment.

    Of four bits a dense kernel has one scale, and a depthwise one keeps eight, as `zoo.deploy.rewrites.narrow_weights`.
    """

    def __init__(self, kind: str, bits: int = 8) -> None:
        self.kind = kind
        self.bits = 8 if kind == "DepthwiseConv2D" else bits

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        """There is no state: what the optimizer has just written is what is rounded."""
        return {}

    def __call__(self, inputs: Any, training: bool, weights: dict[str, Any], **kwargs: Any) -> Any:
        """Rounds a kernel (..., outputs), or one of a depthwise convolution (height, width, channels, multiplier)."""
        is_depthwise = self.kind == "DepthwiseConv2D"
        columns = tf.reshape(inputs, [-1, math.prod(inputs.shape[-2:]) if is_depthwise else inputs.shape[-1]])
        high = tf.maximum(tf.reduce_max(tf.abs(columns), axis=0), SMALLEST_RANGE)
        if self.kind == "Dense" and self.bits == 4:
            high = tf.fill(high.shape, tf.reduce_max(high))
        if _EXPORTING.get():
            return inputs if self.bits == 8 else tf.reshape(tf.round(columns / high * 7) * (high / 7), inputs.shape)
        rounded = tf.quantization.fake_quant_with_min_max_vars_per_channel(
            columns, -high, high, num_bits=self.bits, narrow_range=True
        )
        return tf.reshape(rounded, inputs.shape)

    def get_config(self) -> dict[str, Any]:
        """The arguments of __init__."""
        return {"kind": self.kind, "bits": self.bits}


@contextlib.contextmanager
def exporting() -> Iterator[None]:
    """Leaves kernels of eight bits as they are in the block, and rounds those of four as constants.

    The converter puts them on the same grid itself, after it has folded the normalization in, which scales a channel
    and its grid alike; and it fails on a kernel that is rounded by a node for it. Of four bits each step is then found
    again among its eight.
    """
    token = _EXPORTING.set(True)
    try:
        yield
    finally:
        _EXPORTING.reset(token)


class LayerConfig(tfmot.quantization.keras.QuantizeConfig):
    """Rounds the kernel of a layer where it has one, and its output where `output` says so."""

    def __init__(self, kind: str, output: bool, bits: int = 8) -> None:
        self.kind = kind
        self.kernel = KERNELS.get(kind)
        self.output = output
        self.bits = bits

    def get_weights_and_quantizers(self, layer: Any) -> list[tuple[Any, Any]]:
        """The kernel and how it is rounded."""
        if self.kernel is None:
            return []
        return [(getattr(layer, self.kernel), ChannelGrid(self.kind, self.bits))]

    def get_activations_and_quantizers(self, layer: Any) -> list[tuple[Any, Any]]:
        """None: every activation is a layer of its own in the graphs that are made here."""
        return []

    def set_quantize_weights(self, layer: Any, quantize_weights: list[Any]) -> None:
        """Puts the rounded kernel in the place of the variable for one call."""
        if self.kernel is not None:
            setattr(layer, self.kernel, quantize_weights[0])

    def set_quantize_activations(self, layer: Any, quantize_activations: list[Any]) -> None:
        """Nothing to set."""

    def get_output_quantizers(self, layer: Any) -> list[Any]:
        """How the output is rounded."""
        return [RunningRange()] if self.output else []

    def get_config(self) -> dict[str, Any]:
        """The arguments of __init__."""
        return {"kind": self.kind, "output": self.output, "bits": self.bits}


class FrozenStatistics(tf_keras.layers.BatchNormalization):
    """Normalizes by the stored statistics in training too, as the exported file will; gamma and beta still learn."""

    def call(self, inputs: Any, training: Any = None, mask: Any = None) -> Any:
        """Ignores `training`."""
        return super().call(inputs, training=False)
