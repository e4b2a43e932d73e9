"""Converts a Keras model to a TensorFlow Lite file: float32, or quantized after training.

Write what `convert` returns with `zoo.atomic.write_atomically`, so that an interruption cannot leave half a file.
"""

import itertools
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np

from zoo import graph
from zoo.deploy import rewrites
from zoo.deploy.tflite_file import quiet

Quantize = Literal["int8", "uint8", "int4", "int16x8", "dynamic", "float16"]
SCHEMES = ("int8", "uint8", "int4", "int16x8", "dynamic", "float16")
CALIBRATED_SCHEMES = ("int8", "uint8", "int4", "int16x8")
_BY_INT8 = ("int8", "uint8", "int4")  # which the converter makes as int8
CALIBRATION_LIMIT = 512  # images: ranges hardly change after some hundred, and a data set may be endless
_BATCH = 32  # images per batch when outputs are summarized
_CONTROL_FLOW = ("If", "LoopCond", "StatelessIf", "StatelessWhile", "Switch", "While")  # as traced and as lowered
MOST_STEPS = 256  # of a recurrent layer that is unrolled
LARGEST_FILE = 2**31 - 1  # bytes; offsets in a flatbuffer are signed 32-bit numbers


class ConversionError(ValueError):
    """The model cannot be converted, or the calibration images cannot be used."""


def convert(
    model: keras.Model,
    *,
    quantize: Quantize | None = None,
    calibration: np.ndarray | Iterable[Any] | None = None,
    input_shape: Sequence[int] | None = None,
) -> bytes:
    """Returns the model in inference mode as the bytes of a .tflite file with a fixed batch of one image.

    The file has one signature, `serving_default`, with the input `image` and the outputs `output_0`, `output_1`, ...

    Args:
        quantize: None keeps float32. "int8": weights per output channel, activations, input and output int8.
            "uint8": as int8, but input and output uint8. "int4": as int8, but weights of four bits
            (`rewrites.narrow_weights`): less flash, and a larger arena.
            "int16x8": int8 weights, int16 activations, input and output. "dynamic": int8 weights, float activations.
            "float16": weights stored in half precision.
        calibration: images on which "int8", "uint8", "int4" and "int16x8" measure ranges: an array (n, height, width,
            channels), preprocessed as in training, or an iterable of images, batches or (images, labels), such as a
            tf.data.Dataset. The first 512 images are used.
        input_shape: (height, width, channels), needed only if the model leaves a size open and there are no calibration
            images.

    Raises:
        ConversionError: missing or unusable calibration images, weights that are not finite, an open size, a layer that
            TensorFlow Lite lacks, or a model over 2 GB.
        GraphError: the model is subclassed.
    """
    if quantize is not None and quantize not in SCHEMES:
        raise ConversionError(f"quantize={quantize!r} is unknown; expected None or one of {', '.join(SCHEMES)}")
    if calibration is not None and quantize not in CALIBRATED_SCHEMES:
        raise ConversionError(
            f"calibration images were given, but quantize={quantize!r} measures no ranges. Leave calibration out, or "
            f"choose one of {', '.join(CALIBRATED_SCHEMES)}"
        )
    images = None
    if quantize in CALIBRATED_SCHEMES:
        images = load_calibration(model, calibration, input_shape)
        input_shape = images[0].shape
    graph.calls(model)
    shape = _fixed_shape(model, input_shape)
    model = graph.flatten(model, shape)
    check_weights(model)
    return convert_flat(model if images is None else _unroll(model), shape, quantize, images)


def load_calibration(
    model: keras.Model, calibration: np.ndarray | Iterable[Any] | None, input_shape: Sequence[int] | None = None
) -> list[np.ndarray]:
    """Returns the first 512 images of what `convert` takes as `calibration`, as float32 arrays of the input's shape.

    Raises:
        ConversionError: there are none, or one has another shape or values that are not finite.
    """
    graph.calls(model)  # raises if there is no graph
    elements = () if calibration is None else calibration
    given = (element[0] if isinstance(element, tuple) else element for element in elements)  # (images, labels)
    first = list(itertools.islice(given, 1))
    declared = model.inputs[0].shape[1:]
    if first and input_shape is None and None in declared:  # take the open size from an image
        input_shape = np.shape(first[0])[-len(declared) :]
    shape = _fixed_shape(model, input_shape)
    images = list(itertools.islice(_iterate_images(itertools.chain(first, given), shape), CALIBRATION_LIMIT))
    if not images:
        raise ConversionError(
            "quantization needs the range of every tensor, measured on calibration images, but there are none. Pass "
            f"calibration=images of shape (n, {', '.join(map(str, shape))}), preprocessed as in training; "
            "a hundred are enough"
        )
    return images


