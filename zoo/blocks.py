"""Building blocks of standard Keras layers, shared by all families: convolution with normalisation, pools, reductions.

Every function takes a 4-D channels-last tensor and the prefix `name` of the layers it makes. Batch normalisation
directly follows a linear convolution and stands nowhere else, so that TF-MOT and the TFLite converter can fuse the two.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from typing import Any, Literal, get_args

import keras
from keras import initializers, layers

from zoo.genotype import GenotypeError, check_choice

# He initialisation (He et al., ICCV 2015; TF-slim's and PyTorch's defaults are variants of it), drawn uniformly: the
# usual truncated normal takes four times as long to draw, a quarter of the time to build NASNet-A large.
KERNEL_INITIALIZER = "he_uniform"

Tensor = Any  # a keras.KerasTensor; Keras ships no types


@contextlib.contextmanager
def layer_defaults(dtype: keras.DTypePolicy | None = None) -> Iterator[None]:
    """Builds layers channels-last, whatever Keras is set to, and with the policy `dtype` if given.

    Layers keep both settings: they are part of each layer's config.
    """
    data_format, policy = keras.config.image_data_format(), keras.config.dtype_policy()
    keras.config.set_image_data_format("channels_last")
    keras.config.set_dtype_policy(dtype or policy)
    try:
        yield
    finally:
        keras.config.set_image_data_format(data_format)
        keras.config.set_dtype_policy(policy)


@dataclasses.dataclass(frozen=True)
class Style:
    """Conventions that a family's published code follows in all its layers.

    Attributes:
        padding: of strided layers: "same" as in TensorFlow, or "torch": k//2 on both sides, as in PyTorch code.
        momentum: of the moving averages, in Keras' convention (1 minus PyTorch's).
        epsilon: added to the variance in batch normalisation.
        strided_skip: what "skip_connect" becomes at stride 2.
        bottleneck: whether conv_3x3 and conv_1x7_7x1 work on a quarter of the channels (AmoebaNet).
        oldest_input: whether h[c-2] is always projected by relu-1x1-bn (DARTS), or only if its shape differs.
        drop_path_on_skip: whether drop path applies to strided skips, too (DARTS).
        drop_path_by_depth: whether the drop path rate grows linearly with the cell's depth (NASNet).
        border_average: what a strided average does at the border: leave out pixels outside the image, or count them as
            zeros (as timm's and Keras' NASNet do; for the parity tests with them).
    """

    padding: Literal["same", "torch"] = "same"
    momentum: float = 0.9
    epsilon: float = 1e-5
    strided_skip: Literal["conv_1x1", "factorized_reduce", "factorized_reduce_without_relu"] = "conv_1x1"
    bottleneck: bool = False
    oldest_input: Literal["always", "if_different"] = "if_different"
    drop_path_on_skip: bool = False
    drop_path_by_depth: bool = True
    border_average: Literal["leave_out", "zeros"] = "leave_out"

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if choices := get_args(field.type):
                check_choice(f"the style's {field.name}", getattr(self, field.name), choices)
        for name, example in (("momentum", "0.9"), ("epsilon", "1e-5")):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
                raise GenotypeError(f"{name} is {value!r}; expected a number between 0 and 1, such as {example}")


def relu(x: Tensor, name: str) -> Tensor:
    """Returns max(x, 0)."""
    return layers.ReLU(name=f"{name}_relu")(x)


def batch_norm(x: Tensor, style: Style, name: str) -> Tensor:
    """Normalises over batch and space with the family's momentum and epsilon."""
    return layers.BatchNormalization(momentum=style.momentum, epsilon=style.epsilon, name=name)(x)


def conv(
    x: Tensor, filters: int, kernel_size: int | tuple[int, int], strides: int | tuple[int, int], style: Style, name: str
) -> Tensor:
    """Adds a convolution without bias, with the family's padding.

    Raises:
        GenotypeError: `filters` is 0: many layers get a half or a quarter of the preset's filters.
    """
    if filters < 1:
        raise GenotypeError(
            f"{name} would have {filters} filters, a fraction of the preset's; expected at least 1. "
            "Give the preset more filters"
        )
    x, padding = _pad_input(x, kernel_size, strides, style, name)
    return layers.Conv2D(
        filters, kernel_size, strides, padding, use_bias=False, kernel_initializer=KERNEL_INITIALIZER, name=name
    )(x)


def conv_bn(
    x: Tensor, filters: int, kernel_size: int | tuple[int, int], strides: int | tuple[int, int], style: Style, name: str
) -> Tensor:
    """Adds `conv`, then `batch_norm`, as the layers NAME_conv and NAME_bn."""
    return batch_norm(conv(x, filters, kernel_size, strides, style, f"{name}_conv"), style, f"{name}_bn")


