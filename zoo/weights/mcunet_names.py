"""What the once-for-all code, with which MCUNet was trained, calls its layers."""

from collections.abc import Collection, Mapping

_PARTS = {
    "expand_conv": "inverted_bottleneck.conv",
    "expand_bn": "inverted_bottleneck.bn",
    "depthwise": "depth_conv.conv",
    "depthwise_bn": "depth_conv.bn",
    "project_conv": "point_linear.conv",
    "project_bn": "point_linear.bn",
}
_OUTSIDE = {
    "stem_conv": "first_conv.conv",
    "stem_bn": "first_conv.bn",
    "head_conv": "feature_mix_layer.conv",
    "head_bn": "feature_mix_layer.bn",
    "predictions": "classifier.linear",
}


def once_for_all(layers: Collection[str], tensors: Collection[str]) -> Mapping[str, str]:
    """Returns our layer's name -> the name of the module in a .pth of MCUNet.

    Blocks that a search had dropped keep their number there (Proxyless has none of 3 and 4), so the numbers are those
    of `tensors`, in order.

    Args:
        layers: the names of an MCUNet's layers that have weights.
        tensors: the names in the .pth.

    Raises:
        KeyError: a layer that these networks do not have.
        ValueError: the .pth has another number of blocks.
    """
    ours = sorted({_block(layer) for layer in layers if layer.startswith("block")})
    theirs = sorted({int(name.split(".")[1]) for name in tensors if name.startswith("blocks.")})
    if len(ours) != len(theirs):
        raise ValueError(f"the weights have {len(theirs)} blocks and the network {len(ours)}; expected the same number")
    numbers = dict(zip(ours, theirs, strict=True))
    names = {}
    for layer in layers:
        if layer.startswith("block"):
            part = layer.removeprefix(f"{_block(layer)}_")
            names[layer] = f"blocks.{numbers[_block(layer)]}.mobile_inverted_conv.{_PARTS[part]}"
        else:
            names[layer] = _OUTSIDE[layer]
    return names


def _block(layer: str) -> str:
    """Returns the "block03_1" of "block03_1_expand_conv"."""
    return "_".join(layer.split("_")[:2])
