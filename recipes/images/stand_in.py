"""Noise in the shape of a data set that is not at hand: enough for a dry run, which learns nothing."""

import numpy as np

from recipes.images.parts import Arrays, Part
from recipes.images.sources import Data

# name -> images' shape, classes, training images; of the sets that the papers searched on
SETS = {
    "tfds:cifar10": ((32, 32, 3), 10, 50_000),
    "tfds:imagenet2012": ((224, 224, 3), 1000, 1_281_167),
}
_DRAWN = 256  # images of noise; whoever takes more gets them again


class Noise(Part):
    """A part of `count` images of noise, of which the first 256 are all there are."""

    def __init__(self, count: int, image_shape: tuple[int, int, int], classes: int):
        rng = np.random.default_rng(0)
        self.image_shape = image_shape
        self._count, self._classes = count, classes
        self._drawn = rng.integers(0, 256, (min(count, _DRAWN), *image_shape), np.uint8)

    def __len__(self) -> int:
        return self._count

    @property
    def images(self) -> np.ndarray:
        """The images that there are; fewer than `len`."""
        return self._drawn

    @property
    def labels(self) -> np.ndarray:
        """Their labels."""
        return (np.arange(len(self._drawn)) % self._classes).astype(np.int32)

    def take(self, indices: np.ndarray) -> Arrays:
        """As many images, whatever the indices."""
        places = np.asarray(indices) % len(self._drawn) if len(self._drawn) else np.arange(0)
        return Arrays(self._drawn[places], self.labels[places])

    def first(self, count: int | None) -> "Noise":
        """A part of at most `count` images."""
        return Noise(self._count if count is None else min(count, self._count), self.image_shape, self._classes)

    def split(self, fraction: float, seed: int | None) -> tuple["Noise", "Noise"]:
        """Two parts of as many images as the set would be cut into."""
        count = round(fraction * self._count)
        return self.first(self._count - count), self.first(count)

    def _batches(self, batch_size, shuffle, drop_remainder):
        raise ValueError("these images stand in for a data set that is not there; only a dry run takes them")


def images(name: str, size: int | None, validation_images: int) -> Data | None:
    """Returns a stand-in for the set of this name, or None where nobody knows its shape."""
    if name not in SETS:
        return None
    (height, width, channels), classes, count = SETS[name]
    shape = (size or height, size or width, channels)
    train, validation = Noise(count - validation_images, shape, classes), Noise(validation_images, shape, classes)
    labels = tuple(str(label) for label in range(classes))
    return Data(name, labels, train, validation, train.take(np.arange(0)))
