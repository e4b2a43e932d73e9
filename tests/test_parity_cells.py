"""Logits of networks of cells, equal to those of independent PyTorch code with the same weights."""

import pytest

import zoo
from tests import parity


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "model", "preset", "code"),
    [
        ("darts_cifar_DARTS_V2", "darts", "cifar10", "quark0/darts"),
        ("darts_imagenet_DARTS_V2", "darts", "imagenet", "quark0/darts"),
        ("timm_nasnetalarge", "nasnet_a", "large", "timm nasnetalarge"),
        ("timm_pnasnet5large", "pnasnet_5", "large", "timm pnasnet5large"),
    ],
)
def test_logits_are_those_of_the_pytorch_code_with_the_same_weights(reference, name, model, preset, code):
    fixture = parity.load(reference, name)
    auxiliary = any(tensor.startswith("auxiliary_head") for tensor in fixture.tensors)
    network = zoo.build(model, preset, classifier_activation=None, auxiliary=auxiliary)
    assert zoo.weights.from_torch(network, fixture.tensors) == code
    assert zoo.cost.of(network).trainable_params == fixture.parameters
    outputs = network(fixture.images, training=False)
    logits = outputs[0] if auxiliary else outputs
    assert parity.difference(fixture, logits.numpy()) < parity.LARGEST_DIFFERENCE
