"""Rewrites a network for images turned by 180 degrees, which can remove explicit paddings.

PyTorch pads a stride-2 convolution equally on both sides; TensorFlow's "same" on even sizes pads only at the bottom and
the right. On even sizes PyTorch's last padded row is never read, so PyTorch's padding is "same" upside down. If the
image and every kernel are turned, the convolution can do the padding itself, and RAM holds no padded copy of a large
tensor.
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from zoo import graph

METADATA = "ImageOrientation"  # the metadata entry of a turned network's .tflite file, with the text below
TURNED = b"turned by 180 degrees"

# Zeros to add before and after, for rows and for columns; a negative number crops
_Sides = Sequence[tuple[int, int]]

_CONVOLUTIONS = ("Conv2D", "DepthwiseConv2D", "SeparableConv2D")
_POOLS = ("AveragePooling2D", "MaxPooling2D")
_PADDINGS = ("Cropping2D", "ZeroPadding2D")
PLACEWISE = frozenset(  # compute each pixel of the output from that pixel of the inputs alone
    ["Activation", "Add", "Average", "BatchNormalization", "Concatenate", "Dense", "Dropout", "ELU",
     "LayerNormalization", "LeakyReLU", "Maximum", "Minimum", "Multiply", "Normalization", "ReLU", "Rescaling",
     "Softmax", "SpatialDropout2D", "Subtract"]
)  # fmt: skip
_SYMMETRIC = PLACEWISE | {"GlobalAveragePooling2D", "GlobalMaxPooling2D", "UpSampling2D"}  # need no change


class TurnError(ValueError):
    """A model or layer cannot be turned."""


def images(images: np.ndarray) -> np.ndarray:
    """Returns images (n, height, width, channels) turned by 180 degrees, as a turned network takes them."""
    return images[:, ::-1, ::-1]


def turn(model: keras.Model) -> keras.Model:
    """Returns a network that computes from a turned image what `model` computes from the image, with copied weights.

    An explicit padding right before a convolution becomes part of it if "same" pads alike. Feature maps among the
    outputs are turned too.

    Raises:
        TurnError: a layer depends on pixel positions in an unknown way, or a size is open.
        GraphError: the model is subclassed, or the turned one does not compute the same.
    """
    model = graph.flatten(model)
    for tensor in model.inputs:
        if len(tensor.shape) != 4 or None in tensor.shape[1:]:
            raise TurnError(
                f"model {model.name!r} takes {tuple(tensor.shape)}; expected images (height, width, channels) of a "
                "fixed size. zoo.graph.flatten(model, input_shape) fixes an open size"
            )
    calls = graph.calls(model)
    source = {id(call.outputs[0]): call for call in calls}
    readers = graph.readers_of(model, calls)
    absorbed: dict[int, _Sides] = {}
    for call in calls:  # a convolution absorbs a padding that nothing else reads
        if call.kind in _CONVOLUTIONS and call.layer.padding == "valid":
            before = source.get(id(call.inputs[0]))
            if before is not None and before.kind in _PADDINGS and len(readers[id(call.inputs[0])]) == 1:
                absorbed[id(before.outputs[0])] = _sides_of(before.layer)
    copies: dict[str, Any] = {}

    def run(call: graph.Call, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        return _turn_call(call, arguments[0], absorbed, copies)

    inputs = [keras.Input(tensor.shape[1:], name=graph.node_of(tensor).operation.name) for tensor in model.inputs]
    turned = graph.model_like(model, inputs, graph.replay(model, inputs, run))
    graph.check_copy(model, turned, turned=True)
    return turned


def _turn_call(call: graph.Call, x: Any, absorbed: dict[int, _Sides], copies: dict[str, Any]) -> Any:
    """Returns the turned layer's output for its argument, a tensor or a list of tensors."""
    layer, kind = call.layer, call.kind
    if id(call.outputs[0]) in absorbed:
        return x
    if kind in _PADDINGS:
        return _pad(x, [(after, before) for before, after in _sides_of(layer)], layer.name)
    if kind in (*_CONVOLUTIONS, *_POOLS):
        return _turn_window(layer, x, absorbed.get(id(call.inputs[0]), ((0, 0), (0, 0))), copies)
    is_image = len(call.inputs[0].shape) == 4 and tuple(call.inputs[0].shape[1:3]) != (1, 1)
    only_reshapes = kind in ("Flatten", "Reshape", "Permute") and not is_image
    if only_reshapes or (kind in _SYMMETRIC and not mixes_places(layer, call.outputs[0])):
        return _copy(layer, {}, x, copies)
    raise TurnError(
        f"layer {layer.name!r} ({kind}) has no turned form. Use convolutions, pooling, padding and layers that treat "
        "all pixels alike; flatten only 1 x 1 feature maps"
    )


def mixes_places(layer: Any, output: Any) -> bool:
    """Whether a layer works along the height or width of an image."""
    axes = getattr(layer, "axis", None)
    axes = [] if axes is None else axes if isinstance(axes, (list, tuple)) else [axes]
    return len(output.shape) == 4 and any(axis % 4 in (1, 2) for axis in axes)


def _turn_window(layer: Any, x: Any, explicit: _Sides, copies: dict[str, Any]) -> Any:
    """Turns a convolution or pooling that has absorbed the padding `explicit`."""
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
            f"layer {layer.name!r} pools {height} x {width} with asymmetric padding; turned, zeros would be pooled "
            "too. Use an input size for which its padding is symmetric"
        )
    if wanted == offered:
        return _copy(layer, {"padding": "same"}, x, copies)
    padded = _pad(x, wanted, f"{layer.name}_turned_pad")
    return _copy(layer, {"padding": "valid"}, padded, copies)


def extent_of(layer: Any) -> list[int]:
    """Returns the height and width that a convolution's or pooling's window spans, including dilation."""
    if graph.kind_of(layer) in _POOLS:
        return list(layer.pool_size)
    return [(size - 1) * dilation + 1 for size, dilation in zip(layer.kernel_size, layer.dilation_rate, strict=True)]


def same_padding(length: int, extent: int, stride: int) -> tuple[int, int]:
    """Returns how many zeros TensorFlow's "same" adds before and after `length` pixels."""
    total = max((-(-length // stride) - 1) * stride + extent - length, 0)
    return total // 2, total - total // 2


def _pad(x: Any, sides: _Sides, name: str) -> Any:
    more, less = ([[max(0, sign * zeros) for zeros in pair] for pair in sides] for sign in (1, -1))
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


def _sides_of(layer: Any) -> _Sides:
    if graph.kind_of(layer) == "ZeroPadding2D":
        return layer.padding
    return [(-before, -after) for before, after in layer.cropping]
