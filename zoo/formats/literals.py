"""Text that people paste, such as a printed tuple or JSON, as plain values; nothing in it is run."""

import ast
import json
from collections.abc import Sequence
from typing import Any, TypeVar

from zoo.genotype import INPUT_STATES, MOST_NODES, CellGraph, Genotype, GenotypeError

LONGEST_TEXT = 20_000  # characters; published genotypes have 600

Body = TypeVar("Body")


def get_body(genotype: Any, kind: type[Body], notation: str) -> Body:
    """Returns the body of a genotype, or what is given in its place; raises GenotypeError where it is another kind."""
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
    """Returns the value that `text` is: JSON, or a Python literal, also with `range` and what NumPy and PyTorch print.

    An assignment stands for its value, and a call, whatever its name, for the mapping of its arguments.

    Args:
        text: of the value alone.
        what: it should be, for the error.
        expected: an example, for the error.
        fields: the names of a call's arguments without a keyword.

    Raises:
        GenotypeError: it is something else, or too long.
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
                given = dict(zip(fields, map(_value, node.args), strict=False))
                return given | {str(keyword.arg): _value(keyword.value) for keyword in node.keywords}
        elif isinstance(node, ast.expr):
            return _value(node)
    except (SyntaxError, TypeError, ValueError, RecursionError, MemoryError) as error:
        if isinstance(error, GenotypeError):
            raise GenotypeError(f"{what}'s text: {error}; expected {expected}") from error
        raise GenotypeError(f"{what}'s text is {text!r:.200} ({error}); expected {expected}") from error
    raise GenotypeError(f"{what}'s text is {text!r:.200}; expected {expected}")


def _is_value(node: ast.Call) -> bool:
    """Whether a call is how a range, a number or an array is printed."""
    return ast.unparse(node.func).split(".")[0] in ("range", "array", "tensor", "np", "numpy", "torch")


def _value(node: ast.expr) -> Any:
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_value(item) for item in node.elts]
    if isinstance(node, ast.Dict) and all(node.keys):
        pairs = zip(node.keys, node.values, strict=True)
        return {ast.literal_eval(key): _value(value) for key, value in pairs if key is not None}
    if isinstance(node, ast.Call) and _is_value(node):
        values = [_value(argument) for argument in node.args]
        if ast.unparse(node.func) == "range":
            return _listed(range(*values))
        if len(values) == 1:
            return values[0]
    try:
        return ast.literal_eval(node)
    except ValueError as error:
        raise GenotypeError(f"{ast.unparse(node)[:200]} is no literal") from error


def _listed(numbers: range) -> list[int]:
    if len(numbers) > MOST_NODES + INPUT_STATES:
        raise GenotypeError(f"{numbers} has {len(numbers)} states; a cell has at most {MOST_NODES} nodes")
    return list(numbers)
