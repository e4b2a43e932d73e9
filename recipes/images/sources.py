"""Images by name: the embedded part of Fashion-MNIST, a set of TensorFlow Datasets, or a folder of images.

    data = load("fashion_mnist_small")                   # 9,000 + 1,000 + 2,000 images, no network
    data = load("tfds:cifar10", download=True)
    data = load("path/to/flowers", size=96)              # flowers/rose/*.jpg, flowers/tulip/*.jpg, ...

From any source, small sets are available as arrays (`data.train.images`), and all sets as batches:

    batches = data.train.dataset(64, training=True, seed=1)
    model.fit(batches, validation_data=data.validation.dataset(256), shuffle=False)
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from recipes.images import EMBEDDED, tfds_sets
from recipes.images import files as images
from recipes.images import folder as image_folder
from recipes.images.parts import Arrays, Part

EMBEDDED_FOLDER = Path(__file__).with_name("embedded")
EMBEDDED_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
EMBEDDED_SIDE = 28  # pixels
MOSAIC_COLUMNS = 100  # images per row in a file of the embedded set; the classes follow one another downwards
# of the decoded pixels, so that another PNG encoder may rewrite the files
EMBEDDED_SHA256 = {
    "train": "a559e830f1ef9b7e4e79f76a57bf4814dded62e54a014e791ffc85f4c43ff094",
    "test": "142b02526e9ce037aef4ce6cb2d78629b2dade896e65c5b1fe4f041c3c10ab2e",
}

# sets that the papers searched on: name -> image shape, classes, training images
_STAND_INS = {
    "tfds:cifar10": ((32, 32, 3), 10, 50_000),
    "tfds:imagenet2012": ((224, 224, 3), 1000, 1_281_167),
}
_DISTINCT = 256  # images of noise, which repeat if more are taken


@dataclasses.dataclass(frozen=True)
class Data:
    """A data set in three disjoint parts: select by `validation`, and use `test` only for the final number.

    A part with fraction 0 is empty.
    """

    name: str
    class_names: tuple[str, ...]  # labels are indices into it
    train: Part
    validation: Part
    test: Part
    skipped: Mapping[Path, str] = dataclasses.field(default_factory=dict)  # files of a folder that are left out -> why

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Height, width, channels."""
        return self.train.image_shape

    def __str__(self) -> str:
        sizes = f"{len(self.train):,} training, {len(self.validation):,} validation and {len(self.test):,} test images"
        return f"{self.name}: {sizes} of {' x '.join(map(str, self.input_shape))}, {self.classes} classes"


