"""The rules by which the references fill independent implementations' tensors, and what those gave with them.

PyTorch's stands in README.md of the reference data, TensorFlow's in each fixture of parity_tf: each tensor comes from
its name alone.
"""

import json
import math
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest

LARGEST_DIFFERENCE = 1e-3  # of the logits' standard deviation


class Fixture(NamedTuple):
    """`tensors` in PyTorch's layouts, `images` channels last, and the first 16 `logits` of each image."""

    tensors: dict[str, np.ndarray]
    images: np.ndarray
    logits: np.ndarray
    deviation: np.ndarray
    parameters: int


def load(reference: Path, name: str) -> Fixture:
    """Reads the fixture `name` of the reference data."""
    record: dict[str, Any] = json.loads((reference / "parity" / f"{name}.json").read_text())
    images = np.random.default_rng(0).uniform(-1, 1, record["input_shape_nchw"]).astype(np.float32)
    return Fixture(
        {tensor: _filled(tensor, shape) for tensor, shape in record["tensors"]},
        np.ascontiguousarray(images.transpose(0, 2, 3, 1)),
        np.array(record["logits_first16"]),
        np.array(record["logits_std"])[:, None],
        record["trainable_parameters"],
    )


def difference(fixture: Fixture, outputs: np.ndarray) -> float:
    """Returns the largest difference from the reference's logits, in standard deviations of them."""
    return float(np.max(np.abs(outputs[:, :16] - fixture.logits) / fixture.deviation))


def _filled(name: str, shape: list[int]) -> np.ndarray:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    last = name.rsplit(".", 1)[-1]
    if last == "running_var":
        values = rng.uniform(0.5, 1.5, shape)
    elif last in ("running_mean", "bias"):
        values = rng.normal(0, 0.1, shape)
    elif len(shape) == 1:
        values = rng.uniform(0.5, 1.5, shape)
    else:
        values = rng.normal(0, np.sqrt(1 / np.prod(shape[1:])), shape)
    return values.astype(np.float32)


def load_tensorflow(reference: Path, name: str) -> dict[str, Any]:
    """Reads the fixture `name` of TensorFlow code."""
    path = reference / "parity_tf" / f"{name}.json"
    if not path.is_file():
        pytest.skip(f"no fixture of TensorFlow code: {path} is not there")
    return json.loads(path.read_text())


def fill_as_tensorflow(model: keras.Model, record: dict[str, Any]) -> None:
    """Gives each variable of `model` its tensor, or its part of one, of a TensorFlow fixture; all must be used."""
    shapes, used = dict(record["tensors"]), set()
    for layer in model.layers:
        values = []
        for variable in layer.weights:
            tensor, *part = record["ours"][f"{layer.name}/{variable.name}"]
            used.add(tensor)
            values.append(make_tensorflow_value(tensor, shapes[tensor])[slice(*part) if part else slice(None)])
        if values:
            layer.set_weights(values)
    assert used == set(shapes)


def tensorflow_difference(record: dict[str, Any], head: str, outputs: Any) -> float:
    """Returns the largest difference from the logits of the fixture's "logits" or "aux", in standard deviations."""
    outputs, expected = np.asarray(outputs, np.float64), np.array(record[f"{head}_first16"])
    largest = max(
        np.abs(outputs[:, : expected.shape[1]] - expected).max(),
        np.abs(outputs.mean(axis=1) - record[f"{head}_mean"]).max(),
    )
    return float(largest / max(record[f"{head}_std"]))


def make_tensorflow_value(name: str, shape: list[int]) -> np.ndarray:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    last = name.rsplit("/", 1)[-1]
    if last in ("moving_variance", "gamma", "scale"):
        values = rng.uniform(0.5, 1.5, shape)
    elif last in ("moving_mean", "beta", "biases", "bias", "offset"):
        values = rng.normal(0, 0.1, shape)
    else:
        fan = math.prod(shape[:2] if "depth" in last else shape[:-1])
        values = rng.normal(0, math.sqrt(1 / max(1, fan)), shape)
    return values.astype(np.float32)
