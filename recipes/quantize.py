"""Quantization-aware training of a trained model, beside what quantization after training gives.

    python -m recipes.quantize --model=runs/train/model.keras            # minutes on 2 cores
    python -m recipes.quantize --model=nasnet_a --model_preset=cifar10 --weights=my.weights.h5 --data=tfds:cifar10
    python -m recipes.quantize --sparsity=0.5 --clusters=16              # pruned and clustered int8 files, too
    python -m recipes.quantize --scheme=int4                             # weights of four bits, activations int8

Writes into runs/quantize the files (float32, int8, "int8 QAT", "int8 pruned", "int8 clustered"), deploy.json, deploy.md
(with each file's size after compression) and, with --copy_back, model.keras with the weights learnt. All are judged on
the same held-out images. Started again after a kill, training resumes after the last whole epoch. Expected: where int8
or int4 after training loses more than a point of accuracy, most of it comes back.

The images are trained on as they are, without augmentation: the network knows them, only the rounding is new to it.
"""

import dataclasses
import hashlib
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from recipes import _main, deployable
from recipes.deployable import Deployable, ModelAndData
from recipes.training import check_at_least
from recipes.training.progress import show_steps
from recipes.training.results import save_model, write_labels
from zoo.atomic import write_atomically

# TensorFlow, and what imports it, is imported where it is used: --help and errors then answer at once.
if TYPE_CHECKING:
    import keras

    from zoo.deploy import quantize, report


@dataclasses.dataclass(frozen=True)
class Config(ModelAndData):
    """Options of the training."""

    scheme: Literal["int8", "int4"] = "int8"  # int4: weights of four bits, but for depthwise convolutions
    epochs: int = 2  # of quantization-aware training
    learning_rate: float = 1e-4  # of Adam at the start; a cosine brings it to zero
    batch_size: int = 64  # images a step
    training_images: int | None = None  # how many of the training part; none takes all
    seed: int = 0  # of the order of the images
    sparsity: float | None = None  # also prunes: the share of each kernel's values that become zero, such as 0.5
    clusters: int | None = None  # also clusters: how many different values each kernel may have, such as 16
    copy_back: bool = False  # writes model.keras: the float model with the weights that were learnt
    folder: Path = Path("runs/quantize")  # files, report, and the state to resume from

    def __post_init__(self):
        super().__post_init__()
        check_at_least(self, {"epochs": 1, "batch_size": 1, "training_images": 1})
        if self.sparsity is not None and not 0 < self.sparsity < 1:
            raise ValueError(f"sparsity is {self.sparsity}; expected a share above 0 and below 1, such as 0.5, or none")
        if self.clusters is not None and self.clusters < 2:
            raise ValueError(f"clusters is {self.clusters}; expected a whole number from 2, or none")
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate is {self.learning_rate}; expected a number above 0, such as 1e-4")


_FREE = ("folder", "threads", "sparsity", "clusters")  # options that have no influence on the training for int8
PRESETS = {
    "laptop": Config(),
    "paper": Config(images=None, calibration=512, epochs=10),
    "smoke": Config(
        model="mcunet_in0", image_size=48, images=8, calibration=4, training_images=8, batch_size=4, epochs=1
    ),
}


def train(config: Config) -> "report.Report":
    """Trains, writes the files, prints the page and returns its numbers."""
    from recipes.training.evaluation import warn_near_chance
    from zoo import graph
    from zoo.deploy import quantize, report, tflite

    subject = deployable.load(config)
    if len(subject.model.outputs) > 1:
        subject = dataclasses.replace(subject, model=_with_one_output(config, subject.model))
        config = dataclasses.replace(config, output=None)
    with show_steps("quantize") as tell:
        tell(f"float32 and {config.scheme} after training")
        files = {
            "float32": tflite.convert(subject.model),
            config.scheme: tflite.convert(subject.model, quantize=config.scheme, calibration=subject.calibration),
        }
        tell("quantization-aware training: building")
        aware = quantize.prepare(subject.model, subject.calibration, config.scheme)
        files[f"{config.scheme} QAT"] = _trained(config, subject, aware, tell)
        files |= _compressed(config, subject, tell)
        result = report.assemble(
            subject.model, files, subject.images, subject.labels, config.folder,
            metadata=subject.make_metadata(config), output=config.output_key, threshold=subject.threshold,
            threads=config.threads, progress=tell,
        )  # fmt: skip
        warn_near_chance(result.accuracy, subject.data.classes, result.n, result.model)
        write_labels(config.folder, subject.describe(config))
        if config.copy_back:
            tell("model.keras")
            copy = graph.copy_model(subject.model)
            quantize.copy_back(aware, copy)
            save_model(copy, config.folder)
        sizes = (f"{scheme} {quantize.compressed_size(file) / 1000:,.1f} kB" for scheme, file in files.items())
        page = f"{result.to_markdown()}\nDeflated, as in a zip file: {', '.join(sizes)}.\n"
        write_atomically(config.folder / "deploy.md", page)
    shutil.rmtree(_state(config, subject.model))
    print(page)
    return result


