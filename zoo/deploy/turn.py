"""A network rewritten for images turned by 180 degrees, which can rid it of explicit paddings.

PyTorch pads a stride-2 convolution by the same number on both sides, TensorFlow's "same" on even sizes at the bottom
and the right only. Where the size is even, PyTorch's last row is never read, so that its padding is "same" upside down.
Turn the image and every kernel, and the padding happens inside the convolution: no padded copy of a large tensor lies
in RAM.
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from zoo import graph

METADATA = "ImageOrientation"  # the entry of a .tflite file's metadata, with the text below
TURNED = b"turned by 180 degrees"

# Of rows and of columns: how many zeros before and after; less than zero cuts off
_Sides = Sequence[tuple[int, int]]

_CONVOLUTIONS = ("Conv2D", "DepthwiseConv2D", "SeparableConv2D")
_POOLS = ("AveragePooling2D", "MaxPooling2D")
_PADDINGS = ("Cropping2D", "ZeroPadding2D")
PLACEWISE = frozenset(  # compute each place of an image from that place alone
    ["Activation", "Add", "Average", "BatchNormalization", "Concatenate", "Dense", "Dropout", "ELU",
     "LayerNormalization", "LeakyReLU", "Maximum", "Minimum", "Multiply", "Normalization", "ReLU", "Rescaling",
     "Softmax", "SpatialDropout2D", "Subtract"]
)  # fmt: skip
_ANYWHERE = PLACEWISE | {"GlobalAveragePooling2D", "GlobalMaxPooling2D", "UpSampling2D"}  # the same turned


class TurnError(ValueError):
    """A layer that cannot be turned."""


def images(images: np.ndarray) -> np.ndarray:
    """Returns images (n, height, width, channels) as a turned network takes them."""
    return images[:, ::-1, ::-1]


def turn(model: keras.Model) -> keras.Model:
    """Returns the network that computes of a turned image what `model` computes of the image; copies of the weights.

    Explicit paddings right before a convolution become part of it where "same" pads as they do. Feature maps among the
    outputs come turned.

    Raises:
        TurnError: a layer depends on places in a way that is not known here, or a size is open.
        GraphError: the model is subclassed, or the turned one does not compute the same.
    """
    model = graph.flatten(model)
    for tensor in model.inputs:
        if len(tensor.shape) != 4 or None in tensor.shape[1:]:
            raise TurnError(
                f"model {model.name!r} takes {tuple(tensor.shape)}, and images (height, width, channels) of a fixed "
                "size were expected. zoo.graph.flatten(model, input_shape) fixes an open size; nothing else turns"
            )
    calls = graph.calls(model)
    source = {id(call.outputs[0]): call for call in calls}
    readers = graph.readers_of(model, calls)
    swallowed: dict[int, _Sides] = {}
    for call in calls:  # a padding that only one convolution reads becomes its own
        if call.kind in _CONVOLUTIONS and call.layer.padding == "valid":
            before = source.get(id(call.inputs[0]))
            if before is not None and before.kind in _PADDINGS and len(readers[id(call.inputs[0])]) == 1:
                swallowed[id(before.outputs[0])] = _sides(before.layer)
    copies: dict[str, Any] = {}

    def run(call: graph.Call, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        return _turned(call, arguments[0], swallowed, copies)

    inputs = [keras.Input(tensor.shape[1:], name=graph.node_of(tensor).operation.name) for tensor in model.inputs]
    turned = graph.model_like(model, inputs, graph.replay(model, inputs, run))
    graph.check_copy(model, turned, turned=True)
    return turned


def _turned(call: graph.Call, x: Any, swallowed: dict[int, _Sides], copies: dict[str, Any]) -> Any:
    """Returns the turned layer's output for its argument: a tensor, or a list of some."""
    layer, kind = call.layer, call.kind
    if id(call.outputs[0]) in swallowed:
        return x
    if kind in _PADDINGS:
        return _pad(x, [(after, before) for before, after in _sides(layer)], layer.name)
    if kind in (*_CONVOLUTIONS, *_POOLS):
        return _window(layer, x, swallowed.get(id(call.inputs[0]), ((0, 0), (0, 0))), copies)
    is_image = len(call.inputs[0].shape) == 4 and tuple(call.inputs[0].shape[1:3]) != (1, 1)
    moves_nothing = kind in ("Flatten", "Reshape", "Permute") and not is_image
    if moves_nothing or (kind in _ANYWHERE and not mixes_places(layer, call.outputs[0])):
        return _copy(layer, {}, x, copies)
    raise TurnError(
        f"layer {layer.name!r} ({kind}) has no turned form. Use convolutions, pooling, padding and what treats all "
        "places alike; flatten only what is 1 x 1"
    )


