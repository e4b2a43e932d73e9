"""`keras.ops` operations, which `a + b` and `x[:, 1:]` make in a functional model, as standard layers that do the same.

Tools that go by layers (turning, strips, int8 training, the tf_keras twin) then need to know one form of each step.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

layers = keras.layers

_ACTIVATIONS = {
    "Exp": "exponential", "HardSigmoid": "hard_sigmoid", "HardSilu": "hard_silu", "Selu": "selu", "Sigmoid": "sigmoid",
    "Silu": "silu", "Softplus": "softplus", "Softsign": "softsign", "Tanh": "tanh",
}  # fmt: skip
_MERGES = {
    "Add": layers.Add, "Maximum": layers.Maximum, "Minimum": layers.Minimum, "Multiply": layers.Multiply,
    "Subtract": layers.Subtract,
}  # fmt: skip
_UNCHANGED = ("Copy", "StopGradient")

Step = Callable[[], Any]  # makes the layers and returns their output


def has_layer(operation: Any, arguments: Sequence[Any], options: dict[str, Any]) -> bool:
    """Whether `as_layers` has an answer."""
    return _step(operation, arguments, options, operation.name) is not None


def as_layers(operation: Any, arguments: Sequence[Any], options: dict[str, Any], name: str) -> Any:
    """Returns the output of standard layers that do what the operation does, or None where none are known.

    Args:
        arguments, options: what the operation is called with, symbolic tensors among it.
        name: of the layer; where several are needed, their names begin with it.
    """
    step = _step(operation, arguments, options, name)
    return None if step is None else step()


def _step(operation: Any, arguments: Sequence[Any], options: dict[str, Any], name: str) -> Step | None:
    """Decides what takes an operation's place, without making it."""
    if not type(operation).__module__.startswith(("keras.src.ops", "keras.src.activations")):
        return None
    kind = type(operation).__name__
    values = [*arguments, *options.values()]
    if kind == "Concatenate":
        x, rank = list(values[0]), len(values[0][0].shape)
        axis = operation.axis % rank
        return (lambda: layers.Concatenate(axis, name=name)(x)) if axis and all(map(_is_tensor, x)) else None
    if not values or not any(map(_is_tensor, values[:2])):
        return None
    if kind in (*_MERGES, "TrueDivide", "Divide") and len(values) == 2:
        return _arithmetic(kind, values[0], values[1], name)
    x = values[0]
    if not _is_tensor(x):
        return None
    if kind in _ACTIVATIONS:
        return lambda: layers.Activation(_ACTIVATIONS[kind], name=name)(x)
    if kind in ("GetItem", "Split"):
        return _slices(operation, x, values[1:], name)
    if kind in _SINGLE:
        make = _SINGLE[kind](operation, x, values[1:])
        return None if make is None else (lambda: make(name)(x))
    if kind in _UNCHANGED or (kind == "Cast" and x.dtype == operation.dtype):
        return lambda: x
    if kind == "Square" or (kind == "Power" and _constant(values[1], x) == 2):
        return lambda: layers.Multiply(name=name)([x, x])
    return None


def _is_tensor(value: Any) -> bool:
    return isinstance(value, keras.KerasTensor)


def _constant(value: Any, x: Any) -> Any:
    """Returns a number, or a list of one for each channel of `x`; None where it is neither."""
    if isinstance(value, (keras.Variable, keras.KerasTensor)) or value is None:
        return None
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        return None
    if array.size == 1 and array.ndim <= len(x.shape):
        return float(array.reshape(()))
    if array.ndim and array.size == array.shape[-1] == x.shape[-1] and array.ndim <= len(x.shape):
        return array.reshape(-1).tolist()
    return None


def _arithmetic(kind: str, a: Any, b: Any, name: str) -> Step | None:
    if _is_tensor(a) and _is_tensor(b):
        same = len(a.shape) == len(b.shape) and a.dtype == b.dtype
        return (lambda: _MERGES[kind](name=name)([a, b])) if same and kind in _MERGES else None
    x, other = (a, b) if _is_tensor(a) else (b, a)
    number = _constant(other, x)
    if number is None or "float" not in x.dtype:
        return None
    numbers = np.asarray(number)

    def rescaled(scale: np.ndarray, offset: np.ndarray) -> Step:
        return lambda: layers.Rescaling(scale.tolist(), offset.tolist(), name=name)(x)

    one, zero = np.ones_like(numbers), np.zeros_like(numbers)
    if kind == "Add":
        return rescaled(one, numbers)
    if kind == "Subtract":
        return rescaled(one, -numbers) if _is_tensor(a) else rescaled(-one, numbers)
    if kind == "Multiply":
        return rescaled(numbers, zero)
    if kind in ("TrueDivide", "Divide") and _is_tensor(a) and np.all(numbers):
        return rescaled(1 / numbers, zero)
    if kind == "Maximum" and number == 0:
        return lambda: layers.ReLU(name=name)(x)
    return None


