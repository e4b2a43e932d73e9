"""MCUNet: counts of the released networks, equality with the released code, and a goldfish."""

import json

import numpy as np
import pytest
from PIL import Image

import zoo
from tests import parity
from zoo.weights import mobile_names
from zoo.weights.tensor_files import read_tensors

slow = pytest.mark.slow

VARIANTS = [
    ("mcunet-in0", "mcunet_in0"),
    ("mcunet-in3", "mcunet_in3"),
    ("mcunet-vww1", "mcunet_vww1"),
    ("mbv2-w0.35", "mcunet_mbv2_w035"),
    pytest.param("mcunet-in1", "mcunet_in1", marks=slow),
    pytest.param("mcunet-in2", "mcunet_in2", marks=slow),
    pytest.param("mcunet-in4", "mcunet_in4", marks=slow),
    pytest.param("mcunet-vww0", "mcunet_vww0", marks=slow),
    pytest.param("mcunet-vww2", "mcunet_vww2", marks=slow),
    pytest.param("proxyless-w0.3", "mcunet_proxyless_w03", marks=slow),
    pytest.param("mcunet-256kb-1mb-int4_imagenet", "mcunet_256kb_1mb_int4", marks=slow),
    pytest.param("mcunet-320kb-1mb-int4_imagenet", "mcunet_320kb_1mb_int4", marks=slow),
    pytest.param("mcunet-512kb-2mb-int4_imagenet", "mcunet_512kb_2mb_int4", marks=slow),
    pytest.param("mbv2-w0.3-r80_imagenet", "mcunet_mbv2_w03_r80", marks=slow),
    pytest.param("proxyless-w0.25-r112_imagenet", "mcunet_proxyless_w025_r112", marks=slow),
]


@pytest.mark.parametrize(("variant", "model"), VARIANTS)
def test_parameters_and_macs_are_those_of_the_released_configuration(reference, variant, model):
    rows = json.loads((reference / "models" / "reference_models.json").read_text())
    computed = next(row["computed"] for row in rows if row["variant"] == variant)
    cost = zoo.cost.of(zoo.build(model))
    assert cost.trainable_params == computed["trainable_params"]
    assert cost.macs == pytest.approx(computed["macs_conv_fc"], rel=1e-3)


@pytest.mark.parametrize(
    ("name", "model"), [("mcunet_mcunet-10fps", "mcunet_in0"), ("mcunet_mcunet-320kb-1mb", "mcunet_in3")]
)
def test_logits_are_those_of_the_released_code_with_the_same_weights(reference, name, model):
    fixture = parity.load(reference, name)
    network = zoo.build(model, classifier_activation=None)
    assert zoo.weights.from_torch(network, fixture.tensors) == "mit-han-lab/mcunet"
    assert parity.difference(fixture, network.predict(fixture.images, verbose=0)) < parity.LARGEST_DIFFERENCE


@slow
def test_the_released_weights_know_the_goldfish_as_the_reference_does(reference):
    pytest.importorskip("torch")
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


def test_the_auxiliary_head_that_it_has_not_is_an_error():
    with pytest.raises(ValueError, match="has no auxiliary head"):
        zoo.build("mcunet_vww0", auxiliary=True)


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
