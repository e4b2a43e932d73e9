"""One tiny network a family goes to int8 both ways; the planner tells its arena, and both runtimes compute alike."""

import dataclasses

import numpy as np
import pytest

import zoo
from tests.small_networks import randomised
from zoo.deploy import measure, planner, quantize, tflite, tflite_file

TINY = {"filters": 16, "repeats": 1, "cells": 3}
FAMILIES = pytest.mark.parametrize(
    ("name", "preset"), [("darts", "cifar10"), ("nasnet_a", "cifar10"), ("amoebanet_a", "cifar10_f32"),
                         ("pnasnet_5", "cifar10"), ("mnasnet_a1", "imagenet"), ("mcunet_in0", "imagenet"),
                         ("enas_micro", "cifar10"), ("enas_macro", "cifar10")]
)  # fmt: skip


def tiny(name: str, preset: str):
    genotype = zoo.load(name)
    values = {key: TINY.get(key, value) for key, value in genotype.presets[preset].items()}
    if name == "enas_macro":
        values["filters"] = 4
    genotype = dataclasses.replace(genotype, presets={"tiny": values})
    options = {"width_multiplier": 0.35} if genotype.family == "mnasnet" else {}
    return zoo.build(genotype, classes=4, input_shape=(32, 32, 3), classifier_activation=None, **options)


def images(count: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 1, (count, 32, 32, 3)).astype(np.float32)


def check_int8(file: bytes) -> None:
    """Whether all of it is int8, TFLM runs it, and takes as much memory as the planner has told."""
    types = tflite_file.load_schema().TensorType
    tensors = tflite_file.parse(file).subgraphs[0].tensors
    assert {tensor.type for tensor in tensors} <= {types.INT8, types.INT32}
    plan, recorded = planner.plan(file), measure.arena(file)
    assert plan.head == recorded.head
    assert -0.02 <= plan.arena / recorded.total - 1 <= 0.05
    assert not plan.unsupported
    assert not plan.too_wide


@pytest.mark.slow
@FAMILIES
def test_family_goes_through_quantization_aware_training_to_a_file(name, preset):
    model = tiny(name, preset)
    aware = quantize.prepare(model, images(8))
    quantize.fine_tune(aware, images(8), np.arange(8) % 4, batch_size=8)
    check_int8(quantize.convert(aware))


@pytest.mark.slow
@FAMILIES
def test_litert_and_tflm_compute_the_same_within_two_steps(name, preset):
    file = tflite.convert(randomised(tiny(name, preset)), quantize="int8", calibration=images(8))
    others = images(12)[8:]
    step = measure.interpret(file, threads=1).get_output_details()[0]["quantization"][0]
    # LiteRT's plain kernels: its fast ones are as far from them as they are from TFLM's
    difference = measure.predict(file, others, kernels="reference") - measure.predict_tflm(file, others)
    assert np.abs(difference).max() <= 2.01 * step


@pytest.mark.slow
def test_nasnet_mobile_at_full_size_goes_through_quantization_aware_training_to_a_file():
    model = zoo.build("nasnet_a", preset="mobile", classifier_activation=None)
    pictures = np.random.default_rng(0).uniform(0, 1, (2, 224, 224, 3)).astype(np.float32)
    aware = quantize.prepare(model, pictures)
    quantize.fine_tune(aware, pictures, np.array([1, 2]), batch_size=2)
    check_int8(quantize.convert(aware))
