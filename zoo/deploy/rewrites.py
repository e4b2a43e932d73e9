"""Rewrites .tflite files after TensorFlow's converter: for the limits of runtimes, and for weights of four bits.

Concatenations of more tensors than TensorFlow Lite for Microcontrollers (TFLM) supports become nested ones. Output
scales too small for a runtime are enlarged: a ReLU that is zero on every calibration image (squeeze-excite's few
channels die easily) gets an empty range, and thus a scale so small that the convolution before it would have to
multiply its sums by thousands; XNNPACK, LiteRT's default, refuses such a file. Neither rewrite changes an output.

The converter cannot make weights of four bits, which LiteRT and TFLM can run; they halve the flash.

Files are rewritten, not networks: layers, names and weights stay as in their paper, and the same code also rewrites
files after quantization-aware training and files of other tools.
"""

import copy
import math
from typing import Any

import numpy as np

from zoo.deploy import tflite_file
from zoo.deploy.tflite_file import Source, add_buffer, constant_of, kinds_of, pack, parse, read, text, type_of

MOST_INPUTS = 10  # kMaxInputNum in TFLM's concatenation.cc
LARGEST_FACTOR = 256.0  # XNNPACK's limit, exclusive, for the factor from an operator's sum to its output
_SUMS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
_INT4 = ("CONV_2D", "FULLY_CONNECTED")  # a depthwise convolution has few weights, and each matters
_READERS = frozenset([*_SUMS, "ADD", "LOGISTIC", "MUL", "SUB"])  # accept inputs of any scale, not only their output's


def narrow_joins(tflite: Source) -> bytes:
    """Returns the file with concatenations of more than ten tensors split up; unchanged if it has none.

    A memory plan in the file is removed, as it does not cover the new tensors; `zoo.deploy.compact.with_best_plan`
    makes another.
    """
    model = parse(tflite)
    too_wide = find_wide_joins(model)
    if not too_wide:
        return read(tflite)
    graph, operators = model.subgraphs[0], []
    for number, operator in enumerate(graph.operators):
        while number in too_wide and len(operator.inputs) > MOST_INPUTS:
            operators.append(_split_join(model, operator))
        operators.append(operator)
    graph.operators = operators
    model.metadata = [entry for entry in model.metadata or [] if text(entry.name) != tflite_file.OFFLINE_PLAN]
    return pack(model)


def find_wide_joins(model: Any) -> list[int]:
    """Returns the numbers of a parsed file's concatenations of more tensors than TFLM supports."""
    joins = ((place, model.subgraphs[0].operators[place]) for place, kind in enumerate(kinds_of(model))
             if kind == "CONCATENATION")  # fmt: skip
    return [place for place, operator in joins if len(operator.inputs) > MOST_INPUTS]


def _split_join(model: Any, operator: Any) -> Any:
    """Moves neighbouring inputs of a concatenation into a new one that runs before it, and returns the new operator.

    The inputs to move are as few as possible and smallest in sum, because they are copied twice.
    """
    graph = model.subgraphs[0]
    numbers = [int(number) for number in operator.inputs]
    count = min(MOST_INPUTS, len(numbers) - MOST_INPUTS + 1)
    sizes = [math.prod(tflite_file.shape_of(graph.tensors[number])) for number in numbers]
    start = min(range(len(numbers) - count + 1), key=lambda place: sum(sizes[place : place + count]))
    group = numbers[start : start + count]

    tensor = copy.deepcopy(graph.tensors[int(operator.outputs[0])])
    axis = operator.builtinOptions.axis
    tensor.shape = np.array(tensor.shape, np.int32)
    tensor.shape[axis] = sum(int(graph.tensors[number].shape[axis]) for number in group)
    tensor.shapeSignature = None
    tensor.name = f"{text(tensor.name)}_first{len(graph.tensors)}".encode()
    tensor.buffer = add_buffer(model)
    graph.tensors.append(tensor)

    inner = copy.deepcopy(operator)
    inner.builtinOptions.fusedActivationFunction = tflite_file.load_schema().ActivationFunctionType.NONE
    inner.inputs = np.array(group, np.int32)
    inner.outputs = np.array([len(graph.tensors) - 1], np.int32)
    operator.inputs = np.array([*numbers[:start], len(graph.tensors) - 1, *numbers[start + count :]], np.int32)
    return inner


