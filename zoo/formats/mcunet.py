"""The JSON configurations of mit-han-lab/mcunet and its forerunners (ProxylessNASNets), as dictionaries.

A block of expansion 1 has no first 1x1 convolution there and is a sep_conv here. Blocks that the search removed are a
ZeroLayer with an identity shortcut there and are left out here.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from zoo.formats import literals
from zoo.genotype import Block, Blocks, Genotype, GenotypeError, is_whole, locating

EPSILON = 1e-5  # of batch normalisation, unless a configuration or preset gives another
_PLAIN_CONV = {
    "name": "ConvLayer", "dilation": 1, "groups": 1, "bias": False, "has_shuffle": False, "use_bn": True,
    "act_func": "relu6", "dropout_rate": 0, "ops_order": "weight_bn_act",
}  # fmt: skip


def from_mcunet(config: Mapping[str, Any] | str, name: str = "mcunet_blocks") -> Genotype:
    """Returns the genotype of the family "mcunet"; its preset "configured" has the resolution, classes and epsilon.

    Args:
        config: the configuration, or its JSON text.
        name: of the result.

    Raises:
        GenotypeError: an invalid configuration, or one with something that the family does not build.
    """
    if isinstance(config, str):
        try:
            config = json.loads(config)
        except (ValueError, RecursionError) as error:
            raise GenotypeError(
                f"an MCUNet configuration's text is {config!r:.200} ({error}); expected a JSON object with first_conv, "
                "blocks and classifier"
            ) from error
    if not isinstance(config, Mapping):
        raise GenotypeError(
            f"an MCUNet configuration is {config!r:.200}; expected an object with first_conv, blocks and classifier"
        )
    stem = _read_layer(config, "first_conv", kernel_size=3, stride=2, **_PLAIN_CONV)
    rows, width = [], _read_whole(stem, "out_channels")
    blocks = config.get("blocks")
    if not isinstance(blocks, list) or not blocks:
        raise GenotypeError(f"blocks of an MCUNet configuration is {blocks!r:.200}; expected a list of blocks")
    for number, block in enumerate(blocks):
        with locating(f"block {number} (from 0) of an MCUNet configuration"):
            row = _read_block(block, width)
        if row is not None:
            rows.append(row)
            width = row.filters
    head_filters = None
    if config.get("feature_mix_layer") is not None:
        head = _read_layer(config, "feature_mix_layer", kernel_size=1, stride=1, in_channels=width, **_PLAIN_CONV)
        head_filters = width = _read_whole(head, "out_channels")
    classifier = _read_layer(config, "classifier", name="LinearLayer", in_features=width, use_bn=False, act_func=None)
    body = Blocks(tuple(rows), stem["out_channels"], head_filters)
    size = _read_whole(config, "resolution")
    preset = {"input_shape": [size, size, 3], "classes": _read_whole(classifier, "out_features")}
    norm = config.get("bn") or {}
    epsilon = norm.get("eps", EPSILON) if isinstance(norm, Mapping) else None
    if not isinstance(epsilon, float) or not 0 < epsilon < 1:
        raise GenotypeError(f"bn of an MCUNet configuration is {norm!r:.200}; expected eps, a number such as 1e-5")
    if epsilon != EPSILON:
        preset["epsilon"] = epsilon
    return Genotype(name, "mcunet", body, source={"notation": "MCUNet"}, presets={"configured": preset})


def to_mcunet(genotype: Genotype, preset: str | None = None) -> dict[str, Any]:
    """Returns the configuration of a genotype in a preset, by default the first.

    Raises:
        GenotypeError: no such preset, or a block that the notation cannot express.
    """
    body, presets = literals.get_body(genotype, Blocks, "MCUNet's"), dict(genotype.presets)
    if not presets:
        raise GenotypeError(f"{genotype.name} has no presets; expected one, for its resolution and classes")
    if preset is not None and preset not in presets:
        raise GenotypeError(f"{genotype.name} has no preset {preset!r}; expected one of {', '.join(presets)}")
    size, channels, classes, epsilon = _read_preset(presets[next(iter(presets)) if preset is None else preset])
    blocks, width = [], body.stem_filters
    for row in body.rows:
        for repeat in range(row.repeats):
            blocks.append(_write_block(row, row.strides if repeat == 0 else 1, width))
            width = row.filters
    mixed = body.head_filters
    return {
        "name": "ProxylessNASNets",
        "bn": {"momentum": 0.1, "eps": epsilon, "ws_eps": None},
        "first_conv": _PLAIN_CONV | _write_shape(3, 2, channels, body.stem_filters),
        "blocks": blocks,
        "feature_mix_layer": None if mixed is None else _PLAIN_CONV | _write_shape(1, 1, width, mixed),
        "classifier": {
            "name": "LinearLayer", "in_features": mixed or width, "out_features": classes, "bias": True,
            "use_bn": False, "act_func": None, "dropout_rate": 0, "ops_order": "weight_bn_act",
        },
        "resolution": size,
    }  # fmt: skip


def _read_preset(preset: Mapping[str, Any]) -> tuple[int, int, int, float]:
    """Returns the images' height (and width), their channels, the classes and epsilon."""
    shape: Any = preset.get("input_shape")
    epsilon = preset.get("epsilon", EPSILON)
    fits = isinstance(shape, Sequence) and len(shape) == 3 and all(is_whole(side) and side > 0 for side in shape)
    if not fits or shape[0] != shape[1]:
        raise GenotypeError(
            f"the preset's input_shape is {shape!r:.200}; MCUNet's notation has one number for height and width"
        )
    if not isinstance(epsilon, float):
        raise GenotypeError(f"the preset's epsilon is {epsilon!r:.200}; expected a number such as 1e-5")
    return shape[0], shape[2], _read_whole(preset, "classes"), epsilon


