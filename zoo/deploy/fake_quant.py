"""How TF-MOT trains these graphs for int8: the quantizers, and which tensors of a layer get one.

TF-MOT's defaults are not usable here: they give a depthwise convolution one scale for all its channels, start every
range at [-6, 6] and move it by a thousandth a step (too slowly for a fine-tuning of some hundred steps), and refuse
Multiply.
This module imports tf_keras and TF-MOT; only `zoo.deploy.quantize` imports it, inside a function.
"""

import contextlib
import math
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras

_RANGE_MOMENTUM = 0.99  # of an activation's running range, per training step
_SMALLEST_RANGE = 1e-9  # for a channel of zeros only, which would have no scale
_KERNELS = {"Conv2D": "kernel", "Dense": "kernel", "DepthwiseConv2D": "depthwise_kernel"}

_EXPORTING = ContextVar("exporting", default=False)


class _RunningRange(tfmot.quantization.keras.quantizers.Quantizer):
    """Rounds a tensor to 8 bits between the running minimum and maximum of its batches."""

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        # `zoo.deploy.quantize.prepare` sets both before the first step
        return {end: layer.add_weight(f"{name}_{end}", initializer="zeros", trainable=False) for end in ("min", "max")}

    def __call__(self, inputs: Any, training: bool, weights: dict[str, Any], **kwargs: Any) -> Any:
        low, high = weights["min"], weights["max"]
        if training:
            batch_low = tf.minimum(tf.reduce_min(inputs), 0.0)  # zero must be in the range, for padding
            batch_high = tf.maximum(tf.reduce_max(inputs), 0.0)
            low = low.assign(_RANGE_MOMENTUM * low + (1 - _RANGE_MOMENTUM) * batch_low)
            high = high.assign(_RANGE_MOMENTUM * high + (1 - _RANGE_MOMENTUM) * batch_high)
        return tf.quantization.fake_quant_with_min_max_vars(inputs, low, high, num_bits=8)

    def get_config(self) -> dict[str, Any]:
        return {}


class _ChannelGrid(tfmot.quantization.keras.quantizers.Quantizer):
    """Rounds a kernel symmetrically, with one scale per output channel taken from its current values.

    In four bits a dense kernel has a single scale, and a depthwise kernel keeps eight bits, as in
    `zoo.deploy.rewrites.narrow_weights`.
    """

    def __init__(self, kind: str, bits: int = 8) -> None:
        self.kind = kind
        self.bits = 8 if kind == "DepthwiseConv2D" else bits

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        return {}  # no state: the scale follows the current values

    def __call__(self, inputs: Any, training: bool, weights: dict[str, Any], **kwargs: Any) -> Any:
        is_depthwise = self.kind == "DepthwiseConv2D"  # (height, width, channels, multiplier); else outputs last
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
    """Within the block, leaves 8-bit kernels unrounded and rounds 4-bit kernels to constants.

    The converter itself puts kernels on the same 8-bit grid once it has folded the normalization in, which scales a
    channel and its grid alike; it fails on kernels rounded by a fake-quantization node. Each 4-bit step is one of the
    converter's 8-bit steps.
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
        return []  # in these graphs every activation is a layer of its own

    def set_quantize_weights(self, layer: Any, quantize_weights: list[Any]) -> None:
        if self.kernel is not None:  # the rounded kernel replaces the variable for one call
            setattr(layer, self.kernel, quantize_weights[0])

    def set_quantize_activations(self, layer: Any, quantize_activations: list[Any]) -> None:
        pass

    def get_output_quantizers(self, layer: Any) -> list[Any]:
        return [_RunningRange()] if self.options["output"] else []

    def get_config(self) -> dict[str, Any]:
        return self.options


def wrap(layer: Any, kind: str, output: bool, bits: int) -> Any:
    """Returns a tf_keras layer in a wrapper that rounds its kernel to `bits` bits and, if `output`, its output to 8.

    `kind` is the class name of the original layer. The range of the output starts empty.
    """
    config = _LayerConfig(kind, output, bits)
    return tfmot.quantization.keras.QuantizeWrapperV2(layer, config, name=f"quant_{layer.name}")


class FrozenStatistics(tf_keras.layers.BatchNormalization):
    """Normalizes by the stored statistics even in training, as the exported file will; gamma and beta still learn."""

    def call(self, inputs: Any, training: Any = None, mask: Any = None) -> Any:
        """Ignores `training`."""
        return super().call(inputs, training=False)
