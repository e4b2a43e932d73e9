"""A Keras 3 model re-made layer by layer under tf_keras, and back: the same names, the same weights, the same outputs.

TF-MOT 0.8.1 (quantization-aware training, pruning, clustering) refuses Keras 3 models, and nothing else trains a
convolution for int8 under TensorFlow. So the model crosses over, is trained there, and its weights come back.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import keras

from zoo import graph
from zoo.deploy.tflite_file import quiet, require
from zoo.graph import copy_weights

__all__ = ["TWINS", "Call", "TwinError", "copy_weights", "load_tf_keras", "rebuild", "to_keras", "to_tf_keras"]

_CONVOLUTION = ("strides", "padding", "data_format", "dilation_rate", "activation", "use_bias", "bias_regularizer",
                "bias_constraint")  # fmt: skip
_KERNEL = ("kernel_regularizer", "kernel_constraint")
_DEPTHWISE = ("depth_multiplier", "depthwise_regularizer", "depthwise_constraint")
_POINTWISE = ("pointwise_regularizer", "pointwise_constraint")
_POOL = ("pool_size", "strides", "padding", "data_format")
_GLOBAL_POOL = ("data_format", "keepdims")

# What defines each layer's function and training. Initializers are left out: the weights are copied.
TWINS: dict[str, tuple[str, ...]] = {
    "Activation": ("activation",),
    "Add": (),
    "Average": (),
    "AveragePooling2D": _POOL,
    "BatchNormalization": ("axis", "momentum", "epsilon", "center", "scale", "synchronized"),
    "Concatenate": ("axis",),
    "Conv2D": ("filters", "kernel_size", "groups", *_CONVOLUTION, *_KERNEL),
    "Conv2DTranspose": ("filters", "kernel_size", "output_padding", *_CONVOLUTION, *_KERNEL),
    "Cropping2D": ("cropping", "data_format"),
    "Dense": ("units", "activation", "use_bias", "bias_regularizer", "bias_constraint", *_KERNEL),
    "DepthwiseConv2D": ("kernel_size", *_DEPTHWISE, *_CONVOLUTION),
    "Dropout": ("rate", "noise_shape", "seed"),
    "ELU": ("alpha",),
    "Flatten": ("data_format",),
    "GlobalAveragePooling1D": _GLOBAL_POOL,
    "GlobalAveragePooling2D": _GLOBAL_POOL,
    "GlobalMaxPooling2D": _GLOBAL_POOL,
    "LayerNormalization": ("axis", "epsilon", "center", "scale"),
    "LeakyReLU": ("negative_slope",),
    "MaxPooling2D": _POOL,
    "Maximum": (),
    "Minimum": (),
    "Multiply": (),
    "Normalization": ("axis", "mean", "variance", "invert"),
    "PReLU": ("shared_axes",),
    "Permute": ("dims",),
    "ReLU": ("max_value", "negative_slope", "threshold"),
    "Rescaling": ("scale", "offset"),
    "Reshape": ("target_shape",),
    "SeparableConv2D": ("filters", "kernel_size", *_DEPTHWISE, *_POINTWISE, *_CONVOLUTION),
    "Softmax": ("axis",),
    "SpatialDropout2D": ("rate", "seed", "data_format"),
    "Subtract": (),
    "UpSampling2D": ("size", "data_format", "interpolation"),
    "ZeroPadding2D": ("padding", "data_format"),
}  # fmt: skip

# Activations that compute the same in both. The hard ones are made for tf_keras: its own hard_sigmoid is another
# function, clip(0.2 x + 0.5), and it has no hard_silu.
ACTIVATIONS = frozenset(
    ["elu", "exponential", "gelu", "hard_sigmoid", "hard_silu", "linear", "relu", "relu6", "selu", "sigmoid", "silu",
     "softmax", "softplus", "softsign", "tanh"]
)  # fmt: skip
_HARD = "zoo>"  # before the names of the hard ones under tf_keras
_TF_KERAS_NAMES = {"silu": "swish", "negative_slope": "alpha"}  # the second only in LeakyReLU


class TwinError(graph.GraphError):
    """The model has a layer or a call that the other Keras cannot repeat."""


class Call(NamedTuple):
    """One call of a layer of either Keras."""

    layer: Any
    argument: Any  # a symbolic tensor or a list of them
    outputs: Sequence[Any]


Make = Callable[[type, dict[str, Any]], tuple[Any, Any]]


def load_tf_keras() -> ModuleType:
    """Imports tf_keras, quietly.

    Raises:
        MissingPackageError: tf_keras is not installed.
    """
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")  # TF-MOT reads it to choose tf_keras
    with quiet():
        return require("tf_keras", "tf-keras")


def to_tf_keras(model: keras.Model) -> Any:
    """Returns a tf_keras functional model with the layers, names, weights and `trainable` marks of `model`.

    Raises:
        TwinError: a layer has no twin (`TWINS` lists those that have), or does not compute in float32.
        GraphError: the model is subclassed, or the twin does not compute the same.
        MissingPackageError: tf_keras is not installed.
    """
    model = graph.flatten(model)
    return rebuild(model, calls_of(model), keras, load_tf_keras(), _plainly)[0]


def to_keras(twin: Any) -> keras.Model:
    """Returns a Keras 3 functional model with the layers, names, weights and `trainable` marks of a tf_keras one.

    Raises:
        TwinError: as `to_tf_keras`; a model with TF-MOT's wrappers is refused too, strip them first.
    """
    return rebuild(twin, list(_tf_keras_calls(twin)), load_tf_keras(), keras, _plainly)[0]


def calls_of(model: keras.Model) -> list[Call]:
    """Returns the calls of a flat Keras 3 model, each with the one tensor or list of tensors that it takes.

    Raises:
        TwinError: a layer is called with more than that.
    """
    for call in graph.calls(model):
        _require_twin(call.layer, keras)
    return [
        Call(call.layer, _only_argument(call.layer, call.node.arguments.args, call.node.arguments.kwargs), call.outputs)
        for call in graph.calls(model)
    ]


def rebuild(
    model: Any, calls: Sequence[Call], source: ModuleType, target: ModuleType, make: Make
) -> tuple[Any, dict[str, list[Any]]]:
    """Returns the functional model of module `target` that repeats `calls` of `model`, a model of module `source`.

    Beside it, the variables of each layer that has some, by the layer's name and in the order of `layer.weights`.

    Args:
        make: given the class and the options of each new layer, returns the layer that holds the weights and the one to
            call, which may be a wrapper around it; the outputs are compared where it is none.

    Raises:
        GraphError: the new model does not compute the same.
    """
    inputs = [
        target.Input(tuple(tensor.shape[1:]), name=_input_name(tensor), dtype="float32") for tensor in model.inputs
    ]
    value_of = dict(zip(map(id, model.inputs), inputs, strict=True))
    made: dict[int, Any] = {}
    variables: dict[str, list[Any]] = {}
    for call in calls:
        argument = keras.tree.map_structure(lambda tensor: value_of[id(tensor)], call.argument)
        if id(call.layer) not in made:
            inner, outer = make(*_twin(call.layer, source, target))
            made[id(call.layer)] = outer
            _give_weights(call.layer, inner, argument)
            if inner.weights:  # noted before a wrapper puts something else in a weight's place
                variables[call.layer.name] = list(inner.weights)
        value_of[id(call.outputs[0])] = made[id(call.layer)](argument)
    outputs = [value_of[id(tensor)] for tensor in model.outputs]
    twin = target.Model(
        inputs if len(inputs) > 1 else inputs[0], outputs if len(outputs) > 1 else outputs[0], name=model.name
    )
    if make is _plainly:
        graph.check_copy(model, twin)
    return twin, variables


def _give_weights(layer: Any, twin: Any, argument: Any) -> None:
    shapes = [tensor.shape for tensor in argument] if isinstance(argument, list) else argument.shape
    if not twin.built:
        twin.build(shapes)
        twin.built = True
    graph.put_weights({layer.name: twin}, {layer.name: [one.numpy() for one in layer.weights]}, layer.name, "its twin")
    twin.trainable = layer.trainable


def _plainly(layer_class: type, options: dict[str, Any]) -> tuple[Any, Any]:
    layer = layer_class(**options)
    return layer, layer


def _twin(layer: Any, source: ModuleType, target: ModuleType) -> tuple[type, dict[str, Any]]:
    """Returns the class and the options of the layer's twin."""
    name = type(layer).__name__
    if layer.compute_dtype != "float32":
        raise TwinError(f"layer {layer.name!r} computes in {layer.compute_dtype}; build the model in float32")
    config = layer.get_config()
    fields = {field: config.get(_renamed(name, field, source)) for field in TWINS[name]}
    options = {
        _renamed(name, field, target): _translated(layer.name, field, value, target)
        for field, value in fields.items()
        if value is not None or field in ("max_value", "seed", "noise_shape")
    }
    return getattr(target.layers, name), {"name": layer.name, **options}


