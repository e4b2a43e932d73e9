"""TensorFlow Lite for Microcontrollers (TFLM): what it can run, the memory that its kernels need, and running it.

The tables describe its reference kernels. They were measured by running files of one operator and of seventeen equal
operators under tflite-micro 0.dev20261023, with its RecordingMicroAllocator, on a 64-bit machine; a 32-bit board needs
less. Optimized kernels (CMSIS-NN) may need more scratch memory.
"""

import dataclasses
import math
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from zoo.deploy import tflite_file
from zoo.deploy.memory_plan import aligned
from zoo.deploy.tflite_file import Source, parse, read, require, shape_of, text, type_of

TIMEOUT_SECONDS = 600  # the reference kernels take about 100 times as long as LiteRT
# The program of the subprocess: TFLM aborts its process on a file that it cannot run, and prints its recording from C++
_PROGRAM = """
import pathlib, sys
import numpy as np
from tflite_micro.python.tflite_micro import runtime
folder, arena_size, output = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
try:
    interpreter = runtime.Interpreter.from_bytes((folder / "model.tflite").read_bytes(), arena_size=arena_size)
except RuntimeError as error:  # TFLM's earlier output says more than a traceback
    sys.exit(str(error))
outputs = []
for image in np.load(folder / "inputs.npy"):
    interpreter.set_input(image[None], 0)
    interpreter.invoke()
    outputs.append(interpreter.get_output(output)[0].copy())
np.save(folder / "outputs.npy", np.stack(outputs) if outputs else np.zeros(0))
interpreter.print_allocations()
"""

# Bytes of permanent allocations, besides those of the operators
BASE = 472  # the allocator and its planner
SUBGRAPH = 16  # SubgraphAllocations
TENSOR = 24  # TfLiteEvalTensor
OPERATOR = 64  # NodeAndRegistration
ENDPOINT, QUANTIZED_ENDPOINT = 64, 96  # TfLiteTensor of an input or output; with its scale and zero point
POINTER = 8  # of each input, of each output, and of each scratch buffer
VARIABLE = 40  # MicroResourceVariable