def _with_one_output(config: Config, model: "keras.Model") -> "keras.Model":
    """Returns the model of the output that is judged: the labels are for no other."""
    import keras

    from zoo.deploy import measure

    number = measure.choose_keras_output(model, config.output_key)
    print(f"{model.name} has {len(model.outputs)} outputs; the files get number {number} alone", file=sys.stderr)
    return keras.Model(model.inputs, model.outputs[number], name=model.name)


def _compressed(config: Config, subject: Deployable, tell: Callable[[str], None]) -> dict[str, bytes]:
    """Returns the files of the pruned and of the clustered model, as far as they are wanted."""
    from zoo.deploy import quantize, tflite

    if config.sparsity is None and config.clusters is None:
        return {}
    images, labels, loss = _training_images(config, subject)
    options: dict[str, Any] = {
        "epochs": config.epochs, "learning_rate": config.learning_rate, "batch_size": config.batch_size, "loss": loss,
    }  # fmt: skip
    models: dict[str, keras.Model] = {}
    if config.sparsity is not None:
        tell(f"pruning to {config.sparsity:.0%} zeros")
        models["pruned"] = quantize.prune(subject.model, images, labels, sparsity=config.sparsity, **options)
    if config.clusters is not None:
        tell(f"clustering to {config.clusters} values")
        models["clustered"] = quantize.cluster(subject.model, images, labels, clusters=config.clusters, **options)
    return {
        f"{config.scheme} {how}": tflite.convert(model, quantize=config.scheme, calibration=subject.calibration)
        for how, model in models.items()
    }


def _trained(config: Config, subject: Deployable, aware: "quantize.Aware", tell: Callable[[str], None]) -> bytes:
    from zoo.deploy import quantize

    images, labels, loss = _training_images(config, subject)
    quantize.fine_tune(
        aware,
        images,
        labels,
        loss=loss,
        epochs=config.epochs,
        learning_rate=config.learning_rate,
        batch_size=config.batch_size,
        seed=config.seed,
        on_epoch=lambda epoch, logs: tell(
            f"epoch {epoch + 1} of {config.epochs} done: " + ", ".join(f"{key} {logs[key]:.4f}" for key in sorted(logs))
        ),
        state=_state(config, subject.model),
    )
    return quantize.convert(aware)


def _training_images(config: Config, subject: Deployable) -> "tuple[np.ndarray, np.ndarray, quantize.Loss | None]":
    """Returns images, and labels and loss as the output's activation asks for them."""
    from zoo import graph

    part = subject.data.train.first(config.training_images)
    pixels, labels = part.head(len(part))
    units, activation = subject.model.outputs[0].shape[-1], graph.head_activations(subject.model)[0]
    loss = None
    if units == 1 and activation == "linear":
        if subject.threshold is None:
            raise ValueError(
                f"{subject.model.name} ends in one unit without a sigmoid. If it is a logit give --threshold=0; a "
                "regression cannot be trained on classes of images: use zoo.deploy.quantize from Python"
            )
        loss = "binary"
    elif units > 1 and activation == "sigmoid":  # yes or no for each class
        labels, loss = np.eye(units, dtype=np.float32)[labels], "binary"
    return subject.reading(pixels), labels, loss


def _state(config: Config, model: "keras.Model") -> Path:
    """Returns the folder of the state, whose name tells this very training from that of other weights or options."""
    options = {name: value for name, value in dataclasses.asdict(config).items() if name not in _FREE}
    digest = hashlib.sha256(repr(sorted(options.items())).encode())
    for weight in model.weights:
        digest.update(weight.numpy().tobytes())
    return Path(config.folder, f"state-{digest.hexdigest()[:12]}")


if __name__ == "__main__":
    _main.run(train, PRESETS)
