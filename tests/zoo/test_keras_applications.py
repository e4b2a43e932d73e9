"""NASNet beside keras.applications: the same size, and with its weights the same outputs."""

from typing import Any

import keras
import numpy as np
import pytest
from keras.src.applications import nasnet

import zoo
from tests.small_networks import images_for, outputs_of, randomised, shrunk
from zoo import blocks
from zoo.weights import WeightsError

POOL = blocks.pool


def pool_of_keras_applications(x, kind, size, strides, style, name):
    """What its reduction cells have: means and maxima see zeros around the image."""
    if strides == 1:
        return POOL(x, kind, size, strides, style, name)
    # as TensorFlow's "same" pads: an odd side at both ends, an even one at the last
    x = keras.layers.ZeroPadding2D([(side % 2, 1) for side in x.shape[1:3]], name=f"{name}_pad")(x)
    layer = keras.layers.AveragePooling2D if kind == "avg" else keras.layers.MaxPooling2D
    return layer(size, strides, name=name)(x)


def small_reference(side: int, *, blocks: int = 1, skip_reduction: bool = False, **options: Any) -> keras.Model:
    """A NASNet of keras.applications, narrow and short."""
    return randomised(
        nasnet.NASNet(
            (side, side, 3), penultimate_filters=24 * 8, num_blocks=blocks, stem_block_filters=6,
            skip_reduction=skip_reduction, filter_multiplier=2, weights=None, classes=4, default_size=side, **options,
        )
    )  # fmt: skip


def small_network(side: int, *, blocks: int = 1, skip_reduction: bool = False, **options: Any) -> keras.Model:
    genotype = shrunk("nasnet_a", "mobile", repeats=blocks, filters=8, stem_filters=6, skip_reduction=skip_reduction)
    return zoo.build(genotype, input_shape=(side, side, 3), **{"classes": 4, **options})


def largest_difference(ours: keras.Model, theirs: keras.Model) -> float:
    """Of the outputs, in standard deviations of them."""
    images = images_for(theirs)
    expected = outputs_of(theirs, images)
    return float(np.abs(outputs_of(ours, images) - expected).max() / np.std(expected))


@pytest.mark.parametrize(
    ("side", "size"),
    [
        (33, {}),
        pytest.param(64, {}, marks=pytest.mark.slow),
        pytest.param(45, {"blocks": 2}, marks=pytest.mark.slow),
        pytest.param(50, {"blocks": 2, "skip_reduction": True}, marks=pytest.mark.slow),
    ],
)
def test_a_small_network_computes_the_same_once_the_border_is_treated_alike(side, size, monkeypatch):
    reference = small_reference(side, classifier_activation=None, **size)
    monkeypatch.setattr(blocks, "pool", pool_of_keras_applications)
    network = small_network(side, classifier_activation=None, **size)
    zoo.weights.from_keras_applications(network, reference)
    assert largest_difference(network, reference) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("side", [224, 97, 64])
def test_mobile_computes_the_same_but_for_the_border_of_pools(side, monkeypatch):
    reference = randomised(keras.applications.NASNetMobile((side, side, 3), weights=None, classes=7))
    plain = zoo.build("nasnet_a", "mobile", input_shape=(side, side, 3), classes=7)
    zoo.weights.from_keras_applications(plain, reference)
    monkeypatch.setattr(blocks, "pool", pool_of_keras_applications)
    bordered = zoo.build("nasnet_a", "mobile", input_shape=(side, side, 3), classes=7)
    zoo.weights.from_keras_applications(bordered, reference)
    images = images_for(reference)
    expected = outputs_of(reference, images)
    assert np.abs(outputs_of(bordered, images) - expected).max() < 1e-4
    assert largest_difference(bordered, reference) < 1e-4
    assert largest_difference(plain, reference) > 1e-3  # so the comparison sees a border


@pytest.mark.slow
def test_features_take_the_weights_of_a_network_without_top():
    reference = small_reference(32, include_top=False, pooling="avg")
    network = small_network(32, include_top=False, pooling="avg")
    zoo.weights.from_keras_applications(network, reference)
    theirs = {"cell00_input0_path2_bn": "adjust_bn_0", "cell02_node3_edge0_pw2": "separable_conv_2_normal_left2_2"}
    second_half = reference.get_layer(theirs["cell00_input0_path2_bn"]).moving_mean[-4:]
    np.testing.assert_array_equal(network.get_layer("cell00_input0_path2_bn").moving_mean, second_half)
    np.testing.assert_array_equal(
        network.get_layer("cell02_node3_edge0_pw2").kernel,
        reference.get_layer(theirs["cell02_node3_edge0_pw2"]).pointwise_kernel,
    )


@pytest.mark.parametrize(
    ("preset", "count"), [("mobile", 5_326_716), pytest.param("large", 88_949_818, marks=pytest.mark.slow)]
)
def test_the_number_of_parameters_is_that_of_keras_applications(preset, count):
    with keras.StatelessScope():  # makes no values
        assert zoo.build("nasnet_a", preset).count_params() == count


@pytest.mark.slow
def test_keras_applications_really_has_these_counts():
    with keras.StatelessScope():
        assert keras.applications.NASNetMobile(weights=None).count_params() == 5_326_716
        assert keras.applications.NASNetLarge(weights=None).count_params() == 88_949_818


def test_what_is_no_nasnet_is_refused():
    image = keras.Input((32, 32, 3))
    other = keras.Model(image, keras.layers.Flatten()(image), name="flat")
    with pytest.raises(WeightsError, match=r"are not known; expected those of keras\.applications' NASNetM"):
        zoo.weights.from_keras_applications(other, other)


@pytest.mark.slow
def test_other_classes_and_an_auxiliary_head_are_refused_and_nothing_is_changed():
    reference, network = small_reference(32), small_network(32, classes=9)
    before = [keras.ops.convert_to_numpy(weight).copy() for weight in network.weights]
    with pytest.raises(WeightsError, match=r"predictions\.weight has the shape \(192, 4\).*\(192, 9\).* Build the"):
        zoo.weights.from_keras_applications(network, reference)
    for weight, value in zip(network.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)
    with pytest.raises(WeightsError, match=r"keras\.applications.*no place for its layer 'aux_narrow_conv'"):
        zoo.weights.from_keras_applications(small_network(160, auxiliary=True), reference)


@pytest.mark.slow
def test_another_number_of_cells_or_another_architecture_is_refused():
    reference = small_reference(32)
    with pytest.raises(WeightsError, match=r"tensors are missing: .*Build the model that was trained"):
        zoo.weights.from_keras_applications(small_network(32, blocks=2), reference)
    amoebanet = zoo.build(
        shrunk("amoebanet_a", "mobile", repeats=1, filters=16, stem_filters=6), classes=4, input_shape=(32, 32, 3)
    )
    with pytest.raises(WeightsError, match=r"no place for its layer|tensors are"):
        zoo.weights.from_keras_applications(amoebanet, reference)
