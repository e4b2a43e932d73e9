"""Reads and writes .tflite files as tables (operators, tensors, buffers), and imports the packages this needs."""

import contextlib
import functools
import importlib
import logging
import os
import re
import struct
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

IDENTIFIER = b"TFL3"
OFFLINE_PLAN = "OfflineMemoryAllocation"  # the metadata entry with a file's own memory plan

_LOGGERS = ("absl", "tensorflow")

_STORED = {
    "float32": "<f4", "float16": "<f2", "int8": "i1", "uint8": "u1", "int16": "<i2", "int32": "<i4", "int64": "<i8",
    "bool": "?",
}  # fmt: skip

Source = bytes | str | os.PathLike  # a .tflite file: its bytes, or its path


class TfliteFileError(ValueError):
    """The bytes are not a whole TensorFlow Lite file."""


class MissingPackageError(ImportError):
    """A package of the `deploy` extra is not installed."""


def require(module: str, package: str) -> ModuleType:
    """Imports `module`, or raises MissingPackageError, which says to install `package`."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingPackageError(
            f"this needs the package {package} ({error}): pip install '{package}', or the project with its extra deploy"
        ) from error


def read(tflite: Source) -> bytes:
    """Returns the bytes of a .tflite file, given as bytes or path.

    Raises:
        TfliteFileError: it does not begin like a TensorFlow Lite file. Only `parse` finds out whether it is whole.
        OSError: the path cannot be read.
    """
    is_bytes = isinstance(tflite, (bytes, bytearray, memoryview))
    data = bytes(tflite) if is_bytes else Path(tflite).read_bytes()
    if data[4:8] != IDENTIFIER:
        raise TfliteFileError(
            f"{_label(tflite)} ({len(data)} bytes) is not a TensorFlow Lite file: expected {IDENTIFIER!r} at offset 4, "
            f"found {data[4:8]!r}. Export it again"
        )
    return data


def parse(tflite: Source) -> Any:
    """Returns the file's `ModelT` (the object form of schema.fbs) with all tables and buffers read.

    Raises:
        TfliteFileError: as `read`, or the file is damaged or ends too early.
    """
    data = read(tflite)
    schema = load_schema()
    try:
        return schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
    except (struct.error, ValueError, IndexError, TypeError, OverflowError, UnicodeDecodeError) as error:
        raise TfliteFileError(
            f"{_label(tflite)} ({len(data)} bytes) is damaged or cut off ({error}). Copy it whole or export it again"
        ) from error


def pack(model: Any) -> bytes:
    """Returns the bytes of a `ModelT`; tensor data are aligned to 16 bytes as the format requires."""
    import flatbuffers

    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=IDENTIFIER)
    return bytes(builder.Output())


def load_schema() -> ModuleType:
    """Returns the module generated from TensorFlow Lite's schema.fbs."""
    return require("ai_edge_litert.schema_py_generated", "ai-edge-litert")


def kind_of(model: Any, operator: Any) -> str:
    """Returns the kind of a parsed file's operator, such as CONV_2D; for a custom operator CUSTOM and its name."""
    code = model.operatorCodes[operator.opcodeIndex]
    kind = _names("BuiltinOperator")[max(code.builtinCode, code.deprecatedBuiltinCode)]
    return f"{kind} {text(code.customCode)}" if kind == "CUSTOM" else kind


def kinds_of(model: Any) -> list[str]:
    """Returns the kind of each operator of a parsed file's main graph."""
    return [kind_of(model, operator) for operator in model.subgraphs[0].operators]


def type_of(tensor: Any) -> str:
    """Returns the type of a parsed file's tensor, such as "int8" or "resource"."""
    return _names("TensorType")[tensor.type].lower()


def shape_of(tensor: Any) -> tuple[int, ...]:
    """Returns the shape of a parsed file's tensor; () for a scalar."""
    return () if tensor.shape is None else tuple(map(int, tensor.shape))


def is_quantized(tensor: Any) -> bool:
    """Whether a parsed file's tensor has a scale."""
    quantization = tensor.quantization
    return quantization is not None and quantization.scale is not None and len(quantization.scale) > 0


def is_constant(model: Any, tensor: Any) -> bool:
    """Whether the values of a parsed file's tensor are stored in the file."""
    data = model.buffers[tensor.buffer].data
    return data is not None and len(data) > 0


def writers_of(graph: Any) -> dict[int, int]:
    """Returns the number of the operator that computes each tensor of a parsed file's graph."""
    return {int(tensor): number for number, operator in enumerate(graph.operators) for tensor in operator.outputs}


def readers_of(graph: Any) -> dict[int, list[int]]:
    """Returns the numbers of the operators that read each tensor of a parsed file's graph."""
    readers: dict[int, list[int]] = {}
    for number, operator in enumerate(graph.operators):
        for tensor in map(int, operator.inputs):
            readers.setdefault(tensor, []).append(number)
    return readers


def constant_of(model: Any, number: int) -> np.ndarray | None:
    """Returns the stored values of a constant tensor of the main graph, or None if the tensor is not constant."""
    tensor = model.subgraphs[0].tensors[number]
    if not is_constant(model, tensor):
        return None
    data = np.asarray(model.buffers[tensor.buffer].data, np.uint8)
    if type_of(tensor) == "int4":  # two per byte, the first in the lower half
        halves = np.stack([data << 4, data], axis=-1).view(np.int8) >> 4
        stored = halves.ravel()[: np.prod(shape_of(tensor), dtype=int)]
    else:
        stored = np.frombuffer(data.tobytes(), _STORED[type_of(tensor)])
    return stored.reshape(shape_of(tensor))


