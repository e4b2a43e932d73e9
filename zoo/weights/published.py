"""Loads published weights into a network, also one with other classes or image channels; makes their preprocessing."""

import io
import os
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np

from zoo import manifest, registry
from zoo.genotype import Genotype
from zoo.manifest import Entry
from zoo.weights.download import fetch
from zoo.weights.importing import WeightsError, from_keras_applications, from_tensorflow, from_torch, list_some
from zoo.weights.tensor_files import read_tensors

# File name ending -> format
FOREIGN = {
    ".safetensors": "safetensors", ".pth": "pth", ".pth.zip": "pth.zip", ".pt": "pth", ".tar.gz": "tar.gz",
    ".ckpt": "ckpt", ".index": "ckpt",
}  # fmt: skip
_HEADS = ("predictions", "aux_")  # prefixes of layers that a file may have and the network may lack


class WeightsWarning(UserWarning):
    """Some layers could not take the published weights unchanged; the text names them."""


def load_published(network: keras.Model, entry: Entry, original: Callable[[], keras.Model]) -> None:
    """Loads the weights of `entry` into `network`, downloading them unless they are in the cache.

    Args:
        network: the user's; it may have other classes, image channels or outputs than the trained network.
        entry: from `zoo.manifest.find`.
        original: builds the trained network; called only if `network` differs from it.

    Raises:
        WeightsError: the file did not arrive, is damaged, or is of another network. `network` is unchanged.

    Warns:
        WeightsWarning: some layers keep their initial weights or take adapted ones.
    """
    path = fetch(entry)
    if path.suffix == ".h5":
        fill, given = from_keras_applications, _load_keras_nasnet(entry, path)
    else:
        fill, given = read_foreign(path)
    try:
        fill(network, given)
    except WeightsError:
        trained = original()
        fill(trained, given)
        for change in transfer(trained, network):
            warnings.warn(f"{entry.name} in {network.name}: {change}", WeightsWarning, stacklevel=3)


def load_file(network: keras.Model, path: str | os.PathLike) -> None:
    """Fills a network from `zoo.build`, in place, from a file of weights of the same network.

    The file may be a .weights.h5 or .keras file of Keras 3; a .safetensors or .pth file (also in a .pth.zip) of
    quark0/darts, NNI, pytorchcv, timm, torchvision or MCUNet; or a checkpoint of TF-slim or tensorflow/tpu, also in a
    .tar.gz.

    Raises:
        FileNotFoundError: there is no such file.
        WeightsError: the file has another format, is damaged, or is of another network. `network` is unchanged.
    """
    path = Path(path)
    if not path.exists() and not path.with_name(f"{path.name}.index").exists():
        raise FileNotFoundError(f"weights: there is no file {path}; expected None or the path of a file of weights")
    if not path.name.endswith((".h5", ".keras")):
        fill, tensors = read_foreign(path)
        fill(network, tensors)
        return
    # Keras' own load_weights goes by the order of the layers: it silently fills a shallower network from a deeper one's
    # file, and an auxiliary head shifts the numbers of all layers after it.
    if not path.name.endswith((".weights.h5", ".keras")):
        raise WeightsError(f"weights: {path} is neither a .weights.h5 nor a .keras file, which is what Keras 3 saves")
    try:
        given = _read_keras(path)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise WeightsError(f"weights: {path} cannot be read: {error}. Save it again, or get another copy") from error
    layers: dict[str, Any] = {layer.name: layer for layer in network.layers if layer.weights}
    shapes = {name: [tuple(weight.shape) for weight in layer.weights] for name, layer in layers.items()}
    missing = [name for name in layers if name not in given]
    left = [name for name in given if name not in layers and not name.startswith(_HEADS)]
    wrong = [
        f"{name} (there {[array.shape for array in given[name]]}, here {shapes[name]})"
        for name in layers
        if name in given and [array.shape for array in given[name]] != shapes[name]
    ]
    for problem, names in (("it lacks", missing), ("it also has", left), ("it has other shapes of", wrong)):
        if names:
            raise WeightsError(
                f"weights: {path} does not fit {network.name}: {problem} {list_some(names)}. The file must be of the "
                "same network, with the same classes and input channels"
            )
    for name, layer in layers.items():
        layer.set_weights(given[name])


def _read_keras(path: Path) -> dict[str, list[np.ndarray]]:
    """Returns the arrays of each layer that has any, in the layer's own order."""
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


def read_foreign(path: Path) -> tuple[Callable[[keras.Model, Any], Any], dict[str, np.ndarray]]:
    """Returns a function that fills a model, and its tensors, from a file that Keras did not write."""
    suffix = next((suffix for suffix in FOREIGN if path.name.endswith(suffix)), ".ckpt")
    fill = from_torch if suffix in (".pth", ".pth.zip", ".pt", ".safetensors") else from_tensorflow
    return fill, read_tensors(path, FOREIGN[suffix])


