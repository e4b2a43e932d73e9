"""The images of a folder as parts of a data set, read on demand or all at once."""

import collections
import functools
import logging
import math
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from recipes.images.files import Files, Interpolation, Size, UnreadableImageError, find_pixel_bits, read_image, scan
from recipes.images.parts import Arrays, Part, Stream

OnUnreadable = Literal["error", "skip"]

_log = logging.getLogger(__name__)


class FolderPart(Stream):
    """Files and their labels, read on demand by `reader`, path -> image."""

    def __init__(self, files: Files, image_shape: tuple[int, int, int], reader: Callable[[Any], np.ndarray]):
        names = tf.constant([os.fsencode(path) for path in files.paths], tf.string)
        stored = tf.data.Dataset.from_tensor_slices((names, tf.constant(files.labels)))
        super().__init__(stored, len(files.paths), image_shape, buffer=len(files.paths))
        self._files, self._reader = files, reader

    @property
    def labels(self) -> np.ndarray:
        """One label per file, known without reading the files."""
        return self._files.labels

    def take(self, indices: np.ndarray) -> "FolderPart":
        """Returns a part with these files, in this order."""
        return FolderPart(self._files.take(indices), self.image_shape, self._reader)

    def _decode(self, stored: tf.Tensor) -> tf.Tensor:
        def read(path: bytes) -> np.ndarray:
            return self._read(os.fsdecode(path))

        image = tf.numpy_function(read, [stored], tf.uint8, stateful=False)
        return tf.ensure_shape(image, self.image_shape)

    def _read(self, path: str | os.PathLike) -> np.ndarray:
        image = self._reader(path)
        if image.shape != self.image_shape:
            height, width, _ = self.image_shape
            raise ValueError(
                f"{os.fspath(path)} has {image.shape[0]} x {image.shape[1]} pixels and the first image {height} x "
                f"{width}: give the size (--image_size) to resize all images to"
            )
        return image

    def read_all(self, on_unreadable: OnUnreadable, in_memory: bool) -> tuple[Part, dict[Path, str]]:
        """Reads every file once; returns the part without unreadable files, and these files with the reason.

        Args:
            on_unreadable: "error" raises for the first unreadable file.
            in_memory: whether to return the images as Arrays.
        """
        kept = np.empty((len(self), *self.image_shape), np.uint8) if in_memory else None

        def read(index: int) -> UnreadableImageError | None:
            try:
                image = self._read(self._files.paths[index])
            except UnreadableImageError as error:
                return error
            if kept is not None:
                kept[index] = image
            return None

        skipped: dict[Path, str] = {}
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            try:
                for path, error in zip(self._files.paths, pool.map(read, range(len(self))), strict=True):
                    if error is not None and on_unreadable == "error":
                        raise type(error)(f'{error}; fix or remove it, or load with on_unreadable="skip"') from error
                    if error is not None:
                        skipped[path] = "cannot be read"
            finally:
                pool.shutdown(cancel_futures=True)
        good = np.array([index for index, path in enumerate(self._files.paths) if path not in skipped], np.int64)
        if kept is None:
            return self.take(good), skipped
        return Arrays(kept[good] if skipped else kept, self.labels[good]), skipped


def find_parts(
    folder: Path,
    size: Size,
    channels: int,
    pixel_bits: int | None,
    labels: Mapping[str, int] | None = None,
    interpolation: Interpolation = "bilinear",
) -> tuple[tuple[str, ...], dict[str, Part], dict[Path, str]]:
    """Returns class names, parts and the files that are left out; of these files, only 16-bit ones are read yet.

    See `scan` and `read_image`. If `pixel_bits` is None, one number is found for the whole folder. `labels` are those
    of a model's classes, of which the folder may hold some; if several names share a label, the first names the class.
    """
    class_names, found, left_out = scan(folder, 2 if labels is None else 1)
    if labels is not None:
        unknown = [name for name in class_names if name not in labels]
        names = {label: name for name, label in list(labels.items())[::-1]}
        if unknown:
            raise ValueError(
                f"{folder}: {len(unknown)} of its class folders are not among the model's {len(names):,} classes: "
                f"{', '.join(unknown[:5])}; expected names such as {', '.join(list(labels)[:5])}"
            )
        numbers = np.array([labels[name] for name in class_names], np.int32)
        found = {part: Files(files.paths, numbers[files.labels]) for part, files in found.items()}
        class_names = tuple(names[label] for label in range(len(names)))
    if pixel_bits is None:
        pixel_bits = find_pixel_bits([path for files in found.values() for path in files.paths])
        if pixel_bits not in (None, 16):
            _log.warning(
                "the 16-bit images of %s have values below %s and are read as %d-bit ones; --pixel_bits=16 leaves them "
                "as they are", folder, f"{2**pixel_bits:,}", pixel_bits,
            )  # fmt: skip
    image_shape = _find_shape(found["train"], size, channels)
    reader = functools.partial(
        read_image, size=size, channels=channels, pixel_bits=pixel_bits, interpolation=interpolation
    )
    made: dict[str, Part] = {part: FolderPart(files, image_shape, reader) for part, files in found.items()}
    return class_names, made, left_out


def _find_shape(files: Files, size: Size, channels: int) -> tuple[int, int, int]:
    """Returns the images' shape by their size or, if that is None, by the first readable image."""
    if size is not None:
        return (size, size, channels) if isinstance(size, int) else (*size, channels)
    error = None
    for path in files.paths:
        try:
            height, width, _ = read_image(path, None, channels).shape
            return height, width, channels
        except UnreadableImageError as unreadable:
            error = error or unreadable
    raise UnreadableImageError(f"none of the {len(files.paths)} training images can be read: {error}") from error


def read_parts(
    found: dict[str, Part], left_out: Mapping[Path, str], on_unreadable: OnUnreadable, memory_limit: int
) -> tuple[dict[str, Part], dict[Path, str]]:
    """Reads every file once; returns the parts, and all files that are left out, each with the reason.

    The parts are arrays if all fit into `memory_limit` bytes. A warning counts the files that are left out.
    """
    in_memory = sum(len(part) * math.prod(part.image_shape) for part in found.values()) <= memory_limit
    result: dict[str, Part] = {}
    skipped = dict(left_out)
    for name, part in found.items():
        assert isinstance(part, FolderPart)
        result[name], unread = part.read_all(on_unreadable, in_memory)
        skipped |= unread
    if skipped:
        count = sum(len(part) for part in result.values())
        first = {reason: path for path, reason in reversed(skipped.items())}
        reasons = collections.Counter(skipped.values())
        details = "; ".join(f"{number:,} {reason}, such as {first[reason]}" for reason, number in reasons.items())
        _log.warning("%s images are used, %s files are left out: %s", f"{count:,}", f"{len(skipped):,}", details)
    return result, skipped
