"""Weights that Keras 3 saved or keras.applications has, put into a network by the names of its layers.

Keras' own load_weights goes by the order of the layers: the file of a deeper network fills a shallower one without a
word, and an auxiliary head moves the numbers of all layers behind it.
"""

import io
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np

from zoo.weights.importing import WeightsError

_HEADS = ("predictions", "aux_")  # beginnings of the names of layers that the file may have, and the network not
_CELL = re.compile(r"(stem|cell)(\d+)(_reduce)?_(.+)")
_SIDES = ("left", "right")
_OUTSIDE = {"stem_conv": "stem_conv1", "stem_bn": "stem_bn1", "predictions": "predictions"}


def load_file(network: keras.Model, path: str | os.PathLike) -> None:
    """Fills a network of `zoo.build`, in place, from a .weights.h5 or .keras file of the same network.

    Classifiers that the network lacks may be in the file.

    Raises:
        FileNotFoundError: there is no such file.
        WeightsError: it is no such file, is damaged, or of another network. `network` is as it was.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"weights: there is no file {path}; expected None or the path of a .weights.h5 or .keras file"
        )
    if not path.name.endswith((".weights.h5", ".keras")):
        raise WeightsError(f"weights: {path} is neither a .weights.h5 nor a .keras file, which is what Keras 3 saves")
    try:
        given = _arrays(path)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise WeightsError(f"weights: {path} cannot be read: {error}. Save it again, or fetch another copy") from error
    layers: dict[str, Any] = {layer.name: layer for layer in network.layers if layer.weights}
    shapes = {name: [tuple(weight.shape) for weight in layer.weights] for name, layer in layers.items()}
    missing = [name for name in layers if name not in given]
    left = [name for name in given if name not in layers and not name.startswith(_HEADS)]
    wrong = [
        f"{name} (there {[array.shape for array in given[name]]}, here {shapes[name]})"
        for name in layers
        if name in given and [array.shape for array in given[name]] != shapes[name]
    ]
    for problem, names in (("it lacks", missing), ("it has more", left), ("it has another shape of", wrong)):
        if names:
            shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more layers" if len(names) > 4 else "")
            raise WeightsError(
                f"weights: {path} does not fit {network.name}: {problem} {shown}. The file must be of the same "
                "network, with the same classes and input channels"
            )
    for name, layer in layers.items():
        layer.set_weights(given[name])


def _arrays(path: Path) -> dict[str, list[np.ndarray]]:
    """Returns the arrays of each layer that has some, in the order in which the layer keeps them."""
    source: Any = path
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            source = io.BytesIO(archive.read("model.weights.h5"))
    with h5py.File(source, "r") as file:
        stores = [group["vars"] for group in file["layers"].values() if "vars" in group]
        return {
            store.attrs["name"]: [np.asarray(store[str(number)]) for number in range(len(store))]
            for store in stores
            if len(store)
        }


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
            values[layer.name] = _arrays_of(layer, theirs, repeats)
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


def _arrays_of(layer: Any, theirs: dict[str, Any], repeats: int) -> list[np.ndarray]:
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
