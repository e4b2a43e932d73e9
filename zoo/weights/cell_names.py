"""Other projects' names for the layers of networks of cells: quark0/darts, NNI, pytorchcv, timm, TF-slim, Keras.

Each function takes our layers' names and the tensors' names and returns our layer -> their module. It raises KeyError
for a layer that their networks do not have. If two of our layers share a module, its tensors hold the channels of the
first, then those of the second: our factorized reductions normalise each half separately.
In TensorFlow's code a module is a variable scope, followed by "/depthwise" or "/pointwise" in a separable convolution.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping

_CELL = re.compile(r"(stem|cell)(\d+)(_reduce)?_(.+)")
_EDGE = re.compile(r"node(\d+)_edge(\d+)_(.+)")
_SIDES = ("left", "right")

_DARTS_OUTSIDE = {
    "stem_conv": "stem.0", "stem_bn": "stem.1", "stem0_first_conv": "stem0.0", "stem0_first_bn": "stem0.1",
    "stem0_second_conv": "stem0.3", "stem0_second_bn": "stem0.4", "stem1_conv": "stem1.1", "stem1_bn": "stem1.2",
    "aux_narrow_conv": "auxiliary_head.features.2", "aux_narrow_bn": "auxiliary_head.features.3",
    "aux_map_conv": "auxiliary_head.features.5", "aux_map_bn": "auxiliary_head.features.6",
    "aux_predictions": "auxiliary_head.classifier", "predictions": "classifier",
}  # fmt: skip
_DARTS_INPUTS = {
    "input0_conv": "preprocess0.op.1", "input0_bn": "preprocess0.op.2",
    "input0_path1_conv": "preprocess0.conv_1", "input0_path1_bn": "preprocess0.bn",
    "input0_path2_conv": "preprocess0.conv_2", "input0_path2_bn": "preprocess0.bn",
    "input1_conv": "preprocess1.op.1", "input1_bn": "preprocess1.op.2",
}  # fmt: skip
_DARTS_EDGE = {
    "dw1": "op.1", "pw1": "op.2", "bn1": "op.3", "dw2": "op.5", "pw2": "op.6", "bn2": "op.7",
    "row_conv": "1", "column_conv": "2", "column_bn": "3",  # conv_7x1_1x7 is a bare Sequential
    "path1_conv": "conv_1", "path1_bn": "bn", "path2_conv": "conv_2", "path2_bn": "bn",
}  # fmt: skip
_PYTORCHCV_OUTSIDE = {
    "stem0_first_conv": "features.stem1_unit.conv1.conv", "stem0_first_bn": "features.stem1_unit.conv1.bn",
    "stem0_second_conv": "features.stem1_unit.conv2.conv", "stem0_second_bn": "features.stem1_unit.conv2.bn",
    "stem1_conv": "features.stem2_unit.conv", "stem1_bn": "features.stem2_unit.bn", "predictions": "output",
}  # fmt: skip
_PYTORCHCV_INPUTS = {
    "input0_conv": "preprocess_prev.conv", "input0_bn": "preprocess_prev.bn",
    "input0_path1_conv": "preprocess_prev.conv1", "input0_path1_bn": "preprocess_prev.bn",
    "input0_path2_conv": "preprocess_prev.conv2", "input0_path2_bn": "preprocess_prev.bn",
    "input1_conv": "preprocess.conv", "input1_bn": "preprocess.bn",
}  # fmt: skip
_PYTORCHCV_EDGE = {
    "dw1": "conv1.conv.dw_conv", "pw1": "conv1.conv.pw_conv", "bn1": "conv1.bn",
    "dw2": "conv2.conv.dw_conv", "pw2": "conv2.conv.pw_conv", "bn2": "conv2.bn",
    "path1_conv": "conv1", "path1_bn": "bn", "path2_conv": "conv2", "path2_bn": "bn",
}  # fmt: skip
_TIMM_INPUTS = {
    "input0_conv": "conv_prev_1x1.conv", "input0_bn": "conv_prev_1x1.bn",
    "input0_path1_conv": "path_1.conv", "input0_path1_bn": "final_path_bn",
    "input0_path2_conv": "path_2.conv", "input0_path2_bn": "final_path_bn",
    "input1_conv": "conv_1x1.conv", "input1_bn": "conv_1x1.bn",
}  # fmt: skip
_TIMM_EDGE = {
    "dw1": "separable_1.depthwise_conv2d", "pw1": "separable_1.pointwise_conv2d", "bn1": "bn_sep_1",
    "dw2": "separable_2.depthwise_conv2d", "pw2": "separable_2.pointwise_conv2d", "bn2": "bn_sep_2",
    "conv": "conv", "bn": "bn",
}  # fmt: skip
# TensorFlow's code: our layer -> pattern of the module
_SLIM_OUTSIDE = {
    "stem_conv": r"(stem/)?(conv0|l1_stem_3x3)", "stem_bn": r"(stem/)?(conv0_bn|l1_stem_bn)",
    "aux_narrow_conv": r"aux_\d+/aux_logits/proj", "aux_narrow_bn": r"aux_\d+/aux_logits/aux_bn0",
    "aux_map_conv": r"aux_\d+/aux_logits/Conv", "aux_map_bn": r"aux_\d+/aux_logits/aux_bn1",
    "aux_predictions": r"aux_\d+/aux_logits/FC", "predictions": "final_layer/FC",
}  # fmt: skip
_SLIM_INPUTS = {
    "input0_conv": "prev_1x1", "input0_bn": "prev_bn",
    "input0_path1_conv": "path1_conv", "input0_path1_bn": "final_path_bn",
    "input0_path2_conv": "path2_conv", "input0_path2_bn": "final_path_bn",
    "input1_conv": "1x1", "input1_bn": "beginning_bn",
}  # fmt: skip
_SLIM_EDGE = {
    "conv": r"\d+x\d+", "bn": "bn(_1)?", "narrow_conv": "pre_1x1", "narrow_bn": "pre_bn", "widen_conv": "post_1x1",
    "widen_bn": "post_bn", "dw1": r"separable_\d+x\d+_1/depthwise", "pw1": r"separable_\d+x\d+_1/pointwise",
    "bn1": r"bn_sep_\d+x\d+_1", "dw2": r"separable_\d+x\d+_2/depthwise", "pw2": r"separable_\d+x\d+_2/pointwise",
    "bn2": r"bn_sep_\d+x\d+_2",
}  # fmt: skip
_SLIM_OUTPUTS = {  # states that a reduction cell shrinks for its output: by a convolution, or by two paths
    "conv": "path_conv", "bn": "path_bn", "path1_conv": "path1_conv", "path1_bn": "final_path_bn",
    "path2_conv": "path2_conv", "path2_bn": "final_path_bn",
}  # fmt: skip
_KERAS_OUTSIDE = {"stem_conv": "stem_conv1", "stem_bn": "stem_bn1", "predictions": "predictions"}
_KERAS_INPUTS = {
    "input0_conv": "adjust_conv_projection_{block}", "input0_bn": "adjust_bn_{block}",
    "input0_path1_conv": "adjust_conv_1_{block}", "input0_path1_bn": "adjust_bn_{block}",
    "input0_path2_conv": "adjust_conv_2_{block}", "input0_path2_bn": "adjust_bn_{block}",
    "input1_conv": "{cell}_conv_1_{block}", "input1_bn": "{cell}_bn_1_{block}",
}  # fmt: skip
_KERAS_EDGE = {"dw": "/depthwise", "pw": "/pointwise", "bn": ""}

# A cell's kind (stem or cell), its number, whether it reduces, and the part in it -> their module
_Inside = Callable[[str, int, bool, str], str]


def darts(layers: Collection[str], tensors: Collection[str]) -> Mapping[str, str]:
    """Names of quark0/darts' NetworkCIFAR and NetworkImageNet, which number operations throughout a cell."""

    def inside(kind: str, number: int, reducing: bool, part: str) -> str:
        if part in _DARTS_INPUTS:
            return f"cells.{number}.{_DARTS_INPUTS[part]}"
        node, edge, step = _split_edge(part)
        return f"cells.{number}._ops.{2 * node + edge}.{_DARTS_EDGE[step]}"

    return _map_layers(layers, _DARTS_OUTSIDE, inside)


