"""How TF-MOT trains these graphs for int8: quantizers, and which tensor of a layer gets one.

TF-MOT's defaults do not do here: they give a depthwise convolution one scale for all its channels, start every range
at [-6, 6] and move it by a thousandth a step (a fine-tuning of some hundred steps never gets away from it), and refuse
Multiply.
Imports tf_keras and TF-MOT; only `zoo.deploy.quantize` imports this module, where it is used.
"""

import contextlib
import math
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras

_RANGE_MOMENTUM = 0.99  # of the running range of an activation, by training step
_SMALLEST_RANGE = 1e-9  # of a channel that is all zeros, which has no scale of its own
_KERNELS = {"Conv2D": "kernel", "Dense": "kernel", "DepthwiseConv2D": "depthwise_kernel"}

_EXPORTING = ContextVar("exporting", default=False)


class _RunningRange(tfmot.quantization.keras.quantizers.Quantizer):
    """Rounds a tensor to 8 bits between the running minimum and maximum of its batches."""

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        # `zoo.deploy.quantize.prepare` sets them before the first step
        return {end: layer.add_weight(f"{name}_{end}", initializer="zeros", trainable=False) for end in ("min", "max")}

    def __call__(self, inputs: Any, training: bool, weights: dict[str, Any], **kwargs: Any) -> Any:
        low, high = weights["min"], weights["max"]
        if training:
            batch_low = tf.minimum(tf.reduce_min(inputs), 0.0)  # zero must have a code: padding is made of it
            batch_high = tf.maximum(tf.reduce_max(inputs), 0.0)
            low = low.assign(_RANGE_MOMENTUM * low + (1 - _RANGE_MOMENTUM) * batch_low)
            high = high.assign(_RANGE_MOMENTUM * high + (1 - _RANGE_MOMENTUM) * batch_high)
        return tf.quantization.fake_quant_with_min_max_vars(inputs, low, high, num_bits=8)

    def get_config(self) -> dict[str, Any]:
        return {}


class _ChannelGrid(tfmot.quantization.keras.quantizers.Quantizer):
    """Rounds a kernel, symmetric, with one scale for each output channel, from its values of the moment.

    Of four bits a dense kernel has one scale, and a depthwise one keeps eight, as `zoo.deploy.rewrites.narrow_weights`.
    """

    def __init__(self, kind: str, bits: int = 8) -> None:
        self.kind = kind
        self.bits = 8 if kind == "DepthwiseConv2D" else bits

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        return {}  # what the optimizer has just written is what is rounded

    def __call__(self, inputs: Any, training: bool, weights: dict[str, Any], **kwargs: Any) -> Any:
        is_depthwise = self.kind == "DepthwiseConv2D"  # (height, width, channels, multiplier); else outputs are last
        columns = tf.reshape(inputs, [-1, math.prod(inputs.shape[-2:]) if is_depthwise else inputs.shape[-1]])
        high = tf.maximum(tf.reduce_max(tf.abs(columns), axis=0), _SMALLEST_RANGE)
        if self.kind == "Dense" and self.bits == 4:
            high = tf.fill(high.shape, tf.reduce_max(high))
        if _EXPORTING.get():
            return inputs if self.bits == 8 else tf.reshape(tf.round(columns / high * 7) * (high / 7), inputs.shape)
        rounded = tf.quantization.fake_quant_with_min_max_vars_per_channel(
            columns, -high, high, num_bits=self.bits, narrow_range=True
        )
        return tf.reshape(rounded, inputs.shape)

    def get_config(self) -> dict[str, Any]:
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


class _LayerConfig(tfmot.quantization.keras.QuantizeConfig):
    def __init__(self, kind: str, output: bool, bits: int) -> None:
        self.kernel = _KERNELS.get(kind)
        self.options = {"kind": kind, "output": output, "bits": bits}

    def get_weights_and_quantizers(self, layer: Any) -> list[tuple[Any, Any]]:
        if self.kernel is None:
            return []
        return [(getattr(layer, self.kernel), _ChannelGrid(self.options["kind"], self.options["bits"]))]

    def get_activations_and_quantizers(self, layer: Any) -> list[tuple[Any, Any]]:
        return []  # every activation is a layer of its own in the graphs that are made here

    def set_quantize_weights(self, layer: Any, quantize_weights: list[Any]) -> None:
        if self.kernel is not None:  # the rounded kernel stands in the place of the variable for one call
            setattr(layer, self.kernel, quantize_weights[0])

    def set_quantize_activations(self, layer: Any, quantize_activations: list[Any]) -> None:
        pass

    def get_output_quantizers(self, layer: Any) -> list[Any]:
        return [_RunningRange()] if self.options["output"] else []

    def get_config(self) -> dict[str, Any]:
        return self.options


def wrap(layer: Any, kind: str, output: bool, bits: int) -> Any:
    """Returns a tf_keras layer in a wrapper that rounds its kernel to `bits`, and its output to 8 where `output` says.

    `kind` is the class of the layer that it stands for; the range of the output begins as nothing.
    """
    config = _LayerConfig(kind, output, bits)
    return tfmot.quantization.keras.QuantizeWrapperV2(layer, config, name=f"quant_{layer.name}")


class FrozenStatistics(tf_keras.layers.BatchNormalization):
    """Normalizes by the stored statistics in training too, as the exported file will; gamma and beta still learn."""

    def call(self, inputs: Any, training: Any = None, mask: Any = None) -> Any:
        """Ignores `training`."""
        return super().call(inputs, training=False)
