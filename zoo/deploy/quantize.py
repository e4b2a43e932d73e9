"""Quantization-aware training, pruning and clustering of a Keras 3 model, by TF-MOT on its tf_keras twin.

In quantization-aware training the model computes with the rounding of int8 while it learns, and adapts to it:

aware = quantize.prepare(model, calibration=images)
quantize.fine_tune(aware, images, labels, epochs=2)
data = quantize.convert(aware)          # the int8 .tflite file
quantize.copy_back(aware, model)        # optional: the trained weights in the Keras 3 model

Pruning and clustering do not make a .tflite file itself smaller or faster. Their zeros and repeated values pay off when
the file is compressed, for a download or for flash with a decompressor; `compressed_size` measures this.
"""

import contextlib
import dataclasses
import os
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import keras
import numpy as np

from zoo import graph
from zoo.deploy import int8_graph, tf_keras_twin, tflite
from zoo.deploy.tflite_file import Source, quiet, read

if TYPE_CHECKING:
    import tensorflow as tf

PRUNED = ("Conv2D", "Dense", "SeparableConv2D")  # depthwise kernels are not pruned
CLUSTERED = (*PRUNED, "DepthwiseConv2D")

OnEpoch = Callable[[int, dict[str, float]], None]
Scheme = Literal["int8", "int4"]
Loss = Literal["categorical", "binary", "regression"]  # cross-entropies, mean squared error
Losses = Loss | Sequence[Loss | None] | None  # of one output or several; None derives it from the activation


@dataclasses.dataclass(frozen=True)
class Aware:
    """A model in quantization-aware training.

    `model` is a tf_keras model with float inputs and outputs. `variables` holds its float weights by layer, and `parts`
    gives for each original layer the layers that replace it. `heads` gives the activation of each output by the name of
    its layer. `scheme` is what the model is trained for.
    """

    model: Any
    variables: dict[str, list["tf.Variable"]]
    parts: dict[str, tuple[str, ...]]
    heads: dict[str, str]
    scheme: Scheme = "int8"


def prepare(model: keras.Model, calibration: np.ndarray | Iterable[Any], scheme: Scheme = "int8") -> Aware:
    """Returns the model with each kernel rounded per output channel and each activation rounded in a measured range.

    Args:
        calibration: images as `tflite.convert` takes them; activation ranges start at those measured on these images
            and are updated in training.
        scheme: of the file to make, as `tflite.convert` names it.

    Raises:
        Int8Error, TwinError: a layer cannot be trained for int8, or has no twin under tf_keras.
        ConversionError: no calibration images, or of another shape; weights that are not finite, or over 2 GB.
        MissingPackageError: tf_keras or TF-MOT is not installed.
    """
    import tensorflow as tf

    tf_keras, fake_quant = _load()
    images = tflite.load_calibration(model, calibration)
    model = graph.flatten(model, images[0].shape)
    tflite.check_weights(model)
    rewritten = int8_graph.rewrite(model)
    rounded = int8_graph.find_rounded_layers(rewritten.model)
    wrappers: dict[str, Any] = {}

    def make(layer_class: type, options: dict[str, Any]) -> tuple[Any, Any]:
        frozen = layer_class is tf_keras.layers.BatchNormalization
        layer = (fake_quant.FrozenStatistics if frozen else layer_class)(**options)
        bits = 4 if scheme == "int4" else 8
        wrappers[layer.name] = fake_quant.wrap(layer, layer_class.__name__, layer.name in rounded, bits)
        return layer, wrappers[layer.name]

    with quiet():
        aware, variables = tf_keras_twin.rebuild(rewritten.model, tf_keras, make)
    batches = tflite.summarize_outputs(
        rewritten.model, rounded, images, lambda output: (tf.reduce_min(output), tf.reduce_max(output))
    )
    for name in rounded:
        for place, (end, extreme) in enumerate({"min": np.min, "max": np.max}.items()):
            found = [extreme([np.float32(0), *(call[place] for call in batch[name])]) for batch in batches]
            wrappers[name]._output_quantizer_vars[end].assign(np.mean(found))
    return Aware(aware, variables, rewritten.parts, heads_of(model), scheme)


