"""A classifier for recipes.predict and recipes.evaluate: a model, its preprocessing and the names of its classes.

The model is a Keras file, a network of the zoo with weights, or a .tflite file. Preprocessing and class names come from
the files next to it (results.json, source.json, class_names.json), from its TFLite Metadata, or from the entry of
published weights.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import zoo
from recipes.models import (
    Given,
    ModelOptions,
    choose_size,
    find_image_shape,
    find_output_shape,
    find_threshold,
    load_file,
    load_given,
)
from recipes.training.reading import Reading, find_reading
from recipes.training.results import CLASS_NAMES, Origin, find_class_names, find_origin, find_weights
from zoo.class_names import list_class_names, number_folders

# TensorFlow, and what imports it, is imported inside functions: --help and errors then answer at once.
if TYPE_CHECKING:
    import keras

_IMAGENET_CLASSES = 1000


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A model that scores the classes of images with pixels of 0..255."""

    model: "keras.Model | bytes"  # bytes: a .tflite file
    name: str
    channels: int
    reading: Reading
    class_names: tuple[str, ...]
    knows_names: bool  # whether the names are more than numbers
    origin: Origin
    output: str | int | None = None  # as zoo.deploy.measure takes it
    threshold: float | None = None  # of a single unit, which means the second class above it
    threads: int = 1

    @property
    def labels(self) -> dict[str, int] | None:
        """The label for each name of a class folder; None if the classes have no names."""
        return number_folders(self.class_names) if self.knows_names else None

    def score(self, images: np.ndarray) -> np.ndarray:
        """Returns scores (n, classes) from 0 to 1 for images (n, *reading.resize, channels) with pixels of 0..255."""
        from zoo.deploy import compact, measure, turn

        pixels = self.reading(images)
        if isinstance(self.model, bytes) and compact.is_turned(self.model):
            pixels = turn.images(pixels)
        outputs = measure.predict(self.model, pixels, output=self.output, threads=self.threads)
        return make_scores(outputs, self.threshold)

    def describe(self) -> dict[str, Any]:
        """Returns the preprocessing of images, with the same keys as results.json."""
        return {**self.reading.describe(), "channels": self.channels, "by": self.reading.by}


def load(options: ModelOptions) -> Classifier:
    """Loads the classifier that the options name.

    Raises:
        ValueError, OSError: an option is wrong; the text says which, and what to do.
    """
    path = Path(options.model).expanduser()
    if path.suffix == ".tflite":
        return _load_tflite(options, path)
    given = load_given(options)
    if given is not None:
        return _load_keras(options, given, options.model)
    weights = find_weights(options.model, options.model_preset, options.weights)
    if weights.source is None:
        raise ValueError(
            f"model={options.model} has no weights; give weights=, a file or published weights such as imagenet, or "
            "give a trained .keras file as the model"
        )
    place, names = weights.source, None
    if isinstance(place, Path):
        if place.suffix == ".keras":
            return _load_keras(options, Given(load_file(place), place), str(place))
        names = find_class_names(place)
    classes = None if names is None else len(names)
    if weights.entry is not None:
        classes = weights.entry.classes
        names = names or list_class_names(weights.entry.dataset, classes)
    presets = zoo.load(options.model).presets
    shape: Any = presets.get(weights.preset or next(iter(presets), ""), {}).get("input_shape") or (None, None, 3)
    shape = (*_choose_size(options, None, None, weights.origin, options.model), shape[2])
    model = zoo.build(options.model, weights.preset, classes=classes, input_shape=shape, weights=place)
    name = f"{options.model} ({weights.preset or 'its first preset'}), weights {place}"
    count = _count_classes(options.model, model.outputs[0].shape)
    return _make_classifier(options, model, name, shape, weights.origin, names, count, options.threshold)


