"""Places buffers with known lifetimes in one block of memory: as TFLM's greedy planner does, and better."""

import bisect
import dataclasses
import random
from collections.abc import Sequence

ALIGNMENT = 16  # bytes; TFLM's kBufferAlignment


@dataclasses.dataclass(frozen=True)
class Buffer:
    """`size` bytes, alive from the step `first` to the step `last`, both included.

    `tensor` is the number of the tensor that the buffer holds, or None for an operator's scratch memory. `offset` is
    set if a plan inside the file fixes it.
    """

    name: str
    size: int
    first: int
    last: int
    tensor: int | None = None
    offset: int | None = None


def aligned(size: int) -> int:
    """Returns the size rounded up to whole alignment units."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def end_of(buffers: Sequence[Buffer], offsets: Sequence[int]) -> int:
    """Returns the bytes from offset 0 to the end of the highest placed buffer."""
    return max((offset + aligned(buffer.size) for buffer, offset in zip(buffers, offsets, strict=True)), default=0)


def live_bytes(buffers: Sequence[Buffer]) -> list[int]:
    """Returns the bytes alive at each step; their maximum is a lower bound for every plan."""
    totals = [0] * (1 + max((buffer.last for buffer in buffers), default=-1))
    for buffer in buffers:
        for step in range(buffer.first, buffer.last + 1):
            totals[step] += aligned(buffer.size)
    return totals


def place_greedily(buffers: Sequence[Buffer]) -> list[int]:
    """Returns the offsets that TFLM's GreedyMemoryPlanner gives (greedy_memory_planner.cc).

    Buffers with a fixed offset come first, then the others from the largest to the smallest, each in the lowest gap
    that it fits into. Among equal sizes the later buffer comes first.
    """
    fixed = [number for number, buffer in enumerate(buffers) if buffer.offset is not None]
    free = [number for number in reversed(range(len(buffers))) if buffers[number].offset is None]
    return first_fit(buffers, fixed + sorted(free, key=lambda number: -aligned(buffers[number].size)))


def first_fit(buffers: Sequence[Buffer], order: Sequence[int]) -> list[int]:
    """Returns the offsets if each buffer, in this order, goes into the lowest gap that it fits into."""
    sizes = [aligned(buffer.size) for buffer in buffers]
    neighbours = _list_neighbours(buffers)
    offsets = [-1] * len(buffers)
    for number in order:
        offset = buffers[number].offset
        if offset is None:
            offset = 0
            for other in sorted((o for o in neighbours[number] if offsets[o] >= 0), key=offsets.__getitem__):
                if offsets[other] - offset >= sizes[number]:
                    break
                offset = max(offset, offsets[other] + sizes[other])
        offsets[number] = offset
    return offsets


def _list_neighbours(buffers: Sequence[Buffer]) -> list[list[int]]:
    """Returns for each buffer the numbers of the others whose lifetimes overlap with its own."""
    found: list[list[int]] = [[] for _ in buffers]
    order = sorted(range(len(buffers)), key=lambda number: buffers[number].first)
    firsts = [buffers[number].first for number in order]
    for place, number in enumerate(order):
        for other in order[place + 1 : bisect.bisect_right(firsts, buffers[number].last)]:
            found[number].append(other)
            found[other].append(number)
    return found


def find_best_offsets(buffers: Sequence[Buffer], tries: int = 2000) -> list[int]:
    """Returns the best offsets found by a local search over orders for `first_fit`, never worse than `place_greedily`.

    The search ends early at the lower bound, the peak of `live_bytes`. Fixed offsets of buffers are ignored.
    """
    free = [dataclasses.replace(buffer, offset=None) for buffer in buffers]
    live, numbers = live_bytes(free), range(len(free))
    bound = max(live, default=0)
    tightest = [max(live[buffer.first : buffer.last + 1]) for buffer in free]
    orders = [
        sorted(numbers, key=lambda number: (-aligned(free[number].size), -number)),  # as TFLM
        sorted(numbers, key=lambda number: (-tightest[number], free[number].first, -free[number].size)),
        sorted(numbers, key=lambda number: (free[number].first, -free[number].size)),
    ]
    found = min((_place(free, order) for order in orders), key=lambda result: result[0])
    draw = random.Random(0)
    for _ in range(tries):
        if found[0] <= bound:
            break
        order = list(found[2])
        for _ in range(draw.randint(1, 3)):  # move one of the highest buffers, or any other, further to the front
            top = [number for number in order if found[1][number] + aligned(free[number].size) == found[0]]
            number = draw.choice(top if draw.random() < 0.5 else order)
            place = order.index(number)
            order.insert(draw.randint(0, place), order.pop(place))
        changed = _place(free, order)
        if changed[0] <= found[0]:
            found = changed
    return found[1]


def _place(buffers: Sequence[Buffer], order: list[int]) -> tuple[int, list[int], list[int]]:
    offsets = first_fit(buffers, order)
    return end_of(buffers, offsets), offsets, order
