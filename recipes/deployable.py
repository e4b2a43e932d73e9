"""What the deploying recipes start from: a model, and the images that calibrate and judge its files."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

import zoo
from recipes.images import EMBEDDED

# TensorFlow, and what imports it, is imported where it is used: --help and errors then answer at once.
if TYPE_CHECKING:
    import keras

    from recipes.images import sources as data


@dataclasses.dataclass(frozen=True)
class ModelAndData:
    """The options that name a model and images."""

    model: str = "runs/train/model.keras"  # a .keras file, a genotype file, or a name of zoo.list_models()
    # of a name or genotype: its preset as zoo.build takes it, such as cifar10; none takes the first
    model_preset: str | None = dataclasses.field(default=None, metadata={"old_names": ("size",)})
    weights: Path | None = None  # of a name or genotype: a .weights.h5 or .keras file; none leaves it untrained
    # as recipes.images.sources.load takes it: fashion_mnist_small, tfds:NAME or a folder of images
    data: str = EMBEDDED
    image_size: int | None = None  # pixels; none takes what the .keras file expects, else what the images have
    # as in training: pixels to 0..1, to -1..1, or by the channels' means and deviations of a data set
    preprocess: Literal["unit", "centered", "cifar10", "imagenet"] = "unit"
    images: int | None = 2000  # held-out images of the test part that all files are judged on; none takes all
    calibration: int = 256  # training images that int8 ranges are measured on
    threads: int = 1  # of LiteRT

    def __post_init__(self):
        for name in ("images", "calibration", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; expected a whole number from 1")


@dataclasses.dataclass(frozen=True)
class Deployable:
    """A model with images of its input's shape, preprocessed; `data` has the whole parts, not preprocessed."""

    model: "keras.Model"
    calibration: np.ndarray
    images: np.ndarray
    labels: np.ndarray
    data: "data.Data"


def load(config: ModelAndData) -> Deployable:
    """Loads what the options name.

    Raises:
        ValueError, OSError: the text says which option, and what to do.
    """
    import keras

    from recipes.images import augment

    path = Path(config.model).expanduser()
    from_file = path.suffix == ".keras"
    if from_file and (config.model_preset is not None or config.weights is not None):
        raise ValueError(f"model={config.model} is a network with its weights; leave model_preset= and weights= out")
    if from_file and not path.is_file():
        raise FileNotFoundError(
            f"model: there is no file {path}. Train one (python -m recipes.train), or give a name of zoo.list_models()"
        )
    model = keras.saving.load_model(path, compile=False) if from_file else None
    source = load_data(config, None if model is None else model.input_shape)
    if model is None:
        weights = None if config.weights is None else config.weights.expanduser()
        shape = {"classes": source.classes, "input_shape": source.input_shape}
        model = zoo.build(config.model, config.model_preset, **shape, weights=weights)
        if weights is None:
            print(
                f"{config.model} is untrained: its accuracy says nothing. Give weights=, or a .keras file",
                file=sys.stderr,
            )
    if model.output_shape[-1] != source.classes:
        raise ValueError(
            f"model {model.name!r} tells {model.output_shape[-1]} classes apart, and {source.name} has "
            f"{source.classes}. Give the data that it was trained on"
        )
    normalize = augment.PREPROCESSING[config.preprocess]
    calibration, _ = source.train.first(config.calibration).head(config.calibration)
    images, labels = held_out(config, source)
    return Deployable(model, _array(normalize(calibration)), images, labels, source)


def held_out(config: ModelAndData, source: "data.Data") -> tuple[np.ndarray, np.ndarray]:
    """Returns the held-out images, preprocessed, and their labels."""
    from recipes.images import augment

    test = source.test.first(config.images)
    images, labels = test.head(len(test))
    return _array(augment.PREPROCESSING[config.preprocess](images)), labels


def load_data(config: ModelAndData, input_shape: Sequence[int | None] | None) -> "data.Data":
    """Loads the images at the size that a model takes, (..., height, width, channels); None keeps their own.

    Raises:
        ValueError: the options ask for another size, or the data cannot be had.
    """
    from recipes.images import sources as data

    if input_shape is None:
        return data.load(config.data, size=config.image_size)
    *_, height, width, channels = input_shape
    fixed = (height, width) if height is not None and width is not None else None
    if fixed is not None and config.image_size is not None and fixed != (config.image_size, config.image_size):
        raise ValueError(f"image_size={config.image_size}, but {config.model} takes {height} x {width}; leave it out")
    return data.load(config.data, size=fixed or config.image_size, channels=channels)


def _array(images: Any) -> np.ndarray:
    return np.asarray(images, np.float32)
