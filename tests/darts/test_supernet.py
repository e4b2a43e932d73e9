"""The fast supernet of DARTS computes what one layer an operation computes."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from benchmarks import darts_step
from recipes.darts.space import DartsSpace
from recipes.darts.supernet import Supernet
from recipes.training import supernet, tensorflow_options


def test_a_weighted_sum_is_that_of_normalised_products_whatever_the_order_of_the_rows():
    rng = np.random.default_rng(0)
    x, other = (rng.normal(1, 2, (50, 3)).astype(np.float32) for _ in range(2))
    weight = rng.normal(size=(2, 3, 2)).astype(np.float32)
    first, second = supernet.add_weighted([[tf.constant(x)], [tf.constant(other)]], weight, tf.constant([0.5, 3.0]))

    def normal(y: np.ndarray) -> np.ndarray:
        return (y - y.mean(0)) / np.sqrt(y.var(0) + supernet.EPSILON)

    expected = 0.5 * normal(x @ weight[0]) + 3 * normal(other @ weight[1])
    np.testing.assert_allclose(first + second, expected, atol=1e-5)


def test_gradient_in_a_kernel_five_wide_is_that_of_the_plain_convolution():
    rng = np.random.default_rng(0)
    x, kernel = (tf.constant(rng.normal(size=shape), tf.float32) for shape in ((2, 6, 8, 3), (5, 5, 3, 1)))
    gradients = []
    for convolution in (supernet.depthwise, lambda x, k: tf.nn.depthwise_conv2d(x, k, [1, 1, 1, 1], "SAME")):
        with tf.GradientTape() as tape:
            tape.watch([x, kernel])
            loss = tf.reduce_sum(convolution(x, kernel) ** 2)
        gradients.append(tape.gradient(loss, [x, kernel]))
    np.testing.assert_allclose(gradients[0][0], gradients[1][0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(gradients[0][1], gradients[1][1], rtol=1e-4, atol=1e-4)


def test_a_packed_vector_unpacks_to_the_same_weights_as_array_and_tensor():
    packing = supernet.Packing([supernet.Shape("a", (2, 3), 2), supernet.Shape("b", (4,), constant=1.0)])
    vector = packing.initial(0)
    assert vector.shape == (10,)
    tensors, arrays = packing.unpack(tf.constant(vector)), packing.unpack(vector)
    assert (arrays["b"] == 1).all()
    np.testing.assert_array_equal(tensors["a"], arrays["a"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "space",
    [
        DartsSpace(2),
        DartsSpace(2, ("avg_pool_3x3", "sep_conv_5x5", "dil_conv_3x3"), fixed_reduction=True),
        DartsSpace(1, ("dil_conv_5x5",)),
        DartsSpace(3, ("skip_connect",)),
    ],
    ids=["all", "reduced", "dilated", "identity"],
)
def test_outputs_and_gradients_equal_those_of_one_keras_layer_an_operation(space):
    net = Supernet(space, 3, 4, 5, 3)
    plain = darts_step.PlainSupernet(net, (8, 8, 3))
    vector = net.packing.initial(1)
    plain.set_weights(vector)
    rng = np.random.default_rng(2)
    images = tf.constant(rng.normal(size=(16, 8, 8, 3)), tf.float32)
    labels = tf.constant(rng.integers(0, 5, 16), tf.int32)
    alphas, weights = tf.constant(rng.normal(size=space.shape), tf.float32), tf.constant(vector)
    names = [name for name in plain.layers if name not in ("stem_bn", "classifier")]

    def gradients(logits_of: Any, variables: Any) -> Any:
        def both() -> Any:
            with tf.GradientTape() as tape:
                tape.watch([alphas, weights])
                logits = logits_of()
                loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
            return logits, tape.gradient(loss, [alphas, *variables])

        with tensorflow_options.without_rewrites():
            return tf.function(both, autograph=False)()

    ours, (of_alphas, of_weights) = gradients(lambda: net.logits(weights, tf.nn.softmax(alphas), images), [weights])
    theirs, (expected, *of_layers) = gradients(
        lambda: plain.logits(alphas, images), [plain.layers[name].trainable_weights[0].value for name in names]
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    np.testing.assert_allclose(of_alphas, expected, atol=1e-4)
    named = net.packing.unpack(of_weights.numpy())
    for name, gradient in zip(names, of_layers, strict=True):
        np.testing.assert_allclose(plain.weights_of(name, named)[0], gradient, atol=1e-4, err_msg=name)