def mixes_places(layer: Any, output: Any) -> bool:
    """Whether a layer that goes along an axis goes along one of an image's sides."""
    axes = getattr(layer, "axis", None)
    axes = [] if axes is None else axes if isinstance(axes, (list, tuple)) else [axes]
    return len(output.shape) == 4 and any(axis % 4 in (1, 2) for axis in axes)


def _window(layer: Any, x: Any, explicit: _Sides, copies: dict[str, Any]) -> Any:
    """Turns a convolution or pooling whose input was padded by `explicit`."""
    height, width = x.shape[1:3]
    wanted, offered = [], []
    for axis, (length, extent, stride) in enumerate(zip(x.shape[1:3], extent_of(layer), layer.strides, strict=True)):
        same = same_padding(length, extent, stride)
        before, after = same if layer.padding == "same" else explicit[axis]
        unread = (length + before + after - extent) % stride
        wanted.append((after - unread, before))
        offered.append(same)
    if graph.kind_of(layer) in _POOLS and layer.padding == "same" and wanted != offered:
        raise TurnError(
            f"layer {layer.name!r} pools {height} x {width} with padding that is not symmetric, and zeros would take "
            "part in it. Use a size that the strides divide with an odd rest"
        )
    if wanted == offered:
        return _copy(layer, {"padding": "same"}, x, copies)
    padded = _pad(x, wanted, f"{layer.name}_turned_pad")
    return _copy(layer, {"padding": "valid"}, padded, copies)


def extent_of(layer: Any) -> list[int]:
    """Returns the height and width that a convolution's or pooling's window spans, gaps of its dilation included."""
    if graph.kind_of(layer) in _POOLS:
        return list(layer.pool_size)
    return [(size - 1) * dilation + 1 for size, dilation in zip(layer.kernel_size, layer.dilation_rate, strict=True)]


def same_padding(length: int, extent: int, stride: int) -> tuple[int, int]:
    """Returns how many zeros TensorFlow's "same" puts before and after `length` places."""
    total = max((-(-length // stride) - 1) * stride + extent - length, 0)
    return total // 2, total - total // 2


def _pad(x: Any, sides: _Sides, name: str) -> Any:
    more, less = ([[max(0, sign * one) for one in pair] for pair in sides] for sign in (1, -1))
    if any(map(any, less)):
        x = keras.layers.Cropping2D(less, name=f"{name}_crop")(x)
    return keras.layers.ZeroPadding2D(more, name=name)(x) if any(map(any, more)) else x


def _copy(layer: Any, changes: dict[str, Any], x: Any, copies: dict[str, Any]) -> Any:
    is_new, kind = layer.name not in copies, graph.kind_of(layer)
    output = graph.call_copy(layer, copies, changes, x)
    if is_new and kind in _CONVOLUTIONS:
        kernel = "depthwise_kernel" if kind == "SeparableConv2D" else "kernel"
        getattr(copies[layer.name], kernel).assign(np.flip(getattr(layer, kernel).numpy(), (0, 1)))
    return output


def _sides(layer: Any) -> _Sides:
    if graph.kind_of(layer) == "ZeroPadding2D":
        return layer.padding
    return [(-before, -after) for before, after in layer.cropping]
