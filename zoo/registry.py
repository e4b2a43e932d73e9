"""The zoo's models: the files of searched_genotypes/. Needs the standard library only."""

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
    """There is no such model; the text suggests similar names."""


def list_models(pattern: str = "*") -> list[str]:
    """Returns the names of all models that match `pattern` (wildcards: *, ? and [...]), in alphabetical order."""
    return fnmatch.filter(sorted(_list_files()), pattern.lower())


def load(name: str | os.PathLike) -> Genotype:
    """Loads a genotype by the name of a model or a family, or from a file.

    Args:
        name: a name from `list_models`; a family's name, which means its best-known network; or a path, recognised by
            the ending .json or a folder in it.

    Raises:
        UnknownModelError: there is no such name.
        GenotypeError: the file does not hold a genotype.
        OSError: the file cannot be read.
    """
    if not isinstance(name, (str, os.PathLike)):
        raise UnknownModelError(f"a model is {name!r:.200}; expected a name from zoo.list_models(), or a path")
    if isinstance(name, os.PathLike) or name.endswith(_SUFFIX) or os.sep in name:
        return genotype_json.load(name)
    files = _list_files()
    if name in files:
        return genotype_json.load(files[name])
    representative = find_representative(name)
    if representative is None:
        raise UnknownModelError(
            f"there is no model {name!r}{near(_spell(name), [*files, *list_families()])}. "
            "zoo.list_models() shows all; the path of a genotype file ends in .json"
        )
    return representative


def list_families() -> list[str]:
    """Returns the names of the list_families, in alphabetical order."""
    return sorted({genotype_json.load(path).family for path in _list_files().values()})


def find_representative(family: str) -> Genotype | None:
    """Returns the genotype that a family's bare name means; None if there is none."""
    for path in _list_files().values():
        # search the text first: parsing forty files takes longer than building a small network
        if '"represents_family"' in path.read_text(encoding="utf-8"):
            genotype = genotype_json.load(path)
            if genotype.family == family and genotype.represents_family:
                return genotype
    return None


def find_relative(genotype: Genotype) -> Genotype | None:
    """Returns the model whose presets fit a user's genotype; None if there is none.

    That is the family's representative or, if its body is of another kind (ENAS has cells and chains), the family's
    first model with a body of the genotype's kind.
    """
    representative = find_representative(genotype.family)
    if representative is None or isinstance(representative.body, type(genotype.body)):
        return representative
    models = (genotype_json.load(path) for path in _list_files().values())
    return next(
        (model for model in models if model.family == genotype.family and type(model.body) is type(genotype.body)), None
    )


def info(name: str | os.PathLike) -> dict[str, Any]:
    """Returns the facts about a model: name, family, notes, source, presets, published, features and weights.

    "published" has the published numbers of each preset, "weights" the published weights by name. "features" has, for
    each preset, stride -> channels of the maps of `zoo.build(..., features_only=True)`, finest first. `name` and the
    errors are as in `load`.
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


def _spell(name: str) -> str:
    """Returns a name from the literature, such as NASNet-A, in the files' spelling."""
    return name.lower().replace("-", "_").replace(" ", "_")


def _list_files() -> dict[str, Path]:
    folder = Path(str(resources.files("searched_genotypes")))
    return {path.stem: path for path in sorted(folder.glob(f"*{_SUFFIX}")) if path.name not in _NOT_GENOTYPES}
