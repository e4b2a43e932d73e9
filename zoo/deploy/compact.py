"""The int8 file with the smallest arena: turned, in strips, operators well ordered, tensors well placed.

No step changes the outputs: the float network's agree up to rounding, the file's bit by bit.

The first stages can run strip by strip, so that their large tensors are never whole in RAM. This follows MCUNetV2 (Lin
et al. 2021, arXiv:2110.15352, section 3.1) with standard layers only: a strip of rows is cut out together with the
neighbouring rows that its windows reach, passes through the same layers, and is trimmed; then the strips are
concatenated. Rows near a cut are computed twice: less memory for more time.
"""

import difflib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from zoo import graph
from zoo.deploy import memory_plan, planner, rewrites, tflite, tflite_file, turn
from zoo.deploy.tflite_file import Source, pack, parse

_WINDOWS = ("AveragePooling2D", "Conv2D", "DepthwiseConv2D", "MaxPooling2D", "SeparableConv2D")


class StripsError(ValueError):
    """A stage cannot be cut into strips."""


class Region(NamedTuple):
    """The layers from `first` to `last`, by name, and the number of strips of rows that their output is cut into."""

    first: str
    last: str
    strips: int


def convert(
    model: keras.Model, calibration: np.ndarray | Iterable[Any], *, turned: bool = True, regions: Sequence[Region] = ()
) -> bytes:
    """Returns the int8 file with the smallest arena that these steps give.

    Args:
        calibration: images as `tflite.convert` takes them, not turned.
        turned: make a file that takes images turned by 180 degrees (`turn.images`) and says so in its metadata; see
            `is_turned`.
        regions: what to run strip by strip.

    Raises:
        ConversionError, TurnError, StripsError, GraphError: from the steps.
    """
    images = np.stack(tflite.load_calibration(model, calibration))
    model = graph.flatten(model, images.shape[1:])
    if turned:
        model, images = turn.turn(model), turn.images(images)
    data = tflite.convert(split(model, regions), quantize="int8", calibration=images)
    parsed = parse(data)
    if turned:
        tflite_file.set_metadata(parsed, turn.METADATA, turn.TURNED)
    order_depth_first(parsed)
    share_constants(parsed)
    return with_best_plan(pack(parsed))


def convert_smallest(
    model: keras.Model, calibration: np.ndarray | Iterable[Any], *, regions: Sequence[Region] = ()
) -> bytes:
    """Returns the file with the smallest arena: from `convert`, turned or not, or the plain one from `tflite.convert`.

    Turning removes the explicit paddings of a network that pads as PyTorch does, but adds some to a network that pads
    as TensorFlow does. The plain file is considered only without regions, which ask for strips.

    Raises:
        ConversionError, GraphError: as `convert`.
        StripsError: the regions cannot be cut either way.
    """
    images = np.stack(tflite.load_calibration(model, calibration))
    model = graph.flatten(model, images.shape[1:])
    files: list[bytes] = [] if regions else [tflite.convert(model, quantize="int8", calibration=images)]
    failures = []
    for turned in (False, True):
        try:
            files.append(convert(model, images, turned=turned, regions=regions))
        except (turn.TurnError, StripsError, graph.GraphError) as error:
            failures.append(error)
    if not files:
        raise failures[0]
    return min(files, key=lambda file: planner.plan(file).arena)


def is_turned(file: Source) -> bool:
    """Whether the file's metadata say that it takes images turned by 180 degrees."""
    return tflite_file.find_metadata(parse(file), turn.METADATA) == turn.TURNED


def with_best_plan(file: Source, tries: int = 2000) -> bytes:
    """Returns the file with the plan from `memory_plan.find_best_offsets` in its metadata; its outputs stay the same.

    TFLM puts each tensor where the plan says, and places the operators' scratch memory itself. LiteRT ignores the plan.
    """
    model = parse(file)
    if len(model.subgraphs) > 1:  # TFLM reads such a plan by numbers that start anew in each subgraph
        return tflite_file.read(file)
    buffers = planner.list_buffers(model)
    offsets = memory_plan.find_best_offsets(buffers, tries)
    table = [-1] * len(model.subgraphs[0].tensors)
    for buffer, offset in zip(buffers, offsets, strict=True):
        if buffer.tensor is not None:
            table[buffer.tensor] = offset
    tflite_file.set_metadata(model, planner.OFFLINE_PLAN, np.array([1, 0, len(table), *table], "<i4").tobytes())
    return pack(model)


