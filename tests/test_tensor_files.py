"""Files of tensors, written by hand or by the libraries whose formats they are."""

import json

import numpy as np
import pytest

from zoo.weights.tensor_files import read_tensors
from zoo.weights.torch_import import WeightsError


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


def test_an_unknown_format_names_the_known_ones(tmp_path):
    with pytest.raises(WeightsError, match="expected one of safetensors, pth"):
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
@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "in a checkpoint of DataParallel"])
def test_a_state_dict_of_pytorch_is_read(tmp_path, wrapped):
    torch = pytest.importorskip("torch")
    state = {"conv.weight": torch.arange(6.0).reshape(2, 3), "bn.num_batches_tracked": torch.tensor(4)}
    saved = {"epoch": 3, "state_dict": {f"module.{name}": value for name, value in state.items()}} if wrapped else state
    torch.save(saved, tmp_path / "model.pth")
    read = read_tensors(tmp_path / "model.pth", "pth")
    assert list(read) == list(state)
    np.testing.assert_array_equal(read["conv.weight"], [[0, 1, 2], [3, 4, 5]])


@pytest.mark.slow
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path):
    torch = pytest.importorskip("torch")

    class Harmful:
        def __reduce__(self):
            return (open, (str(tmp_path / "it_ran"), "w"))

    torch.save({"state_dict": Harmful()}, tmp_path / "model.pth")
    with pytest.raises(WeightsError, match="no file of PyTorch weights"):
        read_tensors(tmp_path / "model.pth", "pth")
    assert not (tmp_path / "it_ran").exists()


@pytest.mark.slow
@pytest.mark.parametrize("content", [{"a": 1}, [1, 2]], ids=["no tensors", "a list"])
def test_a_file_of_pytorch_without_tensors_is_an_error(tmp_path, content):
    torch = pytest.importorskip("torch")
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(WeightsError, match="holds no state_dict"):
        read_tensors(tmp_path / "model.pth", "pth")


def test_without_pytorch_a_pth_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(WeightsError, match=r"keras-searched-zoo\[convert\]"):
        read_tensors(tmp_path / "model.pth", "pth")
