"""Other projects' names for the layers of MnasNets and MCUNets: timm, torchvision, once-for-all, tensorflow/tpu.

Each function takes the names of our layers that have weights and the tensors' names, and returns our layer -> their
module. It raises KeyError for a layer that their networks do not have.
"""

from collections.abc import Collection, Mapping

from zoo.weights.cell_names import find_module

# Inverted residuals: our layer's ending -> theirs. A block without expansion has other names in timm.
_TIMM = {
    "expand_conv": "conv_pw", "expand_bn": "bn1", "depthwise": "conv_dw", "depthwise_bn": "bn2",
    "se_reduce": "se.conv_reduce", "se_expand": "se.conv_expand", "project_conv": "conv_pwl", "project_bn": "bn3",
}  # fmt: skip
_TIMM_SEPARABLE = _TIMM | {"depthwise_bn": "bn1", "project_conv": "conv_pw", "project_bn": "bn2"}
_TIMM_OUTSIDE = {
    "stem_conv": "conv_stem", "stem_bn": "bn1", "head_conv": "conv_head", "head_bn": "bn2", "predictions": "classifier",
}  # fmt: skip
# Positions in torchvision's nn.Sequential, in which activations count, too.
_TORCHVISION = {
    "expand_conv": "layers.0", "expand_bn": "layers.1", "depthwise": "layers.3", "depthwise_bn": "layers.4",
    "project_conv": "layers.6", "project_bn": "layers.7",
}  # fmt: skip
# once-for-all, with which MCUNet was trained
_ONCE_FOR_ALL = {
    "expand_conv": "inverted_bottleneck.conv", "expand_bn": "inverted_bottleneck.bn",
    "depthwise": "depth_conv.conv", "depthwise_bn": "depth_conv.bn",
    "project_conv": "point_linear.conv", "project_bn": "point_linear.bn",
}  # fmt: skip
_ONCE_FOR_ALL_OUTSIDE = {
    "stem_conv": "first_conv.conv", "stem_bn": "first_conv.bn", "head_conv": "feature_mix_layer.conv",
    "head_bn": "feature_mix_layer.bn", "predictions": "classifier.linear",
}  # fmt: skip
# tensorflow/tpu: patterns of the module
_TPU = {
    "expand_conv": "expand_conv", "expand_bn": "bn0", "depthwise": "depthwise_conv", "depthwise_bn": "bn1",
    "se_reduce": r"(se/)?(se_reduce|conv2d)", "se_expand": r"(se/)?(se_expand|conv2d_1)",
    "project_conv": "project_conv", "project_bn": "bn2",
}  # fmt: skip
_TPU_OUTSIDE = {
    "stem_conv": "stem/conv", "stem_bn": "stem/bn", "head_conv": "head/conv", "head_bn": "head/bn", "predictions": "fc",
}  # fmt: skip


def timm(layers: Collection[str], tensors: Collection[str]) -> Mapping[str, str]:
    """Names of timm's mnasnet_100, mnasnet_small and semnasnet_100."""
    names = {}
    for layer in layers:
        block, row, repeat, part = _split_name(layer)
        if not block:
            names[layer] = _TIMM_OUTSIDE[layer]
        else:
            parts = _TIMM if f"{block}_expand_conv" in layers else _TIMM_SEPARABLE
            names[layer] = f"blocks.{row}.{repeat}.{parts[part]}"
    return names


def torchvision(layers: Collection[str], tensors: Collection[str]) -> Mapping[str, str]:
    """Names of torchvision's mnasnet0_5 to mnasnet1_3, all of them B1.

    The layers of the first row's only block are items 3 to 7 of torchvision's sequence; row r is item 7 + r, and the
    last convolution follows the last row.
    """
    rows = 1 + max(_split_name(layer)[1] for layer in layers)
    outside = {"stem_conv": "layers.0", "stem_bn": "layers.1", "predictions": "classifier.1"}
    outside |= {"head_conv": f"layers.{7 + rows}", "head_bn": f"layers.{8 + rows}"}
    names = {}
    for layer in layers:
        block, row, repeat, part = _split_name(layer)
        if not block:
            names[layer] = outside[layer]
        elif row == 0:
            names[layer] = _TORCHVISION[part]
        else:
            names[layer] = f"layers.{7 + row}.{repeat}.{_TORCHVISION[part]}"
    return names


def once_for_all(layers: Collection[str], tensors: Collection[str]) -> Mapping[str, str]:
    """Names in MCUNet's .pth files.

    Blocks that the search removed leave gaps in the numbers (Proxyless has no 3 and 4), so the numbers are taken from
    `tensors`, in order.

    Raises:
        ValueError: `tensors` has another number of blocks.
    """
    ours = sorted({_split_name(layer)[0] for layer in layers if layer.startswith("block")})
    theirs = sorted({int(name.split(".")[1]) for name in tensors if name.startswith("blocks.")})
    if len(ours) != len(theirs):
        raise ValueError(f"the weights have {len(theirs)} blocks and the network {len(ours)}; expected the same number")
    numbers = dict(zip(ours, theirs, strict=True))
    names = {}
    for layer in layers:
        block, _, _, part = _split_name(layer)
        if block:
            names[layer] = f"blocks.{numbers[block]}.mobile_inverted_conv.{_ONCE_FOR_ALL[part]}"
        else:
            names[layer] = _ONCE_FOR_ALL_OUTSIDE[layer]
    return names


def tpu(layers: Collection[str], tensors: Collection[str]) -> Mapping[str, str]:
    """Names of tensorflow/tpu's MnasNet, which numbers the blocks across rows."""
    modules = {tensor.rpartition(".")[0] for tensor in tensors}
    blocks = sorted({_split_name(layer)[0] for layer in layers if layer.startswith("block")})
    names = {}
    for layer in layers:
        block, _, _, part = _split_name(layer)
        if block:
            names[layer] = find_module(modules, f"block_{blocks.index(block)}/{_TPU[part]}", layer)
        else:
            names[layer] = _TPU_OUTSIDE[layer]
    return names


def _split_name(layer: str) -> tuple[str, int, int, str]:
    """Splits "block03_1_expand_conv" into "block03_1", 3, 1 and "expand_conv"; outside blocks, the first is empty."""
    if not layer.startswith("block"):
        return "", -1, -1, layer
    row, repeat, part = layer.removeprefix("block").split("_", 2)
    return f"block{row}_{repeat}", int(row), int(repeat), part
