"""The operations of all cell search spaces, by name. Only cell.py calls them; a new operation is one more entry here.

An operation takes a State, the number of output filters, the strides, the family's Style and the prefix of its layers'
names. Unless it is a pool or an identity, it begins with the ReLU of the papers' ReLU-conv-BN order.
"""

from collections.abc import Callable
from typing import Literal

from zoo import blocks
from zoo.blocks import Style, Tensor


class State:
    """A state of a cell: a tensor whose ReLU and pools are made once, however many edges read them.

    Three edges in four of a published cell start with the ReLU of a state that another edge reads too; sharing it
    changes no value and saves a third of NASNet's layers.
    """

    def __init__(self, tensor: Tensor, name: str):
        self.tensor = tensor
        self.name = name
        self._made: dict[tuple[str, int, int], Tensor] = {}

    @property
    def filters(self) -> int:
        """The number of channels."""
        return self.tensor.shape[-1]

    def relu(self) -> Tensor:
        """Returns the state's ReLU."""
        return self._share(("relu", 0, 1), lambda: blocks.relu(self.tensor, self.name))

    def pool(self, kind: Literal["avg", "max"], size: int, strides: int, style: Style) -> Tensor:
        """Returns the pooled state."""
        name = f"{self.name}_{kind}_pool_{size}x{size}" + (f"_strides{strides}" if strides > 1 else "")
        return self._share((kind, size, strides), lambda: blocks.pool(self.tensor, kind, size, strides, style, name))

    def _share(self, key: tuple[str, int, int], make: Callable[[], Tensor]) -> Tensor:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


Operation = Callable[[State, int, int, Style, str], Tensor]


def skip_connect(state: State, filters: int, strides: int, style: Style, name: str) -> Tensor:
    """Returns the state itself if the shapes agree, otherwise the style's substitute."""
    if strides == 1 and state.filters == filters:
        return state.tensor
    if strides > 1 and style.strided_skip != "conv_1x1":
        x = state.relu() if style.strided_skip == "factorized_reduce" else state.tensor
        return blocks.factorized_reduce(x, filters, style, name)
    return blocks.conv_bn(state.relu(), filters, 1, strides, style, name)


def _pool(kind: Literal["avg", "max"], size: int) -> Operation:
    def operation(state: State, filters: int, strides: int, style: Style, name: str) -> Tensor:
        x = state.pool(kind, size, strides, style)
        return x if state.filters == filters else blocks.conv_bn(x, filters, 1, 1, style, name)

    return operation


def _sep_conv(size: int, repeats: int = 2, dilation: int = 1) -> Operation:
    """Makes ReLU, depthwise convolution, 1x1 convolution and BN, `repeats` times; the first has the strides."""

    def operation(state: State, filters: int, strides: int, style: Style, name: str) -> Tensor:
        x = state.relu()
        for number in range(1, repeats + 1):
            if number > 1:
                x = blocks.relu(x, f"{name}_{number}")
            x = blocks.depthwise(x, size, strides if number == 1 else 1, style, f"{name}_dw{number}", dilation)
            x = blocks.conv(x, filters, 1, 1, style, f"{name}_pw{number}")
            x = blocks.batch_norm(x, style, f"{name}_bn{number}")
        return x

    return operation


def _conv(size: int, share: float = 1 / 4, pair: bool = False) -> Operation:
    """Makes ReLU, convolution, BN; in a bottleneck style, on a `share` of the channels between two 1x1 convolutions.

    A pair is a convolution along rows, then one along columns, each with BN, and a ReLU in between. As in the TPU code
    (network_utils.py, _apply_operation), a bottleneck that would have no channels is left out.
    """

    def operation(state: State, filters: int, strides: int, style: Style, name: str) -> Tensor:
        x, width = state.relu(), int(filters * share) if style.bottleneck else filters
        narrow = 0 < width < filters
        if narrow:
            x = blocks.relu(blocks.conv_bn(x, width, 1, 1, style, f"{name}_narrow"), f"{name}_narrow")
        else:
            width = filters
        if pair:
            x = blocks.conv_bn(x, width, (1, size), (1, strides), style, f"{name}_row")
            x = blocks.relu(x, f"{name}_row")
            x = blocks.conv_bn(x, width, (size, 1), (strides, 1), style, f"{name}_column")
        else:
            x = blocks.conv_bn(x, width, size, strides, style, name)
        if narrow:
            x = blocks.conv_bn(blocks.relu(x, f"{name}_widen"), filters, 1, 1, style, f"{name}_widen")
        return x

    return operation


def conv_7x1_1x7(state: State, filters: int, strides: int, style: Style, name: str) -> Tensor:
    """Returns DARTS' form: ReLU, a row of seven, a column of seven, one BN."""
    x = blocks.conv(state.relu(), filters, (1, 7), (1, strides), style, f"{name}_row_conv")
    return blocks.conv_bn(x, filters, (7, 1), (strides, 1), style, f"{name}_column")


# "none" has no entry: cell.py leaves such an edge out.
OPS: dict[str, Operation] = {
    "skip_connect": skip_connect,
    "avg_pool_3x3": _pool("avg", 3),
    "max_pool_2x2": _pool("max", 2),
    "max_pool_3x3": _pool("max", 3),
    "max_pool_5x5": _pool("max", 5),
    "max_pool_7x7": _pool("max", 7),
    "sep_conv_3x3": _sep_conv(3),
    "sep_conv_5x5": _sep_conv(5),
    "sep_conv_7x7": _sep_conv(7),
    "dil_conv_3x3": _sep_conv(3, repeats=1, dilation=2),
    "dil_conv_5x5": _sep_conv(5, repeats=1, dilation=2),
    "conv_1x1": _conv(1, share=1),
    "conv_3x3": _conv(3),
    "conv_5x5": _conv(5),
    "conv_1x3_3x1": _conv(3, share=3 / 8, pair=True),
    "conv_1x7_7x1": _conv(7, pair=True),
    "conv_7x1_1x7": conv_7x1_1x7,
}
