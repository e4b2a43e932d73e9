"""Where an int8 .tflite file loses accuracy: each operator's signal-to-noise ratio, and remedies."""

import copy
import dataclasses
import math
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from zoo.atomic import replacing
from zoo.deploy import measure, planner, tflite_file
from zoo.deploy.tflite_file import Source, constant_of, kind_of, kinds_of, load_schema, pack, parse, read, text
from zoo.markdown import join_blocks, make_table

EXACT_DB = 99.0  # stands for no noise at all
LOST_DB = 32.0  # an operator's own ratio below this calls for a remedy: healthy ones have 35 to 50 dB in 8 bits
IMAGES = 32  # at most; more images hardly change the ratios
# Thresholds of the remedies
OUTLIER_SHARE = 0.25  # outliers: 99.9 % of the values lie below this share of the largest
CHANNEL_RATIO = 8.0  # unequal channels: the largest channel's range to the median one's
SCALE_RATIO = 8.0  # unequal operands: between the scales of the operands of an addition or concatenation
SATURATED_SHARE = 0.01  # saturation: the share of values beyond the range
USED_SHARE = 0.25  # unused range: the share of the range that the largest value reaches
FIXED_SCALES = (1 / 256, 1 / 128, 1 / 32768)  # of softmax, sigmoid, tanh, whatever their values
_CONVERSIONS = ("QUANTIZE", "DEQUANTIZE")  # only change how numbers are stored
_SAME_SCALE = frozenset(
    "AVERAGE_POOL_2D CONCATENATION EXPAND_DIMS GATHER MAX_POOL_2D MIRROR_PAD PACK PAD RESHAPE RESIZE_BILINEAR "
    "RESIZE_NEAREST_NEIGHBOR SLICE SPLIT SQUEEZE STRIDED_SLICE TILE TRANSPOSE".split()
)  # their output has the scale of their input
NONE = 'keep it in 16 bits (quantize="int16x8"), or use quantization-aware training'  # if no rule explains the loss


class DoctorError(ValueError):
    """The file cannot be diagnosed."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One operator's ratios of signal to rounding noise, in decibels; 6 dB are one bit.

    `own_db` counts the noise that this operator adds to exact inputs, `total_db` all the noise that has accumulated in
    its output. `remedies` are ordered by cost, cheapest first; empty if the operator loses almost nothing.
    """

    operator: planner.Operator
    own_db: float
    total_db: float
    remedies: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """The findings on the input and all operators in execution order, over `n` images."""

    findings: tuple[Finding, ...]
    n: int
    output_db: float  # `total_db` at the file's first output

    def worst(self, count: int = 10) -> list[Finding]:
        """Returns the operators that add the most noise, worst first."""
        return sorted(self.findings, key=lambda finding: finding.own_db)[:count]

    def to_markdown(self, count: int = 10) -> str:
        """Returns the worst operators as a table, with remedies."""
        worst = self.worst(count)
        rows = [
            (finding.operator, f"{finding.own_db:.1f}", f"{finding.total_db:.1f}", "; ".join(finding.remedies) or None)
            for finding in worst
        ]
        lost = sum(bool(finding.remedies) for finding in self.findings)
        return join_blocks(
            f"Signal to rounding noise at the output: {self.output_db:.1f} dB (n = {self.n} images). "
            + (f"{lost} of {len(self.findings)} operators lose something. " if lost else "No operator loses much. ")
            + "The operators that add the most noise:",
            make_table(("operator", "own dB", "so far dB", "what helps"), rows),
            "Own: the noise that this operator adds to exact inputs. So far: all the noise accumulated in its output. "
            f"6 dB are one bit; {EXACT_DB:.0f} means no noise at all.",
        )


