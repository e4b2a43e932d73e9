"""Trains a network of the zoo, or of a genotype file that a search found, and keeps the best weights.

    python -m recipes.train                                      # AmoebaNet-A, small, embedded images: 2 minutes
    python -m recipes.train --model=runs/amoebanet/genotype.json # on the images of the search
    python -m recipes.train --model=mcunet_in0 --data=path/to/photos
    python -m recipes.train --preset=paper --model=darts --model_preset=cifar10 --data=tfds:cifar10   # days on one GPU
    python -m recipes.train --preset=paper --model=darts --model_preset=cifar10 --dry_run   # builds all, takes one step

Writes model.keras (standard layers only, without auxiliary head and drop path), class_names.json, history.json,
history.csv, results.json and results.md into the folder. If the program is killed, the same command resumes after the
last whole epoch, to the same result; a finished training is not repeated. Expect an accuracy of 0.892 on the 2,000 test
images from the first command (2 cores, seed 0, one run). The best epoch is chosen on validation images; the test images
are used once, at the end.
"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import zoo
from recipes import _main
from recipes.images import EMBEDDED, Preprocess
from recipes.training import ADAMW_RATE, TrainingOptions, check_options
from recipes.training.results import Origin, describe_images, find_finished, find_weights, write_results
from zoo.genotype import Blocks, Chain, Genotype

if TYPE_CHECKING:
    import keras

    from recipes.images import augment
    from recipes.images.sources import Data
    from recipes.training.loop import Outcome
    from recipes.training.optimizer import Settings
    from recipes.training.paper_settings import Paper

_FREE = ("folder", "tensorboard", "dry_run")  # options that may change when a training resumes
_SMALL_SIDE, _CIFAR_SIDE = 14, 32  # image size in pixels for a small network: for the embedded and for other images


@dataclasses.dataclass(frozen=True)
class Config(TrainingOptions):
    """Options of the training."""

    model: str = "amoebanet_a"  # a name from zoo.list_models(), or a genotype file
    # the model's preset, as zoo.build takes it, such as cifar10; none builds a small network of --cells and --filters
    # if the model is made of cells, otherwise takes the weights' preset or the first
    model_preset: str | None = dataclasses.field(default=None, metadata={"old_names": ("scale",)})
    # instead of a preset: the number of cells for DARTS, of normal cells for ENAS, of repeats in each third for others;
    # none takes 1 (DARTS: 3)
    cells: int | None = None
    # instead of a preset: filters of each node before the first reduction; none takes 16
    filters: int | None = None
    # weights to start from: a file of the same network, or published weights by data set (imagenet), origin or name,
    # whose head is replaced for other classes; none starts from random weights
    weights: str | None = None
    # a folder of images with a sub-folder per class, fashion_mnist_small, or tfds:NAME; none takes what the weights
    # were trained on or the genotype was searched on, otherwise fashion_mnist_small
    data: str | None = None
    # in pixels; none takes that of the weights or the genotype's search, otherwise one that suits the model
    image_size: int | None = None
    training_images: int | None = None  # how many to use; none takes all
    validation_images: int | None = None  # how many to use; none takes all
    # what the model reads: unit 0..1, centered -1..1, cifar10 or imagenet (torch) normalised by the channel means and
    # deviations of that data set, pixels 0..255; none takes what the weights were trained with, otherwise unit
    preprocess: Preprocess | None = None
    settings: Literal["small", "paper"] = "small"  # small: a short cosine schedule; paper: those of the family's paper
    epochs: int | None = 6  # of training; none takes the settings'
    batch_size: int | None = None  # images per step; none takes the settings'; the learning rate scales with it
    learning_rate: float | None = None  # the highest rate; none takes the settings', with adamw 0.001
    seed: int = 0  # of the weights, the order of the images and the augmentation
    tensorboard: bool = False  # also write the history for TensorBoard
    dry_run: bool = False  # build everything, take one step on 2 images, and stop
    folder: Path = Path("runs/train")  # results, and the state to resume from

    def __post_init__(self):
        super().__post_init__()
        counts = "cells filters image_size training_images validation_images epochs batch_size"
        check_options(self, counts, "a whole number from 1, or none", lambda value: value >= 1)
        check_options(self, "learning_rate", "a number above 0, or none", lambda value: value > 0)
        if self.weights is not None and (self.cells is not None or self.filters is not None):
            raise ValueError(f"weights={self.weights} belong to a preset of the model; leave cells and filters out")
        if self.model_preset is not None and (self.cells is not None or self.filters is not None):
            raise ValueError(
                f"model_preset is {self.model_preset}, cells is {self.cells} and filters is {self.filters}; give "
                "either the preset, or cells and filters"
            )


PRESETS = {
    "laptop": Config(),
    "paper": Config(
        model="darts", data="tfds:cifar10", settings="paper", epochs=None, folder=Path("runs/train-paper")
    ),
    "smoke": Config(
        filters=4, image_size=8, training_images=64, validation_images=50, epochs=1, folder=Path("runs/train-smoke")
    ),
}  # fmt: skip


class Trained(NamedTuple):
    """The plain model with the best weights, which outputs probabilities, and its training."""

    model: "keras.Model"
    outcome: "Outcome"
    accuracy: float  # on the test images, 0 to 1


def train(config: Config) -> Trained | None:
    """Trains, writes the files and prints the accuracy; returns None for a dry run."""
    from recipes.training.state import locked

    if config.weights is None and config.preprocess is None:
        config = dataclasses.replace(config, preprocess="unit")
    if config.dry_run:
        return _train(config)
    with locked(config.folder):
        results = find_finished(config.folder, config, _FREE)
        return _train(config) if results is None else _read_trained(config.folder, results)


def _train(config: Config) -> Trained | None:
    import keras

    from recipes.training.evaluation import measure_accuracy
    from recipes.training.learner import schedule_drop_path, shorten_moving_averages
    from recipes.training.loop import STATE_FILE, fit
    from recipes.training.paper_settings import SMALL, find_paper
    from recipes.training.progress import show_progress
    from recipes.training.reading import find_normalization, name_normalization
    from zoo.weights.published import transfer

    start = find_weights(config.model, config.model_preset, config.weights)
    genotype, preset, small = zoo.load(config.model), start.preset, config.settings == "small"
    own_size = (
        preset is None
        and config.weights is None
        and (
            config.cells is not None or config.filters is not None or (small and not isinstance(genotype.body, Blocks))
        )
    )
    if own_size:
        genotype, preset = _add_own_preset(genotype, config.cells, config.filters), "own"
    data, images = _load_images(config, start.origin, genotype, preset, own_size)
    scale = "macro" if isinstance(genotype.body, Chain) else preset or ""
    paper = SMALL if small else find_paper(genotype.family, scale, images.input_shape[0])
    keras.utils.set_random_seed(config.seed)
    size: dict[str, Any] = {"classes": images.classes, "input_shape": images.input_shape}
    network = zoo.build(
        genotype,
        preset,
        **size,
        classifier_activation=None,
        drop_path_rate=paper.drop_path,
        dropout_rate=paper.dropout,
        auxiliary=paper.auxiliary,
        weights=start.source,
    )
    if small:
        shorten_moving_averages(network)
    twin, settings = schedule_drop_path(network, config.dtype), _adapt_settings(config, paper.settings)
    added = config.prepare(images, _make_augmentation(config, paper, images.input_shape[0]))
    if config.dry_run:
        one, two = dataclasses.replace(settings, epochs=1, batch_size=2), images.train.first(2)
        fit(twin.model, two, two, one, **added, drop_path=twin.progress)
        print(f"dry run: {images}\n{network.name}: {network.count_params():,} parameters\n{settings}\n{paper.source}")
        return None
    preprocess, _ = find_normalization(config.preprocess, start.origin, None, config.weights or config.model)
    options = {name: value for name, value in dataclasses.asdict(config).items() if name not in (*_FREE, "seed")}
    with show_progress("train", unit="epoch") as observe:
        outcome = fit(
            twin.model,
            images.train,
            images.validation,
            settings,
            seed=config.seed,
            **added,
            preprocess=preprocess,
            drop_path=twin.progress,
            folder=config.folder,
            identity={"data": data, "input_shape": list(images.input_shape), "options": options},
            tensorboard=config.tensorboard,
            observe=observe,
        )
    plain = zoo.build(genotype, preset, **size)
    transfer(twin.model, plain)
    accuracy = measure_accuracy(plain, images.test, preprocess)
    results = {
        "model": plain.name,
        **describe_images(data, images, name_normalization(preprocess), preprocess),
        "params": plain.count_params(),
        "best_epoch": outcome.epoch,
        "validation_accuracy": outcome.accuracy,
        "test_accuracy": accuracy,
        "test_images": len(images.test),
        "seconds": round(sum(record["seconds"] for record in outcome.history), 2),
        "settings": paper.source,
    }
    write_results(config.folder, plain, results, config)
    (config.folder / STATE_FILE).unlink(missing_ok=True)
    return Trained(plain, outcome, accuracy)


def _read_trained(folder: Path, results: dict[str, Any]) -> Trained:
    import keras

    from recipes.training.loop import Outcome

    model: Any = keras.saving.load_model(folder / "model.keras", compile=False)
    return Trained(model, Outcome.read(folder), results["test_accuracy"])


def _add_own_preset(genotype: Genotype, cells: int | None, filters: int | None) -> Genotype:
    """Returns the genotype with a single preset, "own", for small images."""
    cells, filters = cells or (3 if genotype.family == "darts" else 1), filters or 16
    if isinstance(genotype.body, Blocks):
        raise ValueError(
            f"cells and filters are not for the family {genotype.family!r}, which has no cells; leave both out"
        )
    if isinstance(genotype.body, Chain):
        preset: dict[str, Any] = {"filters": filters}
    elif genotype.family == "darts":
        preset = {"cells": cells, "filters": filters, "stem": "cifar"}
    elif genotype.family == "enas":
        preset = {"cells": cells, "filters": filters}
    else:
        preset = {"repeats": cells, "filters": filters, "stem": "cifar", "stem_filters": 2 * filters}
    return dataclasses.replace(genotype, presets={"own": preset})


def _load_images(
    config: Config, origin: Origin, genotype: Genotype, preset: str | None, own_size: bool
) -> tuple[str, "Data"]:
    """Returns the data's name and the images, and prints what was chosen for options that are not given."""
    from recipes.images import sources

    name, size, chosen = config.data or origin.data or EMBEDDED, config.image_size, []
    if config.data is None and origin.data is not None:
        chosen.append(f"data={name} as in {origin.place}")
    if size is None and origin.image_size is not None and (name == origin.data or config.weights is not None):
        size = origin.image_size[0]
        chosen.append(f"image_size={size} as in {origin.place}")
    elif size is None and own_size:
        size = _SMALL_SIDE if name == EMBEDDED else _CIFAR_SIDE
        chosen.append(f"image_size={size}, for small cells")
    elif size is None and name != EMBEDDED:
        values = genotype.presets.get(preset or next(iter(genotype.presets), ""), {})
        if shape := values.get("input_shape"):
            size = shape[0]
            chosen.append(f"image_size={size} as in the model's preset")
    if chosen:
        print(f"chosen for options not given: {'; '.join(chosen)}")
    found = sources.load(name, size=size, seed=config.seed, **config.folder_options)
    train, validation = found.train, found.validation
    return name, dataclasses.replace(
        found,
        train=train.first(config.training_images) if config.training_images else train,
        validation=validation.first(config.validation_images) if config.validation_images else validation,
    )