def load(
    source: str | Path = EMBEDDED,
    *,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.1,
    seed: int = 0,
    limit: int | None = None,
    on_unreadable: image_folder.OnUnreadable = "error",
    pixel_bits: int | None = None,
    memory_limit: int = 2**30,
    download: bool = False,
    data_dir: Path | None = None,
    labels: Mapping[str, int] | None = None,
    interpolation: images.Interpolation = "bilinear",
) -> Data:
    """Loads a data set.

    Args:
        source: "fashion_mnist_small" (or "embedded"); "tfds:NAME"; or a folder that contains one folder per class, or
            the folders train, validation and test (val, valid etc.) with class folders in them. If there is only one
            part besides training, it is the test part, whatever its name.
        size: side of a square, or (height, width), to crop (to this aspect ratio) and resize the images to; None keeps
            their size, which must be the same for all.
        channels: 1 for grayscale, 3 for RGB; None keeps those of the set, and takes RGB for a folder.
        validation_fraction: of the training images, if the source has no validation part; drawn by `seed`, the same
            share of each class. (A set that streams is cut in stored order, neither at random nor by class.)
        test_fraction: of the training images, if the source has no test part. Not drawn by `seed`: the same images are
            held out whatever a recipe's seed, so that no search has seen them.
        limit: at most this many images per part, with the classes in proportion, to try things out.
        on_unreadable: what to do with a file of a folder that cannot be read: "error" names it; "skip" leaves it out.
            All files that are left out are counted in a warning and listed in `skipped`.
        pixel_bits: bits used in a folder's 16-bit files, 8 to 16; None finds them by the largest value of all images.
        memory_limit: bytes of pixels; a larger set streams from disk. Streamed TFDS sets are shuffled through a buffer
            of 16,384 images.
        download, data_dir: for TFDS: whether to download a set that is not prepared, and the folder of the sets.
        labels: class folder -> label, for the classes of a model, of which the folder may hold some; None numbers the
            class folders by name.
        interpolation: for resizing.

    Raises:
        ValueError: the message names the argument, folder or file, and says what to do.
    """
    _check_arguments(size, channels, validation_fraction, test_fraction, limit, on_unreadable)
    if pixel_bits is not None and not 8 <= pixel_bits <= 16:
        raise ValueError(f"pixel_bits={pixel_bits}: expected 8 to 16, or None to find them by the largest value")
    name = str(source)
    skipped: dict[Path, str] = {}
    if name in (EMBEDDED, "embedded"):
        name = EMBEDDED
        class_names, parts = EMBEDDED_CLASSES, _load_embedded(size, channels or 1, interpolation)
    elif name.startswith("tfds:"):
        class_names, parts = tfds_sets.find_parts(
            name.removeprefix("tfds:"),
            size,
            channels,
            interpolation,
            memory_limit=memory_limit,
            download=download,
            data_dir=data_dir,
        )
    else:
        class_names, parts, skipped = image_folder.find_parts(
            _find_folder(name), size, channels or 3, pixel_bits, labels, interpolation
        )
    parts = _split_missing(parts, validation_fraction, test_fraction, seed, limit)
    if isinstance(parts["train"], image_folder.FolderPart):
        parts, skipped = image_folder.read_parts(parts, skipped, on_unreadable, memory_limit)
    data = Data(name, class_names, parts["train"], parts["validation"], parts["test"], skipped)
    if labels is None:
        _check_classes(data)
    return data


def _check_arguments(
    size: int | tuple[int, int] | None,
    channels: int | None,
    validation_fraction: float,
    test_fraction: float,
    limit: int | None,
    on_unreadable: str,
) -> None:
    sides = (size, size) if isinstance(size, int) else size
    if sides is not None and (len(sides) != 2 or min(sides) < 1):
        raise ValueError(f"size={size}: expected a number of pixels of at least 1, or (height, width)")
    if channels not in (None, 1, 3):
        raise ValueError(f"channels={channels}: expected 1 (grayscale), 3 (RGB) or None (as they are)")
    for argument, fraction in (("validation_fraction", validation_fraction), ("test_fraction", test_fraction)):
        if not 0 <= fraction < 1:
            raise ValueError(f"{argument}={fraction}: expected at least 0 and less than 1")
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit}: expected at least 1, or None for all images")
    if on_unreadable not in ("error", "skip"):
        raise ValueError(f'on_unreadable={on_unreadable!r}: expected "error" or "skip"')


def _find_folder(name: str) -> Path:
    folder = Path(name).expanduser()
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "is not there"
        raise ValueError(
            f"{name!r} {what}: expected a folder of images, {EMBEDDED!r}, or tfds:NAME for a set of TensorFlow Datasets"
        )
    return folder


def _split_missing(
    parts: dict[str, Part], validation_fraction: float, test_fraction: float, seed: int, limit: int | None
) -> dict[str, Part]:
    """Splits missing parts off training: first the test part, the same in every run, then the validation part."""
    train, validation, test = parts["train"], parts.get("validation"), parts.get("test")
    if test is None and validation is not None:
        validation, test = None, validation
    if test is None:
        train, test = train.split(test_fraction, seed=None)
    if validation is None:
        train, validation = train.split(validation_fraction, seed=seed)
    return {
        "train": train.first(limit),
        "validation": validation.first(limit),
        "test": test.first(limit),
    }


def _check_classes(data: Data) -> None:
    if not len(data.train):
        raise ValueError(f"{data.name}: no training image is left; lower validation_fraction and test_fraction")
    if isinstance(data.train, tfds_sets.TfdsPart):
        return  # labels of a stream are not known before it is read
    missing = sorted(set(range(data.classes)) - set(data.train.labels.tolist()))
    if missing:
        names = images.list_some([data.class_names[label] for label in missing])
        raise ValueError(
            f"{data.name}: no training image of {names} is left; raise limit=, lower validation_fraction or "
            "test_fraction, or add images"
        )


