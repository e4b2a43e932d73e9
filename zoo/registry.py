"""The models that there are: the files of searched_genotypes/. Standard library only."""

import copy
import fnmatch
import os
from importlib import resources
from pathlib import Path
from typing import Any

from zoo import genotype_json, manifest
from zoo.genotype import Genotype, GenotypeError, near

_SUFFIX = ".json"
_NOT_GENOTYPES = ("schema.json",)


class UnknownModelError(GenotypeError):
    """There is no such model; the text suggests near names."""


def list_models(pattern: str = "*") -> list[str]:
    """Returns the names of the models that `pattern` (with *, ? and [..]) matches, in alphabetical order."""
    return fnmatch.filter(sorted(_files()), pattern.lower())


def load(name: str | os.PathLike) -> Genotype:
    """Returns the genotype of a model's name, of a family's name, or of a file.

    Args:
        name: what `list_models` returns; a family, meaning its best-known network; or a path: what ends
            in .json or has a folder in it.

    Raises:
        UnknownModelError: no such name.
        GenotypeError: the file is no genotype.
        OSError: the file cannot be read.
    """
    if not isinstance(name, (str, os.PathLike)):
        raise UnknownModelError(f"a model is {name!r:.200}; expected a name of zoo.list_models(), or a path")
    if isinstance(name, os.PathLike) or name.endswith(_SUFFIX) or os.sep in name:
        return genotype_json.load(name)
    files = _files()
    if name in files:
        return genotype_json.load(files[name])
    representative = find_representative(name)
    if representative is None:
        raise UnknownModelError(
            f"there is no model {name!r}{near(_spelled(name), [*files, *families()])}. "
            "zoo.list_models() shows all; the path of a genotype file ends in .json"
        )
    return representative


def families() -> list[str]:
    """Returns the names of the families, in alphabetical order."""
    return sorted({genotype_json.load(path).family for path in _files().values()})


def find_representative(family: str) -> Genotype | None:
    """Returns the genotype that the family's bare name means, or None for a family without one."""
    for path in _files().values():
        # text first: reading forty files as JSON would take longer than building a small network
        if '"represents_family"' in path.read_text(encoding="utf-8"):
            genotype = genotype_json.load(path)
            if genotype.family == family and genotype.represents_family:
                return genotype
    return None


def find_relative(genotype: Genotype) -> Genotype | None:
    """Returns the model whose presets fit a user's genotype, or None where there is none.

    It is the one that represents the family or, where that one's body is of another kind, the family's first of this
    kind: ENAS has cells and chains.
    """
    representative = find_representative(genotype.family)
    if representative is None or isinstance(representative.body, type(genotype.body)):
        return representative
    models = (genotype_json.load(path) for path in _files().values())
    return next(
        (model for model in models if model.family == genotype.family and type(model.body) is type(genotype.body)), None
    )


def info(name: str | os.PathLike) -> dict[str, Any]:
    """Returns what is known of a model: name, family, source, presets, published numbers, published weights and notes.

    "features" has, for each preset, what `zoo.build(..., features_only=True)` gives: stride -> channels, finest first.
    `name` and the errors are those of `load`.
    """
    genotype = load(name)
    fields = ("name", "family", "notes", "source", "presets", "published")
    return {field: copy.deepcopy(getattr(genotype, field)) for field in fields} | {
        "features": {
            preset: {int(stride): channels for stride, channels in values["features"].items()}
            for preset, values in genotype.published.items()
            if "features" in values
        },
        "weights": {
            entry.name: {field: getattr(entry, field) for field in ("preset", "dataset", "origin", "top1", "license")}
            for entry in manifest.of_model(genotype.name)
        },
    }


def _spelled(name: str) -> str:
    """Returns a name of the literature, such as NASNet-A, in the spelling of the files."""
    return name.lower().replace("-", "_").replace(" ", "_")


def _files() -> dict[str, Path]:
    folder = Path(str(resources.files("searched_genotypes")))
    return {path.stem: path for path in sorted(folder.glob(f"*{_SUFFIX}")) if path.name not in _NOT_GENOTYPES}