def _read_layer(config: Any, key: str, **expected: Any) -> Mapping[str, Any]:
    """Returns a layer of the configuration; each property that it names must be the one that the family builds."""
    layer = config.get(key) if isinstance(config, Mapping) else None
    if not isinstance(layer, Mapping):
        raise GenotypeError(f"an MCUNet configuration's {key} is {layer!r:.200}; expected an object")
    for name, value in expected.items():
        if name != "dropout_rate" and name in layer and layer[name] != value:
            raise GenotypeError(f"{key}: {name} is {layer[name]!r:.200}; this family builds {value!r}")
    return layer


def _read_block(block: Any, width: int) -> Block | None:
    if not isinstance(block, Mapping) or not isinstance(block.get("mobile_inverted_conv"), Mapping):
        raise GenotypeError(f"it is {block!r:.200}; expected an object with mobile_inverted_conv")
    shortcut = block.get("shortcut")
    if shortcut is not None:
        _read_layer(block, "shortcut", name="IdentityLayer")
    if block["mobile_inverted_conv"].get("name") == "ZeroLayer":
        if shortcut is None:
            raise GenotypeError("it is a ZeroLayer without shortcut, so its output is zero; expected a shortcut")
        return None
    layer = _read_layer(block, "mobile_inverted_conv", name="MBInvertedConvLayer", in_channels=width, use_se=False)
    if layer.get("act_func", "relu6") != "relu6":
        raise GenotypeError(f"act_func is {layer['act_func']!r:.200}; this family builds 'relu6'")
    filters, strides, expansion = (
        _read_whole(layer, "out_channels"),
        _read_whole(layer, "stride"),
        layer.get("expand_ratio", 0),
    )
    if isinstance(expansion, bool) or not isinstance(expansion, (int, float)) or not 0.01 <= expansion <= 100:
        raise GenotypeError(f"expand_ratio is {expansion!r:.200}; expected a number from 0.01 to 100")
    same = strides == 1 and filters == width
    if shortcut is not None and not same:
        raise GenotypeError(f"it has a shortcut from {width} to {filters} channels at stride {strides}; shapes differ")
    separable = expansion == 1
    middle = layer.get("mid_channels")
    if middle is not None and (separable or middle == round(width * expansion)):
        middle = None
    return Block(
        "sep_conv" if separable else "mb_conv",
        kernel_size=_read_whole(layer, "kernel_size"),
        filters=filters,
        strides=strides,
        expansion=expansion,
        skip="none" if same and shortcut is None else "identity",
        mid_filters=middle,
    )


def _write_block(row: Block, strides: int, width: int) -> dict[str, Any]:
    if row.op == "conv" or row.se_ratio or row.skip == "pool":
        raise GenotypeError(f"{row} has no form in MCUNet's notation; expected sep_conv or mb_conv, no se, no pool")
    same = strides == 1 and row.filters == width and row.skip == "identity"
    middle = row.mid_filters or round(width * row.expansion)
    layer = {
        "name": "MBInvertedConvLayer",
        **_write_shape(row.kernel_size, strides, width, row.filters),
        "expand_ratio": row.expansion,
        "mid_channels": None if row.op == "sep_conv" else middle,
        "act_func": "relu6",
        "use_se": False,
    }
    shortcut = {"name": "IdentityLayer", "in_channels": [width], "out_channels": [width], "use_bn": False}
    shortcut |= {"act_func": None, "dropout_rate": 0, "ops_order": "weight_bn_act"}
    return {
        "name": "MobileInvertedResidualBlock",
        "mobile_inverted_conv": layer,
        "shortcut": shortcut if same else None,
    }


def _write_shape(kernel_size: int, strides: int, inputs: int, outputs: int) -> dict[str, int]:
    return {"kernel_size": kernel_size, "stride": strides, "in_channels": inputs, "out_channels": outputs}


def _read_whole(record: Mapping[str, Any], name: str) -> int:
    value = record.get(name)
    if not is_whole(value) or value < 1:
        raise GenotypeError(f"{name} is {value!r:.200}; expected a whole number from 1")
    return value
