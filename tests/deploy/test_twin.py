"""A Keras 3 model and its twin under tf_keras compute the same, in both directions."""

import re

import keras
import numpy as np
import pytest

from zoo import graph
from zoo.deploy import tf_keras_twin
from zoo.deploy.tf_keras_twin import TwinError, to_keras, to_tf_keras

layers = keras.layers

LAYERS = {
    "relu": lambda: layers.Activation("relu"),
    "silu": lambda: layers.Activation("silu"),
    "sigmoid": lambda: layers.Activation("sigmoid"),
    "average_pool": lambda: layers.AveragePooling2D(3, 2, padding="same"),
    "batch_normalization": lambda: layers.BatchNormalization(momentum=0.9, epsilon=1e-4, scale=False),
    "conv": lambda: layers.Conv2D(6, 3, 2, padding="same", activation="relu6", kernel_regularizer="l2"),
    "conv_dilated": lambda: layers.Conv2D(6, (1, 3), dilation_rate=(1, 2), use_bias=False),
    "conv_grouped": lambda: layers.Conv2D(6, 3, groups=2, kernel_constraint="non_neg"),
    "conv_transposed": lambda: layers.Conv2DTranspose(6, 3, 2, padding="same", activation="relu"),
    "cropping": lambda: layers.Cropping2D(((1, 0), (0, 2))),
    "dense": lambda: layers.Dense(5, activation="softmax"),
    "depthwise": lambda: layers.DepthwiseConv2D(5, 2, padding="same", depth_multiplier=2),
    "dropout": lambda: layers.Dropout(0.5, noise_shape=(None, 1, 1, 1), seed=0),
    "elu": lambda: layers.ELU(0.5),
    "flatten": lambda: layers.Flatten(),
    "global_average": lambda: layers.GlobalAveragePooling2D(keepdims=True),
    "global_max": lambda: layers.GlobalMaxPooling2D(),
    "global_average_rows": lambda: keras.Sequential([layers.Reshape((64, 4)), layers.GlobalAveragePooling1D()]),
    "hard_sigmoid": lambda: layers.Activation("hard_sigmoid"),
    "hard_silu": lambda: layers.Activation("hard_silu"),
    "layer_normalization": lambda: layers.LayerNormalization(epsilon=1e-4),
    "leaky": lambda: layers.LeakyReLU(0.1),
    "max_pool": lambda: layers.MaxPooling2D(3, 2, padding="same"),
    "normalization": lambda: layers.Normalization(mean=[0.1, 0.2, 0.3, 0.4], variance=[1.0, 2.0, 3.0, 4.0]),
    "permute": lambda: layers.Permute((2, 1, 3)),
    "prelu": lambda: layers.PReLU(shared_axes=(1, 2)),
    "relu_layer": lambda: layers.ReLU(6.0, negative_slope=0.1, threshold=0.5),
    "rescaling": lambda: layers.Rescaling(2.0, offset=-1.0),
    "reshape": lambda: layers.Reshape((8, 32)),
    "separable": lambda: layers.SeparableConv2D(6, 3, padding="same", depth_multiplier=2),
    "softmax": lambda: layers.Softmax(),
    "spatial_dropout": lambda: layers.SpatialDropout2D(0.5),
    "up_sampling": lambda: layers.UpSampling2D(2, interpolation="bilinear"),
    "zero_padding": lambda: layers.ZeroPadding2D(((1, 0), (0, 2))),
}
MERGES = ("Add", "Average", "Concatenate", "Maximum", "Minimum", "Multiply", "Subtract")


def randomized(model: keras.Model) -> keras.Model:
    """Fills every weight, statistics too, with something that shows where it went."""
    rng = np.random.default_rng(1)
    for layer in model.layers:
        layer.set_weights([rng.uniform(0.5, 1.5, weight.shape) for weight in layer.weights])
    return model


def output(model, images: np.ndarray) -> np.ndarray:
    return model(images, training=False).numpy()


