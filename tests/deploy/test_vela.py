"""What vela says of a file, and what the deploying recipe makes of it."""

import importlib.util

import keras
import numpy as np
import pytest

from recipes import deploy
from zoo.deploy import boards, tflite, tflite_file
from zoo.deploy.tflite_file import MissingPackageError

layers = keras.layers
needs_vela = pytest.mark.skipif(importlib.util.find_spec("ethosu") is None, reason="ethos-u-vela is not installed")


def network(activation: str) -> keras.Model:
    image = keras.Input((28, 28, 1))
    x = layers.Conv2D(8, 3, strides=2, activation=activation, name="stem")(image)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(image, layers.Dense(10, activation="softmax", name="logits")(x), name="small")


def int8_file(activation: str) -> bytes:
    images = np.random.default_rng(0).uniform(0, 1, (8, 28, 28, 1)).astype(np.float32)
    return tflite.convert(network(activation), quantize="int8", calibration=images)


@needs_vela
def test_all_operators_of_a_plain_network_run_on_the_npu():
    compiled = boards.compile_file(int8_file("relu"))
    assert (compiled.npu_operators, compiled.cpu_operators) == (4, ())  # convolution, mean, dense, softmax
    assert tflite_file.kinds_of(tflite_file.parse(compiled.file)) == ["CUSTOM ethos-u"]
    assert 13 * 13 * 8 <= compiled.sram < 100_000  # at least the first feature map
    assert 80 + 72 <= compiled.flash < 10_000  # at least the weights
    assert compiled.milliseconds == pytest.approx(compiled.cycles / 500e6 * 1000)  # 500 MHz
    page = compiled.to_markdown()
    assert "| operators on the NPU | 4 of 4 |" in page
    assert "On the CPU" not in page


@needs_vela
def test_what_the_npu_cannot_run_is_named_with_its_layer():
    compiled = boards.compile_file(int8_file("elu"))
    assert [kind for kind, _ in compiled.cpu_operators] == ["DEQUANTIZE", "ELU", "QUANTIZE"]  # ELU is in float
    layer = compiled.cpu_operators[1][1]
    assert ("stem" in layer, compiled.npu_operators) == (True, 4)
    assert f"; ELU ({layer}); " in compiled.to_markdown()


@needs_vela
def test_recipe_shows_what_runs_on_the_npu_and_writes_the_file_for_it(tmp_path):
    network("relu").save(tmp_path / "small.keras")
    config = deploy.Config(
        model=str(tmp_path / "small.keras"), images=8, calibration=8, board="corstone300", folder=tmp_path / "out"
    )
    deploy.deploy(config)
    page = (config.folder / "deploy.md").read_text()
    assert "fits on Corstone-300" in page
    assert "| operators on the NPU | 4 of 4 |" in page
    compiled = tflite_file.parse(config.folder / "vela.tflite")
    assert tflite_file.kinds_of(compiled) == ["CUSTOM ethos-u"]


def test_missing_vela_is_said_before_the_work_with_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(boards.importlib.util, "find_spec", lambda name: None)
    config = deploy.Config(model="nowhere.keras", board="corstone300", folder=tmp_path / "out")
    with pytest.raises(MissingPackageError, match="pip install ethos-u-vela, or the project with its extra ethos-u"):
        deploy.deploy(config)


def test_vela_that_fails_is_quoted(monkeypatch):
    if importlib.util.find_spec("ethosu") is None:
        monkeypatch.setattr(boards, "require_vela", lambda: None)
    with pytest.raises(boards.VelaError, match=r"vela ended with code -?[1-9]"):
        boards.compile_file(b"\x1c\0\0\0TFL3 and no more")
    with pytest.raises(ValueError, match=r"accelerator='ethos-n' is unknown; expected one such as ethos-u55-128"):
        boards.compile_file(b"\x1c\0\0\0TFL3", "ethos-n")


def test_boards_of_the_recipe_are_those_of_the_table():
    choices = deploy.Config.__dataclass_fields__["board"].type
    assert all(name in str(choices) for name in boards.BOARDS)
