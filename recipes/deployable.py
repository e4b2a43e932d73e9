"""What recipes.deploy and recipes.quantize start from: a model, and images to calibrate and judge its files."""

import dataclasses
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

import zoo
from recipes.images import EMBEDDED, FolderOptions
from recipes.models import ModelOptions, choose_size, find_image_shape, find_output_shape, find_threshold, load_given
from recipes.training import check_at_least
from recipes.training.reading import Reading, find_reading
from recipes.training.results import (
    Origin,
    Weights,
    describe_images,
    find_class_names,
    find_genotype,
    find_origin,
    find_weights,
    make_metadata,
)  # fmt: skip
from zoo import genotype_json
from zoo.class_names import list_class_names, number_folders

# TensorFlow, and what imports it, is imported inside functions: --help and errors then answer at once.
if TYPE_CHECKING:
    import keras

    from recipes.images.sources import Data
    from zoo.deploy.metadata import Metadata


@dataclasses.dataclass(frozen=True)
class ModelAndData(ModelOptions, FolderOptions):
    """The options that name a model and images."""

    # a folder of images with a sub-folder per class, fashion_mnist_small, or tfds:NAME; none takes what the model was
    # trained on according to the results.json next to it, otherwise fashion_mnist_small
    data: str | None = None
    images: int | None = 2000  # test images on which all files are judged; none takes all
    calibration: int = 256  # training images on which quantization ranges are measured
    # before the conversion, give channels that share a scale similar ranges, if --diagnose finds them unequal; the
    # float outputs stay the same
    equalize: bool = False

    def __post_init__(self):
        super().__post_init__()
        check_at_least(self, {"images": 1, "calibration": 1})


@dataclasses.dataclass(frozen=True)
class Deployable:
    """A flat model, and preprocessed images of its input's shape."""

    model: "keras.Model"
    calibration: np.ndarray
    images: np.ndarray
    labels: np.ndarray
    data: "Data"  # all parts, not preprocessed
    reading: Reading
    threshold: float | None  # as zoo.deploy.measure.accuracy takes it, from the option or the model's loss
    genotype: str | None  # the text of the genotype file
    license: str = ""  # of published weights

    def describe(self, config: ModelAndData) -> dict[str, Any]:
        """Returns the content of source.json, with the same keys as a training's results.json."""
        return describe(config, self.data, self.reading)

    def make_metadata(self, config: ModelAndData) -> "Metadata":
        """Returns the metadata for the .tflite files."""
        return make_metadata(self.model.name, self.describe(config), self.genotype, self.license)


def load(config: ModelAndData, pixels: bool = False) -> Deployable:
    """Loads the model and the images that the options name.

    Args:
        config: the options.
        pixels: makes the normalisation the model's first layer, so that the model reads pixels of 0..255.

    Raises:
        ValueError, OSError: an option is wrong; the text says which, and what to do.
    """
    from zoo import graph

    given = load_given(config)
    weights = (
        find_weights(config.model, config.model_preset, config.weights)
        if given is None
        else Weights(None, None, find_origin(given.place), None)
    )
    origin, entry = weights.origin, weights.entry
    class_names = None if given is None else find_class_names(given.place)
    if entry is not None:
        class_names = list_class_names(entry.dataset, entry.classes)
    source = load_data(config, None if given is None else find_image_shape(given.model), origin, class_names)
    height, width = (round(side * origin.crop) for side in source.input_shape[:2])
    input_shape = height, width, source.input_shape[2]
    if given is None:
        classes = source.classes if entry is None else entry.classes
        model = zoo.build(
            config.model, weights.preset, classes=classes, input_shape=input_shape, weights=weights.source
        )
        if weights.source is None:
            print(
                f"{config.model} is untrained: its accuracy means nothing. Give --weights, or a .keras file",
                file=sys.stderr,
            )
        threshold, genotype = config.threshold, genotype_json.to_json(zoo.load(config.model))
    else:
        model = graph.flatten(given.model, input_shape)
        threshold, genotype = find_threshold(config, given.place, model), find_genotype(given.place, origin)
    if mismatch := find_mismatch(find_output_shape(model, config.output_key), source):
        raise ValueError(f"model {model.name!r} {mismatch}")
    reading = find_reading((height, width), config.preprocess, origin, given and given.model, config.model)
    if pixels:
        model, reading = _read_pixels(model, reading)
    calibration = reading(source.train.first(config.calibration).head(config.calibration)[0])
    if pixels:  # makes the scale of the input 1
        calibration[0, 0, 0], calibration[0, -1, -1] = 0, 255
    images, labels = load_held_out(config, source, reading)
    if config.equalize:
        model = _equalize(model, calibration)
    license_ = "" if entry is None else entry.license
    return Deployable(model, calibration, images, labels, source, reading, threshold, genotype, license_)


