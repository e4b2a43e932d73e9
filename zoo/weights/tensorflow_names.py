"""What TensorFlow's own code calls the variables of its networks: TF-slim, and tensorflow/tpu.

Each function takes the names of our layers and those of the tensors and returns our layer -> their module, as
`cell_names` does. A module is a variable scope; of a separable convolution "/depthwise" and "/pointwise" are added.
"""

import re
from collections.abc import Collection, Mapping

from zoo.weights.cell_names import CELL, EDGE, SIDES, matched

# Ends of variables' names -> PyTorch's, in which `torch_import` looks for them
_VARIABLES = {
    "depthwise_weights": "/depthwise.weight", "pointwise_weights": "/pointwise.weight", "weights": ".weight",
    "kernel": ".weight", "depthwise_kernel": ".weight", "biases": ".bias", "bias": ".bias", "gamma": ".weight",
    "beta": ".bias", "moving_mean": ".running_mean", "moving_variance": ".running_var",
}  # fmt: skip
_AVERAGE = "/ExponentialMovingAverage"

# Our layer -> pattern of their module, of networks made of cells
_OUTSIDE = {
    "stem_conv": r"(stem/)?(conv0|l1_stem_3x3)",
    "stem_bn": r"(stem/)?(conv0_bn|l1_stem_bn)",
    "aux_narrow_conv": r"aux_\d+/aux_logits/proj",
    "aux_narrow_bn": r"aux_\d+/aux_logits/aux_bn0",
    "aux_map_conv": r"aux_\d+/aux_logits/Conv",
    "aux_map_bn": r"aux_\d+/aux_logits/aux_bn1",
    "aux_predictions": r"aux_\d+/aux_logits/FC",
    "predictions": "final_layer/FC",
}
_INPUTS = {
    "input0_conv": "prev_1x1",
    "input0_bn": "prev_bn",
    "input0_path1_conv": "path1_conv",
    "input0_path1_bn": "final_path_bn",
    "input0_path2_conv": "path2_conv",
    "input0_path2_bn": "final_path_bn",
    "input1_conv": "1x1",
    "input1_bn": "beginning_bn",
}
_EDGES = {
    "dw": r"separable_\d+x\d+_{}/depthwise",
    "pw": r"separable_\d+x\d+_{}/pointwise",
    "bn": r"bn_sep_\d+x\d+_{}",
}
_PARTS = {
    "conv": r"\d+x\d+",
    "bn": "bn(_1)?",
    "narrow_conv": "pre_1x1",
    "narrow_bn": "pre_bn",
    "widen_conv": "post_1x1",
    "widen_bn": "post_bn",
}
# An output that a reduction has to make smaller: a convolution, or two paths
_OUTPUTS = {
    "conv": "path_conv",
    "bn": "path_bn",
    "path1_conv": "path1_conv",
    "path1_bn": "final_path_bn",
    "path2_conv": "path2_conv",
    "path2_bn": "final_path_bn",
}
_MNASNET = {
    "expand_conv": "expand_conv",
    "expand_bn": "bn0",
    "depthwise": "depthwise_conv",
    "depthwise_bn": "bn1",
    "se_reduce": r"(se/)?(se_reduce|conv2d)",
    "se_expand": r"(se/)?(se_expand|conv2d_1)",
    "project_conv": "project_conv",
    "project_bn": "bn2",
}
_MNASNET_OUTSIDE = {
    "stem_conv": "stem/conv",
    "stem_bn": "stem/bn",
    "head_conv": "head/conv",
    "head_bn": "head/bn",
    "predictions": "fc",
}


def rename(variables: Collection[str]) -> dict[str, str]:
    """Returns name of a variable -> name of a tensor as the functions below take it, for those that a network has.

    Where training kept a moving average of a variable, it stands for the variable: TensorFlow's published accuracies
    are the averages'.
    """
    prefix = "module/" if any(variable.startswith("module/") for variable in variables) else ""  # of TF Hub
    found: dict[str, str] = {}
    for variable in sorted(variables):  # an average comes after what it is of
        scope, _, end = variable.removeprefix(prefix).removesuffix(_AVERAGE).rpartition("/")
        if scope and end in _VARIABLES:
            found[scope + _VARIABLES[end]] = variable
    return {variable: tensor for tensor, variable in found.items()}


def cells(layers: Collection[str], tensors: Collection[str]) -> Mapping[str, str]:
    """Names of TF-slim's NASNet and PNASNet, and of tensorflow/tpu's AmoebaNet.

    Raises:
        KeyError: a layer that these networks do not have, or a tensor that the file lacks.
    """
    modules = sorted({tensor.rpartition(".")[0] for tensor in tensors})
    reductions = sorted({int(matched(CELL, layer)[1]) for layer in layers if re.match(r"cell\d+_reduce", layer)})
    if not any(module.startswith("reduction_cell_") for module in modules):
        reductions = []  # PNASNet counts them with the others
    names = {}
    for layer in layers:
        if layer in _OUTSIDE:
            names[layer] = _only(modules, _OUTSIDE[layer], layer)
            continue
        kind, text, reducing, part = matched(CELL, layer)
        number = int(text)
        if kind == "stem":
            owner = f"cell_stem_{number}"
        elif reducing and reductions:
            owner = f"reduction_cell_{reductions.index(number)}"
        else:
            owner = f"cell_{number - sum(other < number for other in reductions)}"
        if part in _INPUTS:
            names[layer] = f"{owner}/{_INPUTS[part]}"
        elif output := re.fullmatch(r"output\d+_(.+)", part):
            names[layer] = _only(modules, rf"{owner}/cell_output/reduction_\d+/{_OUTPUTS[output[1]]}", layer)
        else:
            node, edge, step = matched(EDGE, part)
            pattern = _PARTS[step] if step in _PARTS else _EDGES[step[:-1]].format(step[-1])
            names[layer] = _only(modules, f"{owner}/comb_iter_{int(node) - 2}/{SIDES[int(edge)]}/{pattern}", layer)
    return names


def mnasnet(layers: Collection[str], tensors: Collection[str]) -> Mapping[str, str]:
    """Names of tensorflow/tpu's MnasNet, which counts the blocks of all rows through.

    Raises:
        KeyError: a layer that it does not have, or a tensor that the file lacks.
    """
    modules = sorted({tensor.rpartition(".")[0] for tensor in tensors})
    blocks = sorted({"_".join(layer.split("_")[:2]) for layer in layers if layer.startswith("block")})
    names = {}
    for layer in layers:
        if layer in _MNASNET_OUTSIDE:
            names[layer] = _MNASNET_OUTSIDE[layer]
        else:
            block = "_".join(layer.split("_")[:2])
            part = _MNASNET[layer.removeprefix(f"{block}_")]
            names[layer] = _only(modules, f"block_{blocks.index(block)}/{part}", layer)
    return names


def _only(modules: Collection[str], pattern: str, layer: str) -> str:
    found = [module for module in modules if re.fullmatch(pattern, module)]
    if len(found) != 1:
        raise KeyError(layer)
    return found[0]