def order_depth_first(model: Any) -> None:
    """Orders a parsed file's operators so that each branch is finished before the next begins.

    The converter schedules whatever is ready first, such as the cuts of all strips.
    """
    subgraph = model.subgraphs[0]
    made = tflite_file.writers_of(subgraph)
    order: list[int] = []
    seen: set[int] = set()
    stack = [(made[int(output)], False) for output in reversed(subgraph.outputs)]
    while stack:
        number, inputs_are_done = stack.pop()
        if inputs_are_done:
            order.append(number)
        elif number not in seen:
            seen.add(number)
            stack.append((number, True))
            inputs = [int(tensor) for tensor in subgraph.operators[number].inputs if int(tensor) in made]
            stack.extend((made[tensor], False) for tensor in reversed(inputs))
    subgraph.operators = [subgraph.operators[number] for number in order]


def share_constants(model: Any) -> None:
    """Makes equal constants of a parsed file share one buffer: each strip brings its own copy of every weight."""
    first: dict[bytes, int] = {}
    for tensor in model.subgraphs[0].tensors:
        if tflite_file.is_constant(model, tensor):
            data = np.asarray(model.buffers[tensor.buffer].data, np.uint8).tobytes()
            tensor.buffer = first.setdefault(data, tensor.buffer)
    tflite_file.drop_unused_buffers(model)