def _load_embedded(
    size: int | tuple[int, int] | None, channels: int, interpolation: images.Interpolation
) -> dict[str, Part]:
    parts: dict[str, Part] = {}
    for part in EMBEDDED_SHA256:
        pixels = read_mosaic(part)
        labels = np.repeat(np.arange(len(EMBEDDED_CLASSES)), len(pixels) // len(EMBEDDED_CLASSES))
        if size is not None and size not in (EMBEDDED_SIDE, (EMBEDDED_SIDE, EMBEDDED_SIDE)):
            pixels = np.stack([images.fit(Image.fromarray(image[..., 0]), size, interpolation) for image in pixels])
        parts[part] = Arrays(np.repeat(pixels, channels, axis=-1), labels)
    return parts


def read_mosaic(part: str) -> np.ndarray:
    """Returns the embedded images of "train" or "test", uint8 (count, 28, 28, 1).

    They are sorted by class, with the same number in each class.

    Raises:
        ValueError: the file is missing, damaged or not the published one.
    """
    path = EMBEDDED_FOLDER / f"{part}.png"
    try:
        with Image.open(path, formats=("PNG",)) as mosaic:
            pixels = np.asarray(mosaic)
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError) as error:
        raise ValueError(f"cannot read the embedded images {path}: {error}; reinstall the package") from error
    if hashlib.sha256(pixels.tobytes()).hexdigest() != EMBEDDED_SHA256[part]:
        raise ValueError(f"{path} does not hold the embedded images (its SHA-256 differs): reinstall the package")
    rows = pixels.shape[0] // EMBEDDED_SIDE
    tiles = pixels.reshape(rows, EMBEDDED_SIDE, MOSAIC_COLUMNS, EMBEDDED_SIDE)
    return np.ascontiguousarray(tiles.swapaxes(1, 2)).reshape(-1, EMBEDDED_SIDE, EMBEDDED_SIDE, 1)


class Noise(Part):
    """A part with `count` images of noise, of which at most 256 are distinct."""

    def __init__(self, count: int, image_shape: tuple[int, int, int], classes: int):
        rng = np.random.default_rng(0)
        self.image_shape = image_shape
        self._count, self._classes = count, classes
        self._drawn = rng.integers(0, 256, (min(count, _DISTINCT), *image_shape), np.uint8)

    def __len__(self) -> int:
        return self._count

    @property
    def images(self) -> np.ndarray:
        """The distinct images; they may be fewer than `len`."""
        return self._drawn

    @property
    def labels(self) -> np.ndarray:
        """The labels of the distinct images."""
        return (np.arange(len(self._drawn)) % self._classes).astype(np.int32)

    def take(self, indices: np.ndarray) -> Arrays:
        """Returns as many images as there are indices."""
        places = np.asarray(indices) % len(self._drawn) if len(self._drawn) else np.arange(0)
        return Arrays(self._drawn[places], self.labels[places])

    def first(self, count: int | None) -> "Noise":
        """Returns a part of at most `count` images."""
        return Noise(self._count if count is None else min(count, self._count), self.image_shape, self._classes)

    def split(self, fraction: float, seed: int | None) -> tuple["Noise", "Noise"]:
        """Returns two parts of the sizes that the real set would be split into."""
        count = round(fraction * self._count)
        return self.first(self._count - count), self.first(count)

    def _batches(self, batch_size, shuffle, drop_remainder):
        raise ValueError("these images stand in for a data set that is not there; use them for a dry run only")


def make_stand_in(name: str, size: int | None, validation_images: int) -> Data | None:
    """Returns noise of the same shape and size as the named set, for a dry run; None if these are not known."""
    if name not in _STAND_INS:
        return None
    (height, width, channels), classes, count = _STAND_INS[name]
    shape = (size or height, size or width, channels)
    train, validation = Noise(count - validation_images, shape, classes), Noise(validation_images, shape, classes)
    labels = tuple(str(label) for label in range(classes))
    return Data(name, labels, train, validation, train.take(np.arange(0)))
