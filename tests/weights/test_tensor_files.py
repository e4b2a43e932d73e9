"""Files of tensors, written by hand or by the libraries whose formats they are."""

import collections
import io
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from zoo.weights.importing import WeightsError
from zoo.weights.tensor_files import read_tensors


def safetensors(header: dict, values: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + values


@pytest.fixture
def write(tmp_path):
    def write_(content: bytes):
        path = tmp_path / "model.safetensors"
        path.write_bytes(content)
        return path

    return write_


def test_safetensors_are_read_by_name_type_and_shape(write):
    values = np.array([1, 2, 3], "<f4").tobytes() + np.array([[7], [8]], "<i8").tobytes()
    header = {
        "__metadata__": {"format": "pt"},
        "a.weight": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]},
        "b.count": {"dtype": "I64", "shape": [2, 1], "data_offsets": [12, 28]},
    }
    tensors = read_tensors(write(safetensors(header, values)), "safetensors")
    assert list(tensors) == ["a.weight", "b.count"]
    np.testing.assert_array_equal(tensors["a.weight"], np.array([1, 2, 3], np.float32))
    np.testing.assert_array_equal(tensors["b.count"], [[7], [8]])


def test_bfloat16_becomes_float32(write):
    # 1.0 is 0x3f80 and -2.5 is 0xc020 in the upper half of a float32
    header = {"a": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}
    tensors = read_tensors(write(safetensors(header, b"\x80\x3f\x20\xc0")), "safetensors")
    assert tensors["a"].dtype == np.float32
    np.testing.assert_array_equal(tensors["a"], [1.0, -2.5])


def test_a_tensor_without_dimensions_is_a_number(write):
    header = {"a": {"dtype": "F16", "shape": [], "data_offsets": [0, 2]}}
    assert read_tensors(write(safetensors(header, np.float16(3).tobytes())), "safetensors")["a"] == 3


GOOD = {"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00\x00",
        (10**6).to_bytes(8, "little") + b"{}",
        safetensors(GOOD, b"\x00" * 11),
        (3).to_bytes(8, "little") + b"{]}",
        safetensors({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 12]}}, b"\x00" * 12),
        safetensors({"a": {"dtype": "F31", "shape": [3], "data_offsets": [0, 12]}}, b"\x00" * 12),
        safetensors({"a": {"dtype": "F32", "shape": [3], "data_offsets": [-12, 0]}}, b"\x00" * 12),
        safetensors({"a": {"dtype": "F32", "shape": [-1, -3], "data_offsets": [0, 12]}}, b"\x00" * 12),
        safetensors({"a": 1}, b""),
        safetensors([], b""),  # pyright: ignore[reportArgumentType]
    ],
    ids="empty short no-header cut malformed shape type offsets negative record list".split(),
)
def test_damaged_safetensors_are_an_error(write, content):
    with pytest.raises(WeightsError, match="safetensors file"):
        read_tensors(write(content), "safetensors")


