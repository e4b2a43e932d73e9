"""Trains a network of the zoo on your own images, one sub-folder a class: first a new head, then all of it.

    python -m recipes.finetune --data=path/to/flowers --weights=runs/train/model.keras --model=runs/genotype.json

Give --model and --model_preset as the weights were trained. Writes model.keras, class_names.json (a label is the place
in it), results.json and the history of both phases into the folder. Killed and started again with the same command, it
resumes after the last whole epoch. The test part of the images is looked at once, at the end.
"""

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any, Literal, NamedTuple

import keras

import zoo
from recipes import _main
from recipes.deployable import PREPROCESSING
from recipes.images import augment
from recipes.images import sources as data
from recipes.training import progress
from recipes.training.evaluation import measure_accuracy
from recipes.training.loop import STATE_FILE, Outcome, Settings, fit
from recipes.training.optimizer import Optimizer
from recipes.training.schedules import Schedule
from zoo.atomic import write_atomically
from zoo.weights.published import transfer

_HEAD = "predictions"
_FEWEST = 5  # training images of a class: fewer tell nothing of it
_MOMENTUM = 0.9  # of moving averages, which a short training with the published one would not move


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the fine-tuning."""

    data: str = data.EMBEDDED  # a folder of images, one sub-folder a class; or as recipes.images.sources takes it
    model: str = "mnasnet"  # a name of zoo.list_models(), or a genotype file; with a .keras file of weights not used
    # the model's own, as zoo.build takes it; none takes the first
    model_preset: str | None = dataclasses.field(default=None, metadata={"old_names": ("scale",)})
    weights: Path | None = None  # .keras, whose network it then is, or .weights.h5 of the same classes; none is fresh
    image_size: int | None = 96  # pixels; none keeps theirs, which must then be equal
    preprocess: Literal["unit", "centered", "cifar10", "imagenet"] = "unit"  # as the weights were trained with
    head_epochs: int = 3  # in which only the new head learns; 0 leaves the phase out
    epochs: int = 10  # in which everything learns
    head_learning_rate: float = 0.05  # of the first phase, at its start
    learning_rate: float = 0.01  # of the second phase, at its start
    batch_size: int = 32  # images a step
    on_unreadable: Literal["error", "skip"] = "error"  # about a file that cannot be read
    seed: int = 0  # of head, order and augmentation
    folder: Path = Path("runs/finetune")  # results, and the state to go on from

    def __post_init__(self):
        least = {"image_size": 8, "head_epochs": 0, "epochs": 1, "batch_size": 1, "seed": 0}
        for name, smallest in least.items():
            value = getattr(self, name)
            if value is not None and value < smallest:
                raise ValueError(f"{name} is {value}; expected a whole number from {smallest}")
        if min(self.head_learning_rate, self.learning_rate) <= 0:
            raise ValueError(
                f"head_learning_rate is {self.head_learning_rate} and learning_rate {self.learning_rate}; "
                "expected numbers above 0"
            )


PRESETS = {
    "laptop": Config(),
    "smoke": Config(
        model="mcunet_in0", image_size=48, head_epochs=1, epochs=1, folder=Path("runs/finetune-smoke")
    ),
}  # fmt: skip


class Finetuned(NamedTuple):
    """The model with the best weights, and how it came to them."""

    model: keras.Model
    phases: dict[str, Outcome]
    accuracy: float  # of the test images, 0 to 1
    notes: list[str]  # what of the weights was not taken as it is


def finetune(config: Config) -> Finetuned:
    """Trains, writes the files, prints the accuracy."""
    source = None
    if config.weights is not None and config.weights.suffix == ".keras":
        if not config.weights.is_file():
            raise FileNotFoundError(f"weights: there is no file {config.weights}")
        source = keras.saving.load_model(config.weights, compile=False)
    images = _images(config, source)
    keras.utils.set_random_seed(config.seed)
    network, notes = _network(config, source, images)
    for note in notes:
        print(note)
    phases: dict[str, Outcome] = {}
    preprocess = PREPROCESSING[config.preprocess]
    plan = [("head", config.head_epochs, config.head_learning_rate), ("all", config.epochs, config.learning_rate)]
    for phase, epochs, rate in plan:
        if not epochs:
            continue
        for layer in network.layers:
            layer.trainable = phase == "all" or layer.name == _HEAD
        settings = Settings(
            epochs, config.batch_size, Schedule(rate=rate), Optimizer(nesterov=True, weight_decay=1e-4, clip=5.0)
        )
        with progress.show_progress(f"finetune, {phase}", unit="epoch") as observe:
            phases[phase] = fit(
                network,
                images.train,
                images.validation,
                settings,
                seed=config.seed,
                augment=augment.cifar(padding=max(1, images.input_shape[0] // 8), cutout_length=0),
                preprocess=preprocess,
                folder=config.folder / phase,
                identity={"options": {name: str(value) for name, value in dataclasses.asdict(config).items()}},
                observe=observe,
            )
    final = _with_probabilities(network)
    result = Finetuned(final, phases, measure_accuracy(final, images.test, preprocess), notes)
    _write(config, result, images)
    for phase in phases:
        (config.folder / phase / STATE_FILE).unlink(missing_ok=True)
    return result


def _images(config: Config, source: keras.Model | None) -> data.Data:
    size, channels = config.image_size, None
    if source is not None:
        height, width, channels = source.input_shape[1:]
        size = (height, width) if height is not None and width is not None else size
    images = data.load(
        config.data, size=size, channels=channels, seed=config.seed, on_unreadable=config.on_unreadable
    )  # fmt: skip
    counts = [int((images.train.labels == label).sum()) for label in range(images.classes)]
    few = {name: count for name, count in zip(images.class_names, counts, strict=True) if count < _FEWEST}
    if few or not len(images.validation) or not len(images.test):
        raise ValueError(
            f"{images}, {few or 'each class'} of too few to train and judge on; expected at least {_FEWEST} training "
            "images of each class, and some to hold out: add images"
        )
    return images


def _network(config: Config, source: keras.Model | None, images: data.Data) -> tuple[keras.Model, list[str]]:
    """Returns a network with logits and the images' classes, and what of the weights it did not take."""
    if source is not None:
        network = _with_head(source, images.classes)
        notes = transfer(source, network)
    else:
        network = zoo.build(
            config.model,
            config.model_preset,
            classes=images.classes,
            input_shape=images.input_shape,
            classifier_activation=None,
            weights=config.weights,
        )
        notes = [] if config.weights else ["no weights were given: everything starts fresh"]
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = min(layer.momentum, _MOMENTUM)
    return network, notes


