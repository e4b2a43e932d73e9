"""What a running search shows: trial k of n, the best score, how long is left; one line on a terminal, few in a log."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

_LOG_SECONDS = 30.0  # between two lines where there is no terminal


@dataclasses.dataclass(frozen=True)
class Status:
    """Where a search stands; `total`, `best` and `seconds_left` are None where nobody knows them."""

    done: int
    total: int | None
    best: float | None
    seconds_left: float | None
    share: float  # of the running trial
    text: str


Observe = Callable[[Status], None]


@contextlib.contextmanager
def shown(title: str, score_name: str, console: Console | None = None) -> Iterator[Callable[[Status], None]]:
    """Gives a function that shows a search's Status, for `recipes.engine.tuner.Tuner(observe=...)`.

    Args:
        title: what is searched.
        score_name: what the best score is called.
        console: where to; stderr unless given.
    """
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield _lines(title, score_name, console)
        return
    columns = [
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[state]}", style="cyan"),
    ]
    with Progress(*columns, console=console, transient=False) as progress:
        bar = progress.add_task(title, total=None, state="starting")

        def show(status: Status) -> None:
            progress.update(
                bar, completed=status.done + status.share, total=status.total, state=_text(status, score_name)
            )

        yield show


def _lines(title: str, score_name: str, console: Console) -> Callable[[Status], None]:
    last = -float("inf")

    def show(status: Status) -> None:
        nonlocal last
        finished = status.total is not None and status.done >= status.total
        if finished or time.monotonic() - last > _LOG_SECONDS:
            last = time.monotonic() if not finished else float("inf")
            console.print(f"{title}: {_text(status, score_name)}", highlight=False, soft_wrap=True)

    return show


def _text(status: Status, score_name: str) -> str:
    total = "" if status.total is None else f" of {status.total:,}"
    running = status.total is None or status.done < status.total
    parts = [f"trial {status.done + 1:,}{total}" if running else f"{status.done:,} trials done"]
    if status.best is not None:
        parts.append(f"best {score_name} {status.best:.4g}")
    if status.seconds_left is not None and running:
        parts.append(f"about {duration(status.seconds_left)} left")
    if running and status.text:
        parts.append(status.text)
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """Returns a length of time in at most two units, such as 2 h 5 min."""
    seconds = round(seconds)
    for size, unit, smaller_size, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if seconds >= size:
            rest = seconds % size // smaller_size
            return f"{seconds // size} {unit}" + (f" {rest} {smaller}" if rest and seconds < 10 * size else "")
    return f"{seconds} s"
