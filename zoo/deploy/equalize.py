"""Cross-layer equalization: gives the channels of a tensor, which share one scale in int8, similar ranges.

A channel is divided by a factor where it is computed (in its normalization, or in kernel and bias) and multiplied by
the factor where it is read. Between the two, ReLU, pooling and any f with f(s * x) = s * f(x) may stand; ReLU6,
sigmoid, swish and sums with another tensor may not. The factors are powers of two, so that the network's outputs stay
the same bit by bit.

Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction (2019), section 4.1. Departures:
they equalize the ranges of two kernels with one scale each. Here a kernel has a scale per output channel, and the
values that share a scale are a tensor's channels and the weights of one output. So the largest value of a channel over
the calibration images is balanced against the largest weight that reads the channel, relative to the largest weight of
its output; for a depthwise kernel, with a scale per channel, only the tensor counts. The balance between the two sides
is the exponent of Xiao et al., SmoothQuant (2023), chosen for each tensor by the expected noise; leaving the tensor
unchanged is one of the choices. No bias is absorbed.
"""

import collections
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from zoo import graph
from zoo.deploy import tflite

LARGEST_RATIO = 64.0  # between equalized ranges: a channel that is silent in calibration need not stay silent

POWERS = (0.0, 0.25, 0.5, 0.75, 1.0)  # 0 equalizes the weights, 1 the tensor

_TINY = float(np.finfo(np.float32).tiny)
_POWER_RATIO = 1e4  # of the strongest channel to the weakest that still counts in full
_KERNELS = ("Conv2D", "DepthwiseConv2D", "Dense")
_KEEP_FACTORS = frozenset(
    ["AveragePooling2D", "Cropping2D", "Dropout", "GlobalAveragePooling2D", "GlobalMaxPooling2D", "LeakyReLU",
     "MaxPooling2D", "SpatialDropout2D", "UpSampling2D", "ZeroPadding2D"]
)  # fmt: skip


class Equalized(NamedTuple):
    """The equalized copy of a model, the layers whose channels were equalized, and by layer why others were not."""

    model: keras.Model
    done: tuple[str, ...]
    left: Mapping[str, str]


class _Channels(NamedTuple):
    """The layers that take part in scaling the channels of a tensor."""

    maker: Any  # the layer whose weights are divided: a normalization, or a layer with kernel and bias
    tensor: str  # the layer after which the channels are stored
    readers: list[Any]  # the layers whose kernels are multiplied


def equalize(model: keras.Model, calibration: np.ndarray | Iterable[Any]) -> Equalized:
    """Returns a copy of the model that computes the same and loses less in int8; images as for `tflite.convert`.

    Raises:
        GraphError: the model is subclassed, or the copy does not compute the same.
        ConversionError: there are no calibration images, or they have another shape.
    """
    images = tflite.load_calibration(model, calibration)
    model = graph.flatten(model, images[0].shape)
    copy = graph.copy_model(model)
    found, left = _find_channels(copy)
    ranges = _measure_channels(copy, {channels.tensor for channels in found.values()}, images)
    for channels in found.values():
        _scale(channels, _choose_factors(*ranges[channels.tensor], channels.readers))
    graph.check_copy(model, copy)
    return Equalized(copy, tuple(found), left)


def _find_channels(model: keras.Model) -> tuple[dict[str, _Channels], dict[str, str]]:
    """Returns, by the layer that computes them, the channels that can be equalized, and why others cannot."""
    calls = graph.calls(model)
    readers = graph.readers_of(model, calls)
    uses = collections.Counter(id(call.layer) for call in calls)
    found, left = {}, {}
    for call in (call for call in calls if call.kind in _KERNELS):
        maker = call
        after = readers.get(id(call.outputs[0]), [])
        if len(after) == 1 and after[0] is not None and after[0].kind == "BatchNormalization":
            maker = after[0]
        if max(uses[id(call.layer)], uses[id(maker.layer)]) > 1:
            channels = "it is called several times"
        elif not _keeps_factors(call) or (maker is not call and not maker.layer.scale):
            channels = "its activation does not preserve factors, or its normalization has no scale"
        else:
            channels = _follow(maker, readers, uses)
        if isinstance(channels, str):
            left[call.layer.name] = channels
        else:
            found[call.layer.name] = channels
    return found, left


def _follow(maker: graph.Call, readers: Mapping[int, Sequence[Any]], uses: Mapping[int, int]) -> _Channels | str:
    """Returns the readers of the channels that a call computes, or why these cannot be scaled."""
    channels, kernels, products = maker.outputs[0].shape[-1], [], []
    scaled, waiting, stored = {id(maker.outputs[0])}, [maker.outputs[0]], maker.layer.name
    while waiting:
        tensor = waiting.pop()
        after = readers.get(id(tensor), [])
        if tensor is maker.outputs[0] and len(after) == 1 and getattr(after[0], "kind", "") in ("Activation", "ReLU"):
            stored = after[0].layer.name  # the runtimes fuse a ReLU and store only its output
        for call in after:
            if call is None:
                return "it is an output of the model"
            if call.kind in _KERNELS:
                if uses[id(call.layer)] > 1 or getattr(call.layer, "groups", 1) > 1:
                    return f"{call.layer.name}, which reads it, is called several times or works in groups"
                kernels.append(call.layer)
                continue
            reshapes = call.kind in ("Flatten", "Reshape") and call.outputs[0].shape[-1] == channels
            if not (_keeps_factors(call) or reshapes or call.kind == "Multiply"):
                return f"{call.layer.name} ({call.kind}), which reads it, does not preserve factors"
            products += [call] if call.kind == "Multiply" else []
            if id(call.outputs[0]) not in scaled:
                scaled.add(id(call.outputs[0]))
                waiting.append(call.outputs[0])
    for call in products:
        if sum(id(given) in scaled for given in call.inputs) > 1 or call.outputs[0].shape[-1] != channels:
            return f"{call.layer.name} multiplies it by itself or by more channels"
    return _Channels(maker.layer, stored, kernels)


