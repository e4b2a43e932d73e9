"""Blocks of mobile networks as layers: inverted residuals with squeeze-and-excite, and the rows that MnasNet and MCUNet
are made of.

Inverted residual: Sandler et al., 2018, arXiv:1801.04381. Squeeze-and-excite: Hu et al., 2018, arXiv:1709.01507, placed
as in MnasNet (arXiv:1807.11626, figure 7): after the depthwise convolution, its width a fraction of the block's input.
"""

from collections.abc import Callable
from typing import Literal

from keras import layers

from zoo import blocks
from zoo.blocks import Style, Tensor
from zoo.genotype import Block, Blocks

Activation = Literal["relu", "relu6"]
Skip = Literal["identity", "pool", "none"]


def expand_blocks(
    body: Blocks,
    image: Tensor,
    *,
    style: Style,
    activation: Activation,
    drop_path_rate: float = 0.0,
    note: Callable[[Tensor, int], Tensor] = lambda x, stride: x,
) -> Tensor:
    """Adds the stem, all blocks and the last 1x1 convolution to a functional graph and returns the last output.

    Args:
        body: the rows; repeat 1 of row 3, both counted from 0, is named block03_1.
        image: the input, (batch, height, width, channels).
        style: the family's conventions.
        activation: after every convolution except the projections.
        drop_path_rate: in training, block k of n (k from 0) loses its residual with probability drop_path_rate x k / n,
            as in EfficientNet's code. MnasNet and MCUNet were trained without drop path.
        note: called with the output of the stem and of each block, and its stride relative to the image.
    """
    x = _conv_bn_act(image, body.stem_filters, 3, 2, style, activation, "stem")
    stride, made = 2, 0
    note(x, stride)
    total = sum(row.repeats for row in body.rows)
    for number, row in enumerate(body.rows):
        for repeat in range(row.repeats):
            strides = row.strides if repeat == 0 else 1
            rate, name = drop_path_rate * made / total, f"block{number:02d}_{repeat}"
            x = block(x, row, strides, style, name, activation=activation, drop_path_rate=rate)
            stride, made = stride * strides, made + 1
            note(x, stride)
    if body.head_filters is None:
        return x
    return _conv_bn_act(x, body.head_filters, 1, 1, style, activation, "head")


def block(
    x: Tensor,
    row: Block,
    strides: int,
    style: Style,
    name: str,
    *,
    activation: Activation = "relu",
    drop_path_rate: float = 0.0,
) -> Tensor:
    """Adds one block of a row: a plain convolution, a separable one, or an inverted residual.

    The latter two consist of a 1x1 convolution (left out if it would not change the width), a depthwise convolution and
    a 1x1 convolution without activation, each with BN. Squeeze-and-excite follows the plain or depthwise convolution.

    `row.skip` says what is added to the result. "identity": `x`, if the shapes agree, otherwise nothing. "none":
    nothing. "pool": the 3x3 mean of `x` at the block's stride, followed by a 1x1 convolution and BN if the number of
    filters differs. MnasNet's paper (section 4.1) lists pooling in its search space without details, and none of its
    published networks uses it, so this is our reading.
    """
    inputs, filters, shortcut = x.shape[-1], row.filters, _make_shortcut(x, row.filters, strides, row.skip, style, name)
    if row.op == "conv":
        x = _conv_bn_act(x, filters, row.kernel_size, strides, style, activation, name)
    else:
        middle = row.mid_filters or round(inputs * row.expansion)  # a separable convolution's expansion is 1
        if middle != inputs:
            x = _conv_bn_act(x, middle, 1, 1, style, activation, f"{name}_expand")
        x = blocks.depthwise(x, row.kernel_size, strides, style, f"{name}_depthwise")
        x = _activate(blocks.batch_norm(x, style, f"{name}_depthwise_bn"), activation, f"{name}_depthwise")
    if row.se_ratio:
        x = squeeze_excite(x, max(1, int(inputs * row.se_ratio)), f"{name}_se")
    if row.op != "conv":
        x = blocks.conv_bn(x, filters, 1, 1, style, f"{name}_project")
    if shortcut is None:
        return x
    if drop_path_rate > 0:
        x = layers.Dropout(drop_path_rate, noise_shape=(None, 1, 1, 1), name=f"{name}_drop_path")(x)
    return layers.Add(name=f"{name}_add")([x, shortcut])


def squeeze_excite(x: Tensor, filters: int, name: str) -> Tensor:
    """Scales each channel of `x` by a gate from 0 to 1, which two 1x1 convolutions compute from the channels' means."""
    gate = layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_mean")(x)
    gate = layers.Conv2D(filters, 1, kernel_initializer=blocks.KERNEL_INITIALIZER, name=f"{name}_reduce")(gate)
    gate = layers.ReLU(name=f"{name}_relu")(gate)
    gate = layers.Conv2D(x.shape[-1], 1, name=f"{name}_expand")(gate)
    # A separate layer: TF-MOT and our int8 training quantize a Conv2D's output before an activation they do not know.
    gate = layers.Activation("sigmoid", name=f"{name}_gate")(gate)
    return layers.Multiply(name=f"{name}_scale")([x, gate])


def _make_shortcut(x: Tensor, filters: int, strides: int, skip: Skip, style: Style, name: str) -> Tensor:
    """Returns what is added to a block's result, or None."""
    if skip == "pool":
        x = blocks.pool(x, "avg", 3, strides, style, f"{name}_skip_pool")
        return x if x.shape[-1] == filters else blocks.conv_bn(x, filters, 1, 1, style, f"{name}_skip")
    return x if skip == "identity" and strides == 1 and x.shape[-1] == filters else None


def _conv_bn_act(
    x: Tensor, filters: int, kernel_size: int, strides: int, style: Style, activation: Activation, name: str
) -> Tensor:
    return _activate(blocks.conv_bn(x, filters, kernel_size, strides, style, name), activation, name)


def _activate(x: Tensor, activation: Activation, name: str) -> Tensor:
    return layers.ReLU(6.0 if activation == "relu6" else None, name=f"{name}_{activation}")(x)
