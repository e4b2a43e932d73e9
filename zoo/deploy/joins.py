"""Concatenations of more tensors than TensorFlow Lite for Microcontrollers (TFLM) joins, as nested ones that it does.

A rewrite of the file, not of the networks: layers, names and weights stay as their paper has them, and files after
quantization-aware training or of other tools are rewritten by the same code. Nothing but copies: no output changes.
"""

import copy
import math
from typing import Any

import numpy as np

from zoo.deploy import float_twin
from zoo.deploy.tflite_file import OFFLINE_PLAN, Source, load_schema, pack, parse, read, text

MOST_INPUTS = 10  # kMaxInputNum in TFLM's concatenation.cc


def narrow(tflite: Source) -> bytes:
    """Returns the file with no concatenation of more than ten tensors; the very bytes where it has none.

    A plan of the memory that the file brings along stays behind: it knows nothing of the new tensors. See
    `zoo.deploy.compact.with_best_plan`.

    Raises:
        TfliteFileError: not a whole TensorFlow Lite file.
    """
    model = parse(tflite)
    too_wide = wide(model)
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


def wide(model: Any) -> list[int]:
    """Returns the numbers of a parsed file's operators that join more tensors than TFLM does."""
    operators = zip(model.subgraphs[0].operators, float_twin.kinds(model), strict=True)
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