def _renamed(class_name: str, field: str, module: ModuleType) -> str:
    old = class_name == "LeakyReLU" and module is not keras
    return _TF_KERAS_NAMES.get(field, field) if old else field


def _translated(layer: str, field: str, value: Any, target: ModuleType) -> Any:
    if field == "activation":
        name = value if isinstance(value, str) else value.get("config", value.get("class_name"))
        name = name.removeprefix(_HARD).replace("swish", "silu")
        if name not in ACTIVATIONS:
            raise TwinError(
                f"layer {layer!r} has the activation {name!r}, which the two Keras do not compute alike. Use one of "
                f"{', '.join(sorted(ACTIVATIONS))}"
            )
        if name.startswith("hard_") and target is not keras:
            return _hard_activation(name, target)
        return name if target is keras else _TF_KERAS_NAMES.get(name, name)
    if field.endswith(("_regularizer", "_constraint")) and value is not None:
        module = target.regularizers if field.endswith("_regularizer") else target.constraints
        return module.deserialize({"class_name": value["class_name"], "config": value["config"]})
    if field == "axis" and isinstance(value, (list, tuple)) and len(value) == 1:
        return value[0]
    if isinstance(value, list):  # tf_keras gives some of its tuples out as its own kind of list
        return tuple(value)
    return value


