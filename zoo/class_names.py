"""Class names of the data sets that published weights were trained on, and predictions decoded with them."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from zoo.genotype import check_choice

_NAMES = {  # in the order of the labels
    "cifar10": "airplane automobile bird cat deer dog frog horse ship truck".split(),
    "vww": ["non_person", "person"],  # Visual Wake Words: whether a person is in the picture
}


class ImageClass(NamedTuple):
    """A class: its ID in WordNet, such as n01443537, and its first name there, such as goldfish."""

    synset: str
    name: str


@functools.cache
def read_imagenet_classes() -> tuple[ImageClass, ...]:
    """Returns the 1,000 classes in the order of ILSVRC 2012, which every published ImageNet classifier has.

    Two names, crane and maillot, stand for two classes each.
    """
    text = Path(__file__).with_name("imagenet_classes.txt").read_text(encoding="utf-8")
    return tuple(ImageClass(*line.split()) for line in text.splitlines())


def list_class_names(dataset: str, classes: int) -> tuple[str, ...] | None:
    """Returns distinct names of a data set's first classes, in label order; None for an unknown data set."""
    if dataset == "imagenet":
        return tuple(_label_imagenet_folders())[:classes]
    return tuple(_NAMES[dataset]) if dataset in _NAMES else None


@functools.cache
def _label_imagenet_folders() -> dict[str, int]:
    """Returns folder name -> label for names and for synset IDs; a name of two classes has its synset ID appended."""
    classes = read_imagenet_classes()
    names = [one.name for one in classes]
    labels = {name if names.count(name) == 1 else f"{name}_{synset}": label
              for label, (synset, name) in enumerate(classes)}  # fmt: skip
    return labels | {synset: label for label, (synset, _) in enumerate(classes)}


def number_folders(class_names: Sequence[str]) -> dict[str, int]:
    """Returns folder name -> label for a model of these classes; ImageNet's folders may have names or synset IDs."""
    imagenet = _label_imagenet_folders()
    is_imagenet = tuple(class_names) == tuple(imagenet)[: len(class_names)]
    return imagenet if is_imagenet else {name: label for label, name in enumerate(class_names)}


def decode_predictions(predictions: Any, top: int = 5, dataset: str = "imagenet") -> list[list[tuple[str, str, float]]]:
    """Returns the best classes of each image as (synset, name, score), best first, as keras.applications does.

    Args:
        predictions: (images, classes), from a classifier of the data set.
        top: how many classes to return, from 1 to all.
        dataset: "imagenet", "cifar10" or "vww" (Visual Wake Words); for the last two, the synset is the name again.

    Raises:
        ValueError: an unknown data set, predictions of another shape, or `top` out of range.
    """
    check_choice("dataset", dataset, ("imagenet", *_NAMES))
    classes = read_imagenet_classes() if dataset == "imagenet" else [ImageClass(name, name) for name in _NAMES[dataset]]
    scores = np.asarray(predictions)
    if scores.ndim != 2 or scores.shape[1] != len(classes):
        raise ValueError(
            f"predictions have the shape {scores.shape}; expected (images, {len(classes)}) from a classifier of "
            f"{dataset}. For other classes, look up the labels in the class_names.json next to the model"
        )
    if not 1 <= top <= len(classes):
        raise ValueError(f"top={top}; expected a whole number from 1 to {len(classes)}")
    best = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    return [
        [(*classes[label], float(row[label])) for label in labels] for row, labels in zip(scores, best, strict=True)
    ]
