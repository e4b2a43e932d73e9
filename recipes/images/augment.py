"""The papers' augmentations and normalisations, as functions of a whole batch.

An augmentation maps `(images, seed)` to images. Images are (batch, height, width, channels) with values 0..255, uint8
or float32; the seed is an integer tensor of shape (2,). Each image gets its own random numbers, and the same seed gives
the same numbers, so that a run resumed at an epoch sees what an uninterrupted run would have seen (`Part.dataset` makes
the seeds).

    policy = augment.cifar(padding=2, cutout_length=8)
    batches = data.train.dataset(64, training=True, augment=policy, seed=1)
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

Augmentation = Callable[[Any, Any], Any]

_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow and torchvision make grayscale


@dataclasses.dataclass(frozen=True)
class Normalization:
    """(image / 255 - mean) / std by channel, for arrays and tensors; a single value applies to all channels.

    Hashable and made of plain numbers, so that `dataclasses.asdict` can store it with the model that needs it.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not self.mean or min(self.std) <= 0:
            raise ValueError(
                f"mean={self.mean} and std={self.std}: expected one number per channel in each, std above zero"
            )

    @classmethod
    def of(cls, images: np.ndarray) -> "Normalization":
        """Returns the normalisation by the mean and standard deviation of each channel of these images.

        They are uint8, (batch, height, width, channels). A constant channel gets std 1/255, one grey level, so that
        nothing is divided by zero.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or not images.size:
            raise ValueError(
                f"images are {images.dtype} of shape {images.shape}: expected uint8 and four axes, not empty"
            )
        values = np.arange(256) / 255
        counts = np.stack([np.bincount(channel.ravel(), minlength=256) for channel in np.moveaxis(images, -1, 0)])
        shares = counts / counts.sum(axis=1, keepdims=True)  # histograms: exact, and without a copy as floats
        mean = shares @ values
        std = np.sqrt((shares * (values - mean[:, None]) ** 2).sum(axis=1))
        return cls(tuple(mean.tolist()), tuple(np.maximum(std, 1 / 255).tolist()))

    def __call__(self, images: Any) -> Any:
        """Returns float32 images, a tensor for a tensor and an array for an array."""
        channels = images.shape[-1]
        if len(self.mean) not in (1, channels):
            raise ValueError(
                f"images have {channels} channels and the normalization {len(self.mean)}: load the data with "
                f"channels={len(self.mean)}, or compute a normalization from these images"
            )
        scale = np.float32(1) / np.asarray(self.std, np.float32)
        shift = -np.asarray(self.mean, np.float32) * scale
        floats = tf.cast(images, tf.float32) if tf.is_tensor(images) else np.asarray(images, np.float32)
        return floats * (scale / np.float32(255)) + shift


UNIT = Normalization()  # 0..1
CENTERED = Normalization((0.5,), (0.5,))  # -1..1: NASNet and MnasNet as published for TensorFlow
CIFAR10 = Normalization((0.49139968, 0.48215827, 0.44653124), (0.24703233, 0.24348505, 0.26158768))  # quark0/darts
IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # torchvision, DARTS, MCUNet
PIXELS = Normalization((0.0,), (1 / 255,))  # 0..255, for networks that rescale or normalise themselves
PREPROCESSING = {  # by the flag's value; see recipes.images.Preprocess
    "unit": UNIT, "0..1": UNIT, "centered": CENTERED, "-1..1": CENTERED, "cifar10": CIFAR10, "imagenet": IMAGENET,
    "torch": IMAGENET, "pixels": PIXELS,
}  # fmt: skip


class _Seeds(keras.random.SeedGenerator):
    """Seeds for Keras' layers that depend only on a key, while those of Keras depend on earlier draws."""

    def __init__(self, key: Any):
        self._key, self._drawn = key, 0

    def next(self, ordered: bool = True) -> Any:
        """Returns the next seed, an integer tensor of shape (2,)."""
        self._drawn += 1
        return tf.cast(tf.random.fold_in(self._key, self._drawn), tf.int32)


