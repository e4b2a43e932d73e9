"""`zoo.build`: from a name, a file or a Genotype to a plain Keras model.

The module is not named build, because importing it would replace the function `zoo.build` by the module.
"""

import importlib
import importlib.util
import numbers
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import keras

from zoo import blocks, manifest, registry
from zoo.genotype import Genotype, GenotypeError, locating, near
from zoo.skeleton import Options


@blocks.layer_defaults()
def build(
    model: str | os.PathLike | Genotype,
    preset: str | None = None,
    *,
    classes: int | None = None,
    input_shape: tuple[int | None, int | None, int] | None = None,
    include_top: bool = True,
    pooling: Literal["avg", "max"] | None = None,
    classifier_activation: str | None = "softmax",
    weights: str | os.PathLike | None = None,
    drop_path_rate: float = 0.0,
    dropout_rate: float = 0.0,
    auxiliary: bool = False,
    features_only: bool = False,
    width_multiplier: float | None = None,
    name: str | None = None,
) -> keras.Model:
    """Builds a flat functional model of standard Keras layers, channels-last whatever Keras is set to.

    Args:
        model: a name from `zoo.list_models()`, a family's name, the path of a genotype file, or a Genotype.
        preset: the network's size, a name from `zoo.info(model)["presets"]`; by default the first. A genotype without
            presets uses those of its family.
        classes: number of classes; by default the preset's.
        input_shape: (height, width, channels) of the images; by default the preset's. Height and width may be None.
        include_top: whether to add the classifier; without it `classes` and `classifier_activation` have no effect.
        pooling: without the classifier: None returns the last feature map, "avg" or "max" its mean or maximum.
        classifier_activation: of the classifier; None for logits.
        weights: None initialises them randomly. A data set ("imagenet"), an origin ("timm") or a name from
            `zoo.manifest.entries()` loads published weights, downloaded once. A path loads a file of the same network
            (.weights.h5, .keras, or as in `zoo.weights.published.load_file`), which may have heads that this one lacks.
        drop_path_rate: the largest probability with which training drops an edge of a cell, or a block's residual.
        dropout_rate: before the classifier, in training.
        auxiliary: whether to add the paper's auxiliary classifier as a second output.
        features_only: whether to return the last feature map of each stride instead, finest first.
        width_multiplier: factor for all widths (MnasNet only).
        name: of the model; by default MODEL_PRESET.

    Raises:
        GenotypeError: an unknown name, preset or name of weights, or a genotype that cannot be built.
        ValueError: an argument is out of range, or weights do not fit.
        OSError: a file cannot be read.
    """
    if weights is not None and not isinstance(weights, (str, os.PathLike)):
        raise ValueError(f"weights={weights!r}; expected None, a name such as 'imagenet', or a path")
    genotype = model if isinstance(model, Genotype) else registry.load(model)
    family = _import_family(genotype.family)
    preset_name, values = _choose_preset(genotype, preset)
    extra = {} if width_multiplier is None else {"width_multiplier": width_multiplier}
    if extra and genotype.family != "mnasnet":
        raise ValueError(f"width_multiplier is not for the family {genotype.family!r}, only for mnasnet; leave it out")
    options = Options(
        classes=_check_classes(values.get("classes") if classes is None else classes, include_top),
        input_shape=_check_input_shape(values.get("input_shape") if input_shape is None else input_shape),
        include_top=include_top,
        pooling=pooling,
        classifier_activation=classifier_activation,
        drop_path_rate=_check_rate("drop_path_rate", drop_path_rate),
        dropout_rate=_check_rate("dropout_rate", dropout_rate),
        auxiliary=auxiliary,
        features_only=features_only,
        name=name or f"{genotype.name}_{preset_name}".replace(".", "_"),
        extra=extra,
    )
    _check_parts(options)
    with locating(f"{genotype.name}, preset {preset_name!r}"):
        network = family.build(genotype, values, options)
    if weights is None:
        return network
    if manifest.is_file(weights):
        from zoo.weights.published import load_file

        load_file(network, weights)
        return network
    size = _pick_size_settings({**values, **extra})
    presets = [name for name, other in genotype.presets.items() if _pick_size_settings(other) == size]
    entry = manifest.find(genotype.name, str(weights), presets, include_top=include_top)
    from zoo.weights.published import load_published  # on demand: it imports what downloads and converts

    def build_original() -> keras.Model:
        return build(genotype, entry.preset, include_top=entry.include_top, auxiliary=auxiliary and entry.auxiliary)

    load_published(network, entry, build_original)
    return network


