"""MEASURED accuracy, latency, memory and size of a .tflite file (`zoo.cost` predicts; the two are never mixed).

LiteRT runs the file as a phone does; TensorFlow Lite for Microcontrollers (TFLM) records the arena that a
microcontroller needs.
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

# LiteRT's kernels: its default, XNNPACK; its own, which are faster for int8 depthwise convolutions of 7x7; and the
# plain reference
Kernels = Literal["xnnpack", "builtin", "reference"]
KERAS_BATCH = 64  # images per batch through a Keras model; no influence on the outputs
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
    """Returns the bytes of flash that the model takes: without metadata, which C source leaves out."""
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

    Images are quantized and outputs dequantized as the file requires. LiteRT's "reference" kernels round as TFLM's do;
    the others round each operator's sums slightly differently, which adds up to some steps after a hundred operators.

    Args:
        output: which of several outputs, by its name in the file's signature or in the Keras model, or by its number in
            the model; None takes the model's first.

    Raises:
        MeasureError: the images have another shape, the file does not take one image, or none of several outputs is
            known to be the first.
    """
    if isinstance(model, keras.Model):
        images = _check_images(images)
        number = choose_keras_output(model, output)
        with quiet():  # Keras warns of retracing when many models are measured in a row
            outputs: Any = model.predict(images, batch_size=KERAS_BATCH, verbose=0)  # pyright: ignore
        return np.asarray(keras.tree.flatten(outputs)[number], np.float32)
    interpreter, stored, place = _prepare_run(model, images, output, threads, kernels)
    target = interpreter.get_output_details()[place]
    return dequantize(run_interpreter(interpreter, [stored], [target["index"]])[target["index"]][:, 0], target)


def predict_tflm(tflite: Source, images: np.ndarray, *, output: str | int | None = None) -> np.ndarray:
    """Returns the same as `predict`, computed by TFLM's reference kernels in a separate process."""
    interpreter, stored, place = _prepare_run(tflite, images, output)
    return dequantize(tflm.run(tflite, stored, place)[0], interpreter.get_output_details()[place])


def _prepare_run(
    tflite: Source, images: np.ndarray, output: str | int | None, threads: int = 1, kernels: Kernels = "xnnpack"
) -> tuple[Any, np.ndarray, int]:
    """Returns an interpreter of the file, the images in its input's type, and the position of the chosen output."""
    tensor, images = choose_output(parse(tflite), output), _check_images(images)
    interpreter = interpret(tflite, threads=threads, kernels=kernels)
    sources = interpreter.get_input_details()
    if len(sources) != 1:
        shapes = ", ".join(f"{source['name']} {tuple(map(int, source['shape']))}" for source in sources)
        raise MeasureError(f"the file takes {len(sources)} inputs ({shapes}); expected one image")
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
    """Returns the share of `images` that are classified correctly.

    With several units, the largest is the class; a single unit means class 1 above the threshold. Multi-label rows
    (several ones, or none) are compared unit by unit, each unit with the threshold.

    Args:
        labels: class numbers (n,), or rows (n, classes) of zeros and ones.
        output: which of several outputs, as `predict` takes it.
        threshold: of a binary or multi-label head; None takes 0.5 after a sigmoid, otherwise the value that the loss of
            a compiled Keras model implies.

    Raises:
        MeasureError: the labels cannot be compared with the output, or the meaning of its units is unknown, as in a
            regression.
    """
    labels = np.asarray(labels)
    if len(labels) != len(images):
        raise MeasureError(f"{len(images)} images and {len(labels)} labels; expected one label per image")
    predicted = predict(model, images, output=output, threads=threads)
    return _compare(predicted, labels, lambda: find_threshold(model, output) if threshold is None else threshold)


