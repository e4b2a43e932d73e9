"""The script that makes the embedded images, on files of the same format and fewer pictures."""

import gzip
import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import embedded_images
from recipes.images import sources as data


def write_originals(folder: Path) -> dict[str, np.ndarray]:
    """Writes 1,200 images a part in the IDX format, classes mixed; returns the pixels that must be chosen of each."""
    chosen = {}
    for number, (part, original) in enumerate({"train": "train", "test": "t10k"}.items()):
        random = np.random.default_rng(number)
        pixels = random.integers(0, 256, (1200, 28, 28), np.uint8)
        labels = random.permutation(np.arange(1200, dtype=np.uint8) % 10)
        with gzip.open(folder / f"{original}-images-idx3-ubyte.gz", "wb") as stream:
            stream.write(np.array([2051, 1200, 28, 28], ">i4").tobytes() + pixels.tobytes())
        with gzip.open(folder / f"{original}-labels-idx1-ubyte.gz", "wb") as stream:
            stream.write(np.array([2049, 1200], ">i4").tobytes() + labels.tobytes())
        chosen[part] = np.concatenate([pixels[labels == label][:100] for label in range(10)])[..., None]
    return chosen


def test_what_is_written_is_read_back_in_the_order_of_the_classes(tmp_path: Path, monkeypatch, capsys):
    chosen = write_originals(tmp_path)
    monkeypatch.setattr(embedded_images, "_IMAGES_PER_CLASS", {"train": 100, "test": 100})
    embedded_images.make(embedded_images.Config(source=tmp_path, folder=tmp_path / "out"))
    printed = capsys.readouterr().out.splitlines()
    hashes = {line.partition(":")[0]: line.split()[-1] for line in printed}
    monkeypatch.setattr(data, "EMBEDDED_FOLDER", tmp_path / "out")
    monkeypatch.setattr(data, "EMBEDDED_SHA256", hashes)
    for part in ("train", "test"):
        np.testing.assert_array_equal(data.read_mosaic(part), chosen[part])


def test_missing_originals_say_where_to_get_them(tmp_path: Path):
    with pytest.raises(ValueError, match="is not there: apt-get install dataset-fashion-mnist, or give --source"):
        embedded_images.make(embedded_images.Config(source=tmp_path))


@pytest.mark.slow
def test_embedded_images_are_the_first_of_each_class_of_the_originals(tmp_path: Path):
    folder = embedded_images.Config().source
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there: apt-get install dataset-fashion-mnist")
    embedded_images.make(embedded_images.Config(folder=tmp_path))
    for part, digest in data.EMBEDDED_SHA256.items():
        with Image.open(tmp_path / f"{part}.png") as made:
            assert hashlib.sha256(np.asarray(made).tobytes()).hexdigest() == digest
