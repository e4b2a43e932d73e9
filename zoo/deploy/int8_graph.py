"""A flat Keras model rewritten so that TensorFlow Lite runs every step in int8, and where its tensors are rounded.

The rewritten model computes what the model computes. The differences: an activation is always a layer of its own; a
separable convolution is a depthwise and a pointwise one; drop path is gone; whatever scales and shifts channels
(Rescaling, Normalization, a BatchNormalization that follows no convolution) is a 1x1 depthwise convolution, or has one
before it.
"""

from typing import Any, NamedTuple

import keras
import numpy as np

from zoo.deploy import graph

LINEAR = ("Conv2D", "DepthwiseConv2D", "Dense")
SAME_SCALE = frozenset(  # outputs are inputs, or means of them: TensorFlow Lite wants one scale on both sides
    ["AveragePooling2D", "Cropping2D", "Dropout", "Flatten", "GlobalMaxPooling2D", "MaxPooling2D", "Permute", "Reshape",
     "SpatialDropout2D", "UpSampling2D", "ZeroPadding2D"]
)  # fmt: skip
OWN_SCALE = frozenset(
    ["Add", "BatchNormalization", "Concatenate", "GlobalAveragePooling2D", "LeakyReLU", "Maximum", "Minimum",
     "Multiply", "ReLU", "Subtract", *LINEAR]
)  # fmt: skip
TAKES_RELU = ("Add", "BatchNormalization", "Multiply", "Subtract", *LINEAR)  # TensorFlow Lite fuses a following relu
FIXED_RANGE = ("sigmoid", "softmax", "tanh")  # TensorFlow Lite knows the scale of their outputs
OWN_RANGE = ("gelu", "linear", "relu", "relu6", "silu")


class Int8Error(ValueError):
    """A layer cannot be trained for int8."""


class Rewritten(NamedTuple):
    """The rewritten model, and for each layer of the original with weights the new layers that hold them, in order."""

    model: keras.Model
    parts: dict[str, tuple[str, ...]]


def rewrite(model: keras.Model) -> Rewritten:
    """Returns the model in the form that this module's text describes, with copies of its weights.

    Raises:
        Int8Error: a layer that int8 training does not cover; the text says what to use.
        GraphError: the model is subclassed, or has a model among its layers.
    """
    graph.require_flat(model)
    calls = graph.calls(model)
    readers = consumers(model, calls)
    if len(model.inputs) != 1:
        raise Int8Error(f"model {model.name!r} has {len(model.inputs)} inputs; one image was expected")
    image = keras.Input(model.inputs[0].shape[1:], name=model.inputs[0]._keras_history.operation.name)
    value_of = {id(model.inputs[0]): keras.layers.Activation("linear", name=f"{image.name}_int8")(image)}
    rewriter = _Rewriter(value_of, {id(call.outputs[0]): call.layer for call in calls}, readers)
    for call in calls:
        rewriter.add(call)
    outputs = [value_of[id(tensor)] for tensor in model.outputs]
    return Rewritten(keras.Model(image, outputs if len(outputs) > 1 else outputs[0], name=model.name), rewriter.parts)


def consumers(model: keras.Model, calls: list[graph.Call]) -> dict[int, list[Any]]:
    """Returns the layers that read each tensor, by the tensor's id; None stands for the model's output."""
    readers: dict[int, list[Any]] = {}
    for call in calls:
        for tensor in call.inputs:
            readers.setdefault(id(tensor), []).append(call.layer)
    for tensor in model.outputs:
        readers.setdefault(id(tensor), []).append(None)
    return readers


def rounded_layers(model: keras.Model) -> frozenset[str]:
    """Returns the names of the layers of a rewritten model whose output gets a range of its own."""
    calls = graph.calls(model)
    readers = consumers(model, calls)
    return frozenset(call.layer.name for call in calls if _has_own_range(call.layer, readers[id(call.outputs[0])]))


def _has_own_range(layer: Any, readers: list[Any]) -> bool:
    kind = type(layer).__name__
    if kind in SAME_SCALE or kind == "Softmax" or (kind == "Activation" and _activation(layer) in FIXED_RANGE):
        return False
    if len(readers) == 1 and readers[0] is not None:
        reader = type(readers[0]).__name__
        if reader == "BatchNormalization" or (kind in TAKES_RELU and _is_relu(readers[0])):
            return False  # one operator in the file
        if reader == "Concatenate":
            return False  # the scale of the concatenation holds for its inputs; a second one would cost an operator
    return True


def _is_relu(layer: Any) -> bool:
    if type(layer).__name__ == "Activation":
        return _activation(layer) in ("relu", "relu6")
    return (
        type(layer).__name__ == "ReLU"
        and layer.max_value in (None, 6)
        and not (layer.negative_slope or layer.threshold)
    )


def _activation(layer: Any) -> str:
    return layer.get_config().get("activation", "linear")


