"""Fine-tunes a network of the zoo on your own images, a sub-folder per class: first a new head, then all layers.

    python -m recipes.finetune --data=path/to/flowers --weights=runs/train/model.keras
    python -m recipes.finetune --data=path/to/flowers --model=mcunet_in0 --weights=imagenet   # downloads weights once

A .keras file comes with its network, image size and normalisation (from the results.json next to it). For other weights
give --model and --model_preset as in their training. Writes model.keras, class_names.json (in the order of the labels),
results.json and the history of both phases into the folder. If the program is killed, the same command resumes after
the last whole epoch; a finished training is not repeated. The test images are used once, at the end.
"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import zoo
from recipes import _main
from recipes.images import EMBEDDED, Preprocess
from recipes.models import choose_size, load_file
from recipes.training import ADAMW_RATE, TrainingOptions, check_at_least, check_options
from recipes.training.results import Origin, describe_images, find_finished, find_weights, write_results

if TYPE_CHECKING:
    import keras

    from recipes.images.sources import Data
    from recipes.training.loop import Outcome

_HEAD = "predictions"
_FEWEST = 5  # training images per class, at least
_SIDE = 96  # pixels, if neither options nor weights nor genotype give a size


@dataclasses.dataclass(frozen=True)
class Config(TrainingOptions):
    """Options of the fine-tuning."""

    # a folder of images with a sub-folder per class, fashion_mnist_small, or tfds:NAME; none takes what the weights
    # were trained on or the genotype was searched on, otherwise fashion_mnist_small
    data: str | None = None
    model: str = "mnasnet"  # a name from zoo.list_models(), or a genotype file; ignored if weights is a .keras file
    # the model's preset, as zoo.build takes it; none takes the weights' preset, otherwise the first
    model_preset: str | None = dataclasses.field(default=None, metadata={"old_names": ("scale",)})
    # a .keras file, which also gives the network; a .weights.h5 file for the same number of classes; or published
    # weights by data set, such as imagenet; none starts from random weights
    weights: str | None = None
    image_size: int | None = None  # in pixels; none takes that of the weights or the genotype's search, otherwise 96
    # what the model reads: unit 0..1, centered -1..1, cifar10 or imagenet (torch) normalised by the channel means and
    # deviations of that data set, pixels 0..255; none takes what the weights were trained with, otherwise unit
    preprocess: Preprocess | None = None
    head_epochs: int = 3  # epochs in which only the new head learns; 0 skips this phase
    epochs: int = 10  # epochs in which all layers learn
    head_learning_rate: float | None = None  # initial rate of the first phase; none takes 0.05, with adamw 0.001
    learning_rate: float | None = None  # initial rate of the second phase; none takes 0.01, with adamw 0.0002
    batch_size: int = 32  # images per step
    seed: int = 0  # of the head, the order of the images and the augmentation
    folder: Path = Path("runs/finetune")  # results, and the state to resume from

    def __post_init__(self):
        super().__post_init__()
        check_at_least(self, {"image_size": 8, "head_epochs": 0, "epochs": 1, "batch_size": 1, "seed": 0})
        check_options(self, "head_learning_rate learning_rate", "a number above 0, or none", lambda value: value > 0)


PRESETS = {
    "laptop": Config(),
    "smoke": Config(
        model="mcunet_in0", image_size=48, head_epochs=1, epochs=1, folder=Path("runs/finetune-smoke")
    ),
}  # fmt: skip


class Finetuned(NamedTuple):
    """The model with the best weights, and its training."""

    model: "keras.Model"
    phases: "dict[str, Outcome]"
    accuracy: float  # on the test images, 0 to 1
    notes: list[str]  # which weights could not be taken as they are


def finetune(config: Config) -> Finetuned:
    """Trains in both phases, writes the files and prints the accuracy."""
    from recipes.training.state import locked

    head, rate = (ADAMW_RATE, ADAMW_RATE / 5) if config.optimizer == "adamw" else (0.05, 0.01)
    config = dataclasses.replace(
        config, head_learning_rate=config.head_learning_rate or head, learning_rate=config.learning_rate or rate
    )
    with locked(config.folder):
        results = find_finished(config.folder, config, ("folder",))
        return _finetune(config) if results is None else _read_finetuned(config.folder, results)


def _finetune(config: Config) -> Finetuned:
    import keras

    from recipes.images import augment
    from recipes.training.evaluation import count_confusions, measure_classes, read_batches
    from recipes.training.learner import schedule_drop_path
    from recipes.training.loop import STATE_FILE, Outcome, fit
    from recipes.training.optimizer import Optimizer, Schedule, Settings, choose_optimizer
    from recipes.training.progress import show_progress
    from recipes.training.reading import find_normalization, name_normalization
    from zoo.graph import copy_model

    source, origin = _load_weights(config)
    preprocess, _ = find_normalization(config.preprocess, origin, source, config.weights or config.model)
    name, images = _load_images(config, source, origin)
    keras.utils.set_random_seed(config.seed)
    network, notes = _build_network(config, source, images)
    for note in notes:
        print(note)
    options = {name: str(value) for name, value in dataclasses.asdict(config).items() if name != "folder"}
    identity = {"data": name, "input_shape": list(images.input_shape), "options": options}
    phases: dict[str, Outcome] = {}
    plan: Any = [
        ("head", config.head_epochs, config.head_learning_rate), ("all", config.epochs, config.learning_rate),
    ]  # fmt: skip
    added = config.prepare(images, augment.cifar(padding=max(1, images.input_shape[0] // 8), cutout_length=0))
    trained = network if config.dtype is None else schedule_drop_path(network, config.dtype).model
    for phase, epochs, rate in plan:
        if not epochs:
            continue
        for layer in trained.layers:
            layer.trainable = phase == "all" or layer.name == _HEAD
        optimizer = choose_optimizer(config.optimizer, Optimizer(nesterov=True, weight_decay=1e-4, clip=5.0))
        with show_progress(f"finetune, {phase}", unit="epoch") as observe:
            phases[phase] = fit(
                trained,
                images.train,
                images.validation,
                Settings(epochs, config.batch_size, Schedule(rate=rate), optimizer),
                seed=config.seed,
                **added,
                preprocess=preprocess,
                folder=config.folder / phase,
                identity=identity,
                observe=observe,
            )
    if trained is not network:
        network.set_weights(trained.get_weights())
    final = copy_model(network, lambda layer: {"activation": "softmax"} if layer.name == _HEAD else {})
    confusions = np.zeros((images.classes, images.classes), np.int64)
    for batch, labels in read_batches(images.test, preprocess):
        predicted = np.argmax(final(batch, training=False), axis=-1)
        confusions += count_confusions(labels, predicted, images.classes)
    accuracy = float(np.trace(confusions) / confusions.sum())
    results = {
        **describe_images(name, images, name_normalization(preprocess), preprocess),
        "skipped": [str(path) for path in images.skipped],
        "notes": notes,
        "validation_accuracy": {phase: outcome.accuracy for phase, outcome in phases.items()},
        "test_accuracy": accuracy,
        "test_images": len(images.test),
        "test_classes": dict(zip(images.class_names, measure_classes(confusions), strict=True)),
    }
    write_results(config.folder, final, results, config)
    for phase in phases:
        (config.folder / phase / STATE_FILE).unlink(missing_ok=True)
    return Finetuned(final, phases, accuracy, notes)


def _read_finetuned(folder: Path, results: dict[str, Any]) -> Finetuned:
    import keras

    from recipes.training.loop import Outcome

    model: Any = keras.saving.load_model(folder / "model.keras", compile=False)
    phases = {phase: Outcome.read(folder / phase) for phase in results["validation_accuracy"]}
    return Finetuned(model, phases, results["test_accuracy"], results["notes"])


def _load_weights(config: Config) -> tuple["keras.Model | None", Origin]:
    """Returns the network of a .keras file or of published weights, otherwise None, and what it was trained on."""
    source, preset, origin, entry = find_weights(config.model, config.model_preset, config.weights)
    network: Any = None
    if entry is not None:
        network = zoo.build(config.model, preset, weights=source)
    elif source is not None and Path(source).suffix == ".keras":
        network = load_file(Path(source))
    return network, origin


def _load_images(config: Config, network: "keras.Model | None", origin: Origin) -> tuple[str, "Data"]:
    """Returns the data's name and the images, and prints what was chosen for options that are not given."""
    from recipes.images import sources
    from recipes.images.files import list_some

    name = config.data or origin.data or EMBEDDED
    height, width, channels = (None, None, None) if network is None else network.input_shape[1:]
    subject = f"the network of {config.weights}"
    size = choose_size(config.image_size, height, width, origin, subject) or (_SIDE, _SIDE)
    chosen = [] if config.data is not None else [f"data={name}" + (f" as in {origin.place}" if origin.data else "")]
    if config.image_size is None:
        chosen.append(f"image_size={size[0]} x {size[1]}")
    if config.preprocess is None:
        known = (
            f"{origin.preprocess or 'that'} of {origin.place}" if origin.preprocess or origin.normalization else "unit"
        )
        chosen.append(f"preprocess={known}")
    if chosen:
        print(f"chosen for options not given: {'; '.join(chosen)}")
    images = sources.load(name, size=size, channels=channels, seed=config.seed, **config.folder_options)
    counts = [int((images.train.labels == label).sum()) for label in range(images.classes)]
    few = [f"{name}: {count}" for name, count in zip(images.class_names, counts, strict=True) if count < _FEWEST]
    if few or not len(images.validation) or not len(images.test):
        raise ValueError(
            f"{images}: too few images of {list_some(few) if few else 'each class'} to train and judge on; expected at "
            f"least {_FEWEST} training images of each class, and some to hold out: add images"
        )
    return name, images


