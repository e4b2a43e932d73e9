"""What quark0/darts, NNI, pytorchcv and timm call the layers of networks made of cells.

Each function takes our layers' names and the tensors' names and returns our layer -> their module. Where two of our
layers have one module, its tensors hold the channels of the one, then those of the other: our factorized reductions
normalise each half.
"""

import re
from collections.abc import Collection, Mapping

CELL = re.compile(r"(stem|cell)(\d+)(_reduce)?_(.+)")
EDGE = re.compile(r"node(\d+)_edge(\d+)_(.+)")

_DARTS_OUTSIDE = {
    "stem_conv": "stem.0",
    "stem_bn": "stem.1",
    "stem0_first_conv": "stem0.0",
    "stem0_first_bn": "stem0.1",
    "stem0_second_conv": "stem0.3",
    "stem0_second_bn": "stem0.4",
    "stem1_conv": "stem1.1",
    "stem1_bn": "stem1.2",
    "aux_narrow_conv": "auxiliary_head.features.2",
    "aux_narrow_bn": "auxiliary_head.features.3",
    "aux_map_conv": "auxiliary_head.features.5",
    "aux_map_bn": "auxiliary_head.features.6",
    "aux_predictions": "auxiliary_head.classifier",
    "predictions": "classifier",
}
_DARTS_INPUTS = {
    "input0_conv": "preprocess0.op.1",
    "input0_bn": "preprocess0.op.2",
    "input0_path1_conv": "preprocess0.conv_1",
    "input0_path1_bn": "preprocess0.bn",
    "input0_path2_conv": "preprocess0.conv_2",
    "input0_path2_bn": "preprocess0.bn",
    "input1_conv": "preprocess1.op.1",
    "input1_bn": "preprocess1.op.2",
}
_DARTS_EDGE = {
    "dw1": "op.1",
    "pw1": "op.2",
    "bn1": "op.3",
    "dw2": "op.5",
    "pw2": "op.6",
    "bn2": "op.7",
    "row_conv": "1",  # conv_7x1_1x7 is a bare Sequential
    "column_conv": "2",
    "column_bn": "3",
    "path1_conv": "conv_1",
    "path1_bn": "bn",
    "path2_conv": "conv_2",
    "path2_bn": "bn",
}
_PYTORCHCV_OUTSIDE = {
    "stem0_first_conv": "features.stem1_unit.conv1.conv",
    "stem0_first_bn": "features.stem1_unit.conv1.bn",
    "stem0_second_conv": "features.stem1_unit.conv2.conv",
    "stem0_second_bn": "features.stem1_unit.conv2.bn",
    "stem1_conv": "features.stem2_unit.conv",
    "stem1_bn": "features.stem2_unit.bn",
    "predictions": "output",
}
_PYTORCHCV_INPUTS = {
    "input0_conv": "preprocess_prev.conv",
    "input0_bn": "preprocess_prev.bn",
    "input0_path1_conv": "preprocess_prev.conv1",
    "input0_path1_bn": "preprocess_prev.bn",
    "input0_path2_conv": "preprocess_prev.conv2",
    "input0_path2_bn": "preprocess_prev.bn",
    "input1_conv": "preprocess.conv",
    "input1_bn": "preprocess.bn",
}
_PYTORCHCV_EDGE = {
    "dw1": "conv1.conv.dw_conv",
    "pw1": "conv1.conv.pw_conv",
    "bn1": "conv1.bn",
    "dw2": "conv2.conv.dw_conv",
    "pw2": "conv2.conv.pw_conv",
    "bn2": "conv2.bn",
    "path1_conv": "conv1",
    "path1_bn": "bn",
    "path2_conv": "conv2",
    "path2_bn": "bn",
}
_TIMM_INPUTS = {
    "input0_conv": "conv_prev_1x1.conv",
    "input0_bn": "conv_prev_1x1.bn",
    "input0_path1_conv": "path_1.conv",
    "input0_path1_bn": "final_path_bn",
    "input0_path2_conv": "path_2.conv",
    "input0_path2_bn": "final_path_bn",
    "input1_conv": "conv_1x1.conv",
    "input1_bn": "conv_1x1.bn",
}
_TIMM_EDGE = {
    "dw1": "separable_1.depthwise_conv2d",
    "pw1": "separable_1.pointwise_conv2d",
    "bn1": "bn_sep_1",
    "dw2": "separable_2.depthwise_conv2d",
    "pw2": "separable_2.pointwise_conv2d",
    "bn2": "bn_sep_2",
    "conv": "conv",
    "bn": "bn",
}
SIDES = ("left", "right")


def darts(layers: Collection[str], tensors: Collection[str]) -> Mapping[str, str]:
    """Names of quark0/darts' NetworkCIFAR and NetworkImageNet, whose operations are numbered through the cell."""
    names = {}
    for layer in layers:
        if layer in _DARTS_OUTSIDE:
            names[layer] = _DARTS_OUTSIDE[layer]
            continue
        _, number, _, part = matched(CELL, layer)
        if part in _DARTS_INPUTS:
            names[layer] = f"cells.{int(number)}.{_DARTS_INPUTS[part]}"
        else:
            node, edge, step = matched(EDGE, part)
            names[layer] = f"cells.{int(number)}._ops.{2 * (int(node) - 2) + int(edge)}.{_DARTS_EDGE[step]}"
    return names