def _with_head(model: keras.Model, classes: int) -> keras.Model:
    """Returns a copy of a classifier with `classes` logits.

    Raises:
        ValueError: its last layer is not the zoo's classifier.
    """
    if model.layers[-1].name != _HEAD or not isinstance(model.layers[-1], keras.layers.Dense):
        raise ValueError(
            f"{model.name} ends in {model.layers[-1].name!r}; expected the classifier {_HEAD!r} of the zoo"
        )

    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        options: dict[str, Any] = layer.get_config()
        if layer.name == _HEAD:
            options |= {"units": classes, "activation": "linear"}
        return layer.__class__.from_config(options)

    return keras.models.clone_model(model, clone_function=clone)


def _with_probabilities(network: keras.Model) -> keras.Model:
    """Returns a copy with softmax as the last activation, all of it trainable."""

    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        options: dict[str, Any] = layer.get_config() | {"trainable": True}
        if layer.name == _HEAD:
            options["activation"] = "softmax"
        return layer.__class__.from_config(options)

    copy: keras.Model = keras.models.clone_model(network, clone_function=clone)
    copy.set_weights(network.get_weights())
    return copy


def _write(config: Config, result: Finetuned, images: data.Data) -> None:
    with tempfile.TemporaryDirectory() as folder:
        result.model.save(Path(folder, "model.keras"))
        write_atomically(config.folder / "model.keras", Path(folder, "model.keras").read_bytes())
    write_atomically(config.folder / "class_names.json", json.dumps(list(images.class_names), indent=1) + "\n")
    results = {
        "data": str(images),
        "skipped": [str(path) for path in images.skipped],
        "notes": result.notes,
        "validation_accuracy": {phase: outcome.accuracy for phase, outcome in result.phases.items()},
        "test_accuracy": result.accuracy,
        "test_images": len(images.test),
    }
    write_atomically(config.folder / "results.json", json.dumps(results, indent=1) + "\n")
    print(f"test accuracy {result.accuracy:.4f} on {len(images.test):,} images: {config.folder / 'model.keras'}")


if __name__ == "__main__":
    _main.run(finetune, PRESETS)
