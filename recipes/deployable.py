"""What the deploying recipes start from: a model, and the images that calibrate and judge its files."""

import contextlib
import dataclasses
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import zoo
from recipes.images import EMBEDDED, FolderOptions, Interpolation, Preprocess
from recipes.training import check_at_least
from recipes.training.results import (
    MODEL,
    Origin,
    Weights,
    describe_images,
    find_class_names,
    find_genotype,
    find_origin,
    find_weights,
    make_metadata,
)  # fmt: skip
from zoo import genotype_json, manifest

# TensorFlow, and what imports it, is imported where it is used: --help and errors then answer at once.
if TYPE_CHECKING:
    import keras

    from recipes.images.augment import Normalization
    from recipes.images.sources import Data
    from zoo.deploy.metadata import Metadata

KERAS_FILES = (".keras", ".h5", ".hdf5")
_FEW = 5  # images, below which an accuracy near chance says nothing
_PIXEL_SCALE = 0.1  # of a Rescaling: below it reads pixels; and 1 / 0.1 the spread of a Normalization that does


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """The options that name a model and say what it reads and answers."""

    # a .keras or .h5 file, a folder of zoo.save_pretrained or hf://user/name, a genotype file, or a name that
    # zoo.list_models() has
    model: str = "runs/train/model.keras"
    # of a name or genotype: its preset as zoo.build takes it, such as cifar10; none takes that of the weights, or the
    # first
    model_preset: str | None = dataclasses.field(default=None, metadata={"old_names": ("size",)})
    # of a name or genotype: a file, or published ones by a data set (imagenet), an origin or their name; none leaves it
    # untrained
    weights: str | None = None
    image_size: int | None = None  # pixels; none takes what the model expects, else what the images have
    # pixels to 0..1, to -1..1, by the channels' means and deviations of a data set, or as they are (0..255); none
    # takes what the model was trained with, pixels where its first layers rescale or normalise them, else unit
    preprocess: Preprocess | None = None
    output: str | None = None  # of several outputs the one that is judged, by its name or number; none takes the first
    # of one unit, or of several labels an image: above it the answer is yes; none takes 0.5 after a sigmoid
    threshold: float | None = None
    threads: int = 1  # of LiteRT

    def __post_init__(self):
        check_at_least(self, {"threads": 1, "image_size": 1})

    @property
    def output_key(self) -> str | int | None:
        """The `output` as zoo.deploy.measure takes it."""
        return int(self.output) if self.output is not None and self.output.isdecimal() else self.output


@dataclasses.dataclass(frozen=True)
class ModelAndData(ModelOptions, FolderOptions):
    """The options that name a model and images, too."""

    # as recipes.images.sources.load takes it: fashion_mnist_small, tfds:NAME or a folder of images; none takes what
    # the model was trained on, by the results.json beside it, else fashion_mnist_small
    data: str | None = None
    images: int | None = 2000  # held-out images of the test part that all files are judged on; none takes all
    calibration: int = 256  # training images that int8 ranges are measured on
    # before the conversion: brings channels that share a scale to like ranges, where --diagnose finds them unlike; the
    # float outputs stay the same
    equalize: bool = False

    def __post_init__(self):
        super().__post_init__()
        check_at_least(self, {"images": 1, "calibration": 1})


@dataclasses.dataclass(frozen=True)
class Reading:
    """How an image becomes what a network reads: resized, its middle taken, normalised."""

    image_size: tuple[int, int]  # height, width
    normalize: "Normalization"
    crop: float = 1.0  # the share of each side that is read, around the middle
    interpolation: Interpolation = "bilinear"  # of the resizing

    @property
    def resize(self) -> tuple[int, int]:
        """Height and width that images are resized to, so that their middle is as large as the network wants."""
        height, width = (round(side / self.crop) for side in self.image_size)
        return height, width

    def take_middle(self, images: np.ndarray) -> np.ndarray:
        """Returns the middle of images (n, *resize, channels), as large as the network wants."""
        height, width = self.image_size
        top, left = (images.shape[1] - height) // 2, (images.shape[2] - width) // 2
        return images[:, top : top + height, left : left + width]

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Returns what the network reads of images (n, *resize, channels) of 0..255, as float32."""
        return np.asarray(self.normalize(self.take_middle(images)), np.float32)

    def describe(self) -> dict[str, Any]:
        """Returns it as results.json and SOURCE have it."""
        return {
            "resize": list(self.resize),
            "interpolation": self.interpolation,
            "image_size": list(self.image_size),
            "preprocess": name_normalization(self.normalize),
            "normalization": {"mean": list(self.normalize.mean), "std": list(self.normalize.std)},
        }


@dataclasses.dataclass(frozen=True)
class Deployable:
    """A flat model with images of its input's shape, preprocessed; `data` has the whole parts, not preprocessed."""

    model: "keras.Model"
    calibration: np.ndarray
    images: np.ndarray
    labels: np.ndarray
    data: "Data"
    reading: Reading
    threshold: float | None  # as zoo.deploy.measure.accuracy takes it; the option's, or what the model's loss says
    genotype: str | None  # the text of its file
    license: str = ""  # of published weights

    def describe(self, config: ModelAndData) -> dict[str, Any]:
        """Returns what SOURCE holds, under the names of a training's results.json."""
        return describe(config, self.data, self.reading)

    def make_metadata(self, config: ModelAndData) -> "Metadata":
        """Returns what the .tflite files say of themselves."""
        return make_metadata(self.model.name, self.describe(config), self.genotype, self.license)


