"""Mobile blocks, with layers, counts and values that can be computed by hand."""

import keras
import numpy as np
import pytest

from zoo import mobile_blocks
from zoo.blocks import Style
from zoo.deploy import int8_graph, tflite
from zoo.genotype import Block, Blocks

TORCH = Style(padding="torch")


def network(row: Block, shape=(8, 8, 4), strides=1, style=TORCH, **options) -> keras.Model:
    image = keras.Input(shape)
    return keras.Model(image, mobile_blocks.block(image, row, strides, style, "block00_0", **options))


def names(model: keras.Model) -> list[str]:
    return [layer.name.removeprefix("block00_0_") for layer in model.layers[1:]]


def trainable(model: keras.Model) -> int:
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


def test_an_inverted_residual_is_expansion_depthwise_projection_and_residual():
    model = network(Block("mb_conv", 3, 4, expansion=3))
    assert names(model) == (
        "expand_conv expand_bn expand_relu depthwise depthwise_bn depthwise_relu project_conv project_bn add".split()
    )
    # 4 x 12 + 2 x 12, 9 x 12 + 2 x 12, 12 x 4 + 2 x 4
    assert trainable(model) == 48 + 24 + 108 + 24 + 48 + 8


def test_expansion_1_and_separable_convolutions_have_no_expansion():
    plain = network(Block("mb_conv", 5, 6))
    assert names(plain)[0] == "depthwise"
    assert names(network(Block("sep_conv", 5, 6))) == names(plain)


def test_mid_filters_overrules_the_expansion():
    assert (
        network(Block("mb_conv", 3, 4, expansion=6, mid_filters=10)).get_layer("block00_0_depthwise").output.shape[-1]
        == 10
    )


@pytest.mark.parametrize(
    ("row", "strides"),
    [
        (Block("mb_conv", 3, 8, expansion=2), 1),
        (Block("mb_conv", 3, 4, expansion=2, strides=2), 2),
        (Block("mb_conv", 3, 4, expansion=2, skip="none"), 1),
    ],
    ids=["another width", "a stride", "no skip"],
)
def test_there_is_no_residual_with(row, strides):
    assert "add" not in names(network(row, strides=strides))


def test_squeeze_and_excite_halves_everything_when_its_last_convolution_is_zero():
    image = keras.Input((4, 4, 6))
    model = keras.Model(image, mobile_blocks.squeeze_excite(image, 2, "se"))
    model.get_layer("se_expand").set_weights([np.zeros((1, 1, 2, 6)), np.zeros(6)])
    x = np.random.default_rng(0).normal(size=(2, 4, 4, 6)).astype(np.float32)
    np.testing.assert_allclose(model(x), x / 2, rtol=1e-6)


def test_squeeze_and_excite_gates_by_the_means_of_the_channels():
    image = keras.Input((2, 2, 2))
    model = keras.Model(image, mobile_blocks.squeeze_excite(image, 1, "se"))
    # the gates are sigmoid(+-relu(mean of channel 0 - mean of channel 1))
    model.get_layer("se_reduce").set_weights([np.array([1.0, -1.0]).reshape(1, 1, 2, 1), np.zeros(1)])
    model.get_layer("se_expand").set_weights([np.array([1.0, -1.0]).reshape(1, 1, 1, 2), np.zeros(2)])
    x = np.array([[[[1, 0], [3, 2]], [[5, 0], [7, 2]]]], dtype=np.float32)  # means 4 and 1
    gates = 1 / (1 + np.exp([-3.0, 3.0]))
    np.testing.assert_allclose(model(x), x * gates, rtol=1e-5)


def test_squeeze_and_excite_is_a_quarter_of_the_input_and_not_of_the_expansion():
    model = network(Block("mb_conv", 3, 8, expansion=6, se_ratio=0.25), shape=(8, 8, 24))
    assert model.get_layer("block00_0_se_reduce").output.shape[1:] == (1, 1, 6)
    assert model.get_layer("block00_0_se_expand").output.shape[1:] == (1, 1, 144)
    assert names(model).index("depthwise_relu") < names(model).index("se_mean") < names(model).index("project_conv")


def test_a_narrow_block_has_a_squeeze_and_excite_of_at_least_one_channel():
    model = network(Block("mb_conv", 3, 4, se_ratio=0.1))
    assert model.get_layer("block00_0_se_reduce").output.shape[-1] == 1