def nni_darts(layers: Collection[str], tensors: Collection[str]) -> Mapping[str, str]:
    """Names of NNI's DARTS for CIFAR-10: quark0's, but with stages, and operations numbered within their node."""
    places = _find_places(layers)
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
    places = _find_places(layers)

    def inside(kind: str, number: int, reducing: bool, part: str) -> str:
        stage, unit = places[number]
        owner = f"features.stage{stage + 1}.unit{unit + 1}"
        if part in _PYTORCHCV_INPUTS:
            return f"{owner}.{_PYTORCHCV_INPUTS[part]}"
        node, edge, step = _split_edge(part)
        owner = f"{owner}.body.ops.{2 * node + edge}"
        dilated = f"{owner}.conv.dw_conv.weight" in tensors  # a dilated convolution is a single one, without a number
        return f"{owner}.{_PYTORCHCV_EDGE[step].removeprefix('conv1.' if dilated else '')}"

    return _map_layers(layers, _PYTORCHCV_OUTSIDE, inside)


def timm_nasnet(layers: Collection[str], tensors: Collection[str]) -> Mapping[str, str]:
    """Names of timm's nasnetalarge, which numbers normal cells and reduction cells separately."""
    outside = {"stem_conv": "conv0.conv", "stem_bn": "conv0.bn", "predictions": "last_linear"}
    return _map_timm_layers(layers, outside, _find_reductions(layers), "")


