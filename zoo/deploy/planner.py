"""The memory that a .tflite file needs on a microcontroller, estimated from the file alone, before flashing.

`plan` follows TensorFlow Lite for Microcontrollers (TFLM) step by step: which tensors are alive when, where its greedy
planner puts them, what it allocates permanently. PREDICTED; `zoo.deploy.measure.arena` returns what TFLM records.
"""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from zoo.deploy import memory_plan, rewrites, tflite_file, tflm
from zoo.deploy.memory_plan import Buffer
from zoo.deploy.metadata import detach
from zoo.deploy.tflite_file import OFFLINE_PLAN, Source, is_constant, is_quantized, kind_of, parse, text, type_of
from zoo.markdown import join_blocks

_INNER_SCOPES = ("batchnorm", "moments", "Tensordot", "tensordot")  # inside one layer, in the converter's names
_WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")


class PlannerError(ValueError):
    """The planner cannot estimate the file."""


@dataclasses.dataclass(frozen=True)
class Operator:
    """One operator of the file: its place in the execution order from 0, its kind, and the name of its output."""

    number: int
    kind: str
    output: str

    def __str__(self) -> str:
        return f"{self.kind} {self.number} ({self.output})" if self.number >= 0 else f"{self.kind} ({self.output})"


@dataclasses.dataclass(frozen=True)
class Plan:
    """The memory of one file, in bytes.

    The steps run from 0 (the input is filled) to len(operators) (the output is read); operator k runs at step k + 1.
    The operators of an inner subgraph (of IF, WHILE, CALL_ONCE) follow the operator that calls it.
    """

    buffers: tuple[Buffer, ...]
    offsets: tuple[int, ...]
    operators: tuple[Operator, ...]
    tail: int  # TFLM's permanent allocations
    flash: int  # the model, without metadata
    unsupported: tuple[str, ...] = ()  # what TFLM cannot run: "TILE", "DEQUANTIZE of float16"
    too_wide: tuple[Operator, ...] = ()  # concatenations of more tensors than TFLM supports
    failure: str = ""  # why TFLM stopped, if it was tried on the file

    @property
    def head(self) -> int:
        """Bytes of activations and scratch memory, as TFLM will place them."""
        return memory_plan.end_of(self.buffers, self.offsets)

    @property
    def arena(self) -> int:
        """Head and tail: what `measure.arena` records as total."""
        return self.head + self.tail

    @property
    def bound(self) -> int:
        """The most bytes alive at any step: the head of a perfect plan."""
        return max(memory_plan.live_bytes(self.buffers), default=0)

    @property
    def peak(self) -> Operator | None:
        """The operator at which the most bytes are alive."""
        return self.operators[self._peak_step - 1] if self._peak_step else None

    @property
    def _peak_step(self) -> int:
        live = memory_plan.live_bytes(self.buffers)
        return live.index(max(live))

    @property
    def refusals(self) -> tuple[str, ...]:
        """Why TFLM will not run the file; () if it will."""
        reasons = [self.failure] if self.failure else []
        reasons += [f"TFLM has no {', '.join(self.unsupported)}"] if self.unsupported else []
        if self.too_wide:
            wide = ", ".join(map(str, self.too_wide))
            have = "have" if len(self.too_wide) > 1 else "has"
            reasons.append(f"TFLM concatenates at most {rewrites.MOST_INPUTS} tensors, but {wide} {have} more")
        return tuple(reasons)

    def to_markdown(self, savings: Sequence["Saving"] = ()) -> str:
        """Returns paragraphs about the memory; `savings` come from `find_padding_savings`."""
        alive = ", ".join(f"{buffer.name} {buffer.size / 1000:,.1f} kB" for buffer in self.alive_at_peak())
        lines = [
            f"Arena {self.arena / 1000:,.1f} kB: {self.head / 1000:,.1f} kB of activations as TFLM places them, and "
            f"{self.tail / 1000:,.1f} kB that it allocates permanently (on a 64-bit machine; less on a board). Flash "
            f"{self.flash / 1000:,.1f} kB, plus TFLM's own code.",
            f"The peak of live memory is {self.bound / 1000:,.1f} kB, at {self.peak or 'the input'}: {alive}.",
        ]
        if self.head > self.bound:
            lines.append(
                f"TFLM's placement wastes {(self.head - self.bound) / 1000:,.1f} kB; zoo.deploy.compact.with_best_plan "
                "puts a better plan into the file."
            )
        if savings and savings[0].bytes > 0:
            largest = savings[0]
            lines.append(
                f"The explicit padding that costs most is {largest.operator}: {largest.bytes / 1000:,.1f} kB. "
                '"same" padding costs nothing.'
            )
        lines += [f"The file will not run: {reason}." for reason in self.refusals]
        if self.too_wide:
            lines[-1] += " zoo.deploy.rewrites.narrow_joins splits it up; the outputs stay the same."
        return join_blocks(*lines)

    def alive_at_peak(self) -> list[Buffer]:
        """Returns the buffers alive at the peak, largest first."""
        step = self._peak_step
        alive = (buffer for buffer in self.buffers if buffer.first <= step <= buffer.last)
        return sorted(alive, key=lambda buffer: -buffer.size)


