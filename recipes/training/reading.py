"""How an image becomes a network's input: resizing, central crop and normalisation."""

import dataclasses
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from recipes.images import Interpolation
from recipes.training.results import Origin

# TensorFlow, and what imports it, is imported where it is used, so that --help and errors answer at once.
if TYPE_CHECKING:
    import keras

    from recipes.images.augment import Normalization

_PIXEL_SCALE = 0.1  # a first layer that multiplies its input by less than this reads pixels of 0..255


@dataclasses.dataclass(frozen=True)
class Reading:
    """How an image becomes a network's input: resize, take the middle, normalise."""

    image_size: tuple[int, int]  # height, width
    normalize: "Normalization"
    crop: float = 1.0  # the share of each side that is read, around the middle
    interpolation: Interpolation = "bilinear"  # for resizing
    by: str = ""  # what says that this is the normalisation

    @property
    def resize(self) -> tuple[int, int]:
        """Height and width to resize images to, so that the part around the middle has the network's input size."""
        height, width = (round(side / self.crop) for side in self.image_size)
        return height, width

    def take_middle(self, images: np.ndarray) -> np.ndarray:
        """Returns the middle of images (n, *resize, channels), of the network's input size."""
        height, width = self.image_size
        top, left = (images.shape[1] - height) // 2, (images.shape[2] - width) // 2
        return images[:, top : top + height, left : left + width]

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Returns the network's input, float32, for images (n, *resize, channels) of 0..255."""
        return np.asarray(self.normalize(self.take_middle(images)), np.float32)

    def describe(self) -> dict[str, Any]:
        """Returns the reading as results.json and SOURCE record it."""
        return {
            "resize": list(self.resize),
            "interpolation": self.interpolation,
            "image_size": list(self.image_size),
            "preprocess": name_normalization(self.normalize),
            "normalization": {"mean": list(self.normalize.mean), "std": list(self.normalize.std)},
        }


def find_reading(
    image_size: tuple[int, int], preprocess: str | None, origin: Origin, model: "keras.Model | bytes | None", name: str
) -> Reading:
    """Returns how a network of this height and width reads an image; see `find_normalization`."""
    normalize, by = find_normalization(preprocess, origin, model, name)
    return Reading(image_size, normalize, origin.crop, origin.interpolation, by)


def find_normalization(
    preprocess: str | None, origin: Origin, model: "keras.Model | bytes | None", name: str
) -> tuple["Normalization", str]:
    """Returns the normalisation from pixels 0..255 to the network's input, and its source; prints what was guessed.

    Args:
        preprocess: the option.
        origin: of the network.
        model: the network or its .tflite file, whose first layers or input type may show the normalisation.
        name: of the network, for messages.

    Raises:
        ValueError: the option is not the normalisation that the network was trained with.
    """
    from recipes.images.augment import PREPROCESSING, Normalization

    asked, known, by = preprocess, None, origin.place
    if origin.normalization is not None:
        mean, std = (tuple(origin.normalization[name]) for name in ("mean", "std"))
        alike = len(set(mean)) == len(set(std)) == 1  # then one value for all channels, as in PREPROCESSING
        known = Normalization(mean[:1], std[:1]) if alike else Normalization(mean, std)
    elif origin.preprocess is not None:
        known = PREPROCESSING[origin.preprocess]
    elif isinstance(model, bytes):
        preprocess = preprocess or _guess_preprocess(model, name)
    elif model is not None and reads_pixels(model):
        known, by = PREPROCESSING["pixels"], "the network's first layers, which rescale or normalise"
    wanted = None if preprocess is None else PREPROCESSING[preprocess]
    if known is not None and wanted is not None and known != wanted:
        reads = name_normalization(known) or str(known)
        raise ValueError(f"preprocess is {preprocess}, but {name} reads {reads} by {by}; leave preprocess= out")
    if known == PREPROCESSING["pixels"] and wanted is None:
        print(f"{name} reads pixels of 0..255, by {by}", file=sys.stderr)
    if known is None:
        by = "no file next to the model says; choose with --preprocess" if asked is None else "--preprocess"
    return wanted or known or PREPROCESSING["unit"], by


def _guess_preprocess(file: bytes, name: str) -> str | None:
    """Returns, and prints, the --preprocess that suits the range of a uint8 input; None for other input types."""
    from zoo.deploy import tflite_file

    graph = tflite_file.parse(file).subgraphs[0]
    source = graph.tensors[graph.inputs[0]]
    if tflite_file.type_of(source) != "uint8":
        return None
    scale, zero = 1.0, 0
    if tflite_file.is_quantized(source):
        scale, zero = float(source.quantization.scale[0]), int(source.quantization.zeroPoint[0])
    found = "pixels" if scale > 0.5 else "centered" if zero > 64 else "unit"
    print(f"{name} stores {-zero * scale:.3g} to {(255 - zero) * scale:.3g}: preprocess={found}", file=sys.stderr)
    return found


def reads_pixels(model: "keras.Model") -> bool:
    """Whether a model's first layers scale pixels of 0..255 down: by Rescaling or an adapted Normalization."""
    from zoo import graph

    for call in graph.calls(graph.flatten(model)):
        scale = np.abs(np.asarray(getattr(call.layer, "scale", 1.0), np.float32)) if call.kind == "Rescaling" else None
        if call.kind == "Normalization":
            scale = 1 / np.sqrt(np.maximum(np.asarray(call.layer.variance, np.float32), 1e-12))
        if scale is not None:
            return bool(np.mean(scale) < _PIXEL_SCALE)
        if getattr(call.layer, "weights", None):
            return False
    return False


def name_normalization(normalize: "Normalization") -> str | None:
    """Returns the value of --preprocess for this normalisation; None if there is none."""
    from recipes.images.augment import PREPROCESSING

    return next((name for name, one in PREPROCESSING.items() if one == normalize), None)
