"""Genotype files: JSON, one architecture each; searched_genotypes/schema.json describes them."""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoo import atomic
from zoo.genotype import (
    INPUT_STATES,
    Block,
    Blocks,
    Body,
    CellGraph,
    Cells,
    Chain,
    Genotype,
    GenotypeError,
    Layer,
    Node,
    locating,
    near,
)  # fmt: skip

SCHEMA_VERSION = 1
LARGEST_FILE = 2**20  # bytes; published genotypes have 2 to 6 thousand
LINE_LENGTH = 120


def load(path: str | os.PathLike) -> Genotype:
    """Reads a genotype file.

    Raises:
        GenotypeError: the file does not hold a genotype; the text names the file and the place.
        OSError: the file cannot be read.
    """
    path = Path(path)
    with path.open("rb") as stream:
        data = stream.read(LARGEST_FILE + 1)
    if len(data) > LARGEST_FILE:
        raise GenotypeError(f"{path} has more than {LARGEST_FILE} bytes; a genotype file has a few thousand")
    try:
        text = data.decode("utf-8-sig")  # some editors start a file with a byte order mark
    except UnicodeDecodeError as error:
        raise GenotypeError(f"{path} is not a text file in UTF-8 ({error}); expected a genotype in JSON") from error
    with locating(path):
        return from_json(text)


def save(genotype: Genotype, path: str | os.PathLike) -> None:
    """Saves a genotype as a JSON file, which `zoo.load` and `zoo.build` read; writes it completely or not at all.

    Raises:
        OSError: no space or no permission; the text names the file and the remedy.
        GenotypeError: source, presets or published hold a value that JSON cannot express.
    """
    atomic.write_atomically(path, to_json(genotype))


def to_json(genotype: Genotype) -> str:
    """Returns the text of a genotype file.

    Raises:
        GenotypeError: source, presets or published hold a value that JSON cannot express.
    """
    try:
        return _lay_out(as_dict(genotype)) + "\n"
    except (TypeError, ValueError) as error:
        raise GenotypeError(
            f"genotype {genotype.name!r} cannot be written as JSON: {error}. In source, presets and published, "
            "use texts, finite numbers, true, false, lists and dictionaries; convert NumPy's numbers with float or int"
        ) from error


def as_dict(genotype: Genotype) -> dict[str, Any]:
    """Returns the content of a genotype file, as plain dictionaries, lists, strings and numbers."""
    record = {"schema_version": SCHEMA_VERSION, "name": genotype.name, "family": genotype.family}
    if genotype.represents_family:
        record["represents_family"] = True
    if genotype.notes:
        record["notes"] = genotype.notes
    record["source"] = dict(genotype.source)
    record |= body_as_dict(genotype.body)
    record["presets"] = {name: dict(preset) for name, preset in genotype.presets.items()}
    record["published"] = {name: dict(numbers) for name, numbers in genotype.published.items()}
    return record


