"""A network's cost, PREDICTED from its graph in milliseconds; zoo/deploy/measure.py and planner.py measure it.

Searches use it to reject a network before training it.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import keras

from zoo import graph

# A TFLite converter drops the free layers, and fuses batch normalisation and ReLUs into the linear layer before them:
# they need no memory of their own.
_FREE = ("Dropout", "Flatten", "InputLayer", "Reshape", "SpatialDropout2D")
_LINEAR = ("Conv2D", "DepthwiseConv2D", "SeparableConv2D", "Dense")
_RELUS = ("relu", "relu6")
_TRANSPOSED = "Conv2DTranspose"


@dataclasses.dataclass(frozen=True)
class Cost:
    """The predicted cost of one image.

    Attributes:
        params: number of values in all variables, including the moving averages of batch normalisation.
        trainable_params: number of values that training changes.
        macs: multiply-adds of convolutions and dense layers.
        peak_memory: the most bytes of activations that are alive at once, at one byte a value.
        flash: bytes of the int8 weights, with normalisation folded in and a four-byte bias per output channel.
    """

    params: int
    trainable_params: int
    macs: int
    peak_memory: int
    flash: int


def of(model: keras.Model, input_shape: Sequence[int] | None = None) -> Cost:
    """Predicts the cost of a functional model; nested models count as if they were inlined.

    Args:
        model: any functional model, not only one of this zoo.
        input_shape: (height, width, channels); needed if the model's input leaves a side open.

    Raises:
        GraphError: the model has no graph, or `input_shape` does not fit it.
        ValueError: the model's input leaves a side open and `input_shape` is not given.
    """
    model = graph.flatten(model, input_shape)
    if None in (shape := model.inputs[0].shape[1:]):
        raise ValueError(f"{model.name} takes images of shape {shape}; give input_shape=(height, width, channels)")
    calls = graph.calls(model)
    tensors = [*model.inputs, *(tensor for call in calls for tensor in call.outputs)]
    shapes = {id(tensor): tuple(tensor.shape[1:]) for tensor in tensors}
    linear = [call for call in calls if _get_kernels(call.layer)]
    distinct = {id(call.layer): call.layer for call in linear}
    return Cost(
        params=model.count_params(),
        trainable_params=sum(math.prod(variable.shape) for variable in model.trainable_variables),
        macs=sum(_count_macs(call, shapes) for call in linear),
        peak_memory=_find_peak_memory(model, calls, shapes),
        flash=sum(_count_flash(layer) for layer in distinct.values()),
    )


def _get_kernels(layer: Any) -> list[Any]:
    names = ("depthwise_kernel", "pointwise_kernel", "kernel")  # a separable convolution has the first two
    return [kernel for name in names if (kernel := getattr(layer, name, None)) is not None]


def _count_macs(call: graph.Call, shapes: dict[int, tuple[int, ...]]) -> int:
    # A transposed convolution applies its kernel at each position of its input, the others at each of their output.
    tensor = call.inputs[0] if call.kind == _TRANSPOSED else call.outputs[0]
    positions = math.prod(shapes[id(tensor)][:-1])
    return sum(math.prod(kernel.shape) * positions for kernel in _get_kernels(call.layer))


def _count_flash(layer: Any) -> int:
    kernels = _get_kernels(layer)
    kind = graph.kind_of(layer)
    if kind == "DepthwiseConv2D":
        channels = kernels[0].shape[2] * kernels[0].shape[3]
    elif kind == _TRANSPOSED:
        channels = kernels[0].shape[2]
    else:
        channels = kernels[-1].shape[-1]
    return sum(math.prod(kernel.shape) for kernel in kernels) + 4 * channels


def _find_peak_memory(model: keras.Model, calls: list[graph.Call], shapes: dict[int, tuple[int, ...]]) -> int:
    """Walks the calls and adds up the live buffers at each; a fused layer writes into its input's buffer."""
    readers: dict[int, int] = {id(tensor): 1 for tensor in model.outputs}  # the caller reads the outputs
    for call in calls:
        for tensor in call.inputs:
            readers[id(tensor)] = readers.get(id(tensor), 0) + 1
    buffer = {id(tensor): id(tensor) for tensor in model.inputs}
    pending = {id(tensor): readers.get(id(tensor), 0) for tensor in model.inputs}  # remaining readers of each buffer
    producer: dict[int, Any] = {}
    alive = sum(math.prod(shapes[key]) for key in pending)
    peak = alive
    for call in calls:
        source, outputs = id(call.inputs[0]), [id(tensor) for tensor in call.outputs if id(tensor) in readers]
        shared = len(outputs) == 1 and _shares_buffer(call, producer.get(source), readers[source])
        for output in outputs:
            producer[output] = call.layer
            buffer[output] = buffer[source] if shared else output
            pending[buffer[output]] = pending.get(buffer[output], 0) + readers[output]
            alive += 0 if shared else math.prod(shapes[output])
        peak = max(peak, alive)
        for tensor in call.inputs:
            key = buffer[id(tensor)]
            pending[key] -= 1
            if pending[key] == 0:
                alive -= math.prod(shapes[key])
    return peak


def _shares_buffer(call: graph.Call, before: Any, readers: int) -> bool:
    kind = call.kind
    if kind in _FREE:
        return True
    if readers > 1 or before is None or len(call.inputs) > 1:
        return False
    kind_before = graph.kind_of(before)
    if kind == "BatchNormalization":
        return kind_before in _LINEAR
    is_relu = kind == "ReLU" or (kind == "Activation" and call.layer.get_config()["activation"] in _RELUS)
    return is_relu and kind_before in (*_LINEAR, "BatchNormalization", "Add")
