"""The checks of genotype.py: each raises GenotypeError with the value, what was expected, and the remedy."""

import difflib
from collections.abc import Iterable
from typing import Any, TypeGuard


class GenotypeError(ValueError):
    """A genotype that cannot be; the text gives the value, what was expected, and the remedy."""


def near(name: str, names: Iterable[str]) -> str:
    """Returns " (did you mean ...?)" where one of `names` is like `name`, else nothing."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def check_choice(what: str, value: Any, choices: Iterable[str]) -> None:
    """Raises GenotypeError, with a near name, where `value` is none of `choices`."""
    if value not in (known := sorted(choices)):
        raise GenotypeError(
            f"{what} {value!r:.200} is not known{near(str(value)[:200], known)}; expected one of {', '.join(known)}"
        )


def check_whole(what: str, value: Any, least: int = 1) -> None:
    """Raises GenotypeError where `value` is not a whole number from `least`."""
    if not is_whole(value) or value < least:
        raise GenotypeError(f"{what} is {value!r:.200}; expected a whole number from {least}")


def is_whole(value: Any) -> TypeGuard[int]:
    """Returns whether `value` is an int; True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def tuple_of(what: str, values: Any, item: str, most: int | None = None) -> tuple[Any, ...]:
    """Returns `values` as a tuple; raises GenotypeError where they are no sequence, none, or more than `most`."""
    if not isinstance(values, Iterable) or isinstance(values, str):
        raise GenotypeError(f"{what} is {values!r:.200}; expected a list with {item} in it")
    values = tuple(values)
    if not values or (most is not None and len(values) > most):
        limit = "at least one" if most is None else f"1 to {most}"
        raise GenotypeError(f"{what} has {len(values)} entries; expected {limit}, each {item}")
    return values
