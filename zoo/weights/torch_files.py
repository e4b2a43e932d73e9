"""Reads PyTorch's files without PyTorch, and without running anything that a file asks for.

A .pth is a pickle: a program for a small stack machine that may call any Python function. Here `pickletools` lists its
instructions, and only the few that weights need are executed; a tensor is a view of the file's bytes. Anything else is
refused, by name, as in `torch.load(weights_only=True)`.

Both forms are read: the zip archive of PyTorch 1.6 and later, and the older form, several pickles followed by the
values, in which torchvision's and DARTS' weights were published.
"""

import collections
import io
import math
import pickletools
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

REFUSED = (ValueError, KeyError, TypeError, IndexError, AttributeError, EOFError, zipfile.BadZipFile)
_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001  # of the older form
_LARGEST_PROGRAM = 2**26  # bytes; a network with 100,000 tensors needs a third
_TYPES = {
    "DoubleStorage": "<f8", "FloatStorage": "<f4", "HalfStorage": "<f2", "BFloat16Storage": "bf16",
    "LongStorage": "<i8", "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "i1", "ByteStorage": "u1",
    "BoolStorage": "?",
}  # fmt: skip


class _Storage(NamedTuple):
    """Values in the file: their key there, their type, and the range of them that is used."""

    key: str
    kind: str
    first: int
    end: int


class _Tensor(NamedTuple):
    """A view of a storage, as PyTorch describes it."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Global(NamedTuple):
    """A Python object that a file names; the name is compared, never imported."""

    module: str
    name: str


def read_torch(path: Path) -> Any:
    """Returns the content of a file, with arrays in place of tensors, and dicts in place of ordered dicts.

    Raises:
        REFUSED: the file has another format, is damaged, or holds other things than tensors, numbers, texts, tuples,
            lists and dicts; the text says which.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            file.seek(0)
            return _read_old_form(file, path.stat().st_size)
        with zipfile.ZipFile(file) as archive:
            return _read_archive(archive)


def _read_archive(archive: zipfile.ZipFile) -> Any:
    names = [name for name in archive.namelist() if name.endswith("data.pkl") and name.count("/") == 1]
    if len(names) != 1:
        raise ValueError("it is a zip archive without one data.pkl")
    folder = names[0].removesuffix("data.pkl")
    order = f"{folder}byteorder"
    if order in archive.namelist() and _read_stored(archive, order, 16) != b"little":
        raise ValueError("its values are big-endian")

    def values(key: str, size: int) -> bytes:
        found = _read_stored(archive, f"{folder}data/{key}", size)
        if len(found) != size:
            raise ValueError(f"storage {key} has {len(found)} bytes instead of {size}")
        return found

    return _materialize(_run_pickle(io.BytesIO(_read_stored(archive, names[0], _LARGEST_PROGRAM))), values)


def _read_stored(archive: zipfile.ZipFile, name: str, largest: int) -> bytes:
    """Reads an uncompressed entry: a compressed one could be a zip bomb, and PyTorch writes none."""
    entry = archive.getinfo(name)
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > largest:
        raise ValueError(f"its entry {name} is compressed, or has {entry.file_size:,} bytes, more than {largest:,}")
    return archive.read(entry)


def _read_old_form(file: BinaryIO, size: int) -> Any:
    try:
        magic, version, system = (_run_pickle(file) for _ in range(3))
    except REFUSED:
        magic = version = system = None
    if magic != _MAGIC or version != _VERSION:
        raise ValueError("it does not begin like a file of torch.save")
    if not isinstance(system, Mapping) or system.get("little_endian") is not True:
        raise ValueError("its values are big-endian")
    state = _run_pickle(file)
    kinds = {storage.key: storage.kind for storage in _find_storages(state)}
    places: dict[str, tuple[int, int]] = {}  # key -> start and end in the file
    for key in _run_pickle(file):
        size_field = file.read(8)
        if len(size_field) < 8:
            raise ValueError("it was cut short")
        count = int.from_bytes(size_field, "little")
        end = file.tell() + count * _itemsize(kinds[key])
        if end > size:
            raise ValueError("it was cut short")
        places[key] = (file.tell(), end)
        file.seek(end)

    def values(key: str, size: int) -> bytes:
        start, end = places[key]
        if size > end - start:
            raise ValueError(f"storage {key} has {end - start} bytes instead of {size}")
        file.seek(start)
        return file.read(size)

    return _materialize(state, values)


