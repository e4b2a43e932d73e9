"""Rewrites a flat Keras model so that TensorFlow Lite runs every step in int8, and finds where tensors are rounded.

The rewritten model computes the same as the original. The differences: every activation is a layer of its own; a
separable convolution is split into a depthwise and a pointwise one; drop path is gone; whatever scales and shifts
channels (Rescaling, Normalization, a BatchNormalization that follows no convolution) is a 1x1 depthwise convolution, or
has one before it.
"""

from typing import Any, NamedTuple

import keras
import numpy as np

from zoo import graph

LINEAR = ("Conv2D", "DepthwiseConv2D", "Dense")
SAME_SCALE = frozenset(  # outputs are inputs or means of them: TensorFlow Lite requires one scale on both sides
    ["AveragePooling2D", "Cropping2D", "Dropout", "Flatten", "GlobalMaxPooling2D", "MaxPooling2D", "Permute", "Reshape",
     "SpatialDropout2D", "UpSampling2D", "ZeroPadding2D"]
)  # fmt: skip
OWN_SCALE = frozenset(
    ["Add", "BatchNormalization", "Concatenate", "GlobalAveragePooling2D", "LeakyReLU", "Maximum", "Minimum",
     "Multiply", "ReLU", "Subtract", *LINEAR]
)  # fmt: skip
TAKES_RELU = ("Add", "BatchNormalization", "Multiply", "Subtract", *LINEAR)  # TensorFlow Lite fuses a following relu
FIXED_RANGE = ("sigmoid", "softmax", "tanh")  # TensorFlow Lite knows the scale of their outputs
OWN_RANGE = ("gelu", "hard_sigmoid", "hard_silu", "linear", "relu", "relu6", "silu")


class Int8Error(ValueError):
    """A model or layer cannot be trained for int8."""


class Rewritten(NamedTuple):
    """The rewritten model, and for each original layer with weights the new layers that hold them, in order."""

    model: keras.Model
    parts: dict[str, tuple[str, ...]]


def rewrite(model: keras.Model) -> Rewritten:
    """Returns the model rewritten as the module's docstring describes, with copies of its weights.

    Raises:
        Int8Error: int8 training does not support a layer; the text says what to use.
        GraphError: the model is subclassed, or the rewritten one does not compute the same.
    """
    model = graph.flatten(model)
    if len(model.inputs) != 1:
        raise Int8Error(f"model {model.name!r} has {len(model.inputs)} inputs; expected one image")
    image = keras.Input(model.inputs[0].shape[1:], name=graph.node_of(model.inputs[0]).operation.name)
    start = keras.layers.Activation("linear", name=f"{image.name}_int8")(image)
    rewriter = _Rewriter(model)
    outputs = graph.replay(model, [start], rewriter.run)
    rewritten = keras.Model(image, outputs if len(outputs) > 1 else outputs[0], name=model.name)
    graph.check_copy(model, rewritten)
    return Rewritten(rewritten, rewriter.parts)


def find_rounded_layers(model: keras.Model) -> frozenset[str]:
    """Returns the names of the layers of a rewritten model whose output gets a range of its own."""
    calls = graph.calls(model)
    readers = graph.readers_of(model, calls)
    return frozenset(call.layer.name for call in calls if _has_own_range(call.layer, readers[id(call.outputs[0])]))


def _has_own_range(layer: Any, readers: list[graph.Call | None]) -> bool:
    kind = graph.kind_of(layer)
    if kind in SAME_SCALE or kind == "Softmax" or (kind == "Activation" and _activation_of(layer) in FIXED_RANGE):
        return False
    if len(readers) == 1 and readers[0] is not None:
        reader = readers[0].kind
        if reader == "BatchNormalization" or (kind in TAKES_RELU and _is_relu(readers[0].layer)):
            return False  # both become one operator in the file
        if reader == "Concatenate":
            return False  # a concatenation and its inputs share a scale; another one would cost an operator
    return True


def _is_relu(layer: Any) -> bool:
    if graph.kind_of(layer) == "Activation":
        return _activation_of(layer) in ("relu", "relu6")
    is_relu = graph.kind_of(layer) == "ReLU" and layer.max_value in (None, 6)
    return is_relu and not (layer.negative_slope or layer.threshold)


def _activation_of(layer: Any) -> str:
    """Returns the name of a layer's activation, "linear" for a layer that has none."""
    return layer.get_config().get("activation", "linear")


