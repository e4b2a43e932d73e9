"""The factorised hierarchical space of MnasNet: each of seven blocks has an architecture of its own, in its layers one.

Source: Tan et al., arXiv:1807.11626, section 4.1: around MobileNetV2, a block chooses its operation, kernel size,
squeeze-and-excite, skip, filters and layers. Departures: a block of one layer cannot lose it; filters are the multiple
of `divisor` nearest to their share of MobileNetV2's (the published MnasNet-A1 has 112 filters where 1.25 x 96 is 120).
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

from recipes.engine.spaces import Decision, Space, check_values
from zoo.genotype import Block, Blocks

# Sandler et al., arXiv:1801.04381, table 2: filters, layers, strides; the first is depthwise separable
MOBILENET_V2 = ((16, 1, 1), (24, 2, 2), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1))
MOBILENET_V2_STEM, MOBILENET_V2_HEAD = 32, 1280
STRIDES = tuple(strides for _, _, strides in MOBILENET_V2)
SMALL_STRIDES = (1, 1, 2, 1, 1, 2, 1)  # for images of 28 to 64 pixels, which the stem has halved already
OPS = ("conv", "sep_conv", "mb_conv_e3", "mb_conv_e6")
KERNELS, SE_RATIOS, SKIPS = (3, 5), (0.0, 0.25), ("pool", "identity", "none")
FILTERS, LAYERS = (0.75, 1.0, 1.25), (-1, 0, 1)


@dataclasses.dataclass(frozen=True)
class BlockSpace(Space):
    """Networks of seven blocks around MobileNetV2; `width`, `depth` and `strides` fit them to small images.

    Attributes:
        width: of MobileNetV2's filters, stem and head included.
        depth: of MobileNetV2's layers, each block's rounded, at least one.
        strides: of the first layer of each block.
        divisor: filters are multiples of it.
        name: for messages and provenance.
    """

    width: float = 1.0
    depth: float = 1.0
    strides: tuple[int, ...] = STRIDES
    divisor: int = 8
    name: str = "mnasnet"

    def __post_init__(self):
        if len(self.strides) != len(MOBILENET_V2) or not set(self.strides) <= {1, 2}:
            raise ValueError(f"strides is {self.strides}; expected {len(MOBILENET_V2)} numbers, each 1 or 2")
        if not 0 < self.width <= 10 or not 0 < self.depth <= 10:
            raise ValueError(f"width is {self.width} and depth {self.depth}; expected numbers above 0, at most 10")
        if self.divisor < 1:
            raise ValueError(f"divisor is {self.divisor}; expected a whole number from 1")

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """Block by block, in the order of the paper."""
        found = []
        for block in range(len(MOBILENET_V2)):
            layers = tuple(change for change in LAYERS if self._layers(block) + change >= 1)
            choices = {"op": OPS, "kernel": KERNELS, "se": SE_RATIOS, "skip": SKIPS}
            choices |= {"filters": FILTERS, "layers": layers}
            found += [Decision(f"block{block}/{kind}", options, kind) for kind, options in choices.items()]
        return tuple(found)

    def body(self, values: Mapping[str, Any]) -> Blocks:
        """Returns the blocks that `values` (decision -> choice) stand for."""
        rows = []
        for block, strides in enumerate(self.strides):
            chosen = {kind: values[f"block{block}/{kind}"] for kind in ("op", "kernel", "se", "skip", "filters")}
            rows.append(
                self._row(block, strides, repeats=self._layers(block) + values[f"block{block}/layers"], **chosen)
            )
        stem, head = self._rounded(MOBILENET_V2_STEM), self._rounded(MOBILENET_V2_HEAD)
        return Blocks(tuple(rows), stem, head)

    def mobilenet_v2(self) -> dict[str, Any]:
        """Returns the values of MobileNetV2 itself, around which the space lies."""
        middle = {"kernel": 3, "se": 0.0, "skip": "identity", "filters": 1.0, "layers": 0}
        found = {}
        for decision in self.decisions:
            first = decision.name.startswith("block0/")
            found[decision.name] = middle.get(decision.kind, "sep_conv" if first else "mb_conv_e6")
        return check_values(found, self.decisions)

    def largest(self) -> list[dict[str, Any]]:
        """Returns, for each op, the values of the largest network that has it everywhere."""
        most = {"kernel": 5, "se": 0.25, "skip": "pool", "filters": max(FILTERS), "layers": max(LAYERS)}
        return [{d.name: most.get(d.kind, op) for d in self.decisions} for op in OPS]

    def layers(self) -> Iterator[tuple[int, int, int, Block]]:
        """Yields the layers that networks are made of: block, halvings of what it reads since the stem, inputs, layer.

        Some come twice.
        """
        inputs, halvings = [self._rounded(MOBILENET_V2_STEM)], 0
        for block, strides in enumerate(self.strides):
            options = itertools.product(OPS, KERNELS, SE_RATIOS, SKIPS, FILTERS)
            rows = [self._row(block, strides, 1, *chosen) for chosen in options]
            for row, width in itertools.product(rows, inputs):
                yield block, halvings, width, row
            halvings += strides - 1
            for row in rows if self._layers(block) + max(LAYERS) > 1 else ():
                yield block, halvings, row.filters, dataclasses.replace(row, strides=1)
            inputs = sorted({row.filters for row in rows})

    def _row(self, block: int, strides: int, repeats: int, op: str, kernel: int, se: float, skip: Any, filters: float):
        kind, _, expansion = op.partition("_e")
        return Block(
            kind,  # pyright: ignore[reportArgumentType]
            kernel_size=kernel,
            filters=self._rounded(filters * MOBILENET_V2[block][0]),
            strides=strides,
            expansion=int(expansion or 1),
            repeats=repeats,
            se_ratio=se,
            skip=skip,
        )

    def _layers(self, block: int) -> int:
        return max(1, math.floor(self.depth * MOBILENET_V2[block][1] + 0.5))

    def _rounded(self, filters: float) -> int:
        return max(1, math.floor(self.width * filters / self.divisor + 0.5)) * self.divisor
