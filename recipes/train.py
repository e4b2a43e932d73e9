"""Trains a network of the zoo, or of a genotype file that a search has found, and keeps its best weights.

    python -m recipes.train                                      # AmoebaNet-A, small, embedded images: 2 minutes
    python -m recipes.train --model=runs/amoebanet/genotype.json
    python -m recipes.train --preset=paper --model=darts --model_preset=cifar10 --data=tfds:cifar10   # days on one GPU
    python -m recipes.train --preset=paper --model=darts --model_preset=cifar10 --dry_run   # builds all, takes one step

Writes model.keras (standard layers only, without auxiliary head and drop path), history.json, history.csv,
results.json and results.md into the folder. Killed and started again with the same command, it goes on behind the
last whole epoch, to the same result. Expected of the first command on 2 cores: 0.878 of the 2,000 test images (seed 0,
one run). The best epoch is told by validation images; the test images give the last number.
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
from recipes.training.drop_path import scheduled
from recipes.training.evaluation import measure_accuracy
from recipes.training.loop import STATE_FILE, Outcome, Settings, fit
from recipes.training.optimizer import Optimizer
from recipes.training.paper_settings import Paper, paper_of
from recipes.training.schedules import Schedule
from zoo.atomic import write_atomically
from zoo.genotype import Cells, Genotype
from zoo.weights.published import transfer


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the training."""

    model: str = "amoebanet_a"  # a name of zoo.list_models(), or a genotype file
    # the model's own, as zoo.build takes it, such as cifar10; none takes cells and filters, else the first
    model_preset: str | None = dataclasses.field(default=None, metadata={"old_names": ("scale",)})
    cells: int | None = 1  # of a size of your own: DARTS' cells in all, ENAS' normal ones, else repeats in a third
    filters: int | None = 16  # of a size of your own: of each node before the first reduction
    data: str = data.EMBEDDED  # fashion_mnist_small, tfds:NAME or a folder of images
    image_size: int | None = 14  # pixels; none keeps theirs
    training_images: int | None = None  # none takes all
    validation_images: int | None = None  # none takes all
    # pixels to 0..1, to -1..1, or by the channels' means and deviations of a data set; deploy with the same
    preprocess: Literal["unit", "centered", "cifar10", "imagenet"] = "unit"
    settings: Literal["small", "paper"] = "small"  # small: a short cosine; paper: those of the family's paper
    epochs: int | None = 6  # none takes the settings'
    batch_size: int | None = None  # none takes the settings'; the learning rate scales along unless given
    learning_rate: float | None = None  # the highest; none takes the settings'
    seed: int = 0  # of the weights, the order of the images and the augmentation
    tensorboard: bool = False  # write the history for TensorBoard, too
    dry_run: bool = False  # build everything, take one step on 2 images, and stop
    folder: Path = Path("runs/train")  # results, and the state to go on from

    def __post_init__(self):
        for name in ("cells", "filters", "image_size", "training_images", "validation_images", "epochs", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; expected a whole number from 1, or none")
        if (self.cells is None) != (self.filters is None):
            raise ValueError(
                f"cells is {self.cells} and filters {self.filters}; give both, or none of them and model_preset"
            )
        if self.learning_rate is not None and self.learning_rate <= 0:
            raise ValueError(f"learning_rate is {self.learning_rate}; expected a number above 0")


_AS_PUBLISHED: Any = {
    "cells": None, "filters": None, "image_size": None, "epochs": None, "settings": "paper",
}  # fmt: skip

PRESETS = {
    "laptop": Config(),
    "paper": Config(model="darts", data="tfds:cifar10", folder=Path("runs/train-paper"), **_AS_PUBLISHED),
    "smoke": Config(
        filters=4, image_size=8, training_images=64, validation_images=50, epochs=1, folder=Path("runs/train-smoke")
    ),
}

SMALL = Paper(
    Settings(
        6, 64, Schedule("cosine", 0.1, warmup=0.5), Optimizer(nesterov=True, weight_decay=5e-4, clip=5.0)
    ),
    "measured on the embedded images", auxiliary=False,
)  # fmt: skip
_SHORT_MOMENTUM = 0.9  # of moving averages: 0.9997, as published, needs more steps than a short training has


class Trained(NamedTuple):
    """The plain model with the best weights, probabilities as its output, and how it came to them."""

    model: keras.Model
    outcome: Outcome
    accuracy: float  # of the test images, 0 to 1


def train(config: Config) -> Trained | None:
    """Trains, writes the files, prints the accuracy; returns None from a dry run."""
    genotype = zoo.load(config.model)
    preset = config.model_preset
    if preset is None and config.cells is not None and config.filters is not None:
        genotype, preset = _own_size(genotype, config.cells, config.filters), "own"
    images = _images(config)
    paper = SMALL
    if config.settings == "paper":
        paper = paper_of(genotype.family, "macro" if "macro" in genotype.name else preset or "", images.input_shape[0])
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
    )
    if config.settings == "small":
        _shorten_moving_averages(network)
    twin = scheduled(network)
    settings = _settings(config, paper.settings)
    policy = _augment(config, paper, images.input_shape[0])
    if config.dry_run:
        one = dataclasses.replace(settings, epochs=1, batch_size=2)
        fit(twin.model, images.train.first(2), images.train.first(2), one, augment=policy, drop_path=twin.progress)
        print(f"dry run: {images}\n{network.name}: {network.count_params():,} parameters\n{settings}\n{paper.source}")
        return None
    with progress.show_progress("train", unit="epoch") as observe:
        outcome = fit(
            twin.model,
            images.train,
            images.validation,
            settings,
            seed=config.seed,
            augment=policy,
            preprocess=PREPROCESSING[config.preprocess],
            drop_path=twin.progress,
            folder=config.folder,
            identity=_identity(config),
            tensorboard=config.tensorboard,
            observe=observe,
        )
    plain = zoo.build(genotype, preset, **size)
    transfer(twin.model, plain)
    trained = Trained(plain, outcome, measure_accuracy(plain, images.test, PREPROCESSING[config.preprocess]))
    _write(config, trained, images, paper)
    (config.folder / STATE_FILE).unlink(missing_ok=True)
    return trained


