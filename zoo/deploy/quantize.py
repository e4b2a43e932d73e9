"""Quantization-aware training of a Keras 3 model: it computes as int8 will while it learns, and so learns to bear it.

aware = quantize.prepare(model, calibration=images)
quantize.fine_tune(aware, images, labels, epochs=2)
data = quantize.convert(aware)          # the int8 .tflite file
quantize.copy_back(aware, model)        # optional: the learnt weights in the Keras 3 model
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from zoo.deploy import graph, int8_graph, tf_keras_twin, tflite
from zoo.deploy.tflite_file import quiet, require

if TYPE_CHECKING:
    import tensorflow as tf

BATCH = 32  # images at once where ranges are measured


@dataclasses.dataclass(frozen=True)
class Aware:
    """A model in quantization-aware training.

    `model` is a tf_keras model with float inputs and outputs. `variables` holds its float weights by layer, and `parts`
    says which of those layers make up a layer of the original.
    """

    model: Any
    variables: dict[str, list["tf.Variable"]]
    parts: dict[str, tuple[str, ...]]


def prepare(model: keras.Model, calibration: np.ndarray | Iterable[Any]) -> Aware:
    """Returns the model with each kernel rounded per output channel and each activation rounded in a measured range.

    Args:
        calibration: images as `tflite.convert` takes them; the ranges start at what they show and move in training.

    Raises:
        Int8Error, TwinError: a layer cannot be trained for int8, or has no twin under tf_keras.
        ConversionError: no calibration images, or of another shape; weights that are not finite, or over 2 GB.
        MissingPackageError: tf_keras or TF-MOT is not installed.
    """
    tf_keras, fake_quant = _load()
    graph.require_flat(model)
    tflite.check_weights(model)
    images = tflite.calibration_images(model, calibration)
    rewritten = int8_graph.rewrite(model)
    rounded = int8_graph.rounded_layers(rewritten.model)
    wrappers: dict[str, Any] = {}

    def make(layer_class: type, options: dict[str, Any]) -> tuple[Any, Any]:
        frozen = layer_class is tf_keras.layers.BatchNormalization
        layer = (fake_quant.FrozenStatistics if frozen else layer_class)(**options)
        config = fake_quant.LayerConfig(fake_quant.KERNELS.get(layer_class.__name__), layer.name in rounded)
        wrappers[layer.name] = fake_quant.QuantizeWrapper(layer, config, name=f"quant_{layer.name}")
        return layer, wrappers[layer.name]

    calls = tf_keras_twin.calls_of(rewritten.model)
    with quiet():
        aware, variables = tf_keras_twin.rebuild(rewritten.model, calls, keras, tf_keras, make)
    for name, (low, high) in measure_ranges(rewritten.model, rounded, images).items():
        wrappers[name]._output_quantizer_vars["min"].assign(low)
        wrappers[name]._output_quantizer_vars["max"].assign(high)
    return Aware(aware, variables, rewritten.parts)


def fine_tune(
    aware: Aware,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    epochs: int = 1,
    learning_rate: float = 1e-4,
    batch_size: int = 64,
    seed: int = 0,
    on_epoch: Callable[[int, dict[str, float]], None] | None = None,
    state: str | os.PathLike | None = None,
) -> list[float]:
    """Trains the float weights behind the rounding with Adam, the rate falling to zero by a cosine.

    Returns the loss of each epoch that was run here.

    Args:
        labels: class numbers (n,).
        on_epoch: called after each epoch with its number from 0 and its `loss` and `accuracy`.
        state: a folder that keeps the state after each epoch, and from which the same call goes on after a kill. Remove
            it once the result is written.

    Raises:
        ValueError: images and labels that do not match, a number that cannot be, or a loss that is not a number.
    """
    tf_keras, _ = _load()
    if len(images) != len(labels) or not len(images):
        raise ValueError(
            f"{len(images)} images and {len(labels)} labels; expected one label an image, and at least one"
        )
    if epochs < 1 or batch_size < 1 or learning_rate <= 0:
        raise ValueError(
            f"epochs={epochs}, batch_size={batch_size}, learning_rate={learning_rate}; expected epochs and "
            "batch_size >= 1 and a learning_rate > 0"
        )
    tf_keras.utils.set_random_seed(seed)
    steps = epochs * -(-len(images) // batch_size)
    schedule = tf_keras.optimizers.schedules.CosineDecay(learning_rate, steps)
    probabilities = _ends_in_softmax(aware.model)
    aware.model.compile(
        optimizer=tf_keras.optimizers.Adam(schedule),
        loss=tf_keras.losses.SparseCategoricalCrossentropy(from_logits=not probabilities),
        metrics=["accuracy"],
    )
    callbacks = (
        [] if state is None else [tf_keras.callbacks.BackupAndRestore(os.fspath(state), delete_checkpoint=False)]
    )
    if on_epoch is not None:
        callbacks.append(tf_keras.callbacks.LambdaCallback(on_epoch_end=on_epoch))
    with quiet() if on_epoch is None else contextlib.nullcontext():
        history = aware.model.fit(
            images, np.asarray(labels), batch_size=batch_size, epochs=epochs, verbose=0, callbacks=callbacks
        )
    losses = [float(loss) for loss in history.history.get("loss", [])]
    if not np.all(np.isfinite(losses)):
        raise ValueError(
            f"the training diverged, losses {losses}; prepare() the model anew and lower learning_rate={learning_rate}"
        )
    return losses


def convert(aware: Aware) -> bytes:
    """Returns the int8 .tflite file (int8 input and output) with the ranges that training has found."""
    import tensorflow as tf

    _, fake_quant = _load()
    shape = tuple(aware.model.inputs[0].shape[1:])
    with quiet(), fake_quant.exporting():
        call = tf.function(lambda image: aware.model(image, training=False), autograph=False)
        function = call.get_concrete_function(tf.TensorSpec((1, *shape), tf.float32, name="image"))
    return tflite.from_function(function, quantize="int8", calibration=None, model=aware.model)


def copy_back(aware: Aware, model: keras.Model) -> None:
    """Puts the trained float weights into `model`, which `prepare` was given or which has the same layers.

    Raises:
        TwinError: a layer is missing there or has weights of other shapes; nothing is copied then.
    """
    layers = {layer.name: layer for layer in model.layers}
    values = {
        name: [variable.numpy() for part in parts for variable in aware.variables[part]]
        for name, parts in aware.parts.items()
    }
    for name, ours in values.items():
        shapes = [value.shape for value in ours]
        theirs = [tuple(weight.shape) for weight in layers[name].weights] if name in layers else "no such layer"
        if shapes != theirs:
            raise tf_keras_twin.TwinError(
                f"layer {name!r} was trained with weights of {shapes}, and model {model.name!r} has {theirs}. Give it "
                "a model made as the one that prepare() took"
            )
    for name, ours in values.items():
        layers[name].set_weights(ours)


def measure_ranges(
    model: keras.Model, names: Iterable[str], images: Sequence[np.ndarray]
) -> dict[str, tuple[float, float]]:
    """Returns minimum and maximum of the named layers' outputs, zero included, as means over batches of 32 images."""
    import tensorflow as tf

    calls = graph.calls(model)
    wanted = [call.layer.name for call in calls if call.layer.name in set(names)]

    @tf.function(autograph=False)
    def batch_ranges(batch: Any) -> Any:
        value_of, ranges = {id(model.inputs[0]): batch}, []
        for call in calls:  # one graph for all: each tensor is freed after its last reader
            arguments, options = call.replay(value_of)
            output = call.layer(
                *arguments, **{**options, "training": False} if call.layer._call_has_training_arg else options
            )
            value_of[id(call.outputs[0])] = output
            if call.layer.name in wanted:
                ranges.append(
                    tf.stack([tf.minimum(tf.reduce_min(output), 0.0), tf.maximum(tf.reduce_max(output), 0.0)])
                )
        return tf.stack(ranges)

    batches = [np.stack(images[start : start + BATCH]) for start in range(0, len(images), BATCH)]
    means = np.mean([batch_ranges(tf.constant(batch)).numpy() for batch in batches], axis=0)
    return {name: (float(low), float(high)) for name, (low, high) in zip(wanted, means, strict=True)}


def _ends_in_softmax(model: Any) -> bool:
    layer = model.layers[-1].layer
    return getattr(getattr(layer, "activation", None), "__name__", "") == "softmax" or type(layer).__name__ == "Softmax"


def _load() -> tuple[Any, Any]:
    tf_keras = tf_keras_twin.load_tf_keras()
    with quiet():
        require("tensorflow_model_optimization", "tensorflow-model-optimization")
        from zoo.deploy import fake_quant
    return tf_keras, fake_quant
