"""JSON that people read: what fits on a line stays on one, and a list of objects is a table. Standard library only."""

import json
from typing import Any

LINE_LENGTH = 120


def laid_out(value: Any, indent: str = "") -> str:
    """Returns `value` as JSON, without a line feed at its end.

    Raises:
        TypeError, ValueError: there is something in it that JSON has no form for.
    """
    line = json.dumps(value, ensure_ascii=False, allow_nan=False)
    fits = indent and len(indent) + len(line) <= LINE_LENGTH and not _holds_table(value)
    if fits or not isinstance(value, (dict, list)):
        return line
    deeper = indent + "  "
    parts = value.values() if isinstance(value, dict) else value
    items = [laid_out(item, deeper) for item in parts]
    if isinstance(value, dict):
        names = [json.dumps(str(name), ensure_ascii=False) for name in value]
        items = [f"{name}: {item}" for name, item in zip(names, items, strict=True)]
    lines, table = [""], not indent or all(isinstance(part, dict) for part in parts)
    for item in items:
        if not table and len(deeper) + len(lines[-1]) + len(item) + 2 <= LINE_LENGTH:
            lines[-1] += f", {item}" if lines[-1] else item
        else:
            lines.append(item)
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    return f"{opening}\n" + ",\n".join(deeper + line for line in lines if line) + f"\n{indent}{closing}"


def _holds_table(value: Any) -> bool:
    """Returns whether there is a list of objects in it, such as nodes or blocks: they get a line each."""
    if isinstance(value, dict):
        return any(_holds_table(item) for item in value.values())
    return isinstance(value, list) and any(isinstance(item, dict) or _holds_table(item) for item in value)
