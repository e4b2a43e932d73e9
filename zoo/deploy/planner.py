"""The memory that a .tflite file needs on a microcontroller, told from the file alone, before flashing.

`plan` follows TensorFlow Lite for Microcontrollers (TFLM) step by step: which tensors live when, where its greedy
planner puts them, what it keeps for good. PREDICTED; `zoo.deploy.measure.arena` is what TFLM itself records.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from zoo.deploy import float_twin, joins, memory_plan, tflm_costs
from zoo.deploy.memory_plan import Buffer
from zoo.deploy.tflite_file import OFFLINE_PLAN, Source, load_schema, metadata, parse, read, text


class PlannerError(ValueError):
    """The file has something that the planner does not follow."""


@dataclasses.dataclass(frozen=True)
class Operator:
    """One operator of the file: its place in the running order from 0, its kind, the name of what it computes."""

    number: int
    kind: str
    output: str

    def __str__(self) -> str:
        return f"{self.kind} {self.number} ({self.output})" if self.number >= 0 else f"{self.kind} ({self.output})"


@dataclasses.dataclass(frozen=True)
class Plan:
    """The memory of one file, in bytes.

    `buffers` live at steps 0 (the input is filled) to len(operators) (the output is read); operator k runs at step
    k + 1.
    """

    buffers: tuple[Buffer, ...]
    offsets: tuple[int, ...]
    operators: tuple[Operator, ...]
    tail: int  # what TFLM keeps for good
    flash: int  # the file
    too_wide: tuple[Operator, ...] = ()  # concatenations of more tensors than TFLM joins

    @property
    def head(self) -> int:
        """Activations and scratch memory, as TFLM will place them."""
        return memory_plan.end_of(self.buffers, self.offsets)

    @property
    def arena(self) -> int:
        """Head and tail: what `measure.arena` records as total."""
        return self.head + self.tail

    @property
    def bound(self) -> int:
        """The most bytes alive at once: a perfect plan's head."""
        return max(memory_plan.live_bytes(self.buffers), default=0)

    @property
    def peak(self) -> Operator | None:
        """The operator at which the most bytes are alive."""
        live = memory_plan.live_bytes(self.buffers)
        step = max(range(len(live)), key=live.__getitem__)
        return self.operators[step - 1] if step else None

    @property
    def unsupported(self) -> tuple[str, ...]:
        """The kinds of operator that TFLM lacks."""
        return tuple(sorted({operator.kind for operator in self.operators} - tflm_costs.OPERATORS))

    def to_markdown(self, savings: Sequence["Saving"] = ()) -> str:
        """Returns a paragraph about the memory; `savings` are those of `padding_savings`."""
        alive = ", ".join(f"{buffer.name} {buffer.size / 1000:,.1f} kB" for buffer in self.alive_at_peak())
        lines = [
            f"Arena {self.arena / 1000:,.1f} kB: {self.head / 1000:,.1f} kB of activations as TFLM places them, and "
            f"{self.tail / 1000:,.1f} kB that it keeps for good (on a 64-bit machine; less on a board). Flash "
            f"{self.flash / 1000:,.1f} kB and TFLM's own code.",
            f"The most that lives at once is {self.bound / 1000:,.1f} kB, at {self.peak or 'the input'}: {alive}.",
        ]
        if self.head > self.bound:
            lines.append(
                f"Its placement wastes {(self.head - self.bound) / 1000:,.1f} kB; zoo.deploy.compact.with_best_plan "
                "puts a better one into the file."
            )
        if savings and savings[0].bytes > 0:
            dearest = savings[0]
            lines.append(
                f"The explicit padding that costs most is {dearest.operator}: {dearest.bytes / 1000:,.1f} kB. A "
                'padding of "same" costs nothing.'
            )
        if self.unsupported:
            lines.append(f"TFLM has no {', '.join(self.unsupported)}: it will not run the file.")
        if self.too_wide:
            lines.append(
                f"TFLM joins at most {joins.MOST_INPUTS} tensors, and {', '.join(map(str, self.too_wide))} more: it "
                "will not run the file. zoo.deploy.joins.narrow rewrites it; the outputs stay the same."
            )
        return "\n".join(lines) + "\n"

    def alive_at_peak(self) -> list[Buffer]:
        """Returns the buffers alive at the peak, largest first."""
        live = memory_plan.live_bytes(self.buffers)
        step = max(range(len(live)), key=live.__getitem__)
        return sorted((one for one in self.buffers if one.first <= step <= one.last), key=lambda one: -one.size)