def _pick_size_settings(preset: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of a preset that determine the network's size."""
    size = {name: value for name, value in preset.items() if name not in ("input_shape", "classes")}
    if size.get("width_multiplier") == 1:
        del size["width_multiplier"]
    return size


def _import_family(name: str) -> Any:
    module = f"zoo.families.{name}"
    if importlib.util.find_spec(module) is None:
        folder = Path(__file__).parent / "families"
        known = sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")
        raise GenotypeError(f"there is no family {name!r}{near(name, known)}; expected one of {', '.join(known)}")
    return importlib.import_module(module)


def _choose_preset(genotype: Genotype, name: str | None) -> tuple[str, Mapping[str, Any]]:
    """Returns a preset's name and values, from the genotype or from its family."""
    presets = dict(genotype.presets)
    if not presets or (name is not None and name not in presets):
        relative = registry.find_relative(genotype)
        presets |= {} if relative is None else {n: p for n, p in relative.presets.items() if n not in presets}
    if not presets:
        raise GenotypeError(f'{genotype.name} has no presets, and neither has its family; add "presets" to its file')
    if name is None:
        name = next(iter(presets))
    if name not in presets:
        raise GenotypeError(
            f"{genotype.name} has no preset {name!r}{near(str(name), presets)}; expected one of {', '.join(presets)}"
        )
    return name, presets[name]


def _check_classes(classes: Any, include_top: bool) -> int:
    if not include_top and classes is None:
        return 1
    if classes is None:
        raise ValueError("classes is not given, and the preset has none; give the number of classes")
    if not _is_whole(classes):
        raise ValueError(f"classes={classes!r}; expected a whole number from 1")
    return int(classes)


def _is_whole(value: Any) -> bool:
    """Returns whether `value` is an integer of Python or NumPy, and at least 1."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= 1


def _check_input_shape(shape: Any) -> tuple[int | None, int | None, int]:
    if shape is None:
        raise ValueError("input_shape is not given, and the preset has none; give (height, width, channels)")
    message = f"input_shape={shape!r}; expected (height, width, channels), such as (224, 224, 3) or (None, None, 3)"
    try:
        height, width, channels = shape
    except (TypeError, ValueError):
        raise ValueError(message) from None
    sides = [side for side in (height, width) if side is not None]
    if not all(map(_is_whole, [*sides, channels])):
        raise ValueError(message)
    return (height and int(height), width and int(width), int(channels))


def _check_parts(options: Options) -> None:
    """Raises ValueError for options of a part that the network will not have."""
    if options.pooling not in (None, "avg", "max"):
        raise ValueError(f"pooling={options.pooling!r}; expected one of None, 'avg', 'max'")
    if options.pooling and (options.include_top or options.features_only):
        remedy = "leave it out" if options.features_only else "leave it out, or add include_top=False"
        raise ValueError(f"pooling={options.pooling!r} pools the last feature map without the classifier; {remedy}")
    if options.features_only or not options.include_top:
        for name, value in (("auxiliary", options.auxiliary), ("dropout_rate", options.dropout_rate)):
            if value:
                raise ValueError(f"{name}={value} has no effect without the classifier; leave it out")


def _check_rate(what: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 <= value < 1:
        raise ValueError(f"{what}={value!r}; expected a number from 0 to less than 1")
    return float(value)