class Saving(NamedTuple):
    """By how many bytes the head would shrink without an operator, whose reader would take its input."""

    operator: Operator
    bytes: int


def plan(tflite: Source) -> Plan:
    """Returns the memory of a .tflite file, placed by the plan in its metadata if there is one.

    Raises:
        PlannerError: a tensor has an open shape, or the memory of a TFLM operator is not known.
        TfliteFileError: not a whole TensorFlow Lite file.
    """
    return _plan(parse(tflite), len(detach(tflite)))


def find_padding_savings(tflite: Source) -> list[Saving]:
    """Returns for each explicit PAD how much smaller the head would be without it, largest saving first.

    A convolution with "same" padding pads inside its kernel; in a network turned by 180 degrees more convolutions can
    (`zoo.deploy.turn`).
    """
    model = parse(tflite)
    head, savings = _plan(model, 0).head, []
    for operator in list_operators(model):
        if operator.kind in ("PAD", "PADV2"):
            shorter = list_buffers(model, operator.number)
            savings.append(Saving(operator, head - memory_plan.end_of(shorter, memory_plan.place_greedily(shorter))))
    return sorted(savings, key=lambda saving: -saving.bytes)


def find_scheme(tflite: Source) -> str:
    """Returns "int8", "int4", "int16x8", "uint8", "dynamic", "float16" or "float32", from the file's tensor types."""
    graph = parse(tflite).subgraphs[0]
    written = {int(number) for operator in graph.operators for number in operator.outputs}
    computed = {type_of(graph.tensors[number]) for number in written}
    read_ = {int(number) for operator in graph.operators for number in operator.inputs if number >= 0}
    stored = {type_of(graph.tensors[number]) for number in read_ - written - set(map(int, graph.inputs))}
    for name, type_ in (("int16x8", "int16"), ("int8", "int8"), ("uint8", "uint8")):
        if type_ in computed:
            return "int4" if name == "int8" and "int4" in stored else name
    return "dynamic" if "int8" in stored else "float16" if "float16" in stored else "float32"


def find_input_shape(tflite: Source) -> tuple[int, ...]:
    """Returns the shape of the file's first input, batch included."""
    graph = parse(tflite).subgraphs[0]
    return tflite_file.shape_of(graph.tensors[graph.inputs[0]])


def list_operators(model: Any) -> list[Operator]:
    """Returns the operators of a parsed file's main graph, in execution order."""
    graph, names = model.subgraphs[0], find_layer_names(model)[0]
    return [_name_operator(model, names, number, operator) for number, operator in enumerate(graph.operators)]


def list_buffers(model: Any, skip: int | None = None) -> list[Buffer]:
    """Returns a parsed file's buffers as TFLM's AllocationInfoBuilder lists them, as if operator `skip` were absent."""
    return _Lifetimes(model, skip).buffers()


