"""The once-for-all network of a TinyNAS search: its batches, and its training from the first or from a saved step."""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from recipes.images import augment
from recipes.images import sources as image_data
from recipes.images.parts import Part, Stream
from recipes.tinynas.config import Config
from recipes.tinynas.elastic import Elastic, Settings
from recipes.tinynas.supernet import Supernet
from recipes.training import tensorflow_options
from zoo import atomic

# What the shared weights depend on, beside Settings: searches that agree in these may share them.
_OPTIONS = (
    "data", "image_size", "training_images", "batch_size", "augment", "strides", "kernels", "expansions", "depths",
    "shares", "kernel_transform",
)  # fmt: skip


def train_supernet(
    config: Config,
    net: Supernet,
    images: image_data.Data,
    normalize: Callable[[Any], Any],
    report: Callable[[float, str], None],
) -> np.ndarray:
    """Returns the weights of the trained once-for-all network; goes on where an earlier process has saved them.

    Raises:
        FloatingPointError: the training diverged.
        ValueError: the state is that of other options.
    """
    state = make(config, net, images)
    path, settings = config.supernet or config.folder / "supernet.npz", state.settings
    state.restore(path)
    with tensorflow_options.without_rewrites():
        saved, begun = time.monotonic(), state.step
        try:
            for pixels, labels in batches(config, images, settings.steps, state.step):
                if state.step >= settings.total:
                    break
                epochs = settings.largest_epochs + settings.elastic_epochs
                loss = f", loss {state.history[-1]['loss']:.4g}" if state.history else ""
                report(
                    state.step / settings.total,
                    f"supernet, epoch {state.step // settings.steps + 1} of {epochs}{loss}",
                )
                state.learn((normalize(pixels), labels))
                if time.monotonic() - saved > config.save_seconds:
                    state.save(path)
                    saved = time.monotonic()
        finally:
            if state.step > begun:
                state.save(path)  # after Ctrl-C, too
    atomic.write_atomically(config.folder / "supernet.json", json.dumps(state.history, indent=1) + "\n")
    return state.weights.numpy()


def make(config: Config, net: Supernet, images: image_data.Data) -> Elastic:
    """Returns the training of the once-for-all network in its first state."""
    settings = Settings(
        steps=max(1, len(images.train) // config.batch_size),
        largest_epochs=config.largest_epochs,
        elastic_epochs=config.elastic_epochs,
        networks=config.networks,
        sampling=config.sampling,
        distillation=config.distillation,
        learning_rate=config.supernet_rate,
        weight_decay=config.weight_decay,
    )
    options = {name: value for name, value in config.settings().items() if name in _OPTIONS}
    return Elastic(net, settings, config.seed, images.input_shape, {**options, "width": net.space.width})


def batches(config: Config, images: image_data.Data, steps: int, step: int) -> Iterator[tuple[Any, Any]]:
    """Yields the batches of step `step` and those behind it; each depends on the seed and its number alone."""
    part, size = images.train, config.batch_size
    shift = images.input_shape[0] // 8
    change = augment.cifar(padding=shift, cutout_length=0) if config.augment else None
    while True:
        epoch, first = divmod(step, steps)
        for pixels, labels in _epoch(part, size, config.seed, epoch, first):
            if change is not None:
                pixels = change(tf.constant(pixels), tf.constant([config.seed, step]))
            yield pixels, labels
            step += 1


def _epoch(part: Part, size: int, seed: int, epoch: int, first: int) -> Iterator[tuple[Any, Any]]:
    if isinstance(part, Stream):
        yield from part.dataset(size, training=True, preprocess=lambda x: x, seed=seed, epoch=epoch).skip(first)
        return
    order = np.random.default_rng([seed, 0, epoch]).permutation(len(part))
    for number in range(first, max(1, len(part) // size)):
        chosen = order[number * size : (number + 1) * size]
        yield part.images[chosen], part.labels[chosen]
