"""Turns a functional model into one flat graph of standard layers in float32, the form that deployment tools know.

A flat model has no nested model, no layer that only augments in training, and no `keras.ops` operation that a standard
layer can replace.
"""

import logging
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import keras

from zoo.graph import operators
from zoo.graph.calls import Call, GraphError, calls, kind_of, model_like, node_of, replay, require_functional
from zoo.graph.copies import TOLERANCE, check_copy, copy_state

HALF_TOLERANCE = 0.1  # in place of TOLERANCE if the original computes in half precision

# Layers that return their input in inference. Dropout is not among them: every tool knows it.
_ONLY_IN_TRAINING = frozenset(
    ["ActivityRegularization", "AlphaDropout", "AugMix", "CutMix", "GaussianDropout", "GaussianNoise", "Identity",
     "MixUp", "RandAugment", "RandomBrightness", "RandomColorDegeneration", "RandomColorJitter", "RandomContrast",
     "RandomElasticTransform", "RandomErasing", "RandomFlip", "RandomGaussianBlur", "RandomGrayscale", "RandomHue",
     "RandomInvert", "RandomPerspective", "RandomPosterization", "RandomRotation", "RandomSaturation",
     "RandomSharpness", "RandomShear", "RandomTranslation", "RandomZoom"]
)  # fmt: skip
_LOG = logging.getLogger(__name__)
_WARNED: weakref.WeakSet = weakref.WeakSet()  # models whose augmentation was reported


class Flat(NamedTuple):
    """A flat model, and the original layer of each of its layers with weights, by name."""

    model: keras.Model
    origins: dict[str, Any]


def flatten(model: keras.Model, input_shape: Sequence[int] | None = None) -> keras.Model:
    """Returns a flat model with the same outputs; the model itself if it is flat already.

    Layers are shared, not copied, except those that must change: they compute in half precision, or their name is
    used twice. Layers that only augment are left out and reported on stderr.

    Args:
        input_shape: (height, width, channels), to fix the sides that the model's only input leaves open.

    Raises:
        GraphError: the model or a nested one is subclassed and has no graph, or `input_shape` does not fit.
    """
    return inline(model, input_shape).model


def inline(model: keras.Model, input_shape: Sequence[int] | None = None) -> Flat:
    """Does the same as `flatten`, and also returns where the weights came from."""
    require_functional(model)
    shapes = [tuple(tensor.shape[1:]) for tensor in model.inputs]
    if input_shape is not None:
        shapes = [_fix_shape(model, input_shape)]
    dtypes = [_input_dtype_of(tensor) for tensor in model.inputs]
    same = shapes == [tuple(tensor.shape[1:]) for tensor in model.inputs]
    same = same and dtypes == [tensor.dtype for tensor in model.inputs]
    if same and all(_is_flat(call) for call in calls(model)):
        return Flat(model, {layer.name: layer for layer in model.layers if layer.weights})
    inputs = model.inputs
    if not same:
        inputs = [
            keras.Input(shape, batch_size=tensor.shape[0], name=node_of(tensor).operation.name, dtype=dtype)
            for shape, dtype, tensor in zip(shapes, dtypes, model.inputs, strict=True)
        ]
    inliner = _Inliner()
    flat = model_like(model, inputs, replay(model, inputs, inliner.run))
    if inliner.dropped and model not in _WARNED:
        _WARNED.add(model)
        _LOG.warning("%s: left out layers that only augment in training: %s", model.name, ", ".join(inliner.dropped))
    if inliner.changed:
        check_copy(model, flat, tolerance=HALF_TOLERANCE if inliner.was_half else TOLERANCE)
    return Flat(flat, {layer.name: inliner.origins.get(layer.name, layer) for layer in flat.layers if layer.weights})


class _Inliner:
    """Replays a model and the models nested in it as one graph."""

    def __init__(self) -> None:
        self.dropped: list[str] = []
        self.changed = False
        self.was_half = False
        self.origins: dict[str, Any] = {}
        self._owners: dict[str, Any] = {}  # name -> the layer, or the call of an operation
        self._copies: dict[int, Any] = {}

    def run(self, call: Call, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        layer = call.layer
        if isinstance(layer, keras.Model):
            require_functional(layer)
            given = [
                tensor for tensor in keras.tree.flatten((arguments, options)) if isinstance(tensor, keras.KerasTensor)
            ]
            return replay(layer, given, self.run)
        if call.kind in _ONLY_IN_TRAINING:
            self.changed = True
            if layer.name not in self.dropped and call.kind != "Identity":
                self.dropped.append(layer.name)
            return arguments[0]
        if not isinstance(layer, keras.Layer):
            step = operators.find_step(layer, arguments, options, self._free_name(layer.name, call))
            self.changed = self.changed or step is not None
            return layer(*arguments, **options) if step is None else step()
        return self._call_layer_or_copy(layer, arguments, options)

    def _call_layer_or_copy(self, layer: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if id(layer) in self._copies:
            return self._copies[id(layer)](*arguments, **options)
        name = self._free_name(layer.name, layer)
        if name == layer.name and not _is_half(layer):
            return layer(*arguments, **options)
        config = {**_in_float32(layer.get_config()), "name": name}
        try:
            copy = type(layer).from_config(config)
        except (TypeError, ValueError) as error:
            raise GraphError(
                f"layer {layer.name!r} ({kind_of(layer)}) cannot be made again from its get_config(): {error}. Write a "
                "get_config that returns all arguments of __init__, or build the model in float32"
            ) from error
        output = copy(*arguments, **options)
        copy_state(layer, copy)
        copy.trainable = layer.trainable
        self._copies[id(layer)] = copy
        self.origins[name] = layer
        self.changed, self.was_half = True, self.was_half or _is_half(layer)
        return output

    def _free_name(self, name: str, owner: Any) -> str:
        """Returns the name, or a variant of it if another owner has it."""
        free, number = name, 1
        while self._owners.setdefault(free, owner) is not owner:
            free, number = f"{name}_inner{number}", number + 1
        return free


def _is_flat(call: Call) -> bool:
    layer = call.layer
    if isinstance(layer, keras.Layer):
        return not isinstance(layer, keras.Model) and call.kind not in _ONLY_IN_TRAINING and not _is_half(layer)
    return operators.find_step(layer, *call.replay({}), layer.name) is None


def _input_dtype_of(tensor: Any) -> str:
    """Returns the type of a flat model's input; float32 also for images of integers, which it holds exactly."""
    is_image = len(tensor.shape) == 4 and "int" in tensor.dtype
    return "float32" if is_image or tensor.dtype in ("float16", "bfloat16") else tensor.dtype


def _is_half(layer: Any) -> bool:
    return layer.compute_dtype in ("float16", "bfloat16") or layer.variable_dtype in ("float16", "bfloat16")


def _in_float32(config: Any) -> Any:
    """Returns a layer's config with float32 as its policy and that of nested layers."""
    if isinstance(config, Mapping):
        return {
            key: "float32" if key == "dtype" and value is not None else _in_float32(value)
            for key, value in config.items()
        }
    return [_in_float32(value) for value in config] if isinstance(config, list) else config


def _fix_shape(model: keras.Model, input_shape: Sequence[int]) -> tuple[int, ...]:
    declared = tuple(model.inputs[0].shape[1:])
    agrees = len(model.inputs) == 1 and len(declared) == len(input_shape)
    if not agrees or any(ours not in (None, given) for ours, given in zip(declared, input_shape, strict=True)):
        raise GraphError(f"model {model.name!r} takes {[tuple(one.shape) for one in model.inputs]}, not {input_shape}")
    return tuple(map(int, input_shape))
