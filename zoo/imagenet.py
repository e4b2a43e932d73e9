"""ImageNet's 1,000 classes in the order of ILSVRC 2012, which every published classifier of it has."""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class ImageClass(NamedTuple):
    """A class by its number in WordNet, such as n01443537, and by its first name there, such as goldfish."""

    synset: str
    name: str


@functools.cache
def read_classes() -> tuple[ImageClass, ...]:
    """Returns the classes; two pairs of them, crane and maillot, have one name each."""
    text = Path(__file__).with_name("imagenet_classes.txt").read_text(encoding="utf-8")
    return tuple(ImageClass(*line.split()) for line in text.splitlines())


def decode_predictions(predictions: Any, top: int = 5) -> list[list[tuple[str, str, float]]]:
    """Returns for each image its best classes as (synset, name, score), the best first, as keras.applications does.

    Args:
        predictions: (images, 1000) of a classifier of ImageNet.
        top: how many classes, 1 to 1,000.

    Raises:
        ValueError: predictions of another shape, or a `top` out of range.
    """
    scores, classes = np.asarray(predictions), read_classes()
    if scores.ndim != 2 or scores.shape[1] != len(classes):
        raise ValueError(
            f"predictions have the shape {scores.shape}; expected (images, {len(classes)}) of a classifier of "
            "ImageNet. For other classes, look the numbers up in the class_names.json beside the model"
        )
    if not 1 <= top <= len(classes):
        raise ValueError(f"top={top}; expected a whole number from 1 to {len(classes)}")
    best = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    return [
        [(*classes[label], float(row[label])) for label in labels] for row, labels in zip(scores, best, strict=True)
    ]