def diagnose(tflite: Source, images: np.ndarray | None, reference: Source | None = None) -> Diagnosis:
    """Compares every operator of a quantized file with the same operator in float.

    Args:
        images: (n, height, width, channels), preprocessed as in training; the first 32 are used. None uses random
            numbers over the whole range of each input, for a file that takes no images.
        reference: the float file of the same model. Without it, the file's own operators are computed in float with its
            rounded weights, so the noise from rounding the weights is not seen.

    Raises:
        DoctorError: the file is not quantized, keeps state or branches, or the reference has other operators.
        MeasureError: the images do not fit the file's input.
        TfliteFileError: not a whole TensorFlow Lite file.
    """
    model = parse(tflite)
    _require_followable(model)
    twin_file, kept = make_float(model) if reference is None else _match_operators(model, parse(reference))
    twin = parse(twin_file)
    inputs = _make_inputs(tflite) if images is None else [np.asarray(images[:IMAGES], np.float32)]
    stored, exact = _compute_tensors(read(tflite), model, inputs), _compute_tensors(twin_file, twin, inputs)
    operators, graph, float_graph = planner.list_operators(model), model.subgraphs[0], twin.subgraphs[0]
    findings = []
    for ours, theirs in zip(map(int, graph.inputs), map(int, float_graph.inputs), strict=True):
        name = text(graph.tensors[ours].name) if len(graph.inputs) > 1 else "image"
        operator = planner.Operator(-1, "INPUT", name)
        findings.append(_make_finding(model, operator, ours, stored[ours], exact[theirs], None))
    own = _measure_alone(model, parse(twin_file), kept, stored)
    for number, original in kept.items():
        ours, theirs = int(graph.operators[original].outputs[0]), int(float_graph.operators[number].outputs[0])
        own_db = own.get(number, EXACT_DB)
        findings.append(_make_finding(model, operators[original], ours, stored[ours], exact[theirs], own_db))
    return Diagnosis(tuple(findings), len(inputs[0]), _output_db(model, kept, findings))


def _make_finding(
    model: Any, operator: planner.Operator, tensor: int, stored: np.ndarray, signal: np.ndarray, own_db: float | None
) -> Finding:
    """Returns the finding on the operator that computes a tensor; None, for an input, makes `own_db` the total."""
    total_db = decibels(signal, _dequantize(model, tensor, stored))
    own_db = total_db if own_db is None else own_db
    found = _find_range_remedies(model, tensor, stored, signal)
    if operator.number >= 0:
        copies = operator.kind in _SAME_SCALE and operator.kind != "CONCATENATION"  # its input was rounded before
        found = [] if copies else found + _find_operand_remedies(model, operator, tensor)
    return Finding(operator, own_db, total_db, tuple(found or ([NONE] if own_db < LOST_DB else [])))


def draw_noise(diagnosis: Diagnosis, path: str | os.PathLike, title: str, count: int = 20) -> None:
    """Writes a PNG of the worst operators: a bar for each one's own ratio, a dot for the total at its output."""
    from matplotlib.figure import Figure

    worst = diagnosis.worst(count)[::-1]  # bars are drawn from the bottom
    figure = Figure((10, 1.6 + 0.28 * len(worst)), layout="constrained")
    axes = figure.add_subplot()
    places = range(len(worst))
    axes.barh(places, [finding.own_db for finding in worst], color="#4c78a8", label="this operator alone")
    axes.plot([finding.total_db for finding in worst], places, "o", color="#f58518", label="all noise so far")
    axes.set_yticks(places, [str(finding.operator) for finding in worst], fontsize=8)
    axes.set_xlim(0, None)
    axes.set_ylim(-0.6, len(worst) - 0.4)
    axes.set_xlabel("signal to rounding noise, dB (6 dB are one bit)")
    axes.set_title(f"{title}: {diagnosis.output_db:.1f} dB at the output, n = {diagnosis.n} images", fontsize=10)
    figure.legend(loc="outside lower center", ncols=2)
    with replacing(path) as stream:
        figure.savefig(stream, format="png", dpi=120)


def _require_followable(model: Any) -> None:
    kinds = {kind_of(model, operator) for operator in model.subgraphs[0].operators}
    unsupported = sorted(kinds & {"CALL_ONCE", "IF", "VAR_HANDLE", "WHILE"})
    variables = [text(tensor.name) for tensor in model.subgraphs[0].tensors if tensor.isVariable]
    if unsupported or variables:
        what = ", ".join(unsupported) or f"the variable {variables[0]}"
        raise DoctorError(f"the file keeps state between calls, or branches ({what}), which the doctor cannot follow")
    if not any(_is_quantized(model, number) for number in tflite_file.writers_of(model.subgraphs[0])):
        raise DoctorError("no operator of the file computes in integers; give the int8 file, not the float one")