def add_buffer(model: Any, values: np.ndarray | None = None) -> int:
    """Adds a buffer to a parsed model, with the bytes of `values` or empty, and returns its number."""
    buffer = load_schema().BufferT()
    if values is not None:
        buffer.data = np.frombuffer(values.tobytes(), np.uint8)
    model.buffers.append(buffer)
    return len(model.buffers) - 1


def store_int4(model: Any, tensor: Any, values: np.ndarray) -> None:
    """Makes a tensor a constant of four-bit values, from -8 to 7."""
    halves = np.append(values.ravel().astype(np.uint8), np.zeros(values.size % 2, np.uint8)).reshape(-1, 2) & 15
    tensor.type = load_schema().TensorType.INT4
    tensor.buffer = add_buffer(model, halves[:, 0] | halves[:, 1] << 4)


def drop_unused_buffers(model: Any) -> None:
    """Empties the buffers that nothing in a parsed model refers to; all buffers keep their numbers."""
    used = {tensor.buffer for graph in model.subgraphs for tensor in graph.tensors}
    used |= {entry.buffer for entry in model.metadata or []}
    for number, buffer in enumerate(model.buffers):
        if number not in used:
            buffer.data = None


def outputs_of(model: Any) -> list[tuple[str, int]]:
    """Returns name and tensor of each output of a parsed file, from its signature if it has one.

    Numbered names (output_0, output_1, ...; Identity, Identity_1, ...) are sorted by number, which is the order of the
    original model; the order in the file may differ.
    """
    graph = model.subgraphs[0]
    named = [(text(graph.tensors[number].name), int(number)) for number in graph.outputs]
    signature = next(iter(model.signatureDefs or []), None)
    if signature is not None and signature.outputs:
        named = [(text(entry.name), int(entry.tensorIndex)) for entry in signature.outputs]
    return sorted(named, key=lambda output: output_number(output[0]) or 0) if is_numbered(named) else named


def is_numbered(outputs: list[tuple[str, int]]) -> bool:
    """Whether the names of `outputs_of` tell which output is the model's first."""
    numbers = {output_number(name) for name, _ in outputs}
    return len(outputs) == 1 or (None not in numbers and len(numbers) == len(outputs))


def output_number(name: str) -> int | None:
    """Returns the number in an output's name if the converter made that name, otherwise None."""
    found = re.fullmatch(r"(?:output_|Identity_?|(?:Stateful)?PartitionedCall:)(\d*)", name)
    return None if found is None else int(found.group(1) or 0)


@functools.cache
def _names(enumeration: str) -> dict[int, str]:
    members = vars(getattr(load_schema(), enumeration))
    return {code: name for name, code in members.items() if not name.startswith("_")}


def set_metadata(model: Any, name: str, content: bytes) -> None:
    """Puts `content` into a parsed model's metadata, replacing an entry of the same name."""
    remove_metadata(model, name)
    entry = load_schema().MetadataT()
    entry.name, entry.buffer = name, add_buffer(model, np.frombuffer(content, np.uint8))
    model.metadata.append(entry)


def remove_metadata(model: Any, name: str) -> None:
    """Removes an entry and its content from a parsed model's metadata, if there is one."""
    for entry in [entry for entry in model.metadata or [] if text(entry.name) == name]:
        model.metadata.remove(entry)
        if entry.buffer == len(model.buffers) - 1:
            model.buffers.pop()
        else:
            model.buffers[entry.buffer].data = None  # other buffers keep their numbers


def find_metadata(model: Any, name: str) -> bytes | None:
    """Returns the content of a parsed model's metadata entry, or None."""
    for entry in model.metadata or []:
        if text(entry.name) == name:
            return bytes(np.asarray(model.buffers[entry.buffer].data, np.uint8))
    return None


def text(name: bytes | str | None) -> str:
    """Returns a parsed file's name as text."""
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else name or ""


class Captured:
    """Captured output; `text` is filled when the block ends."""

    text: str = ""


@contextlib.contextmanager
def quiet() -> Iterator[Captured]:
    """Within the block, captures the process's standard output and error, C++ included, and drops warnings.

    The file descriptors belong to the whole process, so other threads are silenced too.
    """
    captured = Captured()
    _flush()
    with tempfile.TemporaryFile() as sink, contextlib.ExitStack() as undo:
        for descriptor in (1, 2):
            saved = os.dup(descriptor)
            undo.callback(os.close, saved)
            undo.callback(os.dup2, saved, descriptor)
            os.dup2(sink.fileno(), descriptor)
        for logger in map(logging.getLogger, _LOGGERS):
            undo.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.ERROR)
        undo.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        try:
            yield captured
        finally:
            _flush()
            sink.seek(0)
            captured.text = sink.read().decode("utf-8", "replace")


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):  # absent (pythonw), or closed by its owner
            stream.flush()


def _label(tflite: Source) -> str:
    return "the given buffer" if isinstance(tflite, (bytes, bytearray, memoryview)) else str(tflite)
