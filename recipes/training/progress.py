"""Progress of long work: trial or epoch k of n, the best score, the time left; a live line on a terminal or a log."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

_LOG_SECONDS = 30.0  # between two lines of a log
_SMOOTHED_OVER = 10.0  # seconds in which the time left follows an estimate that has jumped
_WIDE = 100  # columns of a terminal that has room for a long bar


@dataclasses.dataclass(frozen=True)
class Status:
    """How far the work is; `total`, `best` and `seconds_left` are None if they are unknown."""

    done: int  # trials or epochs
    total: int | None
    best: float | None  # score
    seconds_left: float | None
    share: float = 0.0  # of the running trial or epoch that is done, 0 to 1
    text: str = ""  # what is being done
    note: str = ""  # an event that deserves a line of its own, such as the death of a worker

    @property
    def finished(self) -> bool:
        """Whether everything is done."""
        return self.total is not None and self.done >= self.total


Observe = Callable[[Status], None]
Report = Callable[[float, str], None]  # called with the share that is done, 0 to 1, and a few words


def report_part(report: Report, number: int, count: int, name: str) -> Report:
    """Returns a Report for part `number`, from 0, of `count` equal parts called `name`; `report` is for the whole."""
    which = f"{name} {number + 1}" if count > 1 else name
    return lambda share, text: report((number + share) / count, f"{which}, {text}")


@contextlib.contextmanager
def show_progress(
    title: str, score_name: str = "validation accuracy", console: Console | None = None, unit: str = "trial"
) -> Iterator[Observe]:
    """Yields a function that shows a Status; by default on stderr.

    `score_name` is the name of the best score, and `unit` that of what is counted.
    """
    console = console or Console(stderr=True)
    clock = _Clock()
    if not console.is_terminal:
        due = -math.inf

        def log(status: Status) -> None:
            nonlocal due
            left = clock.smooth(status.seconds_left)
            lines = [status.note] if status.note else []
            if time.monotonic() > due or (status.finished and due < math.inf):
                due = math.inf if status.finished else time.monotonic() + _LOG_SECONDS
                lines.append(_describe(status, unit, score_name, left, None))
            for line in lines:
                console.print(f"{title}: {line}", highlight=False, soft_wrap=True)

        yield log
        return
    bar_width = 30 if console.width >= _WIDE else 8
    room = console.width - len(title) - bar_width - 2
    state_column = TextColumn("{task.fields[state]}", style="cyan")
    columns = [TextColumn("{task.description}"), BarColumn(bar_width=bar_width), state_column]
    with Progress(*columns, console=console, transient=False) as progress:
        bar = progress.add_task(title, total=None, state="starting")

        def show(status: Status) -> None:
            if status.note:
                progress.console.print(f"{title}: {status.note}", highlight=False, soft_wrap=True)
            state = _describe(status, unit, score_name, clock.smooth(status.seconds_left), room)
            progress.update(bar, completed=status.done + status.share, total=status.total, state=state)

        yield show


@contextlib.contextmanager
def show_steps(title: str) -> Iterator[Callable[[str], None]]:
    """Yields a function that shows the current step on stderr: beside a spinner on a terminal, else a line each."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda text: console.print(f"{title}: {text}", highlight=False, soft_wrap=True)
        return
    with console.status(title) as status:
        yield lambda text: status.update(f"{title}: {text}")


class _Clock:
    """Smooths estimates of the time left: it counts down, and drifts towards an estimate that differs."""

    _left: float | None = None
    _at = 0.0

    def smooth(self, estimate: float | None) -> float | None:
        now = time.monotonic()
        if estimate is None or self._left is None:
            self._left = estimate
        else:
            passed = now - self._at
            counted = max(0.0, self._left - passed)
            self._left = counted + (1 - math.exp(-passed / _SMOOTHED_OVER)) * (estimate - counted)
        self._at = now
        return self._left


def _describe(status: Status, unit: str, score_name: str, left: float | None, room: int | None) -> str:
    """Returns the status in words, in at most `room` columns: what matters least is left out."""
    total = "" if status.total is None else f" of {status.total:,}"
    place, text = f"{status.done:,}{total} {unit}s done", status.text  # a count, while trials are numbered from 0
    if status.finished:
        place, left, text = f"{status.done:,} {unit}{'s' if status.done != 1 else ''} done", None, ""
    best = "" if status.best is None else f"best {score_name} {status.best:.4g}"
    # An estimate that has run out before the work ends says nothing.
    time_left = "" if left is None or left < 1 else f"about {duration(left)} left"
    brief_best, brief_time = best.replace(f"{score_name} ", ""), time_left.removeprefix("about ")
    for parts in ((best, time_left, text), (brief_best, time_left, text), (brief_best, brief_time), (brief_time,)):
        line = ", ".join(filter(None, (place, *parts)))
        if room is None or len(line) <= room:
            return line
    return place


def duration(seconds: float) -> str:
    """Returns a duration in at most two units, such as 2 h 5 min."""
    seconds = round(seconds)
    for size, unit, smaller_size, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if seconds >= size:
            rest = seconds % size // smaller_size
            return f"{seconds // size} {unit}" + (f" {rest} {smaller}" if rest and seconds < 10 * size else "")
    return f"{seconds} s"
