"""Rebuilds a Keras 3 model layer by layer under tf_keras, and back: the same names, weights and outputs.

TF-MOT 0.8.1 (quantization-aware training, pruning, clustering) refuses Keras 3 models, and nothing else trains a
convolution for int8 under TensorFlow. So a tf_keras twin of the model is trained, and its weights are copied back.
"""

import inspect
import os
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import keras

from zoo import graph
from zoo.deploy.tflite_file import quiet, require
from zoo.graph import copy_weights

__all__ = ["TWINS", "TwinError", "copy_weights", "load_tf_keras", "rebuild", "to_keras", "to_tf_keras"]

TWINS = frozenset(
    ["Activation", "Add", "Average", "AveragePooling2D", "BatchNormalization", "Concatenate", "Conv2D",
     "Conv2DTranspose", "Cropping2D", "Dense", "DepthwiseConv2D", "Dropout", "ELU", "Flatten", "GlobalAveragePooling1D",
     "GlobalAveragePooling2D", "GlobalMaxPooling2D", "LayerNormalization", "LeakyReLU", "MaxPooling2D", "Maximum",
     "Minimum", "Multiply", "Normalization", "PReLU", "Permute", "ReLU", "Rescaling", "Reshape", "SeparableConv2D",
     "Softmax", "SpatialDropout2D", "Subtract", "UpSampling2D", "ZeroPadding2D"]
)  # fmt: skip

# Activations that compute the same in both. The hard ones are defined here for tf_keras: its own hard_sigmoid is a
# different function, clip(0.2 x + 0.5), and it has no hard_silu.
ACTIVATIONS = frozenset(
    ["elu", "exponential", "gelu", "hard_sigmoid", "hard_silu", "linear", "relu", "relu6", "selu", "sigmoid", "silu",
     "softmax", "softplus", "softsign", "tanh"]
)  # fmt: skip
_HARD = "zoo>"  # prefix of the hard ones' names under tf_keras
_LEAKY = {"negative_slope": "alpha", "alpha": "negative_slope"}  # of LeakyReLU, in Keras 3 and in tf_keras
_LEFT_OUT = ("activity_regularizer", "dtype", "name", "trainable")


class TwinError(graph.GraphError):
    """The other Keras has no equivalent of a layer or of a layer's call."""


class _TwinCall(NamedTuple):
    """A call, in either Keras, of a layer that has a twin, with one tensor or list of tensors."""

    layer: Any
    argument: Any  # a symbolic tensor or a list of them
    outputs: Sequence[Any]


Make = Callable[[type, dict[str, Any]], tuple[Any, Any]]


def load_tf_keras() -> ModuleType:
    """Imports tf_keras without its messages, or raises MissingPackageError."""
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")  # TF-MOT reads it to choose tf_keras
    with quiet():
        return require("tf_keras", "tf-keras")


def load_model_optimization() -> ModuleType:
    """Imports TF-MOT, for tf_keras, without its messages, or raises MissingPackageError."""
    load_tf_keras()
    with quiet():
        return require("tensorflow_model_optimization", "tensorflow-model-optimization")


def to_tf_keras(model: keras.Model) -> Any:
    """Returns a tf_keras functional model with the layers, names, weights and `trainable` flags of `model`.

    Raises:
        TwinError: a layer has no twin (`TWINS` lists the layers that do), or does not compute in float32.
        GraphError: the model is subclassed, or the twin does not compute the same.
        MissingPackageError: tf_keras is not installed.
    """
    return rebuild(graph.flatten(model), load_tf_keras())[0]


def to_keras(twin: Any) -> keras.Model:
    """Returns a Keras 3 functional model with the layers, names, weights and `trainable` flags of a tf_keras one.

    Raises as `to_tf_keras`, and TwinError for TF-MOT's wrappers: strip them first.
    """
    return rebuild(twin, keras)[0]


def rebuild(model: Any, target: ModuleType, make: Make | None = None) -> tuple[Any, dict[str, list[Any]]]:
    """Rebuilds a flat `model` of either Keras with the layers of the module `target`, `keras` or `tf_keras`.

    Returns the functional model, and the variables of each layer that has any, by layer name and in the order of
    `layer.weights`.

    Args:
        make: makes each new layer from its class and options; returns the layer that holds the weights, and a wrapper
            around it to call. Without it, plain layers are made and the two models' outputs are compared.

    Raises:
        TwinError: a layer has no twin, or is called with anything but one tensor or list of tensors.
        GraphError: the new model does not compute the same.
    """
    inputs = [
        target.Input(tuple(tensor.shape[1:]), name=_input_name(tensor), dtype="float32") for tensor in model.inputs
    ]
    value_of = dict(zip(map(id, model.inputs), inputs, strict=True))
    made: dict[int, Any] = {}
    variables: dict[str, list[Any]] = {}
    for call in _list_calls(model):
        argument = keras.tree.map_structure(lambda tensor: value_of[id(tensor)], call.argument)
        if id(call.layer) not in made:
            layer_class, options = _translate_layer(call.layer, target)
            inner, outer = make(layer_class, options) if make else (layer_class(**options),) * 2
            made[id(call.layer)] = outer
            _build_twin(call.layer, inner, argument)
            if inner.weights:  # recorded before a wrapper replaces a weight
                variables[call.layer.name] = list(inner.weights)
        value_of[id(call.outputs[0])] = made[id(call.layer)](argument)
    ends = inputs, [value_of[id(tensor)] for tensor in model.outputs]
    twin = target.Model(*(side if len(side) > 1 else side[0] for side in ends), name=model.name)
    if make is None:
        graph.check_copy(model, twin)
    return twin, variables