@dataclasses.dataclass(frozen=True)
class Saving:
    """What the head would be without one operator, its reader taking the operator's input."""

    operator: Operator
    bytes: int


def plan(tflite: Source) -> Plan:
    """Returns the memory of a .tflite file, heeding a plan that it brings along.

    Raises:
        PlannerError: several subgraphs, or a tensor of open shape.
        TfliteFileError: not a whole TensorFlow Lite file.
    """
    return _plan(parse(tflite), len(read(tflite)))


def padding_savings(tflite: Source) -> list[Saving]:
    """Returns for each explicit PAD what the head would lose without it, the dearest first.

    A convolution of "same" padding pads inside the kernel; one of a network turned by 180 degrees may too, where the
    original needs a copy padded before (see `zoo.deploy.turn`).
    """
    model = parse(tflite)
    whole = _plan(model, 0)
    savings = []
    for number, operator in enumerate(whole.operators):
        if operator.kind in ("PAD", "PADV2"):
            shorter = buffers_of(model, skip=frozenset([number]))
            rest = memory_plan.end_of(shorter, memory_plan.greedy(shorter))
            savings.append(Saving(operator, whole.head - rest))
    return sorted(savings, key=lambda saving: -saving.bytes)


def scheme(tflite: Source) -> str:
    """Returns "int8", "int16x8" or "float32", by the types that its operators compute."""
    graph, types = parse(tflite).subgraphs[0], load_schema().TensorType
    computed = {graph.tensors[operator.outputs[0]].type for operator in graph.operators}
    if types.INT16 in computed:
        return "int16x8"
    return "int8" if types.INT8 in computed else "float32"


def input_shape(tflite: Source) -> tuple[int, ...]:
    """Returns the shape of the file's first input, batch included."""
    graph = parse(tflite).subgraphs[0]
    return tuple(int(length) for length in graph.tensors[graph.inputs[0]].shape)


def _plan(model: Any, flash: int) -> Plan:
    buffers, named = buffers_of(model), operators(model)
    too_wide = tuple(named[number] for number in joins.wide(model))
    return Plan(tuple(buffers), tuple(memory_plan.greedy(buffers)), tuple(named), _tail(model), flash, too_wide)


def operators(model: Any) -> list[Operator]:
    """Returns the operators of a parsed file, in running order."""
    if len(model.subgraphs) != 1:
        raise PlannerError(f"the file has {len(model.subgraphs)} subgraphs (control flow); one was expected")
    graph = model.subgraphs[0]
    return [
        Operator(number, kind, short_name(text(graph.tensors[operator.outputs[0]].name)))
        for number, (operator, kind) in enumerate(zip(graph.operators, float_twin.kinds(model), strict=True))
    ]


def buffers_of(model: Any, skip: frozenset[int] = frozenset()) -> list[Buffer]:
    """Returns of a parsed file what TFLM's AllocationInfoBuilder finds, in its order; `skip` leaves operators out."""
    graph, named = model.subgraphs[0], operators(model)
    first: dict[int, int] = dict.fromkeys(map(int, graph.inputs), 0)
    last: dict[int, int] = dict(first)
    same: dict[int, int] = {}  # the output of a left-out operator is its input
    scratch = []
    for step, (operator, what) in enumerate(zip(graph.operators, named, strict=True), start=1):
        inputs = [same.get(int(number), int(number)) for number in operator.inputs if number >= 0]
        outputs = [int(number) for number in operator.outputs]
        if step - 1 in skip:
            same[outputs[0]] = inputs[0]
            continue
        for number in outputs:
            first.setdefault(number, step)
        last.update(dict.fromkeys([*inputs, *outputs], step))
        scratch += [
            Buffer(f"scratch of {what.output}", size, step, step) for size in _scratch(model, operator, what.kind)
        ]
    last.update({same.get(int(number), int(number)): len(named) for number in graph.outputs})
    planned = _planned_offsets(model)
    tensors = [
        Buffer(short_name(text(tensor.name)), _size(tensor), first[number], last[number], number, planned.get(number))
        for number, tensor in enumerate(graph.tensors)
        if number in first and number in last and not _is_constant(model, tensor)
    ]
    return tensors + scratch


