"""What a running training shows: epoch k of n, accuracy, how long is left; one line on a terminal, few in a log."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from recipes.training.progress import duration

_LOG_SECONDS = 30.0  # between two lines where there is no terminal


class Moment(NamedTuple):
    """Where a training is.

    Attributes:
        done: epochs, with the share of the current one.
        epochs: in all.
        accuracy: the best of the validation images so far, 0 to 1; None before the first.
        seconds_left: None while nothing can be said.
        text: what is being done, where it is not an ordinary step.
    """

    done: float
    epochs: int
    accuracy: float | None = None
    seconds_left: float | None = None
    text: str = ""

    def __str__(self) -> str:
        running = self.done < self.epochs
        parts = [f"epoch {int(self.done) + 1} of {self.epochs}" if running else f"{self.epochs} epochs done"]
        if self.accuracy is not None:
            parts.append(f"best validation accuracy {self.accuracy:.4f}")
        if self.seconds_left is not None and running:
            parts.append(f"about {duration(self.seconds_left)} left")
        if self.text and running:
            parts.append(self.text)
        return ", ".join(parts)


@contextlib.contextmanager
def shown(title: str, console: Console | None = None) -> Iterator[Callable[[Moment], None]]:
    """Gives a function that shows a Moment on the console, stderr unless given."""
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield _lines(title, console)
        return
    columns = [
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[state]}", style="cyan"),
    ]
    with Progress(*columns, console=console) as bars:
        bar = bars.add_task(title, total=None, state="starting")
        yield lambda moment: bars.update(bar, completed=moment.done, total=moment.epochs, state=str(moment))


def _lines(title: str, console: Console) -> Callable[[Moment], None]:
    last = -float("inf")

    def show(moment: Moment) -> None:
        nonlocal last
        finished = moment.done >= moment.epochs
        if finished or time.monotonic() - last > _LOG_SECONDS:
            last = time.monotonic() if not finished else float("inf")
            console.print(f"{title}: {moment}", highlight=False, soft_wrap=True)

    return show
