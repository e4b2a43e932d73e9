"""A classifier as recipes.predict and recipes.evaluate use it: a model, its preprocessing and the names of its classes.

The model is a Keras file, a network of the zoo with weights, or a .tflite file. What it reads and answers is taken from
what stands beside it (results.json, source.json, class_names.json) or in it (TFLite Metadata), or from the entry of
published weights.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import zoo
from recipes import deployable
from recipes.deployable import ModelOptions
from recipes.training.results import CLASS_NAMES, Origin, Weights, find_class_names, find_origin, find_weights
from zoo.class_names import list_class_names
from zoo.manifest import Entry

# TensorFlow, and what imports it, is imported where it is used: --help and errors then answer at once.
if TYPE_CHECKING:
    import keras

    from recipes.images.augment import Normalization
    from recipes.images.files import Interpolation

_IMAGENET_CLASSES = 1000


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A model that scores the classes of images of 0..255."""

    model: "keras.Model | bytes"  # bytes of a .tflite file
    name: str
    input_shape: tuple[int, int, int]  # height, width, channels
    read_size: tuple[int, int]  # that images are resized to; their middle, as large as `input_shape`, is what it reads
    interpolation: "Interpolation"  # of the resizing
    normalize: "Normalization"
    class_names: tuple[str, ...]
    knows_names: bool  # whether the names are more than numbers
    origin: Origin
    preprocess_by: str  # where `normalize` is known from
    output: str | int | None = None  # as zoo.deploy.measure takes it
    threshold: float | None = None  # of one unit: above it the second class is meant
    threads: int = 1

    @property
    def labels(self) -> dict[str, int] | None:
        """The label of each class folder's name; None where the classes have no names."""
        if not self.knows_names:
            return None
        imagenet = deployable.number_imagenet_folders()
        names = {name: label for label, name in enumerate(self.class_names)}
        return imagenet if self.class_names == tuple(imagenet)[: len(self.class_names)] else names

    def score(self, images: np.ndarray) -> np.ndarray:
        """Returns the classes' scores (n, classes), 0 to 1, of images (n, *read_size, channels) of 0..255."""
        from zoo.deploy import compact, measure, turn

        height, width, _ = self.input_shape
        top, left = (images.shape[1] - height) // 2, (images.shape[2] - width) // 2
        pixels = np.asarray(self.normalize(images[:, top : top + height, left : left + width]), np.float32)
        if isinstance(self.model, bytes) and compact.is_turned(self.model):
            pixels = turn.images(pixels)
        outputs = measure.predict(self.model, pixels, output=self.output, threads=self.threads)
        return make_scores(outputs, self.threshold)

    def describe(self) -> dict:
        """Returns what an image goes through before the model, as results.json has it."""
        return {
            "resize": list(self.read_size),
            "interpolation": self.interpolation,
            "image_size": list(self.input_shape[:2]),
            "channels": self.input_shape[2],
            "preprocess": deployable.name_normalization(self.normalize),
            "normalization": {"mean": list(self.normalize.mean), "std": list(self.normalize.std)},
            "by": self.preprocess_by,
        }


def load(options: ModelOptions) -> Classifier:
    """Loads what the options name.

    Raises:
        ValueError, OSError: the text says which option, and what to do.
    """
    path = Path(options.model).expanduser()
    if path.suffix == ".tflite":
        return _load_tflite(options, path)
    if path.suffix in deployable.KERAS_FILES or path.is_dir():
        if options.model_preset is not None or options.weights is not None:
            raise ValueError(
                f"model={options.model} is a network with its weights; leave model_preset= and weights= out"
            )
        return _load_keras(options, path)
    weights = find_weights(options.model, options.model_preset, options.weights)
    if weights.source is None:
        raise ValueError(
            f"model={options.model} is a network without weights; give weights=, a file or published ones such as "
            "imagenet, or the .keras file of a training"
        )
    if isinstance(weights.source, Path) and weights.source.suffix == ".keras":
        return _load_keras(options, weights.source)
    return _build(options, weights)


def _load_keras(options: ModelOptions, path: Path) -> Classifier:
    from zoo import graph
    from zoo.deploy import measure

    given: Any = deployable.load_file(path)
    origin = find_origin(path.with_suffix(".keras"))
    _, height, width, channels = deployable.find_image_shape(given)
    fixed = None if height is None or width is None else (height, width)
    channels = channels or 3
    size = _choose_size(options, fixed, origin, path)
    model = graph.flatten(given, (*size, channels))
    units = model.outputs[measure.choose_keras_output(model, options.output_key)].shape
    classes = _count_classes(path, units)
    threshold = deployable.find_threshold(options, path, model)
    return _make(options, model, str(path), (*size, channels), origin, path, classes, threshold, given=given)


def _load_tflite(options: ModelOptions, path: Path) -> Classifier:
    from zoo.deploy import measure, planner, tflite_file

    if options.model_preset is not None or options.weights is not None:
        raise ValueError(f"model={options.model} is a file with its weights; leave model_preset= and weights= out")
    if not path.is_file():
        raise FileNotFoundError(f"model: there is no file {path}. Write one (python -m recipes.deploy)")
    file = tflite_file.read(path)
    shape = planner.input_shape(file)
    if len(shape) != 4 or shape[3] not in (1, 3):
        raise ValueError(f"model={path} takes {list(shape)}, and an image [1, height, width, 1 or 3] was expected")
    _, height, width, channels = shape
    origin = find_origin(path)
    size = _choose_size(options, (height, width), origin, path)
    parsed: Any = tflite_file.parse(file)
    units = tflite_file.shape_of(parsed.subgraphs[0].tensors[measure.choose_output(parsed, options.output_key)])
    classes, threshold = _count_classes(path, units), options.threshold
    if threshold is None and classes != units[-1]:
        threshold = measure.find_threshold(file, options.output_key)
    return _make(options, file, str(path), (*size, channels), origin, path, classes, threshold)


