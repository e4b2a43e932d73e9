"""Quantization-aware training of a Keras 3 model: it computes as int8 will while it learns, and so learns to bear it.

aware = quantize.prepare(model, calibration=images)
quantize.fine_tune(aware, images, labels, epochs=2)
data = quantize.convert(aware)          # the int8 .tflite file
quantize.copy_back(aware, model)        # optional: the learnt weights in the Keras 3 model
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import keras
import numpy as np

from zoo import graph
from zoo.deploy import int8_graph, tf_keras_twin, tflite
from zoo.deploy.tflite_file import quiet, require

if TYPE_CHECKING:
    import tensorflow as tf

BATCH = 32  # images at once where ranges are measured

OnEpoch = Callable[[int, dict[str, float]], None]
Scheme = Literal["int8", "int4"]
Loss = Literal["categorical", "binary", "regression"]  # cross-entropies, mean squared error


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
        config = fake_quant.LayerConfig(layer_class.__name__, layer.name in rounded, 4 if scheme == "int4" else 8)
        wrappers[layer.name] = fake_quant.QuantizeWrapper(layer, config, name=f"quant_{layer.name}")
        return layer, wrappers[layer.name]

    calls = tf_keras_twin.calls_of(rewritten.model)
    with quiet():
        aware, variables = tf_keras_twin.rebuild(rewritten.model, calls, keras, tf_keras, make)
    for name, (low, high) in measure_ranges(rewritten.model, rounded, images).items():
        wrappers[name]._output_quantizer_vars["min"].assign(low)
        wrappers[name]._output_quantizer_vars["max"].assign(high)
    return Aware(aware, variables, rewritten.parts, heads_of(model), scheme)


def fine_tune(
    aware: Aware,
    images: np.ndarray,
    labels: Any,
    *,
    loss: Loss | Sequence[Loss | None] | None = None,
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
            Of a model with several outputs one such array an output, in a list or by the names of `aware.heads`.
        loss: None takes what follows from the activation of each output: softmax is "categorical", sigmoid "binary".
        on_epoch: called after each epoch with its number from 0, its `loss`, and its `accuracy` or, in a regression,
            `error`; of several outputs as OUTPUT_loss, OUTPUT_accuracy, beside the `loss` of all.
        state: a folder that keeps the state after each epoch, and from which the same call goes on after a kill. Remove
            it once the result is written.

    Raises:
        ValueError: images and labels that do not match, an output whose loss is not known, a number that cannot be, or
            a loss that is not a number.
    """
    if batch_size < 1 or learning_rate <= 0:
        raise ValueError(
            f"batch_size={batch_size}, learning_rate={learning_rate}; expected batch_size >= 1 and a learning_rate > 0"
        )
    tf_keras, _ = _load()
    tf_keras.utils.set_random_seed(seed)
    schedule = tf_keras.optimizers.schedules.CosineDecay(learning_rate, max(1, epochs * -(-len(images) // batch_size)))
    callbacks = (
        [] if state is None else [tf_keras.callbacks.BackupAndRestore(os.fspath(state), delete_checkpoint=False)]
    )
    if on_epoch is not None:
        callbacks.append(tf_keras.callbacks.LambdaCallback(on_epoch_end=_renamed(on_epoch, aware)))
    with quiet() if on_epoch is None else contextlib.nullcontext():
        losses = fit(
            aware.model, aware.heads, images, labels, loss=loss, learning_rate=schedule, epochs=epochs,
            batch_size=batch_size, callbacks=callbacks,
        )  # fmt: skip
    if not np.all(np.isfinite(losses)):
        raise ValueError(
            f"the training diverged, losses {losses}; prepare() the model anew and lower learning_rate={learning_rate}"
        )
    return losses


def _renamed(
    on_epoch: Callable[[int, dict[str, float]], None], aware: Aware
) -> Callable[[int, dict[str, float]], None]:
    """Returns `on_epoch` for the logs of tf_keras, which name the outputs after their wrappers."""
    names = dict(zip(aware.model.output_names, aware.heads, strict=True))

    def renamed(epoch: int, logs: dict[str, float]) -> None:
        named = {}
        for key, value in logs.items():
            output = next((name for name in names if key.startswith(f"{name}_")), None)
            named[key if output is None else key.replace(output, names[output], 1)] = value
        on_epoch(epoch, named)

    return renamed


def heads_of(model: keras.Model) -> dict[str, str]:
    """Returns the activation of each output of a flat model by the name of its layer."""
    names = [graph.node_of(tensor).operation.name for tensor in model.outputs]
    return dict(zip(names, graph.head_activations(model), strict=True))


def fit(
    model: Any,
    heads: Mapping[str, str],
    images: np.ndarray,
    labels: Any,
    *,
    loss: Loss | Sequence[Loss | None] | None,
    learning_rate: Any,
    epochs: int,
    batch_size: int,
    callbacks: Sequence[Any],
) -> list[float]:
    """Trains a tf_keras model with Adam, and returns the loss of each epoch; arguments and errors as `fine_tune`.

    Args:
        heads: of the model's outputs, in their order.
        learning_rate: a number or a schedule of tf_keras.
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
            f"the model has {len(heads)} outputs ({', '.join(heads)}): give as many arrays of labels, in a list or by "
            "these names, or a model with one output: keras.Model(model.input, model.outputs[0])"
        )
    wanted: Sequence[Any] = [loss] * len(heads) if loss is None or isinstance(loss, str) else loss
    arrays = [np.asarray(one) for one in labels]
    for array in arrays:
        if len(array) != len(images) or not len(images):
            raise ValueError(
                f"{len(images)} images and {len(array)} labels; expected one label an image, and at least one"
            )
    targets = [
        _target(tf_keras, name, activation, tuple(tensor.shape[1:]), array, kind)
        for (name, activation), tensor, array, kind in zip(heads.items(), model.outputs, arrays, wanted, strict=True)
    ]
    losses, metrics, arrays = (list(one) for one in zip(*targets, strict=True))
    model.compile(tf_keras.optimizers.Adam(learning_rate), losses, metrics=[[metric] for metric in metrics])
    history = model.fit(
        images, arrays if len(arrays) > 1 else arrays[0], batch_size=batch_size, epochs=epochs, verbose=0,
        callbacks=list(callbacks),
    )  # fmt: skip
    return [float(value) for value in history.history.get("loss", [])]


def _target(
    tf_keras: Any, name: str, activation: str, shape: tuple[int, ...], labels: np.ndarray, loss: Loss | None
) -> tuple[Any, Any, np.ndarray]:
    """Returns the loss and metric of one output, and its labels in the form that they take."""
    units = shape[-1]
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
        made = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=logits)
        return made, tf_keras.metrics.SparseCategoricalAccuracy(name="accuracy"), labels
    if labels.shape[1:] != shape and labels.shape[1:] != shape[:-1] + shape[-1:] * (units != 1):
        raise ValueError(
            f"output {name!r} gives {shape} an image and labels are {labels.shape[1:]} with loss {loss!r}; expected "
            f"{shape}" + (f", or class numbers {shape[:-1]}" if loss == "categorical" else "")
        )
    labels = labels.reshape(-1, *shape).astype(np.float32)
    if loss == "regression":
        return tf_keras.losses.MeanSquaredError(), tf_keras.metrics.MeanAbsoluteError(name="error"), labels
    if labels.min() < 0 or labels.max() > 1:
        raise ValueError(
            f"labels of {name!r} go from {labels.min()} to {labels.max()}; expected with loss {loss!r} from 0 to 1"
        )
    if loss == "categorical":
        made = tf_keras.losses.CategoricalCrossentropy(from_logits=logits)
        return made, tf_keras.metrics.CategoricalAccuracy(name="accuracy"), labels
    made = tf_keras.losses.BinaryCrossentropy(from_logits=logits)
    return made, tf_keras.metrics.BinaryAccuracy(name="accuracy", threshold=0.0 if logits else 0.5), labels


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
    import tensorflow as tf

    _, fake_quant = _load()
    shape = tuple(aware.model.inputs[0].shape[1:])
    with quiet(), fake_quant.exporting():
        call = tf.function(lambda image: aware.model(image, training=False), autograph=False)
        function = call.get_concrete_function(tf.TensorSpec((1, *shape), tf.float32, name="image"))
    return tflite.from_function(function, quantize=aware.scheme, calibration=None, model=aware.model)


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


def measure_ranges(
    model: keras.Model, names: Iterable[str], images: Sequence[np.ndarray]
) -> dict[str, tuple[float, float]]:
    """Returns minimum and maximum of the named layers' outputs, zero included, as means over batches of 32 images."""
    import tensorflow as tf

    wanted = set(names)

    @tf.function(autograph=False)
    def batch_ranges(batch: Any) -> Any:
        ranges: dict[str, Any] = {}

        def run(call: graph.Call, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
            if call.layer._call_has_training_arg:
                options = {**options, "training": False}
            output = call.layer(*arguments, **options)
            if call.layer.name in wanted:
                low, high = ranges.get(call.layer.name, (0.0, 0.0))
                ranges[call.layer.name] = (
                    tf.minimum(tf.reduce_min(output), low), tf.maximum(tf.reduce_max(output), high),
                )  # fmt: skip
            return output

        graph.replay(model, [batch], run)  # one graph for all: each tensor is freed after its last reader
        return ranges

    batches = [np.stack(images[start : start + BATCH]) for start in range(0, len(images), BATCH)]
    found = [batch_ranges(tf.constant(batch)) for batch in batches]
    means = {name: [float(np.mean([one[name][end].numpy() for one in found])) for end in (0, 1)] for name in found[0]}
    return {name: (low, high) for name, (low, high) in means.items()}


def _load() -> tuple[Any, Any]:
    tf_keras = tf_keras_twin.load_tf_keras()
    with quiet():
        require("tensorflow_model_optimization", "tensorflow-model-optimization")
        from zoo.deploy import fake_quant
    return tf_keras, fake_quant
