"""MEASURED accuracy, latency, memory and size of a .tflite file (`zoo.cost` predicts; the two are never mixed).

LiteRT runs the file as a phone does; TensorFlow Lite for Microcontrollers (TFLM) gives the arena that a microcontroller
needs.
"""

import dataclasses
import time
from typing import Any, Literal

import keras
import numpy as np

from zoo.deploy import tflm
from zoo.deploy.quiet import quiet
from zoo.deploy.tflite_file import Source, parse, read, require

# Of LiteRT: those it takes by default, those of its own, which are faster for int8 depthwise convolutions of 7x7, and
# the plain ones
Kernels = Literal["xnnpack", "builtin", "reference"]
KERAS_BATCH = 64  # images at once through a Keras model; has no influence on its outputs


class MeasureError(ValueError):
    """The images or labels do not fit the model, or the runtime refuses the file."""


@dataclasses.dataclass(frozen=True)
class Latency:
    """Wall-clock time of one image, in milliseconds, over `runs` invocations after the warm-up."""

    median_ms: float
    p90_ms: float
    threads: int
    runs: int
    kernels: Kernels = "xnnpack"


def size(tflite: Source) -> int:
    """Returns the file's size in bytes: the flash that the model itself takes."""
    return len(read(tflite))


def predict(
    model: keras.Model | Source, images: np.ndarray, *, threads: int = 1, kernels: Kernels = "xnnpack"
) -> np.ndarray:
    """Returns the outputs (n, classes) as float32 for float images (n, height, width, channels).

    Images are quantized and outputs dequantized as the file asks. A .tflite file runs one image at a time under LiteRT.
    Of several outputs the first is returned. LiteRT's kernels "reference" round as TFLM's do; the others round each
    operator's sums a little otherwise, which comes to some steps behind a hundred operators.
    """
    images = _checked_images(images)
    if isinstance(model, keras.Model):
        with quiet():  # the trainer warns of retracing where many models are measured one after the other
            outputs: Any = model.predict(images, batch_size=KERAS_BATCH, verbose=0)  # pyright: ignore
        return np.asarray(outputs[0] if isinstance(outputs, (list, tuple)) else outputs, np.float32)
    interpreter = interpret(model, threads=threads, kernels=kernels)
    source, target = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    check_shape(images, source)
    outputs = []
    for image in quantize(images, source):
        interpreter.set_tensor(source["index"], image[None])
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(target["index"])[0])
    return dequantize(np.stack(outputs), target)


def predict_tflm(tflite: Source, images: np.ndarray) -> np.ndarray:
    """Returns what `predict` does, computed by TFLM's reference kernels in a process of its own."""
    interpreter = interpret(tflite, threads=1)
    source, target = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    images = _checked_images(images)
    check_shape(images, source)
    outputs, _ = tflm.run(tflite, quantize(images, source))
    return dequantize(outputs, target)


def accuracy(model: keras.Model | Source, images: np.ndarray, labels: np.ndarray, *, threads: int = 1) -> float:
    """Returns the share of `images` whose largest output is their label.

    Give the Keras model and its .tflite the same images: only then their difference is the cost of the conversion.

    Args:
        labels: class numbers (n,) or one-hot rows (n, classes).
    """
    labels = np.asarray(labels)
    if labels.ndim == 2 and labels.shape[1] > 1:
        labels = labels.argmax(axis=1)
    labels = labels.reshape(-1)
    if len(labels) != len(images):
        raise MeasureError(f"{len(images)} images and {len(labels)} labels; one label an image was expected")
    return float(np.mean(predict(model, images, threads=threads).argmax(axis=-1) == labels))


def latency(
    tflite: Source, *, threads: int = 1, runs: int = 50, warmup: int = 5, kernels: Kernels = "xnnpack"
) -> Latency:
    """Measures LiteRT on one image at a time; the image is noise, which takes as long as any other."""
    if threads < 1 or runs < 1 or warmup < 0:
        raise MeasureError(
            f"threads={threads}, runs={runs}, warmup={warmup}: expected threads >= 1, runs >= 1, warmup >= 0"
        )
    interpreter = interpret(tflite, threads=threads, kernels=kernels)
    source = interpreter.get_input_details()[0]
    noise = np.random.default_rng(0).uniform(-1, 1, source["shape"]).astype(np.float32)
    interpreter.set_tensor(source["index"], quantize(noise, source))
    times = []
    for run in range(warmup + runs):
        start = time.perf_counter()
        interpreter.invoke()
        if run >= warmup:
            times.append(1000 * (time.perf_counter() - start))
    return Latency(float(np.median(times)), float(np.percentile(times, 90)), threads, runs, kernels)


def arena(tflite: Source) -> tflm.Arena:
    """Returns the arena that TFLM takes to run the file, as recorded by TFLM itself.

    Raises:
        tflm.TflmError: TFLM lacks an operator of the file, or stops.
        MissingPackageError: the package tflite-micro is not installed.
    """
    return tflm.run(tflite, np.zeros(0))[1]


def interpret(tflite: Source, *, threads: int, keep_tensors: bool = False, kernels: Kernels = "xnnpack") -> Any:
    """Returns a LiteRT interpreter with its tensors allocated.

    `keep_tensors` leaves every inner tensor readable, but those that XNNPACK computes within are never written.
    """
    parse(tflite)  # LiteRT reads past the end of a file that is cut off
    litert = require("ai_edge_litert.interpreter", "ai-edge-litert")
    data = read(tflite)
    resolvers = litert.OpResolverType
    resolver = {
        "xnnpack": resolvers.AUTO,
        "builtin": resolvers.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        "reference": resolvers.BUILTIN_REF,
    }[kernels]
    with quiet() as printed:
        try:
            interpreter = litert.Interpreter(
                model_content=data,
                num_threads=threads,
                experimental_preserve_all_tensors=keep_tensors,
                experimental_op_resolver_type=resolver,
            )
            interpreter.allocate_tensors()
            return interpreter
        except (RuntimeError, ValueError) as error:
            failure = error
    raise MeasureError(f"LiteRT refuses the file: {failure} {printed.text.strip()[-300:]}".strip()) from failure


def quantize(values: np.ndarray, details: dict) -> np.ndarray:
    """Returns float `values` in the type of a tensor, by its scale and zero point (LiteRT's tensor details)."""
    dtype = details["dtype"]
    if np.issubdtype(dtype, np.floating):
        return values.astype(dtype)
    scale, zero = details["quantization"]
    limits = np.iinfo(dtype)
    return np.clip(np.round(values / (scale or 1.0)) + zero, limits.min, limits.max).astype(dtype)


def dequantize(values: np.ndarray, details: dict) -> np.ndarray:
    """Returns what the stored `values` of a tensor stand for, as float32."""
    if np.issubdtype(values.dtype, np.floating):
        return values.astype(np.float32)
    scale, zero = details["quantization"]
    return ((values.astype(np.float32) - zero) * (scale or 1.0)).astype(np.float32)


def _checked_images(images: np.ndarray) -> np.ndarray:
    images = np.asarray(images, np.float32)
    if images.ndim != 4 or not len(images):
        raise MeasureError(f"images have the shape {images.shape}; expected (n, height, width, channels) with n >= 1")
    return images


def check_shape(images: np.ndarray, details: dict) -> None:
    """Raises MeasureError unless each image has the shape of the input (LiteRT's tensor details)."""
    expected = tuple(int(length) for length in details["shape"][1:])
    if images.shape[1:] != expected:
        raise MeasureError(f"images have the shape {images.shape[1:]} each; the file takes {expected}. Resize them")