def _build_twin(layer: Any, twin: Any, argument: Any) -> None:
    """Builds a layer's twin, and copies the layer's weights and `trainable` flag to it."""
    shapes = [tensor.shape for tensor in argument] if isinstance(argument, list) else argument.shape
    if not twin.built:
        twin.build(shapes)
        twin.built = True
    values = [weight.numpy() for weight in layer.weights]
    graph.put_weights({layer.name: twin}, {layer.name: values}, layer.name, "its twin")
    twin.trainable = layer.trainable


def _translate_layer(layer: Any, target: ModuleType) -> tuple[type, dict[str, Any]]:
    """Returns the class and the options of the layer's twin: all options that both know, except initializers."""
    name = type(layer).__name__
    if layer.compute_dtype != "float32":
        raise TwinError(f"layer {layer.name!r} computes in {layer.compute_dtype}; build the model in float32")
    twin = getattr(target.layers, name)
    known: set[str] = set()
    for base in twin.__mro__:
        options = inspect.signature(base.__init__).parameters
        known |= options.keys()
        if not any(option.kind is option.VAR_KEYWORD for option in options.values()):
            break  # it passes no options on to its base class
    taken = {"name": layer.name}
    for option, value in layer.get_config().items():
        option = _LEAKY.get(option, option) if name == "LeakyReLU" else option
        if option in known and option not in _LEFT_OUT and not option.endswith("_initializer"):
            taken[option] = _translate_option(layer.name, option, value, target)
    return twin, taken


def _translate_option(layer: str, option: str, value: Any, target: ModuleType) -> Any:
    if option == "activation":
        name = value if isinstance(value, str) else value.get("config", value.get("class_name"))
        name = name.removeprefix(_HARD).replace("swish", "silu")
        if name not in ACTIVATIONS:
            raise TwinError(
                f"layer {layer!r} has the activation {name!r}, which Keras 3 and tf_keras do not compute alike. Use "
                f"one of {', '.join(sorted(ACTIVATIONS))}"
            )
        if name.startswith("hard_") and target is not keras:
            return _register_hard_activation(name, target)
        return "swish" if name == "silu" and target is not keras else name
    if option.endswith(("_regularizer", "_constraint")) and value is not None:
        module = target.regularizers if option.endswith("_regularizer") else target.constraints
        return module.deserialize({"class_name": value["class_name"], "config": value["config"]})
    if option == "axis" and isinstance(value, (list, tuple)) and len(value) == 1:
        return value[0]
    if isinstance(value, list):  # tf_keras returns some of its tuples as its own kind of list
        return tuple(value)
    return value


def _register_hard_activation(name: str, tf_keras: ModuleType) -> Any:
    """Returns Keras 3's hard_sigmoid, relu6(x + 3) / 6, or hard_silu, x times that, registered under tf_keras."""
    known = tf_keras.utils.get_registered_object(f"{_HARD}{name}")
    if known is not None:
        return known

    def activation(x: Any) -> Any:
        gate = tf_keras.activations.relu(x + 3.0, max_value=6.0) * (1 / 6)
        return gate if name == "hard_sigmoid" else x * gate

    activation.__name__ = name
    return tf_keras.utils.register_keras_serializable(_HARD.rstrip(">"), name)(activation)


def _make_call(
    layer: Any, source: ModuleType, arguments: Sequence[Any], options: dict[str, Any], outputs: Sequence[Any]
) -> _TwinCall:
    """Returns the call, or raises TwinError if it cannot be repeated with a twin."""
    name = type(layer).__name__
    if name not in TWINS or type(layer) is not getattr(source.layers, name):
        raise TwinError(
            f"layer {layer.name!r} ({graph.kind_of(layer)}) has no twin. Replace it with layers that have one: "
            f"{', '.join(sorted(TWINS))}"
        )
    extra = {name: value for name, value in options.items() if value is not None and value is not False}
    if len(arguments) != 1 or extra:
        raise TwinError(
            f"layer {layer.name!r} is called with {len(arguments)} positional arguments and {extra or 'no options'}; "
            "expected one tensor or one list of tensors. Remove `training` and other options from the call"
        )
    return _TwinCall(layer, arguments[0], outputs)


def _list_calls(model: Any) -> list[_TwinCall]:
    """Returns the calls of a model of either Keras in execution order."""
    if isinstance(model, keras.Model):
        given = ((call, call.node.arguments) for call in graph.calls(model))
        return [_make_call(call.layer, keras, taken.args, taken.kwargs, call.outputs) for call, taken in given]
    tf_keras, nodes = load_tf_keras(), model._nodes_by_depth
    return [
        _make_call(node.layer, tf_keras, node.call_args, node.call_kwargs, keras.tree.flatten(node.outputs))
        for depth in sorted(nodes, reverse=True)
        for node in nodes[depth]
        if not node.is_input
    ]


def _input_name(tensor: Any) -> str:
    history = tensor._keras_history
    return (history.operation if hasattr(history, "operation") else history.layer).name
