"""What a network will cost, PREDICTED from its graph in milliseconds; zoo/deploy/measure.py and planner.py measure it.

Searches use this to turn a network down before anything is built for real.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import keras

from zoo import graph

# Layers that a TFLite converter fuses into the operator before them, or drops: they need no memory of their own.
_FUSED_BEHIND_LINEAR = ("BatchNormalization",)
_LINEAR = ("Conv2D", "DepthwiseConv2D", "SeparableConv2D", "Dense", "BatchNormalization", "Add")
_FREE = ("Dropout", "Flatten", "InputLayer", "Reshape", "SpatialDropout2D")
_RELUS = ("relu", "relu6")


@dataclasses.dataclass(frozen=True)
class Cost:
    """The predicted cost of one image.

    Attributes:
        params: values of all variables, the moving averages of normalisation included.
        trainable_params: values that training changes.
        macs: multiply-adds of convolutions and dense layers.
        peak_memory: bytes of the activations that are alive at once, at the worst moment, with one byte a value.
        flash: bytes of the int8 weights, with a bias of four bytes an output channel and normalisation folded in.
    """

    params: int
    trainable_params: int
    macs: int
    peak_memory: int
    flash: int


def of(model: keras.Model, input_shape: Sequence[int] | None = None) -> Cost:
    """Returns the cost of a functional model; models inside it count as if they were inlined.

    Args:
        model: any, not only of this zoo.
        input_shape: (height, width, channels), where the model's own leaves a side open.

    Raises:
        GraphError: the model has no graph.
        ValueError: its input has an open side and no input_shape is given.
    """
    model = graph.flatten(model)
    calls = graph.calls(model)
    shapes = _shapes(model, calls, input_shape)
    linear = [call for call in calls if _kernels(call.layer)]
    distinct = {id(call.layer): call.layer for call in linear}
    return Cost(
        params=model.count_params(),
        trainable_params=sum(math.prod(variable.shape) for variable in model.trainable_variables),
        macs=sum(_macs(call.layer, shapes[id(call.outputs[0])]) for call in linear),
        peak_memory=_peak_memory(model, calls, shapes),
        flash=sum(_flash(layer) for layer in distinct.values()),
    )


def _shapes(
    model: keras.Model, calls: list[graph.Call], input_shape: Sequence[int] | None
) -> dict[int, tuple[int, ...]]:
    """Returns the shape of each tensor for one image, by the tensor's id."""
    if input_shape is None:
        if None in model.inputs[0].shape[1:]:
            raise ValueError(
                f"{model.name} takes images of shape {model.inputs[0].shape[1:]}; give input_shape=(height, width, "
                "channels)"
            )
        tensors = [*model.inputs, *(tensor for call in calls for tensor in call.outputs)]
        return {id(tensor): tuple(tensor.shape[1:]) for tensor in tensors}
    shapes = {id(tensor): tuple(input_shape) for tensor in model.inputs}
    for call in calls:
        given: Any = [(1, *shapes[id(tensor)]) for tensor in call.inputs]
        merges = isinstance(call.node.arguments.args[0], (list, tuple))
        shape = call.layer.compute_output_shape(given if merges else given[0])
        shapes[id(call.outputs[0])] = tuple(shape[1:])
    return shapes


def _kernels(layer: Any) -> list[Any]:
    names = ("depthwise_kernel", "pointwise_kernel", "kernel")  # a separable convolution has the first two
    return [kernel for name in names if (kernel := getattr(layer, name, None)) is not None]


def _macs(layer: Any, output: tuple[int, ...]) -> int:
    places = math.prod(output[:-1])
    return sum(math.prod(kernel.shape) * places for kernel in _kernels(layer))


def _flash(layer: Any) -> int:
    kernels = _kernels(layer)
    if graph.kind_of(layer) == "DepthwiseConv2D":
        channels = kernels[0].shape[2] * kernels[0].shape[3]
    else:
        channels = kernels[-1].shape[-1]
    return sum(math.prod(kernel.shape) for kernel in kernels) + 4 * channels


def _peak_memory(model: keras.Model, calls: list[graph.Call], shapes: dict[int, tuple[int, ...]]) -> int:
    """Runs through the calls and adds up what is alive at each; a fused layer's output is its input's buffer."""
    readers: dict[int, int] = {id(tensor): 1 for tensor in model.outputs}  # the caller reads those
    for call in calls:
        for tensor in call.inputs:
            readers[id(tensor)] = readers.get(id(tensor), 0) + 1
    buffer = {id(tensor): id(tensor) for tensor in model.inputs}
    pending = {id(tensor): readers.get(id(tensor), 0) for tensor in model.inputs}  # readers of each buffer to come
    producer: dict[int, Any] = {}
    alive = sum(math.prod(shapes[key]) for key in pending)
    peak = alive
    for call in calls:
        output, source = id(call.outputs[0]), id(call.inputs[0])
        producer[output] = call.layer
        if _shares_buffer(call, producer.get(source), readers[source]):
            buffer[output] = buffer[source]
            pending[buffer[source]] += readers.get(output, 0)
        else:
            buffer[output] = output
            pending[output] = readers.get(output, 0)
            alive += math.prod(shapes[output])
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
    behind = graph.kind_of(before)
    if kind in _FUSED_BEHIND_LINEAR:
        return behind in ("Conv2D", "DepthwiseConv2D", "SeparableConv2D", "Dense")
    relu = kind == "ReLU" or (kind == "Activation" and call.layer.get_config()["activation"] in _RELUS)
    return relu and behind in _LINEAR