class Mix:
    """Mixes the images of a batch, 0..255, and their labels: MixUp (Zhang et al., 2018), CutMix (Yun et al., 2019).

    Uses Keras' layers; with both, each batch gets one or the other with probability one half.

    Args:
        classes: number of classes.
        mixup, cutmix: alpha of the Beta distribution of the shares (for CutMix at most 1); None leaves it out.
    """

    def __init__(self, classes: int, mixup: float | None, cutmix: float | None):
        self._classes, self._layers = classes, []
        if mixup is not None:
            self._layers.append(keras.layers.MixUp(mixup))
        if cutmix is not None:  # Keras draws alpha from the pair
            self._layers.append(keras.layers.CutMix((cutmix, cutmix)))
        if not self._layers:
            raise ValueError("mixup and cutmix are None; give at least one of them, or do not mix")

    def __call__(self, images: Any, labels: Any, seed: Any) -> tuple[Any, Any]:
        """Returns float32 images, and labels (batch, classes) that sum to one for each image."""
        images, truth = tf.cast(images, tf.float32), tf.one_hot(labels, self._classes)

        def apply(layer: Any) -> tuple[Any, Any]:
            drawn = layer.get_random_transformation(images, training=True, seed=_Seeds(seed))
            mixed = layer.transform_images(images, drawn), layer.transform_labels(truth, drawn)
            return tf.ensure_shape(mixed[0], images.shape), tf.ensure_shape(mixed[1], truth.shape)

        if len(self._layers) == 1:
            return apply(self._layers[0])
        first = tf.random.stateless_uniform([], seed) < 0.5
        return tf.cond(first, lambda: apply(self._layers[0]), lambda: apply(self._layers[1]))


