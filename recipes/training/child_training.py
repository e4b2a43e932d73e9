"""Trains one child network, as a search does a hundred times, with little overhead before the first step.

For small networks, `keras.Model.compile/fit` spends most of its time before the first step: TensorFlow's grappler
rewrites a graph of ten thousand nodes, and Keras traces metrics, the optimizer and a second graph for evaluation. Here
only one step is traced, in which each normalisation and each weight update is one operation; grappler is off, batches
come from arrays without a tf.data pipeline, and a short evaluation runs eagerly.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from recipes.images.augment import UNIT, Augmentation
from recipes.images.parts import Batches, Part
from recipes.training.evaluation import Evaluator
from recipes.training.learner import Learner, Mirror, list_gpus, shorten_moving_averages
from recipes.training.loop import run_epochs
from recipes.training.optimizer import Optimizer, Schedule, Settings
from recipes.training.progress import Status
from recipes.training.state import TrainingState
from recipes.training.tensorflow_options import without_rewrites
from zoo import atomic

_EVALUATION_BATCH = 500
_WARMUP = 11  # steps of warm-up, without which short trainings of deep cells diverge


@dataclasses.dataclass(frozen=True)
class StagedCosine(Schedule):
    """One cosine period per stage, if training may stop after any stage (SGDR, Loshchilov and Hutter, ICLR 2017).

    With a single period, networks would be compared at a high learning rate after an early stage, which ranks them less
    well (docs/results.md).

    Attributes:
        ends: the epochs at which all stages but the last end.
    """

    ends: tuple[int, ...] = ()

    def _steady(self, time: float, epochs: float) -> float:
        begin = max((end for end in self.ends if end <= time), default=0)
        return super()._steady(time - begin, min((end for end in self.ends if end > time), default=epochs) - begin)


def make_child_settings(
    images: int,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    ends: Sequence[int] = (),
) -> Settings:
    """Returns how to train a child on `images` images: with Nesterov's momentum, as in TF-slim's NASNet code.

    The learning rate falls from `learning_rate` to 0 in one cosine period, or in one per stage, if stages end after
    `ends` epochs. Biases and normalisation have no L2 decay.
    """
    warmup = _WARMUP / -(-images // batch_size)
    optimizer = Optimizer(nesterov=True, weight_decay=weight_decay, clip=5.0)
    schedule = Schedule("cosine", learning_rate, warmup=warmup)
    if ends:
        schedule = StagedCosine("cosine", learning_rate, warmup=warmup, ends=tuple(ends))
    return Settings(epochs, batch_size, schedule, optimizer)


def train(
    make_model: Callable[[], keras.Model],
    training_part: Part,
    validation_part: Part,
    settings: Settings,
    *,
    seed: int,
    until: int | None = None,
    normalize: Callable[[Any], Any] = UNIT,
    augment: Augmentation | None = None,
    folder: Path | None = None,
    report: Callable[[float, str], None] = lambda share, text: None,
    devices: Sequence[str] | None = None,
    test_part: Part | None = None,
) -> dict[str, float]:
    """Trains a new network; returns "val_accuracy", "val_loss", "loss", "params", and "test_accuracy" with a test part.

    The same arguments give the same result, even if the process was killed in between and `folder` holds the state of
    the last complete epoch. The final weights are saved there as model.weights.h5. A training that stops before its
    last epoch (`until`) leaves its state there too; called with a later `until`, it resumes and ends as if it had never
    stopped.

    Args:
        make_model: returns a network whose only output is logits.
        training_part, validation_part: images to learn from, and images that the search selects by.
        settings: how to train.
        seed: for the weights, and the order and augmentation of the images.
        until: the epoch, from 1, to stop after; by default the last.
        normalize: images 0..255 -> what the network reads.
        augment: applied to each training batch.
        folder: for checkpoints; if None, none are written.
        report: called with the share that is done, 0 to 1, and a few words.
        devices: devices that share every batch; by default the visible GPUs, if there are several.
        test_part: only for a table of trained networks; a search must not see test data.

    Raises:
        DivergedError: the loss is no longer finite.
    """
    until = until or settings.epochs
    devices = list_gpus() if devices is None else devices
    mirror = Mirror(devices) if devices else None
    batches = Batches(training_part, settings.batch_size, seed, normalize=normalize, augment=augment, keep_last=True)

    def observe(status: Status) -> None:
        if status.done < until:
            text = f"epoch {status.done + 1} of {until}" if status.done or status.share else "tracing"
            report((status.done + status.share) / until, text)

    with without_rewrites():
        keras.utils.set_random_seed(seed % 2**32)
        with contextlib.nullcontext() if mirror is None else mirror.scope():
            model = make_model()
            shorten_moving_averages(model)
            learner = Learner(model, settings, mirror=mirror)

        def take_step(epoch: int, number: int) -> tuple[Any]:
            rate = settings.schedule.at_step(epoch * batches.steps + number, batches.steps, settings.epochs)
            return learner.step(*batches.batch(epoch, number), rate)[:1]

        state = None
        if folder is not None:
            identity = {"seed": seed, **dataclasses.asdict(settings)}
            state = TrainingState(folder / "epoch.npz", identity, strict=False)
        history = run_epochs(
            take_step,
            lambda history, values: {"loss": float(np.mean([loss for (loss,) in values]))},
            epochs=until,
            steps=batches.steps,
            variables={"variable": [variable.value for variable in model.variables], "slot": learner.slots},
            state=state,
            observe=observe,
        )
        report(1.0, "evaluating")
        accuracy, validation_loss = Evaluator(model, validation_part, normalize, batch_size=_EVALUATION_BATCH)()
        tested = {}
        if test_part is not None:
            scores = Evaluator(model, test_part, normalize, batch_size=_EVALUATION_BATCH)()
            tested["test_accuracy"] = scores.accuracy
    if folder is not None:
        with atomic.replacing(folder / "model.weights.h5") as stream:
            temporary = Path(stream.name).with_suffix(".weights.h5")
            model.save_weights(temporary)
            stream.write(temporary.read_bytes())
            temporary.unlink()
        if until >= settings.epochs:
            (folder / "epoch.npz").unlink(missing_ok=True)
    return {
        "val_accuracy": accuracy,
        "val_loss": validation_loss,
        "loss": history[-1]["loss"],
        "params": float(model.count_params()),
        **tested,
    }
