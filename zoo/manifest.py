"""The published weights: where they are, whose they are, and the preprocessing they expect.

The data is in weights/manifest.json. Nothing is downloaded here; only the standard library is needed.
"""

import dataclasses
import functools
import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from zoo.genotype import GenotypeError, near

_FILES = (".h5", ".keras", ".safetensors", ".pth", ".pth.zip", ".pt", ".ckpt", ".index", ".tar.gz")


class NoWeightsError(GenotypeError):
    """There are no such published weights; the text lists the existing ones."""


class Source(NamedTuple):
    """A place to get a file from, the file's format, and its published digests.

    Attributes:
        url: of the file.
        format: "h5" (Keras 2), "safetensors", "pth" (PyTorch), "pth.zip" (a pth in an archive) or
            "tar.gz" (an archive with a TensorFlow checkpoint).
        sha256, sha256_prefix, md5: of the file, if published.
        sha1_inside: of the file in a zip archive, if published.
    """

    url: str
    format: str
    sha256: str | None = None
    sha256_prefix: str | None = None
    md5: str | None = None
    sha1_inside: str | None = None


@dataclasses.dataclass(frozen=True)
class Entry:
    """One file of published weights.

    Attributes:
        name: of the entry.
        model: its name in searched_genotypes.
        preset: of the model.
        dataset: that the network was trained on.
        origin: the project that trained or converted the weights, such as timm.
        classes: number of classes of the classifier.
        sources: where to get the file, the preferred place first.
        license: of the code that the weights came with.
        preprocessing: mean and std of each channel, for values from 0 to 1. If the evaluation resized its images, also
            the fraction of each side that it kept (crop) and its interpolation.
        top1: accuracy in percent, as stated by the source.
        source: the code, and its name for these weights.
        include_top: whether the file has the classifier.
        auxiliary: whether the file has the auxiliary classifier.
    """

    name: str
    model: str
    preset: str
    dataset: str
    origin: str
    classes: int
    sources: tuple[Source, ...]
    license: str
    preprocessing: Mapping[str, Any]
    top1: float
    source: str
    include_top: bool = True
    auxiliary: bool = False


def is_file(weights: str | os.PathLike) -> bool:
    """Returns whether `weights`, an argument of `zoo.build`, is a path rather than a name of published weights."""
    return isinstance(weights, os.PathLike) or os.sep in weights or weights.endswith(_FILES)


@functools.cache
def entries() -> tuple[Entry, ...]:
    """Returns all published weights, a model's preferred ones first."""
    records = json.loads((Path(__file__).parent / "weights" / "manifest.json").read_text(encoding="utf-8"))
    return tuple(
        Entry(**record | {"sources": tuple(Source(**source) for source in record["sources"])}) for record in records
    )


def of_model(model: str) -> tuple[Entry, ...]:
    """Returns all published weights of a model of searched_genotypes; there may be none."""
    return tuple(entry for entry in entries() if entry.model == model)


def get(name: str) -> Entry:
    """Returns the entry of this name.

    Raises:
        NoWeightsError: there are none.
    """
    known = {entry.name: entry for entry in entries()}
    if name not in known:
        raise NoWeightsError(f"no published weights {name!r}{near(name, known)}; expected one of {', '.join(known)}")
    return known[name]


def find(model: str, weights: str, presets: Collection[str] | None = None, *, include_top: bool = True) -> Entry:
    """Returns the published weights of a network.

    Args:
        model: a name of searched_genotypes.
        weights: a data set ("imagenet" gives its preferred weights), an origin ("torchvision"), or an entry's name.
        presets: the model's presets that have the network's size; None for any.
        include_top: False prefers a file without the classifier, if there is one.

    Raises:
        NoWeightsError: there are none.
    """
    known = of_model(model)
    if not known:
        models = sorted({entry.model for entry in entries()})
        raise NoWeightsError(
            f"no weights of {model!r} were published; leave weights= out, or build one of {', '.join(models)}"
        )
    matching = [entry for entry in known if weights in (entry.name, entry.origin, entry.dataset)]
    if not matching:
        words = list(dict.fromkeys(word for entry in known for word in (entry.dataset, entry.origin, entry.name)))
        raise NoWeightsError(
            f"{model!r} has no weights {weights!r}{near(weights, words)}; expected one of {', '.join(words)}"
        )
    fitting = [entry for entry in matching if presets is None or entry.preset in presets]
    if not fitting:
        size = ", ".join(presets or ()) or "of no preset"
        there = ", ".join(dict.fromkeys(entry.preset for entry in matching))
        raise NoWeightsError(
            f"there are no {weights!r} weights of {model!r} in this size ({size}), only for the presets {there}"
        )
    # if an origin has both files, the one without top comes second
    same = [entry for entry in fitting if entry.origin == fitting[0].origin and entry.preset == fitting[0].preset]
    return next((entry for entry in same if entry.include_top == include_top), fitting[0])