class Given(NamedTuple):
    """A network that came with its weights."""

    model: "keras.Model"
    place: Path  # a .keras file, or where it would be: what else is known stands beside it


def load_given(options: ModelOptions) -> Given | None:
    """Loads the network of a Keras file, or of a folder or repository that zoo.save_pretrained wrote.

    Returns None where `model` is a genotype file or a name of zoo.list_models().

    Raises:
        ValueError, OSError, ImportError: there is none, or it cannot be loaded; the text says what to do.
    """
    path = Path(options.model).expanduser()
    is_hub = options.model.startswith("hf://")
    is_folder = not is_hub and path.is_dir() and options.model not in zoo.list_models()
    if not (is_hub or is_folder or path.suffix in KERAS_FILES):
        return None
    if options.model_preset is not None or options.weights is not None:
        raise ValueError(f"model={options.model} is a network with its weights; leave model_preset= and weights= out")
    if is_hub or (path / "model.weights.h5").is_file():
        found = zoo.from_pretrained(options.model if is_hub else path)
        return Given(found.model, found.folder / MODEL)
    return Given(load_file(path), path.with_suffix(".keras"))


def load(config: ModelAndData, pixels: bool = False) -> Deployable:
    """Loads what the options name.

    Args:
        config: the options.
        pixels: makes the normalisation the model's first layer: what it reads are pixels of 0..255.

    Raises:
        ValueError, OSError: the text says which option, and what to do.
    """
    from zoo import graph

    given = load_given(config)
    weights = (
        find_weights(config.model, config.model_preset, config.weights)
        if given is None
        else Weights(None, None, find_origin(given.place), None)
    )
    origin, entry = weights.origin, weights.entry
    class_names = name_published_classes(entry) if given is None else find_class_names(given.place)
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
                f"{config.model} is untrained: its accuracy says nothing. Give weights=, or a .keras file",
                file=sys.stderr,
            )
        threshold, genotype = config.threshold, genotype_json.to_json(zoo.load(config.model))
    else:
        model = graph.flatten(given.model, input_shape)
        threshold, genotype = find_threshold(config, given.place, model), find_genotype(given.place, origin)
    check_classes(f"model {model.name!r}", _output_shape(model, config.output_key), source)
    normalize = find_normalization(config.preprocess, origin, given and given.model, config.model)
    reading = Reading((height, width), normalize, origin.crop, origin.interpolation)
    if pixels:
        model, reading = _read_pixels(model, reading)
    calibration = reading(source.train.first(config.calibration).head(config.calibration)[0])
    if pixels:  # the scale of the input is one then
        calibration[0, 0, 0], calibration[0, -1, -1] = 0, 255
    images, labels = held_out(config, source, reading)
    if config.equalize:
        model = _equalize(model, calibration)
    license_ = "" if entry is None else entry.license
    return Deployable(model, calibration, images, labels, source, reading, threshold, genotype, license_)


def _read_pixels(model: "keras.Model", reading: Reading) -> "tuple[keras.Model, Reading]":
    """Returns a model that normalises pixels of 0..255 by itself, in a depthwise convolution, and how it reads them."""
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
        f"equalize: {len(found.done)} of {len(found.done) + len(found.left)} layers of {model.name} that make channels"
        + (f"; not, for one, {reasons}" if reasons else ""),
        file=sys.stderr,
    )
    return found.model


def name_normalization(normalize: "Normalization") -> str | None:
    """Returns the value of --preprocess that stands for it; None where there is none."""
    from recipes.images.augment import PREPROCESSING

    return next((name for name, one in PREPROCESSING.items() if one == normalize), None)