def _load_keras(options: ModelOptions, given: Given, name: str) -> Classifier:
    from zoo import graph

    origin = find_origin(given.place.with_suffix(".keras"))
    _, height, width, channels = find_image_shape(given.model)
    shape = (*_choose_size(options, height, width, origin, name), channels or 3)
    model = graph.flatten(given.model, shape)
    classes = _count_classes(name, find_output_shape(model, options.output_key))
    threshold, names = find_threshold(options, given.place, model), find_class_names(given.place)
    return _make_classifier(options, model, name, shape, origin, names, classes, threshold, given.model)


def _load_tflite(options: ModelOptions, path: Path) -> Classifier:
    from zoo.deploy import measure, planner, tflite_file

    if options.model_preset is not None or options.weights is not None:
        raise ValueError(f"model={options.model} already has its weights; leave model_preset= and weights= out")
    if not path.is_file():
        raise FileNotFoundError(f"model: there is no file {path}. Make one (python -m recipes.deploy)")
    file = tflite_file.read(path)
    shape = planner.find_input_shape(file)
    if len(shape) != 4 or shape[3] not in (1, 3):
        raise ValueError(f"model={path} takes {list(shape)}; expected an image [1, height, width, 1 or 3]")
    origin = find_origin(path)
    size = _choose_size(options, shape[1], shape[2], origin, options.model)
    names = find_class_names(path)
    units = find_output_shape(file, options.output_key)
    classes, threshold = _count_classes(path, units), options.threshold
    if threshold is None and classes != units[-1]:
        threshold = measure.find_threshold(file, options.output_key)
    return _make_classifier(options, file, str(path), (*size, shape[3]), origin, names, classes, threshold, file)


def _make_classifier(
    options: ModelOptions,
    model: "keras.Model | bytes",
    name: str,
    input_shape: tuple[int, int, int],
    origin: Origin,
    names: tuple[str, ...] | None,
    classes: int,
    threshold: float | None,
    given: "keras.Model | bytes | None" = None,
) -> Classifier:
    """Returns a classifier; if nothing else tells its normalisation, the first layers of `given` do."""
    if names is not None and len(names) != classes:
        raise ValueError(
            f"{name} has {classes} classes, and the files next to it name {len(names)}; correct or remove {CLASS_NAMES}"
        )
    if names is None and classes == _IMAGENET_CLASSES:
        names = list_class_names("imagenet", classes)
    reading = find_reading(input_shape[:2], options.preprocess, origin, given, name)
    return Classifier(
        model, name, input_shape[2], reading, names or tuple(f"class {label}" for label in range(classes)),
        names is not None, origin, options.output_key, threshold, options.threads,
    )  # fmt: skip


def _choose_size(
    options: ModelOptions, height: int | None, width: int | None, origin: Origin, name: str
) -> tuple[int, int]:
    size = choose_size(options.image_size, height, width, origin, name)
    if size is None:
        raise ValueError(f"{name} takes images of any size; choose one with image_size=, in pixels")
    return size


def _count_classes(name: str | Path, units: Sequence[int | None]) -> int:
    if len(units) != 2 or units[1] is None:
        raise ValueError(
            f"{name} has an output of {list(units[1:])} per image; expected a row of classes: it is not a classifier. "
            "Choose another output with output="
        )
    return 2 if units[1] == 1 else units[1]


def make_scores(outputs: np.ndarray, threshold: float | None = None) -> np.ndarray:
    """Returns scores (n, classes) from 0 to 1 for a classifier's outputs (n, units), logits or probabilities.

    A single unit gives two classes; the second scores 0.5 at the threshold.
    """
    outputs = np.asarray(outputs, np.float64)
    if outputs.shape[1] > 1:
        if outputs.min() >= 0 and outputs.max() <= 1:
            return outputs
        powers = np.exp(outputs - outputs.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)
    middle = 0.5 if threshold is None else threshold
    if 0 < middle < 1:
        second = np.where(outputs <= middle, outputs / (2 * middle), 1 - (1 - outputs) / (2 * (1 - middle)))
    else:
        second = 1 / (1 + np.exp(middle - outputs))
    return np.concatenate([1 - second, second], axis=1)