# The supported operators, by the types of their data (for weights see `_WEIGHTS`)
_KINDS_BY_TYPES = {
    "float32": "CEIL COS EXP FLOOR FLOOR_DIV FLOOR_MOD L2_POOL_2D LOG NEG ROUND SIN SQRT SQUARE",
    "bool": "LOGICAL_AND LOGICAL_NOT LOGICAL_OR REDUCE_ALL",
    "int32 int64": "BROADCAST_ARGS",
    "float32 int8": "ADD_N ARG_MAX ARG_MIN BATCH_TO_SPACE_ND CUMSUM DEPTH_TO_SPACE ELU EMBEDDING_LOOKUP GATHER "
    "GATHER_ND HARD_SWISH L2_NORMALIZATION LOG_SOFTMAX MIRROR_PAD PRELU REDUCE_MAX REDUCE_MIN RESIZE_BILINEAR "
    "SPACE_TO_BATCH_ND SPACE_TO_DEPTH SVDF",
    "float32 int8 int16": "ABS AVERAGE_POOL_2D BATCH_MATMUL CONV_2D DEPTHWISE_CONV_2D EXPAND_DIMS FULLY_CONNECTED "
    "LEAKY_RELU LOGISTIC MAX_POOL_2D MEAN RELU RELU6 RESIZE_NEAREST_NEIGHBOR RSQRT SELECT_V2 SOFTMAX SUM TANH "
    "TRANSPOSE TRANSPOSE_CONV UNIDIRECTIONAL_SEQUENCE_LSTM",
    "float32 int8 int32": "DIV FILL",
    "float32 int8 int16 int32": "ADD DYNAMIC_UPDATE_SLICE MUL PAD PADV2 SPLIT SPLIT_V SQUARED_DIFFERENCE SUB UNPACK",
    "float32 int8 int16 int32 int64": "GREATER MAXIMUM MINIMUM PACK",
    "float32 int8 int32 int64": "GREATER_EQUAL LESS LESS_EQUAL ZEROS_LIKE",
    "float32 int8 int32 int64 bool": "EQUAL NOT_EQUAL",
    "float32 int8 int16 int32 bool": "CAST SLICE STRIDED_SLICE",
    "float32 int8 int16 int32 int64 bool": "CONCATENATION",
    "float32 int8 int16 int32 uint8": "QUANTIZE",
    "int8 int16 uint8": "DEQUANTIZE",
    "float32 int8 int16 int32 int64 uint8 bool": "ASSIGN_VARIABLE CALL_ONCE IF READ_VARIABLE REVERSE_V2 VAR_HANDLE "
    "WHILE",
    "float32 float16 int8 int16 int32 int64 uint8 bool": "BROADCAST_TO RESHAPE SHAPE SQUEEZE",
}
# Operators that TFLM supports, but whose memory is not known here
UNKNOWN = frozenset(
    f"CUSTOM {name}"
    for name in "CIRCULAR_BUFFER SignalDelay SignalEnergy SignalFftAutoScale SignalFilterBank SignalFilterBankLog "
    "SignalFilterBankSpectralSubtraction SignalFilterBankSquareRoot SignalFramer SignalIrfft SignalOverlapAdd "
    "SignalPCAN SignalRfft SignalStacker SignalWindow TFLM_DECODE TFLite_Detection_PostProcess".split()
)
TYPES = {kind: frozenset(types.split()) for types, kinds in _KINDS_BY_TYPES.items() for kind in kinds.split()}
_DATA_INPUT = {"EMBEDDING_LOOKUP": 1, "FILL": 1, "SELECT_V2": 1, "SPLIT": 1, "TRANSPOSE_CONV": 2}  # otherwise input 0
_WEIGHTS_INPUT = {"BATCH_MATMUL": 1, "CONV_2D": 1, "DEPTHWISE_CONV_2D": 1, "FULLY_CONNECTED": 1, "TRANSPOSE_CONV": 1,
                  "UNIDIRECTIONAL_SEQUENCE_LSTM": 2}  # fmt: skip
_WEIGHTS = {"float32": {"float32"}, "int8": {"int8", "int4"}, "int16": {"int8"}}  # by the type of the data
_OUTPUTS = {"ARG_MAX": {"int32"}, "ARG_MIN": {"int32"}, "SHAPE": {"int32"},
            "CAST": {"float32", "int8", "int16", "int32", "bool"}}  # fmt: skip
_QUANTIZED_TO = {"float32": {"int8", "int16"}, "int8": {"int8", "int16", "int32", "uint8"},
                 "int16": {"int8", "int16", "int32"}, "int32": {"int8", "int16"}, "uint8": {"int8"}}  # fmt: skip
_MOST_DIMENSIONS = {"PAD": 5, "PADV2": 5, "SLICE": 5, "STRIDED_SLICE": 4, "TRANSPOSE": 5}

