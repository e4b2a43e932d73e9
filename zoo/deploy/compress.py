"""Pruning and clustering of a Keras 3 model by TF-MOT on its tf_keras twin: files that compress better.

Neither makes a .tflite file smaller or faster as it lies: the zeros and the repeated values show once it is compressed,
for a download or for flash with a decompressor, which `compressed_size` measures.
"""

import zlib
from typing import Any

import keras
import numpy as np

from zoo.deploy import graph, tf_keras_twin, tflite
from zoo.deploy.tflite_file import Source, quiet, read, require


def prune(
    model: keras.Model,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    sparsity: float = 0.5,
    epochs: int = 2,
    learning_rate: float = 1e-4,
    batch_size: int = 64,
) -> keras.Model:
    """Returns a copy of the model in which a share `sparsity` of each kernel's values, the smallest, is zero.

    The share grows over the first half of the training and is then held. Depthwise kernels are left whole, as TF-MOT
    does.

    Args:
        labels: class numbers (n,); the model must end in class probabilities.

    Raises:
        ValueError: a number that cannot be, ConversionError among them: weights that are not finite.
        TwinError, GraphError: as `tf_keras_twin.to_tf_keras`.
    """
    if not 0 < sparsity < 1:
        raise ValueError(f"sparsity={sparsity}; expected a share above 0 and below 1, such as 0.5")
    _check(model, images, labels, epochs)
    tf_keras, tfmot = _load()
    steps = epochs * -(-len(images) // batch_size)
    twin = tf_keras_twin.to_tf_keras(model)
    with quiet():
        schedule = tfmot.sparsity.keras.PolynomialDecay(0.0, sparsity, 0, max(1, steps // 2), frequency=1)
        pruned = tfmot.sparsity.keras.prune_low_magnitude(twin, pruning_schedule=schedule)
        callbacks = [tfmot.sparsity.keras.UpdatePruningStep()]
        _fit(tf_keras, pruned, images, labels, epochs, learning_rate, batch_size, callbacks)
        return _back(tfmot.sparsity.keras.strip_pruning(pruned), model)


def cluster(
    model: keras.Model,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    clusters: int = 16,
    epochs: int = 1,
    learning_rate: float = 1e-4,
    batch_size: int = 64,
) -> keras.Model:
    """Returns a copy of the model in which each kernel has at most `clusters` different values.

    Args and raises: as `prune`.
    """
    if clusters < 2:
        raise ValueError(f"clusters={clusters}; expected at least 2")
    _check(model, images, labels, epochs)
    tf_keras, tfmot = _load()
    twin = tf_keras_twin.to_tf_keras(model)
    api = tfmot.clustering.keras
    with quiet():
        start = api.CentroidInitialization.LINEAR
        clustered = api.cluster_weights(twin, number_of_clusters=clusters, cluster_centroids_init=start)
        _fit(tf_keras, clustered, images, labels, epochs, learning_rate, batch_size, [])
        return _back(api.strip_clustering(clustered), model)


def compressed_size(tflite: Source) -> int:
    """Returns the bytes of a .tflite file after deflate, the method of zip and gzip."""
    return len(zlib.compress(read(tflite), 9))


def _fit(
    tf_keras: Any,
    model: Any,
    images: np.ndarray,
    labels: np.ndarray,
    epochs: int,
    learning_rate: float,
    batch_size: int,
    callbacks: list[Any],
) -> None:
    model.compile(tf_keras.optimizers.Adam(learning_rate), "sparse_categorical_crossentropy")
    model.fit(images, np.asarray(labels), batch_size=batch_size, epochs=epochs, verbose=0, callbacks=callbacks)


def _back(twin: Any, model: keras.Model) -> keras.Model:
    copy = keras.models.clone_model(model)
    tf_keras_twin.copy_weights(twin, copy)
    return copy


def _check(model: keras.Model, images: np.ndarray, labels: np.ndarray, epochs: int) -> None:
    graph.require_flat(model)
    tflite.check_weights(model)
    if len(images) != len(labels) or not len(images):
        raise ValueError(f"{len(images)} images and {len(labels)} labels; expected one label an image, at least one")
    if epochs < 1:
        raise ValueError(f"epochs={epochs}; expected at least 1")


def _load() -> tuple[Any, Any]:
    tf_keras = tf_keras_twin.load_tf_keras()
    with quiet():
        return tf_keras, require("tensorflow_model_optimization", "tensorflow-model-optimization")
