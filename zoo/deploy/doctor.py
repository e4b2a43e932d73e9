"""Where an int8 .tflite file loses accuracy: the signal-to-noise ratio of each operator, and what helps there."""

import dataclasses
import math
from typing import Any

import numpy as np

from zoo.deploy import float_twin, measure, planner
from zoo.deploy.tflite_file import Source, pack, parse, read

EXACT_DB = 99.0  # shown where there is no noise at all
IMAGES = 32  # at most; the ratios hardly move after some
OUTLIER_SHARE = 0.25  # of the range, below which 99.9 % of the values lie
CHANNEL_RATIO = 8.0  # of the largest channel's range to the median one's
SCALE_RATIO = 8.0  # between the operands of an addition or concatenation
SATURATED_SHARE = 0.01
USED_SHARE = 0.25  # of the range, that the largest value reaches
FIXED_SCALES = (1 / 256, 1 / 128, 1 / 32768)  # of softmax, sigmoid, tanh: whatever their values are
NONE = 'keep it in 16 bits (quantize="int16x8"), or quantization-aware training'  # where no rule finds anything


class DoctorError(ValueError):
    """The file cannot be diagnosed."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One operator. Ratios in decibels, signal to rounding noise; 6 dB are one bit.

    `own_db` is for the noise that this operator adds to exact inputs, `total_db` for all that has come together in its
    output. `remedies` are in the order of what they cost.
    """

    operator: planner.Operator
    own_db: float
    total_db: float
    remedies: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """The input and all operators in running order, and on how many images they were watched."""

    findings: tuple[Finding, ...]
    n: int

    @property
    def output_db(self) -> float:
        """The ratio at the file's output."""
        return self.findings[-1].total_db

    def worst(self, count: int = 10) -> list[Finding]:
        """Returns the operators that add the most noise, worst first."""
        return sorted(self.findings, key=lambda finding: finding.own_db)[:count]

    def to_markdown(self, count: int = 10) -> str:
        """Returns the worst operators as a table, with remedies."""
        lines = [
            f"Signal to rounding noise at the output: {self.output_db:.1f} dB (n = {self.n} images). The operators "
            "that add the most noise:",
            "",
            "| operator | own dB | so far dB | what helps |",
            "|---|---|---|---|",
        ]
        for finding in self.worst(count):
            remedies = "; ".join(finding.remedies)
            lines.append(f"| {finding.operator} | {finding.own_db:.1f} | {finding.total_db:.1f} | {remedies} |")
        return "\n".join(lines) + "\n"


def diagnose(tflite: Source, images: np.ndarray, reference: Source | None = None) -> Diagnosis:
    """Compares every operator of a quantized file with the same in float.

    Args:
        images: (n, height, width, channels), preprocessed as in training; the first 32 are used.
        reference: the float file of the same model; without it the file's own operators are computed in float with
            its rounded weights, and the noise of rounding the weights stays unseen.

    Raises:
        DoctorError: the file is not quantized, or the reference has other operators.
        MeasureError: images that do not fit.
        TfliteFileError: not a whole TensorFlow Lite file.
    """
    model = parse(tflite)
    if not any(float_twin.is_quantized(model, int(operator.outputs[0])) for operator in model.subgraphs[0].operators):
        raise DoctorError("no operator of the file computes in integers; give the int8 file, not the float one")
    twin_file, kept = float_twin.of(model) if reference is None else _matched(model, parse(reference))
    twin = parse(twin_file)
    images = images[:IMAGES]
    stored, exact = _outputs(read(tflite), model, images), _outputs(twin_file, twin, images)
    operators = planner.operators(model)
    findings = [_of_input(model, twin, stored, exact)]
    for number, original in kept.items():
        output = int(model.subgraphs[0].operators[original].outputs[0])
        target = int(twin.subgraphs[0].operators[number].outputs[0])
        signal, values = exact[target], float_twin.dequantized(model, output, stored[output])
        own = _own(model, twin, original, number, stored)
        own_db = EXACT_DB if own is None else decibels(own, values)
        remedies = _remedies(model, original, stored, signal)
        findings.append(Finding(operators[original], own_db, decibels(signal, values), remedies))
    return Diagnosis(tuple(findings), len(images))


def _of_input(model: Any, twin: Any, stored: dict[int, np.ndarray], exact: dict[int, np.ndarray]) -> Finding:
    """Returns what rounding the image costs, as if an operator did it."""
    ours, theirs = int(model.subgraphs[0].inputs[0]), int(twin.subgraphs[0].inputs[0])
    signal = exact[theirs]
    ratio = decibels(signal, float_twin.dequantized(model, ours, stored[ours]))
    remedies = []
    if float_twin.is_quantized(model, ours):
        remedies = _range_remedies(model, ours, stored[ours], signal)
    return Finding(planner.Operator(-1, "INPUT", "image"), ratio, ratio, tuple(remedies or [NONE]))


def decibels(signal: np.ndarray, noisy: np.ndarray) -> float:
    """Returns 10 log10 of the signal's power over that of the difference, at most 99."""
    noise = float(np.sum(np.square(noisy.astype(np.float64) - signal)))
    power = float(np.sum(np.square(signal.astype(np.float64))))
    if noise == 0:
        return EXACT_DB
    return min(EXACT_DB, 10 * math.log10(max(power, 1e-30) / noise))


