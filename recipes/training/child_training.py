"""Trains one child network, as a search does a hundred times: little is done before the first step.

A plain `keras.Model.compile/fit` spends its time on small networks in what precedes training: TensorFlow's grappler
rewrites a graph of ten thousand nodes, and Keras traces metrics, optimizer and a second graph for the evaluation.
Here one step is traced, a normalisation and an update of weights are one operation each in it, grappler's rewrites are
off meanwhile, batches come from arrays without a tf.data pipeline, and a short evaluation runs eagerly.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from recipes.images.augment import UNIT, Step
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
_WARMUP = 11  # steps until the rate is whole: short trainings of deep cells diverge without


@dataclasses.dataclass(frozen=True)
class StagedCosine(Schedule):
    """A cosine period for each stage of a training that may stop after any (SGDR, Loshchilov and Hutter, ICLR 2017).

    With one period for all epochs, the networks of an early stage would be compared at a high rate, which orders them
    less well (docs/results.md).

    Attributes:
        ends: epochs at which the stages but the last end.
    """

    ends: tuple[int, ...] = ()

    def _steady(self, time: float, epochs: float) -> float:
        begin = max((end for end in self.ends if end <= time), default=0)
        return super()._steady(time - begin, min((end for end in self.ends if end > time), default=epochs) - begin)


def child_settings(
    images: int,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    ends: Sequence[int] = (),
) -> Settings:
    """Returns how a child is trained on so many images: Nesterov's momentum, as TF-slim's NASNet code has it.

    The rate follows one cosine period from `learning_rate` to 0, or one for each stage, which end after `ends` epochs;
    the L2 decay leaves out biases and normalisation.
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
    augment: Step | None = None,
    folder: Path | None = None,
    report: Callable[[float, str], None] = lambda share, text: None,
    devices: Sequence[str] | None = None,
    test_part: Part | None = None,
) -> dict[str, float]:
    """Trains a new network and returns {"val_accuracy", "val_loss", "loss", "params"}, "test_accuracy" where asked.

    The same arguments give the same result, also if the process was killed meanwhile and `folder` holds the state of
    the last whole epoch. The weights at the end stay there, as model.weights.h5. A training that stops before its last
    epoch leaves its state there too: one until a later epoch resumes from it, and ends as if it had never stopped.

    Args:
        make_model: returns a network with logits as its one output.
        training_part, validation_part: the latter is what a search selects on.
        seed: of the weights, the order of the images and the augmentation.
        until: the epoch, from 1, after which it stops; the last one unless given.
        normalize: images 0..255 -> what the network reads.
        augment: a function of a batch; none unless given.
        folder: for checkpoints; none are written unless given.
        report: called with the share that is done, 0 to 1, and a few words.
        devices: that share every batch; unless given, the visible GPUs where there are several.
        test_part: for a table of trained networks; in a search, test data has no place.

    Raises:
        DivergedError: the loss is not a number any more.
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
