"""The rule by which the reference fills an independent implementation's tensors, and what it gave with them.

It stands in README.md of the reference data: each tensor comes from its name alone.
"""

import json
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

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