def test_a_pytorch_file_in_a_zip_archive_is_read_and_no_archive_of_more(tmp_path):
    inside = pth(tmp_path / "inside.pth", tensor_program(), {"0": np.arange(6, dtype="<f4").tobytes()})
    with zipfile.ZipFile(tmp_path / "one.pth.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(inside, "inside.pth")
    found = read_tensors(tmp_path / "one.pth.zip", "pth.zip")
    np.testing.assert_array_equal(found["a"], [[0, 1, 2], [3, 4, 5]])
    with zipfile.ZipFile(tmp_path / "two.pth.zip", "w") as archive:
        archive.write(inside, "inside.pth")
        archive.write(inside, "another.pth")
    (tmp_path / "cut.pth.zip").write_bytes((tmp_path / "one.pth.zip").read_bytes()[:-30])
    for name in ("two.pth.zip", "cut.pth.zip"):
        with pytest.raises(WeightsError, match=f"{name} is not a zip archive of one file.*Delete it"):
            read_tensors(tmp_path / name, "pth.zip")


def test_an_unknown_format_names_the_known_ones(tmp_path):
    with pytest.raises(WeightsError, match=r"expected one of safetensors, pth, pth\.zip, ckpt"):
        read_tensors(tmp_path / "weights.onnx", "onnx")


@pytest.mark.slow
def test_what_the_safetensors_library_writes_is_read_alike(tmp_path):
    library = pytest.importorskip("safetensors.numpy")
    rng = np.random.default_rng(0)
    tensors = {f"t{number}": rng.normal(size=(number, 3)).astype(np.float32) for number in range(5)}
    library.save_file(tensors, tmp_path / "model.safetensors")
    read = read_tensors(tmp_path / "model.safetensors", "safetensors")
    assert read.keys() == tensors.keys()
    for name, value in tensors.items():
        np.testing.assert_array_equal(read[name], value)


@pytest.mark.slow
@pytest.mark.parametrize("content", [{"a": 1}, [1, 2]], ids=["no tensors", "a list"])
def test_a_file_of_pytorch_without_tensors_is_an_error(tmp_path, content):
    torch = pytest.importorskip("torch")
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(WeightsError, match="holds no state_dict"):
        read_tensors(tmp_path / "model.pth", "pth")


class Calls:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def pth(path: Path, program: bytes, values: dict[str, bytes] | None = None, compression=zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", program)
        for key, value in (values or {}).items():
            archive.writestr(f"archive/data/{key}", value)
    return path


def tensor_program(key="0", count=6, offset=0, shape=(2, 3), strides=(3, 1), kind="FloatStorage", wrap="%s") -> bytes:
    """The instructions, written by hand, of {"a": a tensor}."""

    def number(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    def row(values) -> bytes:
        return b"(" + b"".join(map(number, values)) + b"t"

    storage = b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu") + number(count) + b"tQ"
    rebuilt = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(offset) + row(shape) + row(strides)
    rebuilt += b"\x89ccollections\nOrderedDict\n)RtR"
    return b"\x80\x02}" + text("a") + rebuilt + b"s."


def test_a_tensor_of_pytorch_is_a_view_of_its_values(tmp_path):
    values = {"0": np.arange(6, dtype="<f4").tobytes()}
    whole = read_tensors(pth(tmp_path / "whole.pth", tensor_program(), values), "pth")
    np.testing.assert_array_equal(whole["a"], [[0, 1, 2], [3, 4, 5]])
    turned = tensor_program(shape=(2, 2), strides=(1, 3), offset=1)
    np.testing.assert_array_equal(read_tensors(pth(tmp_path / "t.pth", turned, values), "pth")["a"], [[1, 4], [2, 5]])


@pytest.mark.parametrize(
    "change",
    [
        {"offset": 1},
        {"offset": -1},
        {"shape": (2, 4)},
        {"shape": (1000000, 1000000), "strides": (0, 0)},  # a view larger than its values would be copied into memory
        {"strides": (-3, 1)},
        {"shape": (2,)},
        {"count": 7},
        {"count": -6},
        {"key": "1"},
        {"key": "../data.pkl"},
        {"kind": "ComplexFloatStorage"},
    ],
    ids=str,
)
def test_a_tensor_that_reaches_beyond_its_values_is_refused(tmp_path, change):
    path = pth(tmp_path / "model.pth", tensor_program(**change), {"0": np.arange(6, dtype="<f4").tobytes()})
    with pytest.raises(WeightsError, match="not a file of PyTorch weights that can be read safely"):
        read_tensors(path, "pth")


@pytest.mark.parametrize(
    ("evil", "named"),
    [
        (Calls(os.system, "touch owned"), r"(posix|nt)\.system"),
        (Calls(eval, "open('owned', 'w')"), r"builtin(s|__)\.eval"),
        ({"a": [Calls(exec, "open('owned', 'w')")]}, r"builtin(s|__)\.exec"),
        (Calls(getattr, "", "join"), r"builtin(s|__)\.getattr"),
        (Calls(os.getenv, "HOME"), r"os\.getenv"),
        (collections.Counter("ab"), r"collections\.Counter"),
        (np.float64(1.0), "numpy"),
        (Path("owned"), "pathlib"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_file_that_calls_something_is_refused_by_its_name(tmp_path, monkeypatch, evil, named, protocol):
    monkeypatch.chdir(tmp_path)
    path = pth(tmp_path / "model.pth", pickle.dumps(evil, protocol))
    with pytest.raises(WeightsError, match=rf"its pickle names \S*{named}|instruction"):
        read_tensors(path, "pth")
    assert not (tmp_path / "owned").exists()


def test_small_files_that_would_grow_are_refused(tmp_path):
    zeros = np.zeros(6 * 10**6, "<f4").tobytes()
    bomb = pth(tmp_path / "bomb.pth", tensor_program(count=6 * 10**6), {"0": zeros}, zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < len(zeros) / 100
    with pytest.raises(WeightsError, match="is compressed"):
        read_tensors(bomb, "pth")
    doubled = b"\x80\x02K\x01q\x00" + b"".join(b"(h%ch%ctq%c" % (n - 1, n - 1, n) for n in range(1, 60)) + b"."
    with pytest.raises(WeightsError):  # a tuple of two tuples of two tuples: 2 to the 60 of them
        read_tensors(pth(tmp_path / "doubled.pth", doubled), "pth")


@pytest.mark.parametrize(
    "program",
    [b"", b".", b"\x80\x02", b"}s.", b"t.", b"\x80\x02](K\x01s.", b"cos\nsystem\n.", b"\x80\x02}X\xff\xff\xff\x7fa."],
    ids="empty stop cut-off no-items no-mark wrong-kind global long-text".split(),
)
def test_programs_that_are_none_are_an_error(tmp_path, program):
    with pytest.raises(WeightsError, match=r"PyTorch|state_dict"):
        read_tensors(pth(tmp_path / "model.pth", program), "pth")


@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x02K\x01.", b"PK\x03\x04" + bytes(30), b"MZ" * 100])
def test_other_files_are_no_weights(tmp_path, content):
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="not a file of PyTorch weights"):
        read_tensors(path, "pth")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])
def test_files_are_read_as_pytorch_reads_them(tmp_path, zipped):
    torch = pytest.importorskip("torch", reason="PyTorch, which makes the files, is not installed")
    base = torch.arange(40, dtype=torch.float32)
    state = collections.OrderedDict(
        {"module.a": base[5:25].view(4, 5), "b": base.view(5, 8).t(), "c": base[::3], "d": torch.tensor(2.5).double()},
        e=torch.nn.Parameter(torch.ones(2, 2).half()), f=torch.tensor([1.5, -2]).bfloat16(), g=torch.zeros(0, 3),
        h=torch.tensor([True, False]), i=torch.arange(3),
    )  # fmt: skip
    for saved in (
        state,
        {"epoch": 3, "state_dict": state, "optimizer": {"state": {0: torch.ones(2)}, "groups": [0.1]}},
    ):
        torch.save(saved, tmp_path / "model.pth", _use_new_zipfile_serialization=zipped)
        found = read_tensors(tmp_path / "model.pth", "pth")
        wanted = torch.load(tmp_path / "model.pth", weights_only=True)
        wanted = wanted.get("state_dict", wanted)
        assert list(found) == [name.removeprefix("module.") for name in wanted]
        for array, tensor in zip(found.values(), wanted.values(), strict=True):
            tensor = tensor.detach().float() if tensor.dtype == torch.bfloat16 else tensor.detach()
            np.testing.assert_array_equal(array, tensor.numpy())
    whole = (tmp_path / "model.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) - 8 if not zipped else len(whole) // 2])
    with pytest.raises(WeightsError):
        read_tensors(tmp_path / "cut.pth", "pth")
    buffer = io.BytesIO()
    torch.save(torch.nn.Linear(2, 2), buffer, _use_new_zipfile_serialization=zipped)  # a module is code
    (tmp_path / "module.pth").write_bytes(buffer.getvalue())
    with pytest.raises(WeightsError, match=r"names torch\.nn\.modules\.linear\.Linear"):
        read_tensors(tmp_path / "module.pth", "pth")
