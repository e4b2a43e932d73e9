"""Images in folders, one sub-folder a class."""

import hashlib
import logging
import math
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import tensorflow as tf

from recipes.images.files import SUFFIXES, Size, UnreadableImageError, read_image
from recipes.images.parts import Arrays, Part, Stream

PART_FOLDERS = {
    "train": "train", "training": "train",
    "val": "validation", "valid": "validation", "validation": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip

OnUnreadable = Literal["error", "skip"]

_log = logging.getLogger(__name__)


class Files(NamedTuple):
    """The images of one part, by class and within a class in an order that does not follow the names."""

    paths: list[Path]
    labels: np.ndarray  # int32, one a path

    def take(self, indices: np.ndarray) -> "Files":
        """These files, in this order."""
        return Files([self.paths[index] for index in indices], self.labels[indices])


def scan(folder: Path) -> tuple[tuple[str, ...], dict[str, Files]]:
    """Finds class names, in alphabetical order, and the files of each part: "train" and, where there are such folders,
    "validation" and "test".

    Files with another suffix than an image's, and names that begin with a dot, are passed over. Deeper folders belong
    to their class. Links are refused, since they could lead out of the folder, or one image into two parts.

    Raises:
        ValueError: fewer than two classes, a class without images, a class that training does not have, a link.
    """
    inside = _folders_in(folder)
    part_of = {child: PART_FOLDERS[child.name.lower()] for child in inside if child.name.lower() in PART_FOLDERS}
    if "train" in part_of.values() and any(_folders_in(child) for child, part in part_of.items() if part == "train"):
        _check_parts(folder, inside, part_of)
        class_folders = {part: _folders_in(child) for child, part in part_of.items()}
    else:
        class_folders = {"train": inside}
    class_names = tuple(child.name for child in class_folders["train"])
    if len(class_names) < 2:
        raise ValueError(
            f"{folder} holds {len(class_names)} class folders {list(class_names)}: expected at least two, one a class, "
            "or train/ and test/ folders with the classes in them" + _deeper_hint(inside)
        )
    return class_names, {part: _files(folder, part, children, class_names) for part, children in class_folders.items()}


def _check_parts(folder: Path, inside: list[Path], part_of: dict[Path, str]) -> None:
    others = [child.name for child in inside if child not in part_of]
    if others:
        raise ValueError(f"{folder} holds {others} beside its training folder: move them away, they are no part of it")
    if len(set(part_of.values())) < len(part_of):
        raise ValueError(f"{folder} holds two folders for one part: {[child.name for child in part_of]}; keep one")


def _deeper_hint(inside: list[Path]) -> str:
    if len(inside) == 1 and _folders_in(inside[0]):
        return f"; {inside[0]} holds folders, did you mean that one?"
    return ""


def _files(folder: Path, part: str, children: list[Path], class_names: tuple[str, ...]) -> Files:
    unknown = [child.name for child in children if child.name not in class_names]
    if unknown:
        raise ValueError(f"{folder}: classes {unknown} of the {part} part are not in training's {list(class_names)}")
    paths, labels = [], []
    for child in children:
        found = sorted(_image_files(child), key=lambda path: _scrambled(path.relative_to(folder)))
        if not found and part == "train":
            raise ValueError(f"{child} holds no images ({' '.join(SUFFIXES)}): fill it, or delete it if it is no class")
        paths += found
        labels += [class_names.index(child.name)] * len(found)
    if not paths:
        raise ValueError(f"the {part} part of {folder} holds no images: fill it, or delete its folder")
    return Files(paths, np.array(labels, np.int32))


def _scrambled(relative: Path) -> str:
    """Orders files by a hash of their name: neighbours (frames of one film) do not all become test images, and a file
    added later leaves the others where they are.
    """
    return hashlib.sha256(relative.as_posix().encode("utf-8", "surrogateescape")).hexdigest()


def _entries(folder: Path) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            visible = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda each: each.name)
    except OSError as error:
        raise type(error)(error.errno, f"cannot read the folder {folder}: {error.strerror}") from error
    for entry in visible:
        if entry.is_symlink():
            raise ValueError(f"{entry.path} is a link: put the images themselves there, since links can lead anywhere")
    return visible


