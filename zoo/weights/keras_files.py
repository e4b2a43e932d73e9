"""Weights that Keras 3 saved, put into a network by the names of its layers.

Keras' own load_weights goes by the order of the layers: the file of a deeper network fills a shallower one without a
word, and an auxiliary head moves the numbers of all layers behind it.
"""

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np

from zoo.weights.importing import WeightsError

_HEADS = ("predictions", "aux_")  # beginnings of the names of layers that the file may have, and the network not


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
