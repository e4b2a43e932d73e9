"""The search space of TinyNAS, and the search's first stage, which chooses its resolution and width.

The space has MobileNetV2's stages, with a kernel size and an expansion for each block. A resolution and width are
judged by the multiply-adds of random networks that fit into the memory: more multiply-adds mean a larger capacity, and
so a higher accuracy. Nothing is trained; a random network takes 0.3 ms on one core of a laptop.

Source: Lin et al., arXiv:2007.10319, section 3.1, figures 3 and 4, and appendix D: 12 resolutions x 9 widths, 1,000
networks each, the largest mean wins. Widths are multiples of ProxylessNAS' widths in once-for-all's code; MCUNet's
published networks have half of these. Like those, our networks have no 1x1 convolution before the classifier.
Departure: a resolution and width at which less than `least_share` of the networks fit are not chosen, since their mean
is that of a few lucky draws, and their space is hard to search.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from recipes.engine.spaces import Decision, Space
from recipes.training import check_at_least, check_options
from zoo import atomic
from zoo.genotype import Block, Blocks

STEM, FIRST = 32, 16  # filters of the stem, and of the separable convolution after it
FILTERS = (24, 40, 80, 96, 192, 320)  # of the stages
STRIDES = (2, 2, 2, 1, 2, 1)
SMALL_STRIDES = (1, 2, 1, 1, 2, 1)  # for images of 16 to 64 pixels, which the stem halves first
KERNELS, EXPANSIONS, DEPTHS = (3, 5, 7), (3, 4, 6), (2, 3, 4)
RESOLUTIONS = tuple(range(48, 225, 16))
WIDTHS = tuple(number / 10 for number in range(2, 11))


@dataclasses.dataclass(frozen=True)
class SupernetBlock:
    """A block of the largest network: its stage, its number in the stage, its stride and its widths."""

    stage: int
    number: int
    strides: int
    inputs: int
    filters: int


@dataclasses.dataclass(frozen=True)
class TinySpace(Space):
    """All sub-networks of a once-for-all network."""

    width: float = 0.5  # multiplies ProxylessNAS' filters, including the stem's
    strides: tuple[int, ...] = STRIDES  # of the first block of each stage
    kernels: tuple[int, ...] = KERNELS  # kernel sizes that a block chooses from
    expansions: tuple[int, ...] = EXPANSIONS  # factors that a block chooses from
    depths: tuple[int, ...] = DEPTHS  # numbers of blocks that a stage chooses from; the last stage always has one
    shares: tuple[float, ...] = (1.0,)  # of its filters that a stage may keep; (1.0,), the paper's, keeps all
    divisor: int = 8  # filters are multiples of it
    stages: int = len(FILTERS)  # fewer, the first ones, make a space so small that every network can be trained

    def __post_init__(self):
        most = len(FILTERS)
        odd, several = f"odd numbers, such as {KERNELS}", "whole numbers from {}, such as {}".format
        check_options(self, "width", "a number above 0, at most 4", lambda width: 0 < width <= 4)
        check_options(self, "strides", "6 numbers, each 1 or 2", lambda s: len(s) == most and {*s} <= {1, 2})
        check_options(self, "kernels", odd, lambda sizes: sizes and all(size > 0 and size % 2 for size in sizes))
        check_options(self, "expansions", several(2, EXPANSIONS), lambda found: min(found, default=0) > 1)
        check_options(self, "depths", several(1, DEPTHS), lambda found: min(found, default=0) > 0)
        share = "numbers above 0, at most 1, such as 0.75,1"
        check_options(self, "shares", share, lambda found: found and min(found) > 0 and max(found) <= 1)
        check_at_least(self, {"divisor": 1})
        check_options(self, "stages", f"a whole number from 1 to {most}", lambda stages: 1 <= stages <= most)

    @functools.cached_property
    def decisions(self) -> tuple[Decision, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """By stage: depth and share of the filters if there is a choice, then each block's kernel and expansion."""
        found = []
        for stage in range(self.stages):
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
        """Number of different sub-networks."""
        block = len(self.kernels) * len(self.expansions)
        stages = (sum(block**depth for depth in self._depths(stage)) for stage in range(self.stages))
        return math.prod(stages) * len(self.shares) ** self.stages

    @property
    def stem_filters(self) -> int:
        """Filters of the stem."""
        return self._round_filters(STEM)

    @property
    def first_filters(self) -> int:
        """Filters of the separable convolution after the stem."""
        return self._round_filters(FIRST)

    @functools.cached_property
    def blocks(self) -> tuple[SupernetBlock, ...]:
        """The blocks of the largest network."""
        found, inputs = [], self.first_filters
        for stage, strides in enumerate(self.strides[: self.stages]):
            filters = self.filters(stage, max(self.shares))
            for block in range(max(self._depths(stage))):
                found.append(SupernetBlock(stage, block, strides if block == 0 else 1, inputs, filters))
                inputs = filters
        return tuple(found)

    def filters(self, stage: int, share: float) -> int:
        """Returns the number of filters of a stage that keeps this share of them."""
        return self._round_filters(FILTERS[stage] * share)

    def body(self, values: Mapping[str, Any]) -> Blocks:
        """Returns the network for the values of the decisions, one row per block."""
        rows = [Block("sep_conv", 3, self.first_filters)]
        for block, present, kernel, _, expansion, filters in self._read(values):
            if present:
                rows.append(Block("mb_conv", kernel, filters, strides=block.strides, expansion=expansion))
        return Blocks(tuple(rows), self.stem_filters)

    def encode(self, values: Mapping[str, Any]) -> np.ndarray:
        """Returns the sub-network for the supernet: int32 (blocks, 5).

        The columns are for each of `blocks`: whether it is present, kernel size, inputs, expanded channels, filters.
        """
        rows = [(row[1], row[2], row[3], row[4] * row[3], row[5]) for row in self._read(values)]
        return np.asarray(rows, np.int32)

    def _read(self, values: Mapping[str, Any]) -> Iterator[tuple[SupernetBlock, bool, int, int, int, int]]:
        """Yields for each of `blocks`: it, whether it is present, kernel size, inputs, expansion, filters."""
        inputs, filters, depth = self.first_filters, 0, 0
        for block in self.blocks:
            if block.number == 0:
                filters = self.filters(block.stage, values.get(f"stage{block.stage}/share", max(self.shares)))
                depth = values.get(f"stage{block.stage}/depth", max(self._depths(block.stage)))
            name = f"stage{block.stage}/block{block.number}"
            yield block, block.number < depth, values[f"{name}/kernel"], inputs, values[f"{name}/expansion"], filters
            inputs = filters

    def largest(self) -> dict[str, Any]:
        """Returns the values of the largest sub-network, which has all weights."""
        return {decision.name: max(decision.choices) for decision in self.decisions}

    def smallest(self) -> dict[str, Any]:
        """Returns the values of the smallest sub-network."""
        return {decision.name: min(decision.choices) for decision in self.decisions}

    def _depths(self, stage: int) -> tuple[int, ...]:
        return self.depths if stage < self.stages - 1 else (1,)

    def _round_filters(self, filters: float) -> int:
        """Returns a multiple of the divisor near `width` x filters, at most a tenth below (make_divisible)."""
        wanted = self.width * filters
        found = max(self.divisor, math.floor(wanted + self.divisor / 2) // self.divisor * self.divisor)
        return found + self.divisor if found < 0.9 * wanted else found


@dataclasses.dataclass(frozen=True)
class Configuration:
    """A resolution and width, with the multiply-adds, in ascending order, of the random networks that fit."""

    resolution: int
    width: float
    macs: tuple[int, ...]
    drawn: int

    @property
    def share(self) -> float:
        """Share of the random networks that fit."""
        return len(self.macs) / self.drawn

    def score(self, rank_by: str) -> float:
        """Returns the mean or the 80th percentile of the multiply-adds; 0 if no network fits."""
        if not self.macs:
            return 0.0
        return float(np.mean(self.macs) if rank_by == "mean" else np.percentile(self.macs, 80))

    def __str__(self) -> str:
        return f"resolution {self.resolution}, width {self.width:g}"


def rank_configurations(
    configurations: Sequence[Configuration], rank_by: Literal["mean", "percentile"], least_share: float
) -> list[Configuration]:
    """Returns the configurations, best first; those at which too few networks fit come last.

    Raises:
        ValueError: too few networks fit at every configuration.
    """
    ranked = sorted(configurations, key=lambda one: (one.share >= least_share, one.score(rank_by)), reverse=True)
    if ranked[0].share < least_share or not ranked[0].macs:
        nearest = max(ranked, key=lambda one: one.share)
        raise ValueError(
            f"too few of the random networks fit: at most a share of {nearest.share:.3f}, at {nearest}; expected at "
            f"least {least_share}. Allow more memory, or lower resolutions or widths"
        )
    return ranked


def save_configurations(ranked: Sequence[Configuration], rank_by: str, least_share: float, folder: Path) -> None:
    """Writes space.json and the picture space.png."""
    rows = [
        {"resolution": c.resolution, "width": c.width, "fit": len(c.macs), "drawn": c.drawn,
         "mean_macs": round(c.score("mean")), "macs_80_percent": round(c.score("percentile"))}
        for c in ranked
    ]  # fmt: skip
    text = json.dumps({"ranked_by": rank_by, "least_share": least_share, "configurations": rows}, indent=1)
    atomic.write_atomically(folder / "space.json", text + "\n")
    draw_configurations(ranked, folder / "space.png")


def draw_configurations(ranked: Sequence[Configuration], path: Path, curves: int = 8) -> None:
    """Draws the cumulative distributions of the multiply-adds into a PNG file, like figure 3 of the paper.

    The first configuration, which is searched, is the thick line; the others are the next best ones and some worse
    ones, spread evenly over the rest.
    """
    from recipes.cards.pictures import new_figure, save_figure

    shown = [each for each in ranked if each.macs]
    if len(shown) > curves:
        rest = np.linspace(curves // 2, len(shown) - 1, curves - curves // 2).round().astype(int)
        shown = shown[: curves // 2] + [shown[number] for number in rest]
    figure = new_figure(7.2, 5)
    axes: Any = figure.add_subplot()
    unit, name = (1e6, "million ") if max(each.macs[-1] for each in shown) > 1e5 else (1e3, "thousand ")
    for number, each in enumerate(shown):
        share = np.arange(1, len(each.macs) + 1) / len(each.macs)
        label = f"{each}: mean {each.score('mean') / unit:.3g}, {each.share:.0%} fit"
        color, width, layer = ("black", 2.8, 3) if each is ranked[0] else (f"C{number}", 1.2, 2)
        macs = np.asarray(each.macs) / unit
        axes.step(macs, share, where="post", label=label, color=color, linewidth=width, zorder=layer)
    axes.axhline(0.8, color="0.7", linewidth=0.8, linestyle="--")
    axes.set(xlabel=f"{name}multiply-adds", ylabel="share of the networks that fit", xlim=(0, None), ylim=(0, 1.02))
    axes.set_title("Multiply-adds of the networks that fit, by search space (the chosen one in black)", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(fontsize=7.5, frameon=False, loc="outside lower center", ncols=2)
    save_figure(figure, path)