def _compare(predicted: np.ndarray, labels: np.ndarray, threshold: Callable[[], float]) -> float:
    """Returns the share of outputs (n, units) that agree with the labels; see `accuracy`.

    `threshold` is called only if needed.
    """
    if predicted.ndim != 2:
        raise MeasureError(
            f"the output has the shape {predicted.shape[1:]} per image; expected a row of classes: this is not a "
            "classifier. Choose another output with output="
        )
    units, several = predicted.shape[1], labels.ndim == 2 and labels.shape[1] > 1
    if not np.all(np.equal(labels, np.floor(labels))) or labels.min() < 0:
        raise MeasureError(
            f"the labels range from {labels.min():g} to {labels.max():g} and are not class numbers: a regression has "
            "no accuracy. Compare them with zoo.deploy.measure.predict"
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
            f"the labels go up to {int(numbers.max())}, and the output has {classes} classes. Give the data that the "
            "model was trained on"
        )
    found = predicted[:, 0] > threshold() if units == 1 else predicted.argmax(axis=1)
    return float(np.mean(found == numbers))


def find_threshold(model: keras.Model | Source, output: str | int | None = None) -> float:
    """Returns the value above which a unit means yes: 0.5 for probabilities, 0 for logits.

    Raises:
        MeasureError: neither the activation nor the loss tells, as in a regression.
    """
    if not isinstance(model, keras.Model):
        parsed = parse(model)
        if _find_writer(parsed, choose_output(parsed, output)) == "LOGISTIC":
            return _PROBABILITY_THRESHOLD
    else:
        number = choose_keras_output(model, output)
        with contextlib.suppress(graph.GraphError):  # for a subclassed model only the loss can tell
            if graph.head_activations(model)[number] == "sigmoid":
                return _PROBABILITY_THRESHOLD
        loss = _find_loss(model, number)
        name = getattr(loss, "name", loss) or ""
        if "hinge" in name or getattr(loss, "from_logits", False):
            return _LOGIT_THRESHOLD
        if "crossentropy" in name:
            return _PROBABILITY_THRESHOLD
        if name.startswith(_REGRESSION_LOSSES):
            raise MeasureError(
                f"the model was trained for a regression (loss {name}), which has no accuracy. Compare "
                "zoo.deploy.measure.predict with the true values"
            )
    raise MeasureError(
        "the output does not end in a sigmoid, so the meaning of its numbers is unknown. Give threshold=0.0 for "
        "logits, 0.5 for probabilities; a regression has no accuracy: compare zoo.deploy.measure.predict with the true "
        "values"
    )


def _find_loss(model: keras.Model, number: int) -> Any:
    """Returns the loss of an output as a compiled model holds it, or None."""
    loss = getattr(model, "loss", None)
    if isinstance(loss, dict):
        return loss.get(_list_keras_outputs(model)[number])
    if isinstance(loss, (list, tuple)):
        return loss[number] if number < len(loss) else None
    return loss


def _find_writer(model: Any, tensor: int) -> str:
    """Returns the kind of the operator that computes a tensor, looking through conversions and reshapes."""
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
    return _choose(_list_keras_outputs(model), output, in_order=not _has_named_outputs(model))


def _has_named_outputs(model: Any) -> bool:
    """Whether a Keras model returns a dict, whose outputs have names but no order."""
    return isinstance(getattr(model, "_outputs_struct", None), dict)


def _list_keras_outputs(model: Any) -> list[str]:
    if _has_named_outputs(model):
        return sorted(model._outputs_struct)  # the order of keras.tree.flatten
    return list(getattr(model, "output_names", None) or ["output"])


def _choose(names: Sequence[str], output: str | int | None, in_order: bool) -> int:
    known = f"there are {len(names)} outputs: {', '.join(names)}"
    if output is None:
        if len(names) > 1 and not in_order:
            raise MeasureError(f"{known}; which is the first is unknown. Choose one with output=")
        return 0
    if isinstance(output, int) and 0 <= output < len(names):
        return output
    if output in names:
        return list(names).index(str(output))
    raise MeasureError(f"output={output!r} is unknown; {known}. Give a name or a number from 0")


