"""Makes the embedded part of Fashion-MNIST: the first 1,000 training and 200 test images of each class, as two PNGs.

    python -m benchmarks.embedded_images                          # from the files of Debian's dataset-fashion-mnist
    python -m benchmarks.embedded_images --source=path/to/files   # the four *-ubyte.gz files as the authors give them

Takes ten seconds. Prints the SHA-256 of the pixels, which recipes/images/sources.py checks when loading them.
"""

import dataclasses
import gzip
import hashlib
import io
from pathlib import Path

import numpy as np
from PIL import Image

from recipes import _main
from recipes.images import sources as data
from zoo.atomic import write_atomically

_HEADER_BYTES = {"images": 16, "labels": 8}  # of the IDX format: magic number, then one 32-bit size per dimension
_ORIGINALS = {"train": "train", "test": "t10k"}
_IMAGES_PER_CLASS = {"train": 1000, "test": 200}


@dataclasses.dataclass(frozen=True)
class Config:
    """What to read and where to write."""

    source: Path = Path("/usr/share/datasets/fashion-mnist")  # holds train-images-idx3-ubyte.gz and its three siblings
    folder: Path = data.EMBEDDED_FOLDER  # for train.png and test.png


PRESETS = {"debian": Config()}


def make(config: Config) -> None:
    """Writes both mosaics and prints their hashes."""
    for part, original in _ORIGINALS.items():
        images = _read(config.source / f"{original}-images-idx3-ubyte.gz", "images")
        images = images.reshape(-1, data.EMBEDDED_SIDE, data.EMBEDDED_SIDE)
        labels = _read(config.source / f"{original}-labels-idx1-ubyte.gz", "labels")
        chosen = np.concatenate(
            [images[labels == label][: _IMAGES_PER_CLASS[part]] for label in range(len(data.EMBEDDED_CLASSES))]
        )
        pixels = _make_mosaic(chosen)
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "PNG", optimize=True)
        write_atomically(config.folder / f"{part}.png", stream.getvalue())
        digest = hashlib.sha256(pixels.tobytes()).hexdigest()
        print(f"{part}: {len(chosen):,} images, {len(stream.getvalue()):,} bytes, SHA-256 of the pixels {digest}")


def _read(path: Path, kind: str) -> np.ndarray:
    if not path.is_file():
        raise ValueError(f"{path} is not there: apt-get install dataset-fashion-mnist, or give --source")
    with gzip.open(path) as stream:
        return np.frombuffer(stream.read()[_HEADER_BYTES[kind] :], np.uint8)


def _make_mosaic(images: np.ndarray) -> np.ndarray:
    side, columns = data.EMBEDDED_SIDE, data.MOSAIC_COLUMNS
    tiles = images.reshape(-1, columns, side, side).swapaxes(1, 2)
    return np.ascontiguousarray(tiles.reshape(-1, columns * side))


if __name__ == "__main__":
    _main.run(make, PRESETS)