def _own_size(genotype: Genotype, cells: int, filters: int) -> Genotype:
    if genotype.family == "darts":
        preset = {"cells": cells, "filters": filters, "stem": "cifar"}
    elif genotype.family == "enas" and isinstance(genotype.body, Cells):
        preset = {"cells": cells, "filters": filters}
    elif genotype.family in ("nasnet", "pnasnet", "amoebanet"):
        preset = {"repeats": cells, "filters": filters, "stem": "cifar", "stem_filters": 2 * filters}
    else:
        raise ValueError(
            f"cells and filters are not for the family {genotype.family!r}; give cells=none and filters=none"
        )
    return dataclasses.replace(genotype, presets={"own": preset})


def _images(config: Config) -> data.Data:
    found = data.load(config.data, size=config.image_size, seed=config.seed)
    return dataclasses.replace(
        found,
        train=found.train.first(config.training_images) if config.training_images else found.train,
        validation=found.validation.first(config.validation_images) if config.validation_images else found.validation,
    )


def _settings(config: Config, settings: Settings) -> Settings:
    """Returns the settings with what the options change; a rate that is not given goes with the batch."""
    batch_size = config.batch_size or settings.batch_size
    factor = batch_size / settings.batch_size
    if config.learning_rate is not None:
        factor = config.learning_rate / settings.schedule.rate
    schedule = settings.schedule
    schedule = dataclasses.replace(schedule, rate=factor * schedule.rate, last=factor * schedule.last)
    return dataclasses.replace(
        settings, epochs=config.epochs or settings.epochs, batch_size=batch_size, schedule=schedule
    )


def _augment(config: Config, paper: Paper, side: int) -> augment.Step | None:
    if config.settings == "small":
        return None  # a few epochs are better without: measured
    if paper.augment == "imagenet":
        return augment.imagenet(size=side, hue=0.0, jitter=0.0)
    return augment.cifar(padding=max(1, side // 8), cutout_length=side // 2 if paper.augment == "cutout" else 0)


def _identity(config: Config) -> dict[str, Any]:
    free = ("folder", "tensorboard", "dry_run", "epochs", "batch_size", "seed")
    return {name: value for name, value in dataclasses.asdict(config).items() if name not in free}


def _shorten_moving_averages(network: keras.Model) -> None:
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = min(layer.momentum, _SHORT_MOMENTUM)


def _write(config: Config, trained: Trained, images: data.Data, paper: Paper) -> None:
    with tempfile.TemporaryDirectory() as folder:
        trained.model.save(Path(folder, "model.keras"))
        write_atomically(config.folder / "model.keras", Path(folder, "model.keras").read_bytes())
    results = {
        "model": trained.model.name,
        "data": str(images),
        "class_names": list(images.class_names),
        "params": trained.model.count_params(),
        "best_epoch": trained.outcome.epoch,
        "validation_accuracy": trained.outcome.accuracy,
        "test_accuracy": trained.accuracy,
        "test_images": len(images.test),
        "seconds": sum(record["seconds"] for record in trained.outcome.history),
        "settings": paper.source,
        "config": {name: str(value) for name, value in dataclasses.asdict(config).items()},
    }
    write_atomically(config.folder / "results.json", json.dumps(results, indent=1) + "\n")
    rows = "".join(f"| {name} | {value} |\n" for name, value in results.items() if name != "config")
    write_atomically(config.folder / "results.md", f"| what | value |\n|---|---|\n{rows}")
    print(f"test accuracy {trained.accuracy:.4f} on {len(images.test):,} images: {config.folder / 'model.keras'}")


if __name__ == "__main__":
    _main.run(train, PRESETS)