def latency(
    tflite: Source, *, threads: int = 1, runs: int = 50, warmup: int = 5, kernels: Kernels = "xnnpack"
) -> Latency:
    """Measures LiteRT on one image at a time; the image is noise, which takes as long as any other image."""
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
    """Returns the arena that TFLM needs to run the file, as recorded by TFLM itself.

    Raises:
        tflm.TflmError: TFLM lacks an operator of the file, or aborts.
        MissingPackageError: the package tflite-micro is not installed.
    """
    return tflm.run(tflite, np.zeros(0))[1]


def interpret(tflite: Source, *, threads: int, keep_tensors: bool = False, kernels: Kernels = "xnnpack") -> Any:
    """Returns a LiteRT interpreter with its tensors allocated.

    `keep_tensors` keeps every inner tensor readable, except those inside XNNPACK's part of the graph.
    """
    parse(tflite)  # raises if the file is cut off: LiteRT would read past its end
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


def run_interpreter(interpreter: Any, inputs: Sequence[np.ndarray], tensors: Sequence[int]) -> dict[int, np.ndarray]:
    """Returns the stored values (n, *shape) of some tensors, by number; each of `inputs` holds n stored values."""
    found: dict[int, list[np.ndarray]] = {number: [] for number in tensors}
    for values in zip(*inputs, strict=True):
        for value, source in zip(values, interpreter.get_input_details(), strict=True):
            interpreter.set_tensor(source["index"], value.reshape(source["shape"]))
        interpreter.invoke()
        for number, outputs in found.items():
            outputs.append(interpreter.get_tensor(number))
    return {number: np.stack(outputs) for number, outputs in found.items()}


def make_noise(interpreter: Any, n: int, seed: int = 0) -> list[np.ndarray]:
    """Returns for each input of an interpreter n random tensors of its shape and type; floats are from -1 to 1."""
    draw, found = np.random.default_rng(seed), []
    for source in interpreter.get_input_details():
        shape, dtype = (n, *source["shape"]), source["dtype"]
        if np.issubdtype(dtype, np.floating):
            found.append(draw.uniform(-1, 1, shape).astype(dtype))
        elif source["quantization"][0]:
            limits = np.iinfo(dtype)
            found.append(draw.integers(limits.min, limits.max, shape, dtype, endpoint=True))
        else:  # indices or switches, for which any value but zero may be out of range
            found.append(np.zeros(shape, dtype))
    return found


def quantize(values: np.ndarray, details: dict) -> np.ndarray:
    """Returns float `values` as a tensor stores them, by its scale and zero point (`details` are LiteRT's)."""
    dtype = details["dtype"]
    if np.issubdtype(dtype, np.floating):
        return values.astype(dtype)
    scale, zero = details["quantization"]
    limits = np.iinfo(dtype)
    return np.clip(np.round(values / (scale or 1.0)) + zero, limits.min, limits.max).astype(dtype)


def dequantize(values: np.ndarray, details: dict) -> np.ndarray:
    """Returns the real numbers, as float32, for a tensor's stored `values`."""
    if np.issubdtype(values.dtype, np.floating):
        return values.astype(np.float32)
    scale, zero = details["quantization"]
    return ((values.astype(np.float32) - zero) * (scale or 1.0)).astype(np.float32)


def check_shape(images: np.ndarray, details: dict) -> None:
    """Raises MeasureError unless each image has the shape of the input (`details` are LiteRT's)."""
    expected = tuple(int(length) for length in details["shape"][1:])
    if images.shape[1:] != expected:
        raise MeasureError(f"images have the shape {images.shape[1:]} each; the file takes {expected}. Resize them")


def _check_images(images: np.ndarray) -> np.ndarray:
    images = np.asarray(images, np.float32)
    if images.ndim != 4 or not len(images):
        raise MeasureError(f"images have the shape {images.shape}; expected (n, height, width, channels) with n >= 1")
    return images
