"""One tiny network a family goes through quantization-aware training to an int8 file whose arena is told."""

import dataclasses

import numpy as np
import pytest

import zoo
from zoo.deploy import measure, planner, quantize, tflite_file
from zoo.genotype import Chain

TINY = {"filters": 16, "repeats": 1, "cells": 3}


def tiny(name: str, preset: str):
    genotype = zoo.load(name)
    values = {key: TINY.get(key, value) for key, value in genotype.presets[preset].items()}
    genotype = dataclasses.replace(genotype, presets={"tiny": values})
    if isinstance(genotype.body, Chain):  # TFLM joins at most ten tensors, and layer 22 eleven
        genotype = dataclasses.replace(genotype, body=Chain(genotype.body.layers[:12]))
    options = {"width_multiplier": 0.35} if genotype.family == "mnasnet" else {}
    return zoo.build(genotype, classes=4, input_shape=(32, 32, 3), **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "preset"), [("darts", "cifar10"), ("nasnet_a", "cifar10"), ("amoebanet_a", None), ("pnasnet_5", None),
                         ("mnasnet_a1", None), ("mcunet_in0", None), ("enas_micro", None), ("enas_macro", None)]
)  # fmt: skip
def test_family_goes_through_quantization_aware_training_to_a_file(name, preset):
    model = tiny(name, preset or next(iter(zoo.load(name).presets)))
    images = np.random.default_rng(0).uniform(0, 1, (8, 32, 32, 3)).astype(np.float32)
    aware = quantize.prepare(model, images)
    quantize.fine_tune(aware, images, np.arange(8) % 4, batch_size=8)
    file = quantize.convert(aware)
    types = tflite_file.load_schema().TensorType
    tensors = tflite_file.parse(file).subgraphs[0].tensors
    assert {tensor.type for tensor in tensors} <= {types.INT8, types.INT32}
    plan, recorded = planner.plan(file), measure.arena(file)
    assert plan.head == recorded.head
    assert -0.02 <= plan.arena / recorded.total - 1 <= 0.05
    assert not plan.unsupported