def _hard_activation(name: str, tf_keras: ModuleType) -> Any:
    """Returns Keras 3's hard_sigmoid, relu6(x + 3) / 6, or hard_silu, x times that, as a function known to tf_keras."""
    known = tf_keras.utils.get_registered_object(f"{_HARD}{name}")
    if known is not None:
        return known

    def activation(x: Any) -> Any:
        gate = tf_keras.activations.relu(x + 3.0, max_value=6.0) * (1 / 6)
        return gate if name == "hard_sigmoid" else x * gate

    activation.__name__ = name
    return tf_keras.utils.register_keras_serializable(_HARD.rstrip(">"), name)(activation)


def _require_twin(layer: Any, source: ModuleType) -> None:
    name = type(layer).__name__
    if name not in TWINS or type(layer) is not getattr(source.layers, name):
        raise TwinError(
            f"layer {layer.name!r} ({graph.kind_of(layer)}) has no twin. Write that step with the layers that "
            f"have one: {', '.join(TWINS)}"
        )


def _only_argument(layer: Any, arguments: Sequence[Any], options: dict[str, Any]) -> Any:
    """Returns the tensor or list of tensors that a layer is called with; more than that no twin can repeat."""
    extra = {name: value for name, value in options.items() if value is not None and value is not False}
    if len(arguments) != 1 or extra:
        raise TwinError(
            f"layer {layer.name!r} is called with {len(arguments)} positional arguments and {extra or 'no options'}; "
            "expected one tensor or one list of tensors. Take `training` and the like out of the call"
        )
    return arguments[0]


def _tf_keras_calls(model: Any) -> Iterator[Call]:
    for depth in sorted(model._nodes_by_depth, reverse=True):
        for node in model._nodes_by_depth[depth]:
            if not node.is_input:
                _require_twin(node.layer, load_tf_keras())
                argument = _only_argument(node.layer, node.call_args, node.call_kwargs)
                outputs = node.outputs if isinstance(node.outputs, (list, tuple)) else [node.outputs]
                yield Call(node.layer, argument, outputs)


def _input_name(tensor: Any) -> str:
    history = tensor._keras_history
    return (history.operation if hasattr(history, "operation") else history.layer).name
