"""What each script of this folder begins with: its command line, and a line about the machine."""

import argparse
import datetime
import importlib.metadata
import os
import platform
from collections.abc import Callable, Iterable


def make_parser(description: str | None, smoke: str) -> argparse.ArgumentParser:
    """Returns a parser with `--smoke`, the size that the tests run; `smoke` is its help."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help=smoke)
    return parser


def one_of(known: Iterable[str]) -> Callable[[str], str]:
    """Returns a `type` for words that must be `known`; unlike `choices` it lets argparse have none of them."""
    names = tuple(known)

    def check(word: str) -> str:
        if word not in names:
            raise argparse.ArgumentTypeError(f"{word!r} is unknown; expected some of {', '.join(names)}")
        return word

    return check


def describe_machine(*packages: str) -> str:
    """Returns processor, cores, load, package versions and date."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    processor = platform.processor() or platform.machine()
    load = f"load {os.getloadavg()[0]:.1f}"
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    return ", ".join([processor, f"{os.cpu_count()} cores", load, *versions, date])