def nni_darts(layers: Collection[str], tensors: Collection[str]) -> Mapping[str, str]:
    """Names of NNI's DARTS for CIFAR-10: quark0's, but for stages, and operations that are numbered in their node."""
    places = _places(layers)
    names = {}
    for layer, module in darts(layers, tensors).items():
        if module.startswith("cells."):
            _, cell, inside = module.split(".", 2)
            stage, unit = places[int(cell)]
            inside = inside.replace("op.", "").replace("preprocess", "preprocessor.pre")
            inside = re.sub(r"_ops\.(\d+)", lambda match: "ops.{}.{}".format(*divmod(int(match[1]), 2)), inside)
            module = f"stages.{stage}.{unit}.{inside}"
        names[layer] = module
    return names


def pytorchcv_darts(layers: Collection[str], tensors: Collection[str]) -> Mapping[str, str]:
    """Names of pytorchcv's DARTS for ImageNet, which counts stages and their units from one."""
    places = _places(layers)
    names = {}
    for layer in layers:
        if layer in _PYTORCHCV_OUTSIDE:
            names[layer] = _PYTORCHCV_OUTSIDE[layer]
            continue
        _, number, _, part = matched(CELL, layer)
        stage, unit = places[int(number)]
        owner = f"features.stage{stage + 1}.unit{unit + 1}"
        if part in _PYTORCHCV_INPUTS:
            names[layer] = f"{owner}.{_PYTORCHCV_INPUTS[part]}"
            continue
        node, edge, step = matched(EDGE, part)
        owner = f"{owner}.body.ops.{2 * (int(node) - 2) + int(edge)}"
        dilated = f"{owner}.conv.dw_conv.weight" in tensors  # one convolution, whose name has no number
        names[layer] = f"{owner}.{_PYTORCHCV_EDGE[step].removeprefix('conv1.' if dilated else '')}"
    return names


def _places(layers: Collection[str]) -> dict[int, tuple[int, int]]:
    """Returns the number of a cell -> its stage and its place there; a reduction cell begins a stage."""
    reducing: dict[int, bool] = {}
    for layer in layers:
        if layer.startswith("cell"):
            _, number, reduction, _ = matched(CELL, layer)
            reducing[int(number)] = bool(reduction)
    stage, places = 0, {}
    for number in sorted(reducing):
        stage += reducing[number]
        places[number] = (stage, sum(other == stage for other, _ in places.values()))
    return places


def timm_nasnet(layers: Collection[str], tensors: Collection[str]) -> Mapping[str, str]:
    """Names of timm's nasnetalarge, which numbers normal cells and reduction cells apart."""
    reductions = sorted({int(matched(CELL, layer)[1]) for layer in layers if re.match(r"cell\d+_reduce", layer)})

    def cell(kind: str, number: int, reducing: bool) -> str:
        if kind == "stem":
            return f"cell_stem_{number}"
        if reducing:
            return f"reduction_cell_{reductions.index(number)}"
        return f"cell_{number - sum(other < number for other in reductions)}"

    return _timm(layers, cell, {"stem_conv": "conv0.conv", "stem_bn": "conv0.bn", "predictions": "last_linear"}, "")


def timm_pnasnet(layers: Collection[str], tensors: Collection[str]) -> Mapping[str, str]:
    """Names of timm's pnasnet5large."""

    def cell(kind: str, number: int, reducing: bool) -> str:
        return f"cell_stem_{number}" if kind == "stem" else f"cell_{number}"

    outside = {"stem_conv": "conv_0.conv", "stem_bn": "conv_0.bn", "predictions": "last_linear"}
    return _timm(layers, cell, outside, "conv_prev_1x1.")


def _timm(layers: Collection[str], cell, outside: Mapping[str, str], reduction: str) -> dict[str, str]:
    """`reduction` is where a cell keeps the factorized reduction of its oldest input."""
    names = {}
    for layer in layers:
        if layer in outside:
            names[layer] = outside[layer]
            continue
        kind, number, reducing, part = matched(CELL, layer)
        owner = cell(kind, int(number), bool(reducing))
        if part in _TIMM_INPUTS:
            names[layer] = f"{owner}.{reduction if 'path' in part else ''}{_TIMM_INPUTS[part]}"
        else:
            node, edge, step = matched(EDGE, part)
            names[layer] = f"{owner}.comb_iter_{int(node) - 2}_{SIDES[int(edge)]}.{_TIMM_EDGE[step]}"
    return names


def matched(pattern: re.Pattern[str], text: str) -> tuple[str, ...]:
    """Returns the groups of a pattern, or raises KeyError with the text that it does not match."""
    match = pattern.fullmatch(text)
    if match is None:
        raise KeyError(text)
    return match.groups()
