"""Training of a Keras 3 model for int8, pruning and clustering, by TF-MOT on its tf_keras twin.

In quantization-aware training it computes as int8 will while it learns, and so learns to bear it:

aware = quantize.prepare(model, calibration=images)
quantize.fine_tune(aware, images, labels, epochs=2)
data = quantize.convert(aware)          # the int8 .tflite file
quantize.copy_back(aware, model)        # optional: the learnt weights in the Keras 3 model

Neither pruning nor clustering makes a .tflite file smaller or faster as it lies: the zeros and the repeated values show
once it is compressed, for a download or for flash with a decompressor, which `compressed_size` measures.
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

PRUNED = ("Conv2D", "Dense", "SeparableConv2D")  # depthwise kernels stay whole
CLUSTERED = (*PRUNED, "DepthwiseConv2D")

OnEpoch = Callable[[int, dict[str, float]], None]
Scheme = Literal["int8", "int4"]
Loss = Literal["categorical", "binary", "regression"]  # cross-entropies, mean squared error
Losses = Loss | Sequence[Loss | None] | None  # of one output or several; None takes what follows from the activation


@dataclasses.dataclass(frozen=True)
class Aware:
    """A model in quantization-aware training.

    `model` is a tf_keras model with float inputs and outputs. `variables` holds its float weights by layer, and `parts`
    says which of those layers make up a layer of the original. `heads` are the activations of its outputs, by the name
    of the output's layer. `scheme` is what it is trained for.
    """

    model: Any
    variables: dict[str, list["tf.Variable"]]
    parts: dict[str, tuple[str, ...]]
    heads: dict[str, str]
    scheme: Scheme = "int8"


def prepare(model: keras.Model, calibration: np.ndarray | Iterable[Any], scheme: Scheme = "int8") -> Aware:
    """Returns the model with each kernel rounded per output channel and each activation rounded in a measured range.

    Args:
        calibration: images as `tflite.convert` takes them; the ranges start at what they show and move in training.
        scheme: of the file, as `tflite.convert` has them.

    Raises:
        Int8Error, TwinError: a layer cannot be trained for int8, or has no twin under tf_keras.
        ConversionError: no calibration images, or of another shape; weights that are not finite, or over 2 GB.
        MissingPackageError: tf_keras or TF-MOT is not installed.
    """
    import tensorflow as tf

    tf_keras, fake_quant = _load()
    images = tflite.calibration_images(model, calibration)
    model = graph.flatten(model, images[0].shape)
    tflite.check_weights(model)
    rewritten = int8_graph.rewrite(model)
    rounded = int8_graph.rounded_layers(rewritten.model)
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
    """Trains the float weights under the rounding with Adam, the rate falling to zero by a cosine.

    Returns the loss of each epoch that was run here.

    Args:
        labels: class numbers (n,) or rows (n, classes); 0 and 1 for a sigmoid, one a unit; numbers for a regression.
            Of several outputs one such array each, in a list or by the names of `aware.heads`.
        loss: None takes what follows from each output's activation: softmax is "categorical", sigmoid "binary".
        on_epoch: called after each epoch with its number from 0, its `loss`, and its `accuracy` or, in a regression,
            `error`; of several outputs as OUTPUT_loss, OUTPUT_accuracy, beside the `loss` of all.
        state: a folder that keeps the state after each epoch, from which the same call resumes. Remove it once the
            result is written.

    Raises:
        ValueError: labels that do not match, an output of unknown loss, an impossible number, or a loss that is NaN.
    """
    if batch_size < 1 or learning_rate <= 0:
        raise ValueError(f"batch_size={batch_size}, learning_rate={learning_rate}; expected at least 1, and above 0")
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
            f"the training diverged, losses {losses}; prepare() the model anew and lower learning_rate={learning_rate}"
        )
    return losses


def _renamed(on_epoch: OnEpoch, aware: Aware) -> OnEpoch:
    """Returns `on_epoch` for the logs of tf_keras, which name the outputs after their wrappers."""
    names = dict(zip(aware.model.output_names, aware.heads, strict=True))

    def renamed(epoch: int, logs: dict[str, float]) -> None:
        outputs = {key: next((name for name in names if key.startswith(f"{name}_")), "") for key in logs}
        on_epoch(epoch, {key.replace(one, names.get(one, ""), 1): logs[key] for key, one in outputs.items()})

    return renamed


def heads_of(model: keras.Model) -> dict[str, str]:
    """Returns the activation of each output of a flat model by the name of its layer."""
    names = [graph.node_of(tensor).operation.name for tensor in model.outputs]
    return dict(zip(names, graph.head_activations(model), strict=True))


def _fit(
    model: Any, heads: Mapping[str, str], images: np.ndarray, labels: Any, *, loss: Losses, learning_rate: Any,
    epochs: int, batch_size: int, callbacks: list[Any],
) -> list[float]:  # fmt: skip
    """Trains a tf_keras model with these activations of its outputs; the rate may be a schedule. See `fine_tune`."""
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
            f"the model has {len(heads)} outputs ({', '.join(heads)}): give as many arrays of labels, in a list or by "
            "these names, or a model with one output: keras.Model(model.input, model.outputs[0])"
        )
    wanted: Sequence[Any] = [loss] * len(heads) if loss is None or isinstance(loss, str) else loss
    arrays = [np.asarray(one) for one in labels]
    for array in arrays:
        if not len(array) == len(images) > 0:
            raise ValueError(f"{len(images)} images and {len(array)} labels; expected one label an image, at least one")
    targets = [
        _target(tf_keras, name, activation, tuple(tensor.shape[1:]), array, kind)
        for (name, activation), tensor, array, kind in zip(heads.items(), model.outputs, arrays, wanted, strict=True)
    ]
    losses, metrics, arrays = (list(one) for one in zip(*targets, strict=True))
    model.compile(tf_keras.optimizers.Adam(learning_rate), losses, metrics=[[metric] for metric in metrics])
    history = model.fit(
        images, arrays if len(arrays) > 1 else arrays[0], batch_size=batch_size, epochs=epochs, verbose=0,
        callbacks=callbacks,
    )  # fmt: skip
    return [float(value) for value in history.history.get("loss", [])]


def _target(
    tf_keras: Any, name: str, activation: str, shape: tuple[int, ...], labels: np.ndarray, loss: Loss | None
) -> tuple[Any, Any, np.ndarray]:
    """Returns the loss and metric of one output, and its labels in the form that they take."""
    units, losses, metrics = shape[-1], tf_keras.losses, tf_keras.metrics
    if loss is None:
        loss = _loss_of(name, activation, shape, labels)
    logits = activation == "linear"
    if loss == "categorical" and labels.shape[1:] in (shape[:-1], (*shape[:-1], 1)):
        labels = labels.reshape(-1, *shape[:-1])
        if labels.min() < 0 or labels.max() >= units or np.any(labels != np.round(labels)):
            raise ValueError(
                f"output {name!r} tells {units} classes apart, and labels go from {labels.min()} to {labels.max()}. "
                f'Expected class numbers from 0 to {units - 1}; a single unit takes 0 and 1 with loss="binary"'
            )
        made = losses.SparseCategoricalCrossentropy(from_logits=logits)
        return made, metrics.SparseCategoricalAccuracy(name="accuracy"), labels
    if labels.shape[1:] not in (shape, shape[:-1] + shape[-1:] * (units != 1)):
        raise ValueError(
            f"output {name!r} gives {shape} an image and labels are {labels.shape[1:]} with loss {loss!r}; expected "
            f"{shape}" + (f", or class numbers {shape[:-1]}" if loss == "categorical" else "")
        )
    labels = labels.reshape(-1, *shape).astype(np.float32)
    if loss == "regression":
        return losses.MeanSquaredError(), metrics.MeanAbsoluteError(name="error"), labels
    if labels.min() < 0 or labels.max() > 1:
        raise ValueError(
            f"labels of {name!r} go from {labels.min()} to {labels.max()}; expected with loss {loss!r} from 0 to 1"
        )
    if loss == "categorical":
        return losses.CategoricalCrossentropy(from_logits=logits), metrics.CategoricalAccuracy(name="accuracy"), labels
    metric = metrics.BinaryAccuracy(name="accuracy", threshold=0.0 if logits else 0.5)
    return losses.BinaryCrossentropy(from_logits=logits), metric, labels


def _loss_of(name: str, activation: str, shape: tuple[int, ...], labels: np.ndarray) -> Loss:
    """Returns the loss that goes with an output's activation and labels, or asks for it."""
    if activation != "linear":
        known: dict[str, Loss] = {"softmax": "categorical", "sigmoid": "binary"}
        return known.get(activation, "regression")
    if shape[-1] > 1 and labels.shape[1:] in (shape[:-1], (*shape[:-1], 1)):
        return "categorical"
    if not np.isin(labels, (0, 1)).all():
        return "regression"
    raise ValueError(
        f"output {name!r} ends in no activation, so that its labels of 0 and 1 may be classes or numbers. Say which: "
        'loss="binary" or "categorical" (the outputs are logits), or loss="regression"'
    )