class _Rewriter:
    """Replays a model's calls as those of the rewritten model."""

    def __init__(self, model: keras.Model) -> None:
        calls = graph.calls(model)
        self.parts: dict[str, tuple[str, ...]] = {}
        self._producer_of = {id(call.outputs[0]): call.layer for call in calls}
        self._readers = graph.readers_of(model, calls)
        self._copies: dict[str, Any] = {}

    def run(self, call: graph.Call, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        layer, kind, x = call.layer, call.kind, arguments[0]
        if kind == "Dropout" and layer.noise_shape is not None:
            return x  # drop path multiplies what it keeps by 1 / (1 - rate), which would widen the range of every sum
        if kind in ("Rescaling", "Normalization"):
            return self._rewrite_affine(layer, x)
        if kind == "BatchNormalization":
            return self._rewrite_normalization(layer, x, call.inputs[0])
        if kind == "Activation":
            return self._activate(layer, x, layer.name)
        if kind in (*LINEAR, "SeparableConv2D"):
            x = self._copy(layer, {"activation": "linear"}, x) if kind in LINEAR else self._split_separable(layer, x)
            return self._activate(layer, x, f"{layer.name}_activation")
        if kind in OWN_SCALE | SAME_SCALE | {"Softmax"}:
            return self._copy(layer, {}, x)
        raise Int8Error(
            f"layer {layer.name!r} ({kind}) cannot be trained for int8. Use one of {', '.join(sorted(OWN_SCALE))}, or "
            'quantize after training: zoo.deploy.tflite.convert(model, quantize="int8", calibration=images)'
        )

    def _copy(self, layer: Any, changes: dict[str, Any], x: Any) -> Any:
        """Calls a copy of the layer with some options changed; a shared layer is copied once."""
        if layer.weights:
            self.parts[layer.name] = (layer.name,)
        return graph.call_copy(layer, self._copies, changes, x)

    def _activate(self, layer: Any, x: Any, name: str) -> Any:
        """Returns the layer's activation of `x`, as a layer of its own."""
        activation, known = _activation_of(layer), (*FIXED_RANGE, *OWN_RANGE)
        if activation not in known:
            raise Int8Error(
                f"layer {layer.name!r} has the activation {activation!r}, which cannot be trained for int8. "
                f"Use one of {', '.join(sorted(known))}"
            )
        if activation == "linear" and graph.kind_of(layer) != "Activation":
            return x
        if activation == "hard_sigmoid":  # relu6(x + 3) / 6, in three steps that int8 has
            x = self._scale_channels(layer, x, np.ones(1), np.full(1, 3.0), f"{name}_shift")
            x = self._copies.setdefault(f"{name}_relu6", keras.layers.ReLU(6.0, name=f"{name}_relu6"))(x)
            return self._scale_channels(layer, x, np.full(1, 1 / 6), None, name)
        return self._copies.setdefault(name, keras.layers.Activation(activation, name=name))(x)

    def _split_separable(self, layer: Any, x: Any) -> Any:
        """Returns a depthwise and then a pointwise convolution of `x`, without the activation."""
        name = f"{layer.name}_dw"
        if name not in self._copies:
            config = layer.get_config()
            names = ("kernel_size", "depth_multiplier", "strides", "padding", "data_format", "dilation_rate")
            shared = {option: config[option] for option in names}
            depthwise = keras.layers.DepthwiseConv2D(use_bias=False, name=name, **shared)
            pointwise = keras.layers.Conv2D(config["filters"], 1, use_bias=config["use_bias"], name=layer.name)
            output = pointwise(depthwise(x))
            values = [weight.numpy() for weight in layer.weights]
            depthwise.set_weights(values[:1])
            pointwise.set_weights(values[1:])
            self._copies[name], self._copies[layer.name] = depthwise, pointwise
            self.parts[layer.name] = (depthwise.name, pointwise.name)
            return output
        return self._copies[layer.name](self._copies[name](x))

    def _rewrite_normalization(self, layer: Any, x: Any, tensor: Any) -> Any:
        """Returns the normalization of `x`, after an identity convolution if no linear layer before can absorb it."""
        producer = self._producer_of.get(id(tensor))
        follows = graph.kind_of(producer) in LINEAR and _activation_of(producer) == "linear"
        if not follows or len(self._readers[id(tensor)]) > 1:
            x = self._scale_channels(layer, x, np.ones(x.shape[-1]), None, f"{layer.name}_scale")
        return self._copy(layer, {}, x)

    def _rewrite_affine(self, layer: Any, x: Any) -> Any:
        """Returns what a Rescaling or Normalization computes, by a depthwise convolution."""
        if graph.kind_of(layer) == "Rescaling":
            scale, offset = np.asarray(layer.scale, float), np.asarray(layer.offset, float)
            scale, offset = np.broadcast_arrays(scale.reshape(-1), offset.reshape(-1))
        else:
            spread = np.maximum(np.sqrt(np.asarray(layer.variance, float)), keras.config.epsilon()).reshape(-1)
            mean = np.asarray(layer.mean, float).reshape(-1)
            scale, offset = (spread, mean) if layer.invert else (1 / spread, -mean / spread)
        return self._scale_channels(layer, x, scale, offset, layer.name)

    def _scale_channels(self, layer: Any, x: Any, scale: np.ndarray, offset: np.ndarray | None, name: str) -> Any:
        """Scales and shifts the last axis of an image, sequence or vector with a 1x1 depthwise convolution."""
        sides = tuple(x.shape[1:])
        channels = sides[-1]
        if None in sides or len(sides) > 3 or scale.size not in (1, channels):
            raise Int8Error(
                f"layer {layer.name!r} ({graph.kind_of(layer)}) scales a tensor of shape {tuple(x.shape)} by "
                f"{scale.size} numbers; expected one, or one for each channel. Put a convolution or Dense right before "
                "it"
            )
        if name not in self._copies:
            step = keras.layers.DepthwiseConv2D(1, use_bias=offset is not None, trainable=False, name=name)
            step.build((None, *[1] * (3 - len(sides)), *sides))
            kernel = np.broadcast_to(scale.reshape(-1), (channels,)).reshape(1, 1, channels, 1)
            step.set_weights([kernel] if offset is None else [kernel, np.broadcast_to(offset, (channels,))])
            self._copies[name] = step
        if len(sides) == 3:
            return self._copies[name](x)
        number = len(self._copies[name]._inbound_nodes)
        image = keras.layers.Reshape((*[1] * (3 - len(sides)), *sides), name=f"{name}_image{number}")(x)
        return keras.layers.Reshape(sides, name=f"{name}_back{number}")(self._copies[name](image))
