"""Reads pasted text, such as a printed tuple or JSON, as plain values; nothing in it is executed."""

import ast
import json
from collections.abc import Sequence
from typing import Any, TypeVar

from zoo.genotype import INPUT_STATES, MOST_NODES, CellGraph, Genotype, GenotypeError

LONGEST_TEXT = 20_000  # characters; published genotypes have 600

BodyType = TypeVar("BodyType")


def get_body(genotype: Any, kind: type[BodyType], notation: str) -> BodyType:
    """Returns the body of a genotype, or a bare body itself; raises GenotypeError if it is of another kind."""
    body = genotype.body if isinstance(genotype, Genotype) else genotype
    if not isinstance(body, kind):
        raise GenotypeError(f"{notation} notation is for {kind.__name__}, not for {type(body).__name__}")
    return body


def check_pairs(graph: CellGraph, notation: str) -> None:
    """Raises GenotypeError unless each node of a cell adds two edges."""
    for number, node in enumerate(graph.nodes, start=INPUT_STATES):
        if len(node.edges) != 2 or node.combine != "add":
            raise GenotypeError(
                f"node {number} has {len(node.edges)} edges and combines by {node.combine!r}; {notation} notation is "
                "for two edges that are added"
            )


def read_text(text: str, what: str, expected: str, fields: Sequence[str] = ()) -> Any:
    """Returns the value of a text: JSON, or a Python literal, also with `range` and what NumPy and PyTorch print.

    Of an assignment it returns the value; of a call, whatever its name, a dictionary of the arguments.

    Args:
        text: the value and nothing else.
        what: what the text should be, for the error.
        expected: an example, for the error.
        fields: names of a call's positional arguments.

    Raises:
        GenotypeError: the text is something else, or too long.
    """
    if len(text) > LONGEST_TEXT:
        raise GenotypeError(f"{what}'s text has {len(text)} characters; expected {expected}")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        statements = ast.parse(text.strip()).body
        node = getattr(statements[0], "value", None) if len(statements) == 1 else None
        if isinstance(node, ast.Call) and not _is_value(node):
            if len(node.args) <= len(fields):
                given = dict(zip(fields, map(_read_value, node.args), strict=False))
                return given | {str(keyword.arg): _read_value(keyword.value) for keyword in node.keywords}
        elif isinstance(node, ast.expr):
            return _read_value(node)
    except (SyntaxError, TypeError, ValueError, RecursionError, MemoryError) as error:
        if isinstance(error, GenotypeError):
            raise GenotypeError(f"{what}'s text: {error}; expected {expected}") from error
        raise GenotypeError(f"{what}'s text is {text!r:.200} ({error}); expected {expected}") from error
    raise GenotypeError(f"{what}'s text is {text!r:.200}; expected {expected}")


def _is_value(node: ast.Call) -> bool:
    """Returns whether a call is the printed form of a range, a number or an array."""
    return ast.unparse(node.func).split(".")[0] in ("range", "array", "tensor", "np", "numpy", "torch")


def _read_value(node: ast.expr) -> Any:
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_read_value(item) for item in node.elts]
    if isinstance(node, ast.Dict) and all(node.keys):
        pairs = zip(node.keys, node.values, strict=True)
        return {ast.literal_eval(key): _read_value(value) for key, value in pairs if key is not None}
    if isinstance(node, ast.Call) and _is_value(node):
        values = [_read_value(argument) for argument in node.args]
        if ast.unparse(node.func) == "range":
            return _list_range(range(*values))
        if len(values) == 1:
            return values[0]
    try:
        return ast.literal_eval(node)
    except ValueError as error:
        raise GenotypeError(f"{ast.unparse(node)[:200]} is not a literal") from error


def _list_range(numbers: range) -> list[int]:
    if len(numbers) > MOST_NODES + INPUT_STATES:
        raise GenotypeError(f"{numbers} has {len(numbers)} states; a cell has at most {MOST_NODES} nodes")
    return list(numbers)
