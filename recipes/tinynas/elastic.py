"""Training of a once-for-all network: the largest sub-network first, then several a step; and scores by its weights.

The state is two vectors and a step number; what a step draws depends on the seed and its number alone. So a killed
training goes on at the step that was saved, on the same way.

Source: Lin et al., arXiv:2007.10319, appendices D and E; sandwich rule and distillation: Yu and Huang, "Universally
Slimmable Networks", ICCV 2019. Departure: the gradients of a step's sub-networks are averaged, where once-for-all's
code adds them up, so that one learning rate serves both phases.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from recipes.tinynas.supernet import Supernet
from recipes.training.schedules import Schedule
from recipes.training.state import TrainingState

Batch = tuple[Any, Any]  # images as the network reads them, labels
_SCORING_BATCH = 500  # images


@dataclasses.dataclass(frozen=True)
class Settings:
    """How the shared weights learn: SGD with momentum, one cosine period in each phase.

    Attributes:
        steps: in an epoch.
        largest_epochs, elastic_epochs: of the two phases.
        networks: sub-networks a step in the second phase.
        sampling: "random", as in MCUNet; "sandwich": the largest, the smallest, the rest random.
        distillation: weight of the cross-entropy with the largest sub-network's probabilities; 0 leaves it out.
        learning_rate, momentum, weight_decay, clip: of SGD; `clip` is the largest norm of the gradient.
    """

    steps: int
    largest_epochs: int
    elastic_epochs: int
    networks: int = 4
    sampling: Literal["random", "sandwich"] = "random"
    distillation: float = 0.0
    learning_rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-5
    clip: float = 5.0

    @property
    def first_phase(self) -> int:
        """Steps of the largest sub-network alone."""
        return self.steps * self.largest_epochs

    @property
    def total(self) -> int:
        """All steps."""
        return self.steps * (self.largest_epochs + self.elastic_epochs)

    def rate(self, step: int) -> float:
        """Returns the learning rate of a step; each phase warms up for at most ten."""
        epochs, start = (self.largest_epochs, 0) if step < self.first_phase else (self.elastic_epochs, self.first_phase)
        warmup = min(10, self.steps) / self.steps
        schedule = Schedule("cosine", self.learning_rate, warmup=warmup)
        return schedule.at_step(step - start, self.steps, epochs)


class Elastic:
    """A once-for-all network in training; `step` counts the steps that are done, `history` holds a record an epoch."""

    def __init__(
        self,
        net: Supernet,
        settings: Settings,
        seed: int,
        image_shape: Sequence[int],
        options: Mapping[str, Any] | None = None,
    ):
        """Starts anew; `options`, JSON values, tell this search from others whose state it must not take over."""
        self._options = dict(options or {})
        self.net, self.settings, self.seed = net, settings, seed
        self.step = 0
        self.history: list[dict[str, float]] = []
        self.losses: list[list[float]] = []  # of this epoch's steps: the first sub-network's, and the mean
        self.weights: Any = tf.Variable(tf.constant(net.initial(seed)))
        self.velocity: Any = tf.Variable(tf.zeros_like(self.weights))
        self._decayed = tf.constant(net.decayed() * np.float32(settings.weight_decay))
        self._changing = False
        self._largest = net.space.choice(net.space.largest())
        signature = [tf.TensorSpec(shape, kind) for shape, kind in _specs(net, image_shape)]
        signature += [tf.TensorSpec([None], tf.int32), tf.TensorSpec([None, net.classes]), tf.TensorSpec([])]
        self._gradient = tf.function(self._loss_and_gradient, signature, autograph=False)

    def _loss_and_gradient(self, weights, choice, images, labels, taught, share) -> tuple[Any, Any, Any]:
        with tf.GradientTape() as tape:
            tape.watch(weights)
            logits = self.net.logits(weights, choice, images)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
            soft = tf.nn.softmax_cross_entropy_with_logits(tf.nn.softmax(taught), logits)
            total = loss + share * tf.reduce_mean(soft)
        return loss, logits, tape.gradient(total, weights)

    def choices(self) -> list[np.ndarray]:
        """Returns the sub-networks of this step."""
        if self.step < self.settings.first_phase:
            return [self._largest]
        space, count = self.net.space, self.settings.networks
        rng = np.random.default_rng([self.seed, 2, self.step])
        fixed = [space.largest(), space.smallest()][:count] if self.settings.sampling == "sandwich" else []
        return [space.choice(values) for values in [*fixed, *(space.random(rng) for _ in range(count - len(fixed)))]]

    def learn(self, batch: Batch) -> None:
        """Takes one step on a batch, and notes its losses.

        Raises:
            FloatingPointError: a loss is not a number any more; the weights are those of before.
        """
        if self.step == self.settings.first_phase and self.settings.first_phase:
            self._begin_second_phase()
        choices, settings = self.choices(), self.settings
        images, labels = tf.constant(batch[0], tf.float32), tf.constant(batch[1], tf.int32)
        share = settings.distillation if self.step >= settings.first_phase else 0.0
        blank = tf.zeros([len(labels), self.net.classes])
        taught = blank
        if share and settings.sampling == "random":
            taught = self._gradient(self.weights, self._largest, images, labels, blank, 0.0)[1]
        losses, gradients = [], []
        for number, choice in enumerate(choices):
            taught_here = 0.0 if settings.sampling == "sandwich" and number == 0 else share
            loss, logits, gradient = self._gradient(self.weights, choice, images, labels, taught, taught_here)
            if settings.sampling == "sandwich" and number == 0:
                taught = logits
            losses.append(float(loss))
            gradients.append(gradient)
        if not np.isfinite(losses).all():
            raise FloatingPointError(
                f"the loss of the supernet is {losses} in step {self.step + 1}: the training diverged; lower its "
                "learning rate"
            )
        self._apply(tf.add_n(gradients) / len(gradients), losses)

    def _apply(self, gradient: Any, losses: list[float]) -> None:
        settings = self.settings
        gradient = tf.clip_by_norm(gradient, settings.clip) + self._decayed * self.weights
        velocity = settings.momentum * self.velocity + gradient
        weights = self.weights - settings.rate(self.step) * velocity
        self._changing = True  # from here on a state that is saved would not fit together
        self.velocity.assign(velocity)
        self.weights.assign(weights)
        self.losses.append([losses[0], float(np.mean(losses))])
        self.step += 1
        if self.step % settings.steps == 0:
            first, mean = np.mean(self.losses, axis=0)
            self.history.append({"step": self.step, "loss": float(mean), "first_loss": float(first)})
            self.losses = []
        self._changing = False

    def _begin_second_phase(self) -> None:
        self.weights.assign(sorted_channels(self.net, self.weights.numpy()))
        self.velocity.assign(tf.zeros_like(self.velocity))

    def _state(self, path: Path) -> TrainingState:
        identity = {"size": self.net.packing.size, "seed": self.seed} | dataclasses.asdict(self.settings)
        return TrainingState(path, identity | self._options)

    def save(self, path: Path) -> None:
        """Writes the state, whole or not at all; does nothing in the midst of a step."""
        if not self._changing:
            facts = {"step": self.step, "history": self.history, "losses": self.losses}
            self._state(path).save(facts, {"vector": [self.weights, self.velocity]})

    def restore(self, path: Path) -> None:
        """Takes over the state of the file, where there is one; see TrainingState for errors."""
        facts = self._state(path).restore({"vector": [self.weights, self.velocity]})
        if facts is not None:
            self.step, self.history, self.losses = facts["step"], facts["history"], facts["losses"]


def _specs(net: Supernet, image_shape: Sequence[int]) -> list[tuple[list[int | None], Any]]:
    return [
        ([net.packing.size], tf.float32),
        ([len(net.space.places), 5], tf.int32),
        ([None, *image_shape], tf.float32),
    ]


def sorted_channels(net: Supernet, weights: np.ndarray) -> np.ndarray:
    """Returns the weights with the expanded channels of each block in order of importance; the outputs stay the same.

    Important is a channel whose weights in the projection have a large sum of magnitudes (once-for-all, section 3.2).
    Narrow sub-networks take the first channels, which are then the best ones.
    """
    named = {name: value.copy() for name, value in net.packing.unpack(weights).items()}
    for number in range(len(net.space.places)):
        name = f"block{number}"
        order = np.argsort(-np.abs(named[f"{name}/project"]).sum(axis=(0, 1, 3)), kind="stable")
        named[f"{name}/project"] = named[f"{name}/project"][:, :, order]
        named[f"{name}/depthwise"] = named[f"{name}/depthwise"][:, :, order]
        named[f"{name}/expand"] = named[f"{name}/expand"][..., order]
        for layer in ("expand", "depthwise"):
            for vector in ("scale", "shift"):
                named[f"{name}/{layer}_{vector}"] = named[f"{name}/{layer}_{vector}"][order]
    return np.concatenate([named[shape.name].ravel() for shape in net.packing.shapes]).astype(np.float32)


class Scorer:
    """Accuracy of sub-networks by the weights that they inherit, normalisation recalibrated for each.

    Args:
        net, weights: the once-for-all network.
        calibration: batches of images (batches, batch, height, width, channels) for the statistics.
        images, labels: what is scored on.
    """

    def __init__(self, net: Supernet, weights: Any, calibration: np.ndarray, images: np.ndarray, labels: np.ndarray):
        self.net, self.weights = net, tf.constant(weights)
        self._calibration = [tf.constant(batch, tf.float32) for batch in calibration]
        self._batches = [
            (tf.constant(images[start : start + _SCORING_BATCH], tf.float32), labels[start : start + _SCORING_BATCH])
            for start in range(0, len(images), _SCORING_BATCH)
        ]
        (size, choice, pixels) = (tf.TensorSpec(shape, kind) for shape, kind in _specs(net, images.shape[1:]))
        statistics = tf.TensorSpec([net.statistics.size])
        self._moments = tf.function(net.moments, [size, choice, pixels], autograph=False)
        self._infer = tf.function(net.infer, [size, statistics, choice, pixels], autograph=False)

    def statistics(self, values: Mapping[str, Any]) -> np.ndarray:
        """Returns mean and variance of every normalisation in this sub-network, averaged over the batches."""
        choice = tf.constant(self.net.space.choice(values))
        total = np.zeros(self.net.statistics.size, np.float64)
        for images in self._calibration:
            total += self._moments(self.weights, choice, images).numpy()
        return (total / len(self._calibration)).astype(np.float32)

    def logits(self, values: Mapping[str, Any], statistics: np.ndarray) -> np.ndarray:
        """Returns the logits of all images."""
        choice, moments = tf.constant(self.net.space.choice(values)), tf.constant(statistics)
        parts = [self._infer(self.weights, moments, choice, images).numpy() for images, _ in self._batches]
        return np.concatenate(parts)

    def __call__(self, values: Mapping[str, Any]) -> tuple[float, float, np.ndarray]:
        """Returns accuracy (0 to 1), mean cross-entropy and the statistics."""
        statistics = self.statistics(values)
        logits = self.logits(values, statistics).astype(np.float64)
        labels = np.concatenate([labels for _, labels in self._batches])
        largest = logits.max(axis=1, keepdims=True)
        log_sum = np.log(np.exp(logits - largest).sum(axis=1)) + largest[:, 0]
        loss = float((log_sum - logits[np.arange(len(labels)), labels]).mean())
        return float((logits.argmax(axis=1) == labels).mean()), loss, statistics
