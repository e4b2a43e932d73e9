"""Image classification sets of TensorFlow Datasets (TFDS) by name, in memory or streamed."""

import difflib
import math
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from recipes.images.files import Interpolation
from recipes.images.parts import Part, Stream

# Sets whose "test" split has no labels -> the split that papers report results on
_HELD_OUT = {"imagenet2012": "validation"}

_SHUFFLE_BUFFER = 16_384  # encoded images; for ImageNet 1.8 GB


def find_parts(
    name: str,
    size: int | tuple[int, int] | None,
    channels: int | None,
    interpolation: Interpolation = "bilinear",
    *,
    memory_limit: int,
    download: bool,
    data_dir: Path | None,
) -> tuple[tuple[str, ...], dict[str, Part]]:
    """Returns class names and the parts of the set: "train" and, if it has such splits, "validation" and "test".

    If a set has one split besides the training split, that is the test part, as in papers. `name` is the name in TFDS:
    NAME, NAME/CONFIG or NAME:VERSION. For the other arguments see recipes.images.sources.load.

    Raises:
        ValueError: the name is unknown, or the set is not prepared or not for image classification.
    """
    builder = _make_builder(name, data_dir)
    image_key, label_key = _find_keys(builder)
    _prepare(builder, name, download)
    features = builder.info.features
    image_shape = _choose_shape(name, features[image_key].shape, size, channels)
    splits = {part: split for part, split in _find_splits(builder).items() if split is not None}
    counts = {part: builder.info.splits[split].num_examples for part, split in splits.items()}
    in_memory = sum(counts.values()) * math.prod(image_shape) <= memory_limit
    found: dict[str, Part] = {}
    for part, split in splits.items():
        stream = TfdsPart(builder, (image_key, label_key), split, range(counts[part]), image_shape, interpolation)
        found[part] = stream.in_memory() if in_memory else stream
        if in_memory and found[part].labels.min() < 0:
            raise ValueError(
                f"the split {split!r} of {name!r} has images without a label (-1): it cannot be a {part} part"
            )
    return tuple(features[label_key].names), found


class TfdsPart(Stream):
    """A range of a split, streamed from its files."""

    def __init__(
        self,
        builder: Any,
        keys: tuple[str, str],
        split: str,
        indices: range,
        image_shape: tuple[int, int, int],
        interpolation: Interpolation,
    ):
        image_key, label_key = keys
        read = indices or range(1)  # TFDS has no empty range
        examples = builder.as_dataset(
            split=f"{split}[{read.start}:{read.stop}]",
            decoders={image_key: tfds.decode.SkipDecoding()},
            read_config=tfds.ReadConfig(try_autocache=False),
            shuffle_files=False,
        )
        stored = examples.map(lambda example: (example[image_key], tf.cast(example[label_key], tf.int32)))
        stored = stored if indices else stored.take(0)
        super().__init__(stored, len(indices), image_shape, buffer=_SHUFFLE_BUFFER)
        self._origin = builder, keys, split, indices
        self._interpolation: Interpolation = interpolation

    @property
    def labels(self) -> np.ndarray:
        """Raises ValueError: labels are not known before everything is read."""
        raise ValueError(
            "the labels of a streamed set are not known before it is read: load it with a larger memory_limit"
        )

    def take(self, indices: np.ndarray) -> "TfdsPart":
        """Returns a part with these examples, which must be consecutive."""
        builder, keys, split, mine = self._origin
        start = int(indices[0]) if len(indices) else 0
        if not np.array_equal(indices, np.arange(start, start + len(indices))):
            raise ValueError("a streamed set can be cut only into ranges: load it with a larger memory_limit")
        chosen = mine[start : start + len(indices)]
        return TfdsPart(builder, keys, split, chosen, self.image_shape, self._interpolation)

    def _order(self, seed: int | None) -> np.ndarray:
        """Returns the stored order, whatever the seed: only ranges can be read alone, and TFDS stores shuffled sets."""
        return np.arange(len(self))

    def _decode(self, stored: tf.Tensor) -> tf.Tensor:
        builder, (image_key, _), _, _ = self._origin
        image = builder.info.features[image_key].decode_example(stored)
        return fit(image, self.image_shape, self._interpolation)


