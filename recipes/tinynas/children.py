"""Sub-networks of TinyNAS' once-for-all network as what a search tries: their limits, and their scores."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from recipes.engine import tuner
from recipes.engine.children import Children
from recipes.tinynas.config import Config
from recipes.tinynas.elastic import Scorer
from recipes.tinynas.needs import Needs, needs
from recipes.tinynas.supernet import Supernet
from zoo import atomic


@dataclasses.dataclass(frozen=True)
class SubNetworks(Children):
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
    def scorer(self) -> Scorer:
        """Of the validation images."""
        config, train = self.config, self.images.train
        assert isinstance(config, Config)
        count = config.calibration_batches * config.batch_size
        pixels = train.head(count)[0]
        calibration = np.resize(np.asarray(self.normalization(pixels)), (count, *self.images.input_shape))
        images, labels = self.images.validation.head(len(self.images.validation))
        return Scorer(
            self.net,
            self.weights,
            calibration.reshape(config.calibration_batches, config.batch_size, *self.images.input_shape),
            np.asarray(self.normalization(images)),
            labels,
        )

    def score(self, task: tuner.Task) -> dict[str, float]:
        """Returns the accuracy by inherited weights, and what is predicted; the statistics are the checkpoint."""
        accuracy, loss, statistics = self.scorer(task.values)
        with atomic.replacing(task.folder / "statistics.npy") as stream:
            np.save(stream, statistics)
        predicted = {name: float(value) for name, value in dataclasses.asdict(self.needs(task.values)).items()}
        return {"val_accuracy": accuracy, "val_loss": loss} | predicted


def candidates(children: SubNetworks) -> Iterator[dict[str, Any]]:
    """Yields different random sub-networks that keep all limits, the same ones for the same seed."""
    rng, space, seen = np.random.default_rng([children.config.seed, 5]), children.net.space, set()
    while True:
        values = space.random(rng)
        if (key := space.key(values)) not in seen and children.check(values) is None:
            seen.add(key)
            yield values