class _Lifetimes:
    """The steps at which each tensor of each subgraph is alive, as TFLM counts them."""

    def __init__(self, model: Any, skip: int | None = None):
        self.model, self.skip, self.names = model, skip, find_layer_names(model)
        self.running: list[Operator] = []  # one per step
        self.first: dict[tuple[int, int], int] = {}
        self.last: dict[tuple[int, int], int] = {}
        self.scratch: list[Buffer] = []
        self._mark(0)

    def _mark(self, subgraph: int) -> None:
        graph = self.model.subgraphs[subgraph]
        same: dict[int, int] = {}  # from the output of the skipped operator to its input
        self._create(subgraph, (*graph.inputs, *graph.outputs))
        for number, operator in enumerate(graph.operators):
            named = _name_operator(self.model, self.names[subgraph], number, operator)
            self.running.append(named)
            inputs = [same.get(int(tensor), int(tensor)) for tensor in operator.inputs if tensor >= 0]
            if subgraph == 0 and number == self.skip:
                same[int(operator.outputs[0])] = inputs[0]
                continue
            self._create(subgraph, operator.outputs)
            start = len(self.running)
            for inner in _list_called(operator):
                self.running.append(named)
                self._mark(inner)
            self._use(subgraph, (*inputs, *operator.outputs))
            for size in tflm.scratch_sizes(self.model, graph, operator):
                self.scratch.append(Buffer(f"scratch of {named.output}", size, start, len(self.running)))
        self._use(subgraph, [same.get(int(tensor), int(tensor)) for tensor in graph.outputs])

    def _create(self, subgraph: int, tensors: Iterable[int]) -> None:
        self.first |= {(subgraph, int(number)): len(self.running) for number in tensors}
        self._use(subgraph, tensors)

    def _use(self, subgraph: int, tensors: Iterable[int]) -> None:
        self.last |= {(subgraph, int(number)): len(self.running) for number in tensors}

    def buffers(self) -> list[Buffer]:
        """Returns what the arena's head holds: the tensors in the file's order, then the scratch memory."""
        planned, found = _read_offsets(self.model), []
        for key, first in sorted(self.first.items()):
            subgraph, number = key
            tensor = self.model.subgraphs[subgraph].tensors[number]
            kept = is_constant(self.model, tensor) or tensor.isVariable or type_of(tensor) == "resource"
            if not kept:
                place = (number, planned.get(number)) if subgraph == 0 else (None, None)
                found.append(Buffer(self.names[subgraph][number], _size(tensor), first, self.last[key], *place))
        return found + self.scratch


def _plan(model: Any, flash: int) -> Plan:
    lifetimes = _Lifetimes(model)
    buffers, main = lifetimes.buffers(), list_operators(model)
    refusals = {tflm.find_refusal(model, graph, operator) for graph in model.subgraphs for operator in graph.operators}
    return Plan(
        tuple(buffers),
        tuple(memory_plan.place_greedily(buffers)),
        tuple(lifetimes.running),
        _sum_tail(model, len(lifetimes.scratch)),
        flash,
        tuple(sorted(filter(None, refusals))),
        tuple(main[number] for number in rewrites.find_wide_joins(model)),
    )


def _sum_tail(model: Any, scratch: int) -> int:
    """Returns the bytes that TFLM allocates permanently; `scratch` is the number of scratch buffers."""
    graphs = model.subgraphs
    handles = tflm.POINTER * scratch * len(graphs)  # allocated once per subgraph
    total = tflm.BASE + tflm.SUBGRAPH * len(graphs) + handles + _sum_variables(model)
    unknown = tflm.UNKNOWN.intersection(kind_of(model, operator) for graph in graphs for operator in graph.operators)
    if unknown:
        raise PlannerError(
            f"the memory is not known for {', '.join(sorted(unknown))}. Measure it with zoo.deploy.measure.arena"
        )
    for numbers in (graphs[0].inputs, graphs[0].outputs):
        total += memory_plan.aligned(tflm.POINTER * len(numbers))
        scaled = sum(is_quantized(graphs[0].tensors[number]) for number in numbers)
        total += tflm.QUANTIZED_ENDPOINT * scaled + tflm.ENDPOINT * (len(numbers) - scaled)
    for graph in graphs:
        total += tflm.TENSOR * len(graph.tensors)
        total += sum(tflm.kept_bytes(model, graph, operator) for operator in graph.operators)
    return total


