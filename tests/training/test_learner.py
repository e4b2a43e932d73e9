"""A network while it learns: fused normalisation beside Keras' own, and drop path whose rate grows."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import zoo
from recipes.training.learner import ScheduledDropPath, make_training_pass, schedule_drop_path

IMAGES = np.random.default_rng(0).normal(size=(6, 8, 8, 1)).astype(np.float32)


def network(name="darts", **options):
    sizes = {"darts": {"cells": 2}, "nasnet_a": {"repeats": 1, "stem_filters": 12}}
    preset = sizes[name] | {"filters": 4, "stem": "cifar", "input_shape": [8, 8, 1], "classes": 3}
    genotype = zoo.load(name)
    genotype = zoo.Genotype(genotype.name, genotype.family, genotype.body, {}, {"small": preset})
    keras.utils.set_random_seed(1)
    return zoo.build(genotype, classifier_activation=None, **options)


def gradients_of(forward, model):
    with tf.GradientTape() as tape:
        outputs = forward(IMAGES)
        loss = tf.reduce_mean(tf.square(outputs - tf.constant([1.0, 2.0, 3.0])))
    return outputs, tape.gradient(loss, [weight.value for weight in model.trainable_weights])


def test_outputs_gradients_and_moving_averages_are_those_of_keras():
    plain, fast = network(), network()
    expected, expected_gradients = gradients_of(lambda images: plain(images, training=True), plain)
    found, gradients = gradients_of(make_training_pass(fast), fast)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    scale = max(float(tf.reduce_max(tf.abs(gradient))) for gradient in expected_gradients)
    for one, other in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4 * scale)
    for one, other in zip(fast.non_trainable_weights, plain.non_trainable_weights, strict=True):
        # at the coarsest map, 6 images of 2 x 2, the sample's variance is 24/23 of the population's
        np.testing.assert_allclose(one.value, other.value, rtol=1 / 23, atol=1e-4, err_msg=one.path)


def test_moving_average_of_a_variance_by_hand():
    image = keras.Input((1, 1, 1))
    layer = layers.BatchNormalization(momentum=0.5, epsilon=1e-5)
    forward = make_training_pass(keras.Model(image, layer(image)))
    forward(tf.constant([1.0, 3.0], shape=(2, 1, 1, 1)))
    assert float(layer.moving_mean.value[0]) == pytest.approx(0.5 * 0 + 0.5 * 2)
    assert float(layer.moving_variance.value[0]) == pytest.approx(0.5 * 1 + 0.5 * 2)  # ((1-2)^2 + (3-2)^2) / (2-1)


def test_half_as_many_operations_are_traced():
    model = network()

    def traced(forward):
        function = tf.function(forward, autograph=False).get_concrete_function(tf.TensorSpec((6, 8, 8, 1)))
        return len(function.graph.get_operations())

    assert traced(make_training_pass(model)) < 0.6 * traced(lambda images: model(images, training=True))


def test_frozen_normalisation_and_models_without_a_graph_go_keras_way():
    model = network()
    for layer in model.layers:
        layer.trainable = False
    before = [weight.numpy() for weight in model.weights]
    np.testing.assert_allclose(make_training_pass(model)(IMAGES), model(IMAGES), rtol=1e-4, atol=1e-5)
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)

    class Doubled(keras.Model):
        def call(self, images, training=False):
            return images * (2 if training else 1)

    np.testing.assert_array_equal(make_training_pass(Doubled())(IMAGES), 2 * IMAGES)


# A standard deviation of the share that is kept is at most 0.5 / sqrt(20,000) = 0.0035
@pytest.mark.parametrize(("progress", "keep"), [(0.0, 1.0), (0.5, 0.8), (1.0, 0.6)])
def test_rate_grows_linearly_examples_are_lost_whole_and_the_mean_stays(progress, keep):
    ones = np.ones((20_000, 1, 1, 2), np.float32)
    layer = ScheduledDropPath(0.4, tf.Variable(progress))
    out = np.asarray(layer(ones, training=True))
    assert (out[..., 0] == out[..., 1]).all()
    assert np.unique(out).tolist() == pytest.approx([1.0] if keep == 1 else [0.0, 1 / keep])
    assert (out > 0).mean() == pytest.approx(keep, abs=0.015)
    np.testing.assert_array_equal(layer(ones), ones)  # outside of training nothing is dropped


def test_progress_changes_without_tracing_again():
    layer, traced = ScheduledDropPath(0.5, tf.Variable(0.0)), []

    @tf.function
    def step(x):
        traced.append(True)
        return layer(x, training=True)

    for value, keep in ((0.0, 1.0), (0.5, 0.75), (1.0, 0.5)):
        layer.progress.assign(value)
        assert (step(tf.ones((1000, 1, 1, 1))).numpy() > 0).mean() == pytest.approx(keep, abs=0.08)
    assert len(traced) == 1


def test_a_twin_drops_with_the_rates_of_the_plain_model_and_computes_the_same_otherwise():
    model = network("nasnet_a", drop_path_rate=0.4)
    twin, progress = schedule_drop_path(model)
    rates = {layer.name: layer.rate for layer in model.layers if layer.name.endswith("_drop_path")}
    assert {layer.name: layer.rate for layer in twin.layers if isinstance(layer, ScheduledDropPath)} == rates
    # 3 normal and 2 reduction cells: the first has a fifth of the rate, the last all of it
    by_cell = {name.split("_")[0]: rate for name, rate in rates.items()}
    assert [by_cell[f"cell0{cell}"] for cell in range(5)] == pytest.approx([0.08, 0.16, 0.24, 0.32, 0.4])
    assert not any(isinstance(layer, layers.Dropout) for layer in twin.layers)
    assert [weight.path for weight in twin.weights] == [weight.path for weight in model.weights]
    assert twin.layers[1] is not model.layers[1]
    np.testing.assert_array_equal(twin(IMAGES, training=False), model(IMAGES, training=False))
    progress.assign(1.0)
    first, second = (make_training_pass(twin)(IMAGES) for _ in range(2))
    assert not np.allclose(first, second)
