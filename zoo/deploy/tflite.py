"""A Keras model as a TensorFlow Lite file: float32, or quantized after training.

Write what `convert` returns with `zoo.atomic.write_atomically`: the file is then the whole new one or the old one.
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
CALIBRATION_LIMIT = 512  # images; ranges hardly move after some hundred, and an endless data set must end
_BATCH = 32  # images at once where outputs are summarized
# As it is written, and as lowered
_CONTROL_FLOW = ("If", "LoopCond", "StatelessIf", "StatelessWhile", "Switch", "While")
MOST_STEPS = 256  # of a recurrent layer that is written out step by step
LARGEST_FILE = 2**31 - 1  # bytes; offsets in a flatbuffer are signed 32-bit numbers


class ConversionError(ValueError):
    """The model or the calibration images cannot become a .tflite file."""


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
        calibration: what "int8", "uint8", "int4" and "int16x8" measure ranges on: images (n, height, width, channels),
            preprocessed as in training, or an iterable of images, of batches or of (images, labels), a tf.data.Dataset
            among them. The first 512 images are used.
        input_shape: (height, width, channels), needed only where the model leaves a size open and no calibration image
            shows it.

    Raises:
        ConversionError: no or unusable calibration images, weights that are not finite, an open size, a layer that
            TensorFlow Lite lacks, or a model over 2 GB.
        GraphError: the model is subclassed.
    """
    if quantize is not None and quantize not in SCHEMES:
        raise ConversionError(f"quantize={quantize!r} is unknown; expected None or one of {', '.join(SCHEMES)}")
    if calibration is not None and quantize not in CALIBRATED_SCHEMES:
        raise ConversionError(
            f"calibration images were given, but quantize={quantize!r} measures no ranges. Drop them, or choose one of "
            f"{', '.join(CALIBRATED_SCHEMES)}"
        )
    images = None
    if quantize in CALIBRATED_SCHEMES:
        images = calibration_images(model, calibration, input_shape)
        input_shape = images[0].shape
    graph.calls(model)
    shape = _fixed_shape(model, input_shape)
    model = graph.flatten(model, shape)
    check_weights(model)
    return convert_flat(model if images is None else _written_out(model), shape, quantize, images)


def calibration_images(
    model: keras.Model, calibration: np.ndarray | Iterable[Any] | None, input_shape: Sequence[int] | None = None
) -> list[np.ndarray]:
    """Returns the first 512 images of what `convert` takes as `calibration`, as float32 arrays of the input's shape.

    Raises:
        ConversionError: there are none, or one has another shape or values that are not finite.
    """
    graph.calls(model)  # raises where there is no graph
    elements = () if calibration is None else calibration
    given = (element[0] if isinstance(element, tuple) else element for element in elements)  # (images, labels)
    first = list(itertools.islice(given, 1))
    declared = model.inputs[0].shape[1:]
    if first and input_shape is None and None in declared:  # an image shows the size
        input_shape = np.shape(first[0])[-len(declared) :]
    shape = _fixed_shape(model, input_shape)
    images = list(itertools.islice(_images(itertools.chain(first, given), shape), CALIBRATION_LIMIT))
    if not images:
        raise ConversionError(
            "int8 needs the range of every tensor, measured on calibration images, but there are none. Pass "
            f"calibration=images of shape (n, {', '.join(map(str, shape))}), preprocessed as in training; "
            "a hundred will do"
        )
    return images