def split(model: keras.Model, regions: Sequence[Region]) -> keras.Model:
    """Returns the model with its regions in strips; the layers are shared with `model`, not copied.

    A region begins at the one tensor that `first` reads and ends at the one that `last` writes; the layers between may
    read nothing else from outside. They pad "same", and their strides divide the number of rows.

    Raises:
        StripsError: a region does not exist, overlaps another, or has a layer that reads more rows than a window.
        GraphError: the model is subclassed, or the result does not compute the same.
    """
    model = graph.flatten(model)
    if not regions:
        return model
    calls = graph.calls(model)
    ends: dict[int, tuple[Region, list[graph.Call]]] = {}
    inside: set[int] = set()
    for region in regions:
        members = _find_members(calls, region)
        if inside & set(map(id, members)):
            raise StripsError(
                f"region {region.first} to {region.last} overlaps another; put each layer into one region only"
            )
        inside |= set(map(id, members))
        ends[id(members[-1].node)] = (region, members)
    within = {id(call.node) for call in calls if id(call) in inside}
    if any(id(graph.node_of(tensor)) in within - ends.keys() for tensor in model.outputs):
        raise StripsError("one of the model's outputs lies inside a region; end the region there")
    sources: dict[int, Any] = {}

    def run(call: graph.Call, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if id(call.node) not in within:
            return call.layer(*arguments, **options)
        given = keras.tree.flatten(call.node.arguments.args)
        sources.update(zip(map(id, given), keras.tree.flatten(arguments), strict=True))
        if id(call.node) not in ends:
            return [None] * len(call.outputs)  # only the region's end is read from outside
        region, members = ends[id(call.node)]
        return _split_region(region, members, sources[id(members[0].inputs[0])])

    split_model = graph.model_like(model, model.inputs, graph.replay(model, model.inputs, run))
    graph.check_copy(model, split_model)
    return split_model


def _find_members(calls: list[graph.Call], region: Region) -> list[graph.Call]:
    """Returns the calls of a region in execution order."""
    names, place = [call.layer.name for call in calls], f"region {region.first} to {region.last}"
    for name in (region.first, region.last):
        if (count := names.count(name)) != 1:
            close = difflib.get_close_matches(name, names, 1) if not count else []
            near = f" (did you mean {close[0]!r}?)" if close else ""
            raise StripsError(f"layer {name!r} is called {count} times in the model{near}; expected once")
    first, last = calls[names.index(region.first)], calls[names.index(region.last)]
    made = {id(call.outputs[0]): call for call in calls}
    source, members, stack = id(first.inputs[0]), {}, [last]
    while stack:
        call = stack.pop()
        members[id(call)] = call
        for tensor in (id(given) for given in call.inputs if id(given) != source):
            if tensor not in made:
                raise StripsError(
                    f"layer {call.layer.name!r} of {place} also reads the model's input; end the region before it"
                )
            if id(made[tensor]) not in members:
                stack.append(made[tensor])
    ordered = [call for call in calls if id(call) in members]
    if ordered[0] is not first:
        raise StripsError(
            f"{place} also depends on {ordered[0].layer.name!r}, which does not follow {region.first}. Begin the "
            "region where the branches part, or end it before they join"
        )
    written = {id(call.outputs[0]) for call in ordered[:-1]}
    for call in calls:
        if id(call) not in members and written & set(map(id, call.inputs)):
            raise StripsError(f"layer {call.layer.name!r} reads from inside {place}; end the region elsewhere")
    return ordered


def _split_region(region: Region, members: list[graph.Call], source: Any) -> Any:
    """Returns the region's output, computed strip by strip from its input `source`."""
    height, rows = source.shape[1], members[-1].outputs[0].shape[1]
    if rows is None or height is None or height % rows or not 1 <= region.strips <= min(rows, rewrites.MOST_INPUTS):
        raise StripsError(
            f"region {region.first} to {region.last} maps {height} rows to {rows}, to be cut into {region.strips} "
            "strips. Expected fixed numbers of rows, strides that divide them, and at most as many strips as rows and "
            f"at most {rewrites.MOST_INPUTS}, the most that TFLM can concatenate"
        )
    stride, taken, parts = height // rows, id(members[0].inputs[0]), []
    for strip in range(region.strips):
        start, end = rows * strip // region.strips, rows * (strip + 1) // region.strips
        low, high = _find_needed_rows(members, taken, start, end)
        low, high = low // stride * stride, -(-high // stride) * stride  # so that windows start at the same rows
        name = f"{region.last}_strip{strip}"
        values = {taken: _crop_rows(source, low, high, f"{name}_cut")}
        for call in members:
            arguments, options = call.replay(values)
            values[id(call.outputs[0])] = call.layer(*arguments, **options)
        result = values[id(members[-1].outputs[0])]
        parts.append(_crop_rows(result, start - low // stride, end - low // stride, f"{name}_trim"))
    return keras.layers.Concatenate(axis=1, name=f"{region.last}_strips")(parts) if len(parts) > 1 else parts[0]


def _find_needed_rows(members: list[graph.Call], source: int, start: int, end: int) -> tuple[int, int]:
    """Returns the range of input rows that the region needs for its output rows from `start` up to `end`, exclusive."""
    wanted = {id(members[-1].outputs[0]): (start, end)}
    for call in reversed(members):
        low, high = wanted[id(call.outputs[0])]
        layer, kind = call.layer, call.kind
        if kind in _WINDOWS:
            extent, stride, length = turn.extent_of(layer)[0], layer.strides[0], call.inputs[0].shape[1]
            if (layer.padding != "same" and extent > 1) or length % stride:
                raise StripsError(
                    f"layer {layer.name!r} reads {length} rows with stride {stride} and padding "
                    f'"{layer.padding}"; expected "same" and a stride that divides the rows'
                )
            before = turn.same_padding(length, extent, stride)[0]
            low, high = low * stride - before, (high - 1) * stride - before + extent
        elif kind not in turn.PLACEWISE or len(call.outputs[0].shape) != 4 or turn.mixes_places(layer, call.outputs[0]):
            raise StripsError(f"layer {layer.name!r} ({kind}) needs all rows at once; end the region before it")
        for tensor in call.inputs:
            known = wanted.get(id(tensor), (low, high))
            wanted[id(tensor)] = (max(0, min(low, known[0])), min(tensor.shape[1], max(high, known[1])))
    return wanted[source]


def _crop_rows(x: Any, low: int, high: int, name: str) -> Any:
    cropping = (low, x.shape[1] - high)
    return keras.layers.Cropping2D((cropping, (0, 0)), name=name)(x) if any(cropping) else x