def _itemsize(kind: str) -> int:
    return 2 if _TYPES[kind] == "bf16" else np.dtype(_TYPES[kind]).itemsize


def _find_storages(state: Any) -> Iterator[_Storage]:
    waiting, seen = [state], set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, _Tensor):
            yield value.storage
        elif isinstance(value, (dict, list, tuple)) and id(value) not in seen:
            seen.add(id(value))
            waiting += value.values() if isinstance(value, dict) else value


def _materialize(state: Any, read: Callable[[str, int], bytes]) -> Any:
    """Returns `state` with arrays in place of tensors; `read(key, size)` reads the bytes of each storage once."""
    sizes: dict[str, int] = collections.defaultdict(int)
    for storage in _find_storages(state):
        sizes[storage.key] = max(sizes[storage.key], storage.end * _itemsize(storage.kind))
    loaded: dict[str, bytes] = {}
    made: dict[int, Any] = {}

    def convert(value: Any) -> Any:
        if isinstance(value, _Tensor):
            key = value.storage.key
            if key not in loaded:
                loaded[key] = read(key, sizes[key])
            return _make_array(value, loaded[key])
        if type(value) not in (dict, list, tuple):
            return value
        if id(value) not in made:  # once each: a small file can contain one tuple in many others
            if isinstance(value, dict):
                made[id(value)] = {name: convert(each) for name, each in value.items()}
            else:
                made[id(value)] = type(value)(convert(each) for each in value)
        return made[id(value)]

    try:
        return convert(state)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _make_array(tensor: _Tensor, values: bytes) -> np.ndarray:
    storage, shape, strides = tensor.storage, tensor.shape, tensor.strides
    flat = np.frombuffer(values, "<u2" if _TYPES[storage.kind] == "bf16" else _TYPES[storage.kind])
    flat = flat[storage.first : storage.end]
    numbers = [tensor.offset, *shape, *strides]
    if len(shape) != len(strides) or not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError(f"a tensor has the shape {shape} and the strides {strides}")
    last = tensor.offset + sum((side - 1) * stride for side, stride in zip(shape, strides, strict=True))
    if math.prod(shape) and (last >= len(flat) or math.prod(shape) > len(flat)):
        raise ValueError(f"a tensor of shape {shape} reaches beyond its {len(flat):,} values")
    if not math.prod(shape):
        found = np.zeros(shape, flat.dtype)
    else:
        steps = [stride * flat.itemsize for stride in strides]
        found = np.lib.stride_tricks.as_strided(flat[tensor.offset :], shape, steps, writeable=False)
    if _TYPES[storage.kind] == "bf16":  # the upper half of a float32
        return (found.astype(np.uint32) << 16).view(np.float32)
    return found


_MARK = object()
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = set(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 "
    "STRING BINSTRING SHORT_BINSTRING".split()
)
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_IGNORED = {"PROTO", "FRAME"}