def _matched(model: Any, reference: Any) -> tuple[bytes, dict[int, int]]:
    """Pairs the operators of a float file with the quantized one's, in running order."""
    ours = [number for number, kind in enumerate(float_twin.kinds(model)) if not float_twin.is_conversion(kind)]
    kinds = [float_twin.kinds(model)[number] for number in ours]
    theirs = float_twin.kinds(reference)
    if kinds != theirs:
        odd = next((place for place, pair in enumerate(zip(kinds, theirs, strict=False)) if pair[0] != pair[1]), None)
        where = f"{len(kinds)} and {len(theirs)}" if odd is None else f"{kinds[odd]} and {theirs[odd]} at {odd}"
        raise DoctorError(f"the reference does not run the same operators: {where}. Leave it out")
    return pack(reference), dict(enumerate(ours))


def _outputs(file: bytes, model: Any, images: np.ndarray) -> dict[int, np.ndarray]:
    """Returns every tensor that is computed, and the input, for all images, as stored."""
    interpreter = measure.interpret(file, threads=1, keep_tensors=True, kernels="builtin")
    source = interpreter.get_input_details()[0]
    measure.check_shape(images, source)
    graph = model.subgraphs[0]
    wanted = [int(number) for number in graph.inputs]
    wanted += [int(operator.outputs[0]) for operator in graph.operators]
    found: dict[int, list[np.ndarray]] = {number: [] for number in wanted}
    for image in measure.quantize(np.asarray(images, np.float32), source):
        interpreter.set_tensor(source["index"], image[None])
        interpreter.invoke()
        for number, values in found.items():
            values.append(interpreter.get_tensor(number).copy())
    return {number: np.stack(values) for number, values in found.items()}


def _own(model: Any, twin: Any, original: int, number: int, stored: dict[int, np.ndarray]) -> np.ndarray | None:
    """Returns the operator's output in float for the inputs that it had in integers."""
    file, taken = float_twin.single(twin, number)
    ours = [int(one) for one in model.subgraphs[0].operators[original].inputs]
    theirs = [int(one) for one in twin.subgraphs[0].operators[number].inputs]
    given = {}
    for mine, other in zip(ours, theirs, strict=False):
        if other in taken and mine in stored:
            given[other] = float_twin.dequantized(model, mine, stored[mine])
    if set(given) != set(taken):
        return None
    interpreter = measure.interpret(file, threads=1)
    details = interpreter.get_input_details()
    outputs = []
    for image in range(len(next(iter(given.values())))):
        for detail, one in zip(details, taken, strict=True):
            interpreter.set_tensor(detail["index"], given[one][image])
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]).copy())
    return np.stack(outputs)


def _remedies(model: Any, number: int, stored: dict[int, np.ndarray], signal: np.ndarray) -> tuple[str, ...]:
    graph, kind = model.subgraphs[0], float_twin.kinds(model)[number]
    operator = graph.operators[number]
    output = int(operator.outputs[0])
    found = []
    if float_twin.is_quantized(model, output):
        found += _range_remedies(model, output, stored[output], signal)
    if kind in ("ADD", "SUB", "CONCATENATION"):
        scales = [float(graph.tensors[one].quantization.scale[0]) for one in operator.inputs if
                  float_twin.is_quantized(model, int(one))]  # fmt: skip
        if scales and max(scales) > SCALE_RATIO * min(scales):
            found.append(f"its operands' scales differ {max(scales) / min(scales):.0f}-fold: normalize both branches")
    weights = int(operator.inputs[1]) if kind in ("CONV_2D", "DEPTHWISE_CONV_2D") else -1
    if weights >= 0 and float_twin.is_quantized(model, weights):
        channels = int(graph.tensors[output].shape[-1])
        if len(graph.tensors[weights].quantization.scale) == 1 and channels > 1:
            found.append("one scale for all output channels: convert with zoo.deploy.tflite, which gives each its own")
    return tuple(found or [NONE])


def _range_remedies(model: Any, output: int, stored: np.ndarray, signal: np.ndarray) -> list[str]:
    limits = np.iinfo(stored.dtype)
    zero = int(model.subgraphs[0].tensors[output].quantization.zeroPoint[0])
    ends = (stored == limits.max) | ((stored == limits.min) & (zero != limits.min))
    fixed = float(model.subgraphs[0].tensors[output].quantization.scale[0]) in FIXED_SCALES
    found = []
    if ends.mean() > SATURATED_SHARE and not fixed:
        found.append(
            f"{100 * ends.mean():.1f} % of its values hit the end of the range: calibrate on more, or more typical, "
            "images"
        )
    largest = float(np.abs(signal).max())
    scale = float(model.subgraphs[0].tensors[output].quantization.scale[0])
    if 0 < largest < USED_SHARE * scale * max(limits.max - zero, zero - limits.min) and not fixed:
        found.append(
            "it fills little of its range, which a tensor that it is added to or concatenated with sets: normalize "
            "both branches"
        )
    if largest > 0 and not fixed and np.percentile(np.abs(signal), 99.9) < OUTLIER_SHARE * largest:
        found.append("a few outliers stretch its range: ReLU6 behind it, or quantization-aware training")
    if signal.ndim == 5:
        channels = np.abs(signal).max(axis=(0, 1, 2, 3))
        if channels.max() > CHANNEL_RATIO * max(float(np.median(channels)), 1e-12):
            found.append(
                "channels of very different range share its scale: equalize (scale a channel down here and up in the "
                "next layer), or quantization-aware training"
            )
    return found
