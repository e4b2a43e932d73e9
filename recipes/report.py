r"""Writes the card of one or more searches: best score so far, compared with random search, cells, cost, settings.

    python -m recipes.report runs/amoebanet                      # rewrites its card, in runs/amoebanet/card
    python -m recipes.report runs/amoebanet --html               # also card.html: every trial and its cell in a browser
    python -m recipes.report runs/amoebanet --watch              # rewrites card.html while the search runs
    python -m recipes.report runs/amoebanet runs/random          # compared with the random search in the second folder
    python -m recipes.report runs/amoebanet-0 runs/amoebanet-1 runs/amoebanet-2 \
        --baseline=runs/random-0,runs/random-1,runs/random-2 --folder=runs/amoebanet-card    # one card of three seeds

Each search writes its own card when it ends. This program makes one card of several searches, adds random searches to
compare with, or makes the card of a search that is still running or was stopped. It only reads the searches' files.

card.html is a single file that needs no network: open it and click on a trial. With --watch the open page reloads
itself and keeps your choices; the program ends when the searches do, or by Ctrl-C.
"""

import dataclasses
import time
from pathlib import Path

from recipes import _main
from recipes.training import check_options


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the report."""

    # folders of searches by one recipe with one algorithm, each with its own seed; random searches among them become
    # the baseline
    folders: tuple[Path, ...] = dataclasses.field(default=(), metadata={"positional": True})
    baseline: tuple[Path, ...] = ()  # folders of random searches; without any, "baseline" inside each search's folder
    folder: Path | None = None  # for the card; none takes "card" inside the folder of a single search, else runs/report
    html: bool = False  # also write card.html for a browser: curves, trade-offs, lineage and all trials
    watch: bool = False  # write only card.html, again after each trial, until the searches end
    every: float = 5.0  # with --watch, seconds between two checks

    def __post_init__(self):
        check_options(self, "every", "seconds from 0.1 to 3600", lambda value: 0.1 <= value <= 3600)


PRESETS = {"laptop": Config()}


def report(config: Config) -> Path:
    """Writes the card, prints its path and returns it."""
    from recipes.cards.card import choose_target, read_searches, write_card
    from recipes.cards.web_page import write_web_page

    if not config.folders:
        raise ValueError("no folders are given; expected folders of searches, such as runs/amoebanet")
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
    """Rewrites the web page whenever a search makes progress, until all end or Ctrl-C; returns its path."""
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
                    print(f"{page}: open it in a browser; press Ctrl-C to stop", flush=True)
                write_web_page(searches, random, page, config.every)
                seen, took = stamps, time.monotonic() - begun
            elif seen is None:
                print("waiting for the first trial", end="\r", flush=True)
            time.sleep(max(config.every, 10 * took))  # a page of many trials must not slow the search down
    except KeyboardInterrupt:
        if page is None:
            raise
    write_web_page(*read_searches(config.folders, config.baseline), page)  # the final page no longer reloads
    return page


def _list_stamps(config: Config) -> dict[Path, tuple[int, int]]:
    """Returns the time and size of each file that shows the searches' progress."""
    folders = [*config.folders, *config.baseline, *(folder / "baseline" for folder in config.folders)]
    names = ("journal.jsonl", "genotype.json", "supernet.json", "seeds/*.json")
    paths = [path for folder in folders for name in names for path in folder.glob(name)]
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in paths}


if __name__ == "__main__":
    _main.run(report, PRESETS)
