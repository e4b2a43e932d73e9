"""Logits equal to those of the code that published the networks, or of independent code, with the same weights."""

import dataclasses

import numpy as np
import pytest

import zoo
from tests import parity
from zoo.families import nasnet

slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "model", "preset", "code"),
    [
        pytest.param("darts_cifar_DARTS_V2", "darts", "cifar10", "quark0/darts", marks=slow),
        pytest.param("darts_imagenet_DARTS_V2", "darts", "imagenet", "quark0/darts", marks=slow),
        pytest.param("timm_nasnetalarge", "nasnet_a", "large", "timm nasnetalarge", marks=slow),
        pytest.param("timm_pnasnet5large", "pnasnet_5", "large", "timm pnasnet5large", marks=slow),
        pytest.param("timm_mnasnet_100", "mnasnet_b1", "imagenet", "timm mnasnet", marks=slow),
        ("timm_mnasnet_small", "mnasnet_small", "imagenet", "timm mnasnet"),
        ("timm_semnasnet_100", "mnasnet_a1", "imagenet", "timm mnasnet"),
        ("torchvision_mnasnet1_0", "mnasnet_b1", "imagenet", "torchvision mnasnet"),
        ("mcunet_mcunet-10fps", "mcunet_in0", "imagenet", "mit-han-lab/mcunet"),
        ("mcunet_mcunet-320kb-1mb", "mcunet_in3", "imagenet", "mit-han-lab/mcunet"),
    ],
)
def test_logits_are_those_of_the_pytorch_code_with_the_same_weights(reference, name, model, preset, code, monkeypatch):
    fixture = parity.load(reference, name)
    if name == "timm_nasnetalarge":
        monkeypatch.setattr(nasnet, "STYLE", dataclasses.replace(nasnet.STYLE, border_average="zeros"))
    auxiliary = any(tensor.startswith("auxiliary_head") for tensor in fixture.tensors)
    network = zoo.build(model, preset, classifier_activation=None, auxiliary=auxiliary)
    assert zoo.weights.from_torch(network, fixture.tensors) == code
    assert zoo.cost.of(network).trainable_params == fixture.parameters
    outputs = network(fixture.images, training=False)
    logits = outputs[0] if auxiliary else outputs
    assert parity.difference(fixture, logits.numpy()) < parity.LARGEST_DIFFERENCE


@pytest.mark.parametrize(
    ("name", "model", "preset"),
    [
        pytest.param("enas_micro_32", "enas_micro", "cifar10", marks=slow),
        pytest.param("slim_nasnet_cifar10_32", "nasnet_a", "cifar10", marks=slow),
        pytest.param("slim_nasnet_mobile_96", "nasnet_a", "mobile", marks=slow),
        pytest.param("slim_pnasnet_mobile_96", "pnasnet_5", "mobile", marks=slow),
        ("tpu_amoeba_b_6_32_96", "amoebanet_b", "fixture"),
        ("tpu_mnasnet_b1_96", "mnasnet_b1", "imagenet_tpu"),
        ("tpu_mnasnet_small_97", "mnasnet_small_tpu", "imagenet"),
    ],
)
def test_logits_are_those_of_the_tensorflow_code_that_published_the_network(reference, name, model, preset):
    fixture = parity.load_tensorflow(reference, name)
    genotype = zoo.load(model)
    if preset == "fixture":
        genotype = dataclasses.replace(genotype, presets={preset: fixture["zoo"]["preset"]})
    heads = [head for head in ("logits", "aux") if f"{head}_std" in fixture]
    shape = fixture["input_shape_nhwc"]
    network = zoo.build(
        genotype, preset, input_shape=tuple(shape[1:]), auxiliary="aux" in heads, classifier_activation=None,
        classes=dict(fixture["tensors"])[fixture["ours"]["predictions/kernel"][0]][-1],
    )  # fmt: skip
    parity.fill_as_tensorflow(network, fixture)
    cost = zoo.cost.of(network)
    assert (cost.trainable_params, cost.macs) == (fixture["trainable_parameters"], fixture["macs"])
    outputs = network(np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32), training=False)
    for head, logits in zip(heads, outputs if len(heads) > 1 else [outputs], strict=True):
        assert parity.tensorflow_difference(fixture, head, logits) < 1e-4