def _scratch(model: Any, operator: Any, kind: str) -> Sequence[int]:
    """Returns the scratch buffers of TFLM's reference kernels; optimized ones (CMSIS-NN) may take more."""
    tensors = model.subgraphs[0].tensors
    if kind not in ("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN"):
        return ()
    axes = math.prod(map(int, tensors[operator.inputs[1]].shape))
    source, target = tensors[operator.inputs[0]], tensors[operator.outputs[0]]
    sizes = [4 * len(source.shape), 4 * axes]
    if kind in ("MEAN", "SUM") and source.type != load_schema().TensorType.FLOAT32:
        sizes.append(4 * math.prod(map(int, target.shape)))  # sums, as int32
    return sizes


def _tail(model: Any) -> int:
    graph = model.subgraphs[0]
    total = tflm_costs.BASE + tflm_costs.TENSOR * len(graph.tensors)
    types = load_schema().TensorType
    if graph.tensors[graph.inputs[0]].type != types.FLOAT32:
        total += tflm_costs.QUANTIZED
    for operator, what in zip(graph.operators, operators(model), strict=True):
        total += tflm_costs.OPERATOR_NODE + tflm_costs.OPERATOR_DATA.get(what.kind, tflm_costs.OTHER_OPERATOR)
        output = graph.tensors[operator.outputs[0]]
        convolution = what.kind in ("CONV_2D", "DEPTHWISE_CONV_2D")
        if convolution or (what.kind == "FULLY_CONNECTED" and output.type != types.FLOAT32):
            total += tflm_costs.CHANNEL * int(output.shape[-1])
    return total


def _planned_offsets(model: Any) -> dict[int, int]:
    content = metadata(model, OFFLINE_PLAN)
    if content is None:
        return {}
    numbers = np.frombuffer(content, "<i4")
    if len(numbers) < 3 or len(numbers) != 3 + numbers[2]:
        raise PlannerError(
            f"the metadata {OFFLINE_PLAN} have {len(numbers)} numbers; expected version, subgraph, n and n offsets. "
            "Write them anew with zoo.deploy.compact.with_best_plan"
        )
    return {number: int(offset) for number, offset in enumerate(numbers[3:]) if offset >= 0}


def _is_constant(model: Any, tensor: Any) -> bool:
    data = model.buffers[tensor.buffer].data
    return (data is not None and len(data) > 0) or bool(tensor.isVariable)


def _size(tensor: Any) -> int:
    types = load_schema().TensorType
    widths = {
        types.FLOAT32: 4, types.INT32: 4, types.INT64: 8, types.INT16: 2, types.FLOAT16: 2, types.INT8: 1,
        types.UINT8: 1, types.BOOL: 1,
    }  # fmt: skip
    shape = [] if tensor.shape is None else [int(length) for length in tensor.shape]
    if tensor.type not in widths or min(shape, default=1) < 0:
        raise PlannerError(
            f"tensor {text(tensor.name)!r} has the shape {shape} and the type {tensor.type}; a fixed shape of "
            "numbers was expected. Convert with zoo.deploy.tflite.convert, which fixes the shape"
        )
    return widths[tensor.type] * math.prod(shape)


def short_name(name: str) -> str:
    """Returns the layer's part of a converter's tensor name, `model_1/cell0_conv_1/convolution;...`."""
    parts = name.split(";")[0].split("/")
    return parts[-2] if len(parts) > 1 else parts[0]
