"""Training of TinyNAS' once-for-all network: first the largest sub-network alone, then several sub-networks per step.

Random numbers depend only on the seed and the step, so a training that was killed resumes at the saved step and ends
with the same result.

Source: Lin et al., arXiv:2007.10319, appendices D and E; sandwich rule and distillation: Yu and Huang, "Universally
Slimmable Networks", ICCV 2019. Departure: the gradients of a step's sub-networks are averaged, so that one learning
rate serves both phases; once-for-all's code adds them up.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from recipes.images import augment
from recipes.images import sources as image_data
from recipes.images.parts import Batches
from recipes.tinynas.config import Config
from recipes.tinynas.space import TinySpace
from recipes.tinynas.supernet import Supernet
from recipes.training.loop import DivergedError, Record, run_epochs
from recipes.training.optimizer import Optimizer, Schedule
from recipes.training.progress import Report, Status, report_part
from recipes.training.state import TrainingState
from recipes.training.supernet import list_seeds
from recipes.training.tensorflow_options import without_rewrites
from zoo import atomic

_MOMENTUM = 0.9
_CLIP = 5.0  # largest norm of the gradient, before weight decay
_WARMUP_STEPS = 10  # in each phase, at most
# Options that the shared weights depend on; searches with equal values may share them.
_OPTIONS = (
    "seed", "data", "image_size", "training_images", "batch_size", "augment", "strides", "kernels", "expansions",
    "depths", "shares", "kernel_transform", "largest_epochs", "elastic_epochs", "networks", "sampling",
    "distillation", "weight_decay",
)  # fmt: skip


def train_supernets(
    config: Config, net: Supernet, images: image_data.Data, normalize: Callable[[Any], Any], report: Report
) -> np.ndarray:
    """Trains the once-for-all networks, or resumes their training, and returns their weights (supernets, size).

    The first has the seed of `config`; the others have their own seeds, and their states in files next to the first's.

    Raises:
        DivergedError: a training diverged.
        StateError: a state is of other options.
    """
    first, trained = config.supernet or config.folder / "supernet.npz", []
    for number, seed in enumerate(list_seeds(config.seed, config.supernets)):
        part = report_part(report, number, config.supernets, "supernet")
        suffix = str(seed) if number else ""
        own = dataclasses.replace(config, seed=seed, supernet=first.with_stem(first.stem + suffix))
        weights, history = _train_supernet(own, net, images, normalize, part)
        trained.append(weights)
        atomic.write_atomically(config.folder / f"supernet{suffix}.json", json.dumps(history, indent=1) + "\n")
    return np.stack(trained)


def _train_supernet(
    config: Config, net: Supernet, images: image_data.Data, normalize: Callable[[Any], Any], report: Report
) -> tuple[np.ndarray, list[Record]]:
    """Trains a once-for-all network, from its state at `config.supernet`; returns weights and a record per epoch."""
    assert config.supernet is not None
    crop_and_flip = augment.cifar(padding=images.input_shape[0] // 8, cutout_length=0) if config.augment else None
    batches = Batches(
        images.train, config.batch_size, config.seed, stream=[0], normalize=normalize, augment=crop_and_flip
    )
    training = ElasticTraining(net, config, batches.steps, images.input_shape)
    epochs, loss, begun = config.largest_epochs + config.elastic_epochs, "", time.monotonic()

    def observe(status: Status) -> None:
        if status.done < epochs:
            report((status.done + status.share) / epochs, f"epoch {status.done + 1} of {epochs}{loss}")

    def end_epoch(history: list[Record], losses: list[Sequence[float]]) -> Record:
        nonlocal loss, begun
        first, mean = np.mean(losses, axis=0)
        loss, seconds, begun = f", loss {mean:.4g}", time.monotonic() - begun, time.monotonic()
        found = {"step": (len(history) + 1) * batches.steps, "loss": float(mean), "first_loss": float(first)}
        return found | {"seconds": round(seconds, 3)}  # in a process' first epoch, only its own

    with without_rewrites():
        history = run_epochs(
            lambda epoch, number: training.take_step(epoch * batches.steps + number, *batches.batch(epoch, number)),
            end_epoch,
            epochs=epochs,
            steps=batches.steps,
            variables={"vector": [training.weights, training.velocity]},
            state=TrainingState(config.supernet, training.identity),
            save_seconds=config.save_seconds,
            observe=observe,
        )
    return training.weights.numpy(), history


class ElasticTraining:
    """The training of a once-for-all network: its variables and its steps, of which an epoch has `steps`."""

    def __init__(self, net: Supernet, config: Config, steps: int, image_shape: Sequence[int]):
        self.net, self._config, self._steps = net, config, steps
        self.first_phase = steps * config.largest_epochs  # steps of the largest sub-network alone
        self._optimizer = Optimizer(
            "sgd", momentum=_MOMENTUM, weight_decay=config.weight_decay, decay_in="gradient", clip=_CLIP
        )
        self._schedule = Schedule("cosine", config.supernet_rate, warmup=min(_WARMUP_STEPS, steps) / steps)
        self.weights: Any = tf.Variable(tf.constant(net.initial(config.seed)))
        (self.velocity,) = self._optimizer.make_slots([self.weights])
        self._decayed = tf.constant(net.decayed())
        self._largest = net.space.encode(net.space.largest())
        targets = (tf.TensorSpec([None], tf.int32), tf.TensorSpec([None, net.classes]), tf.TensorSpec([]))
        signature = [*net.input_specs(image_shape), *targets]
        self._gradient = tf.function(self._loss_and_gradient, signature, autograph=False)

    @property
    def identity(self) -> dict[str, Any]:
        """The values that identify this training; it must not resume from a state with others."""
        config = self._config
        facts = {"size": self.net.packing.size, "width": self.net.space.width, "steps": self._steps}
        facts |= {"learning_rate": config.supernet_rate, "momentum": _MOMENTUM, "clip": _CLIP}
        return facts | {name: value for name, value in config.settings().items() if name in _OPTIONS}

    def rate(self, step: int) -> float:
        """Returns the learning rate of a step; each phase has a short warm-up and one cosine period."""
        if step < self.first_phase:
            return self._schedule.at_step(step, self._steps, self._config.largest_epochs)
        return self._schedule.at_step(step - self.first_phase, self._steps, self._config.elastic_epochs)

    def choose(self, step: int) -> list[np.ndarray]:
        """Returns the encoded sub-networks of a step."""
        if step < self.first_phase:
            return [self._largest]
        space, count = self.net.space, self._config.networks
        rng = np.random.default_rng([self._config.seed, 2, step])
        if self._config.sampling == "fair":
            return [space.encode(values) for values in draw_fairly(space, count, rng)]
        fixed = [space.largest(), space.smallest()][:count] if self._config.sampling == "sandwich" else []
        return [space.encode(values) for values in [*fixed, *(space.sample(rng) for _ in range(count - len(fixed)))]]

    def take_step(self, step: int, images: Any, labels: Any) -> tuple[float, float]:
        """Takes a step on a batch; returns the loss of its first sub-network and the mean loss of all.

        Raises:
            DivergedError: a loss is no longer finite; the weights have not changed.
        """
        if step == self.first_phase and self.first_phase:
            self.weights.assign(sort_channels(self.net, self.weights.numpy()))
            self.velocity.assign(tf.zeros_like(self.velocity))
        sandwich = self._config.sampling == "sandwich"
        distillation = self._config.distillation if step >= self.first_phase else 0.0
        images, labels = tf.constant(images, tf.float32), tf.constant(labels, tf.int32)
        # logits of the largest sub-network, which teaches the others; in the sandwich rule it is the first
        teacher = tf.zeros([len(labels), self.net.classes])
        if distillation and not sandwich:
            teacher = self._gradient(self.weights, self._largest, images, labels, teacher, 0.0)[1]
        losses, gradients = [], []
        for number, encoded in enumerate(self.choose(step)):
            teaches = sandwich and number == 0
            weight = 0.0 if teaches else distillation
            loss, logits, gradient = self._gradient(self.weights, encoded, images, labels, teacher, weight)
            teacher = logits if teaches else teacher
            losses.append(float(loss))
            gradients.append(gradient)
        if not np.isfinite(losses).all():
            raise DivergedError(
                f"the loss of the supernet is {losses} in step {step + 1}: the training diverged; lower its "
                "learning rate, --supernet_rate"
            )
        gradient = tf.add_n(gradients) / len(gradients)
        self._optimizer.apply([self.weights], [self.velocity], [gradient], self.rate(step), [self._decayed])
        return losses[0], float(np.mean(losses))

    def _loss_and_gradient(self, weights, encoded, images, labels, teacher, distillation) -> tuple[Any, Any, Any]:
        with tf.GradientTape() as tape:
            tape.watch(weights)
            logits = self.net.logits(weights, encoded, images)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
            soft = tf.nn.softmax_cross_entropy_with_logits(tf.nn.softmax(teacher), logits)
            total = loss + distillation * tf.reduce_mean(soft)
        return loss, logits, tape.gradient(total, weights)


def draw_fairly(space: TinySpace, count: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Draws `count` sub-networks in which the choices of each decision occur equally often, up to one more or less."""
    dealt = {each.name: np.resize(rng.permutation(len(each.choices)), count) for each in space.decisions}
    dealt = {name: rng.permutation(choices) for name, choices in dealt.items()}
    return [{each.name: each.choices[dealt[each.name][number]] for each in space.decisions} for number in range(count)]


def sort_channels(net: Supernet, weights: np.ndarray) -> np.ndarray:
    """Returns the weights with each block's expanded channels sorted by importance; the outputs do not change.

    A channel's importance is the sum of the magnitudes of its weights in the projection (once-for-all, section 3.2).
    Narrow sub-networks use the first channels, which then are the most important ones.
    """
    named = {name: value.copy() for name, value in net.packing.unpack(weights).items()}
    for name in (f"block{number}" for number in range(len(net.space.blocks))):
        order = np.argsort(-np.abs(named[f"{name}/project"]).sum(axis=(0, 1, 3)), kind="stable")
        named[f"{name}/project"] = named[f"{name}/project"][:, :, order]
        named[f"{name}/depthwise"] = named[f"{name}/depthwise"][:, :, order]
        for last in ("expand", "expand_scale", "expand_shift", "depthwise_scale", "depthwise_shift"):
            named[f"{name}/{last}"] = named[f"{name}/{last}"][..., order]
    return np.concatenate([named[shape.name].ravel() for shape in net.packing.shapes]).astype(np.float32)
