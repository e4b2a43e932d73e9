"""The weights of keras.applications' NASNets, put into ours."""

import re
from typing import Any

import keras
import numpy as np

from zoo.weights.importing import WeightsError

_CELL = re.compile(r"(stem|cell)(\d+)(_reduce)?_(.+)")
_SIDES = ("left", "right")
_OUTSIDE = {"stem_conv": "stem_conv1", "stem_bn": "stem_bn1", "predictions": "predictions"}


def from_keras_applications(model: keras.Model, reference: keras.Model) -> None:
    """Fills `model`, a NASNet-A of `zoo.build`, from a NASNetMobile or NASNetLarge of keras.applications.

    The networks differ in one thing: the pools of keras.applications' reduction cells see zeros around the image, ours
    see nothing there (as where these weights were trained).

    Raises:
        WeightsError: the reference is another network, or of another size. `model` is as it was.
    """
    normals = [layer.name for layer in reference.layers if re.fullmatch(r"normal_conv_1_\d+", layer.name)]
    repeats = len(normals) // 3
    if not repeats or not any(layer.name == "stem_conv1" for layer in reference.layers):
        raise WeightsError(
            f"{reference.name} is no NASNet of keras.applications; expected a NASNetMobile or NASNetLarge"
        )
    theirs = {layer.name: layer for layer in reference.layers}
    values = {}
    for layer in model.layers:
        if layer.weights:
            values[layer.name] = _arrays(layer, theirs, repeats)
            shapes = [tuple(weight.shape) for weight in layer.weights]
            if [array.shape for array in values[layer.name]] != shapes:
                theirs_shapes = [array.shape for array in values[layer.name]]
                raise WeightsError(
                    f"{layer.name} has the shapes {shapes} in {model.name} and {theirs_shapes} in {reference.name}; "
                    "build both with the same size, classes and channels"
                )
    for layer in model.layers:
        if layer.weights:
            layer.set_weights(values[layer.name])


def _arrays(layer: Any, theirs: dict[str, Any], repeats: int) -> list[np.ndarray]:
    name, part = _their_name(layer.name, repeats)
    if name not in theirs:
        raise WeightsError(
            f"the keras.applications model has no layer {name}, for {layer.name}; expected a NASNet with "
            f"{repeats} normal cells between reductions, with top where ours has one"
        )
    arrays = theirs[name].get_weights()
    if part == "dw":
        return arrays[:1]
    if part == "pw":
        return arrays[1:]
    if part == "path1":  # theirs normalises the concatenation
        return [array[: layer.weights[0].shape[0]] for array in arrays]
    if part == "path2":
        return [array[-layer.weights[0].shape[0] :] for array in arrays]
    return arrays


def _their_name(name: str, repeats: int) -> tuple[str, str]:
    """Returns the name of the layer that holds our layer's weights, and which part of them."""
    if name in _OUTSIDE:
        return _OUTSIDE[name], ""
    match = _CELL.fullmatch(name)
    if match is None:
        raise WeightsError(f"our layer {name} has no counterpart in keras.applications; build without auxiliary head")
    kind, number, reducing, part = match.groups()
    place = int(number)
    if kind == "stem":
        block, cell = f"stem_{place + 1}", "reduction"
    elif reducing:
        block, cell = f"reduce_{repeats if place == repeats else 2 * repeats}", "reduction"
    else:  # our count includes the reductions before; theirs counts the first of them, and not the second
        block, cell = str(place if place <= 2 * repeats else place - 1), "normal"
    inputs = {
        "input0_conv": (f"adjust_conv_projection_{block}", ""),
        "input0_bn": (f"adjust_bn_{block}", ""),
        "input0_path1_conv": (f"adjust_conv_1_{block}", ""),
        "input0_path1_bn": (f"adjust_bn_{block}", "path1"),
        "input0_path2_conv": (f"adjust_conv_2_{block}", ""),
        "input0_path2_bn": (f"adjust_bn_{block}", "path2"),
        "input1_conv": (f"{cell}_conv_1_{block}", ""),
        "input1_bn": (f"{cell}_bn_1_{block}", ""),
    }
    if part in inputs:
        return inputs[part]
    edge = re.fullmatch(r"node(\d+)_edge(\d+)_(dw|pw|bn)(\d)", part)
    if edge is None:
        raise WeightsError(f"our layer {name} has no counterpart in keras.applications; expected a NASNet-A")
    node, side, step, index = edge.groups()
    norm = "_bn" if step == "bn" else ""
    if (cell, node) == ("reduction", "6"):  # theirs counts only the operations that have weights
        node = "5"
    return f"separable_conv_{index}{norm}_{cell}_{_SIDES[int(side)]}{int(node) - 1}_{block}", step