# Bytes that an operator allocates permanently: its parameters and the kernel's data, without what `kept_bytes` adds
_KEPT = {
    "ABS": 32, "ADD": 72, "ARG_MAX": 4, "ARG_MIN": 4, "ASSIGN_VARIABLE": 16, "AVERAGE_POOL_2D": 72, "BATCH_MATMUL":
    36, "CALL_ONCE": 20, "CAST": 8, "CONCATENATION": 88, "CONV_2D": 108, "CUMSUM": 4, "DEPTHWISE_CONV_2D": 108,
    "DEPTH_TO_SPACE": 36, "DEQUANTIZE": 32, "DIV": 36, "ELU": 256, "EMBEDDING_LOOKUP": 32, "EQUAL": 32,
    "FULLY_CONNECTED": 112, "GATHER": 40, "GATHER_ND": 32, "GREATER": 32, "GREATER_EQUAL": 32, "HARD_SWISH": 32, "IF":
    28, "L2_NORMALIZATION": 20, "L2_POOL_2D": 72, "LEAKY_RELU": 36, "LESS": 32, "LESS_EQUAL": 32, "LOGISTIC": 16,
    "MAX_POOL_2D": 72, "MEAN": 52, "MIRROR_PAD": 36, "MUL": 52, "NOT_EQUAL": 32, "PACK": 8, "PAD": 64, "PADV2": 64,
    "PRELU": 32, "QUANTIZE": 32, "REDUCE_ALL": 52, "REDUCE_MAX": 52, "REDUCE_MIN": 52, "RELU": 32, "RELU6": 16,
    "RESHAPE": 36, "RESIZE_BILINEAR": 4, "RESIZE_NEAREST_NEIGHBOR": 4, "RSQRT": 32, "SELECT_V2": 16, "SHAPE": 4,
    "SOFTMAX": 84, "SPACE_TO_BATCH_ND": 16, "SPACE_TO_DEPTH": 36, "SPLIT": 4, "SPLIT_V": 4, "SQUARED_DIFFERENCE": 112,
    "SQUEEZE": 36, "STRIDED_SLICE": 120, "SUB": 72, "SUM": 52, "SVDF": 60, "TANH": 16, "TRANSPOSE_CONV": 116,
    "UNIDIRECTIONAL_SEQUENCE_LSTM": 704, "UNPACK": 8, "VAR_HANDLE": 32, "WHILE": 24,
}  # fmt: skip
_KEPT_OF_TYPE = {("ADD_N", "int8"): 48, ("CUMSUM", "int8"): 52, ("LOG_SOFTMAX", "int8"): 48, ("SOFTMAX", "int16"): 2164}


class TflmError(RuntimeError):
    """TFLM cannot run the file."""


@dataclasses.dataclass(frozen=True)
class Arena:
    """Bytes of RAM: `head` for activations and scratch buffers, `tail` for permanent tables and operator data.

    Recorded on a 64-bit machine. Pointers on a microcontroller are half as long, so `tail` is smaller there; `head` is
    the same.
    """

    total: int
    head: int
    tail: int


def find_refusal(model: Any, graph: Any, operator: Any) -> str | None:
    """Returns what TFLM does not support about an operator, such as "DEQUANTIZE of float16", or None if it runs it."""
    kind = tflite_file.kind_of(model, operator)
    if kind in UNKNOWN:
        return None
    if kind not in TYPES:
        return kind
    data = _data_of(graph, operator, kind)
    if data is None:
        return None
    type_, rank = type_of(data), len(shape_of(data))
    if type_ == "resource":
        return None
    if type_ not in TYPES[kind]:
        return f"{kind} of {type_}"
    if rank > _MOST_DIMENSIONS.get(kind, rank):
        return f"{kind} of {rank} dimensions"
    if kind in _WEIGHTS_INPUT:
        weights = graph.tensors[operator.inputs[_WEIGHTS_INPUT[kind]]]
        if type_of(weights) not in ({type_} if kind == "BATCH_MATMUL" else _WEIGHTS[type_]):
            return f"{kind} of {type_} with {type_of(weights)} weights"
        if kind == "FULLY_CONNECTED" and type_of(weights) == "int4" and _count_scales(weights) > 1:
            return f"{kind} with int4 weights of one scale per output"
    written = type_of(graph.tensors[operator.outputs[0]]) if len(operator.outputs) else None
    allowed = _QUANTIZED_TO[type_] if kind == "QUANTIZE" else _OUTPUTS.get(kind, {written})
    return None if written in allowed else f"{kind} of {type_} to {written}"


