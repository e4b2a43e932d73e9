"""Cross-layer equalization: factors that can be computed by hand, outputs that stay the same to the bit."""

import keras
import numpy as np
import pytest

from zoo.deploy import equalize, measure, tflite

layers = keras.layers


def inverted_residual(activation: str = "relu") -> keras.Model:
    """A block of MnasNet with squeeze and excitation, and a classifier, as if trained on channels of unlike range."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    image = keras.Input((8, 8, 3))

    def normalized(x, name):
        x = layers.BatchNormalization(name=f"{name}_bn")(x)
        return x if name in ("project", "stem") else layers.Activation(activation, name=f"{name}_{activation}")(x)

    stem = normalized(layers.Conv2D(4, 3, padding="same", use_bias=False, name="stem")(image), "stem")
    x = normalized(layers.Conv2D(12, 1, use_bias=False, name="expand")(stem), "expand")
    x = layers.ZeroPadding2D(1, name="pad")(x)
    x = normalized(layers.DepthwiseConv2D(3, use_bias=False, name="depthwise")(x), "depthwise")
    gate = layers.GlobalAveragePooling2D(keepdims=True, name="squeeze")(x)
    gate = layers.Conv2D(4, 1, activation="relu", name="se")(gate)
    gate = layers.Conv2D(12, 1, activation="sigmoid", name="gate")(gate)
    x = layers.Multiply(name="excite")([x, gate])
    x = normalized(layers.Conv2D(4, 1, use_bias=False, name="project")(x), "project")
    x = layers.GlobalAveragePooling2D(name="pool")(layers.Add(name="add")([stem, x]))
    model = keras.Model(image, layers.Dense(5, name="logits")(x), name="block")
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            spread = 2.0 ** rng.integers(-4, 4, layer.gamma.shape)
            layer.set_weights([spread, spread * rng.normal(size=spread.shape), spread * 0, spread * 0 + 1])
    return model


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(1).uniform(-1, 1, (32, 8, 8, 3)).astype(np.float32)


def test_channels_before_a_depthwise_convolution_get_the_same_range():
    image = keras.Input((1, 1, 1))
    made = layers.Conv2D(3, 1, activation="relu", name="made")
    read = layers.DepthwiseConv2D(1, name="read")
    model = keras.Model(image, read(made(image)))
    made.set_weights([np.array([1.0, 8.0, 0.001]).reshape(1, 1, 1, 3), np.array([0.5, 0, 0])])
    read.set_weights([np.array([3.0, 5.0, 7.0]).reshape(1, 1, 3, 1), np.zeros(3)])
    found = equalize.equalize(model, np.full((1, 1, 1, 1), 2.0))
    # The channels reach 2.5, 16 and 0.002: divided by 1/8 (the nearest power of two), 1 and, at most, 1/64
    assert (found.done, found.left) == (("made",), {"read": "it is an output of the model"})
    ours = found.model.get_layer("made")
    np.testing.assert_array_equal(ours.kernel.numpy().ravel(), np.float32([8.0, 8.0, 0.064]))
    np.testing.assert_array_equal(ours.bias.numpy(), [4.0, 0, 0])
    np.testing.assert_array_equal(found.model.get_layer("read").kernel.numpy().ravel(), [3 / 8, 5, 7 / 64])


def test_outputs_stay_the_same_to_the_bit_through_squeeze_and_excitation(images):
    model = inverted_residual()
    found = equalize.equalize(model, images)
    assert found.done == ("expand", "depthwise", "se")
    assert found.left == {
        "stem": "add (Add), which reads it, does not preserve factors",
        "gate": "its activation does not preserve factors, or its normalization has no scale",
        "project": "add (Add), which reads it, does not preserve factors",
        "logits": "it is an output of the model",
    }
    np.testing.assert_array_equal(found.model.predict(images, verbose=0), model.predict(images, verbose=0))
    assert not np.array_equal(found.model.get_layer("expand_bn").gamma, model.get_layer("expand_bn").gamma)


def test_int8_loses_less_where_ranges_are_unlike(images):
    model = inverted_residual()
    expected = measure.predict(model, images)
    noises = []
    for one in (model, equalize.equalize(model, images).model):
        file = tflite.convert(one, quantize="int8", calibration=images)
        noises.append(np.square(measure.predict(file, images) - expected).mean())
    assert noises[1] < 0.7 * noises[0]


def test_relu6_and_layers_of_two_calls_are_left_as_they_are(images):
    found = equalize.equalize(inverted_residual("relu6"), images)
    assert found.done == ("se",)
    assert found.left["expand"] == "expand_relu6 (Activation), which reads it, does not preserve factors"
    image = keras.Input((8, 8, 3))
    shared = layers.Conv2D(3, 1, name="shared")
    model = keras.Model(image, layers.Conv2D(2, 1, name="last")(shared(shared(image))))
    found = equalize.equalize(model, images)
    assert (found.done, found.left["shared"]) == ((), "it is called several times")
    square = layers.Conv2D(3, 1, name="factor")(image)
    model = keras.Model(image, layers.Conv2D(2, 1, name="last")(layers.Multiply(name="square")([square, square])))
    assert equalize.equalize(model, images).left["factor"] == "square multiplies it by itself or by more channels"
