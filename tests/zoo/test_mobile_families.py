"""MnasNet and MCUNet: counts of published networks, widths, names of their layers elsewhere, and a goldfish."""

import json

import numpy as np
import pytest
from PIL import Image

import zoo
from zoo.families import mnasnet
from zoo.weights import mobile_names
from zoo.weights.tensor_files import read_tensors

slow = pytest.mark.slow

# rows of the reference: (family, variant) -> how to build it
VARIANTS = [
    ("MnasNet", "MnasNet-small", "mnasnet_small", {}),
    ("MnasNet", "MnasNet-A1 dm=0.75 @224", "mnasnet_a1", {"width_multiplier": 0.75}),
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
    ("filters", "rounded"),
    [(1, 8), (8, 8), (11.2, 16), (12, 16), (28, 32), (56, 56), (83, 80), (84, 88), (208, 208), (134.4, 136)],
)
def test_widths_are_multiples_of_8_and_lose_no_more_than_a_tenth(filters, rounded):
    assert mnasnet.round_filters(filters) == rounded


def test_the_multiplier_scales_all_widths_but_the_last_convolution():
    body = mnasnet.scale_widths(zoo.load("mnasnet_a1").body, 0.5)
    assert body.stem_filters == 16
    assert [row.filters for row in body.rows] == [8, 16, 24, 40, 56, 80, 160]  # of 16 24 40 80 112 160 320
    assert body.head_filters == 1280


@pytest.mark.parametrize("multiplier", [0, -1, 11, "wide", True, float("nan")])
def test_a_multiplier_out_of_range_is_an_error(multiplier):
    with pytest.raises(zoo.GenotypeError, match=r"expected a number from 0\.05 to 10"):
        zoo.build("mnasnet_small", width_multiplier=multiplier)


@pytest.mark.parametrize("model", ["mnasnet_small", "mcunet_vww0"])
def test_the_auxiliary_head_that_it_has_not_is_an_error(model):
    with pytest.raises(ValueError, match="has no auxiliary head"):
        zoo.build(model, auxiliary=True)


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


@slow
def test_the_released_weights_know_the_goldfish_as_the_reference_does(reference):
    with Image.open(reference / "mcunet" / "goldfish.ppm") as photo:
        pixels = np.asarray(photo.resize((176, 176), Image.Resampling.BILINEAR), np.float32)
    network = zoo.build("mcunet_in3")
    zoo.weights.from_torch(network, read_tensors(reference / "mcunet" / "mcunet-320kb-1mb_imagenet.pth", "pth"))
    probabilities = network.predict(pixels[None] / 127.5 - 1, verbose=0)[0]
    top = np.argsort(-probabilities)[:5]
    assert top.tolist() == [712, 1, 720, 838, 925]
    # the reference does not say what rounded the resized pixels; Pillow differs by 0.0006 in the fourth
    np.testing.assert_allclose(probabilities[top], [0.287, 0.226, 0.182, 0.058, 0.049], atol=1e-3)


def test_activations_stop_at_six_and_the_baselines_have_their_own_epsilon():
    network = zoo.build("mcunet_vww0")
    assert network.get_layer("stem_relu6").max_value == 6
    assert network.get_layer("stem_bn").epsilon == 1e-5
    assert "head_conv" not in [layer.name for layer in network.layers]
    assert zoo.load("mcunet_mbv2_w035").presets["imagenet"]["epsilon"] == 1e-3


def test_names_of_blocks_skip_the_numbers_of_blocks_that_were_dropped():
    layers = "stem_bn block00_0_depthwise block01_0_expand_bn block01_1_project_conv predictions".split()
    tensors = ["blocks.0.x", "blocks.1.x", "blocks.1.y", "blocks.10.x", "classifier.linear.weight"]
    assert list(mobile_names.once_for_all(layers, tensors).values()) == [
        "first_conv.bn",
        "blocks.0.mobile_inverted_conv.depth_conv.conv",
        "blocks.1.mobile_inverted_conv.inverted_bottleneck.bn",
        "blocks.10.mobile_inverted_conv.point_linear.conv",
        "classifier.linear",
    ]


def test_another_number_of_blocks_is_an_error():
    with pytest.raises(ValueError, match="have 1 blocks and the network 2"):
        mobile_names.once_for_all(["block00_0_depthwise", "block00_1_depthwise"], ["blocks.0.x"])