class _Rewriter:
    """Walks the calls of a model; `value_of` maps each tensor's id to its counterpart in the new model."""

    def __init__(self, value_of: dict[int, Any], producer_of: dict[int, Any], readers: dict[int, list[Any]]) -> None:
        self.value_of = value_of
        self.producer_of = producer_of
        self.readers = readers
        self.parts: dict[str, tuple[str, ...]] = {}
        self._copies: dict[str, Any] = {}

    def add(self, call: graph.Call) -> None:
        layer, kind = call.layer, type(call.layer).__name__
        inputs = [self.value_of[id(tensor)] for tensor in call.inputs]
        x = inputs if len(inputs) > 1 or kind in ("Add", "Concatenate", "Multiply") else inputs[0]
        if kind == "Dropout" and layer.noise_shape is not None:
            output = x  # drop path scales what it keeps by 1 / (1 - rate), which would widen the range of every sum
        elif kind in ("Rescaling", "Normalization"):
            output = self._affine(layer, x)
        elif kind == "SeparableConv2D":
            output = self._separable(layer, x)
        elif kind == "BatchNormalization":
            output = self._normalization(layer, x, call.inputs[0])
        elif kind in LINEAR:
            output = self._linear(layer, x)
        elif kind in OWN_SCALE | SAME_SCALE | {"Softmax"} or (kind == "Activation" and self._known_activation(layer)):
            output = self._copy(layer, {}, x)
        else:
            raise Int8Error(
                f"layer {layer.name!r} ({kind}) cannot be trained for int8. Use one of "
                f"{', '.join(sorted(OWN_SCALE))}, or "
                'quantize after training: zoo.deploy.tflite.convert(model, quantize="int8", calibration=images)'
            )
        self.value_of[id(call.outputs[0])] = output

    def _copy(self, layer: Any, changes: dict[str, Any], x: Any) -> Any:
        """Calls a copy of the layer with some options changed; a shared layer is copied once."""
        if layer.name not in self._copies:
            copy = type(layer).from_config({**layer.get_config(), **changes})
            output = copy(x)
            copy.set_weights([weight.numpy() for weight in layer.weights])
            copy.trainable = layer.trainable
            self._copies[layer.name] = copy
            if layer.weights:
                self.parts[layer.name] = (copy.name,)
            return output
        return self._copies[layer.name](x)

    def _linear(self, layer: Any, x: Any) -> Any:
        self._known_activation(layer)
        output = self._copy(layer, {"activation": "linear"}, x)
        return self._activated(layer, output)

    def _activated(self, layer: Any, x: Any) -> Any:
        if _activation(layer) == "linear":
            return x
        name = f"{layer.name}_activation"
        if name not in self._copies:
            self._copies[name] = keras.layers.Activation(_activation(layer), name=name)
        return self._copies[name](x)

    def _known_activation(self, layer: Any) -> bool:
        known = (*FIXED_RANGE, *OWN_RANGE)
        if _activation(layer) not in known:
            raise Int8Error(
                f"layer {layer.name!r} has the activation {_activation(layer)!r}, which cannot be trained for int8. "
                f"Use one of {', '.join(sorted(known))}"
            )
        return True

    def _separable(self, layer: Any, x: Any) -> Any:
        self._known_activation(layer)
        config = layer.get_config()
        if f"{layer.name}_dw" not in self._copies:
            shared = {name: config[name] for name in ("strides", "padding", "data_format", "dilation_rate")}
            depthwise = keras.layers.DepthwiseConv2D(
                config["kernel_size"],
                depth_multiplier=config["depth_multiplier"],
                use_bias=False,
                name=f"{layer.name}_dw",
                **shared,
            )
            pointwise = keras.layers.Conv2D(config["filters"], 1, use_bias=config["use_bias"], name=layer.name)
            output = pointwise(depthwise(x))
            values = [weight.numpy() for weight in layer.weights]
            depthwise.set_weights(values[:1])
            pointwise.set_weights(values[1:])
            self._copies[f"{layer.name}_dw"], self._copies[layer.name] = depthwise, pointwise
            self.parts[layer.name] = (depthwise.name, pointwise.name)
        else:
            output = self._copies[layer.name](self._copies[f"{layer.name}_dw"](x))
        return self._activated(layer, output)

    def _normalization(self, layer: Any, x: Any, tensor: Any) -> Any:
        producer = self.producer_of.get(id(tensor))
        follows = type(producer).__name__ in LINEAR and _activation(producer) == "linear"
        if not follows or len(self.readers[id(tensor)]) > 1:
            x = self._channel_scale(layer, x, np.ones(x.shape[-1]), None, f"{layer.name}_scale")
        return self._copy(layer, {}, x)

    def _affine(self, layer: Any, x: Any) -> Any:
        if type(layer).__name__ == "Rescaling":
            scale, offset = np.asarray(layer.scale, float), np.asarray(layer.offset, float)
        else:
            spread = np.maximum(np.sqrt(np.asarray(layer.variance, float)), keras.config.epsilon()).reshape(-1)
            scale, offset = 1 / spread, -np.asarray(layer.mean, float).reshape(-1) / spread
        return self._channel_scale(layer, x, scale, offset, layer.name)

    def _channel_scale(self, layer: Any, x: Any, scale: np.ndarray, offset: np.ndarray | None, name: str) -> Any:
        channels = x.shape[-1]
        if len(x.shape) != 4 or scale.size not in (1, channels):
            raise Int8Error(
                f"layer {layer.name!r} ({type(layer).__name__}) scales a tensor of shape {tuple(x.shape)} by "
                f"{scale.size} numbers; one, or one for each channel of an image was expected. Put a "
                "convolution or Dense right before it"
            )
        step = keras.layers.DepthwiseConv2D(1, use_bias=offset is not None, trainable=False, name=name)
        output = step(x)
        kernel = np.broadcast_to(scale.reshape(-1), (channels,)).reshape(1, 1, channels, 1)
        step.set_weights([kernel] if offset is None else [kernel, np.broadcast_to(offset.reshape(-1), (channels,))])
        return output
