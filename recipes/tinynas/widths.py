"""TinyNAS, stage one: at which resolution and width do networks that fit into the memory compute the most?

Each configuration is judged by the multiply-adds of random networks that fit; more of them means a larger capacity, and
a larger capacity a higher accuracy. Nothing is trained. A draw takes 0.3 ms on one core of a laptop.

Source: Lin et al., arXiv:2007.10319, section 3.1, figures 3 and 4: 12 resolutions x 9 widths, 1,000 networks each, the
largest mean wins. Departure: a configuration of which fewer than `least_share` fit is left out, for its mean is that of
a few lucky draws and its space hard to search.
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from recipes.tinynas.needs import Budget, Needs, needs
from recipes.tinynas.space import TinySpace
from zoo import atomic


@dataclasses.dataclass(frozen=True)
class Configuration:
    """One resolution and width, and the multiply-adds of the random networks that fit, ascending."""

    resolution: int
    width: float
    macs: tuple[int, ...]
    drawn: int

    @property
    def share(self) -> float:
        """Share of the random networks that fit."""
        return len(self.macs) / self.drawn

    def score(self, by: str) -> float:
        """Returns the mean of the multiply-adds, or what a fifth of the networks exceeds; 0 where none fits."""
        if not self.macs:
            return 0.0
        return float(np.mean(self.macs) if by == "mean" else np.percentile(self.macs, 80))

    def __str__(self) -> str:
        return f"resolution {self.resolution}, width {self.width:g}"


@dataclasses.dataclass(frozen=True)
class Explored:
    """All configurations, in the order of their score, the best first; those that hardly ever fit at the end.

    Raises:
        ValueError: no configuration fits often enough.
    """

    configurations: tuple[Configuration, ...]
    by: Literal["mean", "percentile"]
    least_share: float

    def __post_init__(self):
        ranked = sorted(
            self.configurations, key=lambda one: (one.share >= self.least_share, one.score(self.by)), reverse=True
        )
        object.__setattr__(self, "configurations", tuple(ranked))
        if ranked[0].share < self.least_share:
            nearest = max(ranked, key=lambda one: one.share)
            raise ValueError(
                f"of the random networks too few fit: at best a share of {nearest.share:.3f} at {nearest}, and "
                f"{self.least_share} was expected. Allow more memory, or lower resolutions or widths"
            )

    @property
    def chosen(self) -> Configuration:
        """The one to search."""
        return self.configurations[0]

    def save(self, folder: Path) -> None:
        """Writes space.json and the picture space.png."""
        rows = [
            {"resolution": c.resolution, "width": c.width, "fit": len(c.macs), "drawn": c.drawn,
             "mean_macs": round(c.score("mean")), "macs_80_percent": round(c.score("percentile"))}
            for c in self.configurations
        ]  # fmt: skip
        text = json.dumps({"ranked_by": self.by, "least_share": self.least_share, "configurations": rows}, indent=1)
        atomic.write_atomically(folder / "space.json", text + "\n")
        draw(self, folder / "space.png")


def explore(
    resolutions: Sequence[int],
    widths: Sequence[float],
    budget: Budget,
    *,
    channels: int,
    classes: int,
    space: TinySpace,
    networks: int = 1000,
    by: Literal["mean", "percentile"] = "mean",
    least_share: float = 0.01,
    seed: int = 0,
    report: Callable[[float, str], None] | None = None,
) -> Explored:
    """Draws networks of every configuration and ranks the configurations.

    Args:
        resolutions, widths: whose product is tried; each draws with a seed of its own.
        budget: what the networks must fit in.
        channels, classes: of the images.
        space: the space; its width is replaced.
        networks: to draw for each configuration.
        by: what ranks: the mean, or the percentile 80.
        least_share: of the draws that must fit.
        seed: of the draws.
        report: called with the share that is done, and a few words.
    """
    found = []
    pairs = [(resolution, width) for resolution in resolutions for width in widths]
    for number, (resolution, width) in enumerate(pairs):
        if report is not None:
            report(number / len(pairs), f"space, resolution {resolution}, width {width:g}")
        rng = np.random.default_rng([seed, resolution, round(1000 * width)])
        here = dataclasses.replace(space, width=width)
        drawn = [_needs(here, rng, resolution, channels, classes) for _ in range(networks)]
        macs = sorted(one.macs for one in drawn if budget.exceeded(one) is None)
        found.append(Configuration(resolution, width, tuple(macs), networks))
    return Explored(tuple(found), by, least_share)


def _needs(space: TinySpace, rng: np.random.Generator, resolution: int, channels: int, classes: int) -> Needs:
    return needs(space.body(space.random(rng)), (resolution, resolution, channels), classes)


def draw(explored: Explored, path: Path, curves: int = 8) -> None:
    """Draws the cumulative distributions of the multiply-adds into a PNG file, as the paper's figure 3 has them.

    The chosen space is the thick line; the others are the best ones and, spread evenly over the rest, some worse ones.
    """
    from matplotlib.figure import Figure

    shown = [c for c in explored.configurations if len(c.macs) > 1]
    if len(shown) > curves:
        rest = np.linspace(curves // 2, len(shown) - 1, curves - curves // 2).round().astype(int)
        shown = shown[: curves // 2] + [shown[number] for number in rest]
    figure = Figure(figsize=(7.2, 5), layout="constrained")
    axes: Any = figure.add_subplot()
    unit, name = (1e6, "million ") if max(c.macs[-1] for c in shown) > 1e5 else (1e3, "thousand ")
    for number, one in enumerate(shown):
        share = np.arange(1, len(one.macs) + 1) / len(one.macs)
        label = f"{one}: mean {one.score('mean') / unit:.3g}, {one.share:.0%} fit"
        chosen = one is explored.chosen
        axes.step(
            np.asarray(one.macs) / unit,
            share,
            where="post",
            label=label,
            color="black" if chosen else f"C{number}",
            linewidth=2.8 if chosen else 1.2,
            zorder=3 if chosen else 2,
        )
    axes.axhline(0.8, color="0.7", linewidth=0.8, linestyle="--")
    axes.set(xlabel=f"{name}multiply-adds", ylabel="share of the networks that fit", ylim=(0, 1.02))
    axes.set_xlim(left=0)
    axes.set_title("Search spaces by what their fitting networks compute (the chosen one in black)", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(fontsize=7.5, frameon=False, loc="outside lower center", ncols=2)
    with atomic.replacing(path) as stream:
        figure.savefig(stream, format="png", dpi=150)
