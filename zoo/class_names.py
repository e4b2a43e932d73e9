"""The class names of the data sets that published weights were trained on, and predictions with them."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from zoo.genotype import check_choice

_NAMES = {  # by the label
    "cifar10": "airplane automobile bird cat deer dog frog horse ship truck".split(),
    "vww": ["non_person", "person"],  # Visual Wake Words: whether a person is in the picture
}


class ImageClass(NamedTuple):
    """A class by its number in WordNet, such as n01443537, and by its first name there, such as goldfish."""

    synset: str
    name: str


@functools.cache
def read_imagenet_classes() -> tuple[ImageClass, ...]:
    """Returns the 1,000 classes in the order of ILSVRC 2012; two pairs of them, crane and maillot, have one name each.

    Every published classifier of ImageNet has this order.
    """
    text = Path(__file__).with_name("imagenet_classes.txt").read_text(encoding="utf-8")
    return tuple(ImageClass(*line.split()) for line in text.splitlines())


def list_class_names(dataset: str, classes: int) -> tuple[str, ...] | None:
    """Returns the names of a data set's first classes by their labels, each another; None for one that is not known."""
    if dataset == "imagenet":
        return tuple(_number_imagenet_folders())[:classes]
    return tuple(_NAMES[dataset]) if dataset in _NAMES else None


@functools.cache
def _number_imagenet_folders() -> dict[str, int]:
    """Returns the label of ImageNet's class folders, which have names or synset ids; a name of two classes has none."""
    classes = read_imagenet_classes()
    names = [one.name for one in classes]
    labels = {name if names.count(name) == 1 else f"{name}_{synset}": label
              for label, (synset, name) in enumerate(classes)}  # fmt: skip
    return labels | {synset: label for label, (synset, _) in enumerate(classes)}


def number_folders(class_names: Sequence[str]) -> dict[str, int]:
    """Returns the label of each class folder's name for a model of these classes; ImageNet's have two names each."""
    imagenet = _number_imagenet_folders()
    is_imagenet = tuple(class_names) == tuple(imagenet)[: len(class_names)]
    return imagenet if is_imagenet else {name: label for label, name in enumerate(class_names)}


def decode_predictions(predictions: Any, top: int = 5, dataset: str = "imagenet") -> list[list[tuple[str, str, float]]]:
    """Returns for each image its best classes as (synset, name, score), the best first, as keras.applications does.

    Args:
        predictions: (images, classes) of a classifier of the data set.
        top: how many classes, from 1 to all of them.
        dataset: "imagenet", "cifar10" or "vww" (Visual Wake Words); the latter two have the name in the synset's place.

    Raises:
        ValueError: another data set, predictions of another shape, or a `top` out of range.
    """
    check_choice("dataset", dataset, ("imagenet", *_NAMES))
    classes = read_imagenet_classes() if dataset == "imagenet" else [ImageClass(name, name) for name in _NAMES[dataset]]
    scores = np.asarray(predictions)
    if scores.ndim != 2 or scores.shape[1] != len(classes):
        raise ValueError(
            f"predictions have the shape {scores.shape}; expected (images, {len(classes)}) of a classifier of "
            f"{dataset}. For other classes, look the numbers up in the class_names.json beside the model"
        )
    if not 1 <= top <= len(classes):
        raise ValueError(f"top={top}; expected a whole number from 1 to {len(classes)}")
    best = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    return [
        [(*classes[label], float(row[label])) for label in labels] for row, labels in zip(scores, best, strict=True)
    ]
