"""The needs of a network of block rows, PREDICTED from the rows in less than a millisecond, without building it.

Counts equal those of `zoo.cost.of(zoo.build(...))` exactly. The arena is that of zoo.deploy.planner for the int8 file;
arena and file size are up to a few per cent larger than measured. A search under memory limits may predict a thousand
networks before it scores one.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from recipes.engine.config import describe_excess
from zoo.deploy import tflm
from zoo.deploy.boards import BOARDS, KIB, Board, UnknownBoardError
from zoo.deploy.memory_plan import Buffer, aligned, end_of, place_greedily
from zoo.genotype import Block, Blocks

TINY = Board("made up", 48 * KIB, 192 * KIB)  # memory that networks for small images can fill
# operator -> number of its constants in the int8 file
_CONSTANTS = {"CONV_2D": 2, "DEPTHWISE_CONV_2D": 2, "FULLY_CONNECTED": 2, "MEAN": 1}
_ALIGNMENT = 32  # bytes that TFLM may take beyond zoo.deploy.planner's prediction, which is within 20 of its record
# Bytes of an int8 file besides weights and biases, estimated on the high side from files of 8 to 60 operators:
# per file, per tensor (its name), and per channel (the scales of weights and bias)
_FILE, _TENSOR, _SCALES = 3_500, 280, 24


class Needs(NamedTuple):
    """Predicted needs of a network; the first four are those of zoo.cost."""

    params: int
    macs: int
    peak_memory: int
    flash: int
    arena: int  # bytes of RAM that TFLM (64-bit) takes for the int8 file, with its tables; up to a few hundred too many
    file: int  # bytes of the int8 file; up to a few thousand too many


class Budget(NamedTuple):
    """The bytes of RAM and flash that a network may take, for arena and int8 file, or as the paper counts."""

    ram: int | None  # None for no limit
    flash: int | None
    bare: bool = False  # counts only activations and weights, as for an engine without tables (TinyEngine)

    @classmethod
    def from_board(cls, board: str, ram: int | None = None, flash: int | None = None, bare: bool = False) -> "Budget":
        """Returns the memory of "tiny" or of a board of zoo.deploy.boards; `ram` and `flash` override it."""
        known = {"tiny": TINY, **BOARDS}
        if board not in known:
            raise UnknownBoardError(f"board={board!r} is unknown; expected one of {', '.join(known)}")
        found = known[board]
        return cls(found.ram if ram is None else ram, found.flash if flash is None else flash, bare)

    def find_excess(self, needs: Needs) -> str | None:
        """Returns which memory is too small and by how much, or None."""
        ram, flash = (needs.peak_memory, needs.flash) if self.bare else (needs.arena, needs.file)
        too_large = describe_excess("bytes of RAM, predicted", ram, self.ram)
        return too_large or describe_excess("bytes of flash, predicted", flash, self.flash)


Operator = Literal["PAD", "CONV_2D", "DEPTHWISE_CONV_2D", "ADD", "MEAN", "FULLY_CONNECTED", "SOFTMAX"]


class _Step(NamedTuple):
    """An operator, with the sizes of its output and its weights."""

    operator: Operator
    output: int  # number of values, a byte each
    channels: int = 0  # of the output, if the operator has weights
    kernel: int = 0  # number of values of the kernel
    pixels: int = 1  # of the output
    pad: int = 0
    keeps_input: bool = False  # whether the next "ADD" reads its input again


def predict_needs(body: Blocks, input_shape: Sequence[int], classes: int) -> Needs:
    """Returns the needs of the network of family "mcunet" with these rows.

    Raises:
        ValueError: a row is neither a separable nor an inverted residual convolution, or has squeeze-and-excite.
    """
    steps = _list_steps(body, input_shape, classes)
    weighted = [step for step in steps if step.kernel]
    convolutions = [step for step in weighted if step.operator != "FULLY_CONNECTED"]
    channels = sum(step.channels for step in weighted)
    kernels = sum(step.kernel for step in weighted)
    flash = kernels + 4 * channels
    lives = _list_lives(math.prod(input_shape), steps)
    return Needs(
        params=kernels + 4 * sum(step.channels for step in convolutions) + classes,
        macs=sum(step.kernel * step.pixels for step in weighted),
        peak_memory=_find_peak(lives, len(steps)),
        flash=flash,
        arena=_place_buffers(lives, steps) + _count_tables(steps) + _ALIGNMENT,
        file=flash + _FILE + _TENSOR * _count_tensors(steps) + _SCALES * channels,
    )


class _Steps(list[_Step]):
    """The steps so far, and the shape of the last one's output."""

    def __init__(self, shape: Sequence[int]):
        super().__init__()
        self.height, self.width, self.channels = shape

    def convolve(
        self, operator: Operator, filters: int, kernel_size: int, strides: int = 1, keeps_input: bool = False
    ) -> None:
        """Adds a convolution, after a PAD if PyTorch's padding differs from TensorFlow's: even sides at stride 2."""
        if strides == 2 and kernel_size > 1 and (self.height % 2 == 0 or self.width % 2 == 0):
            pad = kernel_size // 2
            self.append(_Step("PAD", (self.height + 2 * pad) * (self.width + 2 * pad) * self.channels, pad=pad))
        if strides == 2:
            self.height, self.width = (self.height + 1) // 2, (self.width + 1) // 2
        kernel = kernel_size**2 * filters * (self.channels if operator == "CONV_2D" else 1)
        pixels, self.channels = self.height * self.width, filters
        self.append(_Step(operator, pixels * filters, filters, kernel, pixels, keeps_input=keeps_input))

    def add_block(self, row: Block, strides: int) -> None:
        """Adds a separable convolution or an inverted residual."""
        middle = row.mid_filters or round(self.channels * row.expansion)
        skip = row.skip == "identity" and strides == 1 and self.channels == row.filters
        expands = middle != self.channels
        if expands:
            self.convolve("CONV_2D", middle, 1, keeps_input=skip)
        self.convolve("DEPTHWISE_CONV_2D", middle, row.kernel_size, strides, keeps_input=skip and not expands)
        self.convolve("CONV_2D", row.filters, 1)
        if skip:
            self.append(_Step("ADD", self[-1].output))


