"""Reads files of tensors as numpy arrays: safetensors, PyTorch's, TensorFlow checkpoints. No code from them is run."""

import contextlib
import gzip
import json
import math
import os
import re
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from zoo.weights.importing import WeightsError
from zoo.weights.torch_files import REFUSED, read_torch

_LARGEST_HEADER = 10**8  # bytes; the format's own limit
_LARGEST_ARCHIVE = 2**32  # bytes unpacked; the largest published checkpoint has 1.4e9 with its optimiser
_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1"}


def read_tensors(path: str | os.PathLike, file_format: str) -> dict[str, np.ndarray]:
    """Returns the arrays of a file by name, in the file's order.

    Args:
        path: the file; for a checkpoint, the prefix of its files, one of the files, or their folder.
        file_format: "safetensors", "pth" (a PyTorch state_dict), "pth.zip" (a pth in a zip archive), "ckpt" (a
            TensorFlow checkpoint) or "tar.gz" (an archive with a checkpoint).

    Raises:
        WeightsError: the file has another format, or holds other things than tensors.
        OSError: the file cannot be read.
    """
    readers = {
        "safetensors": _read_safetensors, "pth": _read_pth, "pth.zip": _read_zipped, "ckpt": _read_checkpoint,
        "tar.gz": _read_archive,
    }  # fmt: skip
    if file_format not in readers:
        raise WeightsError(f"the format {file_format!r} is not known; expected one of {', '.join(readers)}")
    return readers[file_format](Path(path))


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Reads the format that github.com/huggingface/safetensors describes: 8 bytes of length, JSON, raw values."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(_LARGEST_HEADER, len(data) - 8):
        raise WeightsError(f"{path} is not a safetensors file, or was cut short. Delete it to download it again")
    try:
        header = json.loads(data[8 : 8 + length])
        tensors = {name: record for name, record in header.items() if name != "__metadata__"}
        return {name: _read_tensor(memoryview(data)[8 + length :], record) for name, record in tensors.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{path} is not a safetensors file: {error}. Delete it to download it again") from error


def _read_tensor(values: memoryview, record: Mapping[str, Any]) -> np.ndarray:
    kind, shape, (start, end) = record["dtype"], record["shape"], record["data_offsets"]
    width = 2 if kind == "BF16" else np.dtype(_TYPES[kind]).itemsize
    if not 0 <= start <= end <= len(values) or end - start != width * math.prod(shape):
        raise ValueError(f"a tensor of shape {shape} and type {kind} has the bytes {start} to {end} of {len(values)}")
    if kind == "BF16":  # the upper half of a float32
        halves = np.frombuffer(values[start:end], "<u2").astype(np.uint32) << 16
        return halves.view(np.float32).reshape(shape)
    return np.frombuffer(values[start:end], _TYPES[kind]).reshape(shape)


def _read_pth(path: Path) -> dict[str, np.ndarray]:
    """Reads a state_dict, also inside {"state_dict": ...}, and takes DataParallel's "module." off the names."""
    try:
        state = read_torch(path)
    except REFUSED as error:
        raise WeightsError(
            f"{path} is not a file of PyTorch weights that can be read safely: {error}. Delete it to download it "
            'again, or save the state_dict alone, as torch.save({"state_dict": model.state_dict()}, FILE)'
        ) from error
    while isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(isinstance(value, np.ndarray) for value in state.values()):
        raise WeightsError(f"{path} holds no state_dict (names and tensors); it is a {type(state).__name__}")
    return {str(name).removeprefix("module."): value for name, value in state.items()}


def _read_zipped(path: Path) -> dict[str, np.ndarray]:
    with tempfile.TemporaryDirectory() as folder, zipped_file(path) as stream:
        unpacked = Path(folder) / f"{path.name}.pth"
        with unpacked.open("wb") as copy:
            shutil.copyfileobj(stream, copy)
        return _read_pth(unpacked)


@contextlib.contextmanager
def zipped_file(path: Path) -> Iterator[IO[bytes]]:
    """Opens the one file of a zip archive.

    Raises:
        WeightsError: the file is not an archive of one file, is damaged, or unpacks to more than any published file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            (member,) = archive.infolist()
            if member.file_size > _LARGEST_ARCHIVE:
                raise WeightsError(f"{path} unpacks to more than {_LARGEST_ARCHIVE:,} bytes")
            with archive.open(member) as stream:
                yield stream
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(
            f"{path} is not a zip archive of one file: {error}. Delete it to download it again"
        ) from error


def _read_checkpoint(path: Path) -> dict[str, np.ndarray]:
    import tensorflow as tf

    if path.is_dir():
        index = sorted(path.glob("*.index"))
        if len(index) != 1:
            raise WeightsError(f"{path} holds {len(index)} checkpoints; name the one to read, without its .index")
        path = index[0]
    prefix = re.sub(r"\.(index|data-\d{5}-of-\d{5}|meta)$", "", str(path))
    try:
        reader = tf.train.load_checkpoint(prefix)
        return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    except (ValueError, tf.errors.OpError) as error:
        raise WeightsError(f"{path} is not a TensorFlow checkpoint that can be read: {error}") from error


def _read_archive(path: Path) -> dict[str, np.ndarray]:
    """Reads the only checkpoint of an archive; nothing else of the archive is written to disk."""
    with tempfile.TemporaryDirectory() as folder:
        size = 0
        try:
            with tarfile.open(path, "r:gz") as archive:
                for member in archive:
                    name = Path(member.name).name
                    size += member.size
                    if size > _LARGEST_ARCHIVE:
                        raise WeightsError(f"{path} unpacks to more than {_LARGEST_ARCHIVE:,} bytes")
                    stream = archive.extractfile(member) if member.isfile() else None
                    if stream is not None and re.fullmatch(r"[\w.-]+\.(index|data-\d{5}-of-\d{5})", name):
                        with (Path(folder) / name).open("wb") as copy:
                            shutil.copyfileobj(stream, copy)
        except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise WeightsError(f"{path} is not an archive: {error}. Delete it to download it again") from error
        return _read_checkpoint(Path(folder))
