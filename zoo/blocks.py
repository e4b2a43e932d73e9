"""Building blocks of standard Keras layers, shared by all families: convolution with normalisation, pools, reductions.

Every function takes a 4-D channels-last tensor and the prefix `name` of the layers it makes. Batch normalisation stands
right after a linear convolution and nowhere else, which is what TF-MOT and the TFLite converter fuse.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from typing import Any, Literal, get_args

import keras
from keras import initializers, layers

from zoo.genotype import GenotypeError, check_choice

# He's variance (He et al., ICCV 2015, what slim's and PyTorch's defaults are variants of), drawn uniformly: a truncated
# normal, the usual choice, takes four times as long to draw, which is a quarter of the time to build NASNet-A large.
KERNEL_INITIALIZER = "he_uniform"

Tensor = Any  # a keras.KerasTensor, to which the functions below add layers; Keras has no types


@contextlib.contextmanager
def layer_defaults(dtype: keras.DTypePolicy | None = None) -> Iterator[None]:
    """Makes layers channels-last, whatever Keras is set to, and gives them `dtype` where it is given.

    What is built keeps both: they are part of each layer's config.
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
    """What the code that published a family does alike in all its layers.

    Attributes:
        padding: of strided layers: "same" as TensorFlow pads, or "torch", k//2 on both sides as PyTorch code does.
        momentum: of the moving averages; Keras' convention, 1 minus PyTorch's.
        epsilon: added to the variance.
        strided_skip: what "skip_connect" is at stride 2.
        bottleneck: whether conv_3x3 and conv_1x7_7x1 work on a quarter of the channels (AmoebaNet).
        oldest_input: whether h[c-2] is projected by relu-1x1-bn always (DARTS), or only where its shape differs.
        drop_path_on_skip: whether a strided skip is dropped like any other edge (DARTS).
        drop_path_by_depth: whether the drop path rate grows linearly with the cell's place (NASNet).
        border_average: what a strided mean does at the border: leave out what lies outside the image, or count it as
            zeros (timm's and Keras' NASNet, which is here for their parity tests).
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
    """A convolution without bias, padded in the family's way.

    Raises:
        GenotypeError: `filters` is 0: many layers have a half or a quarter of what a preset says.
    """
    if filters < 1:
        raise GenotypeError(
            f"{name} would have {filters} filters, for it has a share of the network's; expected at least 1. "
            "Give the preset more filters"
        )
    x, padding = _padded(x, kernel_size, strides, style, name)
    return layers.Conv2D(
        filters, kernel_size, strides, padding, use_bias=False, kernel_initializer=KERNEL_INITIALIZER, name=name
    )(x)


def conv_bn(
    x: Tensor, filters: int, kernel_size: int | tuple[int, int], strides: int | tuple[int, int], style: Style, name: str
) -> Tensor:
    """`conv`, then `batch_norm`; the layers are NAME_conv and NAME_bn."""
    return batch_norm(conv(x, filters, kernel_size, strides, style, f"{name}_conv"), style, f"{name}_bn")


def depthwise(x: Tensor, kernel_size: int, strides: int, style: Style, name: str, dilation: int = 1) -> Tensor:
    """A depthwise convolution without bias.

    At stride 2 and dilation 2 it reads only every second pixel: the input is subsampled first and the convolution is a
    plain one, the same function as PyTorch's with padding k-1.
    """
    if dilation > 1 and strides > 1:
        if dilation != strides:
            raise ValueError(f"dilation {dilation} with strides {strides} is not supported; expected them to be equal")
        x, strides, dilation = subsample(x, strides, f"{name}_subsample"), 1, 1
    x, padding = _padded(x, kernel_size, strides, style, name)
    return layers.DepthwiseConv2D(
        kernel_size,
        strides,
        padding,
        use_bias=False,
        dilation_rate=dilation,
        # Keras counts a depthwise kernel's fan as if all channels met; each output has kernel_size**2 inputs.
        depthwise_initializer=initializers.RandomUniform(-math.sqrt(6) / kernel_size, math.sqrt(6) / kernel_size),
        name=name,
    )(x)


def subsample(x: Tensor, strides: int, name: str) -> Tensor:
    """Keeps the pixels 0, strides, 2 x strides, .. of rows and columns."""
    return layers.MaxPooling2D(1, strides, name=name)(x)


def pool(x: Tensor, kind: Literal["avg", "max"], size: int, strides: int, style: Style, name: str) -> Tensor:
    """A pool that ignores what lies outside the image, in maxima and, unless `Style.border_average` differs, in means.

    Raises:
        ValueError: a strided mean of a map of unknown size is to count zeros, or to run on PyTorch.
    """
    layer = layers.AveragePooling2D if kind == "avg" else layers.MaxPooling2D
    if style.padding == "torch" and strides > 1 and not _odd(x):
        # PyTorch's windows lie around the pixels 0, 2, ..: one pixel further up and left than TensorFlow's here.
        return subsample(layer(size, 1, "same", name=name)(x), strides, f"{name}_subsample")
    count_zeros = style.border_average == "zeros"
    # Where one side alone is padded, Keras' means on PyTorch (seen in 3.15) repeat the border: there, strides go last.
    if kind == "max" or strides == 1 or not (count_zeros or keras.config.backend() == "torch"):
        return layer(size, strides, "same", name=name)(x)
    if None in x.shape[1:3]:
        raise ValueError(
            f"{name} would pad a map of shape {x.shape[1:3]} with zeros, or on PyTorch, by its height and width; give "
            "an input_shape of known ones"
        )
    padding = [_same_padding(side, size, strides) for side in x.shape[1:3]]
    if count_zeros:
        return layer(size, strides, name=name)(layers.ZeroPadding2D(padding, name=f"{name}_pad")(x))
    x = layer(size, 1, "same", name=name)(x)
    x = layers.Cropping2D([(size // 2 - before, 0) for before, _ in padding], name=f"{name}_crop")(x)
    return subsample(x, strides, f"{name}_subsample")


def factorized_reduce(x: Tensor, filters: int, style: Style, name: str) -> Tensor:
    """Halves height and width with two strided 1x1 convolutions, the second one pixel down and right of the first.

    Of an odd height or width the second path sees one row or column of zeros more; the padding changes nothing where a
    side is even. The reference normalises after the concatenation, which is the same function: it goes by channel.
    """
    first = conv_bn(x, filters // 2, 1, 2, style, f"{name}_path1")
    shifted = x
    if not _even(x):
        shifted = layers.ZeroPadding2D(((0, 1), (0, 1)), name=f"{name}_path2_pad")(shifted)
    shifted = layers.Cropping2D(((1, 0), (1, 0)), name=f"{name}_path2_crop")(shifted)
    second = conv_bn(shifted, filters - filters // 2, 1, 2, style, f"{name}_path2")
    return layers.Concatenate(name=f"{name}_concat")([first, second])


def _padded(x: Tensor, kernel_size: int | tuple[int, int], strides: int | tuple[int, int], style: Style, name: str):
    """Returns the input of a convolution and its `padding` argument."""
    if style.padding == "same" or strides in (1, (1, 1)) or _odd(x):
        return x, "same"  # at stride 1, and on odd sides with an odd kernel, TensorFlow pads both sides alike, too
    size = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
    if size == (1, 1):
        return x, "valid"
    return layers.ZeroPadding2D((size[0] // 2, size[1] // 2), name=f"{name}_pad")(x), "valid"


def _same_padding(side: int, size: int, strides: int) -> tuple[int, int]:
    """Returns what TensorFlow's "same" puts before and after a side."""
    total = max((-(-side // strides) - 1) * strides + size - side, 0)
    return total // 2, total - total // 2


def _odd(x: Tensor) -> bool:
    """Whether height and width are known to be odd."""
    return all(side is not None and side % 2 == 1 for side in x.shape[1:3])


def _even(x: Tensor) -> bool:
    """Whether height and width are known to be even."""
    return all(side is not None and side % 2 == 0 for side in x.shape[1:3])
