"""Markdown for the pages that programs write: blocks separated by blank lines, and tables."""

from collections.abc import Iterable, Sequence
from typing import Any


def join_blocks(*blocks: str) -> str:
    """Returns a page: headings, paragraphs and tables with a blank line between them; empty blocks are left out."""
    return "\n\n".join(block.strip("\n") for block in blocks if block.strip()) + "\n"


def make_table(head: Sequence[str], rows: Iterable[Sequence[Any]], *, numbers_from: int | None = None) -> str:
    """Returns a table with the columns of `head`; None is written as a dash.

    Args:
        numbers_from: index of the first right-aligned column; None aligns all to the left.

    Raises:
        ValueError: a row has another number of cells than the head.
    """
    left = len(head) if numbers_from is None else numbers_from
    lines = [_make_line(head), _make_line(["---"] * left + ["---:"] * (len(head) - left))]
    for row in rows:
        if len(row) != len(head):
            raise ValueError(f"the row {list(row)} has {len(row)} cells; expected {len(head)}: {', '.join(head)}")
        lines.append(_make_line(row))
    return "\n".join(lines)


def _make_line(cells: Iterable[Any]) -> str:
    """Returns one line of a table; in cells, pipes are escaped and line breaks become spaces."""
    texts = ("-" if cell is None else str(cell) for cell in cells)
    return f"| {' | '.join(' '.join(text.splitlines()).replace('|', chr(92) + '|') for text in texts)} |"