def assert_same_network(model: keras.Model, shape: tuple[int, ...]) -> None:
    twin = to_tf_keras(model)
    back = to_keras(twin)
    names = [layer.name for layer in model.layers]
    assert names == [layer.name for layer in twin.layers] == [layer.name for layer in back.layers]
    images = np.random.default_rng(0).uniform(-1, 1, (2, *shape)).astype(np.float32)
    np.testing.assert_allclose(output(twin, images), output(model, images), atol=1e-5)
    np.testing.assert_allclose(output(back, images), output(model, images), atol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_layer_and_its_twin_compute_the_same_both_ways(name):
    image = keras.Input((8, 8, 4))
    model = graph.flatten(keras.Model(image, LAYERS[name]()(image)))
    if name != "normalization":  # its numbers are given, not learnt
        randomized(model)
    assert_same_network(model, (8, 8, 4))


@pytest.mark.parametrize("name", MERGES)
def test_merging_layers_keep_the_order_of_their_inputs(name):
    image = keras.Input((4, 4, 2))
    first = layers.Conv2D(3, 1, name="first")(image)
    second = layers.Conv2D(3, 1, name="second")(image)
    assert_same_network(randomized(keras.Model(image, getattr(layers, name)()([second, first]))), (4, 4, 2))


def test_every_layer_with_a_twin_is_tested():
    made = [make() for make in LAYERS.values()]
    tested = {type(one).__name__ for layer in made for one in getattr(layer, "layers", [layer])} | set(MERGES)
    assert tested == set(tf_keras_twin.TWINS)


def test_training_options_cross_over():
    image = keras.Input((8, 8, 4))
    x = layers.Conv2D(6, 3, kernel_regularizer=keras.regularizers.L1L2(0.1, 0.2), name="conv")(image)
    x = layers.BatchNormalization(momentum=0.7, name="bn")(x)
    model = keras.Model(image, layers.Dropout(0.25, noise_shape=(None, 1, 1, 1), name="drop")(x))
    model.get_layer("bn").trainable = False
    twin = to_tf_keras(model)
    regularizer = twin.get_layer("conv").kernel_regularizer
    assert (float(regularizer.l1), float(regularizer.l2)) == pytest.approx((0.1, 0.2))
    assert twin.get_layer("bn").momentum == 0.7
    assert not twin.get_layer("bn").trainable
    assert (twin.get_layer("drop").rate, tuple(twin.get_layer("drop").noise_shape)) == (0.25, (None, 1, 1, 1))


def test_shared_layer_stays_one_layer():
    image = keras.Input((4, 4, 3))
    shared = layers.Conv2D(3, 1, name="shared")
    twin = to_tf_keras(keras.Model(image, layers.Add()([shared(image), shared(shared(image))])))
    assert len(twin.get_layer("shared")._inbound_nodes) == 3


def test_several_outputs_keep_their_order():
    image = keras.Input((4, 4, 3))
    first, second = layers.Flatten(name="first")(image), layers.GlobalAveragePooling2D(name="second")(image)
    twin = to_tf_keras(keras.Model(image, [second, first]))
    assert [tuple(tensor.shape) for tensor in twin.outputs] == [(None, 3), (None, 48)]


def test_weights_trained_in_the_twin_come_back():
    image = keras.Input((4, 4, 3))
    model = keras.Model(image, layers.BatchNormalization(name="bn")(layers.Conv2D(2, 1, name="conv")(image)))
    twin = to_tf_keras(model)
    twin.get_layer("bn").set_weights([np.full(2, value) for value in (1.0, 2.0, 3.0, 4.0)])
    graph.copy_weights(twin, model)
    assert [weight.numpy().tolist() for weight in model.get_layer("bn").weights] == [[1, 1], [2, 2], [3, 3], [4, 4]]


def test_copying_between_different_models_says_which_layer_and_copies_nothing():
    image = keras.Input((4, 4, 3))
    small = keras.Model(image, layers.Conv2D(2, 1, name="conv")(image), name="small")
    large = keras.Model(image, layers.Conv2D(3, 1, name="conv")(image), name="large")
    other = keras.Model(image, layers.Conv2D(2, 1, name="stem")(image), name="other")
    before = small.get_weights()
    with pytest.raises(graph.GraphError, match=r"'conv' has weights of .* in 'large', but 'small' has"):
        graph.copy_weights(large, small)
    with pytest.raises(graph.GraphError, match=r"only one of 'other' and 'small': conv, stem"):
        graph.copy_weights(other, small)
    np.testing.assert_array_equal(before[0], small.get_weights()[0])


class Doubled(layers.Layer):
    def call(self, x):
        return 2 * x


class Conv2D(layers.Conv2D):
    """Bears a name that has a twin, and could compute anything."""


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x: Doubled(name="odd")(x), "layer 'odd' ("),
        (lambda x: Conv2D(2, 1, name="own")(x), "layer 'own' ("),
        (lambda x: layers.Activation("mish", name="odd")(x), "layer 'odd' has the activation 'mish'"),
        (lambda x: layers.Dropout(0.5, name="always")(x, training=True), "'always' is called with 1 positional"),
        (
            lambda x: abs(x),
            "(keras.ops.Absolute) has no twin. Replace it with layers that have one",
        ),
    ],
)
def test_layer_without_a_twin_is_named_with_the_remedy(make, message):
    image = keras.Input((4, 4, 3))
    with pytest.raises(TwinError, match=re.escape(message)):
        to_tf_keras(keras.Model(image, make(image)))


def test_model_of_nested_operators_and_half_precision_has_a_flat_twin_in_float32():
    inner = keras.Sequential([keras.Input((4, 4, 3)), layers.Conv2D(3, 1, dtype="mixed_bfloat16", name="half")])
    image = keras.Input((4, 4, 3))
    twin = to_tf_keras(keras.Model(image, 1.0 - inner(image)))
    assert [type(layer).__name__ for layer in twin.layers] == ["InputLayer", "Conv2D", "Rescaling"]
    assert {layer.compute_dtype for layer in twin.layers} == {"float32"}


def test_mobilenet_v2_of_keras_applications_has_a_twin():
    model = keras.applications.MobileNetV2((32, 32, 3), alpha=0.35, weights=None, classes=10)
    assert_same_network(model, (32, 32, 3))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["EfficientNetB0", "NASNetMobile", "DenseNet121", "InceptionV3", "ResNet50V2", "Xception"]
)
def test_models_of_keras_applications_have_twins(name):
    shape = (75, 75, 3)  # the smallest that all of them take
    build = getattr(keras.applications, name)
    assert_same_network(build(input_shape=shape, weights=None, classes=10), shape)