def convert(aware: Aware) -> bytes:
    """Returns the .tflite file (int8 input and output) with the ranges that training has found."""
    with _load()[1].exporting():
        return tflite.convert_flat(aware.model, aware.model.inputs[0].shape[1:], aware.scheme, None)


def copy_back(aware: Aware, model: keras.Model) -> None:
    """Puts the trained float weights into `model`, which `prepare` was given or which has the same layers.

    Raises:
        GraphError: a layer is missing there or has weights of other shapes; nothing is copied then.
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
    """Returns a copy of the model in which a share `sparsity` of each kernel's values, the smallest, is zero.

    The share grows over the first half of the training and is then held. Depthwise kernels stay whole, as in TF-MOT.
    `labels` and `loss` are as of `fine_tune`.

    Raises:
        ValueError: an impossible number, or weights that are not finite (ConversionError).
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
    """Returns a copy of the model in which each kernel has at most `clusters` different values; else as `prune`."""
    if clusters < 2:
        raise ValueError(f"clusters={clusters}; expected at least 2")
    api = tf_keras_twin.load_model_optimization().clustering.keras
    options = {"number_of_clusters": clusters, "cluster_centroids_init": api.CentroidInitialization.LINEAR}
    return _train_wrapped(
        model, CLUSTERED, lambda layer: api.cluster_weights(layer, **options), api.strip_clustering,
        images, labels, loss=loss, epochs=epochs, learning_rate=learning_rate, batch_size=batch_size, callbacks=[],
    )  # fmt: skip


def compressed_size(tflite: Source) -> int:
    """Returns the bytes of a .tflite file after deflate, the method of zip and gzip."""
    return len(zlib.compress(read(tflite), 9))


def _train_wrapped(
    model: keras.Model, kinds: Sequence[str], wrap: Callable[[Any], Any], strip: Callable[[Any], Any],
    images: np.ndarray, labels: Any, *, loss: Losses, epochs: int,
    learning_rate: float, batch_size: int, callbacks: list[Any],
) -> keras.Model:  # fmt: skip
    """Returns a copy of the model, trained on its twin in which the layers of these kinds are wrapped."""
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