def _make_inputs(tflite: Source) -> list[np.ndarray]:
    """Returns random float values for each input, over the whole range that the input can store."""
    interpreter = measure.interpret(tflite, threads=1)
    noise = measure.make_noise(interpreter, IMAGES)
    details = interpreter.get_input_details()
    return [measure.dequantize(values, one) for values, one in zip(noise, details, strict=True)]


def _output_db(model: Any, kept: dict[int, int], findings: list[Finding]) -> float:
    """Returns the ratio of the operator that computes the first output, before any conversions."""
    outputs = tflite_file.outputs_of(model)
    tensor = outputs[0][1] if tflite_file.is_numbered(outputs) else int(model.subgraphs[0].outputs[0])
    made = tflite_file.writers_of(model.subgraphs[0])
    while tensor in made and made[tensor] not in kept.values():
        tensor = int(model.subgraphs[0].operators[made[tensor]].inputs[0])
    number = made.get(tensor)
    return next((finding.total_db for finding in findings if finding.operator.number == number), findings[-1].total_db)


def decibels(signal: np.ndarray, noisy: np.ndarray) -> float:
    """Returns 10 log10 of the signal's power over that of the difference, at most 99."""
    return _to_decibels(*_sum_powers(signal, noisy))


def _sum_powers(signal: np.ndarray, noisy: np.ndarray) -> np.ndarray:
    """Returns the sums of the squares of the signal and of the noise."""
    signal = signal.astype(np.float64)
    return np.array([np.sum(np.square(signal)), np.sum(np.square(noisy - signal))])


def _to_decibels(power: float, noise: float) -> float:
    return EXACT_DB if noise == 0 else min(EXACT_DB, 10 * math.log10(max(power, 1e-30) / noise))


def _match_operators(model: Any, reference: Any) -> tuple[bytes, dict[int, int]]:
    """Pairs a float file's operators with those of the quantized file, in execution order; returns as `make_float`."""
    ours = [number for number, kind in enumerate(kinds_of(model)) if kind not in _CONVERSIONS]
    kinds = [kinds_of(model)[number] for number in ours]
    theirs = kinds_of(reference)
    if kinds != theirs:
        odd = next((place for place, pair in enumerate(zip(kinds, theirs, strict=False)) if pair[0] != pair[1]), None)
        where = f"{len(kinds)} and {len(theirs)}" if odd is None else f"{kinds[odd]} and {theirs[odd]} at {odd}"
        raise DoctorError(f"the reference does not run the same operators: {where}. Leave it out")
    return pack(reference), dict(enumerate(ours))


def _compute_tensors(file: bytes, model: Any, inputs: Sequence[np.ndarray]) -> dict[int, np.ndarray]:
    """Returns the inputs and every computed tensor, for all images, as stored."""
    interpreter = measure.interpret(file, threads=1, keep_tensors=True, kernels="builtin")
    details = interpreter.get_input_details()
    if len(details) != len(inputs):
        raise measure.MeasureError(
            f"the file takes {len(details)} inputs, and images are only one; give None to use random inputs"
        )
    for values, source in zip(inputs, details, strict=True):
        if values.shape[1:] != tuple(source["shape"]):  # random inputs have it
            measure.check_shape(values, source)
    graph = model.subgraphs[0]
    given = [measure.quantize(values, source) for values, source in zip(inputs, details, strict=True)]
    return measure.run_interpreter(interpreter, given, [*map(int, graph.inputs), *tflite_file.writers_of(graph)])


