r"""The reproduction card of searches: best score so far beside random search, cells, cost, settings, status.

    python -m recipes.report runs/amoebanet                      # makes its card anew, in runs/amoebanet/card
    python -m recipes.report runs/amoebanet runs/random          # beside the random search of the second folder
    python -m recipes.report runs/amoebanet-0 runs/amoebanet-1 runs/amoebanet-2 \
        --baseline=runs/random-0,runs/random-1,runs/random-2 --folder=runs/amoebanet-card    # one card of three seeds

Each search writes its own card when it ends. This program joins several, adds random searches to compare with, or makes
the card of one that is still running or was stopped. It reads what searches have left and changes nothing of it.
"""

import dataclasses
from pathlib import Path

from recipes import _main


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the report."""

    # of searches by one recipe with one algorithm, each with a seed of its own; random ones beside are their baseline
    folders: tuple[Path, ...] = dataclasses.field(default=(), metadata={"positional": True})
    baseline: tuple[Path, ...] = ()  # folders of random searches; without, the folder "baseline" in each search's own
    folder: Path | None = None  # of the card; none takes "card" in the only search's own, or runs/report


PRESETS = {"laptop": Config()}


def report(config: Config) -> Path:
    """Writes the card, prints where it is, and returns the path of its page."""
    from recipes.cards.card import write_card

    if not config.folders:
        raise ValueError("no folders are given; expected those that searches wrote into, such as runs/amoebanet")
    page = write_card(config.folders, config.baseline, config.folder)
    print(page)
    return page


if __name__ == "__main__":
    _main.run(report, PRESETS)
