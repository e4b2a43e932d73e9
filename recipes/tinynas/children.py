"""Sub-networks of TinyNAS' once-for-all network as what a search tries: their limits, and their scores."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from recipes.engine import tuner
from recipes.engine.children import NetworkScorer
from recipes.tinynas.config import Config
from recipes.tinynas.needs import Needs, needs
from recipes.tinynas.supernet import Supernet
from recipes.training.evaluation import Scores, evaluate
from zoo import atomic

_SCORING_BATCH = 500  # images


class InheritedAccuracy:
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
        vector, choice, pixels = net.input_specs(images.shape[1:])
        statistics = tf.TensorSpec([net.statistics.size])
        self._moments = tf.function(net.moments, [vector, choice, pixels], autograph=False)
        self._infer = tf.function(net.infer, [vector, statistics, choice, pixels], autograph=False)

    def statistics(self, values: Mapping[str, Any]) -> np.ndarray:
        """Returns mean and variance of every normalisation in this sub-network, averaged over the batches."""
        choice = tf.constant(self.net.space.choice(values))
        total = np.zeros(self.net.statistics.size, np.float64)
        for images in self._calibration:
            total += self._moments(self.weights, choice, images).numpy()
        return (total / len(self._calibration)).astype(np.float32)

    def predictor(self, values: Mapping[str, Any], statistics: np.ndarray) -> Callable[[Any], Any]:
        """Returns the sub-network with these statistics, as a function of normalised images to logits."""
        choice, moments = tf.constant(self.net.space.choice(values)), tf.constant(statistics)
        return lambda images: self._infer(self.weights, moments, choice, images)

    def logits(self, values: Mapping[str, Any], statistics: np.ndarray) -> np.ndarray:
        """Returns the logits of all images."""
        predict = self.predictor(values, statistics)
        return np.concatenate([predict(images).numpy() for images, _ in self._batches])

    def __call__(self, values: Mapping[str, Any]) -> tuple[Scores, np.ndarray]:
        """Returns accuracy and loss, and the statistics."""
        statistics = self.statistics(values)
        return evaluate(self.predictor(values, statistics), self._batches), statistics


@dataclasses.dataclass(frozen=True)
class SubNetworks(NetworkScorer):
    """Sub-networks of the once-for-all network `net`, scored by the weights that they inherit.

    `weights` is the flat vector of the trained network.
    """

    net: Supernet
    weights: np.ndarray

    def needs(self, values: Mapping[str, Any]) -> Needs:
        """Returns what the sub-network needs."""
        return needs(self.net.space.body(values), self.images.input_shape, self.images.classes)

    def check(self, values: Mapping[str, Any]) -> str | None:
        """Returns which limit the network exceeds, or None; its latency is measured, after all else."""
        config, found = self.config, self.needs(values)
        assert isinstance(config, Config)
        for name, value, most in (("params", found.params, config.max_params), ("macs", found.macs, config.max_macs)):
            if most is not None and value > most:
                return f"{value:,} {name}, more than {most:,}"
        if reason := config.budget().exceeded(found):
            return reason
        if config.max_latency is not None and (milliseconds := self.latency(values)) > config.max_latency:
            return f"{milliseconds:.4g} ms, more than {config.max_latency:.4g}"
        return None

    @functools.cached_property
    def inherited_accuracy(self) -> InheritedAccuracy:
        """Of the validation images."""
        config, train = self.config, self.images.train
        assert isinstance(config, Config)
        count = config.calibration_batches * config.batch_size
        pixels = train.head(count)[0]
        calibration = np.resize(np.asarray(self.normalization(pixels)), (count, *self.images.input_shape))
        images, labels = self.images.validation.head(len(self.images.validation))
        return InheritedAccuracy(
            self.net,
            self.weights,
            calibration.reshape(config.calibration_batches, config.batch_size, *self.images.input_shape),
            np.asarray(self.normalization(images)),
            labels,
        )

    def score(self, task: tuner.Task) -> dict[str, float]:
        """Returns the accuracy by inherited weights, and what is predicted; the statistics are the checkpoint."""
        scores, statistics = self.inherited_accuracy(task.values)
        with atomic.replacing(task.folder / "statistics.npy") as stream:
            np.save(stream, statistics)
        predicted = {name: float(value) for name, value in dataclasses.asdict(self.needs(task.values)).items()}
        return {"val_accuracy": scores.accuracy, "val_loss": scores.loss} | predicted


def candidates(scorer: SubNetworks) -> Iterator[dict[str, Any]]:
    """Yields different random sub-networks that keep all limits, the same ones for the same seed."""
    rng, space, seen = np.random.default_rng([scorer.config.seed, 5]), scorer.net.space, set()
    while True:
        values = space.random(rng)
        if (key := space.key(values)) not in seen and scorer.check(values) is None:
            seen.add(key)
            yield values
