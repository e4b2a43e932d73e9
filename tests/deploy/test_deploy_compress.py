"""Pruned and clustered models."""

import keras
import numpy as np
import pytest

from zoo.deploy import compress, tflite

layers = keras.layers
IMAGES = np.random.default_rng(0).normal(size=(64, 8, 8, 3)).astype(np.float32)
LABELS = np.arange(64) % 4


@pytest.fixture(scope="module")
def model() -> keras.Model:
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(16, 3, padding="same", use_bias=False, name="conv")(image)
    x = layers.ReLU(name="relu")(layers.BatchNormalization(name="bn")(x))
    gate = layers.Conv2D(16, 1, activation="sigmoid", name="gate")(layers.GlobalAveragePooling2D(keepdims=True)(x))
    x = layers.DepthwiseConv2D(3, name="depthwise")(layers.Multiply(name="scale")([x, gate]))
    return keras.Model(image, layers.Dense(4, activation="softmax", name="logits")(layers.Flatten()(x)))


def test_pruned_kernels_have_the_share_of_zeros_and_compress_better(model):
    pruned = compress.prune(model, IMAGES, LABELS, sparsity=0.75, batch_size=16)
    for name in ("conv", "gate", "logits"):
        assert np.mean(pruned.get_layer(name).kernel.numpy() == 0) == pytest.approx(0.75, abs=0.02)
    sizes = [compress.compressed_size(tflite.convert(one)) for one in (pruned, model)]
    assert sizes[0] < 0.6 * sizes[1]


def test_clustered_kernels_have_few_values_and_compress_better(model):
    clustered = compress.cluster(model, IMAGES, LABELS, clusters=8, batch_size=16)
    assert len(np.unique(clustered.get_layer("conv").kernel.numpy())) <= 8
    sizes = [compress.compressed_size(tflite.convert(one)) for one in (clustered, model)]
    assert sizes[0] < 0.6 * sizes[1]


def test_numbers_that_cannot_be_are_refused(model):
    with pytest.raises(ValueError, match="sparsity=1"):
        compress.prune(model, IMAGES, LABELS, sparsity=1)
    with pytest.raises(ValueError, match="clusters=1"):
        compress.cluster(model, IMAGES, LABELS, clusters=1)
    with pytest.raises(ValueError, match="64 images and 3 labels"):
        compress.prune(model, IMAGES, LABELS[:3])
    with pytest.raises(ValueError, match="epochs=0"):
        compress.cluster(model, IMAGES, LABELS, epochs=0)
