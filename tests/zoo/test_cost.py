"""Predicted cost, against sums that fit on paper."""

import keras
import pytest

import zoo
from zoo.graph import GraphError

layers = keras.layers


def model_of(*steps, shape=(8, 8, 3)) -> keras.Model:
    """A chain of layers."""
    x = image = keras.Input(shape)
    for step in steps:
        x = step(x)
    return keras.Model(image, x)


def test_a_convolution_a_pool_and_a_dense_layer():
    cost = zoo.cost.of(
        model_of(layers.Conv2D(4, 3, padding="same"), layers.MaxPooling2D(), layers.Flatten(), layers.Dense(10))
    )
    assert cost.params == cost.trainable_params == (3 * 3 * 3 * 4 + 4) + (4 * 4 * 4 * 10 + 10)
    assert cost.macs == 8 * 8 * 4 * 27 + 64 * 10
    # image 192 with the convolution's 256; then 256 with the pool's 64; the dense layer reads the same 64
    assert cost.peak_memory == 192 + 256
    assert cost.flash == (27 * 4 + 4 * 4) + (64 * 10 + 4 * 10)


def test_a_depthwise_convolution_reads_one_channel_a_filter():
    cost = zoo.cost.of(model_of(layers.DepthwiseConv2D(3, 2, padding="same", depth_multiplier=2, use_bias=False)))
    assert cost.params == 9 * 3 * 2
    assert cost.macs == 4 * 4 * 9 * 6
    assert cost.peak_memory == 192 + 4 * 4 * 6
    assert cost.flash == 54 + 4 * 6


def test_a_separable_convolution_is_a_depthwise_and_a_1x1_one():
    cost = zoo.cost.of(model_of(layers.SeparableConv2D(5, 3, padding="same", use_bias=False)))
    assert cost.params == 27 + 15
    assert cost.macs == 64 * (27 + 15)
    assert cost.flash == 27 + 15 + 4 * 5


def test_a_dilated_and_a_grouped_convolution():
    assert zoo.cost.of(model_of(layers.Conv2D(4, 3, dilation_rate=2, use_bias=False))).macs == 4 * 4 * 4 * 27
    grouped = zoo.cost.of(model_of(layers.Conv2D(6, 1, groups=3, use_bias=False)))
    assert (grouped.params, grouped.macs) == (6, 64 * 6)


def test_a_transposed_convolution_applies_its_kernel_at_each_position_of_its_input():
    cost = zoo.cost.of(model_of(layers.Conv2DTranspose(5, 2, strides=2)))
    assert cost.macs == 64 * (2 * 2 * 3 * 5)
    assert cost.flash == 2 * 2 * 3 * 5 + 4 * 5


def test_normalisation_is_folded_and_relu_fused_without_memory_of_their_own():
    chain = (layers.Conv2D(4, 1, use_bias=False), layers.BatchNormalization(), layers.ReLU(), layers.Dropout(0.5))
    cost = zoo.cost.of(model_of(*chain))
    assert cost.params == 12 + 16
    assert cost.trainable_params == 12 + 8
    assert cost.macs == 64 * 12
    assert cost.peak_memory == 192 + 256
    assert cost.flash == 12 + 4 * 4


def test_a_relu_that_cannot_be_fused_takes_memory():
    # behind what is no convolution; and a swish is an operator of its own
    assert zoo.cost.of(model_of(layers.UpSampling2D(2), layers.ReLU())).peak_memory == 768 + 768
    assert zoo.cost.of(model_of(layers.Conv2D(6, 1), layers.Activation("swish"))).peak_memory == 384 + 384
    assert zoo.cost.of(model_of(layers.Conv2D(6, 1), layers.Activation("relu6"))).peak_memory == 192 + 384


def test_a_residual_keeps_its_input_alive():
    image = keras.Input((8, 8, 4))
    x = layers.Conv2D(8, 1, name="expand")(image)
    x = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = layers.Conv2D(4, 1, name="project")(x)
    cost = zoo.cost.of(keras.Model(image, layers.Add()([image, x])))
    assert cost.peak_memory == 256 + 512 + 512  # the image, waiting for the sum, and both sides of `depthwise`


def test_a_concatenation_holds_its_inputs_and_its_output():
    image = keras.Input((8, 8, 1))
    parts = [layers.MaxPooling2D(2)(image), layers.AveragePooling2D(2)(image)]
    # 16 + 16 + 32: less than the image with both pools
    assert zoo.cost.of(keras.Model(image, layers.Concatenate()(parts))).peak_memory == 64 + 16 + 16


def test_a_layer_that_is_called_twice_is_stored_once_and_computed_twice():
    conv, image = layers.Conv2D(3, 1, use_bias=False), keras.Input((8, 8, 3))
    cost = zoo.cost.of(keras.Model(image, conv(conv(image))))
    assert (cost.params, cost.macs, cost.flash) == (9, 2 * 64 * 9, 9 + 12)


def test_an_open_size_needs_one_and_then_costs_what_the_known_one_does():
    steps = [layers.Conv2D(4, 3, 2, padding="same"), layers.GlobalAveragePooling2D(), layers.Dense(2)]
    unknown = model_of(*steps, shape=(None, None, 3))
    with pytest.raises(ValueError, match=r"takes images of shape \(None, None, 3\); give input_shape=\(height"):
        zoo.cost.of(unknown)
    assert zoo.cost.of(unknown, input_shape=(9, 7, 3)) == zoo.cost.of(model_of(*steps, shape=(9, 7, 3)))


def test_a_layer_with_several_outputs_holds_those_that_are_read():
    sequence = keras.Input((8, 4))
    outputs, state, _ = layers.LSTM(3, return_sequences=True, return_state=True)(sequence)
    assert zoo.cost.of(keras.Model(sequence, [outputs, state])).peak_memory == 8 * 4 + 8 * 3 + 3


def test_a_model_without_a_graph_is_refused():
    with pytest.raises(GraphError, match="has no graph of layers"):
        zoo.cost.of(keras.Sequential([layers.Dense(1)]))


def test_the_size_of_the_image_changes_macs_and_memory_alone():
    small, large = (zoo.cost.of(zoo.build("mcunet_vww0", input_shape=(side, side, 3))) for side in (32, 64))
    assert (small.params, small.flash) == (large.params, large.flash)
    assert 3 < large.peak_memory / small.peak_memory < 4  # a padded copy has a border, which does not grow as fast
    head = zoo.load("mcunet_vww0").body.rows[-1].filters * 2  # the classifier's, which no size changes
    assert large.macs - head == 4 * (small.macs - head)