def _list_steps(body: Blocks, shape: Sequence[int], classes: int) -> list[_Step]:
    steps = _Steps(shape)
    steps.convolve("CONV_2D", body.stem_filters, 3, strides=2)
    for row in body.rows:
        if row.op == "conv" or row.se_ratio or row.skip == "pool" or row.strides not in (1, 2):
            raise ValueError(f"the needs of {row} are unknown; expected sep_conv or mb_conv without se and pool")
        for repeat in range(row.repeats):
            steps.add_block(row, row.strides if repeat == 0 else 1)
    if body.head_filters is not None:
        steps.convolve("CONV_2D", body.head_filters, 1)
    steps.append(_Step("MEAN", steps.channels))
    steps.append(_Step("FULLY_CONNECTED", classes, classes, steps.channels * classes))
    steps.append(_Step("SOFTMAX", classes))
    return steps


def _list_lives(image: int, steps: Sequence[_Step]) -> list[list[int]]:
    """Returns bytes, first and last step of each buffer: the image and the outputs of the steps.

    A step reads the output of the step before; a shortcut lives until the "ADD" that reads it.
    """
    lives, shortcut = [[image, 0, 1]], 0
    for number, step in enumerate(steps, start=1):
        if step.keeps_input:
            shortcut = number - 1
        elif step.operator == "ADD":
            lives[shortcut][2] = number
        lives.append([step.output, number, min(number + 1, len(steps))])
    return lives


def _find_peak(lives: Sequence[Sequence[int]], steps: int) -> int:
    """Returns the most bytes alive at once, without the last step, since zoo.cost has no separate softmax."""
    totals = [0] * (steps + 1)
    for size, first, last in lives:
        for step in range(first, last + 1):
            totals[step] += size
    return max(totals[:-1])


def _place_buffers(lives: Sequence[Sequence[int]], steps: Sequence[_Step]) -> int:
    """Returns the bytes that all buffers take as TFLM's greedy planner places them, with the scratch of the mean."""
    mean = next(number for number, step in enumerate(steps, start=1) if step.operator == "MEAN")
    scratch = [(size, mean, mean) for size in (16, 8, 4 * steps[mean - 1].output)]
    buffers = [Buffer("", *life) for life in (*lives, *scratch)]
    return end_of(buffers, place_greedily(buffers))


def _count_tensors(steps: Sequence[_Step]) -> int:
    """Returns the number of tensors in the int8 file, including constants."""
    pads = len({step.pad for step in steps if step.operator == "PAD"})  # equal constants are stored once
    return 1 + len(steps) + pads + sum(_CONSTANTS.get(step.operator, 0) for step in steps)


def _count_tables(steps: Sequence[_Step]) -> int:
    """Returns the bytes of TFLM's own tables, at the end of the arena."""
    endpoints = 2 * (aligned(tflm.POINTER) + tflm.QUANTIZED_ENDPOINT)
    scratch = 3 * tflm.POINTER  # of the mean
    total = tflm.BASE + tflm.SUBGRAPH + endpoints + scratch + tflm.TENSOR * _count_tensors(steps)
    return total + sum(tflm.kept_of_kind(step.operator, "int8", step.channels) for step in steps)