def summarize_outputs(
    model: keras.Model, names: Collection[str], images: Sequence[np.ndarray], summarize: Callable[[Any], Any]
) -> list[dict[str, list[Any]]]:
    """Returns what `summarize`, in TensorFlow, says of the named layers' outputs, for each batch of 32 images.

    Each batch has for each layer a list with one entry for each of its calls.
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

        graph.replay(model, [batch], run)  # one graph for all: each tensor is freed after its last reader
        return found

    batches = [np.stack(images[start : start + _BATCH]) for start in range(0, len(images), _BATCH)]
    return [tf.nest.map_structure(lambda one: one.numpy(), run_batch(tf.constant(batch))) for batch in batches]


def convert_flat(
    model: Any, shape: Sequence[int], quantize: Quantize | None, calibration: Sequence[np.ndarray] | None
) -> bytes:
    """Converts a flat model of Keras or tf_keras for an image of a fixed shape, unchecked; see `convert`.

    Without calibration images "int8" and "int4" take every range from the fake-quantization nodes in the graph
    (quantization-aware training).
    """
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    with quiet():
        call = tf.function(lambda image: model(image, training=False), autograph=False)
        function = call.get_concrete_function(tf.TensorSpec((1, *shape), tf.float32, name="image"))
    # Keras 3 keeps its variables out of TensorFlow's tracking. Frozen into constants they fold into the convolutions,
    # and this takes 2 s for a MobileNetV2 where from_keras_model takes 8 s and leaves the batch size open.
    with quiet() as printed:
        frozen = convert_variables_to_constants_v2(function)
        try:
            if calibration is not None and _has_branches(frozen):
                data, failure = _convert_elsewhere(frozen, quantize, calibration), None
            else:
                converter = tf.lite.TFLiteConverter.from_concrete_functions([frozen], tf.Module())
                _configure(converter, quantize, calibration)
                data, failure = converter.convert(), None
        except Exception as error:  # noqa: BLE001 - the converter raises a different type from each of its stages
            data, failure = b"", error
    if isinstance(failure, ConversionError):
        raise failure
    if failure is not None:
        raise _explained(failure, printed.text, model) from failure
    data = rewrites.narrow_joins(rewrites.widen_scales(data) if quantize in _BY_INT8 else data)
    return rewrites.narrow_weights(data) if quantize == "int4" else data


def _written_out(model: keras.Model) -> keras.Model:
    """Returns the model with its recurrent layers step by step: the converter cannot quantize a loop."""
    if not any(_is_short_loop(call) for call in graph.calls(model)):
        return model
    copies: dict[str, Any] = {}

    def run(call: graph.Call, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if not _is_short_loop(call):
            return call.layer(*arguments, **options)
        changes = _with_unrolling(call.layer.get_config())
        return graph.call_copy(call.layer, copies, changes, *arguments, **options)

    unrolled = graph.model_like(model, model.inputs, graph.replay(model, model.inputs, run))
    graph.check_copy(model, unrolled)
    return unrolled


def _is_short_loop(call: graph.Call) -> bool:
    if not isinstance(call.layer, (keras.layers.RNN, keras.layers.Bidirectional)):
        return False
    steps = call.inputs[0].shape[1]
    return steps is not None and steps <= MOST_STEPS


def _with_unrolling(config: Any) -> Any:
    """Returns a recurrent layer's config with `unroll` set, in the layers within it, too."""
    if isinstance(config, Mapping):
        return {key: True if key == "unroll" else _with_unrolling(value) for key, value in config.items()}
    return config


def _has_branches(function: Any) -> bool:
    """Whether a traced function has loops or branches, with which quantization can end the process by a signal."""
    definition = function.graph.as_graph_def()
    nodes = itertools.chain(definition.node, *(one.node_def for one in definition.library.function))
    return any(node.op in _CONTROL_FLOW for node in nodes)


def _convert_elsewhere(function: Any, quantize: str | None, calibration: Sequence[np.ndarray]) -> bytes:
    """Converts in a process of its own, whose death is a ConversionError."""
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
        f"model. Recurrent layers of up to {MOST_STEPS} steps are written out without a loop: fix the number of steps, "
        'shorten it, or take quantize="dynamic"'
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
        if calibration is not None:  # the converter takes this setting as a demand for calibration
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.uint8 if quantize == "uint8" else tf.int8
    elif quantize == "int16x8":
        converter.target_spec.supported_ops = [
            tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
        ]
        converter.inference_input_type = converter.inference_output_type = tf.int16