def _folders_in(folder: Path) -> list[Path]:
    return [Path(entry.path) for entry in _entries(folder) if entry.is_dir() and entry.name != "__MACOSX"]


def _image_files(folder: Path) -> Iterable[Path]:
    for entry in _entries(folder):
        if entry.is_dir():
            yield from _image_files(Path(entry.path))
        elif entry.name.lower().endswith(SUFFIXES):
            yield Path(entry.path)


class FolderPart(Stream):
    """Files and their labels, read when they are needed."""

    def __init__(self, files: Files, size: Size, image_shape: tuple[int, int, int]):
        names = tf.constant([os.fsencode(path) for path in files.paths], tf.string)
        stored = tf.data.Dataset.from_tensor_slices((names, tf.constant(files.labels)))
        super().__init__(stored, len(files.paths), image_shape, buffer=len(files.paths))
        self._files = files
        self._size = size

    @property
    def labels(self) -> np.ndarray:
        """One a file, known without reading it."""
        return self._files.labels

    def take(self, indices: np.ndarray) -> "FolderPart":
        """A part of these files, in this order."""
        return FolderPart(self._files.take(indices), self._size, self.image_shape)

    def _decode(self, stored: tf.Tensor) -> tf.Tensor:
        def read(path: bytes) -> np.ndarray:
            return self._read(os.fsdecode(path))

        image = tf.numpy_function(read, [stored], tf.uint8, stateful=False)
        return tf.ensure_shape(image, self.image_shape)

    def _read(self, path: str | os.PathLike) -> np.ndarray:
        image = read_image(path, self._size, self.image_shape[-1])
        if image.shape != self.image_shape:
            height, width, _ = self.image_shape
            raise ValueError(
                f"{os.fspath(path)} has {image.shape[0]} x {image.shape[1]} pixels and the first image {height} x "
                f"{width}: give the size= that all are to have"
            )
        return image

    def readable(self, on_unreadable: OnUnreadable, in_memory: bool) -> tuple[Part, list[Path]]:
        """Reads every file once: (the part without those that cannot be read, those).

        Args:
            on_unreadable: "error" raises at the first of them.
            in_memory: whether to keep the images, as Arrays.
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

        skipped = []
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            try:
                for path, error in zip(self._files.paths, pool.map(read, range(len(self))), strict=True):
                    if error is not None and on_unreadable == "error":
                        raise type(error)(f'{error}; mend or remove it, or load with on_unreadable="skip"') from error
                    if error is not None:
                        skipped.append(path)
            finally:
                pool.shutdown(cancel_futures=True)
        gone = set(skipped)
        good = np.array([index for index, path in enumerate(self._files.paths) if path not in gone], np.int64)
        if kept is None:
            return self.take(good), skipped
        return Arrays(kept[good] if skipped else kept, self.labels[good]), skipped


def parts(folder: Path, size: Size, channels: int) -> tuple[tuple[str, ...], dict[str, Part]]:
    """Class names and the parts of a folder, before any file but the first is read; see `scan` and `read_image`."""
    class_names, found = scan(folder)
    image_shape = _first_shape(found["train"], size, channels)
    return class_names, {part: FolderPart(files, size, image_shape) for part, files in found.items()}


def _first_shape(files: Files, size: Size, channels: int) -> tuple[int, int, int]:
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


def readable(
    found: dict[str, Part], on_unreadable: OnUnreadable, memory_limit: int
) -> tuple[dict[str, Part], tuple[Path, ...]]:
    """Reads every file once; arrays if all fit into `memory_limit` bytes. Returns the parts and the files left out."""
    in_memory = sum(len(part) * math.prod(part.image_shape) for part in found.values()) <= memory_limit
    result: dict[str, Part] = {}
    skipped: list[Path] = []
    for name, part in found.items():
        assert isinstance(part, FolderPart)
        result[name], unread = part.readable(on_unreadable, in_memory)
        skipped += unread
    if skipped:
        count = sum(len(part) for part in found.values())
        _log.warning("%d of %d images cannot be read and are left out, the first: %s", len(skipped), count, skipped[0])
    return result, tuple(skipped)