def _adapt_settings(config: Config, settings: "Settings") -> "Settings":
    """Returns the settings as changed by the options; unless given, the learning rate scales with the batch size."""
    from recipes.training.optimizer import choose_optimizer

    batch_size = config.batch_size or settings.batch_size
    factor = batch_size / settings.batch_size
    rate = config.learning_rate or (ADAMW_RATE if config.optimizer == "adamw" else None)
    if rate is not None:
        factor = rate / settings.schedule.rate
    optimizer = choose_optimizer(config.optimizer, settings.optimizer)
    schedule = settings.schedule
    schedule = dataclasses.replace(schedule, rate=factor * schedule.rate, last=factor * schedule.last)
    return dataclasses.replace(
        settings, epochs=config.epochs or settings.epochs, batch_size=batch_size, schedule=schedule, optimizer=optimizer
    )


def _make_augmentation(config: Config, paper: "Paper", side: int) -> "augment.Augmentation | None":
    from recipes.images import augment

    if config.settings == "small":
        return None  # a few epochs do better without, as measured
    if paper.augment == "imagenet":
        return augment.imagenet(size=side, hue=0.0, jitter=0.0)
    return augment.cifar(padding=max(1, side // 8), cutout_length=side // 2 if paper.augment == "cutout" else 0)


if __name__ == "__main__":
    _main.run(train, PRESETS)
