"""A network whose first stages run strip by strip, so that their large tensors never lie in RAM whole.

As MCUNetV2 does it (Lin et al. 2021, arXiv:2110.15352, section 3.1), with standard layers only: a strip of rows is cut
out with the rows around that it needs, goes through the very same layers, and is trimmed; the strips' results are put
together again. Rows near a cut are computed twice, which costs time and saves memory; the outputs are the same.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras

from zoo import graph
from zoo.deploy.turn import mixes_places, same_padding

MOST_STRIPS = 10  # kMaxInputNum of TFLM's concatenation

_WINDOWS = ("AveragePooling2D", "Conv2D", "DepthwiseConv2D", "MaxPooling2D", "SeparableConv2D")
_ROW_BY_ROW = frozenset(
    ["Activation", "Add", "Average", "BatchNormalization", "Concatenate", "Dense", "Dropout", "ELU",
     "LayerNormalization", "LeakyReLU", "Maximum", "Minimum",
     "Multiply", "Normalization", "ReLU", "Rescaling", "Softmax", "SpatialDropout2D", "Subtract"]
)  # fmt: skip


class StripsError(ValueError):
    """A stage that cannot be cut into strips."""


class Region(NamedTuple):
    """The layers from `first` to `last`, by name, and into how many strips of rows their output is cut."""

    first: str
    last: str
    strips: int


def split(model: keras.Model, regions: Sequence[Region]) -> keras.Model:
    """Returns the model with its regions in strips; the layers are shared with `model`, not copied.

    A region begins at the one tensor that `first` reads and ends at the one that `last` writes; layers between may read
    nothing else from outside. They pad "same", and their strides divide the rows.

    Raises:
        StripsError: a region does not exist, overlaps another, or has a layer that looks further than a window.
        GraphError: the model is subclassed, or the result does not compute the same.
    """
    model = graph.flatten(model)
    if not regions:
        return model
    calls = graph.calls(model)
    ends: dict[int, tuple[Region, list[graph.Call]]] = {}
    inside: set[int] = set()
    for region in regions:
        members = _members(calls, region)
        if inside & set(map(id, members)):
            raise StripsError(f"region {region} overlaps another; give each layer to one")
        inside |= set(map(id, members))
        ends[id(members[-1].node)] = (region, members)
    within = {id(call.node) for call in calls if id(call) in inside}
    if any(id(graph.node_of(tensor)) in within - ends.keys() for tensor in model.outputs):
        raise StripsError("a model's output lies inside a region; end the region there")
    sources: dict[int, Any] = {}

    def run(call: graph.Call, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if id(call.node) not in within:
            return call.layer(*arguments, **options)
        given = keras.tree.flatten(call.node.arguments.args)
        sources.update(zip(map(id, given), keras.tree.flatten(arguments), strict=True))
        if id(call.node) not in ends:
            return [None] * len(call.outputs)  # only the region's end is read from outside
        region, members = ends[id(call.node)]
        return _in_strips(region, members, sources[id(members[0].inputs[0])])

    split_model = graph.model_like(model, model.inputs, graph.replay(model, model.inputs, run))
    graph.check_copy(model, split_model)
    return split_model


def _members(calls: list[graph.Call], region: Region) -> list[graph.Call]:
    """Returns the calls of a region in running order."""
    names = [call.layer.name for call in calls]
    for name in (region.first, region.last):
        if names.count(name) != 1:
            raise StripsError(f"layer {name!r} is called {names.count(name)} times in the model; once was expected")
    first, last = calls[names.index(region.first)], calls[names.index(region.last)]
    made = {id(call.outputs[0]): call for call in calls}
    source, members, stack = id(first.inputs[0]), {}, [last]
    while stack:
        call = stack.pop()
        members[id(call)] = call
        for tensor in call.inputs:
            if id(tensor) != source and id(tensor) not in made:
                raise StripsError(
                    f"layer {call.layer.name!r} of region {region.first} to {region.last} reads the input"
                )
            if id(tensor) != source and id(made[id(tensor)]) not in members:
                stack.append(made[id(tensor)])
    ordered = [call for call in calls if id(call) in members]
    if ordered[0] is not first:
        raise StripsError(
            f"region {region.first} to {region.last} reads {ordered[0].layer.name!r} beside what {region.first} reads. "
            "Begin where the branches part, or end before they join"
        )
    written = {id(call.outputs[0]) for call in ordered[:-1]}
    for call in calls:
        if id(call) not in members and written & {id(tensor) for tensor in call.inputs}:
            raise StripsError(f"layer {call.layer.name!r} reads from inside region {region.first} to {region.last}")
    return ordered


def _in_strips(region: Region, members: list[graph.Call], source: Any) -> Any:
    rows = members[-1].outputs[0].shape[1]
    height = source.shape[1]
    if rows is None or height is None or height % rows or not 1 <= region.strips <= min(rows, MOST_STRIPS):
        raise StripsError(
            f"region {region.first} to {region.last} turns {height} rows into {rows}, to be cut into "
            f"{region.strips} strips. Expected fixed numbers, strides that divide the rows, "
            "and at most as many strips as rows, nor more "
            f"than {MOST_STRIPS}, which TFLM can put together"
        )
    stride, parts = height // rows, []
    for strip in range(region.strips):
        start, end = rows * strip // region.strips, rows * (strip + 1) // region.strips
        low, high = _needed(members, id(members[0].inputs[0]), start, end)
        low, high = low // stride * stride, -(-high // stride) * stride  # so that strides fall on the same rows
        name = f"{region.last}_strip{strip}"
        x = _rows(source, low, high, f"{name}_cut")
        values = {id(members[0].inputs[0]): x}
        for call in members:
            arguments, options = call.replay(values)
            values[id(call.outputs[0])] = call.layer(*arguments, **options)
        result = values[id(members[-1].outputs[0])]
        parts.append(_rows(result, start - low // stride, end - low // stride, f"{name}_trim"))
    return keras.layers.Concatenate(axis=1, name=f"{region.last}_strips")(parts) if len(parts) > 1 else parts[0]


def _needed(members: list[graph.Call], source: int, start: int, end: int) -> tuple[int, int]:
    """Returns the rows of the region's input that its output's rows from `start` to before `end` come from."""
    wanted = {id(members[-1].outputs[0]): (start, end)}
    for call in reversed(members):
        low, high = wanted[id(call.outputs[0])]
        kind = call.kind
        if kind in _WINDOWS:
            size = call.layer.pool_size if kind.endswith("Pooling2D") else call.layer.kernel_size
            dilation = 1 if kind.endswith("Pooling2D") else call.layer.dilation_rate[0]
            extent, stride, length = (size[0] - 1) * dilation + 1, call.layer.strides[0], call.inputs[0].shape[1]
            if (call.layer.padding != "same" and extent > 1) or length % stride:
                raise StripsError(
                    f"layer {call.layer.name!r} reads {length} rows with stride {stride} and padding "
                    f'"{call.layer.padding}"; "same" and a stride that divides the rows were expected'
                )
            before = same_padding(length, extent, stride)[0]
            low, high = low * stride - before, (high - 1) * stride - before + extent
        elif kind not in _ROW_BY_ROW or len(call.outputs[0].shape) != 4 or mixes_places(call.layer, call.outputs[0]):
            raise StripsError(
                f"layer {call.layer.name!r} ({kind}) looks at more than some rows; end the region before it"
            )
        for tensor in call.inputs:
            known = wanted.get(id(tensor), (low, high))
            wanted[id(tensor)] = (max(0, min(low, known[0])), min(tensor.shape[1], max(high, known[1])))
    return wanted[source]


def _rows(x: Any, low: int, high: int, name: str) -> Any:
    top, bottom = low, x.shape[1] - high
    if not top and not bottom:
        return x
    return keras.layers.Cropping2D(((top, bottom), (0, 0)), name=name)(x)