def test_a_plain_convolution_adds_its_input_behind_the_activation():
    model = network(Block("conv", 3, 4))
    assert names(model) == ["conv", "bn", "relu", "add"]
    model.get_layer("block00_0_bn").set_weights([np.zeros(4), np.full(4, -1.0), np.zeros(4), np.ones(4)])
    x = np.random.default_rng(0).normal(size=(1, 8, 8, 4)).astype(np.float32)
    np.testing.assert_array_equal(model(x), x)  # relu(-1) + x


def test_the_pool_skip_adds_the_mean_of_the_neighbours():
    model = network(Block("conv", 3, 1, skip="pool"), shape=(3, 3, 1))
    model.get_layer("block00_0_bn").set_weights([np.zeros(1), np.zeros(1), np.zeros(1), np.ones(1)])
    y = np.array(model(np.arange(9, dtype=np.float32).reshape(1, 3, 3, 1)))
    assert y[0, 1, 1, 0] == pytest.approx(4)
    assert y[0, 0, 0, 0] == pytest.approx((0 + 1 + 3 + 4) / 4)  # what lies outside does not count


def test_the_pool_skip_fits_stride_and_width():
    model = network(Block("mb_conv", 3, 6, strides=2, expansion=2, skip="pool"), strides=2)
    assert model.output.shape[1:] == (4, 4, 6)
    assert "skip_conv" in names(model)


def test_relu6_caps_at_six():
    model = network(Block("conv", 1, 4, skip="none"), shape=(1, 1, 4), activation="relu6")
    model.get_layer("block00_0_bn").set_weights([np.zeros(4), np.array([-1.0, 3, 6, 9]), np.zeros(4), np.ones(4)])
    np.testing.assert_array_equal(model(np.zeros((1, 1, 1, 4)))[0, 0, 0], [0, 3, 6, 6])


@pytest.mark.parametrize(("side", "padded"), [(8, True), (None, True), (7, False)])
def test_strides_pad_as_pytorch_does_where_that_differs_from_same(side, padded):
    model = network(Block("mb_conv", 5, 4, expansion=2, strides=2), shape=(side, side, 4), strides=2)
    assert ("depthwise_pad" in names(model)) == padded


BODY = Blocks((Block("sep_conv", 3, 8), Block("mb_conv", 3, 16, strides=2, expansion=3, repeats=3)), 8, 32)


def expanded(**options) -> keras.Model:
    image = keras.Input((32, 32, 3))
    return keras.Model(image, mobile_blocks.expand_blocks(BODY, image, style=TORCH, activation="relu", **options))


def test_rows_stride_in_their_first_block_only_and_count_from_zero():
    model = expanded()
    assert model.output.shape[1:] == (8, 8, 32)
    blocks = {layer.name[:9] for layer in model.layers if layer.name.startswith("block")}
    assert blocks == {"block00_0", "block01_0", "block01_1", "block01_2"}


def test_each_block_is_noted_with_its_stride():
    noted = []
    expanded(note=lambda x, stride: noted.append((stride, x.shape[1], x.shape[3])))
    assert noted == [(2, 16, 8), (2, 16, 8), (4, 8, 16), (4, 8, 16), (4, 8, 16)]


def test_drop_path_grows_linearly_with_depth_and_drops_whole_examples():
    model = expanded(drop_path_rate=0.8)
    drops = [layer for layer in model.layers if isinstance(layer, keras.layers.Dropout)]
    # the blocks 0, 2 and 3 of 4 have a residual; the first has rate 0 and no layer
    assert [(layer.name, layer.rate) for layer in drops] == [
        ("block01_1_drop_path", pytest.approx(0.4)),
        ("block01_2_drop_path", pytest.approx(0.6)),
    ]
    y = np.array(drops[0](np.ones((64, 2, 2, 3)), training=True))
    np.testing.assert_allclose(y, np.broadcast_to(y[:, :1, :1, :1], y.shape))
    assert sorted(set(y[:, 0, 0, 0].tolist())) == pytest.approx([0, 1 / 0.6])


def test_int8_training_and_tflite_take_a_block_with_squeeze_and_excite():
    model = network(Block("mb_conv", 3, 4, expansion=2, se_ratio=0.25), activation="relu6")
    assert int8_graph.rewrite(model).model.output.shape == model.output.shape
    assert len(tflite.convert(model)) > 1000