def summarize_outputs(
    model: keras.Model, names: Collection[str], images: Sequence[np.ndarray], summarize: Callable[[Any], Any]
) -> list[dict[str, list[Any]]]:
    """Returns, for each batch of 32 images, the `summarize` of each output of the named layers, computed by TensorFlow.

    For each layer a batch has a list with one entry per call.
    """
    import tensorflow as tf

    @tf.function(autograph=False)
    def run_batch(batch: Any) -> Any:
        found: dict[str, list[Any]] = {}

        def run(call: graph.Call, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
            if call.layer._call_has_training_arg:
                options = {**options, "training": False}
            output = call.layer(*arguments, **options)
            if call.layer.name in names:
                found.setdefault(call.layer.name, []).append(summarize(output))
            return output

        graph.replay(model, [batch], run)  # in one graph, so that each tensor is freed after its last reader
        return found

    batches = [np.stack(images[start : start + _BATCH]) for start in range(0, len(images), _BATCH)]
    return [tf.nest.map_structure(lambda tensor: tensor.numpy(), run_batch(tf.constant(batch))) for batch in batches]


def convert_flat(
    model: Any, shape: Sequence[int], quantize: Quantize | None, calibration: Sequence[np.ndarray] | None
) -> bytes:
    """Converts a flat model of Keras or tf_keras for an image of a fixed shape, without the checks of `convert`.

    Without calibration images, "int8" and "int4" take all ranges from the graph's fake-quantization nodes, which
    quantization-aware training made.
    """
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    with quiet():
        call = tf.function(lambda image: model(image, training=False), autograph=False)
        function = call.get_concrete_function(tf.TensorSpec((1, *shape), tf.float32, name="image"))
    # TensorFlow does not track Keras 3's variables. Frozen into constants they fold into the convolutions; this takes
    # 2 s for a MobileNetV2, while from_keras_model takes 8 s and leaves the batch size open.
    with quiet() as printed:
        frozen = convert_variables_to_constants_v2(function)
        try:
            if calibration is not None and _has_branches(frozen):
                data, failure = _convert_in_subprocess(frozen, quantize, calibration), None
            else:
                converter = tf.lite.TFLiteConverter.from_concrete_functions([frozen], tf.Module())
                _configure(converter, quantize, calibration)
                data, failure = converter.convert(), None
        except Exception as error:  # noqa: BLE001 - each stage of the converter raises another type
            data, failure = b"", error
    if isinstance(failure, ConversionError):
        raise failure
    if failure is not None:
        raise _explain_failure(failure, printed.text, model) from failure
    data = rewrites.narrow_joins(rewrites.widen_scales(data) if quantize in _BY_INT8 else data)
    return rewrites.narrow_weights(data) if quantize == "int4" else data


def _unroll(model: keras.Model) -> keras.Model:
    """Returns the model with its recurrent layers unrolled, because the converter cannot quantize a loop."""
    if not any(_is_short_loop(call) for call in graph.calls(model)):
        return model
    copies: dict[str, Any] = {}

    def run(call: graph.Call, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if not _is_short_loop(call):
            return call.layer(*arguments, **options)
        changes = _set_unroll(call.layer.get_config())
        return graph.call_copy(call.layer, copies, changes, *arguments, **options)

    unrolled = graph.model_like(model, model.inputs, graph.replay(model, model.inputs, run))
    graph.check_copy(model, unrolled)
    return unrolled


def _is_short_loop(call: graph.Call) -> bool:
    if not isinstance(call.layer, (keras.layers.RNN, keras.layers.Bidirectional)):
        return False
    steps = call.inputs[0].shape[1]
    return steps is not None and steps <= MOST_STEPS


def _set_unroll(config: Any) -> Any:
    """Returns a recurrent layer's config with `unroll` set, also in the layers inside it."""
    if isinstance(config, Mapping):
        return {key: True if key == "unroll" else _set_unroll(value) for key, value in config.items()}
    return config


def _has_branches(function: Any) -> bool:
    """Whether a traced function has loops or branches: quantizing these can kill the process with a signal."""
    definition = function.graph.as_graph_def()
    nodes = itertools.chain(definition.node, *(inner.node_def for inner in definition.library.function))
    return any(node.op in _CONTROL_FLOW for node in nodes)


def _convert_in_subprocess(function: Any, quantize: str | None, calibration: Sequence[np.ndarray]) -> bytes:
    """Converts in a separate process, and raises ConversionError if that process dies."""
    import tensorflow as tf

    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(tf.Module(), folder, signatures={"serving_default": function})
        np.save(Path(folder, "images.npy"), np.stack(calibration))
        command = [sys.executable, "-m", "zoo.deploy.tflite", folder, str(quantize)]
        paths = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=paths)
        if done.returncode == 0:
            return Path(folder, "model.tflite").read_bytes()
    if done.returncode > 0:
        raise ConversionError(f"TensorFlow's converter failed: {done.stderr.strip()[-600:]}")
    raise ConversionError(
        f"TensorFlow's converter was ended by signal {-done.returncode}: it cannot quantize the loop or branch in this "
        f"model. Only recurrent layers of up to {MOST_STEPS} steps are unrolled: fix the number of steps, shorten the "
        'sequence, or use quantize="dynamic"'
    )


def _main(folder: str, quantize: str) -> None:
    import tensorflow as tf

    images = np.load(Path(folder, "images.npy"))
    converter = tf.lite.TFLiteConverter.from_saved_model(folder)
    _configure(converter, quantize, list(images))
    Path(folder, "model.tflite").write_bytes(converter.convert())


def _configure(converter: Any, quantize: str | None, calibration: Sequence[np.ndarray] | None) -> None:
    import tensorflow as tf

    if quantize is None:
        return
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if calibration is not None:
        converter.representative_dataset = lambda: ([image[None]] for image in calibration)
    if quantize == "float16":
        converter.target_spec.supported_types = [tf.float16]
    elif quantize in _BY_INT8:
        if calibration is not None:  # with this setting the converter demands calibration
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.uint8 if quantize == "uint8" else tf.int8
    elif quantize == "int16x8":
        converter.target_spec.supported_ops = [
            tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
        ]
        converter.inference_input_type = converter.inference_output_type = tf.int16


def check_weights(model: keras.Model) -> None:
    """Raises ConversionError if weights are not finite or too large for a .tflite file, or if a layer is stateful."""
    size = sum(4 * int(np.prod(weight.shape)) for weight in model.weights)
    if size > LARGEST_FILE:
        raise ConversionError(
            f"the weights of model {model.name!r} take {size / 1e9:.1f} GB as float32, which the converter starts "
            f"from, and a .tflite file holds at most {LARGEST_FILE / 1e9:.1f} GB. Use fewer filters"
        )
    for layer in model.layers:
        if getattr(layer, "stateful", False):
            raise ConversionError(
                f"layer {layer.name!r} keeps its state from call to call, and a .tflite file would lose it. Build the "
                "layer with stateful=False, or with return_state=True and the state as an input"
            )
        for weight in layer.weights:
            values = weight.numpy()
            if not np.all(np.isfinite(values)):
                raise ConversionError(
                    f"weight {weight.path!r} has {int(np.sum(~np.isfinite(values)))} values that are not finite (NaN "
                    "or infinity): the training diverged. Use an earlier checkpoint, or lower the learning rate"
                )


def _fixed_shape(model: keras.Model, input_shape: Sequence[int] | None) -> tuple[int, ...]:
    if len(model.inputs) != 1:
        raise ConversionError(
            f"model {model.name!r} has {len(model.inputs)} inputs "
            f"({', '.join(tensor.name for tensor in model.inputs)}); expected one image. Make the others constants"
        )
    declared = tuple(model.inputs[0].shape[1:])
    shape = declared if input_shape is None else tuple(input_shape)
    agrees = len(shape) == len(declared) and all(map(lambda ours, given: ours in (None, given), declared, shape))
    if not agrees or not all(isinstance(size, (int, np.integer)) and size > 0 for size in shape):
        raise ConversionError(
            f"the input shape {shape} is not a fixed shape that fits the model's {declared}. Pass input_shape=(height, "
            "width, channels) with whole numbers, or build the model at a fixed size"
        )
    return tuple(int(size) for size in shape)


def _iterate_images(calibration: Iterable[Any], shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """Yields single float32 images from images or batches."""
    for element in calibration:
        batch = np.asarray(element, dtype=np.float32)
        if batch.shape == shape:
            batch = batch[None]
        if batch.shape[1:] != shape:
            raise ConversionError(
                f"a calibration element has the shape {batch.shape}; expected an image {shape} or a batch of such "
                "images. Resize and preprocess them as in training"
            )
        if not np.all(np.isfinite(batch)):
            raise ConversionError(
                "a calibration image has values that are not finite (NaN or infinity); leave this image out"
            )
        yield from batch


def _explain_failure(error: Exception, printed: str, model: Any) -> ConversionError:
    """Returns an error that names the failed operations and their layers, found in the converter's pages of MLIR."""
    text = f"{error}\n{printed}"
    operations = re.findall(r"'?(tf\.[A-Z]\w+)'? op is neither a custom op nor a flex op", text)
    operations = operations or re.findall(r"failed to legalize operation '([\w.]+)'", text)
    reason = "; ".join(line for line in str(error).splitlines() if line.strip())[:600] or type(error).__name__
    if operations:
        names = {name for layer in model.layers for name in (layer.name, f"{layer.name}_1")}  # tracing adds numbers
        scopes = sorted(names.intersection(re.findall(r'[/"]([^/"]+)(?=/)', text)))
        places = f" (in {', '.join(scopes[:5])})" if scopes else ""
        reason = f"TensorFlow Lite has no {', '.join(sorted(set(operations)))}{places}. Use another layer there"
    return ConversionError(f"cannot convert model {model.name!r}: {reason}")


if __name__ == "__main__":
    _main(*sys.argv[1:])
