"""What is rewritten in a file after TensorFlow's converter, so that every runtime runs it; no output changes.

Concatenations of more tensors than TensorFlow Lite for Microcontrollers (TFLM) joins become nested ones. Scales that no
runtime multiplies with become ones that it does: a ReLU that is zero on every calibration image (squeeze-excite's few
channels die easily) gets a range of nothing, and a scale so small that the convolution before it would multiply its
sums by thousands; XNNPACK, which LiteRT runs by default, refuses such a file.

Rewrites of files, not of networks: layers, names and weights stay as their paper has them, and files after
quantization-aware training or of other tools are rewritten by the same code.
"""

import copy
import math
from typing import Any

import numpy as np

from zoo.deploy.tflite_file import OFFLINE_PLAN, Source, constant_of, kinds_of, load_schema, pack, parse, read, text

MOST_INPUTS = 10  # kMaxInputNum in TFLM's concatenation.cc
LARGEST_FACTOR = 256.0  # of XNNPACK from a sum to its output, exclusive
_SUMS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
_READERS = frozenset([*_SUMS, "ADD", "LOGISTIC", "MUL", "SUB"])  # of any scale, not only that of their output


def narrow_joins(tflite: Source) -> bytes:
    """Returns the file with no concatenation of more than ten tensors; the very bytes where it has none.

    A plan of the memory that the file brings along is left out: it knows nothing of the new tensors. See
    `zoo.deploy.compact.with_best_plan`.

    Raises:
        TfliteFileError: not a whole TensorFlow Lite file.
    """
    model = parse(tflite)
    too_wide = wide_joins(model)
    if not too_wide:
        return read(tflite)
    graph, operators = model.subgraphs[0], []
    for number, operator in enumerate(graph.operators):
        while number in too_wide and len(operator.inputs) > MOST_INPUTS:
            operators.append(_inner(model, operator))
        operators.append(operator)
    graph.operators = operators
    model.metadata = [entry for entry in model.metadata or [] if text(entry.name) != OFFLINE_PLAN]
    return pack(model)


def wide_joins(model: Any) -> list[int]:
    """Returns the numbers of a parsed file's operators that join more tensors than TFLM does."""
    operators = zip(model.subgraphs[0].operators, kinds_of(model), strict=True)
    return [
        number
        for number, (operator, kind) in enumerate(operators)
        if kind == "CONCATENATION" and len(operator.inputs) > MOST_INPUTS
    ]


def _inner(model: Any, operator: Any) -> Any:
    """Takes neighbours out of a concatenation's inputs, and returns the new operator that joins them first.

    As many as are too many, and those that are smallest together: it is they that are copied twice.
    """
    graph = model.subgraphs[0]
    numbers = [int(number) for number in operator.inputs]
    count = min(MOST_INPUTS, len(numbers) - MOST_INPUTS + 1)
    sizes = [math.prod(map(int, graph.tensors[number].shape)) for number in numbers]
    start = min(range(len(numbers) - count + 1), key=lambda place: sum(sizes[place : place + count]))
    group = numbers[start : start + count]

    tensor = copy.deepcopy(graph.tensors[int(operator.outputs[0])])
    axis = operator.builtinOptions.axis
    tensor.shape = np.array(tensor.shape, np.int32)
    tensor.shape[axis] = sum(int(graph.tensors[number].shape[axis]) for number in group)
    tensor.shapeSignature = None
    tensor.name = f"{text(tensor.name)}_first{len(graph.tensors)}".encode()
    tensor.buffer = len(model.buffers)
    model.buffers.append(load_schema().BufferT())
    graph.tensors.append(tensor)

    inner = copy.deepcopy(operator)
    inner.builtinOptions.fusedActivationFunction = load_schema().ActivationFunctionType.NONE
    inner.inputs = np.array(group, np.int32)
    inner.outputs = np.array([len(graph.tensors) - 1], np.int32)
    operator.inputs = np.array([*numbers[:start], len(graph.tensors) - 1, *numbers[start + count :]], np.int32)
    return inner


def widen_scales(tflite: Source) -> bytes:
    """Returns the file with the output scales of such convolutions and dense layers enlarged; else the very bytes.

    One step of the output becomes one of the sums before it, which are no finer: nothing is lost. What is read by an
    operator that wants the same scale on both sides is left as it is.
    """
    model = parse(tflite)
    graph, kinds = model.subgraphs[0], kinds_of(model)
    readers: dict[int, list[int]] = {}
    for number, operator in enumerate(graph.operators):
        for tensor in map(int, operator.inputs):
            readers.setdefault(tensor, []).append(number)
    changed = False
    for operator, kind in zip(graph.operators, kinds, strict=True):
        output = int(operator.outputs[0])
        if kind in _SUMS and output not in map(int, graph.outputs):
            factor = _factor(graph, operator)
            followers = readers.get(output, [])
            if factor >= LARGEST_FACTOR and all(kinds[number] in _READERS for number in followers):
                scale = graph.tensors[output].quantization
                scale.scale = np.asarray(scale.scale, np.float32) * np.float32(factor)
                scale.min = scale.max = None
                for number in followers:
                    if kinds[number] in _SUMS:
                        _rescale_bias(model, graph.operators[number], factor)
                changed = True
    return pack(model) if changed else read(tflite)


def _factor(graph: Any, operator: Any) -> float:
    """Returns the largest factor from a sum to the stored output; 0 where that is not int8."""
    image, kernel, output = (graph.tensors[int(one)] for one in (*operator.inputs[:2], operator.outputs[0]))
    if any(tensor.type != load_schema().TensorType.INT8 for tensor in (image, kernel, output)):
        return 0.0
    product = float(image.quantization.scale[0]) * np.asarray(kernel.quantization.scale, float)
    return float(product.max()) / float(output.quantization.scale[0])


def _rescale_bias(model: Any, operator: Any, factor: float) -> None:
    """Gives a reader a bias of its own in steps that are `factor` times as large, as its input's are."""
    if len(operator.inputs) < 3 or int(operator.inputs[2]) < 0:
        return
    graph = model.subgraphs[0]
    values = constant_of(model, int(operator.inputs[2]))
    tensor, buffer = copy.deepcopy(graph.tensors[int(operator.inputs[2])]), load_schema().BufferT()
    if values is None or values.dtype != np.int32:
        return
    buffer.data = np.frombuffer(np.round(values / factor).astype("<i4").tobytes(), np.uint8)
    tensor.quantization.scale = np.asarray(tensor.quantization.scale, np.float32) * np.float32(factor)
    tensor.buffer = len(model.buffers)
    model.buffers.append(buffer)
    graph.tensors.append(tensor)
    inputs = [int(number) for number in operator.inputs]
    inputs[2] = len(graph.tensors) - 1
    operator.inputs = np.array(inputs, np.int32)