def kept_bytes(model: Any, graph: Any, operator: Any) -> int:
    """Returns the bytes that TFLM allocates permanently for an operator, without handles of its scratch buffers."""
    kind = tflite_file.kind_of(model, operator)
    data = _data_of(graph, operator, kind)
    type_, channels = "" if data is None else type_of(data), 0
    if kind in ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV"):
        channels = shape_of(graph.tensors[operator.outputs[0]])[-1]  # even in float
    elif kind == "FULLY_CONNECTED" and type_ != "float32":
        scales = _count_scales(graph.tensors[operator.inputs[1]])
        channels = scales if scales > 1 else 0
    total = kept_of_kind(kind, type_, channels)
    return total + (_kept_of_matmul(graph, operator) if kind == "BATCH_MATMUL" else 0)


def kept_of_kind(kind: str, type_: str, channels: int = 0) -> int:
    """Returns the same as `kept_bytes` for an operator's kind, data type, and number of rescaled channels."""
    return OPERATOR + _KEPT_OF_TYPE.get((kind, type_), _KEPT.get(kind, 0)) + 2 * aligned(4 * channels)


def _kept_of_matmul(graph: Any, operator: Any) -> int:
    """Returns the bytes of the transposed copies that BATCH_MATMUL keeps: left if adjX is set, right unless adjY is."""
    left, right = (graph.tensors[number] for number in operator.inputs)
    options, output = operator.builtinOptions, graph.tensors[operator.outputs[0]]
    total = aligned(4 + 4 * len(shape_of(output))) + (0 if type_of(left) == "float32" else 32)
    for tensor, transposed in ((left, options.adjX), (right, not options.adjY)):
        if transposed:
            total += 32 + aligned(4 + 4 * len(shape_of(tensor))) + aligned(size_of(tensor))
    return total


def scratch_sizes(model: Any, graph: Any, operator: Any) -> list[int]:
    """Returns the bytes of each scratch buffer that an operator's kernel requests."""
    kind = tflite_file.kind_of(model, operator)
    data = _data_of(graph, operator, kind)
    if data is None or not len(operator.outputs):
        return []
    type_, output = type_of(data), graph.tensors[operator.outputs[0]]
    if kind in ("MEAN", "SUM", "REDUCE_ALL", "REDUCE_MAX", "REDUCE_MIN"):
        sizes = [4 * len(shape_of(data)), 4 * math.prod(shape_of(graph.tensors[operator.inputs[1]]))]
        sums = [4 * math.prod(shape_of(output))] if kind in ("MEAN", "SUM") and type_ != "float32" else []
        return sizes + sums
    if kind == "ADD_N":
        return [POINTER * len(operator.inputs)]
    if kind == "MIRROR_PAD":
        return [4 * len(shape_of(data))] * 2
    if kind == "TRANSPOSE_CONV" and type_ != "float32":
        return [(4 if type_ == "int8" else 8) * math.prod(shape_of(output))]
    if kind == "UNIDIRECTIONAL_SEQUENCE_LSTM":  # one per gate, in the type of the cell state
        return [size_of(graph.tensors[operator.inputs[19]])] * 4
    if kind == "SVDF":
        batch, filters = shape_of(data)[0], shape_of(graph.tensors[operator.inputs[1]])[0]
        return [4 * batch * filters] + ([4 * math.prod(shape_of(output))] if type_ == "int8" else [])
    if kind in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
        weights = graph.tensors[operator.inputs[1]]
        return [math.prod(shape_of(weights))] if type_of(weights) == "int4" else []  # unpacked
    return []


def size_of(tensor: Any) -> int:
    """Returns the bytes of a tensor's values.

    Raises:
        ValueError: the shape is open, or the type has no fixed size.
    """
    widths = {"float32": 4, "int32": 4, "uint32": 4, "int64": 8, "int16": 2, "float16": 2, "int8": 1, "uint8": 1,
              "bool": 1, "float64": 8, "uint16": 2, "uint64": 8}  # fmt: skip
    shape, type_ = shape_of(tensor), type_of(tensor)
    if type_ not in widths or min(shape, default=1) < 0:
        raise ValueError(
            f"tensor {text(tensor.name)!r} has the shape {list(shape)} and the type {type_}; expected a fixed shape of "
            "numbers. Convert with zoo.deploy.tflite.convert, which fixes the shape"
        )
    return widths[type_] * math.prod(shape)


