"""One training on several devices: each takes a share of every batch, and their gradients are added up.

That makes a long trial shorter. A search with more trials than devices is faster with one trial a device: nothing has
to be added up there. docs/clusters.md compares the two.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf


def list_gpus() -> list[str]:
    """Returns the GPUs that this process may use, if there are several; none otherwise."""
    names = [device.name for device in tf.config.list_logical_devices("GPU")]
    return names if len(names) > 1 else []


@functools.cache
def _strategy(devices: tuple[str, ...]) -> tf.distribute.MirroredStrategy:
    """Returns the one strategy of these devices: a second one would number its sums as the first did, and mix them."""
    return tf.distribute.MirroredStrategy(list(devices))


class Mirror:
    """Copies of a network on `devices`, with equal weights after every step.

    Batch normalization sees the share of its device, as is usual; what is kept are the first device's averages.
    """

    def __init__(self, devices: Sequence[str]):
        self._strategy = _strategy(tuple(devices))
        self.count = self._strategy.num_replicas_in_sync

    def scope(self) -> Any:
        """Returns a context in which variables are made on every device."""
        return self._strategy.scope()

    def add_up(self, tensors: Any) -> Any:
        """Returns the sums over all devices; for use within a step."""
        context = tf.distribute.get_replica_context()
        return context.all_reduce(tf.distribute.ReduceOp.SUM, tensors)

    def run_on_all(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a function of a batch that runs `step` on every device with its share.

        `step` takes images, labels, the learning rate, and the factor that makes the sum of its losses its part of the
        batch's mean; it returns what is equal on all devices.
        """

        def together(images: Any, labels: Any, rate: Any, factors: Any) -> Any:
            results = self._strategy.run(step, args=(images, labels, rate, factors))
            return self._strategy.experimental_local_results(results)[0]

        traced = tf.function(together, autograph=False, reduce_retracing=True)

        def whole(images: tf.Tensor, labels: tf.Tensor, rate: tf.Tensor) -> Any:
            places = np.array_split(np.arange(len(images)), self.count)
            factor = 1 / len(images)
            if not len(places[-1]):  # fewer images than devices: an empty share has no statistics, so all take all
                places, factor = [np.arange(len(images))] * self.count, factor / self.count
            shares = [slice(place[0], place[-1] + 1) for place in places]
            return traced(
                self._each(lambda index: images[shares[index]]),
                self._each(lambda index: labels[shares[index]]),
                rate,
                tf.constant(factor, tf.float32),
            )

        return whole

    def _each(self, share: Callable[[int], tf.Tensor]) -> Any:
        return self._strategy.experimental_distribute_values_from_function(
            lambda context: share(context.replica_id_in_sync_group)
        )
