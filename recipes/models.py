"""The options --model and --weights: loads a Keras file or a folder of zoo.save_pretrained, and finds what it reads."""

import contextlib
import dataclasses
import warnings
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import zoo
from recipes.images import Preprocess
from recipes.training import check_at_least
from recipes.training.results import MODEL, Origin

# TensorFlow, and what imports it, is imported inside functions: --help and errors then answer at once.
if TYPE_CHECKING:
    import keras

KERAS_FILES = (".keras", ".h5", ".hdf5")


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """The options that name a model, what it reads, and how its output is judged."""

    # a .keras or .h5 file, a folder written by zoo.save_pretrained, hf://user/name, a genotype file, or a name that
    # zoo.list_models() has
    model: str = "runs/train/model.keras"
    # for a name or genotype file: its preset as zoo.build takes it, such as cifar10; none takes the weights' preset,
    # otherwise the first
    model_preset: str | None = dataclasses.field(default=None, metadata={"old_names": ("size",)})
    # for a name or genotype file: a weights file, or published weights by data set (imagenet), origin or name; none
    # leaves the network untrained
    weights: str | None = None
    image_size: int | None = None  # in pixels; none takes the model's, otherwise the images' own
    # what the model reads: unit 0..1, centered -1..1, cifar10 or imagenet (torch) normalised by the channel means and
    # deviations of that data set, pixels 0..255; none takes what the model was trained with, pixels if its first layers
    # rescale or normalise, otherwise unit
    preprocess: Preprocess | None = None
    output: str | None = None  # which of several outputs to judge, by name or number; none takes the first
    # for a single unit or several labels per image: a score above the threshold means yes; none takes 0.5 after a
    # sigmoid, otherwise what the model's loss implies
    threshold: float | None = None
    threads: int = 1  # how many LiteRT uses

    def __post_init__(self):
        check_at_least(self, {"threads": 1, "image_size": 1})

    @property
    def output_key(self) -> str | int | None:
        """The `output` as zoo.deploy.measure takes it."""
        return int(self.output) if self.output is not None and self.output.isdecimal() else self.output


class Given(NamedTuple):
    """A network given together with its weights."""

    model: "keras.Model"
    place: Path  # the .keras file, or where it would be: results.json and other files are next to it


def load_given(options: ModelOptions) -> Given | None:
    """Loads the network of a Keras file, or of a folder or repository that zoo.save_pretrained wrote.

    Returns None if `model` is a genotype file or a name from zoo.list_models().

    Raises:
        ValueError, OSError, ImportError: the network is missing or cannot be loaded; the text says what to do.
    """
    path = Path(options.model).expanduser()
    is_hub = options.model.startswith("hf://")
    is_folder = not is_hub and path.is_dir() and options.model not in zoo.list_models()
    if not (is_hub or is_folder or path.suffix in KERAS_FILES):
        return None
    if options.model_preset is not None or options.weights is not None:
        raise ValueError(f"model={options.model} already has its weights; leave model_preset= and weights= out")
    if is_hub or (path / "model.weights.h5").is_file():
        found = zoo.from_pretrained(options.model if is_hub else path)
        return Given(found.model, found.folder / MODEL)
    return Given(load_file(path), path.with_suffix(".keras"))