def _build(options: ModelOptions, weights: Weights) -> Classifier:
    entry, genotype = weights.entry, zoo.load(options.model)
    place = Path(weights.source) if isinstance(weights.source, Path) else None
    names = None if place is None else find_class_names(place)
    preset = genotype.presets.get(weights.preset or next(iter(genotype.presets), ""), {})
    shape: Any = preset.get("input_shape") or (None, None, 3)
    own = weights.origin.image_size or (None if None in shape[:2] else (shape[0], shape[1]))
    wanted = own if options.image_size is None else (options.image_size, options.image_size)
    if wanted is None:
        raise ValueError(f"{options.model} has images of no size of its own; give image_size=")
    size: tuple[int, int] = (wanted[0], wanted[1])
    classes = entry.classes if entry is not None else None if names is None else len(names)
    model = zoo.build(
        options.model, weights.preset, classes=classes, input_shape=(size[0], size[1], shape[2]), weights=weights.source
    )
    name = f"{options.model} ({weights.preset or 'its first preset'}), weights {weights.source}"
    count = _count_classes(options.model, model.outputs[0].shape)
    shape = (size[0], size[1], shape[2])
    return _make(options, model, name, shape, weights.origin, place, count, options.threshold, entry=entry)


def _make(
    options: ModelOptions,
    model: "keras.Model | bytes",
    name: str,
    input_shape: tuple[int, int, int],
    origin: Origin,
    place: Path | None,
    classes: int,
    threshold: float | None,
    *,
    given: "keras.Model | None" = None,
    entry: Entry | None = None,
) -> Classifier:
    names = None if place is None else find_class_names(place)
    if names is None and entry is not None:
        names = list_class_names(entry.dataset)
    if names is not None and len(names) != classes:
        raise ValueError(
            f"{name} tells {classes} classes apart, and the files beside it name {len(names)}; mend or remove "
            f"{CLASS_NAMES}"
        )
    if names is None and classes == _IMAGENET_CLASSES:
        names = tuple(deployable.number_imagenet_folders())[:classes]
    if isinstance(model, bytes):
        normalize = deployable.find_file_normalization(options.preprocess, origin, model, name)
    else:
        normalize = deployable.find_normalization(options.preprocess, origin, given, name)
    if origin.normalization is not None or origin.preprocess is not None:
        known_by = origin.place
    elif options.preprocess is not None:
        known_by = "--preprocess"
    elif given is not None and deployable.reads_pixels(given):
        known_by = "the network's first layers"
    else:
        known_by = "nothing beside the model says; --preprocess does"
    evaluation: Any = {} if entry is None else entry.preprocessing
    height, width = (round(side / evaluation.get("crop", 1)) for side in input_shape[:2])
    return Classifier(
        model, name, input_shape, (height, width), evaluation.get("interpolation", "bilinear"), normalize,
        names or tuple(f"class {label}" for label in range(classes)),
        names is not None, origin, known_by, options.output_key, threshold, options.threads,
    )  # fmt: skip


def _choose_size(options: ModelOptions, fixed: tuple[int, int] | None, origin: Origin, path: Path) -> tuple[int, int]:
    wanted = None if options.image_size is None else (options.image_size, options.image_size)
    if fixed is not None and wanted is not None and wanted != fixed:
        raise ValueError(f"image_size={wanted[0]}, but {path} takes {fixed[0]} x {fixed[1]}; leave it out")
    size = fixed or wanted or origin.image_size
    if size is None:
        raise ValueError(f"{path} takes images of any size; give image_size=")
    return size


def _count_classes(name: str | Path, units: Sequence[int | None]) -> int:
    if len(units) != 2 or units[1] is None:
        raise ValueError(
            f"{name} answers with {list(units[1:])} an image, and a row of classes was expected: it is no classifier. "
            "Choose another output with output="
        )
    return 2 if units[1] == 1 else units[1]


def make_scores(outputs: np.ndarray, threshold: float | None = None) -> np.ndarray:
    """Returns scores (n, classes) of 0 to 1 of a classifier's outputs (n, units), logits or probabilities.

    One unit becomes two classes, of which the second scores 0.5 at the threshold.
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


def rank_labels(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns the place of each image's own class among its scores (n, classes), 0 for the best.

    Of equal scores the lower class comes first, as argmax has it.
    """
    own = scores[np.arange(len(labels)), labels][:, None]
    earlier = np.arange(scores.shape[1]) < labels[:, None]
    return ((scores > own) | ((scores == own) & earlier)).sum(axis=1)


def count_confusions(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Returns how often (class, predicted class) came, whole numbers (classes, classes)."""
    places = np.asarray(labels, np.int64) * classes + np.asarray(predicted, np.int64)
    return np.bincount(places, minlength=classes * classes).reshape(classes, classes)


def measure_classes(confusions: np.ndarray) -> list[dict[str, float | int | None]]:
    """Returns n, precision and recall of each class; None where nothing was predicted as it, or it has no images."""
    right, there, told = np.diag(confusions), confusions.sum(axis=1), confusions.sum(axis=0)
    return [
        {
            "n": int(there[label]),
            "precision": float(right[label] / told[label]) if told[label] else None,
            "recall": float(right[label] / there[label]) if there[label] else None,
        }
        for label in range(len(confusions))
    ]
