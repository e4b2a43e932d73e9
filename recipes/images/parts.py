"""A part of a data set (train, validation or test) as batches, and as arrays if it fits in memory.

`Part.dataset` is a tf.data pipeline, for Keras and long trainings. `Batches` samples a part without a pipeline, for the
networks that a search trains: building a pipeline takes as long as many steps of a child network.
"""

import abc
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from recipes.images import augment as augmentations

_MIX = 2**20  # folded into the seed for mixing, so that it differs from those of an augmentation's steps


class Part(abc.ABC):
    """Images and labels, none of which are in another part.

    `images` is uint8 (count, height, width, channels), and `labels`, class numbers, is int32 (count,). For a part that
    streams, `images` raises an error.
    """

    image_shape: tuple[int, int, int]  # height, width, channels

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @property
    @abc.abstractmethod
    def images(self) -> np.ndarray:
        """All images."""

    @property
    @abc.abstractmethod
    def labels(self) -> np.ndarray:
        """All labels."""

    @abc.abstractmethod
    def take(self, indices: np.ndarray) -> "Part":
        """Returns a part with these examples, in this order."""

    @abc.abstractmethod
    def _batches(self, batch_size: int, shuffle: tf.Tensor | None, drop_remainder: bool) -> tf.data.Dataset:
        """Returns one pass of (images, labels), shuffled by the seed `shuffle`, of shape (2,), unless it is None."""

    def first(self, count: int | None) -> "Part":
        """Returns a part with at most `count` examples, or with all if `count` is None.

        They are ordered such that every prefix holds the classes in proportion. The choice is not random: it is the
        same in every run.
        """
        return self.take(self._order(None)[:count])

    def split(self, fraction: float, seed: int | None) -> tuple["Part", "Part"]:
        """Cuts off `fraction` of the examples, the same share of each class; returns (the rest, the part cut off).

        Args:
            seed: for a random choice; None takes the first of each class, so that no setting of a search can change it.
        """
        order = self._order(seed)
        count = round(fraction * len(self))
        return self.take(order[count:]), self.take(order[:count])

    def _order(self, seed: int | None) -> np.ndarray:
        """Returns the order in which examples are dealt out; every prefix holds the classes in proportion."""
        order = np.arange(len(self)) if seed is None else np.random.default_rng(seed).permutation(len(self))
        return order[_mix_classes(self.labels[order])]

    def head(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the first `count` images and labels as arrays, for calibration or a picture."""
        count = min(count, len(self))
        if count == 0:
            return np.zeros((0, *self.image_shape), np.uint8), np.zeros(0, np.int32)
        images, labels = next(iter(self._batches(count, None, drop_remainder=False)))
        return images.numpy(), labels.numpy()

    def steps(self, batch_size: int, *, training: bool = False) -> int:
        """Returns the number of batches that `dataset` yields in an epoch."""
        batches = len(self) / batch_size
        return math.floor(batches) if training and batches >= 1 else math.ceil(batches)

    def dataset(
        self,
        batch_size: int,
        *,
        training: bool = False,
        augment: augmentations.Augmentation | None = None,
        mix: augmentations.Mix | None = None,
        preprocess: Callable[[Any], Any] = augmentations.UNIT,
        seed: int = 0,
        epoch: int = 0,
        epochs: int | None = 1,
    ) -> tf.data.Dataset:
        """Returns batches of (images, labels) for `fit` and `evaluate`.

        Shuffling and augmentation depend only on `seed`, the epoch and the batch's place in it. So a run that resumes
        at epoch k sees what it would have seen without the interruption:

            model.fit(
                part.dataset(64, training=True, augment=policy, seed=1, epoch=k, epochs=None),
                steps_per_epoch=part.steps(64, training=True), initial_epoch=k, epochs=50, shuffle=False,
            )

        (Without shuffle=False, Keras 3.15 warns about a Dataset.)

        Args:
            training: whether to shuffle, and drop the last batch if it is not full (its images come in other epochs).
            augment: an Augmentation; for training only.
            mix: mixes images and labels, which then have the shape (batch, classes); for training only.
            preprocess: pixels 0..255 -> what the model reads; by default 0..1.
            seed: for shuffling and augmentation; without `training` it has no effect.
            epoch: the first epoch, from 0.
            epochs: number of epochs, one after another; None never ends.
        """
        self._check(batch_size, training, augment or mix, epoch, epochs)
        drop_remainder = training and len(self) >= batch_size

        def one_epoch(number: Any) -> tf.data.Dataset:
            key = tf.stack([tf.constant(seed, tf.int64), number])
            batches = self._batches(batch_size, key if training else None, drop_remainder)

            def finish(step: Any, batch: tuple[tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
                images, labels = batch
                if augment is not None:
                    images = augment(images, tf.random.fold_in(key, step))
                if mix is not None:
                    place: Any = tf.random.fold_in(key, step)
                    images, labels = mix(images, labels, tf.random.fold_in(place, _MIX))
                return preprocess(images), labels

            return batches.enumerate().map(finish, num_parallel_calls=tf.data.AUTOTUNE)

        last = epoch + epochs if epochs is not None else tf.int64.max
        batches = tf.data.Dataset.range(epoch, last).flat_map(one_epoch)
        count = (
            self.steps(batch_size, training=training) * epochs if epochs is not None else tf.data.INFINITE_CARDINALITY
        )
        return batches.apply(tf.data.experimental.assert_cardinality(count)).prefetch(tf.data.AUTOTUNE)

    def _check(self, batch_size: int, training: bool, augment: Any, epoch: int, epochs: int | None) -> None:
        if not len(self):
            raise ValueError(
                "this part holds no images: load the data with a validation_fraction or test_fraction above 0"
            )
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: expected at least 1")
        if epoch < 0 or (epochs is not None and epochs < 1):
            raise ValueError(f"epoch={epoch}, epochs={epochs}: epochs count from 0, and at least one is needed")
        if augment is not None and not training:
            raise ValueError("augment without training=True: evaluation takes the images as they are; omit augment")


class Arrays(Part):
    """A part in memory."""

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        if images.dtype != np.uint8 or images.ndim != 4 or labels.shape != images.shape[:1]:
            raise ValueError(
                f"images {images.dtype} {images.shape}, labels {labels.shape}: expected uint8 (count, height, width, "
                "channels) and labels (count,)"
            )
        self._images = images
        self._labels = labels.astype(np.int32)
        self.image_shape = images.shape[1:]

    def __len__(self) -> int:
        return len(self._labels)

    @property
    def images(self) -> np.ndarray:
        """The array itself, not a copy."""
        return self._images

    @property
    def labels(self) -> np.ndarray:
        """The array itself, not a copy."""
        return self._labels

    def take(self, indices: np.ndarray) -> "Arrays":
        """Returns a copy of these examples, in this order."""
        return Arrays(self._images[indices], self._labels[indices])

    def head(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the first `count` images and labels."""
        return self._images[:count], self._labels[:count]

    @functools.cached_property
    def _tensors(self) -> tuple[tf.Tensor, tf.Tensor]:
        # Outside of the graph that first uses them, and on the CPU, where tf.data runs whatever device trains.
        with tf.init_scope(), tf.device("CPU"):
            return tf.constant(self._images), tf.constant(self._labels)

    def _batches(self, batch_size: int, shuffle: tf.Tensor | None, drop_remainder: bool) -> tf.data.Dataset:
        images, labels = self._tensors
        order = tf.range(len(self))
        if shuffle is not None:
            order = tf.argsort(tf.random.stateless_uniform([len(self)], shuffle), stable=True)
        return (
            tf.data.Dataset.from_tensor_slices(order)
            .batch(batch_size, drop_remainder=drop_remainder)
            .map(lambda batch: (tf.gather(images, batch), tf.gather(labels, batch)))
        )


class Stream(Part):
    """A part that is read again in every epoch; a subclass defines `_decode`.

    Args:
        stored: (string, int32 label) for each example, always in the same order. The string is an encoded image or its
            path, since a shuffle buffer of decoded photographs would not fit in memory.
        count: number of examples.
        image_shape: height, width, channels of each decoded image.
        buffer: size of the shuffle buffer, in examples.
    """

    def __init__(self, stored: tf.data.Dataset, count: int, image_shape: tuple[int, int, int], buffer: int):
        self._stored = stored
        self._buffer = buffer
        self._count = count
        self.image_shape = image_shape

    def __len__(self) -> int:
        return self._count

    @property
    def images(self) -> np.ndarray:
        """Raises ValueError: the images are not in memory."""
        gigabytes = self._count * math.prod(self.image_shape) / 1e9
        raise ValueError(
            f"these {self._count:,} images stream from the disk and are not an array: use dataset() or head(), or load "
            f"them with a memory_limit= of {gigabytes:.1f} GB, a smaller size= or a limit="
        )

    @abc.abstractmethod
    def _decode(self, stored: tf.Tensor) -> tf.Tensor:
        """Returns the image, uint8 of `image_shape`, for a stored string."""

    def _batches(self, batch_size: int, shuffle: tf.Tensor | None, drop_remainder: bool) -> tf.data.Dataset:
        stored = self._stored if shuffle is None else self._shuffled(shuffle)
        examples = stored.map(lambda each, label: (self._decode(each), label), num_parallel_calls=tf.data.AUTOTUNE)
        return examples.batch(batch_size, drop_remainder=drop_remainder)

    def _shuffled(self, key: tf.Tensor) -> tf.data.Dataset:
        """Does what `Dataset.shuffle` does, which accepts no tensor as seed and mixes in the process' seed."""
        seeds = tf.random.stateless_uniform([2], key, 1, tf.int64.max, dtype=tf.int64)
        shuffled = tf.raw_ops.ShuffleDataset(
            input_dataset=tf.data.experimental.to_variant(self._stored),
            buffer_size=max(1, min(self._count, self._buffer)),
            seed=seeds[0],
            seed2=seeds[1],
            output_types=[tf.string, tf.int32],
            output_shapes=[(), ()],
            reshuffle_each_iteration=False,
        )
        return tf.data.experimental.from_variant(shuffled, self._stored.element_spec)

    def in_memory(self) -> Arrays:
        """Reads all images once and returns them as arrays."""
        batches = [(images.numpy(), labels.numpy()) for images, labels in self._batches(1024, None, False)]
        images, labels = zip(*batches, strict=True)
        return Arrays(np.concatenate(images), np.concatenate(labels))


class Batches:
    """Training batches of a part; each depends only on the seed, its epoch and its number.

    Args:
        part: the images.
        batch_size: at least 1.
        seed: for order and augmentation.
        stream: numbers that distinguish several Batches with one seed, such as those of two halves of the images.
        normalize: pixels 0..255 -> what the network reads.
        augment: applied to uint8 images, with a seed made of `seed`, `stream` and the number of batches before.
        keep_last: whether an epoch ends with a batch that may be smaller; if not, its images come in other epochs.
    """

    def __init__(
        self,
        part: Part,
        batch_size: int,
        seed: int,
        *,
        stream: Sequence[int] = (),
        normalize: Callable[[Any], Any] = augmentations.UNIT,
        augment: augmentations.Augmentation | None = None,
        keep_last: bool = False,
    ):
        self._part, self._size, self._seed, self._stream = part, batch_size, seed, tuple(stream)
        self._normalize, self._augment = normalize, augment
        whole_batches = isinstance(part, Stream) or not keep_last
        self.steps = part.steps(batch_size, training=whole_batches)  # per epoch
        self._place: tuple[int, int] | None = None  # epoch and number of the iterator's next batch
        self._iterator: Iterator[tuple[Any, Any]] = iter(())

    def batch(self, epoch: int, number: int) -> tuple[Any, Any]:
        """Returns batch `number` of an epoch, both from 0: images, float32 and normalised, and labels."""
        if self._place != (epoch, number):
            self._iterator = self._read_epoch(epoch, number)
        images, labels = next(self._iterator)
        self._place = (epoch, number + 1)
        if self._augment is not None:
            key: Any = tf.constant([self._seed % 2**31, epoch * self.steps + number])
            for place in filter(None, self._stream):
                key = tf.random.fold_in(key, place)
            images = self._augment(tf.constant(images), key)
        return tf.cast(self._normalize(images), tf.float32), labels

    def _read_epoch(self, epoch: int, first: int) -> Iterator[tuple[Any, Any]]:
        """Yields the batches of an epoch from number `first`, uint8."""
        part, size = self._part, self._size
        if isinstance(part, Stream):
            dataset = part.dataset(
                size, training=True, preprocess=lambda images: images, seed=self._seed % 2**31, epoch=epoch
            )
            yield from dataset.skip(first)
            return
        order = np.random.default_rng([self._seed, *self._stream, epoch]).permutation(len(part))
        for number in range(first, self.steps):
            chosen = order[number * size : (number + 1) * size]
            batch = part.take(chosen)
            yield batch.images, batch.labels


def _mix_classes(labels: np.ndarray) -> np.ndarray:
    """Returns an order in which every prefix holds the classes in proportion; within a class the order stays."""
    by_class = np.argsort(labels, kind="stable")
    counts = np.bincount(labels)
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    place = (rank + 0.5) / np.repeat(counts, counts)  # of an image within its class, 0..1
    return by_class[np.argsort(place, kind="stable")]