def load_file(path: Path, compile: bool = False) -> "keras.Model":
    """Loads a functional Keras model from a .keras or .h5 file.

    Raises:
        ValueError, OSError: the file is missing, or Keras cannot load it; the text says what to do.
    """
    if path.is_dir():
        is_saved = (path / "saved_model.pb").is_file()
        kind = "a SavedModel, a program without layers" if is_saved else "a folder without config.json and weights"
        raise ValueError(
            f"model={path} is {kind}; expected a file, or a folder written by zoo.save_pretrained. Give the .keras "
            "file that it was exported from (model.save('model.keras'))"
            + (f", or a .tflite file: tflite_convert --saved_model_dir={path} --output_file=model.tflite" * is_saved)
        )
    if not path.is_file():
        raise FileNotFoundError(
            f"model: there is no file {path}. Train one (python -m recipes.train), or give a name from "
            "zoo.list_models()"
        )
    if path.suffix == ".keras" and not zipfile.is_zipfile(path):  # Keras would say "not found"
        raise ValueError(f"{path} is damaged or cut off (not a zip file): copy it whole, or save it again")
    import keras

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about optimizers, which are not needed here
            model: Any = keras.saving.load_model(path, compile=compile)
    except Exception as error:
        reason = " ".join(str(error).split()).split(". ")[0][:300]
        raise ValueError(
            f"model: Keras cannot load {path}: {reason}. A model with classes or functions of your own loads only "
            "where these are defined. Save it as a functional model of Keras' own layers, or convert it in your "
            "program (zoo.deploy.tflite.convert) and give the .tflite file"
        ) from error
    if len(getattr(model, "inputs", None) or []) != 1:
        names = ", ".join(tensor.name for tensor in getattr(model, "inputs", None) or []) or "no known ones"
        raise ValueError(
            f"model={path} has the inputs {names}; expected one image. Give a functional model with one input: "
            "keras.Model(image, outputs)"
        )
    return model


def find_image_shape(model: Any) -> tuple[int | None, ...]:
    """Returns the input shape of a Keras model, (batch, height, width, channels).

    Raises:
        ValueError: the model does not take images, or takes them channels first.
    """
    shape = tuple(model.inputs[0].shape)
    if len(shape) != 4:
        raise ValueError(
            f"model {model.name!r} takes {shape[1:]}; expected images (height, width, channels). Put a "
            "keras.layers.Reshape in front of it, or use zoo.deploy from Python"
        )
    channels_first = any(getattr(each, "data_format", "") == "channels_first" for each in model._flatten_layers())
    if channels_first and shape[1] in (1, 3) and shape[3] not in (1, 3):
        raise ValueError(
            f"model {model.name!r} takes {shape[1:]}, channels first; expected (height, width, channels), as "
            'images are stored. Build it with data_format="channels_last"; convolution kernels stay the same'
        )
    return shape


def choose_size(
    image_size: int | None, height: int | None, width: int | None, origin: Origin, name: str
) -> tuple[int, int] | None:
    """Returns height and width of a model's images: its fixed size, the option's, or its training's, in this order.

    Raises:
        ValueError: the option differs from the model's fixed size.
    """
    wanted = None if image_size is None else (image_size, image_size)
    if height is None or width is None:
        return wanted or origin.image_size
    if wanted not in (None, (height, width)):
        raise ValueError(f"image_size is {image_size}, but {name} takes {height} x {width}; leave it out")
    return height, width


def find_output_shape(model: Any, output: str | int | None) -> tuple[int | None, ...]:
    """Returns the shape, batch included, of an output of a Keras model or a .tflite file's bytes, by name or number."""
    from zoo.deploy import measure, tflite_file

    if isinstance(model, bytes):
        parsed = tflite_file.parse(model)
        return tflite_file.shape_of(parsed.subgraphs[0].tensors[measure.choose_output(parsed, output)])
    return tuple(model.outputs[measure.choose_keras_output(model, output)].shape)


def find_threshold(config: ModelOptions, path: Path, model: "keras.Model") -> float | None:
    """Returns the option's threshold, or for a single unit the one that its sigmoid or the loss in the file implies."""
    from zoo.deploy import measure

    if config.threshold is not None or find_output_shape(model, config.output_key)[-1] != 1:
        return config.threshold
    for load_again in (False, True):
        with contextlib.suppress(ValueError):  # not compiled, a custom loss, or a loss that implies no threshold
            subject = load_file(path, compile=True) if load_again else model
            return measure.find_threshold(subject, config.output_key)
    return None