Make = Callable[[str], Any]


def _relu(operation: Any, x: Any, rest: Sequence[Any]) -> Make | None:
    options = (operation.negative_slope, operation.max_value, operation.threshold)
    slope, most, threshold = (0.0 if value is None else float(value) for value in options)
    return lambda name: layers.ReLU(most if operation.max_value is not None else None, slope, threshold, name=name)


def _clip(operation: Any, x: Any, rest: Sequence[Any]) -> Make | None:
    low, high = (_constant(value, x) for value in (operation.x_min, operation.x_max))
    if low != 0 or not isinstance(high, float) or high <= 0:
        return None
    return lambda name: layers.ReLU(high, name=name)


def _pooled_whole(operation: Any, x: Any, rest: Sequence[Any]) -> Make | None:
    axes = operation.axis
    rank = len(x.shape)
    if axes is None or {axis % rank for axis in axes} != set(range(1, rank - 1)) or rank not in (3, 4, 5):
        return None
    kind = "Average" if type(operation).__name__ == "Mean" else "Max"
    make = getattr(layers, f"Global{kind}Pooling{rank - 2}D")
    return lambda name: make(keepdims=bool(operation.keepdims), name=name)


def _pooled(operation: Any, x: Any, rest: Sequence[Any]) -> Make | None:
    rank = len(x.shape)
    if rank != 4 or operation.data_format not in (None, "channels_last"):
        return None
    make = layers.AveragePooling2D if type(operation).__name__ == "AveragePool" else layers.MaxPooling2D
    return lambda name: make(operation.pool_size, operation.strides, operation.padding, name=name)


