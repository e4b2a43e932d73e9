"""One small network of each family on the JAX and PyTorch backends of Keras: the outputs are those of TensorFlow."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

PROJECT = Path(__file__).resolve().parents[2]
MODELS = ["nasnet_a", "pnasnet_5", "amoebanet_b", "mnasnet_a1", "enas_micro", "enas_macro", "darts", "mcunet_in0"]
PROGRAM = """
import dataclasses, json, sys, zlib
import numpy as np
import zoo

SMALL = {"repeats": 1, "cells": 2, "filters": 16, "stem_filters": 16}
found = {}
for name in sys.argv[1:]:
    genotype = zoo.load(name)
    preset = {key: SMALL.get(key, value) for key, value in next(iter(genotype.presets.values())).items()}
    genotype = dataclasses.replace(genotype, presets={"small": preset})
    options = {"input_shape": (32, 32, 3), "classifier_activation": None, "classes": 5}
    model = zoo.build(genotype, **options)
    for weight in model.weights:  # by its name: the order of the layers goes by the backend, for one pads otherwise
        rng = np.random.default_rng(zlib.crc32(weight.path.encode()))
        positive = weight.path.endswith(("gamma", "moving_variance"))
        scale = np.sqrt(2 / max(1, np.prod(weight.shape[:-1])))
        weight.assign(rng.uniform(0.5, 1.5, weight.shape) if positive else rng.normal(0, scale, weight.shape))
    image = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")
    found[name] = model.predict(image, verbose=0).tolist()
print(json.dumps(found))
"""


def outputs(backend: str) -> dict:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *MODELS],
        cwd=PROJECT,
        env={**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def by_tensorflow():
    return outputs("tensorflow")


def if_installed(backend: str):
    missing = importlib.util.find_spec(backend) is None
    return pytest.param(backend, marks=pytest.mark.skipif(missing, reason=f"{backend} is not installed"))


@pytest.mark.slow
@pytest.mark.parametrize("backend", [if_installed("jax"), if_installed("torch")])
def test_a_network_of_each_family_gives_the_same_on(backend, by_tensorflow):
    found = outputs(backend)
    for name in MODELS:
        expected = np.array(by_tensorflow[name])
        np.testing.assert_allclose(found[name], expected, atol=1e-3 * expected.std(), err_msg=name)