def load_file(path: Path, compile: bool = False) -> "keras.Model":
    """Loads a functional Keras model of a .keras or .h5 file.

    Raises:
        ValueError, OSError: there is none, or Keras cannot load it; the text says what to do.
    """
    if path.is_dir():
        is_saved = (path / "saved_model.pb").is_file()
        kind = "a SavedModel, a program without layers" if is_saved else "a folder without config.json and weights"
        raise ValueError(
            f"model={path} is {kind}; a file, or a folder of zoo.save_pretrained, was expected. Give the .keras file "
            f"that it was exported from (model.save('model.keras'))"
            + (f", or a .tflite file: tflite_convert --saved_model_dir={path} --output_file=model.tflite" * is_saved)
        )
    if not path.is_file():
        raise FileNotFoundError(
            f"model: there is no file {path}. Train one (python -m recipes.train), or give a name of zoo.list_models()"
        )
    import keras

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about optimizers, which nobody needs here
            model: Any = keras.saving.load_model(path, compile=compile)
    except Exception as error:
        reason = " ".join(str(error).split()).split(". ")[0][:300]
        raise ValueError(
            f"model: Keras cannot load {path}: {reason}. A model of classes or functions of your own loads only "
            "where they are defined. Save it as a functional model of Keras' own layers, or convert it in your program "
            "(zoo.deploy.tflite.convert) and give the .tflite file"
        ) from error
    if len(getattr(model, "inputs", None) or []) != 1:
        names = ", ".join(tensor.name for tensor in getattr(model, "inputs", None) or []) or "none that is known"
        raise ValueError(
            f"model={path} has the inputs {names}; one image was expected. Give a functional model of one input: "
            "keras.Model(image, outputs)"
        )
    return model


def find_image_shape(model: Any) -> tuple[int | None, ...]:
    """Returns what a Keras model takes, (batch, height, width, channels).

    Raises:
        ValueError: it takes no images.
    """
    shape = tuple(model.inputs[0].shape)
    if len(shape) != 4:
        raise ValueError(
            f"model {model.name!r} takes {shape[1:]} and images are (height, width, channels). Put a "
            "keras.layers.Reshape in front of it, or use zoo.deploy from Python"
        )
    return shape


def _output_shape(model: Any, output: str | int | None) -> tuple[int | None, ...]:
    from zoo.deploy import measure

    return tuple(model.outputs[measure.choose_keras_output(model, output)].shape)


def check_classes(subject: str, shape: Sequence[int | None], source: "Data") -> None:
    """Raises ValueError where an output (batch, units) tells other classes apart than the data have.

    An output of another rank is no classifier's, which the report says.
    """
    told = 2 if shape[-1] == 1 else shape[-1]
    if len(shape) == 2 and told != source.classes:
        raise ValueError(
            f"{subject} tells {told} classes apart, and {source.name} has {source.classes}. Give the data that it was "
            "trained on"
        )


def find_threshold(config: ModelOptions, path: Path, model: "keras.Model") -> float | None:
    """Returns the option's, or what the loss in the file says where one unit has no sigmoid."""
    from zoo.deploy import measure

    if config.threshold is not None or _output_shape(model, config.output_key)[-1] != 1:
        return config.threshold
    for load_again in (False, True):
        with contextlib.suppress(ValueError):  # not compiled, a loss of one's own, or one that says nothing
            subject = load_file(path, compile=True) if load_again else model
            return measure.find_threshold(subject, config.output_key)
    return None


def find_normalization(
    preprocess: str | None, origin: Origin, model: "keras.Model | bytes | None", name: str
) -> "Normalization":
    """Returns what turns pixels of 0..255 into what the network reads, and says what was found.

    Args:
        preprocess: the option.
        origin: of the network.
        model: it, or its .tflite file, where its own first layers or what its input can store may say.
        name: of it.

    Raises:
        ValueError: the option asks for another than the network was trained with.
    """
    from recipes.images.augment import PREPROCESSING, Normalization

    known, where = None, origin.place
    if origin.normalization is not None:
        mean, std = (tuple(origin.normalization[name]) for name in ("mean", "std"))
        alike = len(set(mean)) == len(set(std)) == 1  # one value stands for every channel, as in PREPROCESSING
        known = Normalization(mean[:1], std[:1]) if alike else Normalization(mean, std)
    elif origin.preprocess is not None:
        known = PREPROCESSING[origin.preprocess]
    elif isinstance(model, bytes):
        preprocess = preprocess or _guess_preprocess(model, name)
    elif model is not None and reads_pixels(model):
        known, where = PREPROCESSING["pixels"], "its first layers, which rescale or normalise"
    wanted = None if preprocess is None else PREPROCESSING[preprocess]
    if known is not None and wanted is not None and known != wanted:
        reads = name_normalization(known) or str(known)
        raise ValueError(f"preprocess is {preprocess}, but {name} reads {reads} by {where}; leave preprocess= out")
    if known == PREPROCESSING["pixels"] and wanted is None:
        print(f"{name} reads pixels of 0..255, by {where}", file=sys.stderr)
    return wanted or known or PREPROCESSING["unit"]