def _read_pixels(model: "keras.Model", reading: Reading) -> "tuple[keras.Model, Reading]":
    """Returns a model that first normalises pixels of 0..255 with a depthwise convolution, and its new reading."""
    import keras

    from recipes.images.augment import PIXELS
    from zoo import graph

    if reading.normalize == PIXELS:
        return model, reading
    shape = model.inputs[0].shape[1:]
    mean, std = (np.resize(np.float32(values), shape[-1]) for values in dataclasses.astuple(reading.normalize))
    layer = keras.layers.DepthwiseConv2D(1, name="normalization")
    image = keras.Input(shape)
    whole = keras.Model(image, model(layer(image)), name=model.name)
    layer.set_weights([(1 / (255 * std)).reshape(1, 1, -1, 1), -mean / std])
    return graph.flatten(whole), dataclasses.replace(reading, normalize=PIXELS)


def _equalize(model: "keras.Model", calibration: np.ndarray) -> "keras.Model":
    from zoo.deploy import equalize

    found = equalize.equalize(model, calibration)
    reasons = "; ".join(f"{name}: {reason}" for name, reason in list(found.left.items())[:2])
    print(
        f"equalized: channels of {len(found.done)} of {len(found.done) + len(found.left)} layers of {model.name}"
        + (f"; not equalized, for example: {reasons}" if reasons else ""),
        file=sys.stderr,
    )
    return found.model


def find_mismatch(shape: Sequence[int | None], source: "Data") -> str:
    """Returns how the classes of an output (batch, units) differ in number from the data's, or an empty text.

    An output of another rank is not a classifier's; the report says so.
    """
    classes = 2 if shape[-1] == 1 else shape[-1]
    if len(shape) != 2 or classes == source.classes:
        return ""
    return f"has {classes} classes, and {source.name} has {source.classes}. Give the data that it was trained on"


def load_data(
    config: ModelAndData,
    input_shape: Sequence[int | None] | None,
    origin: Origin,
    class_names: Sequence[str] | None,
) -> "Data":
    """Loads the images at the size that `Reading` takes for a model with inputs (..., height, width, channels).

    An input shape of None keeps the images' own size and channels. If the model's classes have names, the class folders
    of an image folder are matched with them by name, and may be some of them.

    Raises:
        ValueError: the options ask for another size, or the data cannot be loaded.
    """
    from recipes.images import sources

    name = config.data or origin.data or EMBEDDED
    if config.data is None and origin.data is not None:
        print(f"data={name}, as in {origin.place}", file=sys.stderr)
    is_folder = name not in (EMBEDDED, "embedded") and not name.startswith("tfds:")
    *_, height, width, channels = input_shape or (None, None, None)
    size = choose_size(config.image_size, height, width, origin, config.model)
    return sources.load(
        name,
        size=None if size is None else (round(size[0] / origin.crop), round(size[1] / origin.crop)),
        channels=channels,
        labels=number_folders(class_names) if is_folder and class_names is not None else None,
        interpolation=origin.interpolation,
        **config.folder_options,
    )


def describe(config: ModelAndData, source: "Data", reading: Reading) -> dict[str, Any]:
    """Returns the content of source.json, with the same keys as a training's results.json."""
    images = describe_images(str(config.data or source.name), source, None, reading.normalize)
    return {"model": config.model, **images, **reading.describe()}


def load_held_out(config: ModelAndData, source: "Data", reading: Reading) -> tuple[np.ndarray, np.ndarray]:
    """Returns the held-out images, preprocessed, and their labels."""
    test = source.test.first(config.images)
    images, labels = test.head(len(test))
    return reading(images), labels
