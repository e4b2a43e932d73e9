"""A quantized .tflite file computed in float32: the same operators and rounded weights, nothing else rounded."""

import copy
from typing import Any

import numpy as np

from zoo.deploy.tflite_file import load_schema, pack

_CONVERSIONS = ("QUANTIZE", "DEQUANTIZE")


def kinds(model: Any) -> list[str]:
    """Returns the kind of each operator of a parsed file, such as CONV_2D."""
    builtin = load_schema().BuiltinOperator
    names = {code: name for name, code in vars(builtin).items() if not name.startswith("_")}
    codes = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in model.operatorCodes]
    return [names[codes[operator.opcodeIndex]] for operator in model.subgraphs[0].operators]


def is_conversion(kind: str) -> bool:
    """Whether operators of this kind only change how numbers are stored."""
    return kind in _CONVERSIONS


def constant(model: Any, number: int) -> np.ndarray | None:
    """Returns a tensor's constant value as stored, or None where it has none."""
    tensor = model.subgraphs[0].tensors[number]
    data = model.buffers[tensor.buffer].data
    if data is None or not len(data):
        return None
    stored = np.frombuffer(np.asarray(data, np.uint8).tobytes(), _dtype(tensor.type))
    return stored.reshape([] if tensor.shape is None else tensor.shape)


def dequantized(model: Any, number: int, values: np.ndarray) -> np.ndarray:
    """Returns what the stored `values` of a tensor stand for, as float32; one scale, or one for each channel."""
    quantization = model.subgraphs[0].tensors[number].quantization
    if not is_quantized(model, number):
        return values.astype(np.float32)
    scale, zero = np.asarray(quantization.scale, np.float32), np.asarray(quantization.zeroPoint, np.float32)
    if len(scale) > 1:
        shape = [1] * values.ndim
        shape[quantization.quantizedDimension] = -1
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    return ((values.astype(np.float32) - zero) * scale).astype(np.float32)


def is_quantized(model: Any, number: int) -> bool:
    """Whether the tensor's stored numbers have a scale."""
    quantization = model.subgraphs[0].tensors[number].quantization
    return quantization is not None and quantization.scale is not None and len(quantization.scale) > 0


def of(quantized: Any) -> tuple[bytes, dict[int, int]]:
    """Returns the float file of a parsed quantized one, and for each of its operators the quantized file's.

    Tensors keep their numbers. Operators that only convert are left out; their readers take what they read.
    """
    model = copy.deepcopy(quantized)
    graph, types = model.subgraphs[0], load_schema().TensorType
    for number, tensor in enumerate(graph.tensors):
        if is_quantized(quantized, number):
            values = constant(quantized, number)
            tensor.type, tensor.quantization = types.FLOAT32, None
            if values is not None:
                _store(model, tensor, dequantized(quantized, number, values))
    source: dict[int, int] = {}
    kept = {}
    operators = []
    for number, (operator, kind) in enumerate(zip(graph.operators, kinds(quantized), strict=True)):
        inputs = [source.get(int(one), int(one)) for one in operator.inputs]
        if is_conversion(kind):
            source[int(operator.outputs[0])] = inputs[0]
            continue
        operator.inputs = np.array(inputs, np.int32)
        kept[len(operators)] = number
        operators.append(operator)
    graph.operators = operators
    graph.outputs = np.array([source.get(int(one), int(one)) for one in graph.outputs], np.int32)
    _rename_signatures(model, source)
    return pack(model), kept


def single(model: Any, number: int) -> tuple[bytes, list[int]]:
    """Returns a file of one operator of a parsed float file, and the numbers of the tensors that it takes, in order."""
    schema, graph = load_schema(), model.subgraphs[0]
    operator = copy.copy(graph.operators[number])
    wanted = sorted({int(one) for one in (*operator.inputs, *operator.outputs) if one >= 0})
    place = {one: index for index, one in enumerate(wanted)}
    alone, part = schema.ModelT(), schema.SubGraphT()
    alone.version, alone.operatorCodes, alone.buffers = model.version, model.operatorCodes, [schema.BufferT()]
    part.tensors = []
    for one in wanted:
        tensor = copy.copy(graph.tensors[one])
        part.tensors.append(tensor)
        data = model.buffers[tensor.buffer].data
        tensor.buffer = 0
        if data is not None and len(data):
            tensor.buffer = len(alone.buffers)
            buffer = schema.BufferT()
            buffer.data = data
            alone.buffers.append(buffer)
    taken = [int(one) for one in operator.inputs if one >= 0 and constant(model, int(one)) is None]
    taken = list(dict.fromkeys(taken))
    operator.inputs = np.array([place.get(int(one), -1) for one in operator.inputs], np.int32)
    operator.outputs = np.array([place[int(one)] for one in operator.outputs], np.int32)
    part.operators, part.inputs = [operator], np.array([place[one] for one in taken], np.int32)
    part.outputs = operator.outputs
    alone.subgraphs = [part]
    return pack(alone), taken


def _store(model: Any, tensor: Any, values: np.ndarray) -> None:
    buffer = load_schema().BufferT()
    buffer.data = np.frombuffer(np.ascontiguousarray(values, np.float32).tobytes(), np.uint8)
    tensor.buffer = len(model.buffers)
    model.buffers.append(buffer)


def _rename_signatures(model: Any, source: dict[int, int]) -> None:
    for signature in model.signatureDefs or []:
        for entry in signature.outputs or []:
            entry.tensorIndex = source.get(entry.tensorIndex, entry.tensorIndex)


def _dtype(code: int) -> np.dtype:
    types = load_schema().TensorType
    table = {
        types.FLOAT32: "<f4", types.FLOAT16: "<f2", types.INT8: "i1", types.UINT8: "u1", types.INT16: "<i2",
        types.INT32: "<i4", types.INT64: "<i8", types.BOOL: "?",
    }  # fmt: skip
    return np.dtype(table[code])
