"""MEASURED accuracy, latency, memory and size of a .tflite file (`zoo.cost` predicts; the two are never mixed).

LiteRT runs the file as a phone does; TensorFlow Lite for Microcontrollers (TFLM) gives the arena that a microcontroller
needs.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import keras
import numpy as np

from zoo import graph
from zoo.deploy import tflite_file, tflm
from zoo.deploy.metadata import detach
from zoo.deploy.tflite_file import Source, parse, quiet, read, require

# Of LiteRT: those it takes by default, those of its own, which are faster for int8 depthwise convolutions of 7x7, and
# the plain ones
Kernels = Literal["xnnpack", "builtin", "reference"]
KERAS_BATCH = 64  # images at once through a Keras model; has no influence on its outputs
_LOGIT_THRESHOLD, _PROBABILITY_THRESHOLD = 0.0, 0.5
_REGRESSION_LOSSES = ("mean_", "huber", "log_cosh", "poisson", "cosine_similarity", "mse", "mae", "mape", "msle")


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
    """Returns the bytes of the model, the flash that it takes: without metadata, which C source leaves out."""
    return len(detach(tflite))


def predict(
    model: keras.Model | Source,
    images: np.ndarray,
    *,
    output: str | int | None = None,
    threads: int = 1,
    kernels: Kernels = "xnnpack",
) -> np.ndarray:
    """Returns one output (n, ...) as float32 for float images (n, height, width, channels).

    Images are quantized and outputs dequantized as the file asks. LiteRT's kernels "reference" round as TFLM's do; the
    others round each operator's sums a little differently, which adds up to some steps after a hundred operators.

    Args:
        output: which of several, by its name in the file's signature or in the Keras model, or by its number in the
            model; None takes the model's first.

    Raises:
        MeasureError: images of another shape, a file with other inputs than one image, or outputs of which none is
            known to be the first.
    """
    if isinstance(model, keras.Model):
        images = _checked_images(images)
        number = choose_keras_output(model, output)
        with quiet():  # the trainer warns of retracing where many models are measured one after the other
            outputs: Any = model.predict(images, batch_size=KERAS_BATCH, verbose=0)  # pyright: ignore
        return np.asarray(keras.tree.flatten(outputs)[number], np.float32)
    interpreter, stored, place = _prepare_run(model, images, output, threads, kernels)
    target = interpreter.get_output_details()[place]
    return dequantize(run(interpreter, [stored], [target["index"]])[target["index"]][:, 0], target)


def predict_tflm(tflite: Source, images: np.ndarray, *, output: str | int | None = None) -> np.ndarray:
    """Returns what `predict` does, computed by TFLM's reference kernels in a process of its own."""
    interpreter, stored, place = _prepare_run(tflite, images, output)
    return dequantize(tflm.run(tflite, stored, place)[0], interpreter.get_output_details()[place])


def _prepare_run(
    tflite: Source, images: np.ndarray, output: str | int | None, threads: int = 1, kernels: Kernels = "xnnpack"
) -> tuple[Any, np.ndarray, int]:
    """Returns an interpreter of the file, the images in the type of its input, and the place of an output."""
    tensor, images = choose_output(parse(tflite), output), _checked_images(images)
    interpreter = interpret(tflite, threads=threads, kernels=kernels)
    sources = interpreter.get_input_details()
    if len(sources) != 1:
        shapes = ", ".join(f"{one['name']} {tuple(map(int, one['shape']))}" for one in sources)
        raise MeasureError(f"the file takes {len(sources)} inputs ({shapes}); one image was expected")
    check_shape(images, sources[0])
    places = [details["index"] for details in interpreter.get_output_details()]
    return interpreter, quantize(images, sources[0]), places.index(tensor)


def accuracy(
    model: keras.Model | Source,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    output: str | int | None = None,
    threshold: float | None = None,
    threads: int = 1,
) -> float:
    """Returns the share of `images` that are classified as their labels say.

    Of several units the largest is the class; one unit says class 1 above the threshold. Labels of several classes an
    image (rows of zeros and ones) are compared one by one, each unit with the threshold.

    Args:
        labels: class numbers (n,), or rows (n, classes) of zeros and ones.
        output: which of several outputs, as `predict` takes it.
        threshold: of a binary or multi-label head; None takes 0.5 after a sigmoid, and otherwise what the loss of a
            compiled Keras model says.

    Raises:
        MeasureError: labels that the output cannot be compared with, or a head whose meaning is not known, such as
            that of a regression.
    """
    labels = np.asarray(labels)
    if len(labels) != len(images):
        raise MeasureError(f"{len(images)} images and {len(labels)} labels; one label an image was expected")
    predicted = predict(model, images, output=output, threads=threads)
    return judge(predicted, labels, lambda: find_threshold(model, output) if threshold is None else threshold)