def fine_tune(
    aware: Aware,
    images: np.ndarray,
    labels: Any,
    *,
    loss: Losses = None,
    epochs: int = 1,
    learning_rate: float = 1e-4,
    batch_size: int = 64,
    seed: int = 0,
    on_epoch: OnEpoch | None = None,
    state: str | os.PathLike | None = None,
) -> list[float]:
    """Trains the float weights through the rounding, with Adam and a learning rate that falls to zero by a cosine.

    Returns the loss of each epoch that this call ran.

    Args:
        labels: class numbers (n,) or rows (n, classes); 0 or 1 for each sigmoid unit; real numbers for a regression.
            For several outputs one such array each, in a list or by the names in `aware.heads`.
        loss: None derives it from each output's activation: "categorical" for softmax, "binary" for sigmoid.
        on_epoch: called after each epoch with its number from 0, its `loss`, and its `accuracy` or, in a regression,
            `error`; with several outputs also OUTPUT_loss and OUTPUT_accuracy of each.
        state: a folder that keeps the state after each epoch, from which the same call resumes. Remove it once the
            result is written.

    Raises:
        ValueError: the labels do not match, an output's loss is unknown, a number is impossible, or the loss is NaN.
    """
    if batch_size < 1 or learning_rate <= 0:
        raise ValueError(
            f"batch_size={batch_size}, learning_rate={learning_rate}; expected a batch size of at least 1 and a rate "
            "above 0"
        )
    tf_keras, _ = _load()
    tf_keras.utils.set_random_seed(seed)
    schedule = tf_keras.optimizers.schedules.CosineDecay(learning_rate, max(1, epochs * -(-len(images) // batch_size)))
    callbacks: list[Any] = []
    if state is not None:
        callbacks.append(tf_keras.callbacks.BackupAndRestore(os.fspath(state), delete_checkpoint=False))
    if on_epoch is not None:
        callbacks.append(tf_keras.callbacks.LambdaCallback(on_epoch_end=_renamed(on_epoch, aware)))
    with quiet() if on_epoch is None else contextlib.nullcontext():
        losses = _fit(
            aware.model, aware.heads, images, labels, loss=loss, learning_rate=schedule, epochs=epochs,
            batch_size=batch_size, callbacks=callbacks,
        )  # fmt: skip
    if not np.all(np.isfinite(losses)):
        raise ValueError(
            f"the training diverged (losses {losses}). Call prepare() again and lower learning_rate={learning_rate}"
        )
    return losses


def _renamed(on_epoch: OnEpoch, aware: Aware) -> OnEpoch:
    """Returns `on_epoch` for tf_keras' logs, which name outputs after their wrappers, with the original names."""
    names = dict(zip(aware.model.output_names, aware.heads, strict=True))

    def renamed(epoch: int, logs: dict[str, float]) -> None:
        outputs = {key: next((name for name in names if key.startswith(f"{name}_")), "") for key in logs}
        on_epoch(epoch, {key.replace(one, names.get(one, ""), 1): logs[key] for key, one in outputs.items()})

    return renamed


def heads_of(model: keras.Model) -> dict[str, str]:
    """Returns the activation of each output of a flat model, by the name of the output's layer."""
    names = [graph.node_of(tensor).operation.name for tensor in model.outputs]
    return dict(zip(names, graph.head_activations(model), strict=True))


def _fit(
    model: Any, heads: Mapping[str, str], images: np.ndarray, labels: Any, *, loss: Losses, learning_rate: Any,
    epochs: int, batch_size: int, callbacks: list[Any],
) -> list[float]:  # fmt: skip
    """Trains a tf_keras model whose outputs have the activations `heads`; the learning rate may be a schedule.

    Returns the loss of each epoch; see `fine_tune`.
    """
    tf_keras = tf_keras_twin.load_tf_keras()
    if epochs < 1:
        raise ValueError(f"epochs={epochs}; expected at least 1")
    if len(heads) == 1:
        labels = labels.values() if isinstance(labels, Mapping) else [labels]
    elif isinstance(labels, Mapping):
        if labels.keys() != heads.keys():
            raise ValueError(f"labels are for {', '.join(labels)}; the model's outputs are {', '.join(heads)}")
        labels = [labels[name] for name in heads]
    elif not isinstance(labels, (list, tuple)) or len(labels) != len(heads):
        raise ValueError(
            f"the model has {len(heads)} outputs ({', '.join(heads)}): give an array of labels for each, in a list or "
            "by these names, or give a model with one output: keras.Model(model.input, model.outputs[0])"
        )
    wanted: Sequence[Any] = [loss] * len(heads) if loss is None or isinstance(loss, str) else loss
    arrays = [np.asarray(values) for values in labels]
    for array in arrays:
        if not len(array) == len(images) > 0:
            raise ValueError(
                f"{len(images)} images and {len(array)} labels; expected one label per image, and at least one image"
            )
    targets = [
        _make_target(tf_keras, name, activation, tuple(tensor.shape[1:]), array, kind)
        for (name, activation), tensor, array, kind in zip(heads.items(), model.outputs, arrays, wanted, strict=True)
    ]
    losses, metrics, arrays = (list(column) for column in zip(*targets, strict=True))
    model.compile(tf_keras.optimizers.Adam(learning_rate), losses, metrics=[[metric] for metric in metrics])
    history = model.fit(
        images, arrays if len(arrays) > 1 else arrays[0], batch_size=batch_size, epochs=epochs, verbose=0,
        callbacks=callbacks,
    )  # fmt: skip
    return [float(value) for value in history.history.get("loss", [])]


def _make_target(
    tf_keras: Any, name: str, activation: str, shape: tuple[int, ...], labels: np.ndarray, loss: Loss | None
) -> tuple[Any, Any, np.ndarray]:
    """Returns the loss and metric of one output, and its labels in the form that these take."""
    units, losses, metrics = shape[-1], tf_keras.losses, tf_keras.metrics
    if loss is None:
        loss = _derive_loss(name, activation, shape, labels)
    logits = activation == "linear"
    if loss == "categorical" and labels.shape[1:] in (shape[:-1], (*shape[:-1], 1)):
        labels = labels.reshape(-1, *shape[:-1])
        if labels.min() < 0 or labels.max() >= units or np.any(labels != np.round(labels)):
            raise ValueError(
                f"output {name!r} has {units} classes, and labels range from {labels.min()} to {labels.max()}. "
                f'Expected class numbers from 0 to {units - 1}; a single unit takes 0 and 1 with loss="binary"'
            )
        made = losses.SparseCategoricalCrossentropy(from_logits=logits)
        return made, metrics.SparseCategoricalAccuracy(name="accuracy"), labels
    if labels.shape[1:] not in (shape, shape[:-1] + shape[-1:] * (units != 1)):
        raise ValueError(
            f"output {name!r} has the shape {shape} per image, and labels have {labels.shape[1:]} with loss {loss!r}; "
            f"expected {shape}" + (f", or class numbers {shape[:-1]}" if loss == "categorical" else "")
        )
    labels = labels.reshape(-1, *shape).astype(np.float32)
    if loss == "regression":
        return losses.MeanSquaredError(), metrics.MeanAbsoluteError(name="error"), labels
    if labels.min() < 0 or labels.max() > 1:
        raise ValueError(
            f"labels of {name!r} range from {labels.min()} to {labels.max()}; loss {loss!r} expects them from 0 to 1"
        )
    if loss == "categorical":
        return losses.CategoricalCrossentropy(from_logits=logits), metrics.CategoricalAccuracy(name="accuracy"), labels
    metric = metrics.BinaryAccuracy(name="accuracy", threshold=0.0 if logits else 0.5)
    return losses.BinaryCrossentropy(from_logits=logits), metric, labels


def _derive_loss(name: str, activation: str, shape: tuple[int, ...], labels: np.ndarray) -> Loss:
    """Returns the loss that follows from an output's activation and labels, or raises ValueError if it is ambiguous."""
    if activation != "linear":
        known: dict[str, Loss] = {"softmax": "categorical", "sigmoid": "binary"}
        return known.get(activation, "regression")
    if shape[-1] > 1 and labels.shape[1:] in (shape[:-1], (*shape[:-1], 1)):
        return "categorical"
    if not np.isin(labels, (0, 1)).all():
        return "regression"
    raise ValueError(
        f"output {name!r} has no activation, so its labels of 0 and 1 may be classes or numbers. Say which: "
        'loss="binary" or "categorical" (the outputs are logits), or loss="regression"'
    )


def convert(aware: Aware) -> bytes:
    """Returns the .tflite file (int8 input and output) with the ranges found in training."""
    with _load()[1].exporting():
        return tflite.convert_flat(aware.model, aware.model.inputs[0].shape[1:], aware.scheme, None)


def copy_back(aware: Aware, model: keras.Model) -> None:
    """Copies the trained float weights into `model`: the one that `prepare` was given, or one with the same layers.

    Raises:
        GraphError: `model` lacks a layer, or a layer has weights of other shapes; then nothing is copied.
    """
    values = {
        name: [variable.numpy() for part in parts for variable in aware.variables[part]]
        for name, parts in aware.parts.items()
    }
    shape = aware.model.input_shape[1:]
    graph.put_weights(graph.inline(model, shape).origins, values, aware.model.name, model.name)


def prune(
    model: keras.Model,
    images: np.ndarray,
    labels: Any,
    *,
    sparsity: float = 0.5,
    loss: Losses = None,
    epochs: int = 2,
    learning_rate: float = 1e-4,
    batch_size: int = 64,
) -> keras.Model:
    """Returns a copy of the model in which the smallest values of each kernel, a share of `sparsity`, are zero.

    The share grows over the first half of the training and then stays. Depthwise kernels are not pruned, as in TF-MOT.
    `labels` and `loss` are as in `fine_tune`.

    Raises:
        ValueError: a number is impossible, or weights are not finite (ConversionError).
        TwinError, GraphError: as `tf_keras_twin.to_tf_keras`.
    """
    if not 0 < sparsity < 1:
        raise ValueError(f"sparsity={sparsity}; expected a share above 0 and below 1, such as 0.5")
    api = tf_keras_twin.load_model_optimization().sparsity.keras
    steps = epochs * -(-len(images) // batch_size)
    schedule = api.PolynomialDecay(0.0, sparsity, 0, max(1, steps // 2), frequency=1)
    return _train_wrapped(
        model, PRUNED, lambda layer: api.prune_low_magnitude(layer, pruning_schedule=schedule), api.strip_pruning,
        images, labels, loss=loss, epochs=epochs, learning_rate=learning_rate, batch_size=batch_size,
        callbacks=[api.UpdatePruningStep()],
    )  # fmt: skip


def cluster(
    model: keras.Model,
    images: np.ndarray,
    labels: Any,
    *,
    clusters: int = 16,
    loss: Losses = None,
    epochs: int = 1,
    learning_rate: float = 1e-4,
    batch_size: int = 64,
) -> keras.Model:
    """Returns a copy of the model in which each kernel has at most `clusters` distinct values; otherwise as `prune`."""
    if clusters < 2:
        raise ValueError(f"clusters={clusters}; expected at least 2")
    api = tf_keras_twin.load_model_optimization().clustering.keras
    options = {"number_of_clusters": clusters, "cluster_centroids_init": api.CentroidInitialization.LINEAR}
    return _train_wrapped(
        model, CLUSTERED, lambda layer: api.cluster_weights(layer, **options), api.strip_clustering,
        images, labels, loss=loss, epochs=epochs, learning_rate=learning_rate, batch_size=batch_size, callbacks=[],
    )  # fmt: skip


def compressed_size(tflite: Source) -> int:
    """Returns the size in bytes of a .tflite file after deflate, the method of zip and gzip."""
    return len(zlib.compress(read(tflite), 9))


def _train_wrapped(
    model: keras.Model, kinds: Sequence[str], wrap: Callable[[Any], Any], strip: Callable[[Any], Any],
    images: np.ndarray, labels: Any, *, loss: Losses, epochs: int,
    learning_rate: float, batch_size: int, callbacks: list[Any],
) -> keras.Model:  # fmt: skip
    """Returns a copy of the model, trained as a tf_keras twin in which the layers of these kinds are wrapped."""
    if len(images):
        model = graph.flatten(model, images.shape[1:])
    tflite.check_weights(model)
    tf_keras = tf_keras_twin.load_tf_keras()
    twin = tf_keras_twin.to_tf_keras(model)
    with quiet():
        twin = tf_keras.models.clone_model(
            twin, clone_function=lambda layer: wrap(layer) if type(layer).__name__ in kinds else layer
        )
        _fit(
            twin, heads_of(model), images, labels, loss=loss, learning_rate=learning_rate, epochs=epochs,
            batch_size=batch_size, callbacks=callbacks,
        )  # fmt: skip
        trained = strip(twin)
        copy = graph.copy_model(model)
        graph.copy_weights(trained, copy)
        graph.check_copy(copy, trained)
    return copy


def _load() -> tuple[Any, Any]:
    tf_keras_twin.load_model_optimization()
    from zoo.deploy import fake_quant

    return tf_keras_twin.load_tf_keras(), fake_quant