def _data_of(graph: Any, operator: Any, kind: str) -> Any | None:
    """Returns the tensor whose type selects the kernel, or None if the operator has no inputs."""
    place = _DATA_INPUT.get(kind, 0)
    return graph.tensors[operator.inputs[place]] if len(operator.inputs) > place else None


def _count_scales(tensor: Any) -> int:
    quantization = tensor.quantization
    return 0 if quantization is None or quantization.scale is None else len(quantization.scale)


def run(tflite: Source, inputs: np.ndarray, output: int = 0) -> tuple[np.ndarray, Arena]:
    """Runs the file on each of `inputs` (n, ...), of the input's own type; returns one output and the arena.

    `output` is the output's position. With n = 0 nothing is run, but the arena is known: TFLM plans it before the first
    image.

    Raises:
        TflmError: TFLM lacks an operator, aborts, or takes over 600 s.
        MissingPackageError: the package tflite-micro is not installed.
    """
    require("tflite_micro", "tflite-micro")
    model = parse(tflite)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "model.tflite").write_bytes(read(tflite))
        np.save(Path(folder, "inputs.npy"), inputs)
        try:
            done = subprocess.run(
                [sys.executable, "-P", "-c", _PROGRAM, folder, str(_bound_arena(model)), str(output)],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=TIMEOUT_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise TflmError(f"TFLM took over {TIMEOUT_SECONDS} s for {len(inputs)} images; give fewer") from error
        if done.returncode != 0:
            raise TflmError(_explain_failure(done))
        return np.load(Path(folder, "outputs.npy")), _parse_recording(done.stderr + done.stdout)


def _bound_arena(model: Any) -> int:
    """Returns an arena size that is always enough: all tensors at once, doubled for scratch, and 4 kB a table entry."""
    tensors = [tensor for graph in model.subgraphs for tensor in graph.tensors]
    entries = len(tensors) + sum(len(graph.operators) for graph in model.subgraphs)
    return 2 * 4 * sum(int(np.prod(shape_of(tensor))) for tensor in tensors) + 4096 * entries + (1 << 20)


def _parse_recording(recorded: str) -> Arena:
    found = {part: re.search(rf"Arena allocation {part} (\d+) bytes", recorded) for part in ("total", "head", "tail")}
    if not all(found.values()):
        raise TflmError(
            f"TFLM ran, but recorded no arena: {recorded.strip()[-300:]!r}. Try another version of tflite-micro"
        )
    return Arena(**{part: int(match.group(1)) for part, match in found.items() if match})


def _explain_failure(done: subprocess.CompletedProcess) -> str:
    lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    missing = re.search(r"Didn't find op for builtin opcode '(\w+)'", "\n".join(lines))
    if missing:
        return f"TFLM has no operator {missing.group(1)}, which the file uses. zoo.deploy.planner shows where"
    failed = re.search(r"Node (\w+) \(number (\d+)\) failed to prepare", "\n".join(lines))
    if failed:
        return (
            f"TFLM cannot run {failed.group(1)}, operator {failed.group(2)} of the file, as the file has it\n"
            f"{' | '.join(lines)[-600:]}"
        )
    how = f"was ended by signal {-done.returncode}" if done.returncode < 0 else f"ended with code {done.returncode}"
    hint = (
        " It aborts if a scale is out of range, as scales of an untrained network can be"
        if done.returncode == -6
        else ""
    )
    return f"TFLM {how} on the file.{hint} {' | '.join(lines)[-600:]}".strip()
