"""TFLite Metadata: a .tflite file's description of itself, as read by the task libraries of MediaPipe and LiteRT.

The description is a flatbuffer of metadata_schema.fbs (version 1.0.0) among the model's buffers. The files that it
names follow the model in an uncompressed zip archive, which `zipfile.ZipFile("model.tflite")` opens. LiteRT and TFLM
ignore both.
"""

import dataclasses
import io
import struct
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import flatbuffers
import numpy as np
from flatbuffers import number_types, table

from zoo.deploy import tflite_file
from zoo.deploy.tflite_file import Source, TfliteFileError, is_quantized, pack, parse, set_metadata, shape_of, type_of

ENTRY, IDENTIFIER = "TFLITE_METADATA", b"M001"
LABELS, GENOTYPE = "labels.txt", "genotype.json"
# Members of the schema's enumerations and unions; field numbers are given where the fields are
_DESCRIPTIONS, _TENSOR_AXIS_LABELS = 1, 2
_FEATURE, _IMAGE, _NORMALIZATION = 1, 2, 1
_COLOR_SPACES = {3: 1, 1: 2}  # by channels: RGB, grayscale
_TIME = (1980, 1, 1, 0, 0, 0)  # of every file in the archive, so that equal contents give equal bytes


class _Uint(int):
    """An integer of four bytes; plain ones are written as one byte."""


@dataclasses.dataclass(frozen=True)
class Metadata:
    """An image classifier's description of itself; a field is empty if unknown.

    The network reads (pixel - mean) / std for pixels from 0 to 255; a single number holds for all channels.
    """

    name: str = ""
    description: str = ""
    author: str = ""
    license: str = ""
    class_names: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)  # further texts by file name, such as GENOTYPE


def attach(tflite: Source, metadata: Metadata) -> bytes:
    """Returns the file with this metadata in place of any earlier metadata.

    The class names describe the first output with that many units; if there is none, the whole file.

    Raises:
        TfliteFileError: not a whole TensorFlow Lite file.
    """
    model = parse(detach(tflite))
    graph = model.subgraphs[0]
    units = [shape_of(graph.tensors[number])[-1:] for number in graph.outputs]
    fitting = [place for place, one in enumerate(units) if one == (len(metadata.class_names),)][:1]
    inputs = [_describe_input(graph.tensors[number], metadata) for number in graph.inputs]
    outputs = [_describe_output(graph.tensors[number], place in fitting) for place, number in enumerate(graph.outputs)]
    files = dict(metadata.files)
    if metadata.class_names:
        files[LABELS] = "".join(f"{' '.join(name.split())}\n" for name in metadata.class_names)
    others = [name for name in files if name != LABELS or not fitting]
    described = {
        0: metadata.name, 1: metadata.description, 3: [{2: inputs, 3: outputs}], 4: metadata.author,
        5: metadata.license, 6: [{0: name, 2: _DESCRIPTIONS} for name in others], 7: "1.0.0",
    }  # fmt: skip
    builder = flatbuffers.Builder(1024)
    builder.Finish(_write(builder, described), file_identifier=IDENTIFIER)
    set_metadata(model, ENTRY, bytes(builder.Output()))
    file = io.BytesIO(pack(model))
    with zipfile.ZipFile(file, "a", zipfile.ZIP_STORED) as archive:
        for name, text in files.items():
            archive.writestr(zipfile.ZipInfo(name, _TIME), text.encode())
    return file.getvalue()


def detach(tflite: Source) -> bytes:
    """Returns the model alone, which is all that a device needs; unchanged if the file has no metadata."""
    data = tflite_file.read(tflite)
    if ENTRY.encode() not in data and not zipfile.is_zipfile(io.BytesIO(data)):
        return data
    model = parse(data)
    tflite_file.remove_metadata(model, ENTRY)
    return pack(model)