def timm_pnasnet(layers: Collection[str], tensors: Collection[str]) -> Mapping[str, str]:
    """Names of timm's pnasnet5large."""
    outside = {"stem_conv": "conv_0.conv", "stem_bn": "conv_0.bn", "predictions": "last_linear"}
    return _map_timm_layers(layers, outside, [], "conv_prev_1x1.")


def _map_timm_layers(
    layers: Collection[str], outside: Mapping[str, str], reductions: list[int], path: str
) -> Mapping[str, str]:
    """`reductions` are the cells numbered separately; `path` is the module that reduces a cell's oldest input."""

    def inside(kind: str, number: int, reducing: bool, part: str) -> str:
        owner = _name_owner(kind, number, reductions)
        if part in _TIMM_INPUTS:
            return f"{owner}.{path if 'path' in part else ''}{_TIMM_INPUTS[part]}"
        node, edge, step = _split_edge(part)
        return f"{owner}.comb_iter_{node}_{_SIDES[edge]}.{_TIMM_EDGE[step]}"

    return _map_layers(layers, outside, inside)


def slim(layers: Collection[str], tensors: Collection[str]) -> Mapping[str, str]:
    """Names of TF-slim's NASNet and PNASNet, and of tensorflow/tpu's AmoebaNet."""
    modules = {tensor.rpartition(".")[0] for tensor in tensors}
    separate = any(module.startswith("reduction_cell_") for module in modules)  # PNASNet numbers them with the others
    reductions = _find_reductions(layers) if separate else []

    def inside(kind: str, number: int, reducing: bool, part: str) -> str:
        owner = _name_owner(kind, number, reductions)
        if part in _SLIM_INPUTS:
            return f"{owner}/{_SLIM_INPUTS[part]}"
        if output := re.fullmatch(r"output\d+_(.+)", part):
            return rf"{owner}/cell_output/reduction_\d+/{_SLIM_OUTPUTS[output[1]]}"
        node, edge, step = _split_edge(part)
        return f"{owner}/comb_iter_{node}/{_SIDES[edge]}/{_SLIM_EDGE[step]}"

    patterns = _map_layers(layers, _SLIM_OUTSIDE, inside)
    return {layer: find_module(modules, pattern, layer) for layer, pattern in patterns.items()}