def fit(image: tf.Tensor, image_shape: tuple[int, int, int], interpolation: Interpolation) -> tf.Tensor:
    """Crops the ends of the longer side, resizes and converts, as recipes.images.files does with Pillow."""
    height, width, channels = image_shape
    if image.shape[-1] != channels:
        image = tf.image.rgb_to_grayscale(image) if channels == 1 else tf.image.grayscale_to_rgb(image)
    if image.shape[:2] == (height, width):
        return image
    stored = tf.shape(image)
    window_height = tf.minimum(stored[0], _scale_length(stored[1], height / width))
    window_width = tf.minimum(stored[1], _scale_length(stored[0], width / height))
    top, left = (stored[0] - window_height) // 2, (stored[1] - window_width) // 2
    window = tf.image.crop_to_bounding_box(image, top, left, window_height, window_width)
    resized = tf.image.resize(window, (height, width), interpolation, antialias=True)
    return tf.ensure_shape(tf.cast(tf.round(tf.clip_by_value(resized, 0, 255)), tf.uint8), image_shape)


def _scale_length(length: tf.Tensor, factor: float) -> tf.Tensor:
    return tf.maximum(1, tf.cast(tf.round(tf.cast(length, tf.float32) * factor), tf.int32))


def _make_builder(name: str, data_dir: Path | None) -> Any:
    try:
        return tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
        near = difflib.get_close_matches(name.partition("/")[0], tfds.list_builders(with_community_datasets=False), n=3)
        raise ValueError(
            f"TensorFlow Datasets has no set {name!r}"
            + (f"; did you mean {' or '.join(near)}?" if near else ": see https://www.tensorflow.org/datasets/catalog")
        ) from None


def _prepare(builder: Any, name: str, download: bool) -> None:
    if builder.info.splits:
        return
    if not download:
        raise ValueError(
            f"the set {name!r} is not in {builder.data_dir}: load it with download=True or run `tfds build {name}`, "
            "which both need the network, or copy that folder from a machine that has it"
        )
    try:
        builder.download_and_prepare()
    except (OSError, AssertionError, tf.errors.OpError, tfds.download.DownloadError) as error:
        raise ValueError(
            f"the set {name!r} cannot be downloaded: {error}. Without a network, copy {builder.data_dir} from a "
            "machine that has it, or use the embedded set fashion_mnist_small"
        ) from error


def _find_keys(builder: Any) -> tuple[str, str]:
    """Returns the names of the image and the label in an example."""
    keys = builder.info.supervised_keys
    features = builder.info.features
    if (
        keys is None
        or len(keys) != 2
        or not isinstance(features[keys[0]], tfds.features.Image)
        or not isinstance(features[keys[1]], tfds.features.ClassLabel)
    ):
        raise ValueError(
            f"{builder.name!r} is not an image classification set: its examples hold {sorted(features)}; expected one "
            "image and one class label"
        )
    return keys


def _find_splits(builder: Any) -> dict[str, str | None]:
    """Returns the split for each part; None if there is none."""
    there = set(builder.info.splits)
    if "train" not in there:
        raise ValueError(f"{builder.name!r} has the splits {sorted(there)}: expected one called 'train'")
    held_out = _HELD_OUT.get(builder.name, "test" if "test" in there else "validation")
    validation = "validation" if "validation" in there and held_out != "validation" else None
    return {"train": "train", "validation": validation, "test": held_out if held_out in there else None}


def _choose_shape(
    name: str, stored: tuple[int | None, ...], size: int | tuple[int, int] | None, channels: int | None
) -> tuple[int, int, int]:
    height, width = stored[:2] if size is None else (size, size) if isinstance(size, int) else size
    if height is None or width is None:
        raise ValueError(f"the images of {name!r} differ in size: give the size= to resize all images to")
    channels = channels or stored[2]
    if channels not in (1, 3) or stored[2] not in (1, 3):
        raise ValueError(f"the images of {name!r} have {stored[2]} channels; asked for {channels}, expected 1 or 3")
    return height, width, channels
