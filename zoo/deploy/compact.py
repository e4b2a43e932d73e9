"""An int8 file that needs the least arena: turned, in strips, operators well ordered, tensors well placed.

Each step leaves the outputs what they were: the float network's to the last digits, the file's to the bit.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np

from zoo import graph
from zoo.deploy import memory_plan, planner, strips, tflite, turn
from zoo.deploy.tflite_file import Source, drop_unused_buffers, metadata, pack, parse, read, set_metadata


def convert(
    model: keras.Model,
    calibration: np.ndarray | Iterable[Any],
    *,
    turned: bool = True,
    regions: Sequence[strips.Region] = (),
) -> bytes:
    """Returns the int8 file with the least arena that these steps give.

    Args:
        calibration: images as `tflite.convert` takes them, not turned.
        turned: the file takes images turned by 180 degrees (`turn.images`), which its metadata say; see `is_turned`.
        regions: what to run strip by strip.

    Raises:
        ConversionError, TurnError, StripsError, GraphError: as the steps.
    """
    images = np.stack(tflite.calibration_images(model, calibration))
    model = graph.flatten(model, images.shape[1:])
    if turned:
        model, images = turn.turn(model), turn.images(images)
    data = tflite.convert(strips.split(model, regions), quantize="int8", calibration=images)
    parsed = parse(data)
    if turned:
        set_metadata(parsed, turn.METADATA, turn.TURNED)
    depth_first(parsed)
    share_constants(parsed)
    return with_best_plan(pack(parsed))


def smallest(
    model: keras.Model, calibration: np.ndarray | Iterable[Any], *, regions: Sequence[strips.Region] = ()
) -> bytes:
    """Returns the file of least arena: of `convert`, turned or not, or of `tflite.convert` where none is smaller.

    Turning rids a network of PyTorch's paddings, and brings them into one that pads as TensorFlow does. The plain file
    is in the running only without regions, which ask for strips.

    Raises:
        ConversionError, GraphError: as `convert`.
        StripsError: the regions can be cut neither way.
    """
    images = np.stack(tflite.calibration_images(model, calibration))
    model = graph.flatten(model, images.shape[1:])
    files: list[bytes] = [] if regions else [tflite.convert(model, quantize="int8", calibration=images)]
    failures = []
    for turned in (False, True):
        try:
            files.append(convert(model, images, turned=turned, regions=regions))
        except (turn.TurnError, strips.StripsError, graph.GraphError) as error:
            failures.append(error)
    if not files:
        raise failures[0]
    return min(files, key=lambda file: planner.plan(file).arena)


def is_turned(tflite_file: Source) -> bool:
    """Whether the file says that it takes images turned by 180 degrees."""
    return metadata(parse(tflite_file), turn.METADATA) == turn.TURNED


def with_best_plan(tflite_file: Source, tries: int = 2000) -> bytes:
    """Returns the file with the best plan that `memory_plan.best` finds as its metadata; its outputs stay the same.

    TFLM puts each tensor where the plan says; operators' scratch memory finds its own place. LiteRT does not read it.
    """
    model = parse(tflite_file)
    if len(model.subgraphs) > 1:  # TFLM reads such a plan by numbers that start anew in each subgraph
        return read(tflite_file)
    buffers = planner.buffers_of(model)
    offsets = memory_plan.best(buffers, tries)
    table = [-1] * len(model.subgraphs[0].tensors)
    for buffer, offset in zip(buffers, offsets, strict=True):
        if buffer.tensor is not None:
            table[buffer.tensor] = offset
    set_metadata(model, planner.OFFLINE_PLAN, np.array([1, 0, len(table), *table], "<i4").tobytes())
    return pack(model)


def depth_first(model: Any) -> None:
    """Puts a parsed file's operators into the order in which each branch is finished before the next begins.

    The converter brings forward whatever is ready, all cuts of all strips for one.
    """
    subgraph = model.subgraphs[0]
    made = {int(output): number for number, operator in enumerate(subgraph.operators) for output in operator.outputs}
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
            inputs = [int(one) for one in subgraph.operators[number].inputs if int(one) in made]
            stack.extend((made[one], False) for one in reversed(inputs))
    subgraph.operators = [subgraph.operators[number] for number in order]


def share_constants(model: Any) -> None:
    """Gives equal constants of a parsed file one buffer: strips bring every weight along again."""
    first: dict[bytes, int] = {}
    tensors = model.subgraphs[0].tensors
    for tensor in tensors:
        data = model.buffers[tensor.buffer].data
        if data is not None and len(data):
            tensor.buffer = first.setdefault(np.asarray(data, np.uint8).tobytes(), tensor.buffer)
    drop_unused_buffers(model)