def _measure_alone(model: Any, twin: Any, kept: dict[int, int], stored: dict[int, np.ndarray]) -> dict[int, float]:
    """Returns each operator's own ratio, by its number: computed in float from the inputs that it had in integers.

    All operators run at once: `twin` is changed into a file in which each operator takes its inputs from outside.
    """
    graph, original = twin.subgraphs[0], model.subgraphs[0].operators
    computed = {*map(int, graph.inputs), *tflite_file.writers_of(graph)}
    given: dict[tuple[int, int], int] = {}  # the new inputs, by the tensors of both files that they stand for
    operators = {}
    for number in kept:
        operator = graph.operators[number]
        pairs = list(zip(map(int, operator.inputs), map(int, original[kept[number]].inputs), strict=False))
        pairs = [(theirs, ours) for theirs, ours in pairs if theirs in computed and ours in stored]
        if {theirs for theirs, _ in pairs} == computed.intersection(map(int, operator.inputs)) and pairs:
            for pair in pairs:
                if pair not in given:
                    given[pair] = len(graph.tensors)
                    graph.tensors.append(copy.copy(graph.tensors[pair[0]]))
            taken = {theirs: given[theirs, ours] for theirs, ours in pairs}
            operator.inputs = np.array([taken.get(int(tensor), int(tensor)) for tensor in operator.inputs], np.int32)
            operators[number] = operator
    graph.operators = list(operators.values())
    graph.inputs = np.array(list(given.values()), np.int32)
    graph.outputs = np.array(list(tflite_file.writers_of(graph)), np.int32)
    twin.signatureDefs = None
    interpreter = measure.interpret(pack(twin), threads=1)
    types = {source["index"]: source["dtype"] for source in interpreter.get_input_details()}
    sums = {number: np.zeros(2) for number in operators}
    for image in range(len(next(iter(stored.values())))):
        for (_, ours), tensor in given.items():
            interpreter.set_tensor(tensor, _dequantize(model, ours, stored[ours][image]).astype(types[tensor]))
        interpreter.invoke()
        for number, operator in operators.items():
            ours = int(original[kept[number]].outputs[0])
            exact = interpreter.get_tensor(int(operator.outputs[0]))
            sums[number] += _sum_powers(exact, _dequantize(model, ours, stored[ours][image]))
    return {number: _to_decibels(*both) for number, both in sums.items()}


def _find_operand_remedies(model: Any, operator: planner.Operator, output: int) -> list[str]:
    graph, found = model.subgraphs[0], []
    inputs = graph.operators[operator.number].inputs
    branches = _list_branches(model, inputs)
    if operator.kind in ("ADD", "SUB", "CONCATENATION") and len(branches) > 1:
        scales = [float(graph.tensors[number].quantization.scale[0]) for number in branches]
        if max(scales) > SCALE_RATIO * min(scales):
            found.append(f"its operands' scales differ {max(scales) / min(scales):.0f}-fold: normalize both branches")
    weights = int(inputs[1]) if operator.kind in ("CONV_2D", "DEPTHWISE_CONV_2D") else -1
    if weights >= 0 and _is_quantized(model, weights):
        channels = int(graph.tensors[output].shape[-1])
        if len(graph.tensors[weights].quantization.scale) == 1 and channels > 1:
            found.append(
                "all output channels share one scale: convert with zoo.deploy.tflite, which gives each its own"
            )
    return found


def _list_branches(model: Any, inputs: Iterable[int]) -> list[int]:
    """Returns those of an operator's inputs that are quantized and computed by the network."""
    tensors = model.subgraphs[0].tensors
    quantized = (int(number) for number in inputs if number >= 0 and _is_quantized(model, number))
    return [number for number in quantized if not tflite_file.is_constant(model, tensors[number])]


def _find_concatenation(model: Any, tensor: int) -> str | None:
    """Returns the concatenation that sets a tensor's range, or None; the parts of a concatenation share one scale."""
    graph = model.subgraphs[0]
    readers = tflite_file.readers_of(graph)
    waiting, seen = [tensor], set()
    while waiting:
        number = waiting.pop()
        seen.add(number)
        for operator in (graph.operators[reader] for reader in readers.get(number, [])):
            kind = kind_of(model, operator)
            if kind == "CONCATENATION" and len(set(_list_branches(model, operator.inputs))) > 1:
                return f"{kind} ({planner.find_layer_names(model)[0][operator.outputs[0]]})"
            if kind in _SAME_SCALE:
                waiting += [int(output) for output in operator.outputs if int(output) not in seen]
    return None


