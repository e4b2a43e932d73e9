"""Quantization-aware training of a trained model, compared with quantization after training.

    python -m recipes.quantize --model=runs/train/model.keras            # minutes on 2 cores
    python -m recipes.quantize --model=nasnet_a --model_preset=cifar10 --weights=my.weights.h5 --data=tfds:cifar10
    python -m recipes.quantize --sparsity=0.5 --clusters=16              # also pruned and clustered int8 files
    python -m recipes.quantize --scheme=int4                             # weights of four bits, activations int8

Writes the files (float32, int8, "int8 QAT", "int8 pruned", "int8 clustered"), deploy.json and deploy.md (with each
file's size after compression) into runs/quantize; with --copy_back also model.keras with the trained weights. All are
judged on the same held-out images. If the program is killed, the same command resumes after the last whole epoch. If
int8 or int4 after training loses more than a point of accuracy, expect to get most of it back.

There is no augmentation: the network already knows the images, only the rounding is new.
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

# TensorFlow, and what imports it, is imported inside functions: --help and errors then answer at once.
if TYPE_CHECKING:
    import keras

    from zoo.deploy import quantize, report


@dataclasses.dataclass(frozen=True)
class Config(ModelAndData):
    """Options of the training."""

    scheme: Literal["int8", "int4"] = "int8"  # int4: weights of four bits, except in depthwise convolutions
    epochs: int = 2  # of quantization-aware training, and of pruning and clustering
    learning_rate: float = 1e-4  # Adam's initial rate, which falls to zero by a cosine
    batch_size: int = 64  # images per step
    training_images: int | None = None  # how many training images to use; none takes all
    seed: int = 0  # of the order of the images
    sparsity: float | None = None  # also prune: the share of each kernel's values to set to zero, such as 0.5
    clusters: int | None = None  # also cluster: the most distinct values in a kernel, such as 16
    copy_back: bool = False  # also write model.keras: the float model with the trained weights
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


_FREE = ("folder", "threads", "sparsity", "clusters")  # options without influence on quantization-aware training
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
        subject = dataclasses.replace(subject, model=_keep_one_output(config, subject.model))
        config = dataclasses.replace(config, output=None)
    with show_steps("quantize") as tell:
        tell(f"float32 and {config.scheme} after training")
        files = {
            "float32": tflite.convert(subject.model),
            config.scheme: tflite.convert(subject.model, quantize=config.scheme, calibration=subject.calibration),
        }
        tell("quantization-aware training: building")
        aware = quantize.prepare(subject.model, subject.calibration, config.scheme)
        files[f"{config.scheme} QAT"] = _train_aware(config, subject, aware, tell)
        files |= _compress(config, subject, tell)
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
    shutil.rmtree(_name_state(config, subject.model))
    print(page)
    return result


def _keep_one_output(config: Config, model: "keras.Model") -> "keras.Model":
    """Returns the model with only the output that is judged, because the labels are for this output."""
    import keras

    from zoo.deploy import measure

    number = measure.choose_keras_output(model, config.output_key)
    print(f"{model.name} has {len(model.outputs)} outputs; the files get only number {number}", file=sys.stderr)
    return keras.Model(model.inputs, model.outputs[number], name=model.name)


def _compress(config: Config, subject: Deployable, tell: Callable[[str], None]) -> dict[str, bytes]:
    """Returns the files of the pruned and the clustered model, if the config asks for them."""
    from zoo.deploy import quantize, tflite

    if config.sparsity is None and config.clusters is None:
        return {}
    images, labels, loss = _load_training_images(config, subject)
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


def _train_aware(config: Config, subject: Deployable, aware: "quantize.Aware", tell: Callable[[str], None]) -> bytes:
    from zoo.deploy import quantize

    images, labels, loss = _load_training_images(config, subject)
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
        state=_name_state(config, subject.model),
    )
    return quantize.convert(aware)


def _load_training_images(config: Config, subject: Deployable) -> "tuple[np.ndarray, np.ndarray, quantize.Loss | None]":
    """Returns the images, and labels and loss as the output's activation requires."""
    from zoo import graph

    part = subject.data.train.first(config.training_images)
    pixels, labels = part.head(len(part))
    units, activation = subject.model.outputs[0].shape[-1], graph.head_activations(subject.model)[0]
    loss = None
    if units == 1 and activation == "linear":
        if subject.threshold is None:
            raise ValueError(
                f"{subject.model.name} ends in one unit without a sigmoid. If it is a logit, give --threshold=0; a "
                "regression cannot be trained on classes of images: use zoo.deploy.quantize from Python"
            )
        loss = "binary"
    elif units > 1 and activation == "sigmoid":  # yes or no for each class
        labels, loss = np.eye(units, dtype=np.float32)[labels], "binary"
    return subject.reading(pixels), labels, loss


def _name_state(config: Config, model: "keras.Model") -> Path:
    """Returns the folder of the saved state, whose name depends on the initial weights and the training's options."""
    options = {name: value for name, value in dataclasses.asdict(config).items() if name not in _FREE}
    digest = hashlib.sha256(repr(sorted(options.items())).encode())
    for weight in model.weights:
        digest.update(weight.numpy().tobytes())
    return Path(config.folder, f"state-{digest.hexdigest()[:12]}")


if __name__ == "__main__":
    _main.run(train, PRESETS)
