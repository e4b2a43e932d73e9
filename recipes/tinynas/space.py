"""The search space of TinyNAS: MobileNetV2's stages, a kernel size and an expansion for each block.

Source: Lin et al., "MCUNet: Tiny Deep Learning on IoT Devices", NeurIPS 2020, arXiv:2007.10319, section 3.1 and
appendix D; the widths are those of ProxylessNAS in once-for-all's code, from which MCUNet's published networks follow
at a width of 0.5. There is no 1x1 convolution before the classifier, as in those.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from recipes.engine.spaces import Decision, Space
from zoo.canonical import canonical_hash
from zoo.genotype import Block, Blocks

STEM, FIRST = 32, 16  # filters of the stem, and of the separable convolution behind it
FILTERS = (24, 40, 80, 96, 192, 320)  # of each stage
STRIDES = (2, 2, 2, 1, 2, 1)
SMALL_STRIDES = (1, 2, 1, 1, 2, 1)  # for images of 16 to 64 pixels, which the stem has halved already
KERNELS, EXPANSIONS, DEPTHS = (3, 5, 7), (3, 4, 6), (2, 3, 4)
RESOLUTIONS = tuple(range(48, 225, 16))
WIDTHS = tuple(number / 10 for number in range(2, 11))


@dataclasses.dataclass(frozen=True)
class Place:
    """A block of the largest network: its stage, its number there, and the most channels that it can have."""

    stage: int
    block: int
    strides: int
    inputs: int
    filters: int


@dataclasses.dataclass(frozen=True)
class TinySpace(Space):
    """All sub-networks of one once-for-all network.

    Attributes:
        width: of ProxylessNAS' filters, stem included.
        strides: of the first block of each stage.
        kernels, expansions: of each block.
        depths: blocks of each stage; the last stage has one always.
        shares: of a stage's filters that a sub-network may keep; (1.0,) as in the paper leaves widths to `width`.
        divisor: filters are multiples of it.
    """

    width: float = 0.5
    strides: tuple[int, ...] = STRIDES
    kernels: tuple[int, ...] = KERNELS
    expansions: tuple[int, ...] = EXPANSIONS
    depths: tuple[int, ...] = DEPTHS
    shares: tuple[float, ...] = (1.0,)
    divisor: int = 8

    def __post_init__(self):
        if not 0 < self.width <= 4:
            raise ValueError(f"width is {self.width}; expected a number above 0, at most 4")
        if len(self.strides) != len(FILTERS) or not set(self.strides) <= {1, 2}:
            raise ValueError(f"strides is {self.strides}; expected {len(FILTERS)} numbers, each 1 or 2")
        if not self.kernels or any(kernel % 2 == 0 or kernel < 1 for kernel in self.kernels):
            raise ValueError(f"kernels is {self.kernels}; expected odd numbers, such as {KERNELS}")
        for name in ("expansions", "depths"):
            values = getattr(self, name)
            if not values or min(values) < (2 if name == "expansions" else 1):
                raise ValueError(
                    f"{name} is {values}; expected whole numbers from {2 if name == 'expansions' else 1}, "
                    f"such as {EXPANSIONS if name == 'expansions' else DEPTHS}"
                )
        if not self.shares or not all(0 < share <= 1 for share in self.shares):
            raise ValueError(f"shares is {self.shares}; expected numbers above 0, at most 1, such as 0.75,1")
        if self.divisor < 1:
            raise ValueError(f"divisor is {self.divisor}; expected a whole number from 1")

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """Stage by stage: depth and share of the filters where there is a choice, each block's kernel and expansion."""
        found = []
        for stage in range(len(FILTERS)):
            if len(depths := self._depths(stage)) > 1:
                found.append(Decision(f"stage{stage}/depth", depths, "depth"))
            if len(self.shares) > 1:
                found.append(Decision(f"stage{stage}/share", self.shares, "share"))
            for block in range(max(depths)):
                found.append(Decision(f"stage{stage}/block{block}/kernel", self.kernels, "kernel"))
                found.append(Decision(f"stage{stage}/block{block}/expansion", self.expansions, "expansion"))
        return tuple(found)

    @property
    def size(self) -> int:
        """How many different sub-networks there are."""
        block = len(self.kernels) * len(self.expansions)
        stages = (sum(block**depth for depth in self._depths(stage)) for stage in range(len(FILTERS)))
        return math.prod(stages) * len(self.shares) ** len(FILTERS)

    @property
    def stem(self) -> int:
        """Filters of the stem."""
        return self._rounded(STEM)

    @property
    def first(self) -> int:
        """Filters of the separable convolution behind the stem."""
        return self._rounded(FIRST)

    @property
    def places(self) -> tuple[Place, ...]:
        """The blocks of the largest network."""
        found, inputs = [], self.first
        for stage, strides in enumerate(self.strides):
            filters = self.filters(stage, max(self.shares))
            for block in range(max(self._depths(stage))):
                found.append(Place(stage, block, strides if block == 0 else 1, inputs, filters))
                inputs = filters
        return tuple(found)

    def filters(self, stage: int, share: float) -> int:
        """Returns the filters of a stage that keeps this share of them."""
        return self._rounded(FILTERS[stage] * share)

    def body(self, values: Mapping[str, Any]) -> Blocks:
        """Returns the blocks that `values` (decision -> choice) stand for, a row each."""
        rows = [Block("sep_conv", 3, self.first)]
        for stage, strides in enumerate(self.strides):
            filters = self.filters(stage, self._share(values, stage))
            for block in range(self._depth(values, stage)):
                at = f"stage{stage}/block{block}"
                rows.append(
                    Block(
                        "mb_conv",
                        kernel_size=values[f"{at}/kernel"],
                        filters=filters,
                        strides=strides if block == 0 else 1,
                        expansion=values[f"{at}/expansion"],
                    )
                )
        return Blocks(tuple(rows), self.stem)

    def key(self, values: Mapping[str, Any]) -> str:
        """Returns a hash that equal networks share: what a block beyond its stage's depth says does not count."""
        return canonical_hash(self.body(values))

    def choice(self, values: Mapping[str, Any]) -> np.ndarray:
        """Returns the sub-network as the supernet reads it: int32 (blocks, 5).

        For each of `places`: whether it is there, kernel size, inputs, expanded channels, filters.
        """
        rows, inputs = [], self.first
        for place in self.places:
            at = f"stage{place.stage}/block{place.block}"
            filters = self.filters(place.stage, self._share(values, place.stage))
            there = place.block < self._depth(values, place.stage)
            rows.append((there, values[f"{at}/kernel"], inputs, values[f"{at}/expansion"] * inputs, filters))
            inputs = filters
        return np.asarray(rows, np.int32)

    def random(self, rng: np.random.Generator) -> dict[str, Any]:
        """Draws every decision uniformly."""
        return {d.name: d.choices[number] for d, number in zip(self.decisions, self._draws(rng), strict=True)}

    def largest(self) -> dict[str, Any]:
        """Returns the values of the largest sub-network, which holds the weights of all."""
        return {decision.name: max(decision.choices) for decision in self.decisions}

    def smallest(self) -> dict[str, Any]:
        """Returns the values of the smallest sub-network."""
        return {decision.name: min(decision.choices) for decision in self.decisions}

    def _draws(self, rng: np.random.Generator) -> Sequence[int]:
        return rng.integers([len(decision.choices) for decision in self.decisions]).tolist()

    def _depths(self, stage: int) -> tuple[int, ...]:
        return self.depths if stage < len(FILTERS) - 1 else (1,)

    def _depth(self, values: Mapping[str, Any], stage: int) -> int:
        depths = self._depths(stage)
        return values[f"stage{stage}/depth"] if len(depths) > 1 else max(depths)

    def _share(self, values: Mapping[str, Any], stage: int) -> float:
        return values[f"stage{stage}/share"] if len(self.shares) > 1 else max(self.shares)

    def _rounded(self, filters: float) -> int:
        """Returns a multiple of the divisor near `width` x filters, no more than a tenth below (make_divisible)."""
        wanted = self.width * filters
        found = max(self.divisor, math.floor(wanted + self.divisor / 2) // self.divisor * self.divisor)
        return found + self.divisor if found < 0.9 * wanted else found