def _reshaped(operation: Any, x: Any, rest: Sequence[Any]) -> Make | None:
    """Reshapes that leave each image its own; what the operation knows is in the shape that it gave."""
    target, shape = operation.newshape, x.shape
    target = tuple(target) if isinstance(target, (tuple, list)) else (target,)
    if None in shape[1:] or len(target) < 2 or not all(isinstance(side, int) for side in target[1:]):
        return None
    sides, size = target[1:], math.prod(shape[1:])
    keeps_images = target[0] in (None, -1) or target[0] == shape[0]
    if -1 in sides:
        known = -math.prod(sides)
        if target[0] == -1 or sides.count(-1) > 1 or size % known:
            return None
        sides = tuple(size // known if side == -1 else side for side in sides)
    if not keeps_images or math.prod(sides) != size:
        return None
    return lambda name: layers.Reshape(sides, name=name)


def _dimensions(operation: Any, x: Any, rest: Sequence[Any]) -> Make | None:
    """Dimensions of length one, added or taken away."""
    sides = tuple(operation.compute_output_spec(x).shape[1:])
    axes = operation.axis if isinstance(operation.axis, (tuple, list)) else (operation.axis,)
    rank = max(len(x.shape), 1 + len(sides))
    if None in sides or None in axes or any(axis % rank == 0 for axis in axes):
        return None
    return lambda name: layers.Reshape(sides, name=name)


def _transposed(operation: Any, x: Any, rest: Sequence[Any]) -> Make | None:
    axes = [] if operation.axes is None else [axis % len(x.shape) for axis in operation.axes]
    return (lambda name: layers.Permute(tuple(axes[1:]), name=name)) if axes and axes[0] == 0 else None


def _padded(operation: Any, x: Any, rest: Sequence[Any]) -> Make | None:
    sides = [tuple(map(int, side)) for side in operation.pad_width]
    constant = operation.mode == "constant" and all(value in (None, 0) for value in rest)
    if len(x.shape) != 4 or len(sides) != 4 or not constant or sides[0] != (0, 0) or sides[3] != (0, 0):
        return None
    return lambda name: layers.ZeroPadding2D(tuple(sides[1:3]), name=name)


def _gelu(operation: Any, x: Any, rest: Sequence[Any]) -> Make | None:
    return None if operation.approximate else (lambda name: layers.Activation("gelu", name=name))


def _resized(operation: Any, x: Any, rest: Sequence[Any]) -> Make | None:
    sides, rank = x.shape[1:3], len(x.shape)
    plain = operation.interpolation in ("nearest", "bilinear") and not (
        operation.antialias or operation.crop_to_aspect_ratio or operation.pad_to_aspect_ratio
    )
    if (
        rank != 4
        or None in sides
        or not plain
        or any(new % old for new, old in zip(operation.size, sides, strict=True))
    ):
        return None
    factors = tuple(new // old for new, old in zip(operation.size, sides, strict=True))
    return lambda name: layers.UpSampling2D(factors, interpolation=operation.interpolation, name=name)


_SINGLE: dict[str, Callable[[Any, Any, Sequence[Any]], Make | None]] = {
    "AveragePool": _pooled,
    "Clip": _clip,
    "Elu": lambda operation, x, rest: lambda name: layers.ELU(operation.alpha, name=name),
    "ExpandDims": _dimensions,
    "Gelu": _gelu,
    "LeakyRelu": lambda operation, x, rest: lambda name: layers.LeakyReLU(operation.negative_slope, name=name),
    "Max": lambda operation, x, rest: None if operation.initial is not None else _pooled_whole(operation, x, rest),
    "MaxPool": _pooled,
    "Mean": _pooled_whole,
    "Negative": lambda operation, x, rest: lambda name: layers.Rescaling(-1.0, name=name),
    "Pad": _padded,
    "ReLU": _relu,
    "Relu": lambda operation, x, rest: lambda name: layers.ReLU(name=name),
    "Relu6": lambda operation, x, rest: lambda name: layers.ReLU(6.0, name=name),
    "Reshape": _reshaped,
    "Resize": _resized,
    "Softmax": lambda operation, x, rest: lambda name: layers.Softmax(operation.axis, name=name),
    "Squeeze": _dimensions,
    "Transpose": _transposed,
}


def _slices(operation: Any, x: Any, rest: Sequence[Any], name: str) -> Step | None:
    """`x[:, 1:, ::2]` and `ops.split` of channels: cropping, then a pool of one pixel for steps."""
    if len(x.shape) not in (2, 3, 4) or None in x.shape[1:]:
        return None
    if type(operation).__name__ == "GetItem":
        cut = _cut(rest[0], x.shape)
        return None if cut is None else (lambda: _sliced(x, *cut, name))
    axis, parts = operation.axis % len(x.shape), operation.indices_or_sections
    if axis == 0:
        return None
    length = x.shape[axis]
    ends = [length * part // parts for part in range(parts + 1)] if isinstance(parts, int) else [0, *parts, length]
    whole = [(0, side, 1) for side in x.shape[1:]]

    def part(number: int) -> Any:
        ranges = [*whole]
        ranges[axis - 1] = (ends[number], ends[number + 1], 1)
        return _sliced(x, ranges, [side[1] - side[0] for side in ranges], f"{name}_part{number}")

    return lambda: [part(number) for number in range(len(ends) - 1)]


def _cut(key: Any, shape: Sequence[int]) -> tuple[list[tuple[int, int, int]], list[int]] | None:
    """Returns start, end and step along each side but the first, and the sides of what comes out."""
    keys = list(key) if isinstance(key, (tuple, list)) else [key]
    if any(one is Ellipsis for one in keys):
        place = next(number for number, one in enumerate(keys) if one is Ellipsis)
        keys[place : place + 1] = [slice(None)] * (len(shape) - len(keys) + 1)
    keys += [slice(None)] * (len(shape) - len(keys))
    if len(keys) != len(shape) or not all(isinstance(one, (slice, int)) for one in keys) or keys[0] != slice(None):
        return None
    ranges, sides = [], []
    for one, side in zip(keys[1:], shape[1:], strict=True):
        if isinstance(one, int):
            ranges.append((one % side, one % side + 1, 1))
            continue
        start, end, step = one.indices(side)
        if step < 1 or end <= start:
            return None
        ranges.append((start, end, step))
        sides.append(len(range(start, end, step)))
    return ranges, sides


def _sliced(x: Any, ranges: list[tuple[int, int, int]], sides: list[int], name: str) -> Any:
    """Cuts the places out: rows and columns as such, channels as the columns of pixels in a row."""
    image = [(0, 1, 1)] * (3 - len(ranges)) + ranges
    shape = (*[1] * (4 - len(x.shape)), *x.shape[1:])
    if len(x.shape) != 4:
        x = layers.Reshape(shape, name=f"{name}_image")(x)
    if image[:2] != [(0, shape[0], 1), (0, shape[1], 1)]:
        x = _window(x, image[:2], f"{name}_pixels")
    if image[2] != (0, shape[2], 1):
        height, width = x.shape[1:3]
        x = layers.Reshape((height * width, shape[2], 1), name=f"{name}_columns")(x)
        x = _window(x, [(0, height * width, 1), image[2]], f"{name}_channels")
        x = layers.Reshape((height, width, x.shape[2]), name=f"{name}_back")(x)
    return layers.Reshape(tuple(sides), name=name)(x) if tuple(x.shape[1:]) != tuple(sides) else x


def _window(x: Any, ranges: list[tuple[int, int, int]], name: str) -> Any:
    cropping = tuple((start, side - end) for (start, end, _), side in zip(ranges, x.shape[1:3], strict=True))
    steps = tuple(step for *_, step in ranges)
    if cropping != ((0, 0), (0, 0)):
        x = layers.Cropping2D(cropping, name=f"{name}_crop")(x)
    return layers.MaxPooling2D(1, steps, name=f"{name}_step")(x) if steps != (1, 1) else x
