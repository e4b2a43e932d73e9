"""Image files: which part and class each file of a folder belongs to, and how a file becomes pixels."""

import hashlib
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from recipes.images import Interpolation

SUFFIXES = (
    ".apng", ".bmp", ".dib", ".gif", ".jfi", ".jfif", ".jif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm",
    ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip
_FORMATS = ("BMP", "DIB", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # Pillow's other decoders get no untrusted file
# EXIF orientation, as a camera writes it -> what turns the image upright
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
_PIXEL_BITS = (8, 10, 12, 14, 16)  # bit depths of cameras and scanners, stored in files of 8 or 16 bits

_PARTS = {
    "train": "train tr trn training",
    "validation": "val va valid validation dev eval evaluation",
    "test": "test te tst testing holdout",
}
_PART_OF = {word: part for part, words in _PARTS.items() for word in words.split()}
# What people add to the name of a part: training_set, TestImages, val-data, train2017.
_FILLERS = "data dataset set split subset folder dir images image imgs img pictures pics photos samples files".split()
_NO_CLASS = "in no class folder"
_NO_LABEL = "of a part without class folders, and so without labels"

Size = int | tuple[int, int] | None  # the side of a square, or (height, width)


class UnreadableImageError(ValueError):
    """A file cannot be decoded completely as an image; the message names it."""


class Files(NamedTuple):
    """The images of one part, ordered by class, and within a class in an order unrelated to their names."""

    paths: list[Path]
    labels: np.ndarray  # int32, one per path

    def take(self, indices: np.ndarray) -> "Files":
        """Returns these files, in this order."""
        return Files([self.paths[index] for index in indices], self.labels[indices])


def scan(folder: Path, least: int = 2) -> tuple[tuple[str, ...], dict[str, Files], dict[Path, str]]:
    """Sorts all files of a folder into parts and classes.

    Returns the class names in alphabetical order; the files of each part, "train" and, if there are such folders,
    "validation" and "test"; and each file that is left out, with the reason.

    The folder contains one sub-folder per class, or one per part with class folders inside. Names of parts may be
    written in the usual ways: Training Set, test_images, seg_train with seg_test, val2017. Folders inside a class
    folder belong to the class. Links are refused: they could lead out of the folder, or bring an image into two parts.

    Raises:
        ValueError: fewer than `least` classes, a class without images, a class missing from the training part, a class
            folder's name that is not in UTF-8, a link, or folders that could be either parts or classes.
    """
    inside = _list_folders(folder)
    left_out: dict[Path, str] = {}
    part_of = _find_parts(folder, inside)
    if part_of:
        others = [child for child, part in part_of.items() if part != "train"]
        flat = [child for child in others if not _list_folders(child) and any(_walk_files(child))]
        for child in flat:
            left_out |= dict.fromkeys(_walk_files(child, hidden=True), _NO_LABEL)
        class_folders = {part: _list_folders(child) for child, part in part_of.items() if child not in flat}
    else:
        class_folders = {"train": inside}
    class_names = tuple(child.name for child in class_folders["train"])
    for name in class_names:
        if os.fsencode(name) != name.encode("utf-8", "replace"):  # a file of class names could not hold it
            raise ValueError(
                f"{folder}: the name of the class folder {os.fsencode(name)!r} is not in UTF-8, perhaps from an "
                "archive made on another system: rename the folder"
            )
    if len(class_names) < least:
        deeper = len(inside) == 1 and _list_folders(inside[0])
        raise ValueError(
            f"{folder} holds {len(class_names)} class folders {list(class_names)}: expected at least "
            f"{'one' if least == 1 else 'two'}, one per class, or train/ and test/ folders with class folders in them"
            + (f"; {inside[0]} holds folders, did you mean that one?" if deeper else "")
        )
    found = {part: _list_images(folder, part, children, class_names) for part, children in class_folders.items()}
    used = {path for files in found.values() for path in files.paths}
    for path in _walk_files(folder, hidden=True):
        if path not in used and path not in left_out:
            left_out[path] = _explain_omission(path.relative_to(folder))
    return class_names, found, left_out


def _find_parts(folder: Path, inside: list[Path]) -> dict[Path, str]:
    """Returns the part that each sub-folder is; nothing if the sub-folders are classes."""
    words = {child: _split_words(child.name) for child in inside}
    roles = {child: [_PART_OF[word] for word in words[child] if word in _PART_OF] for child in inside}
    # Without the part's name, seg_train and seg_test leave the same words; two classes of trains do not.
    rests = {child: [word for word in words[child] if word not in _PART_OF] for child in inside if roles[child]}
    part_of = {child: roles[child][0] for child in rests if len(roles[child]) == 1}
    if len({tuple(rest) for rest in rests.values()}) > 1:
        part_of = {child: part for child, part in part_of.items() if not rests[child]}
    nested = [child for child in part_of if _list_folders(child)]
    others = [child.name for child in inside if child not in part_of]
    if "train" in (part_of[child] for child in nested):
        if others:
            raise ValueError(
                f"{folder} holds {list_some(others)} beside its training folder: move them away, they are not parts"
            )
        if len(set(part_of.values())) < len(part_of):
            raise ValueError(f"{folder} holds two folders for one part: {[child.name for child in part_of]}; keep one")
        return part_of
    if not others and len(set(part_of.values())) > 1:
        names = [child.name for child in inside]
        raise ValueError(
            f"{folder} holds the folders {names}, which look like parts of a data set, "
            + ("and none of them is for training" if nested else "but no class folders are in them")
            + ": sort the images into one sub-folder per class (train/cat, train/dog, ...) or, if these are the "
            "classes, rename the folders"
        )
    return {}


def _split_words(name: str) -> list[str]:
    """Returns the words of a folder's name, without digits and fillers: "Training Set 2" -> ["training"]."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    found = []
    for word in re.findall(r"[^\W\d_]+", spaced.lower()):
        bare = next((start for end in _FILLERS if (start := word.removesuffix(end)) in _PART_OF), word)
        if bare not in _FILLERS:
            found.append(bare)
    return found


def _list_images(folder: Path, part: str, children: list[Path], class_names: tuple[str, ...]) -> Files:
    unknown = [child.name for child in children if child.name not in class_names]
    if unknown:
        raise ValueError(
            f"{folder}: classes {list_some(unknown)} of the {part} part are not in training's {list_some(class_names)}"
        )
    paths, labels = [], []
    for child in children:
        images = (path for path in _walk_files(child) if path.name.lower().endswith(SUFFIXES))
        found = sorted(images, key=lambda path: _hash_name(path.relative_to(folder)))
        if not found and part == "train":
            raise ValueError(f"{child} holds no images ({' '.join(SUFFIXES)}): add some, or delete the folder")
        paths += found
        labels += [class_names.index(child.name)] * len(found)
    if not paths:
        raise ValueError(f"the {part} part of {folder} holds no images: add some, or delete its folder")
    return Files(paths, np.array(labels, np.int32))


def list_some(names: Sequence[str], most: int = 10) -> str:
    """Returns names for a message, as Python prints a list; at most `most` of them and how many more there are."""
    return str(list(names)) if len(names) <= most else f"{list(names[:most])} and {len(names) - most:,} more"


def _hash_name(relative: Path) -> str:
    """Returns a hash of a file's name to sort by.

    So neighbours, such as frames of one film, do not all become test images, and adding a file keeps the others' order.
    """
    return hashlib.sha256(relative.as_posix().encode("utf-8", "surrogateescape")).hexdigest()


def _list_entries(folder: Path) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda each: each.name)
    except OSError as error:
        raise type(error)(error.errno, f"cannot read the folder {folder}: {error.strerror}") from error
    for entry in found:
        if entry.is_symlink() and not _is_hidden(entry.name):
            raise ValueError(f"{entry.path} is a link, which can lead anywhere: put the images themselves there")
    return found


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _list_folders(folder: Path) -> list[Path]:
    return [Path(entry.path) for entry in _list_entries(folder) if not _is_hidden(entry.name) and entry.is_dir()]


def _walk_files(folder: Path, hidden: bool = False) -> Iterator[Path]:
    """Yields the files of a folder and its sub-folders, with `hidden` also hidden ones; does not follow links."""
    for entry in _list_entries(folder):
        if hidden or not _is_hidden(entry.name):
            if entry.is_dir(follow_symlinks=False):
                yield from _walk_files(Path(entry.path), hidden)
            else:
                yield Path(entry.path)


def _explain_omission(path: Path) -> str:
    """Returns why a file is left out, in words that follow the number of such files."""
    if any(_is_hidden(part) for part in path.parts):
        return "hidden"
    if path.name.lower().endswith(SUFFIXES):
        return _NO_CLASS
    if path.suffix:
        return f"with a name that ends in {path.suffix.lower()}, no kind of image that is read"
    return "without a suffix that tells the kind of image"


def find_pixel_bits(paths: Iterable[Path]) -> int | None:
    """Returns how many bits the values of 16-bit grayscale images among `paths` use; None if there are no such images.

    A 12-bit camera, scanner or X-ray detector writes 16-bit files, and nothing in them says that the upper bits are
    unused. So the largest value of all images decides, since a single image could be dark.
    """
    largest = -1
    for path in paths:
        try:
            with _open_image(path) as stored:
                if stored.mode.startswith("I"):
                    largest = max(largest, int(np.asarray(stored).max()))
        except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError):
            continue  # the actual reading reports what is wrong
    return None if largest < 0 else next((bits for bits in _PIXEL_BITS if largest < 2**bits), _PIXEL_BITS[-1])


def read_image(
    path: str | os.PathLike,
    size: Size,
    channels: int,
    pixel_bits: int | None = None,
    interpolation: Interpolation = "bilinear",
) -> np.ndarray:
    """Decodes a file to uint8 (height, width, channels), turned upright by its EXIF data.

    Grayscale, palette, CMYK and 16-bit images are converted; transparent pixels become white. With a size, the ends of
    the longer side are cropped, then the image is resized.

    Args:
        path: of the file.
        size: the side of a square, (height, width), or None to keep the image's size.
        channels: 1 or 3.
        pixel_bits: bits used in a 16-bit file: 2**pixel_bits - 1 becomes 255. None finds them by the largest value of
            this file; for a data set, pass the same number for all images (`find_pixel_bits`).
        interpolation: for resizing.

    Raises:
        UnreadableImageError: the file is missing, not an image, truncated, or of a kind that is not supported.
    """
    try:
        with _open_image(path) as stored:
            return fit(_convert(_turn_upright(stored), channels, pixel_bits), size, interpolation)
    except UnidentifiedImageError as error:
        raise UnreadableImageError(f"cannot read the image {os.fspath(path)}: not an image") from error
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:  # what Pillow raises
        reason = getattr(error, "strerror", None) or error
        raise UnreadableImageError(f"cannot read the image {os.fspath(path)}: {reason}") from error


def _open_image(path: str | os.PathLike) -> Image.Image:
    if not stat.S_ISREG(os.lstat(path).st_mode):  # a link or a pipe that was created after the scan
        raise ValueError("not a regular file")
    return Image.open(path, formats=_FORMATS)


def _turn_upright(image: Image.Image) -> Image.Image:
    """Turns the image by its EXIF orientation; Pillow's exif_transpose fails if any other EXIF value is damaged."""
    image.load()
    turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return image if turn is None else image.transpose(turn)


def _convert(image: Image.Image, channels: int, pixel_bits: int | None) -> Image.Image:
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, of unknown range")
    if image.mode.startswith("I"):  # Pillow would clip 16-bit values at 255 instead of scaling them
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"its pixels range from {values.min()} to {values.max()}, more than 16 bits")
        bits = pixel_bits or next(bits for bits in _PIXEL_BITS if values.max() < 2**bits)
        if values.max() >= 2**bits:
            raise ValueError(
                f"its pixels reach {values.max()}, more than {bits} bits; give pixel_bits=16 for all images"
            )
        image = Image.fromarray(np.rint(values * (255 / (2**bits - 1))).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if channels == 1 else "RGB")


def fit(image: Image.Image, size: Size, interpolation: Interpolation = "bilinear") -> np.ndarray:
    """Crops and resizes an L or RGB image as `read_image` does; returns uint8 (height, width, channels)."""
    if size is not None:
        height, width = (size, size) if isinstance(size, int) else size
        if image.size != (width, height):
            window_width = min(image.width, max(1, round(image.height * width / height)))
            window_height = min(image.height, max(1, round(image.width * height / width)))
            left, top = (image.width - window_width) // 2, (image.height - window_height) // 2
            # Cropped first, since resize(box=...) would mix in pixels from around the box.
            image = image.crop((left, top, left + window_width, top + window_height))
            image = image.resize((width, height), Image.Resampling[interpolation.upper()])
    pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels
