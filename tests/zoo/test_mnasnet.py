"""MnasNet: counts of the published networks, widths, and equality with timm and torchvision."""

import json

import pytest

import zoo
from tests import parity
from zoo.families import mnasnet
from zoo.weights import mobile_names

slow = pytest.mark.slow

# rows of the reference: (family, variant) -> how to build it
VARIANTS = [
    ("MnasNet", "MnasNet-A1", "mnasnet_a1", {}),
    ("MnasNet", "MnasNet-B1", "mnasnet_b1", {}),
    ("MnasNet", "MnasNet-small", "mnasnet_small", {}),
    ("MnasNet", "MnasNet-A1 dm=0.75 @224", "mnasnet_a1", {"width_multiplier": 0.75}),
    pytest.param("MnasNet", "MnasNet-A1 dm=1.4 @224", "mnasnet_a1", {"width_multiplier": 1.4}, marks=slow),
    pytest.param("MnasNet", "MnasNet-A1 dm=0.5 @224", "mnasnet_a1", {"width_multiplier": 0.5}, marks=slow),
    pytest.param("timm", "mnasnet_050", "mnasnet_b1", {"width_multiplier": 0.5}, marks=slow),
    pytest.param("timm", "mnasnet_075", "mnasnet_b1", {"preset": "imagenet_w075"}, marks=slow),
    pytest.param("timm", "mnasnet_140", "mnasnet_b1", {"preset": "imagenet_w140"}, marks=slow),
    pytest.param("timm", "semnasnet_140", "mnasnet_a1", {"preset": "imagenet_w140"}, marks=slow),
]


@pytest.mark.parametrize(
    ("family", "variant", "model", "options"), VARIANTS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_parameters_and_macs_are_those_of_independent_code(reference, family, variant, model, options):
    rows = json.loads((reference / "models" / "reference_models.json").read_text())
    computed = next(row["computed"] for row in rows if (row["family"], row["variant"]) == (family, variant))
    cost = zoo.cost.of(zoo.build(model, **options))
    assert cost.trainable_params == computed["trainable_params"]
    assert cost.macs == pytest.approx(computed["macs_conv_fc"], rel=1e-3)


@slow
def test_width_1_3_has_the_parameters_that_torchvision_states():
    assert zoo.cost.of(zoo.build("mnasnet_b1", width_multiplier=1.3)).trainable_params == 6_282_256


# README of the TPU code: multiply-adds in millions of MnasNet-A1 with depth multiplier 0.35, by resolution; it states
# 315.2 for the whole network at 224, which has 311.6, so it counts about 1 % more than convolutions and dense layers
@slow
@pytest.mark.parametrize(("side", "millions"), [(224, 63.2), (192, 46.8), (160, 32.9), (128, 21.6), (96, 12.7)])
def test_the_narrowest_network_has_the_published_macs_at_every_resolution(side, millions):
    model = zoo.build("mnasnet_a1", width_multiplier=0.35, input_shape=(side, side, 3))
    assert zoo.cost.of(model).macs / 1e6 == pytest.approx(millions, rel=0.04)


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("timm_mnasnet_small", "mnasnet_small"),
        ("timm_semnasnet_100", "mnasnet_a1"),
        ("torchvision_mnasnet1_0", "mnasnet_b1"),
        pytest.param("timm_mnasnet_100", "mnasnet_b1", marks=slow),
    ],
)
def test_logits_are_those_of_the_pytorch_code_with_the_same_weights(reference, name, model):
    fixture = parity.load(reference, name)
    network = zoo.build(model, classifier_activation=None)
    assert name.startswith(zoo.weights.from_torch(network, fixture.tensors).split()[0])
    assert parity.difference(fixture, network.predict(fixture.images, verbose=0)) < parity.LARGEST_DIFFERENCE


@pytest.mark.parametrize(
    ("filters", "rounded"),
    [(1, 8), (8, 8), (11.2, 16), (12, 16), (28, 32), (56, 56), (83, 80), (84, 88), (208, 208), (134.4, 136)],
)
def test_widths_are_multiples_of_8_and_lose_no_more_than_a_tenth(filters, rounded):
    assert mnasnet.round_filters(filters) == rounded


def test_the_multiplier_scales_all_widths_but_the_last_convolution():
    body = mnasnet.scaled(zoo.load("mnasnet_a1").body, 0.5)
    assert body.stem_filters == 16
    assert [row.filters for row in body.rows] == [8, 16, 24, 40, 56, 80, 160]  # of 16 24 40 80 112 160 320
    assert body.head_filters == 1280


@pytest.mark.parametrize("multiplier", [0, -1, 11, "wide", True, float("nan")])
def test_a_multiplier_out_of_range_is_an_error(multiplier):
    with pytest.raises(zoo.GenotypeError, match=r"expected a number from 0\.05 to 10"):
        zoo.build("mnasnet_small", width_multiplier=multiplier)


def test_the_auxiliary_head_that_it_has_not_is_an_error():
    with pytest.raises(ValueError, match="has no auxiliary head"):
        zoo.build("mnasnet_small", auxiliary=True)


def test_features_have_strides_2_to_32_at_any_size():
    model = zoo.build("mnasnet_small", features_only=True, input_shape=(64, 96, 3))
    assert [output.shape[1:] for output in model.outputs] == [
        (32, 48, 8), (16, 24, 16), (8, 12, 16), (4, 6, 32), (2, 3, 144)
    ]  # fmt: skip


def test_names_of_timm_and_torchvision():
    layers = "stem_conv block00_0_depthwise block02_1_expand_conv block02_1_project_bn head_bn predictions".split()
    timm = mobile_names.timm(layers, [])
    assert list(timm.values()) == (
        "conv_stem blocks.0.0.conv_dw blocks.2.1.conv_pw blocks.2.1.bn3 bn2 classifier".split()
    )
    torchvision = mobile_names.torchvision(layers, [])
    assert list(torchvision.values()) == (
        "layers.0 layers.3 layers.9.1.layers.0 layers.9.1.layers.7 layers.11 classifier.1".split()
    )
