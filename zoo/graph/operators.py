"""Replaces `keras.ops` operations, such as `a + b` and `x[:, 1:]` in a functional model, by equivalent standard layers.

Tools that work on layers (turning, strips, int8 training, the tf_keras twin) then have to know one form of each step.
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


def find_step(operation: Any, arguments: Sequence[Any], options: dict[str, Any], name: str) -> Step | None:
    """Returns a function that makes standard layers equivalent to an operation, or None if none are known.

    Args:
        operation: of `keras.ops`, or a function of keras.activations.
        arguments, options: what the operation is called with, including symbolic tensors.
        name: of the layer; if several are needed, their names begin with it.
    """
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
        return _find_arithmetic(kind, values[0], values[1], name)
    x = values[0]
    if not _is_tensor(x):
        return None
    if kind in ("GetItem", "Split"):
        return _find_slices(operation, x, values[1:], name)
    if kind in _UNCHANGED or (kind == "Cast" and x.dtype == operation.dtype):
        return lambda: x
    if kind == "Square" or (kind == "Power" and _read_constant(values[1], x) == 2):
        return lambda: layers.Multiply(name=name)([x, x])
    layer = _make_activation(operation, x, name)
    if layer is None:
        layer = _make_geometry(operation, x, values[1:], name)
    return None if layer is None else lambda: layer(x)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, keras.KerasTensor)


def _read_constant(value: Any, x: Any) -> Any:
    """Returns `value` as a number, or as a list of one for each channel of `x`; None if it is neither."""
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


def _find_arithmetic(kind: str, a: Any, b: Any, name: str) -> Step | None:
    if _is_tensor(a) and _is_tensor(b):
        same = len(a.shape) == len(b.shape) and a.dtype == b.dtype
        return (lambda: _MERGES[kind](name=name)([a, b])) if same and kind in _MERGES else None
    x, other = (a, b) if _is_tensor(a) else (b, a)
    number = _read_constant(other, x)
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


def _make_activation(operation: Any, x: Any, name: str) -> Any:
    """Returns the layer for an operation on each value, or on the channels, of one tensor; None if there is none."""
    kind = type(operation).__name__
    if kind in _ACTIVATIONS:
        return layers.Activation(_ACTIVATIONS[kind], name=name)
    match kind:
        case "Clip":
            low, high = (_read_constant(value, x) for value in (operation.x_min, operation.x_max))
            return layers.ReLU(high, name=name) if low == 0 and isinstance(high, float) and high > 0 else None
        case "Elu":
            return layers.ELU(operation.alpha, name=name)
        case "Gelu":
            return None if operation.approximate else layers.Activation("gelu", name=name)
        case "LeakyRelu":
            return layers.LeakyReLU(operation.negative_slope, name=name)
        case "Negative":
            return layers.Rescaling(-1.0, name=name)
        case "ReLU":
            most = None if operation.max_value is None else float(operation.max_value)
            return layers.ReLU(most, float(operation.negative_slope or 0), float(operation.threshold or 0), name=name)
        case "Relu":
            return layers.ReLU(name=name)
        case "Relu6":
            return layers.ReLU(6.0, name=name)
        case "Softmax":
            return layers.Softmax(operation.axis, name=name)
    return None


def _make_geometry(operation: Any, x: Any, rest: Sequence[Any], name: str) -> Any:
    """Returns the layer for an operation on the positions or the shape of one tensor; None if there is none."""
    shape, rank, kind = x.shape, len(x.shape), type(operation).__name__
    match kind:
        case "AveragePool" | "MaxPool" if rank == 4 and operation.data_format in (None, "channels_last"):
            make = layers.AveragePooling2D if kind == "AveragePool" else layers.MaxPooling2D
            return make(operation.pool_size, operation.strides, operation.padding, name=name)
        case "Mean" | "Max" if rank in (3, 4, 5) and operation.axis is not None:
            of_all = {axis % rank for axis in operation.axis} == set(range(1, rank - 1))
            make = getattr(layers, f"Global{'Average' if kind == 'Mean' else 'Max'}Pooling{rank - 2}D")
            plain = of_all and getattr(operation, "initial", None) is None
            return make(keepdims=bool(operation.keepdims), name=name) if plain else None
        case "Reshape" if (sides := _sides_after(operation.newshape, shape)) is not None:
            return layers.Reshape(sides, name=name)
        case "ExpandDims" | "Squeeze":  # dimensions of length one, added or removed
            sides = tuple(operation.compute_output_spec(x).shape[1:])
            axes = operation.axis if isinstance(operation.axis, (tuple, list)) else (operation.axis,)
            most = max(rank, 1 + len(sides))
            keeps_images = all(axis is not None and axis % most for axis in axes)
            return layers.Reshape(sides, name=name) if None not in sides and keeps_images else None
        case "Transpose" if operation.axes is not None:
            first, *axes = (axis % rank for axis in operation.axes)
            return layers.Permute(tuple(axes), name=name) if first == 0 else None
        case "Pad" if rank == 4 and operation.mode == "constant" and all(value in (None, 0) for value in rest):
            images, *sides, channels = (tuple(map(int, side)) for side in operation.pad_width)
            plain = len(sides) == 2 and images == channels == (0, 0)
            return layers.ZeroPadding2D(tuple(sides), name=name) if plain else None
        case "Resize" if rank == 4 and None not in shape[1:3] and operation.interpolation in ("nearest", "bilinear"):
            changed = operation.antialias or operation.crop_to_aspect_ratio or operation.pad_to_aspect_ratio
            factors, left = zip(*map(divmod, operation.size, shape[1:3]), strict=True)
            plain = not changed and not any(left)
            return layers.UpSampling2D(factors, interpolation=operation.interpolation, name=name) if plain else None
    return None


def _sides_after(target: Any, shape: Sequence[Any]) -> tuple[int, ...] | None:
    """Returns the sides of each image after a reshape to `target`; None if values move from one image to another."""
    target = tuple(target) if isinstance(target, (tuple, list)) else (target,)
    if None in shape[1:] or len(target) < 2 or not all(isinstance(side, int) for side in target[1:]):
        return None
    sides, size = target[1:], math.prod(shape[1:])
    if -1 in sides:
        known = -math.prod(sides)
        if target[0] == -1 or sides.count(-1) > 1 or size % known:
            return None
        sides = tuple(size // known if side == -1 else side for side in sides)
    keeps_images = target[0] in (None, -1) or target[0] == shape[0]
    return sides if keeps_images and math.prod(sides) == size else None


def _find_slices(operation: Any, x: Any, rest: Sequence[Any], name: str) -> Step | None:
    """Returns a step for `x[:, 1:, ::2]` or `ops.split`: cropping, then a pool of one pixel where there are steps."""
    if len(x.shape) not in (2, 3, 4) or None in x.shape[1:]:
        return None
    if type(operation).__name__ == "GetItem":
        cut = _read_key(rest[0], x.shape)
        return None if cut is None else (lambda: _slice(x, *cut, name))
    axis, parts = operation.axis % len(x.shape), operation.indices_or_sections
    if axis == 0:
        return None
    length = x.shape[axis]
    ends = [length * part // parts for part in range(parts + 1)] if isinstance(parts, int) else [0, *parts, length]
    whole = [(0, side, 1) for side in x.shape[1:]]

    def part(number: int) -> Any:
        ranges = [*whole]
        ranges[axis - 1] = (ends[number], ends[number + 1], 1)
        return _slice(x, ranges, [side[1] - side[0] for side in ranges], f"{name}_part{number}")

    return lambda: [part(number) for number in range(len(ends) - 1)]


def _read_key(key: Any, shape: Sequence[int]) -> tuple[list[tuple[int, int, int]], list[int]] | None:
    """Returns (start, end, step) along each side but the first, and the sides of the result; None if not possible."""
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


def _slice(x: Any, ranges: list[tuple[int, int, int]], sides: list[int], name: str) -> Any:
    """Cuts the ranges out: rows and columns directly, channels as columns of an image with a row for each pixel."""
    image = [(0, 1, 1)] * (3 - len(ranges)) + ranges
    shape = (*[1] * (4 - len(x.shape)), *x.shape[1:])
    if len(x.shape) != 4:
        x = layers.Reshape(shape, name=f"{name}_image")(x)
    if image[:2] != [(0, shape[0], 1), (0, shape[1], 1)]:
        x = _crop(x, image[:2], f"{name}_pixels")
    if image[2] != (0, shape[2], 1):
        height, width = x.shape[1:3]
        x = layers.Reshape((height * width, shape[2], 1), name=f"{name}_columns")(x)
        x = _crop(x, [(0, height * width, 1), image[2]], f"{name}_channels")
        x = layers.Reshape((height, width, x.shape[2]), name=f"{name}_back")(x)
    return layers.Reshape(tuple(sides), name=name)(x) if tuple(x.shape[1:]) != tuple(sides) else x


def _crop(x: Any, ranges: list[tuple[int, int, int]], name: str) -> Any:
    cropping = tuple((start, side - end) for (start, end, _), side in zip(ranges, x.shape[1:3], strict=True))
    steps = tuple(step for *_, step in ranges)
    if cropping != ((0, 0), (0, 0)):
        x = layers.Cropping2D(cropping, name=f"{name}_crop")(x)
    return layers.MaxPooling2D(1, steps, name=f"{name}_step")(x) if steps != (1, 1) else x