def chain(*steps: Augmentation) -> Augmentation:
    """Returns an augmentation that applies `steps` in order, each with its own seed derived from the chain's seed."""

    def chained(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        for index, step in enumerate(steps):
            images = step(images, tf.random.fold_in(seed, index))
        return images

    return chained


def cifar(padding: int = 4, cutout_length: int = 16, fill: float | Sequence[float] = 0.0) -> Augmentation:
    """Pad and crop, flip, cutout: the augmentation of NASNet, AmoebaNet, ENAS and DARTS on CIFAR-10.

    A `cutout_length` of 0 leaves cutout out. `fill`: see `cutout`.
    """
    steps: list[Augmentation] = [functools.partial(pad_and_crop, padding=padding), flip_horizontally]
    if cutout_length:
        steps.append(functools.partial(cutout, length=cutout_length, fill=fill))
    return chain(*steps)


def imagenet(size: int = 224, smallest_area: float = 0.08, jitter: float = 0.4, hue: float = 0.2) -> Augmentation:
    """Inception's random crop, flip and colours, by default with the numbers of DARTS' train_imagenet.py.

    Load the images somewhat larger, `load(..., size=256)` for 224, and evaluate with `central_crop`. Departure: the
    crop is taken from the stored square, not from the original picture as in the papers.
    """
    return chain(
        functools.partial(random_resized_crop, size=size, area=(smallest_area, 1.0)),
        flip_horizontally,
        functools.partial(jitter_colors, brightness=jitter, contrast=jitter, saturation=jitter, hue=hue),
    )


def rand_augment(strength: float = 0.5, changes: int = 2) -> Augmentation:
    """RandAugment (Cubuk et al., 2020) with Keras' layers: `changes` random changes per image; returns float32.

    The strength, 0 to 1, is a share of the paper's maxima: rotations by 30 degrees, shears of 0.3, translations of
    0.45, factors of 0.1 to 1.9, posterization to 4 bits. Departures: magnitudes are uniform up to the maximum, and
    shears and translations act in both directions at once.
    """
    scale: dict[str, Any] = {"value_range": (0, 255)}
    layers = [
        keras.layers.RandomShear(0.3 * strength, 0.3 * strength),
        keras.layers.RandomTranslation(0.45 * strength, 0.45 * strength),
        keras.layers.RandomRotation(strength * 30 / 360),
        keras.layers.RandomBrightness(0.9 * strength, **scale),
        keras.layers.RandomColorDegeneration(0.9 * strength, **scale),
        keras.layers.RandomContrast(0.9 * strength, **scale),
        keras.layers.RandomSharpness(0.9 * strength, **scale),
        keras.layers.RandomPosterization(8 - round(4 * strength), **scale),
        keras.layers.Solarization(threshold_factor=strength, **scale),
        keras.layers.AutoContrast(**scale),
        keras.layers.Equalization(**scale),
    ]

    def step(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        changed: Any = tf.cast(images, tf.float32)
        for number in range(changes):
            key: Any = tf.random.fold_in(seed, number)
            shape: Any = [tf.shape(images)[0], 1, 1, 1]
            count = len(layers) + 1  # the last choice changes nothing, as in the paper
            chosen = tf.random.stateless_uniform(shape, key, 0, count, tf.int32)
            before = changed
            for place, layer in enumerate(layers):
                if images.shape[-1] == 1 and isinstance(layer, keras.layers.RandomColorDegeneration):
                    continue  # gray images have no colour to lose, and Keras before 3.15 fails
                seeds = _Seeds(tf.random.fold_in(key, place + 1))
                drawn = layer.get_random_transformation(before, training=True, seed=seeds)
                changed = tf.where(chosen == place, layer.transform_images(before, drawn, training=True), changed)
        return _same_shape(changed, images)

    return step


def pad_and_crop(images: tf.Tensor, seed: tf.Tensor, padding: int = 4) -> tf.Tensor:
    """Pads each side with `padding` black pixels and crops back to the original size at a random place."""
    count, height, width = _batch_shape(images)
    padded = tf.pad(images, [[0, 0], [padding, padding], [padding, padding], [0, 0]])
    offsets = tf.random.stateless_uniform([2, count, 1], seed, 0, 2 * padding + 1, dtype=tf.int32)
    rows, columns = offsets[0] + tf.range(height), offsets[1] + tf.range(width)
    cropped = tf.gather(tf.gather(padded, rows, axis=1, batch_dims=1), columns, axis=2, batch_dims=1)
    return _same_shape(cropped, images)


def flip_horizontally(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Mirrors left and right with probability one half."""
    count, _, width = _batch_shape(images)
    flipped = tf.random.stateless_uniform([count, 1], seed) < 0.5
    column = tf.range(width)
    # On RGB images this is four times as fast as images[:, :, ::-1] and tf.where.
    return _same_shape(tf.gather(images, tf.where(flipped, width - 1 - column, column), axis=2, batch_dims=1), images)


def cutout(images: tf.Tensor, seed: tf.Tensor, length: int = 16, fill: float | Sequence[float] = 0.0) -> tf.Tensor:
    """Overwrites a square of side `length` around a random pixel; the part beyond the border is cut off.

    Source: DeVries and Taylor, 2017, as in DARTS (utils.py, Cutout): the square starts length // 2 pixels before the
    random pixel. DARTS sets it to zero after normalisation; for the same effect, give 255 times the mean as `fill` (a
    number, or one per channel).
    """
    count, height, width = _batch_shape(images)
    drawn = tf.random.stateless_uniform([2, count, 1], seed)
    first_row = tf.cast(drawn[0] * tf.cast(height, tf.float32), tf.int32) - length // 2
    first_column = tf.cast(drawn[1] * tf.cast(width, tf.float32), tf.int32) - length // 2
    row, column = tf.range(height) - first_row, tf.range(width) - first_column  # (batch, height), (batch, width)
    in_rows, in_columns = (row >= 0) & (row < length), (column >= 0) & (column < length)
    # Columns and channels are merged: tf.where is twice as fast if only the value is broadcast.
    channels: Any = images.shape[-1]
    square = in_rows[:, :, None] & tf.repeat(in_columns, channels, axis=1)[:, None, :]
    value = np.broadcast_to(np.asarray(fill, np.float32), channels)
    value = tf.tile(tf.cast(np.round(value) if images.dtype == tf.uint8 else value, images.dtype), [width])
    flat = tf.reshape(images, [count, height, width * channels])
    return _same_shape(tf.reshape(tf.where(square, value, flat), tf.shape(images)), images)


def random_resized_crop(
    images: tf.Tensor,
    seed: tf.Tensor,
    size: int,
    area: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> tf.Tensor:
    """Crops a window with a random share of the area and a random width : height, and resizes it to size x size.

    As torchvision's RandomResizedCrop: the area is uniform, the ratio log-uniform; of ten draws the first window that
    fits is taken, else the last one, clipped to the image. Bilinear without antialiasing; returns float32.
    """
    count, height, width = _batch_shape(images)
    full_height, full_width = tf.cast(height, tf.float32), tf.cast(width, tf.float32)
    drawn = tf.random.stateless_uniform([4, count, 10], seed)
    areas = (area[0] + (area[1] - area[0]) * drawn[0]) * full_height * full_width
    low, high = np.log(ratio).astype(np.float32)
    ratios = tf.exp(low + (high - low) * drawn[1])
    heights, widths = tf.round(tf.sqrt(areas / ratios)), tf.round(tf.sqrt(areas * ratios))
    fits = (heights <= full_height) & (widths <= full_width)
    attempt = tf.where(tf.reduce_any(fits, 1), tf.argmax(tf.cast(fits, tf.int32), 1, tf.int32), 9)

    def choose(values: tf.Tensor) -> tf.Tensor:
        return tf.gather(values, attempt, axis=1, batch_dims=1)

    window_height = tf.clip_by_value(choose(heights), 1.0, full_height)
    window_width = tf.clip_by_value(choose(widths), 1.0, full_width)
    top = tf.floor(drawn[2, :, 0] * (full_height - window_height + 1))
    left = tf.floor(drawn[3, :, 0] * (full_width - window_width + 1))
    # A box's corners are the centres of its first and last pixel, as shares of the image's first-to-last distance.
    boxes = tf.stack([top, left, top + window_height - 1, left + window_width - 1], axis=1)
    units = tf.maximum(tf.stack([full_height, full_width, full_height, full_width]) - 1, 1.0)
    return tf.image.crop_and_resize(images, boxes / units, tf.range(count), [size, size])


def jitter_colors(
    images: tf.Tensor,
    seed: tf.Tensor,
    brightness: float = 0.4,
    contrast: float = 0.4,
    saturation: float = 0.4,
    hue: float = 0.0,
) -> tf.Tensor:
    """Multiplies brightness, contrast and saturation by 1 - x to 1 + x, and rotates the hue by at most `hue`.

    As torchvision's ColorJitter, but always in this order; hue is a share of the full circle, at most 0.5. Images must
    be RGB, unless only the brightness changes. Returns float32.
    """
    if (contrast or saturation or hue) and images.shape[-1] != 3:
        raise ValueError(f"images have {images.shape[-1]} channels: colours need RGB, load the data with channels=3")
    count, _, _ = _batch_shape(images)
    drawn = tf.random.stateless_uniform([4, count, 1, 1, 1], seed, -1.0, 1.0)
    images = tf.cast(images, tf.float32)
    if brightness:
        images = _blend(images, tf.zeros([]), 1 + brightness * drawn[0])
    if contrast:
        images = _blend(images, tf.reduce_mean(_gray(images), [1, 2, 3], keepdims=True), 1 + contrast * drawn[1])
    if saturation:
        images = _blend(images, _gray(images), 1 + saturation * drawn[2])
    if hue:
        hue_saturation_value = tf.image.rgb_to_hsv(images / 255)
        turned = tf.math.floormod(hue_saturation_value[..., :1] + hue * drawn[3], 1.0)
        images = 255 * tf.image.hsv_to_rgb(tf.concat([turned, hue_saturation_value[..., 1:]], -1))
    return images


def central_crop(images: tf.Tensor, size: int) -> tf.Tensor:
    """Returns the central size x size pixels, on which the papers evaluate ImageNet: 224 out of 256."""
    sides: Any = images.shape
    height, width = sides[1:3]
    if height < size or width < size:
        raise ValueError(f"cannot crop {size} x {size} out of {height} x {width}: load the data with a larger size=")
    top, left = (height - size) // 2, (width - size) // 2
    return images[:, top : top + size, left : left + size]


def _batch_shape(images: tf.Tensor) -> tuple[Any, Any, Any]:
    shape = tf.shape(images)  # dynamic, since count, height and width may be unknown in tracing
    return shape[0], shape[1], shape[2]


def _same_shape(images: tf.Tensor, old: tf.Tensor) -> tf.Tensor:
    """Tells TensorFlow that images have the shape of `old`, which it cannot infer."""
    return tf.ensure_shape(images, old.shape)


def _gray(images: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(images * _LUMA, axis=-1, keepdims=True)


def _blend(images: tf.Tensor, other: tf.Tensor, share: tf.Tensor) -> tf.Tensor:
    return tf.clip_by_value(other + share * (images - other), 0.0, 255.0)
