"""The network that an option --model names: a Keras file, a folder of zoo.save_pretrained, or one of the zoo."""

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

# TensorFlow, and what imports it, is imported where it is used: --help and errors then answer at once.
if TYPE_CHECKING:
    import keras

KERAS_FILES = (".keras", ".h5", ".hdf5")


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
    if path.suffix == ".keras" and not zipfile.is_zipfile(path):  # which Keras calls "not found"
        raise ValueError(f"{path} is damaged or cut off (no zip file): copy it whole, or save it again")
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


def choose_size(
    image_size: int | None, height: int | None, width: int | None, origin: Origin, name: str
) -> tuple[int, int] | None:
    """Returns height and width of a model's images: its own, else the option's, else those of its training.

    Raises:
        ValueError: the option asks for another size than the model has.
    """
    wanted = None if image_size is None else (image_size, image_size)
    if height is None or width is None:
        return wanted or origin.image_size
    if wanted not in (None, (height, width)):
        raise ValueError(f"image_size is {image_size}, but {name} takes {height} x {width}; leave it out")
    return height, width


def find_output_shape(model: Any, output: str | int | None) -> tuple[int | None, ...]:
    """Returns the shape of a Keras model's output, by name or number, batch included."""
    from zoo.deploy import measure

    return tuple(model.outputs[measure.choose_keras_output(model, output)].shape)


def find_threshold(config: ModelOptions, path: Path, model: "keras.Model") -> float | None:
    """Returns the option's, or what the loss in the file says where one unit has no sigmoid."""
    from zoo.deploy import measure

    if config.threshold is not None or find_output_shape(model, config.output_key)[-1] != 1:
        return config.threshold
    for load_again in (False, True):
        with contextlib.suppress(ValueError):  # not compiled, a loss of one's own, or one that says nothing
            subject = load_file(path, compile=True) if load_again else model
            return measure.find_threshold(subject, config.output_key)
    return None