def judge(predicted: np.ndarray, labels: np.ndarray, threshold: Callable[[], float]) -> float:
    """Returns the share of outputs (n, units) that agree with the labels; see `accuracy`.

    `threshold` is asked only where it is needed.
    """
    if predicted.ndim != 2:
        raise MeasureError(
            f"the output has the shape {predicted.shape[1:]} an image, and a row of classes was expected: this is no "
            "classifier. Choose another output with output="
        )
    units, several = predicted.shape[1], labels.ndim == 2 and labels.shape[1] > 1
    if not np.all(np.equal(labels, np.floor(labels))) or labels.min() < 0:
        raise MeasureError(
            f"the labels run from {labels.min():g} to {labels.max():g} and are no class numbers: a regression has no "
            "accuracy. Compare zoo.deploy.measure.predict with them"
        )
    if several and (labels.shape != predicted.shape or labels.max() > 1):
        raise MeasureError(
            f"the labels have the shape {labels.shape} and the outputs {predicted.shape}; expected class numbers, or "
            "rows of zeros and ones as long as the output"
        )
    if several and np.any(labels.sum(axis=1) != 1):
        return float(np.mean((predicted > threshold()) == (labels == 1)))
    numbers = labels.argmax(axis=1) if several else labels.reshape(-1)
    classes = 2 if units == 1 else units
    if numbers.max() >= classes:
        raise MeasureError(
            f"the labels go up to {int(numbers.max())}, and the output tells {classes} classes apart. Give the data "
            "that the model was trained on"
        )
    found = predicted[:, 0] > threshold() if units == 1 else predicted.argmax(axis=1)
    return float(np.mean(found == numbers))


def find_threshold(model: keras.Model | Source, output: str | int | None = None) -> float:
    """Returns the value above which a unit says yes: 0.5 for probabilities, 0 for logits.

    Raises:
        MeasureError: neither the activation nor the loss says so; a regression, for one.
    """
    if not isinstance(model, keras.Model):
        parsed = parse(model)
        if _find_writer(parsed, choose_output(parsed, output)) == "LOGISTIC":
            return _PROBABILITY_THRESHOLD
    else:
        number = choose_keras_output(model, output)
        with contextlib.suppress(graph.GraphError):  # a subclassed model has only its loss to tell
            if graph.head_activations(model)[number] == "sigmoid":
                return _PROBABILITY_THRESHOLD
        loss = _loss_of(model, number)
        name = getattr(loss, "name", loss) or ""
        if "hinge" in name or getattr(loss, "from_logits", False):
            return _LOGIT_THRESHOLD
        if "crossentropy" in name:
            return _PROBABILITY_THRESHOLD
        if name.startswith(_REGRESSION_LOSSES):
            raise MeasureError(
                f"the model was trained for a regression (loss {name}), which has no accuracy. Compare "
                "zoo.deploy.measure.predict with the values"
            )
    raise MeasureError(
        "the output ends in no sigmoid, so that nobody knows what its numbers say. Give threshold=0.0 for logits, 0.5 "
        "for probabilities; a regression has no accuracy: compare zoo.deploy.measure.predict with the values"
    )


def _loss_of(model: keras.Model, number: int) -> Any:
    """Returns the loss of an output as a compiled model holds it, or None."""
    loss = getattr(model, "loss", None)
    if isinstance(loss, dict):
        return loss.get(_keras_outputs(model)[number])
    if isinstance(loss, (list, tuple)):
        return loss[number] if number < len(loss) else None
    return loss


def _find_writer(model: Any, tensor: int) -> str:
    """Returns the kind of the operator that computes a tensor, past those that only store its values differently."""
    kinds, made = tflite_file.kinds_of(model), tflite_file.writers_of(model.subgraphs[0])
    while tensor in made:
        kind = kinds[made[tensor]]
        if kind not in ("QUANTIZE", "DEQUANTIZE", "RESHAPE", "SQUEEZE", "EXPAND_DIMS"):
            return kind
        tensor = int(model.subgraphs[0].operators[made[tensor]].inputs[0])
    return ""


def choose_output(model: Any, output: str | int | None) -> int:
    """Returns the tensor of one output of a parsed file; see `predict`."""
    outputs = tflite_file.outputs_of(model)
    names = [name for name, _ in outputs]
    return outputs[_choose(names, output, in_order=tflite_file.is_numbered(outputs))][1]


def choose_keras_output(model: Any, output: str | int | None) -> int:
    """Returns the number of one output of a Keras model among its flattened outputs; see `predict`."""
    return _choose(_keras_outputs(model), output, in_order=not _has_named_outputs(model))


