"""Scales of an int8 file that no runtime multiplies with, as those of units that have died, made ones that it does.

A ReLU that is zero on every calibration image (squeeze-excite's few channels die easily) gets a range of nothing, and a
scale so small that the convolution before it would multiply its sums by thousands. XNNPACK, which LiteRT runs by
default, refuses such a file.
"""

import copy
from typing import Any

import numpy as np

from zoo.deploy import float_twin
from zoo.deploy.tflite_file import Source, load_schema, pack, parse, read

LARGEST_FACTOR = 256.0  # of XNNPACK from a sum to its output, exclusive
_SUMS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
_READERS = frozenset([*_SUMS, "ADD", "LOGISTIC", "MUL", "SUB"])  # of any scale, not only that of their output


def widen(tflite: Source) -> bytes:
    """Returns the file with the output scales of such convolutions and dense layers enlarged; else the very bytes.

    One step of the output becomes one of the sums behind it, which are no finer: nothing is lost. What is read by an
    operator that wants the same scale on both sides is left as it is.
    """
    model = parse(tflite)
    graph, kinds = model.subgraphs[0], float_twin.kinds(model)
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
    values = float_twin.constant(model, int(operator.inputs[2]))
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
