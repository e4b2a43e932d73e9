"""The fast supernet of DARTS computes what one layer an operation computes."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from benchmarks import darts_step
from recipes.supernets import base as supernet
from recipes.supernets import darts as supernet_darts


def test_folded_matrix_is_normalisation_of_the_product():
    rng = np.random.default_rng(0)
    x: Any = tf.constant(rng.normal(1, 2, (50, 3)), tf.float32)
    weight: Any = tf.constant(rng.normal(size=(3, 2)), tf.float32)
    mean, covariance = supernet.moments([x])
    matrix, bias = supernet.folded(weight[None], tf.constant([0.5]), mean, covariance)
    y = (x @ weight).numpy()
    expected = 0.5 * (y - y.mean(0)) / np.sqrt(y.var(0) + supernet.EPSILON)
    np.testing.assert_allclose(x @ matrix[0] + bias, expected, atol=1e-5)


def test_a_packed_vector_unpacks_to_the_same_weights_as_array_and_tensor():
    packing = supernet.Packing([supernet.Shape("a", (2, 3), 2), supernet.Shape("b", (4,), constant=1.0)])
    vector = packing.initial(0)
    assert vector.shape == (10,)
    tensors, arrays = packing.unpack(tf.constant(vector)), packing.unpack(vector)
    assert (arrays["b"] == 1).all()
    np.testing.assert_array_equal(tensors["a"], arrays["a"])


@pytest.mark.slow
def test_outputs_and_gradients_equal_those_of_one_keras_layer_an_operation():
    net = supernet_darts.Supernet(3, 4, 5, 3, nodes=2)
    plain = darts_step.PlainSupernet(net, (8, 8, 3))
    vector = net.packing.initial(1)
    plain.set_weights(vector)
    rng = np.random.default_rng(2)
    images = tf.constant(rng.normal(size=(16, 8, 8, 3)), tf.float32)
    labels = tf.constant(rng.integers(0, 5, 16), tf.int32)
    alphas, weights = tf.constant(rng.normal(size=(2, net.edges, 8)), tf.float32), tf.constant(vector)
    tape: Any = tf.GradientTape(persistent=True)
    with tape:
        tape.watch([alphas, weights])
        ours, theirs = net.logits(weights, alphas, images), plain.logits(alphas, images)
        losses = [
            tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)) for logits in (ours, theirs)
        ]
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    np.testing.assert_allclose(tape.gradient(losses[0], alphas), tape.gradient(losses[1], alphas), atol=1e-4)
    named = net.packing.unpack(tape.gradient(losses[0], weights).numpy())
    for name in ("stem", "cell0/node0/state0/sep_conv_5x5/depthwise0", "cell1/node0/state1/dil_conv_3x3/depthwise0"):
        gradient = tape.gradient(losses[1], plain.layers[name].trainable_weights[0].value)
        np.testing.assert_allclose(named[name], gradient, atol=1e-4)
    pointwise = plain.layers["cell2/node1/state2/sep_conv_3x3/pointwise1"].trainable_weights[0].value
    np.testing.assert_allclose(named["cell2/node1/last"][8], tape.gradient(losses[1], pointwise)[0, 0], atol=1e-4)


def test_derived_cell_keeps_the_two_strongest_edges_and_never_none():
    strengths = np.zeros((2, 5, 8))
    strengths[:, :, 0] = 0.9  # "none" is everywhere strongest
    strengths[0, 2:5, 4] = [0.03, 0.01, 0.02]  # normal cell, second node: states 0 and 2 win with sep_conv_3x3
    strengths[0, 0:2, 3] = 0.05
    strengths[1, :, 1] = 0.1
    cells = supernet_darts.derive(strengths, nodes=2)
    assert cells.normal.nodes[0].edges == (("skip_connect", 0), ("skip_connect", 1))
    assert cells.normal.nodes[1].edges == (("sep_conv_3x3", 0), ("sep_conv_3x3", 2))
    assert cells.normal.concat == (2, 3)
