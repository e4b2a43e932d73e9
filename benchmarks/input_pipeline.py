"""Augmented images per second: this project's batched steps against tf.image per image and Keras' layers.

Takes half a minute, with `--smoke` some seconds. All pad by 4, crop, flip and scale to 0..1. The other two draw random
numbers in sequence, so that a resumed run sees other images; Keras' RandomCrop cuts the same window out of a whole
batch, and Keras has no cutout of fixed size.
"""

import statistics
import time

import keras
import numpy as np
import tensorflow as tf

from benchmarks.machine import describe_machine, make_parser
from recipes.images import augment
from recipes.images.parts import Arrays

BATCH = 64
REPEATS = 5
SEED = 1


def make_ours(part: Arrays, cutout: bool) -> tf.data.Dataset:
    """Returns the project's own pipeline."""
    return part.dataset(BATCH, training=True, augment=augment.cifar(4, 8 if cutout else 0), seed=SEED)


def make_per_image(part: Arrays, cutout: bool) -> tf.data.Dataset:
    """Returns the pipeline of tutorials, which works image by image."""
    height, width, channels = part.image_shape

    def change(image, label):
        padded = tf.image.pad_to_bounding_box(image, 4, 4, height + 8, width + 8)
        image = tf.image.random_flip_left_right(tf.image.random_crop(padded, (height, width, channels)))
        if cutout:
            row, column = (tf.random.uniform([], 0, side, tf.int32) for side in (height, width))
            inside = (abs(tf.range(height) - row) < 4)[:, None] & (abs(tf.range(width) - column) < 4)[None, :]
            image = tf.where(inside[..., None], tf.zeros_like(image), image)
        return tf.cast(image, tf.float32) / 255, label

    data = tf.data.Dataset.from_tensor_slices((part.images, part.labels)).shuffle(len(part), SEED)
    return data.map(change, tf.data.AUTOTUNE).batch(BATCH, drop_remainder=True).prefetch(tf.data.AUTOTUNE)


def make_keras_layers(part: Arrays, cutout: bool) -> tf.data.Dataset | None:
    """Returns a pipeline of Keras' preprocessing layers on batches; None with cutout, which Keras lacks."""
    if cutout:
        return None
    height, width, _ = part.image_shape
    layers = [
        keras.layers.ZeroPadding2D(4),
        keras.layers.RandomCrop(height, width, seed=SEED),
        keras.layers.RandomFlip("horizontal", seed=SEED),
        keras.layers.Rescaling(1 / 255),
    ]

    def change(images, labels):
        images = tf.cast(images, tf.float32)
        for layer in layers:
            images = layer(images, training=True) if "random" in layer.name else layer(images)
        return images, labels

    data = tf.data.Dataset.from_tensor_slices((part.images, part.labels)).shuffle(len(part), SEED)
    return data.batch(BATCH, drop_remainder=True).map(change, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def measure_rates(data: tf.data.Dataset, repeats: int) -> list[float]:
    """Returns the images per second of passes over all images."""
    rates = []
    for _ in range(repeats + 1):  # the first is the warm-up
        start, count = time.perf_counter(), 0
        for images, _ in data:
            count += len(images)
        rates.append(count / (time.perf_counter() - start))
    return rates[1:]


def main() -> None:
    """Prints a line for each pipeline."""
    smoke = make_parser(__doc__, smoke="128 images, once").parse_args().smoke
    images, repeats = (2 * BATCH, 1) if smoke else (10_000, REPEATS)
    print(f"{describe_machine('tensorflow', 'keras')}; batch {BATCH}, seed {SEED}, {repeats} repeats")
    for shape in ((28, 28, 1), (32, 32, 3)):
        pixels = np.random.default_rng(SEED).integers(0, 256, (images, *shape), np.uint8)
        part = Arrays(pixels, np.zeros(len(pixels), np.int32))
        for cutout in (False, True):
            base = None
            for name, make in (("ours", make_ours), ("tf.image", make_per_image), ("Keras layers", make_keras_layers)):
                data = make(part, cutout)
                if data is None:
                    continue
                rates = measure_rates(data, repeats)
                median = statistics.median(rates)
                base = base or median
                steps = "crop, flip, cutout" if cutout else "crop, flip"
                print(
                    f"{' x '.join(map(str, shape))}, {steps}: {name:12} {median:9,.0f} images/s "
                    f"({min(rates):,.0f} to {max(rates):,.0f}), ours is {base / median:.1f} times as fast"
                )


if __name__ == "__main__":
    main()