def _run_pickle(program: BinaryIO) -> Any:
    """Runs one pickle, from the file's current position to the pickle's end, and returns its value.

    Raises:
        ValueError: the pickle asks for something that weights do not need.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    argument: Any
    for opcode, argument, _ in pickletools.genops(program):
        name = opcode.name
        if name == "STOP":
            return stack.pop()
        if name in _IGNORED:
            continue
        if name in _VALUES:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name == "MARK":
            stack.append(_MARK)
        elif name in ("TUPLE", "LIST", "DICT"):
            items = _pop_to_mark(stack)
            stack.append(dict(_pair_items(items)) if name == "DICT" else items if name == "LIST" else tuple(items))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            stack[-int(name[-1]) :] = [tuple(stack[-int(name[-1]) :])]
        elif name in ("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"):
            memo[len(memo) if name == "MEMOIZE" else argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(memo[argument])
        elif name == "GLOBAL":
            stack.append(_check_global(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            stack[-2:] = [_check_global(*stack[-2:])]
        elif name == "BINPERSID":
            stack.append(_make_storage(stack.pop()))
        elif name == "REDUCE":
            function, arguments = stack[-2:]
            stack[-2:] = [_call(function, arguments)]
        elif name == "BUILD":  # attributes: those of a state_dict, such as its version numbers, are not needed
            stack.pop()
            _expect(stack[-1], dict)
        elif name in ("SETITEM", "SETITEMS"):
            items = _pop_to_mark(stack) if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
            _expect(stack[-1], dict).update(_pair_items(items))
        elif name in ("APPEND", "APPENDS"):
            items = _pop_to_mark(stack) if name == "APPENDS" else [stack.pop()]
            _expect(stack[-1], list).extend(items)
        else:
            raise ValueError(f"its pickle has the instruction {name}, which weights do not need")
    raise EOFError("its pickle has no end")


def _pop_to_mark(stack: list[Any]) -> list[Any]:
    place = len(stack) - 1
    while stack[place] is not _MARK:
        place -= 1
        if place < 0:
            raise ValueError("its pickle lacks a mark")
    items = stack[place + 1 :]
    del stack[place:]
    return items


def _pair_items(items: list[Any]) -> Iterator[tuple[Any, Any]]:
    names = items[::2]
    if not all(isinstance(name, (str, int)) for name in names):
        raise ValueError("a dict has keys that are neither texts nor numbers")
    return zip(names, items[1::2], strict=True)


def _expect(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise ValueError(f"its pickle changes a {type(value).__name__} as if it were a {kind.__name__}")
    return value


def _check_global(module: Any, name: Any) -> _Global:
    found = _Global(module, name)
    if found not in _FUNCTIONS and not (module == "torch" and name in _TYPES):
        raise ValueError(f"its pickle names {module}.{name}, which weights do not need")
    return found


def _make_storage(identity: Any) -> _Storage:
    """Returns the storage that PyTorch names ("storage", type, key, device, count[, view])."""
    if type(identity) is not tuple or len(identity) not in (5, 6) or identity[0] != "storage":
        raise ValueError("its pickle names a persistent object that is not a storage")
    _, kind, key, _, count, *view = identity
    if not isinstance(kind, _Global) or kind.name not in _TYPES:
        raise ValueError(f"it has values of the type {kind!r}")
    first = 0
    if view and view[0] is not None:
        _, first, count = view[0]
    if type(key) is not str or "/" in key or any(type(number) is not int or number < 0 for number in (first, count)):
        raise ValueError(f"its storage {key!r} has {count!r} values")
    return _Storage(key, kind.name, first, first + count)


def _call(function: Any, arguments: Any) -> Any:
    """Calls one of the known functions."""
    if function not in _FUNCTIONS or type(arguments) is not tuple:
        raise ValueError(f"its pickle calls {function!r}, which weights do not need")
    return _FUNCTIONS[function](*arguments)


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    if not isinstance(storage, _Storage):
        raise ValueError("its pickle makes a tensor of something other than values")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _rebuild_parameter(data: Any, *_: Any) -> _Tensor:
    if not isinstance(data, _Tensor):
        raise ValueError("its pickle makes a parameter of something other than a tensor")
    return data


_FUNCTIONS: dict[_Global, Callable[..., Any]] = {
    _Global("collections", "OrderedDict"): dict,
    _Global("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    _Global("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    _Global("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    _Global("torch", "Size"): tuple,
}
