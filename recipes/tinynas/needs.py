"""What a network of block rows needs, PREDICTED from the rows in less than a millisecond, without building it.

`needs` agrees to the last unit with `zoo.cost.of(zoo.build(...))`; its arena is that of zoo.deploy.planner for the
int8 file and, like the file's size, up to a few hundredths larger than what is measured. A search under limits of
memory asks a thousand times before it scores one network.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from zoo.deploy import tflm
from zoo.deploy.boards import BOARDS, KIB, Board
from zoo.deploy.memory_plan import aligned
from zoo.genotype import Block, Blocks

TINY = Board("made up", 48 * KIB, 192 * KIB)  # what small images fill
_OPERATORS = {
    "pad": "PAD", "conv": "CONV_2D", "depthwise": "DEPTHWISE_CONV_2D", "add": "ADD", "mean": "MEAN",
    "dense": "FULLY_CONNECTED", "softmax": "SOFTMAX",
}  # fmt: skip
_ALIGNMENT = 32  # bytes that TFLM may lose beyond zoo.deploy.planner's account, which is within 20 of what it records
# Bytes of an int8 file beside weights and biases, by files of 8 to 60 operators: rather too many than too few.
_FILE, _TENSOR, _SCALES = 3_500, 280, 24  # a tensor has a name; scales are of weights and bias, for each channel


@dataclasses.dataclass(frozen=True)
class Needs:
    """Predicted needs of one network.

    Attributes:
        params, macs, peak_memory, flash: as zoo.cost has them.
        arena: bytes of RAM that TFLM takes for the int8 file, its own tables included (those of a 64-bit machine), or
            some hundred more.
        file: bytes of the int8 file, or some thousand more.
    """

    params: int
    macs: int
    peak_memory: int
    flash: int
    arena: int
    file: int


@dataclasses.dataclass(frozen=True)
class Budget:
    """The bytes of RAM and flash that a network may take: arena and int8 file, or the paper's bare figures.

    Attributes:
        ram, flash: None does not limit.
        bare: compares activations and weights alone, as for an engine that keeps no tables (TinyEngine).
    """

    ram: int | None
    flash: int | None
    bare: bool = False

    @classmethod
    def of(cls, board: str, ram: int | None, flash: int | None, bare: bool = False) -> "Budget":
        """Returns the memory of "tiny" or of a board of zoo.deploy.boards, with what is given in its place."""
        found = TINY if board == "tiny" else BOARDS[board]
        ram = found.ram if ram is None else ram
        flash = found.flash if flash is None else flash
        return cls(ram, flash, bare)

    def exceeded(self, needs: Needs) -> str | None:
        """Returns which memory is too small and by what, or None."""
        ram, flash = (needs.peak_memory, needs.flash) if self.bare else (needs.arena, needs.file)
        for name, value, most in (("RAM", ram, self.ram), ("flash", flash, self.flash)):
            if most is not None and value > most:
                return f"{value:,} bytes of {name}, predicted, more than {most:,}"
        return None


class _Step(NamedTuple):
    """One operator: what it computes, the bytes that it writes, and what of its weights counts."""

    kind: Literal["pad", "conv", "depthwise", "add", "mean", "dense", "softmax"]
    output: int  # values, each a byte
    channels: int = 0  # of the output, where the operator has weights
    kernel: int = 0  # values of its kernel
    places: int = 1  # pixels of the output
    pad: int = 0
    keeps: bool = False  # its input is read again, by the next "add"


def needs(body: Blocks, input_shape: Sequence[int], classes: int) -> Needs:
    """Returns what the network of family "mcunet" with these rows needs.

    Raises:
        ValueError: a row that is neither a separable nor an inverted residual convolution, or has squeeze-and-excite.
    """
    steps = list(_steps(body, tuple(input_shape), classes))
    weighted = [step for step in steps if step.kernel]
    convolutions = [step for step in weighted if step.kind != "dense"]
    channels = sum(step.channels for step in weighted)
    kernels = sum(step.kernel for step in weighted)
    flash = kernels + 4 * channels
    return Needs(
        params=kernels + 4 * sum(step.channels for step in convolutions) + classes,
        macs=sum(step.kernel * step.places for step in weighted),
        peak_memory=_peak(math.prod(input_shape), steps),
        flash=flash,
        arena=_arena(math.prod(input_shape), steps),
        file=flash + _FILE + _TENSOR * _tensors(steps) + _SCALES * channels,
    )


def _steps(body: Blocks, shape: tuple[int, ...], classes: int) -> Iterator[_Step]:
    height, width, inputs = shape
    yield from _convolution("conv", (height, width), inputs, body.stem_filters, 3, 2, False)
    size, inputs = (_halved(height), _halved(width)), body.stem_filters
    for row in body.rows:
        if row.op == "conv" or row.se_ratio or row.skip == "pool" or row.strides not in (1, 2):
            raise ValueError(f"the needs of {row} are not known; expected sep_conv or mb_conv without se and pool")
        for repeat in range(row.repeats):
            strides = row.strides if repeat == 0 else 1
            yield from _block(row, size, inputs, strides)
            size = size if strides == 1 else (_halved(size[0]), _halved(size[1]))
            inputs = row.filters
    if body.head_filters is not None:
        yield from _convolution("conv", size, inputs, body.head_filters, 1, 1, False)
        inputs = body.head_filters
    yield _Step("mean", inputs)
    yield _Step("dense", classes, classes, inputs * classes)
    yield _Step("softmax", classes)


def _block(row: Block, size: tuple[int, int], inputs: int, strides: int) -> Iterator[_Step]:
    middle = row.mid_filters or round(inputs * row.expansion)
    skip = row.skip == "identity" and strides == 1 and inputs == row.filters
    keeps = skip
    if middle != inputs:
        yield from _convolution("conv", size, inputs, middle, 1, 1, keeps)
        keeps = False
    yield from _convolution("depthwise", size, middle, middle, row.kernel_size, strides, keeps)
    size = size if strides == 1 else (_halved(size[0]), _halved(size[1]))
    yield from _convolution("conv", size, middle, row.filters, 1, 1, False)
    if skip:
        yield _Step("add", size[0] * size[1] * row.filters)


def _convolution(
    kind: Literal["conv", "depthwise"],
    size: tuple[int, int],
    inputs: int,
    filters: int,
    kernel_size: int,
    strides: int,
    keeps: bool,
) -> Iterator[_Step]:
    """The convolution, and a padding before it where PyTorch's is not TensorFlow's: of even sides at stride 2."""
    height, width = size
    if strides == 2 and kernel_size > 1 and (height % 2 == 0 or width % 2 == 0):
        pad = kernel_size // 2
        yield _Step("pad", (height + 2 * pad) * (width + 2 * pad) * inputs, pad=pad)
    if strides == 2:
        height, width = _halved(height), _halved(width)
    kernel = kernel_size**2 * filters * (inputs if kind == "conv" else 1)
    yield _Step(kind, height * width * filters, filters, kernel, height * width, keeps=keeps)


def _halved(side: int) -> int:
    return (side + 1) // 2


def _peak(image: int, steps: Sequence[_Step]) -> int:
    """Returns the most bytes alive at once; a shortcut stays alive beside what its block makes."""
    current, kept, peak = image, 0, image
    for step in steps:
        if step.kind == "softmax":  # zoo.cost counts it as the classifier's activation
            continue
        peak = max(peak, kept + current + step.output)
        if step.keeps:
            kept = current
        elif step.kind == "add":
            kept = 0
        current = step.output
    return peak


def _arena(image: int, steps: Sequence[_Step]) -> int:
    """Returns head and tail as zoo.deploy.planner finds them in the int8 file, and what is lost to alignment."""
    lives, kept = [[image, 0, 1]], 0  # size, first step, last step of each tensor; step k + 1 reads what step k writes
    for number, step in enumerate(steps, start=1):
        if step.keeps:
            kept = number - 1
        elif step.kind == "add":
            lives[kept][2] = number
        lives.append([step.output, number, min(number + 1, len(steps))])
    mean = next(number for number, step in enumerate(steps, start=1) if step.kind == "mean")
    scratch = [[size, mean, mean] for size in (16, 8, 4 * steps[mean - 1].output)]
    return _head([*lives, *scratch]) + _tail(steps) + _ALIGNMENT


def _head(lives: Sequence[Sequence[int]]) -> int:
    """Returns where the buffers (size, first, last) end that TFLM's greedy planner places.

    `memory_plan.greedy` does the same; here a buffer meets only those that live beside it, which takes a tenth of it.
    """
    sizes = [aligned(size) for size, _, _ in lives]
    beside: list[list[int]] = [[] for _ in lives]
    order = sorted(range(len(lives)), key=lambda number: lives[number][1])
    for place, number in enumerate(order):
        for other in order[place + 1 :]:
            if lives[other][1] > lives[number][2]:
                break
            beside[number].append(other)
            beside[other].append(number)
    offsets = [-1] * len(lives)
    for number in sorted(range(len(lives)), key=lambda number: (-sizes[number], -number)):
        candidate = 0
        for other in sorted((o for o in beside[number] if offsets[o] >= 0), key=offsets.__getitem__):
            if offsets[other] - candidate >= sizes[number]:
                break
            candidate = max(candidate, offsets[other] + sizes[other])
        offsets[number] = candidate
    return max(offset + size for offset, size in zip(offsets, sizes, strict=True))


def _tensors(steps: Sequence[_Step]) -> int:
    """Returns how many tensors the int8 file has, constants included."""
    constants = {"conv": 2, "depthwise": 2, "dense": 2, "mean": 1}
    pads = len({step.pad for step in steps if step.kind == "pad"})  # equal constants are kept once
    return 1 + len(steps) + pads + sum(constants.get(step.kind, 0) for step in steps)


def _tail(steps: Sequence[_Step]) -> int:
    endpoints = 2 * (aligned(tflm.POINTER) + tflm.QUANTIZED_ENDPOINT)
    scratch = 3 * tflm.POINTER  # of the mean
    total = tflm.BASE + tflm.SUBGRAPH + endpoints + scratch + tflm.TENSOR * _tensors(steps)
    return total + sum(tflm.kept_of_kind(_OPERATORS[step.kind], "int8", step.channels) for step in steps)
