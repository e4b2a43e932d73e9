r"""The reproduction card of searches: best score so far beside random search, cells, cost, settings, status.

    python -m recipes.report runs/amoebanet                      # makes its card anew, in runs/amoebanet/card
    python -m recipes.report runs/amoebanet --html               # and card.html: every trial and its cell, in a browser
    python -m recipes.report runs/amoebanet --watch              # rewrites card.html while the search runs
    python -m recipes.report runs/amoebanet runs/random          # beside the random search of the second folder
    python -m recipes.report runs/amoebanet-0 runs/amoebanet-1 runs/amoebanet-2 \
        --baseline=runs/random-0,runs/random-1,runs/random-2 --folder=runs/amoebanet-card    # one card of three seeds

Each search writes its own card when it ends. This program joins several, adds random searches to compare with, or makes
the card of one that is still running or was stopped. It reads what searches have left and changes nothing of it.

card.html is one file that needs no network: open it, click on a trial. With --watch the open page reloads itself, and
keeps what you chose; the program ends when the searches have, or by Ctrl-C.
"""

import dataclasses
import time
from pathlib import Path

from recipes import _main
from recipes.training import check_options


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the report."""

    # of searches by one recipe with one algorithm, each with a seed of its own; random ones beside are their baseline
    folders: tuple[Path, ...] = dataclasses.field(default=(), metadata={"positional": True})
    baseline: tuple[Path, ...] = ()  # folders of random searches; without, the folder "baseline" in each search's own
    folder: Path | None = None  # of the card; none takes "card" in the only search's own, or runs/report
    html: bool = False  # write card.html too: curves, trade-offs, lineage and all trials, for a browser
    watch: bool = False  # write only card.html, again whenever a trial has ended, until the searches have
    every: float = 5.0  # seconds between two looks of --watch

    def __post_init__(self):
        check_options(self, "every", "seconds from 0.1 to 3600", lambda value: 0.1 <= value <= 3600)


PRESETS = {"laptop": Config()}


def report(config: Config) -> Path:
    """Writes the card, prints where it is, and returns the path of its page."""
    from recipes.cards.card import choose_target, read_searches, write_card
    from recipes.cards.web_page import write_web_page

    if not config.folders:
        raise ValueError("no folders are given; expected those that searches wrote into, such as runs/amoebanet")
    if config.watch:
        return _watch(config)
    page = write_card(config.folders, config.baseline, config.folder)
    print(page)
    if config.html:
        searches, random = read_searches(config.folders, config.baseline)
        page = (config.folder or choose_target(searches)) / "card.html"
        write_web_page(searches, random, page)
        print(page)
    return page


def _watch(config: Config) -> Path:
    """Writes the web page whenever the searches have got further, until they have ended or Ctrl-C; returns its path."""
    from recipes.cards.card import choose_target, read_searches
    from recipes.cards.web_page import write_web_page

    page: Path | None = None
    seen, running, took = None, True, 0.0
    try:
        while page is None or running or _list_stamps(config) != seen:  # a search by seeds continues with its baseline
            stamps = _list_stamps(config)
            if stamps != seen and all((folder / "journal.jsonl").is_file() for folder in config.folders):
                begun = time.monotonic()
                searches, random = read_searches(config.folders, config.baseline)
                running = not all(search.finished for search in [*searches, *random])
                if page is None:
                    page = (config.folder or choose_target(searches)) / "card.html"
                    print(f"{page}: open it in a browser; Ctrl-C ends the watch", flush=True)
                write_web_page(searches, random, page, config.every)
                seen, took = stamps, time.monotonic() - begun
            elif seen is None:
                print("waiting for the first trial", end="\r", flush=True)
            time.sleep(max(config.every, 10 * took))  # a page of many trials must not take the search's processor
    except KeyboardInterrupt:
        if page is None:
            raise
    write_web_page(*read_searches(config.folders, config.baseline), page)  # it reloads itself no more
    return page


def _list_stamps(config: Config) -> dict[Path, tuple[int, int]]:
    """Returns the time and size of each file that tells how far the searches are."""
    folders = [*config.folders, *config.baseline, *(folder / "baseline" for folder in config.folders)]
    names = ("journal.jsonl", "genotype.json", "supernet.json", "seeds/*.json")
    paths = [path for folder in folders for name in names for path in folder.glob(name)]
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in paths}


if __name__ == "__main__":
    _main.run(report, PRESETS)