def keras_applications(layers: Collection[str], tensors: Collection[str]) -> Mapping[str, str]:
    """Names of keras.applications' NASNetMobile and NASNetLarge."""
    repeats = sum(re.fullmatch(r"normal_conv_1_\d+\.weight", tensor) is not None for tensor in tensors) // 3

    def inside(kind: str, number: int, reducing: bool, part: str) -> str:
        cell = "reduction" if reducing or kind == "stem" else "normal"
        if kind == "stem":
            block = f"stem_{number + 1}"
        elif reducing:
            block = f"reduce_{repeats if number == repeats else 2 * repeats}"
        else:  # our numbers count both reductions before a cell; theirs count the first, but not the second
            block = str(number - (number > 2 * repeats))
        if part in _KERAS_INPUTS:
            return _KERAS_INPUTS[part].format(cell=cell, block=block)
        node, edge, step = _split_edge(part)
        if (cell, node) == ("reduction", 4):  # their numbers count only the operations with weights
            node = 3
        norm = "_bn" if step.startswith("bn") else ""
        return f"separable_conv_{step[2:]}{norm}_{cell}_{_SIDES[edge]}{node + 1}_{block}{_KERAS_EDGE[step[:2]]}"

    return _map_layers(layers, _KERAS_OUTSIDE, inside)


def _map_layers(layers: Collection[str], outside: Mapping[str, str], inside: _Inside) -> dict[str, str]:
    """Returns our layer -> their module: from `outside`, or from `inside` if the layer is part of a cell."""
    names = {}
    for layer in layers:
        if layer in outside:
            names[layer] = outside[layer]
        else:
            kind, number, reduction, part = _match(_CELL, layer)
            names[layer] = inside(kind, int(number), reduction is not None, part)
    return names


def _split_edge(part: str) -> tuple[int, int, str]:
    """Returns the node (from 0, without the inputs), the edge, and the part of its operation."""
    node, edge, step = _match(_EDGE, part)
    return int(node) - 2, int(edge), step


def _name_owner(kind: str, number: int, reductions: list[int]) -> str:
    """Returns the name of a cell if `reductions` are numbered separately."""
    if kind == "stem":
        return f"cell_stem_{number}"
    if number in reductions:
        return f"reduction_cell_{reductions.index(number)}"
    return f"cell_{number - sum(other < number for other in reductions)}"


def _find_cells(layers: Collection[str]) -> Iterator[tuple[int, bool]]:
    """Yields the numbers of the cells, in order, and whether they reduce."""
    cells = (match for layer in layers if (match := re.match(r"cell(\d+)(_reduce)?_", layer)))
    yield from sorted({(int(match[1]), match[2] is not None) for match in cells})


def _find_reductions(layers: Collection[str]) -> list[int]:
    return [number for number, reducing in _find_cells(layers) if reducing]


def _find_places(layers: Collection[str]) -> dict[int, tuple[int, int]]:
    """Returns a cell's number -> its stage and its place there; a reduction cell begins a stage."""
    stage, places = 0, {}
    for number, reducing in _find_cells(layers):
        stage += reducing
        places[number] = (stage, sum(other == stage for other, _ in places.values()))
    return places


def find_module(modules: Collection[str], pattern: str, layer: str) -> str:
    """Returns the one module that fits a pattern; raises KeyError with our layer if there is none, or several."""
    found = [module for module in modules if re.fullmatch(pattern, module)]
    if len(found) != 1:
        raise KeyError(layer)
    return found[0]


def _match(pattern: re.Pattern[str], text: str) -> tuple[str, ...]:
    match = pattern.fullmatch(text)
    if match is None:
        raise KeyError(text)
    return match.groups()