def _keeps_factors(call: graph.Call) -> bool:
    """Whether a layer's activation, or the layer itself, is an f with f(s * x) = s * f(x) for all s above zero."""
    layer = call.layer
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        return False
    if call.kind in (*_KERNELS, "Activation"):
        return layer.activation.__name__ in ("linear", "relu", "leaky_relu")
    return call.kind in _KEEP_FACTORS or (call.kind == "ReLU" and layer.max_value is None and layer.threshold == 0)


def _measure_channels(
    model: keras.Model, names: set[str], images: Sequence[np.ndarray]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns the largest absolute value and the mean square of each channel of the named layers' outputs."""
    import tensorflow as tf

    def summarize(output: Any) -> Any:
        axes = list(range(len(output.shape) - 1))
        return tf.reduce_max(tf.abs(output), axes), tf.reduce_mean(tf.square(output), axes)

    found = tflite.summarize_outputs(model, names, images, summarize) if names else []
    stored = {name: list(zip(*(batch[name][-1] for batch in found), strict=True)) for name in names}
    return {name: (np.max(largest, axis=0), np.mean(power, axis=0)) for name, (largest, power) in stored.items()}


def _choose_factors(largest: np.ndarray, power: np.ndarray, readers: Sequence[Any]) -> np.ndarray:
    """Returns the power of two to divide each channel by: of the choices the one with the least expected noise.

    `largest` and `power` are each channel's largest absolute value and mean square; `readers` are the layers that read
    the channels.
    """
    kernels = [_read_kernel(layer) for layer in readers if graph.kind_of(layer) != "DepthwiseConv2D"]
    tensor, weights = _limit_ratio(largest), np.ones_like(largest)
    if kernels:
        shares = [(kernel.max(axis=0) / np.maximum(kernel.max(axis=(0, 1)), _TINY)).max(axis=1) for kernel in kernels]
        weights = _limit_ratio(np.max(shares, axis=0))
    choices = [np.ones_like(tensor)]
    for exponent in POWERS:
        factors = tensor**exponent / (weights ** (1 - exponent) if kernels else 1)
        choices.append(np.exp2(np.round(np.log2(factors / factors.max()))))
    has_depthwise = len(kernels) < len(readers)
    noises = [_expect_noise(factors, largest, power, kernels, has_depthwise) for factors in choices]
    return choices[int(np.argmin(noises))].astype(np.float32)


def _expect_noise(
    factors: np.ndarray, largest: np.ndarray, power: np.ndarray, kernels: Sequence[np.ndarray], has_depthwise: bool
) -> float:
    """Returns the expected noise-to-signal ratio from rounding the tensor and the kernels that read it."""
    step, total = (largest / factors).max() / 255, 0.0
    if has_depthwise:
        total += float(np.mean((step * factors) ** 2 / np.maximum(power, max(power.max() / _POWER_RATIO, _TINY))))
    for kernel in kernels:  # (places, inputs, outputs)
        scaled = kernel * factors[:, None]
        steps = scaled.max(axis=(0, 1)) / 127
        noise = step**2 * np.square(scaled).sum() + np.square(steps).sum() * len(kernel) * (power / factors**2).sum()
        total += float(noise / max((power[:, None] * np.square(kernel).sum(axis=0)).sum(), _TINY))
    return total


def _limit_ratio(ranges: np.ndarray) -> np.ndarray:
    """Returns ranges as shares of the largest, none below 1 / LARGEST_RATIO."""
    largest = ranges.max()
    return np.ones_like(ranges) if largest == 0 else np.maximum(ranges / largest, 1 / LARGEST_RATIO)


def _read_kernel(layer: Any) -> np.ndarray:
    """Returns the absolute values of a convolution or dense kernel as (places, inputs, outputs)."""
    return np.abs(layer.kernel.numpy()).reshape(-1, *layer.kernel.shape[-2:])


def _scale(channels: _Channels, factors: np.ndarray) -> None:
    """Divides the channels by the factors where they are computed, and multiplies them where they are read."""
    maker = channels.maker
    names = ("gamma", "beta") if graph.kind_of(maker) == "BatchNormalization" else ("kernel", "bias")
    for variable in (getattr(maker, name, None) for name in names):
        if variable is not None:  # outputs last; of a depthwise kernel channels and multiplier
            divided = variable.numpy().reshape(-1, len(factors)) / factors
            variable.assign(divided.reshape(variable.shape))
    for layer in channels.readers:
        layer.kernel.assign(layer.kernel.numpy() * factors[:, None])