def _load_keras_nasnet(entry: Entry, path: Path) -> keras.Model:
    """Returns the network of keras.applications with the file's weights, which are in the order of its layers."""
    make = {"mobile": keras.applications.NASNetMobile, "large": keras.applications.NASNetLarge}[entry.preset]
    network = make(weights=None, include_top=entry.include_top, classes=entry.classes)
    try:
        network.load_weights(path)
    except (OSError, ValueError, KeyError) as error:
        raise WeightsError(f"{path} does not fit {network.name}: {error}. Delete it and try again") from error
    return network


def transfer(source: keras.Model, target: keras.Model) -> list[str]:
    """Copies weights by layer name, and returns sentences on what could not be copied unchanged.

    * A classifier with other classes, and an auxiliary head that the source lacks, stay as they are.
    * A convolution that reads images with another number of channels takes the result of `adapt_kernel`.

    Raises:
        WeightsError: another layer differs. `target` is unchanged.
    """
    given = {layer.name: layer.get_weights() for layer in source.layers if layer.weights}
    channels = [model.inputs[0].shape[-1] for model in (source, target)]
    values: dict[str, list[np.ndarray]] = {}
    fresh, adapted, wrong = [], [], []
    for layer in target.layers:
        if not layer.weights:
            continue
        arrays, shapes = given.get(layer.name), [tuple(weight.shape) for weight in layer.weights]
        if arrays is not None and [array.shape for array in arrays] == shapes:
            values[layer.name] = arrays
        elif layer.name == "predictions" or layer.name.startswith("aux_"):
            fresh.append(layer.name)
        elif arrays is not None and _reads_image(arrays[0].shape, shapes[0], channels):
            values[layer.name] = [adapt_kernel(arrays[0], channels[1]), *arrays[1:]]
            adapted.append(f"{layer.name} (from {channels[0]} channels to {channels[1]})")
        else:
            wrong.append(layer.name)
    if wrong:
        raise WeightsError(
            f"{target.name} is another network than {source.name}, whose weights it should take: it differs in "
            f"{list_some(wrong)}"
        )
    for name, arrays in values.items():
        target.get_layer(name).set_weights(arrays)
    changes = []
    if fresh:
        changes.append(f"left fresh, to be trained: {', '.join(fresh)}")
    if adapted:
        changes.append(f"first kernel adapted to the image: {', '.join(adapted)}")
    return changes


def adapt_kernel(kernel: np.ndarray, channels: int) -> np.ndarray:
    """Returns a kernel (height, width, in, out) for another number of image channels.

    One channel takes the sum, which computes the same as a grey image repeated in each channel. Other numbers take the
    channels in turn, scaled by old number / new number.
    """
    given = kernel.shape[2]
    if channels == 1:
        return kernel.sum(axis=2, keepdims=True)
    return kernel[:, :, [channel % given for channel in range(channels)]] * (given / channels)


def _reads_image(given: tuple[int, ...], wanted: tuple[int, ...], channels: list[int]) -> bool:
    """Returns whether two kernels differ in the images' channels only."""
    if len(given) != 4 or len(wanted) != 4 or [given[2], wanted[2]] != channels:
        return False
    return (*given[:2], given[3]) == (*wanted[:2], wanted[3])


def preprocess(model: str | os.PathLike | Genotype, weights: str | None = None, *, channels: int = 3) -> Any:
    """Returns the Keras layer that turns images with values from 0 to 255 into the input that published weights expect.

    The layer is not part of the model that `zoo.build` returns: put it into the input pipeline, or before the model.
    Images must have the model's size; `zoo.manifest.find(...).preprocessing` says how the original evaluation resized
    them.

    Args:
        model: as in `zoo.build`.
        weights: as in `zoo.build`, except paths; None for the model's preferred weights.
        channels: of the images. If not three, each takes the mean of the three channels' values.

    Raises:
        NoWeightsError: no such weights were published.
    """
    name = (model if isinstance(model, Genotype) else registry.load(model)).name
    known = manifest.of_model(name)
    entry = known[0] if weights is None and known else manifest.find(name, weights or "imagenet")
    mean, deviation = entry.preprocessing["mean"], entry.preprocessing["std"]
    if channels != len(mean):
        mean, deviation = [[sum(values) / len(values)] * channels for values in (mean, deviation)]
    return make_preprocessing(mean, deviation)


def make_preprocessing(mean: Sequence[float], deviation: Sequence[float]) -> keras.layers.Layer:
    """Returns the layer that turns values from 0 to 255 into (value / 255 - mean) / deviation, by channel."""
    scale = [1 / (255 * value) for value in deviation]
    offset = [-center / value for center, value in zip(mean, deviation, strict=True)]
    return keras.layers.Rescaling(scale, offset, name="preprocess")