def widen_scales(tflite: Source) -> bytes:
    """Returns the file with output scales enlarged where they are too small for XNNPACK; unchanged if none is.

    One step of the output becomes one step of the sums before it, which are no finer, so nothing is lost. An output
    stays as it is if an operator reads it that needs the same scale for input and output.
    """
    model = parse(tflite)
    graph, kinds = model.subgraphs[0], kinds_of(model)
    readers, changed = tflite_file.readers_of(graph), False
    for operator, kind in zip(graph.operators, kinds, strict=True):
        output = int(operator.outputs[0])
        if kind not in _SUMS or output in map(int, graph.outputs):
            continue
        factor, followers = _find_factor(graph, operator), readers.get(output, [])
        if factor >= LARGEST_FACTOR and all(kinds[number] in _READERS for number in followers):
            scale = graph.tensors[output].quantization
            scale.scale = np.asarray(scale.scale, np.float32) * np.float32(factor)
            scale.min = scale.max = None
            for reader in (graph.operators[number] for number in followers if kinds[number] in _SUMS):
                weights = graph.tensors[int(reader.inputs[1])].quantization
                _set_bias_scale(model, reader, scale.scale[0] * np.asarray(weights.scale, np.float32))
            changed = True
    return pack(model) if changed else read(tflite)


def narrow_weights(tflite: Source) -> bytes:
    """Returns an int8 file with the weights of its convolutions and dense layers in four bits, from -7 to 7.

    Depthwise convolutions, activations and biases keep their types. A convolution has a scale per output channel, a
    dense layer a single one, as TFLM requires.
    """
    model = parse(tflite)
    graph = model.subgraphs[0]
    for operator, kind in zip(graph.operators, kinds_of(model), strict=True):
        if kind not in _INT4:
            continue
        image, tensor = (graph.tensors[int(number)] for number in operator.inputs[:2])
        stored = constant_of(model, int(operator.inputs[1]))
        if stored is None or {type_of(image), type_of(tensor)} - {"int8", "int4"}:
            continue
        if type_of(tensor) == "int8":  # otherwise narrowed already, for another operator with the same weights
            scale = np.asarray(tensor.quantization.scale, np.float32)  # one, or one for each index of the first axis
            values = stored * scale.reshape(-1, *[1] * (stored.ndim - 1))
            axes = tuple(range(1 if kind == "CONV_2D" else 0, stored.ndim))
            largest = np.abs(values).max(axis=axes, keepdims=True)
            scale = np.where(largest > 0, largest, 1) / np.float32(7)
            tflite_file.store_int4(model, tensor, np.round(values / scale))
            tensor.quantization.scale, tensor.quantization.zeroPoint = scale.ravel(), np.zeros(scale.size, np.int64)
            tensor.quantization.min = tensor.quantization.max = None
        _set_bias_scale(model, operator, image.quantization.scale[0] * tensor.quantization.scale)
    tflite_file.drop_unused_buffers(model)
    return pack(model)


def _find_factor(graph: Any, operator: Any) -> float:
    """Returns the largest factor from a sum to the stored output; 0 unless all of the operator is int8."""
    image, kernel, output = (graph.tensors[int(number)] for number in (*operator.inputs[:2], operator.outputs[0]))
    if {type_of(tensor) for tensor in (image, kernel, output)} != {"int8"}:
        return 0.0
    product = float(image.quantization.scale[0]) * np.asarray(kernel.quantization.scale, float)
    return float(product.max()) / float(output.quantization.scale[0])


def _set_bias_scale(model: Any, operator: Any, scale: np.ndarray) -> None:
    """Rescales an operator's bias to steps of `scale` (one, or one per output); a bias with other readers is copied."""
    if len(operator.inputs) < 3 or int(operator.inputs[2]) < 0:
        return
    graph, number = model.subgraphs[0], int(operator.inputs[2])
    tensor, values = graph.tensors[number], constant_of(model, number)
    if values is None or values.dtype != np.int32:
        return
    if sum(number in other.inputs for other in graph.operators) > 1:
        tensor = copy.deepcopy(tensor)
        operator.inputs = np.array([*operator.inputs[:2], len(graph.tensors), *operator.inputs[3:]], np.int32)
        graph.tensors.append(tensor)
    tensor.buffer = add_buffer(model, np.round(values * (tensor.quantization.scale / scale)).astype("<i4"))
    tensor.quantization.scale, tensor.quantization.zeroPoint = scale, np.zeros(len(scale), np.int64)