def _find_range_remedies(model: Any, output: int, stored: np.ndarray, signal: np.ndarray) -> list[str]:
    if not _is_quantized(model, output):
        return []
    limits = np.iinfo(stored.dtype)
    zero = int(model.subgraphs[0].tensors[output].quantization.zeroPoint[0])
    scale = float(model.subgraphs[0].tensors[output].quantization.scale[0])
    if scale in FIXED_SCALES:
        return []
    found = []
    cut_off = (signal > (limits.max - zero + 1) * scale) | (signal < (limits.min - zero - 1) * scale)
    if cut_off.mean() > SATURATED_SHARE:
        found.append(
            f"{100 * cut_off.mean():.1f} % of its values are beyond the range and are cut off: calibrate on more, or "
            "more typical, images"
        )
    largest = float(np.abs(signal).max())
    if 0 < largest < USED_SHARE * scale * max(limits.max - zero, zero - limits.min):
        joined = _find_concatenation(model, output)
        found.append(
            "it uses little of its range: calibrate on more typical images"
            if joined is None
            else f"it uses little of its range, which it shares with larger values in {joined}: normalize both branches"
        )
    if largest > 0 and np.percentile(np.abs(signal), 99.9) < OUTLIER_SHARE * largest:
        found.append("a few outliers stretch its range: put a ReLU6 after it, or use quantization-aware training")
    if signal.ndim == 5:
        channels = np.abs(signal).max(axis=(0, 1, 2, 3))
        if channels.max() > CHANNEL_RATIO * max(float(np.median(channels)), 1e-12):
            found.append(
                "channels of very different range share its scale: --equalize (zoo.deploy.equalize) if a ReLU or no "
                "activation follows, otherwise quantization-aware training"
            )
    return found


def _dequantize(model: Any, number: int, values: np.ndarray) -> np.ndarray:
    """Returns the real numbers, as float32, for stored `values` of a tensor with one scale or one per channel."""
    quantization = model.subgraphs[0].tensors[number].quantization
    if not _is_quantized(model, number):
        return values.astype(np.float32)
    scale, zero = np.asarray(quantization.scale, np.float32), np.asarray(quantization.zeroPoint, np.float32)
    if len(scale) > 1:
        shape = [1] * values.ndim
        shape[quantization.quantizedDimension] = -1
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    return ((values.astype(np.float32) - zero) * scale).astype(np.float32)


def _is_quantized(model: Any, number: int) -> bool:
    return tflite_file.is_quantized(model.subgraphs[0].tensors[number])


def make_float(quantized: Any) -> tuple[bytes, dict[int, int]]:
    """Returns the float file of a parsed quantized one, and the quantized file's operator for each of its operators.

    Tensors keep their numbers. Operators that only convert are removed; their readers take their inputs instead.
    """
    model = copy.deepcopy(quantized)
    graph, types = model.subgraphs[0], load_schema().TensorType
    for number, tensor in enumerate(graph.tensors):
        if _is_quantized(quantized, number):
            values = constant_of(quantized, number)
            tensor.type, tensor.quantization = types.FLOAT32, None
            if values is not None:
                tensor.buffer = tflite_file.add_buffer(model, _dequantize(quantized, number, values))
    source: dict[int, int] = {}
    kept = {}
    operators = []
    for number, (operator, kind) in enumerate(zip(graph.operators, kinds_of(quantized), strict=True)):
        inputs = [source.get(int(tensor), int(tensor)) for tensor in operator.inputs]
        if kind in _CONVERSIONS:
            source[int(operator.outputs[0])] = inputs[0]
            continue
        operator.inputs = np.array(inputs, np.int32)
        kept[len(operators)] = number
        operators.append(operator)
    graph.operators = operators
    graph.outputs = np.array([source.get(int(tensor), int(tensor)) for tensor in graph.outputs], np.int32)
    for signature in model.signatureDefs or []:
        for entry in signature.outputs or []:
            entry.tensorIndex = source.get(entry.tensorIndex, entry.tensorIndex)
    return pack(model), kept
