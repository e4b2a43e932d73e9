"""What a network of block rows needs, PREDICTED from the rows in less than a millisecond, without building it.

Counts agree to the last unit with `zoo.cost.of(zoo.build(...))`; the arena is that of zoo.deploy.planner for the int8
file and, like the file's size, up to a few hundredths larger than what is measured. A search under limits of memory
asks a thousand times before it scores one network.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from recipes.engine.config import describe_excess
from zoo.deploy import tflm
from zoo.deploy.boards import BOARDS, KIB, Board, UnknownBoardError
from zoo.deploy.memory_plan import Buffer, aligned, end_of, greedy
from zoo.genotype import Block, Blocks

TINY = Board("made up", 48 * KIB, 192 * KIB)  # what small images fill
# Operators with constants in the int8 file, and how many.
_CONSTANTS = {"CONV_2D": 2, "DEPTHWISE_CONV_2D": 2, "FULLY_CONNECTED": 2, "MEAN": 1}
_ALIGNMENT = 32  # bytes that TFLM may lose beyond zoo.deploy.planner's account, which is within 20 of what it records
# Bytes of an int8 file beside weights and biases, by files of 8 to 60 operators: rather too many than too few.
_FILE, _TENSOR, _SCALES = 3_500, 280, 24  # a tensor has a name; scales are of weights and bias, for each channel


class Needs(NamedTuple):
    """Predicted needs of one network; the first four as zoo.cost has them."""

    params: int
    macs: int
    peak_memory: int
    flash: int
    arena: int  # bytes of RAM that TFLM takes for the int8 file, its own tables included (64-bit), or some hundred more
    file: int  # bytes of the int8 file, or some thousand more


class Budget(NamedTuple):
    """The bytes of RAM and flash that a network may take: arena and int8 file, or the paper's bare figures."""

    ram: int | None  # None does not limit
    flash: int | None
    bare: bool = False  # compares activations and weights alone, as for an engine that keeps no tables (TinyEngine)

    @classmethod
    def from_board(cls, board: str, ram: int | None = None, flash: int | None = None, bare: bool = False) -> "Budget":
        """Returns the memory of "tiny" or of a board of zoo.deploy.boards; what is given replaces it."""
        known = {"tiny": TINY, **BOARDS}
        if board not in known:
            raise UnknownBoardError(f"board={board!r} is unknown; expected one of {', '.join(known)}")
        found = known[board]
        return cls(found.ram if ram is None else ram, found.flash if flash is None else flash, bare)

    def find_excess(self, needs: Needs) -> str | None:
        """Returns which memory is too small and by what, or None."""
        ram, flash = (needs.peak_memory, needs.flash) if self.bare else (needs.arena, needs.file)
        too_large = describe_excess("bytes of RAM, predicted", ram, self.ram)
        return too_large or describe_excess("bytes of flash, predicted", flash, self.flash)


Operator = Literal["PAD", "CONV_2D", "DEPTHWISE_CONV_2D", "ADD", "MEAN", "FULLY_CONNECTED", "SOFTMAX"]


class _Step(NamedTuple):
    """One operator: what it computes, the bytes that it writes, and what of its weights counts."""

    operator: Operator
    output: int  # values, each a byte
    channels: int = 0  # of the output, where the operator has weights
    kernel: int = 0  # values of its kernel
    pixels: int = 1  # of the output
    pad: int = 0
    keeps_input: bool = False  # it is read again, by the next "ADD"


def predict_needs(body: Blocks, input_shape: Sequence[int], classes: int) -> Needs:
    """Returns what the network of family "mcunet" with these rows needs.

    Raises:
        ValueError: a row that is neither a separable nor an inverted residual convolution, or has squeeze-and-excite.
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
        arena=_place(lives, steps) + _count_tables(steps) + _ALIGNMENT,
        file=flash + _FILE + _TENSOR * _count_tensors(steps) + _SCALES * channels,
    )


class _Steps(list[_Step]):
    """The steps up to here, and the shape of what the last one makes."""

    def __init__(self, shape: Sequence[int]):
        super().__init__()
        self.height, self.width, self.channels = shape

    def convolve(
        self, operator: Operator, filters: int, kernel_size: int, strides: int = 1, keeps_input: bool = False
    ) -> None:
        """Adds a convolution, after a padding where PyTorch's is not TensorFlow's: of even sides at stride 2."""
        if strides == 2 and kernel_size > 1 and (self.height % 2 == 0 or self.width % 2 == 0):
            pad = kernel_size // 2
            self.append(_Step("PAD", (self.height + 2 * pad) * (self.width + 2 * pad) * self.channels, pad=pad))
        if strides == 2:
            self.height, self.width = (self.height + 1) // 2, (self.width + 1) // 2
        kernel = kernel_size**2 * filters * (self.channels if operator == "CONV_2D" else 1)
        pixels, self.channels = self.height * self.width, filters
        self.append(_Step(operator, pixels * filters, filters, kernel, pixels, keeps_input=keeps_input))

    def add_block(self, row: Block, strides: int) -> None:
        """Adds a separable or an inverted residual convolution."""
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
            raise ValueError(f"the needs of {row} are not known; expected sep_conv or mb_conv without se and pool")
        for repeat in range(row.repeats):
            steps.add_block(row, row.strides if repeat == 0 else 1)
    if body.head_filters is not None:
        steps.convolve("CONV_2D", body.head_filters, 1)
    steps.append(_Step("MEAN", steps.channels))
    steps.append(_Step("FULLY_CONNECTED", classes, classes, steps.channels * classes))
    steps.append(_Step("SOFTMAX", classes))
    return steps


def _list_lives(image: int, steps: Sequence[_Step]) -> list[list[int]]:
    """Returns bytes, first and last step of the image and of each step's output; step k + 1 reads what step k writes.

    A shortcut lives until the "ADD" that reads it.
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
    """Returns the most bytes alive at once, but for the last step: zoo.cost has no softmax of its own."""
    totals = [0] * (steps + 1)
    for size, first, last in lives:
        for step in range(first, last + 1):
            totals[step] += size
    return max(totals[:-1])


def _place(lives: Sequence[Sequence[int]], steps: Sequence[_Step]) -> int:
    """Returns the bytes of all buffers as TFLM's greedy planner places them, those of the mean's scratch included."""
    mean = next(number for number, step in enumerate(steps, start=1) if step.operator == "MEAN")
    scratch = [(size, mean, mean) for size in (16, 8, 4 * steps[mean - 1].output)]
    buffers = [Buffer("", *life) for life in (*lives, *scratch)]
    return end_of(buffers, greedy(buffers))


def _count_tensors(steps: Sequence[_Step]) -> int:
    """Returns how many tensors the int8 file has, constants included."""
    pads = len({step.pad for step in steps if step.operator == "PAD"})  # equal constants are kept once
    return 1 + len(steps) + pads + sum(_CONSTANTS.get(step.operator, 0) for step in steps)


def _count_tables(steps: Sequence[_Step]) -> int:
    """Returns the bytes of TFLM's own tables, at the arena's tail."""
    endpoints = 2 * (aligned(tflm.POINTER) + tflm.QUANTIZED_ENDPOINT)
    scratch = 3 * tflm.POINTER  # of the mean
    total = tflm.BASE + tflm.SUBGRAPH + endpoints + scratch + tflm.TENSOR * _count_tensors(steps)
    return total + sum(tflm.kept_of_kind(step.operator, "int8", step.channels) for step in steps)