def _guess_preprocess(file: bytes, name: str) -> str | None:
    """Returns what fits the range of a uint8 input, and says so; None for other inputs."""
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
    """Whether a model's first layers bring pixels of 0..255 to a small range: Rescaling or adapted Normalization."""
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


def warn_near_chance(accuracy: float | None, classes: int, n: int, subject: str) -> None:
    """Says on stderr where a model does hardly better than guessing: mostly its images are not what it reads."""
    from recipes.images.augment import PREPROCESSING

    if accuracy is not None and n >= _FEW and accuracy < min(0.6, 1.5 / classes):  # 0.6 of 2 classes, 0.15 of 10
        print(
            f"{subject} is right on {accuracy:.4f} of {n} images, which is near chance for {classes} classes. "
            f"Is --preprocess what it was trained with (one of {', '.join(PREPROCESSING)}), and --data its data?",
            file=sys.stderr,
        )


def describe(config: ModelAndData, source: "Data", reading: Reading) -> dict[str, Any]:
    """Returns what SOURCE holds, under the names of a training's results.json."""
    images = describe_images(str(config.data or source.name), source, None, reading.normalize)
    return {"model": config.model, **images, **reading.describe()}


def held_out(config: ModelAndData, source: "Data", reading: Reading) -> tuple[np.ndarray, np.ndarray]:
    """Returns the held-out images, preprocessed, and their labels."""
    test = source.test.first(config.images)
    images, labels = test.head(len(test))
    return reading(images), labels


def number_imagenet_folders() -> dict[str, int]:
    """Returns the label of ImageNet's class folders, which have synset ids or names; a name of two classes has none."""
    from zoo.class_names import read_imagenet_classes

    classes = read_imagenet_classes()
    names = [one.name for one in classes]
    labels = {name if names.count(name) == 1 else f"{name}_{synset}": label
              for label, (synset, name) in enumerate(classes)}  # fmt: skip
    return labels | {synset: label for label, (synset, _) in enumerate(classes)}


def name_published_classes(entry: manifest.Entry | None) -> tuple[str, ...] | None:
    """Returns the class names of published weights by their labels; None where nobody knows them."""
    from zoo.class_names import list_class_names

    if entry is not None and entry.dataset == "imagenet":
        return tuple(number_imagenet_folders())[: entry.classes]
    return None if entry is None else list_class_names(entry.dataset)


def number_folders(class_names: Sequence[str] | None) -> dict[str, int] | None:
    """Returns the label of each class folder's name for a model of these classes; None where they have no names."""
    if class_names is None:
        return None
    imagenet = number_imagenet_folders()
    is_imagenet = tuple(class_names) == tuple(imagenet)[: len(class_names)]
    return imagenet if is_imagenet else {name: label for label, name in enumerate(class_names)}


def load_data(
    config: ModelAndData,
    input_shape: Sequence[int | None] | None,
    origin: Origin,
    class_names: Sequence[str] | None,
) -> "Data":
    """Loads the images at the size that `Reading` takes for a model of (..., height, width, channels).

    An input shape of None keeps their own size and channels. The class folders of an image folder are some of the
    model's classes, where those have names.

    Raises:
        ValueError: the options ask for another size, or the data cannot be had.
    """
    from recipes.images import sources

    name = config.data or origin.data or EMBEDDED
    if config.data is None and origin.data is not None:
        print(f"data={name}, as in {origin.place}", file=sys.stderr)
    is_folder = name not in (EMBEDDED, "embedded") and not name.startswith("tfds:")
    *_, height, width, channels = input_shape or (None, None, None)
    size = choose_size(config, height, width, origin)
    return sources.load(
        name,
        size=None if size is None else (round(size[0] / origin.crop), round(size[1] / origin.crop)),
        channels=channels,
        labels=number_folders(class_names) if is_folder else None,
        interpolation=origin.interpolation,
        **config.folder_options,
    )


def choose_size(options: ModelOptions, height: int | None, width: int | None, origin: Origin) -> tuple[int, int] | None:
    """Returns height and width of a model's images: its own, else the option's, else those of its training.

    Raises:
        ValueError: the option asks for another size than the model has.
    """
    wanted = None if options.image_size is None else (options.image_size, options.image_size)
    if height is None or width is None:
        return wanted or origin.image_size
    if wanted not in (None, (height, width)):
        raise ValueError(f"image_size={wanted[0]}, but {options.model} takes {height} x {width}; leave it out")
    return height, width