def depthwise(x: Tensor, kernel_size: int, strides: int, style: Style, name: str, dilation: int = 1) -> Tensor:
    """Adds a depthwise convolution without bias.

    With stride 2 and dilation 2 only every second pixel is read: the input is subsampled, then convolved without
    dilation, which equals PyTorch's convolution with padding k-1.
    """
    if dilation > 1 and strides > 1:
        if dilation != strides:
            raise ValueError(f"dilation {dilation} with strides {strides} is not supported; expected them to be equal")
        x, strides, dilation = subsample(x, strides, f"{name}_subsample"), 1, 1
    x, padding = _pad_input(x, kernel_size, strides, style, name)
    return layers.DepthwiseConv2D(
        kernel_size,
        strides,
        padding,
        use_bias=False,
        dilation_rate=dilation,
        # Keras' own initializers count all channels as inputs; here each output has only kernel_size**2 inputs.
        depthwise_initializer=initializers.RandomUniform(-math.sqrt(6) / kernel_size, math.sqrt(6) / kernel_size),
        name=name,
    )(x)


def subsample(x: Tensor, strides: int, name: str) -> Tensor:
    """Keeps the pixels 0, strides, 2 x strides, .. of rows and columns."""
    return layers.MaxPooling2D(1, strides, name=name)(x)


def pool(x: Tensor, kind: Literal["avg", "max"], size: int, strides: int, style: Style, name: str) -> Tensor:
    """Adds a pool that ignores pixels outside the image; `Style.border_average` may change that for averages.

    Raises:
        ValueError: a strided average that counts zeros, or runs on PyTorch, reads a map of unknown size.
    """
    layer = layers.AveragePooling2D if kind == "avg" else layers.MaxPooling2D
    if style.padding == "torch" and strides > 1 and not _is_odd(x):
        # PyTorch centres its windows on pixels 0, 2, ..: one pixel up and left of TensorFlow's.
        return subsample(layer(size, 1, "same", name=name)(x), strides, f"{name}_subsample")
    count_zeros = style.border_average == "zeros"
    # On PyTorch, Keras' averages (seen in 3.15) repeat the border if only one side is padded, so the strides come last.
    if kind == "max" or strides == 1 or not (count_zeros or keras.config.backend() == "torch"):
        return layer(size, strides, "same", name=name)(x)
    if None in x.shape[1:3]:
        raise ValueError(
            f"{name} cannot pad a map of shape {x.shape[1:3]} with zeros, or on PyTorch, without its height and width; "
            "give both in input_shape"
        )
    padding = [_same_padding(side, size, strides) for side in x.shape[1:3]]
    if count_zeros:
        return layer(size, strides, name=name)(layers.ZeroPadding2D(padding, name=f"{name}_pad")(x))
    x = layer(size, 1, "same", name=name)(x)
    x = layers.Cropping2D([(size // 2 - before, 0) for before, _ in padding], name=f"{name}_crop")(x)
    return subsample(x, strides, f"{name}_subsample")


def factorized_reduce(x: Tensor, filters: int, style: Style, name: str) -> Tensor:
    """Halves height and width with two strided 1x1 convolutions, the second one pixel down and right of the first.

    If the height or width is odd, the second path reads an extra row or column of zeros; on even sides the padding
    changes nothing. The reference normalises after the concatenation, which is equivalent: it does so per channel.
    """
    first = conv_bn(x, filters // 2, 1, 2, style, f"{name}_path1")
    shifted = x
    if not _is_even(x):
        shifted = layers.ZeroPadding2D(((0, 1), (0, 1)), name=f"{name}_path2_pad")(shifted)
    shifted = layers.Cropping2D(((1, 0), (1, 0)), name=f"{name}_path2_crop")(shifted)
    second = conv_bn(shifted, filters - filters // 2, 1, 2, style, f"{name}_path2")
    return layers.Concatenate(name=f"{name}_concat")([first, second])


def _pad_input(x: Tensor, kernel_size: int | tuple[int, int], strides: int | tuple[int, int], style: Style, name: str):
    """Returns the input of a convolution and its `padding` argument."""
    if style.padding == "same" or strides in (1, (1, 1)) or _is_odd(x):
        return x, "same"  # at stride 1, and on odd sides with an odd kernel, TensorFlow pads symmetrically, too
    size = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
    if size == (1, 1):
        return x, "valid"
    return layers.ZeroPadding2D((size[0] // 2, size[1] // 2), name=f"{name}_pad")(x), "valid"


def _same_padding(side: int, size: int, strides: int) -> tuple[int, int]:
    """Returns how many pixels TensorFlow's "same" adds before and after a side."""
    total = max((-(-side // strides) - 1) * strides + size - side, 0)
    return total // 2, total - total // 2


def _is_odd(x: Tensor) -> bool:
    """Returns whether height and width are known to be odd."""
    return all(side is not None and side % 2 == 1 for side in x.shape[1:3])


def _is_even(x: Tensor) -> bool:
    """Returns whether height and width are known to be even."""
    return all(side is not None and side % 2 == 0 for side in x.shape[1:3])
