"""What is known of published weights: where they are, whose they are, what they expect.

The data is weights/manifest.json. Nothing here downloads anything; it needs the standard library only.
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
    """There are no such published weights; the text lists those that there are."""


class Source(NamedTuple):
    """Where a file is, what it is, and the digests that somebody states of it.

    Attributes:
        url: of the file.
        format: "h5" (Keras 2), "safetensors", "pth" (PyTorch), "pth.zip" (one in an archive) or
            "tar.gz" (an archive with a checkpoint of TensorFlow).
        sha256, sha256_prefix, md5: of the file, those that are known.
        sha1_inside: of the file in a zip archive.
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
        name: its own.
        model: of searched_genotypes.
        preset: of the model.
        dataset: that it was trained on.
        origin: whose code trained or converted it.
        classes: of its classifier.
        sources: where the file is, the preferred place first.
        license: of the code that it came with.
        preprocessing: mean and std of each channel, of values from 0 to 1; the evaluation's share of the image in each
            direction (crop) and interpolation, where it was resized.
        top1: accuracy in percent that the source states.
        source: the code, and its name for these weights.
        include_top: whether the classifier is in it.
        auxiliary: whether the auxiliary classifier is in it.
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
    """Whether `weights`, as `zoo.build` takes them, are a path rather than the name of published ones."""
    return isinstance(weights, os.PathLike) or os.sep in weights or weights.endswith(_FILES)


@functools.cache
def entries() -> tuple[Entry, ...]:
    """Returns all published weights, a model's preferred ones first."""
    records = json.loads((Path(__file__).parent / "weights" / "manifest.json").read_text(encoding="utf-8"))
    return tuple(
        Entry(**record | {"sources": tuple(Source(**source) for source in record["sources"])}) for record in records
    )


def of_model(model: str) -> tuple[Entry, ...]:
    """Returns the published weights of a model of searched_genotypes; there may be none."""
    return tuple(entry for entry in entries() if entry.model == model)


def named(name: str) -> Entry:
    """Returns the published weights of this name.

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
        weights: a data set ("imagenet": the preferred ones of it), an origin ("torchvision"), or an entry's name.
        presets: those presets of the model that have the network's size; None for any.
        include_top: False takes the file without the classifier where there is one.

    Raises:
        NoWeightsError: there are none.
    """
    known = of_model(model)
    if not known:
        models = sorted({entry.model for entry in entries()})
        raise NoWeightsError(
            f"no weights of {model!r} were published; leave weights= out, or take one of {', '.join(models)}"
        )
    named = [entry for entry in known if weights in (entry.name, entry.origin, entry.dataset)]
    if not named:
        words = list(dict.fromkeys(word for entry in known for word in (entry.dataset, entry.origin, entry.name)))
        raise NoWeightsError(
            f"{model!r} has no weights {weights!r}{near(weights, words)}; expected one of {', '.join(words)}"
        )
    fitting = [entry for entry in named if presets is None or entry.preset in presets]
    if not fitting:
        size = ", ".join(presets or ()) or "of no preset"
        there = ", ".join(dict.fromkeys(entry.preset for entry in named))
        raise NoWeightsError(
            f"there are no {weights!r} weights of {model!r} in this size ({size}); there are for the presets {there}"
        )
    # of an origin that has both, the file without top lies behind the one with it
    same = [entry for entry in fitting if entry.origin == fitting[0].origin and entry.preset == fitting[0].preset]
    return next((entry for entry in same if entry.include_top == include_top), fitting[0])
