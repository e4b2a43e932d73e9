"""A Keras model as a TensorFlow Lite file: float32, or quantized after training.

Write what `convert` returns with `zoo.atomic.write_atomically`: the file is then the whole new one or the old one.
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import keras
import numpy as np

from zoo.deploy import graph, joins, scales
from zoo.deploy.tflite_file import quiet

if TYPE_CHECKING:
    import tensorflow as tf

Quantize = Literal["int8", "int16x8", "dynamic", "float16"]
SCHEMES = ("int8", "int16x8", "dynamic", "float16")
CALIBRATED_SCHEMES = ("int8", "int16x8")
CALIBRATION_LIMIT = 512  # images; ranges hardly move after some hundred, and an endless data set must end
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
            "int16x8": int8 weights, int16 activations, input and output. "dynamic": int8 weights, float activations.
            "float16": weights stored in half precision.
        calibration: what "int8" and "int16x8" measure ranges on: images (n, height, width, channels), preprocessed as
            in training, or an iterable of images, of batches or of (images, labels), a tf.data.Dataset among them.
            The first 512 images are used.
        input_shape: (height, width, channels), needed only where the model leaves a size open.

    Raises:
        ConversionError: no or unusable calibration images, weights that are not finite, an open size, a layer that
            TensorFlow Lite lacks, or a model over 2 GB.
        GraphError: the model is subclassed, or has a model among its layers.
    """
    if quantize is not None and quantize not in SCHEMES:
        raise ConversionError(f"quantize={quantize!r} is unknown; expected None or one of {', '.join(SCHEMES)}")
    if calibration is not None and quantize not in CALIBRATED_SCHEMES:
        raise ConversionError(
            f"calibration images were given, but quantize={quantize!r} measures no ranges. Drop them, or choose one of "
            f"{', '.join(CALIBRATED_SCHEMES)}"
        )
    graph.require_flat(model)
    check_weights(model)
    shape = _fixed_shape(model, input_shape)
    images = calibration_images(model, calibration, input_shape) if quantize in CALIBRATED_SCHEMES else None
    import tensorflow as tf

    with quiet():
        call = tf.function(lambda image: model(image, training=False), autograph=False)
        function = call.get_concrete_function(tf.TensorSpec((1, *shape), tf.float32, name="image"))
    return from_function(function, quantize=quantize, calibration=images, model=model)


def calibration_images(
    model: keras.Model, calibration: np.ndarray | Iterable[Any] | None, input_shape: Sequence[int] | None = None
) -> list[np.ndarray]:
    """Returns the first 512 images of what `convert` takes as `calibration`, as float32 arrays of the input's shape.

    Raises:
        ConversionError: there are none, or one has another shape or values that are not finite.
    """
    shape = _fixed_shape(model, input_shape)
    images = list(itertools.islice(_images(calibration, shape), CALIBRATION_LIMIT))
    if not images:
        raise ConversionError(
            "int8 needs the range of every tensor, measured on calibration images, but there are none. Pass "
            f"calibration=images of shape (n, {', '.join(map(str, shape))}), preprocessed as in training; "
            "a hundred will do"
        )
    return images


def from_function(
    function: "tf.types.experimental.ConcreteFunction",
    *,
    quantize: Quantize | None,
    calibration: Sequence[np.ndarray] | None,
    model: Any,
) -> bytes:
    """Converts a traced function of one image (1, height, width, channels); `convert` is the checked way for a model.

    `model`, of Keras or tf_keras, only gives its names to the errors. Without calibration images "int8" takes every
    range from the fake-quantization nodes in the graph (quantization-aware training).
    """
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    # Keras 3 keeps its variables out of TensorFlow's tracking. Frozen into constants they fold into the convolutions,
    # and this takes 2 s for a MobileNetV2 where from_keras_model takes 8 s and leaves the batch size open.
    with quiet() as printed:
        converter = tf.lite.TFLiteConverter.from_concrete_functions(
            [convert_variables_to_constants_v2(function)], tf.Module()
        )
        _configure(converter, quantize, calibration)
        try:
            data, failure = converter.convert(), None
        except Exception as error:  # noqa: BLE001 - the converter raises a different type from each of its stages
            data, failure = b"", error
    if failure is not None:
        raise _explained(failure, printed.text, model) from failure
    return joins.narrow(scales.widen(data) if quantize == "int8" else data)


def _configure(converter: Any, quantize: str | None, calibration: Sequence[np.ndarray] | None) -> None:
    import tensorflow as tf

    if quantize is None:
        return
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if calibration is not None:
        converter.representative_dataset = lambda: ([image[None]] for image in calibration)
    if quantize == "float16":
        converter.target_spec.supported_types = [tf.float16]
    elif quantize == "int8":
        if calibration is not None:  # the converter takes this setting as a demand for calibration
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.int8
    elif quantize == "int16x8":
        converter.target_spec.supported_ops = [
            tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
        ]
        converter.inference_input_type = converter.inference_output_type = tf.int16


def check_weights(model: keras.Model) -> None:
    """Raises ConversionError unless the weights are finite, computed with in float32, and fit into a .tflite file."""
    size = sum(4 * int(np.prod(weight.shape)) for weight in model.weights)
    if size > LARGEST_FILE:
        raise ConversionError(
            f"the weights of model {model.name!r} take {size / 1e9:.1f} GB as float32, and a .tflite file holds at "
            f"most {LARGEST_FILE / 1e9:.1f} GB (the converter needs them as float32 first). Use fewer filters"
        )
    for layer in model.layers:
        if layer.compute_dtype != "float32":
            raise ConversionError(
                f"layer {layer.name!r} computes in {layer.compute_dtype}; float32 was expected. Build the model again "
                'under keras.config.set_dtype_policy("float32") and load the same weights into it'
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
    agrees = len(shape) == len(declared) and all(
        ours in (None, given) for ours, given in zip(declared, shape, strict=True)
    )
    if not agrees or not all(isinstance(size, (int, np.integer)) and size > 0 for size in shape):
        raise ConversionError(
            f"the input shape {shape} is not a fixed one that fits the model's {declared}. Pass input_shape=(height, "
            "width, channels) with whole numbers, or build the model at a fixed size"
        )
    return tuple(int(size) for size in shape)


def _images(calibration: np.ndarray | Iterable[Any] | None, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """Yields single float32 images from whatever the user's data come in."""
    for element in () if calibration is None else calibration:
        batch = np.asarray(element[0] if isinstance(element, tuple) else element, dtype=np.float32)
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
    operations = sorted(set(re.findall(r"'?(tf\.[A-Z]\w+)'? op is neither a custom op nor a flex op", text)))
    if not operations:
        operations = sorted(set(re.findall(r"failed to legalize operation '([\w.]+)'", text)))
    if operations:
        scopes = set(re.findall(r'[/"]([^/"]+)(?=/)', text)) & {
            name
            for layer in model.layers
            for name in (layer.name, f"{layer.name}_1")  # a traced layer may get "_1"
        }
        places = f" (in {', '.join(sorted(scopes)[:5])})" if scopes else ""
        reason = f"TensorFlow Lite has no {', '.join(operations)}{places}. Use another layer there"
    else:
        reason = "; ".join(line for line in str(error).splitlines() if line.strip())[:600] or type(error).__name__
    return ConversionError(f"cannot convert model {model.name!r}: {reason}")
