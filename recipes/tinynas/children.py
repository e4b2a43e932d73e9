"""Sub-networks of TinyNAS' once-for-all network as what a search tries: limits, scores, and networks of their own."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import zoo
from recipes.engine import tuner
from recipes.engine.children import NetworkScorer
from recipes.tinynas.config import Config
from recipes.tinynas.needs import Needs, predict_needs
from recipes.tinynas.supernet import MOMENTS, Supernet
from recipes.training.evaluation import Scores, evaluate
from zoo import atomic
from zoo.genotype import Genotype

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
        vector, encoded, pixels = net.input_specs(images.shape[1:])
        statistics = tf.TensorSpec([net.statistics.size])
        self._moments = tf.function(net.moments, [vector, encoded, pixels], autograph=False)
        self._infer = tf.function(net.infer, [vector, statistics, encoded, pixels], autograph=False)

    def statistics(self, values: Mapping[str, Any]) -> np.ndarray:
        """Returns mean and variance of every normalisation in this sub-network, averaged over the batches."""
        encoded = tf.constant(self.net.space.encode(values))
        total = np.zeros(self.net.statistics.size, np.float64)
        for images in self._calibration:
            total += self._moments(self.weights, encoded, images).numpy()
        return (total / len(self._calibration)).astype(np.float32)

    def predictor(self, values: Mapping[str, Any], statistics: np.ndarray) -> Callable[[Any], Any]:
        """Returns the sub-network with these statistics, as a function of normalised images to logits."""
        encoded, moments = tf.constant(self.net.space.encode(values)), tf.constant(statistics)
        return lambda images: self._infer(self.weights, moments, encoded, images)

    def __call__(self, values: Mapping[str, Any]) -> tuple[Scores, np.ndarray]:
        """Returns accuracy and loss, and the statistics."""
        statistics = self.statistics(values)
        return evaluate(self.predictor(values, statistics), self._batches), statistics


@dataclasses.dataclass(frozen=True)
class SubNetworks(NetworkScorer):
    """Sub-networks of the once-for-all network `net`, scored by the weights that they inherit.

    `weights` is the flat vector of the trained network.
    """

    config: Config
    net: Supernet
    weights: np.ndarray

    def predict_needs(self, values: Mapping[str, Any]) -> Needs:
        """Returns what the sub-network needs."""
        return predict_needs(self.net.space.body(values), self.images.input_shape, self.images.classes)

    def check(self, values: Mapping[str, Any]) -> str | None:
        """Returns which limit the network exceeds, or None; its latency is measured last."""
        config, needs = self.config, self.predict_needs(values)
        for name, value, most in (("params", needs.params, config.max_params), ("macs", needs.macs, config.max_macs)):
            if most is not None and value > most:
                return f"{value:,} {name}, more than {most:,}"
        if reason := config.budget.find_excess(needs):
            return reason
        if config.max_latency is not None and (milliseconds := self.latency(values)) > config.max_latency:
            return f"{milliseconds:.4g} ms, more than {config.max_latency:.4g}"
        return None

    @functools.cached_property
    def inherited_accuracy(self) -> InheritedAccuracy:
        """On the validation images."""
        batches, size = self.config.calibration_batches, self.config.batch_size
        calibration = np.asarray(self.normalization(self.images.train.head(batches * size)[0]))
        calibration = np.resize(calibration, (batches, size, *self.images.input_shape))
        images, labels = self.images.validation.head(len(self.images.validation))
        return InheritedAccuracy(self.net, self.weights, calibration, np.asarray(self.normalization(images)), labels)

    def score(self, task: tuner.Task) -> dict[str, float]:
        """Returns the accuracy by inherited weights, and what is predicted; the statistics are the checkpoint."""
        scores, statistics = self.inherited_accuracy(task.values)
        with atomic.replacing(task.folder / "statistics.npy") as stream:
            np.save(stream, statistics)
        predicted = self.predict_needs(task.values)._asdict()
        return {"val_accuracy": scores.accuracy, "val_loss": scores.loss, **{k: float(v) for k, v in predicted.items()}}

    def sample_fitting(self) -> Iterator[dict[str, Any]]:
        """Yields different random sub-networks that keep all limits, the same ones for the same seed."""
        rng, space, seen = np.random.default_rng([self.config.seed, 5]), self.net.space, set()
        while True:
            values = space.sample(rng)
            if (key := space.key(values)) not in seen and self.check(values) is None:
                seen.add(key)
                yield values


def build_standalone(
    net: Supernet, weights: Any, statistics: np.ndarray, values: Mapping[str, Any], genotype: Genotype
) -> keras.Model:
    """Returns a sub-network as a network of its own, with the weights that it inherits and logits as its output.

    Args:
        net, weights: the once-for-all network.
        statistics: of this sub-network's normalisations, flat as `Supernet.moments` gives them.
        values: the sub-network, decision -> choice.
        genotype: of the same network, with a preset of the images' shape.
    """
    model = zoo.build(genotype, classes=net.classes, classifier_activation=None)
    for layer, arrays in _list_layers(net, np.asarray(weights), statistics, values).items():
        model.get_layer(layer).set_weights(arrays)
    return model


def _list_layers(
    net: Supernet, weights: np.ndarray, statistics: np.ndarray, values: Mapping[str, Any]
) -> dict[str, list[np.ndarray]]:
    """Returns name of a layer, as zoo.build names it -> its weights."""
    named, moments = net.packing.unpack(weights), net.statistics.unpack(statistics)
    found = {}

    def put(prefix: str, name: str, kernel: np.ndarray) -> None:
        depthwise = name.endswith("depthwise")
        filters = kernel.shape[2 if depthwise else 3]
        found[prefix if depthwise else f"{prefix}_conv"] = [kernel]
        vectors = (named[f"{name}_scale"], named[f"{name}_shift"], *(moments[f"{name}/{what}"] for what in MOMENTS))
        found[f"{prefix}_bn"] = [vector[:filters] for vector in vectors]

    put("stem", "stem", named["stem"])
    for name in ("depthwise", "project"):
        put(f"block00_0_{name}", f"first/{name}", named[f"first/{name}"])
    row, last = 1, net.space.first_filters
    for number, (present, kernel, inputs, middle, filters) in enumerate(net.space.encode(values).tolist()):
        if not present:
            continue
        prefix, name = f"block{row:02d}_0", f"block{number}"
        own = {key: tf.constant(value) for key, value in named.items() if key.startswith(f"{name}/")}
        put(f"{prefix}_expand", f"{name}/expand", named[f"{name}/expand"][:, :, :inputs, :middle])
        put(f"{prefix}_depthwise", f"{name}/depthwise", net.cut_window(own, name, kernel, middle).numpy())
        put(f"{prefix}_project", f"{name}/project", named[f"{name}/project"][:, :, :middle, :filters])
        row, last = row + 1, filters
    found["predictions"] = [named["classifier"][:last], named["classifier_bias"]]
    return found