def from_json(text: str) -> Genotype:
    """Returns the genotype described by `text`, the content of a genotype file.

    Raises:
        GenotypeError: malformed JSON, with its line, or an unexpected value.
    """
    try:
        record = json.loads(text, object_pairs_hook=_refuse_repeats, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise GenotypeError(
            f"malformed JSON in line {error.lineno}, column {error.colno}: {error.msg}. Correct it, or write the file "
            "again"
        ) from error
    except GenotypeError:
        raise
    except ValueError as error:
        raise GenotypeError(f"malformed JSON: {error}. Correct it, or write the file again") from error
    except RecursionError:
        raise GenotypeError("JSON nested too deeply; a genotype has six levels") from None
    return from_dict(record)


def from_dict(record: Any) -> Genotype:
    """Returns the genotype that `as_dict` would turn into `record`."""
    bodies = ("cells", "blocks", "chain")
    optional = ("represents_family", "notes", "source", "presets", "published", *bodies)
    _check_keys("a genotype", record, required=("schema_version", "name", "family"), optional=optional)
    if record["schema_version"] != SCHEMA_VERSION:
        raise GenotypeError(
            f"schema_version is {record['schema_version']!r}; this version of the zoo reads {SCHEMA_VERSION}. "
            "Update the package, or write the file with this version"
        )
    present = [name for name in bodies if name in record]
    if len(present) != 1:
        raise GenotypeError(f"a genotype has {present or 'none'} of {', '.join(bodies)}; expected exactly one of them")
    read = {"cells": _read_cells, "blocks": _read_blocks, "chain": _read_chain}[present[0]]
    fields = {name: record[name] for name in optional if name in record and name not in bodies}
    return Genotype(record["name"], record["family"], read(record[present[0]]), **fields)


def body_as_dict(body: Body) -> dict[str, Any]:
    """Returns the part of a genotype file that holds the architecture itself."""
    if isinstance(body, Cells):
        graphs = {"normal": body.normal, "reduce": body.reduce}
        return {"cells": {name: graph_as_dict(graph) for name, graph in graphs.items() if graph is not None}}
    if isinstance(body, Blocks):
        rows = [_row_as_dict(row) for row in body.rows]
        return {"blocks": {"stem_filters": body.stem_filters, "head_filters": body.head_filters, "rows": rows}}
    return {
        "chain": [{"op": layer.op, **({"skips": list(layer.skips)} if layer.skips else {})} for layer in body.layers]
    }


def graph_as_dict(graph: CellGraph) -> dict[str, Any]:
    """Returns a cell as plain dictionaries and lists."""
    nodes = []
    for node in graph.nodes:
        combine = {} if node.combine == "add" else {"combine": node.combine}
        nodes.append({"edges": [list(edge) for edge in node.edges], **combine})
    return {"nodes": nodes, "concat": list(graph.concat)}


def _row_as_dict(row: Block) -> dict[str, Any]:
    fields = {field.name: (getattr(row, field.name), field.default) for field in dataclasses.fields(row)}
    return {name: value for name, (value, default) in fields.items() if value != default}


def _read_cells(record: Any) -> Cells:
    _check_keys("cells", record, required=("normal",), optional=("reduce",))
    graphs = {}
    for name, graph in record.items():
        with locating(f"cell {name!r}"):
            graphs[name] = graph_from_dict(graph)
    return Cells(**graphs)


def graph_from_dict(record: Any) -> CellGraph:
    """Returns the cell that `graph_as_dict` would turn into `record`."""
    _check_keys("a cell", record, required=("nodes", "concat"))
    nodes = []
    for number, node in enumerate(_check_list("nodes", record["nodes"]), start=INPUT_STATES):
        with locating(f"node {number}"):
            _check_keys("a node", node, required=("edges",), optional=("combine",))
            nodes.append(Node(tuple(_check_list("edges", node["edges"])), node.get("combine", "add")))
    return CellGraph(tuple(nodes), tuple(_check_list("concat", record["concat"])))


def _read_blocks(record: Any) -> Blocks:
    _check_keys("blocks", record, required=("stem_filters", "rows"), optional=("head_filters",))
    rows, fields = [], [field.name for field in dataclasses.fields(Block)]
    for number, row in enumerate(_check_list("rows", record["rows"]), start=1):
        with locating(f"row {number} of blocks"):
            _check_keys("a block", row, required=fields[:3], optional=fields[3:])
            rows.append(Block(**row))
    return Blocks(tuple(rows), record["stem_filters"], record.get("head_filters"))


def _read_chain(record: Any) -> Chain:
    layers = []
    for number, row in enumerate(_check_list("chain", record), start=1):
        with locating(f"layer {number}"):
            _check_keys("a layer", row, required=("op",), optional=("skips",))
            layers.append(Layer(row["op"], tuple(_check_list("skips", row.get("skips", [])))))
    return Chain(tuple(layers))


def _refuse_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise GenotypeError(f"the key {repeated!r} occurs twice in one object; keep one of them")
    return record


def _refuse_constant(name: str) -> None:
    raise GenotypeError(f"{name} is not a number in JSON; expected a finite number, or leave the key out")


def _check_keys(what: str, record: Any, *, required: Sequence[str], optional: Sequence[str] = ()) -> None:
    if not isinstance(record, dict):
        raise GenotypeError(f"{what} is {record!r:.200}; expected an object with {', '.join(required)}")
    known = [*required, *optional]
    for name in record:
        if name not in known:
            raise GenotypeError(
                f"{what} has the unknown key {name!r:.200}{near(str(name), known)}; expected {', '.join(known)}"
            )
    for name in required:
        if name not in record:
            raise GenotypeError(f"{what} has no {name!r}; expected {', '.join(required)}")


def _check_list(what: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise GenotypeError(f"{what} is {value!r:.200}; expected a list")
    return value


def _lay_out(value: Any, indent: str = "") -> str:
    """Returns JSON that is easy to read: values that fit share a line, and lists of objects get a line per object."""
    line = json.dumps(value, ensure_ascii=False, allow_nan=False)
    fits = indent and len(indent) + len(line) <= LINE_LENGTH and not _holds_table(value)
    if fits or not isinstance(value, (dict, list)):
        return line
    deeper = indent + "  "
    parts = value.values() if isinstance(value, dict) else value
    items = [_lay_out(item, deeper) for item in parts]
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
    """Returns whether `value` contains a list of objects, such as nodes or blocks."""
    if isinstance(value, dict):
        return any(_holds_table(item) for item in value.values())
    return isinstance(value, list) and any(isinstance(item, dict) or _holds_table(item) for item in value)