def _sum_variables(model: Any) -> int:
    """Returns the bytes of what persists between calls: variable tensors and resource variables (VAR_HANDLE)."""
    total, sizes = 0, {}
    names: dict[tuple[int, int], str] = {}  # of the variables that resource tensors refer to
    for place, graph in enumerate(model.subgraphs):
        total += sum(memory_plan.aligned(_size(tensor)) for tensor in graph.tensors if tensor.isVariable)
        for operator in graph.operators:
            kind = kind_of(model, operator)
            if kind == "VAR_HANDLE":
                names[place, int(operator.outputs[0])] = text(operator.builtinOptions.sharedName)
            elif kind == "ASSIGN_VARIABLE":
                handle, value = map(int, operator.inputs)
                sizes[names.get((place, handle), str(handle))] = _size(graph.tensors[value])
    if names:
        total += memory_plan.ALIGNMENT + memory_plan.aligned(tflm.VARIABLE * len(set(names.values())))
    return total + sum(map(memory_plan.aligned, sizes.values()))


def _list_called(operator: Any) -> tuple[int, ...]:
    """Returns the subgraphs that an operator runs."""
    options = operator.builtinOptions
    names = (f"{part}SubgraphIndex" for part in ("init", "then", "else", "cond", "body"))
    return tuple(getattr(options, name) for name in names if hasattr(options, name))


def _name_operator(model: Any, names: Sequence[str], number: int, operator: Any) -> Operator:
    """Returns the operator with its layer's name: the output's or, if that is the name of a call, the weights'."""
    kind = kind_of(model, operator)
    tensors = [*operator.outputs[:1], *(operator.inputs[1:2] if kind in _WEIGHTED else ())]
    named = next((names[tensor] for tensor in map(int, tensors) if not names[tensor].startswith("output")), None)
    return Operator(number, kind, named or ("output" if len(operator.outputs) else "nothing"))


def _read_offsets(model: Any) -> dict[int, int]:
    """Returns the offset of each tensor that the plan in a parsed file's metadata fixes."""
    content = tflite_file.find_metadata(model, OFFLINE_PLAN)
    if content is None:
        return {}
    numbers = np.frombuffer(content, "<i4")
    if len(numbers) < 3 or len(numbers) != 3 + numbers[2]:
        raise PlannerError(
            f"the metadata {OFFLINE_PLAN} have {len(numbers)} numbers; expected version, subgraph, n and n offsets. "
            "Rewrite them with zoo.deploy.compact.with_best_plan"
        )
    return {number: int(offset) for number, offset in enumerate(numbers[3:]) if offset >= 0}


def _size(tensor: Any) -> int:
    try:
        return tflm.size_of(tensor)
    except ValueError as error:
        raise PlannerError(str(error)) from error


def find_layer_names(model: Any) -> list[list[str]]:
    """Returns for each tensor of each subgraph the name of its layer: `conv` for `net/conv/convolution;...`.

    Scopes inside a layer are skipped: `bn` for `net/bn/batchnorm/mul_1`. A tensor named after a call is "output". Keras
    3 enters each scope twice, first to check whether the layer is built, and TensorFlow numbers the second one, as in
    `net_1/conv_1/convolution`; this number is removed.
    """
    names = [[text(tensor.name).split(";")[0] for tensor in graph.tensors] for graph in model.subgraphs]
    scopes = {scope for name in names[0] for scope in name.split("/")[:-1][:2]}
    numbers = {(stem, number[-1:] in "13579") for stem, _, number in (scope.rpartition("_") for scope in scopes)}
    are_numbered = bool(scopes) and all(re.search(r"_\d+$", scope) for scope in scopes)
    is_twice = are_numbered and len(numbers) == len({stem for stem, _ in numbers})  # conv2d_1, conv2d_2 are two layers
    return [[_find_layer(name, is_twice) for name in some] for some in names]


def _find_layer(name: str, is_twice: bool) -> str:
    if re.fullmatch(r"(Stateful)?PartitionedCall(_\d+)?:\d+", name):
        return "output"
    parts = name.split("/")
    while len(parts) > 2 and parts[-2] in _INNER_SCOPES:
        del parts[-2]
    layer = parts[-2] if len(parts) > 1 else parts[0]
    return re.sub(r"_\d+$", "", layer) if is_twice and len(parts) > 1 else layer