def read(tflite: Source) -> Metadata | None:
    """Returns the metadata of a file, whichever program wrote them, or None if there are none.

    Raises:
        TfliteFileError: not a whole TensorFlow Lite file, or its metadata are damaged.
    """
    data = tflite_file.read(tflite)
    stored = tflite_file.find_metadata(parse(data), ENTRY)
    if stored is None:
        return None
    try:
        model = _Table(stored, struct.unpack_from("<I", stored)[0])
        tensors = [[tensor for graph in model.tables(3)[:1] for tensor in graph.tables(side)] for side in (2, 3)]
        units = [unit for tensor in tensors[0] for unit in tensor.tables(4) if unit.byte(0) == _NORMALIZATION]
        named = [file for tensor in tensors[1] for file in tensor.tables(6) if file.byte(2) == _TENSOR_AXIS_LABELS]
        files = _unpack(data)
        names = files.pop(named[0].text(0) if named else LABELS, "").splitlines()
        mean, std = (units[0].table(1).floats(field) if units else () for field in (0, 1))
        name, description, author, license_ = (model.text(field) for field in (0, 1, 4, 5))
    except (struct.error, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise TfliteFileError(f"the file's metadata are damaged ({error}). Copy it whole or export it again") from error
    return Metadata(name, description, author, license_, tuple(names), mean, std, files)


def _unpack(data: bytes) -> dict[str, str]:
    """Returns the texts in the archive after the model."""
    if not zipfile.is_zipfile(io.BytesIO(data)):
        return {}
    found = {}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for name in archive.namelist():
            try:
                found[name] = archive.read(name).decode()
            except UnicodeDecodeError:  # a binary file of another program
                continue
    return found


def _describe_input(tensor: Any, metadata: Metadata) -> dict[int, Any]:
    """Returns the fields of TensorMetadata: those of an image if the tensor can be one."""
    shape = shape_of(tensor)
    if len(shape) != 4 or shape[3] not in _COLOR_SPACES:
        return {0: tflite_file.text(tensor.name), 3: {0: _FEATURE, 1: {}}}
    height, width, channels = shape[1:]
    image = {0: _COLOR_SPACES[channels], 1: {0: _Uint(width), 1: _Uint(height)}}
    mean, std = (np.array(numbers, np.float32) for numbers in (metadata.mean, metadata.std))
    limits = (-mean / std, (255 - mean) / std) if len(mean) else None
    return {
        0: "image",
        1: f"An image of {width} x {height} pixels, {'RGB' if channels == 3 else 'grayscale'}",
        3: {0: _IMAGE, 1: image},
        4: [{0: _NORMALIZATION, 1: {0: mean, 1: std}}] if len(mean) else [],
        5: _describe_limits(tensor, limits),
    }


def _describe_output(tensor: Any, labelled: bool) -> dict[int, Any]:
    files = [{0: LABELS, 1: "The class of each score, one a line", 2: _TENSOR_AXIS_LABELS}]
    return {
        0: "scores" if labelled else tflite_file.text(tensor.name),
        3: {0: _FEATURE, 1: {}},
        5: _describe_limits(tensor, None),
        6: files if labelled else [],
    }


def _describe_limits(tensor: Any, limits: tuple[np.ndarray, np.ndarray] | None) -> dict[int, Any]:
    """Returns the fields of Stats: the range of a quantized tensor, otherwise `limits` (lowest, highest)."""
    if is_quantized(tensor):
        stored = np.iinfo(type_of(tensor))
        scale, zero = np.float32(tensor.quantization.scale[0]), int(tensor.quantization.zeroPoint[0])
        limits = tuple(np.array([(end - zero) * scale], np.float32) for end in (stored.min, stored.max))  # pyright: ignore
    return {} if limits is None else {0: limits[1], 1: limits[0]}


def _write(builder: flatbuffers.Builder, value: Any) -> int:
    """Writes a text, an array, a list of tables, or a table {field number: value}, and returns its offset."""
    if isinstance(value, str):
        return builder.CreateString(value)
    if isinstance(value, np.ndarray):
        return builder.CreateNumpyVector(value)
    if isinstance(value, Sequence):
        places = [_write(builder, item) for item in value]
        builder.StartVector(4, len(places), 4)
        for place in reversed(places):
            builder.PrependUOffsetTRelative(place)
        return builder.EndVector()
    placed = {field: one if isinstance(one, int) else _write(builder, one) for field, one in value.items()}
    builder.StartObject(max(placed, default=-1) + 1)
    for field, one in placed.items():
        if isinstance(value[field], _Uint):
            builder.PrependUint32Slot(field, one, 0)
        elif isinstance(value[field], int):
            builder.PrependInt8Slot(field, one, 0)
        else:
            builder.PrependUOffsetTRelativeSlot(field, one, 0)
    return builder.EndObject()


class _Table(table.Table):
    """A flatbuffer table, read by field number; a missing field reads as empty, a missing table raises ValueError."""

    def _offset(self, field: int) -> int:
        return self.Offset(4 + 2 * field)

    def byte(self, field: int) -> int:
        return self.GetSlot(4 + 2 * field, 0, number_types.Uint8Flags)

    def text(self, field: int) -> str:
        offset = self._offset(field)
        return self.String(self.Pos + offset).decode() if offset else ""

    def floats(self, field: int) -> tuple[float, ...]:
        offset = self._offset(field)
        return tuple(self.GetVectorAsNumpy(number_types.Float32Flags, offset).tolist()) if offset else ()

    def table(self, field: int) -> "_Table":
        offset = self._offset(field)
        if not offset:
            raise ValueError(f"field {field} is missing")
        return _Table(self.Bytes, self.Indirect(self.Pos + offset))

    def tables(self, field: int) -> list["_Table"]:
        offset = self._offset(field)
        places = range(self.Vector(offset), self.Vector(offset) + 4 * self.VectorLen(offset), 4) if offset else ()
        return [_Table(self.Bytes, self.Indirect(place)) for place in places]