def _has_named_outputs(model: Any) -> bool:
    """Whether a Keras model returns a dict, whose outputs have names and no order."""
    return isinstance(getattr(model, "_outputs_struct", None), dict)


def _keras_outputs(model: Any) -> list[str]:
    if _has_named_outputs(model):
        return sorted(model._outputs_struct)  # as keras.tree.flatten has them
    return list(getattr(model, "output_names", None) or ["output"])


def _choose(names: Sequence[str], output: str | int | None, in_order: bool) -> int:
    known = f"there are {len(names)} outputs: {', '.join(names)}"
    if output is None:
        if len(names) > 1 and not in_order:
            raise MeasureError(f"{known}, and none is known to be the first. Choose one with output=")
        return 0
    if isinstance(output, int) and 0 <= output < len(names):
        return output
    if output in names:
        return list(names).index(str(output))
    raise MeasureError(f"output={output!r} is unknown; {known}. Give a name or a number from 0")


def latency(
    tflite: Source, *, threads: int = 1, runs: int = 50, warmup: int = 5, kernels: Kernels = "xnnpack"
) -> Latency:
    """Measures LiteRT on one image at a time; the image is noise, which takes as long as any other."""
    if threads < 1 or runs < 1 or warmup < 0:
        raise MeasureError(
            f"threads={threads}, runs={runs}, warmup={warmup}: expected threads >= 1, runs >= 1, warmup >= 0"
        )
    interpreter = interpret(tflite, threads=threads, kernels=kernels)
    for source, noise in zip(interpreter.get_input_details(), make_noise(interpreter, 1), strict=True):
        interpreter.set_tensor(source["index"], noise[0])
    times = []
    for _ in range(warmup + runs):
        start = time.perf_counter()
        interpreter.invoke()
        times.append(1000 * (time.perf_counter() - start))
    del times[:warmup]
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
    resolvers = {"xnnpack": "AUTO", "builtin": "BUILTIN_WITHOUT_DEFAULT_DELEGATES", "reference": "BUILTIN_REF"}
    with quiet() as printed:
        try:
            interpreter = litert.Interpreter(
                model_content=data,
                num_threads=threads,
                experimental_preserve_all_tensors=keep_tensors,
                experimental_op_resolver_type=litert.OpResolverType[resolvers[kernels]],
            )
            interpreter.allocate_tensors()
            return interpreter
        except (RuntimeError, ValueError) as error:
            failure = error
    raise MeasureError(f"LiteRT refuses the file: {failure} {printed.text.strip()[-300:]}".strip()) from failure


def run(interpreter: Any, inputs: Sequence[np.ndarray], tensors: Sequence[int]) -> dict[int, np.ndarray]:
    """Returns the values (n, *shape) of some tensors, by their numbers; `inputs` are n values of each, as stored."""
    found: dict[int, list[np.ndarray]] = {number: [] for number in tensors}
    for values in zip(*inputs, strict=True):
        for value, source in zip(values, interpreter.get_input_details(), strict=True):
            interpreter.set_tensor(source["index"], value.reshape(source["shape"]))
        interpreter.invoke()
        for number, outputs in found.items():
            outputs.append(interpreter.get_tensor(number))
    return {number: np.stack(outputs) for number, outputs in found.items()}


def make_noise(interpreter: Any, n: int, seed: int = 0) -> list[np.ndarray]:
    """Returns for each input of an interpreter n random tensors of its shape and type: floats from -1 to 1."""
    draw, found = np.random.default_rng(seed), []
    for source in interpreter.get_input_details():
        shape, dtype = (n, *source["shape"]), source["dtype"]
        if np.issubdtype(dtype, np.floating):
            found.append(draw.uniform(-1, 1, shape).astype(dtype))
        elif source["quantization"][0]:
            limits = np.iinfo(dtype)
            found.append(draw.integers(limits.min, limits.max, shape, dtype, endpoint=True))
        else:  # numbers or switches of which any value but zero may be out of range
            found.append(np.zeros(shape, dtype))
    return found


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


def check_shape(images: np.ndarray, details: dict) -> None:
    """Raises MeasureError unless each image has the shape of the input (LiteRT's tensor details)."""
    expected = tuple(int(length) for length in details["shape"][1:])
    if images.shape[1:] != expected:
        raise MeasureError(f"images have the shape {images.shape[1:]} each; the file takes {expected}. Resize them")


def _checked_images(images: np.ndarray) -> np.ndarray:
    images = np.asarray(images, np.float32)
    if images.ndim != 4 or not len(images):
        raise MeasureError(f"images have the shape {images.shape}; expected (n, height, width, channels) with n >= 1")
    return images