def _build_network(config: Config, source: "keras.Model | None", images: "Data") -> tuple["keras.Model", list[str]]:
    """Returns a network with logits for the images' classes, and notes on weights that it could not take."""
    from recipes.training.learner import shorten_moving_averages
    from zoo.weights.published import transfer

    if source is not None:
        network = _replace_head(source, images.classes)
        notes = transfer(source, network)
    else:
        network = zoo.build(
            config.model,
            config.model_preset,
            classes=images.classes,
            input_shape=images.input_shape,
            classifier_activation=None,
            weights=None if config.weights is None else Path(config.weights).expanduser(),
        )
        notes = [] if config.weights else ["no weights were given: all layers start from random weights"]
    shorten_moving_averages(network)
    return network, notes


def _replace_head(model: "keras.Model", classes: int) -> "keras.Model":
    """Returns a copy of a classifier with `classes` logits and random weights.

    Raises:
        ValueError: the model's last layer is not the zoo's classifier.
    """
    import keras

    if model.layers[-1].name != _HEAD or not isinstance(model.layers[-1], keras.layers.Dense):
        raise ValueError(
            f"{model.name} ends in the layer {model.layers[-1].name!r}; expected the zoo's classifier, a Dense layer "
            f"named {_HEAD!r}. Give a network that the zoo built"
        )

    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        head = {"units": classes, "activation": "linear"} if layer.name == _HEAD else {}
        return layer.__class__.from_config(layer.get_config() | head)

    return keras.models.clone_model(model, clone_function=clone)


if __name__ == "__main__":
    _main.run(finetune, PRESETS)
