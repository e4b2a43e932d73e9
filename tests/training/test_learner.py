"""The forward pass with fused normalisation beside Keras' own: outputs, gradients, moving averages, frozen layers."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import zoo
from recipes.training.drop_path import schedule_drop_path
from recipes.training.learner import TrainingPass

IMAGES = np.random.default_rng(0).normal(size=(6, 8, 8, 1)).astype(np.float32)


def network(**options):
    genotype = zoo.load("darts")
    preset = {"cells": 2, "filters": 4, "stem": "cifar", "input_shape": [8, 8, 1], "classes": 3}
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
    found, gradients = gradients_of(TrainingPass(fast), fast)
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
    forward = TrainingPass(keras.Model(image, layer(image)))
    forward(tf.constant([1.0, 3.0], shape=(2, 1, 1, 1)))
    assert float(layer.moving_mean.value[0]) == pytest.approx(0.5 * 0 + 0.5 * 2)
    assert float(layer.moving_variance.value[0]) == pytest.approx(0.5 * 1 + 0.5 * 2)  # ((1-2)^2 + (3-2)^2) / (2-1)


def test_half_as_many_operations_are_traced():
    model = network()

    def traced(forward):
        function = tf.function(forward, autograph=False).get_concrete_function(tf.TensorSpec((6, 8, 8, 1)))
        return len(function.graph.get_operations())

    assert traced(TrainingPass(model)) < 0.6 * traced(lambda images: model(images, training=True))


def test_frozen_normalisation_and_models_without_a_graph_go_keras_way():
    model = network()
    for layer in model.layers:
        layer.trainable = False
    before = [weight.numpy() for weight in model.weights]
    np.testing.assert_allclose(TrainingPass(model)(IMAGES), model(IMAGES), rtol=1e-4, atol=1e-5)
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)

    class Doubled(keras.Model):
        def call(self, images, training=False):
            return images * (2 if training else 1)

    np.testing.assert_array_equal(TrainingPass(Doubled())(IMAGES), 2 * IMAGES)


def test_drop_path_drops():
    twin = schedule_drop_path(network(drop_path_rate=0.9))
    twin.progress.assign(1.0)
    first, second = (TrainingPass(twin.model)(IMAGES) for _ in range(2))
    assert not np.allclose(first, second)