def check_weights(model: keras.Model) -> None:
    """Raises ConversionError unless the weights are finite, fit into a .tflite file, and are all that a layer keeps."""
    size = sum(4 * int(np.prod(weight.shape)) for weight in model.weights)
    if size > LARGEST_FILE:
        raise ConversionError(
            f"the weights of model {model.name!r} take {size / 1e9:.1f} GB as float32, and a .tflite file holds at "
            f"most {LARGEST_FILE / 1e9:.1f} GB (the converter needs them as float32 first). Use fewer filters"
        )
    for layer in model.layers:
        if getattr(layer, "stateful", False):
            raise ConversionError(
                f"layer {layer.name!r} keeps its state from call to call, and a .tflite file would forget it. Make it "
                "with stateful=False, or with return_state=True and the state as an input"
            )
        for weight in layer.weights:
            values = weight.numpy()
            if not np.all(np.isfinite(values)):
                raise ConversionError(
                    f"weight {weight.path!r} has {int(np.sum(~np.isfinite(values)))} values that are not finite (NaN "
                    "or infinity). The training diverged: go back to an earlier checkpoint or lower the learning rate"
                )


def _fixed_shape(model: keras.Model, input_shape: Sequence[int] | None) -> tuple[int, ...]:
    if len(model.inputs) != 1:
        raise ConversionError(
            f"model {model.name!r} has {len(model.inputs)} inputs "
            f"({', '.join(tensor.name for tensor in model.inputs)}); one image was expected. Make the others constants"
        )
    declared = tuple(model.inputs[0].shape[1:])
    shape = declared if input_shape is None else tuple(input_shape)
    agrees = len(shape) == len(declared) and all(map(lambda ours, given: ours in (None, given), declared, shape))
    if not agrees or not all(isinstance(size, (int, np.integer)) and size > 0 for size in shape):
        raise ConversionError(
            f"the input shape {shape} is not a fixed one that fits the model's {declared}. Pass input_shape=(height, "
            "width, channels) with whole numbers, or build the model at a fixed size"
        )
    return tuple(int(size) for size in shape)


def _images(calibration: Iterable[Any], shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """Yields single float32 images from whatever the user's data come in."""
    for element in calibration:
        batch = np.asarray(element, dtype=np.float32)
        if batch.shape == shape:
            batch = batch[None]
        if batch.shape[1:] != shape:
            raise ConversionError(
                f"a calibration element has the shape {batch.shape}; an image of {shape} or a batch of those was "
                "expected. Resize and preprocess it as in training"
            )
        if not np.all(np.isfinite(batch)):
            raise ConversionError(
                "a calibration image has values that are not finite (NaN or infinity); leave that image out"
            )
        yield from batch


def _explained(error: Exception, printed: str, model: Any) -> ConversionError:
    """Finds in the converter's report, pages of MLIR, which operations failed and in which layers."""
    text = f"{error}\n{printed}"
    operations = re.findall(r"'?(tf\.[A-Z]\w+)'? op is neither a custom op nor a flex op", text)
    operations = operations or re.findall(r"failed to legalize operation '([\w.]+)'", text)
    reason = "; ".join(line for line in str(error).splitlines() if line.strip())[:600] or type(error).__name__
    if operations:
        names = {name for layer in model.layers for name in (layer.name, f"{layer.name}_1")}  # as it may be traced
        scopes = sorted(names.intersection(re.findall(r'[/"]([^/"]+)(?=/)', text)))
        places = f" (in {', '.join(scopes[:5])})" if scopes else ""
        reason = f"TensorFlow Lite has no {', '.join(sorted(set(operations)))}{places}. Use another layer there"
    return ConversionError(f"cannot convert model {model.name!r}: {reason}")


if __name__ == "__main__":
    _main(*sys.argv[1:])
