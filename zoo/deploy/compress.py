"""Pruning and clustering of a Keras 3 model by TF-MOT on its tf_keras twin: files that compress better.

Neither makes a .tflite file smaller or faster as it lies: the zeros and the repeated values show once it is compressed,
for a download or for flash with a decompressor, which `compressed_size` measures.
"""

import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from zoo import graph
from zoo.deploy import quantize, tf_keras_twin, tflite
from zoo.deploy.tflite_file import Source, quiet, read, require

PRUNED = ("Conv2D", "Dense", "SeparableConv2D")  # depthwise kernels stay whole
CLUSTERED = (*PRUNED, "DepthwiseConv2D")


def prune(
    model: keras.Model,
    images: np.ndarray,
    labels: Any,
    *,
    sparsity: float = 0.5,
    loss: quantize.Loss | Sequence[quantize.Loss | None] | None = None,
    epochs: int = 2,
    learning_rate: float = 1e-4,
    batch_size: int = 64,
) -> keras.Model:
    """Returns a copy of the model in which a share `sparsity` of each kernel's values, the smallest, is zero.

    The share grows over the first half of the training and is then held. Depthwise kernels are left whole, as TF-MOT
    does.

    Args:
        labels, loss: as of `quantize.fine_tune`.

    Raises:
        ValueError: a number that cannot be, ConversionError among them: weights that are not finite.
        TwinError, GraphError: as `tf_keras_twin.to_tf_keras`.
    """
    if not 0 < sparsity < 1:
        raise ValueError(f"sparsity={sparsity}; expected a share above 0 and below 1, such as 0.5")
    tfmot = _load()
    steps = epochs * -(-len(images) // batch_size)
    api = tfmot.sparsity.keras
    schedule = api.PolynomialDecay(0.0, sparsity, 0, max(1, steps // 2), frequency=1)
    training = _Training(images, labels, loss, epochs, learning_rate, batch_size, [api.UpdatePruningStep()])

    def wrap(layer: Any) -> Any:
        return api.prune_low_magnitude(layer, pruning_schedule=schedule)

    return _trained(model, PRUNED, wrap, api.strip_pruning, training)


def cluster(
    model: keras.Model,
    images: np.ndarray,
    labels: Any,
    *,
    clusters: int = 16,
    loss: quantize.Loss | Sequence[quantize.Loss | None] | None = None,
    epochs: int = 1,
    learning_rate: float = 1e-4,
    batch_size: int = 64,
) -> keras.Model:
    """Returns a copy of the model in which each kernel has at most `clusters` different values.

    Args and raises: as `prune`.
    """
    if clusters < 2:
        raise ValueError(f"clusters={clusters}; expected at least 2")
    tfmot = _load()
    api = tfmot.clustering.keras
    start = api.CentroidInitialization.LINEAR
    training = _Training(images, labels, loss, epochs, learning_rate, batch_size, [])

    def wrap(layer: Any) -> Any:
        return api.cluster_weights(layer, number_of_clusters=clusters, cluster_centroids_init=start)

    return _trained(model, CLUSTERED, wrap, api.strip_clustering, training)


def compressed_size(tflite: Source) -> int:
    """Returns the bytes of a .tflite file after deflate, the method of zip and gzip."""
    return len(zlib.compress(read(tflite), 9))


class _Training(NamedTuple):
    images: np.ndarray
    labels: Any
    loss: Any
    epochs: int
    learning_rate: float
    batch_size: int
    callbacks: list[Any]


def _trained(
    model: keras.Model,
    kinds: Sequence[str],
    wrap: Callable[[Any], Any],
    strip: Callable[[Any], Any],
    training: _Training,
) -> keras.Model:
    """Returns a copy of the model, trained on its twin in which the layers of these kinds are wrapped."""
    if len(training.images):
        model = graph.flatten(model, training.images.shape[1:])
    tflite.check_weights(model)
    tf_keras = tf_keras_twin.load_tf_keras()
    twin = tf_keras_twin.to_tf_keras(model)

    def wrapped(layer: Any) -> Any:
        return wrap(layer) if type(layer).__name__ in kinds else layer

    with quiet():
        twin = tf_keras.models.clone_model(twin, clone_function=wrapped)
        quantize.fit(
            twin, quantize.heads_of(model), training.images, training.labels, loss=training.loss,
            learning_rate=training.learning_rate, epochs=training.epochs, batch_size=training.batch_size,
            callbacks=training.callbacks,
        )  # fmt: skip
        trained = strip(twin)
        copy = graph.copy_model(model)
        graph.copy_weights(trained, copy)
        graph.check_copy(copy, trained)
    return copy


def _load() -> Any:
    tf_keras_twin.load_tf_keras()
    with quiet():
        return require("tensorflow_model_optimization", "tensorflow-model-optimization")
