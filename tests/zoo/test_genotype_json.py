"""Genotype files: round trips, every complaint of the reader, and writing that leaves nothing half done."""

import dataclasses
import errno
import json
import os
import random
import re

import pytest
from hypothesis import given

from tests.genotype_strategies import damaged, examples, genotypes
from zoo import genotype_json
from zoo.genotype import (
    BLOCK_OPS,
    COMBINERS,
    MOST_NODES,
    OP_NAMES,
    SKIPS,
    Block,
    Blocks,
    CellGraph,
    Cells,
    Chain,
    Genotype,
    GenotypeError,
    Layer,
    Node,
)  # fmt: skip

GENOTYPE = Genotype("mine", "darts", Cells(CellGraph([Node([("conv_1x1", 0)])], [2])), presets={"small": {"cells": 3}})


def changed(**fields) -> str:
    """The text of a good file with some of its keys replaced; None leaves one out."""
    record = genotype_json.as_dict(GENOTYPE) | fields
    return json.dumps({name: value for name, value in record.items() if value is not None})


def cell(**fields) -> dict:
    return {"normal": {"nodes": [{"edges": [["conv_1x1", 0]]}], "concat": [2]} | fields}


@examples(150)
@given(genotypes())
def test_writing_and_reading_gives_the_genotype_back(genotype):
    text = genotype_json.to_json(genotype)
    assert genotype_json.from_json(text) == genotype
    assert genotype_json.to_json(genotype_json.from_json(text)) == text


def test_a_cell_is_written_as_a_table_of_one_node_a_line():
    nodes = [Node([("sep_conv_3x3", 0), ("skip_connect", 1)]), Node([("max_pool_3x3", 2)], "concat")]
    text = genotype_json.to_json(Genotype("mine", "darts", Cells(CellGraph(nodes, [2, 3]))))
    assert text == (
        "{\n"
        '  "schema_version": 1,\n'
        '  "name": "mine",\n'
        '  "family": "darts",\n'
        '  "source": {},\n'
        '  "cells": {\n'
        '    "normal": {\n'
        '      "nodes": [\n'
        '        {"edges": [["sep_conv_3x3", 0], ["skip_connect", 1]]},\n'
        '        {"edges": [["max_pool_3x3", 2]], "combine": "concat"}\n'
        "      ],\n"
        '      "concat": [2, 3]\n'
        "    }\n"
        "  },\n"
        '  "presets": {},\n'
        '  "published": {}\n'
        "}\n"
    )


def test_defaults_of_a_block_and_a_layer_are_not_written():
    assert genotype_json.body_as_dict(Blocks([Block("conv", 3, 8)], 16)) == {
        "blocks": {
            "stem_filters": 16,
            "head_filters": None,
            "rows": [{"op": "conv", "kernel_size": 3, "filters": 8}],
        }
    }
    assert genotype_json.body_as_dict(Chain([Layer("conv_3x3")])) == {"chain": [{"op": "conv_3x3"}]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"name": "mine",\n "family" "darts"}', r"malformed JSON in line 2, column 11.*Correct it"),
        ("", r"malformed JSON in line 1"),
        ("[" * 100_000, r"nested too deeply"),
        ('{"presets": ' + "9" * 5000 + "}", r"malformed JSON"),
        ('{"schema_version": NaN}', r"NaN is not a number in JSON; expected a finite number"),
        ('{"name": "a", "name": "b"}', r"the key 'name' occurs twice"),
        ("3", r"a genotype is 3; expected an object with schema_version, name, family"),
        (changed(schema_version=2), r"schema_version is 2; this version of the zoo reads 1. Update the package"),
        (changed(name=None), r"a genotype has no 'name'; expected schema_version, name, family"),
        (changed(name=3), r"name is 3; expected up to 100"),
        (changed(preset={}), r"a genotype has the unknown key 'preset' \(did you mean 'presets'\?\)"),
        (changed(cells=None), r"a genotype has none of cells, blocks, chain; expected exactly one"),
        (changed(chain=[]), r"a genotype has \['cells', 'chain'\] of cells, blocks, chain; expected exactly one"),
        (changed(presets=[]), r"presets is \[\]; expected an object"),
        (changed(presets={"small": 3}), r"presets: 'small' is 3"),
        (changed(notes=3), r"notes is 3"),
        (changed(represents_family="yes"), r"represents_family 'yes'; expected a text, and true or false"),
        (changed(cells=[]), r"cells is \[\]; expected an object with normal"),
        (changed(cells={"reduce": cell()["normal"]}), r"cells has no 'normal'"),
        (changed(cells=cell(concat=None)), r"cell 'normal': concat is None; expected a list"),
        (changed(cells=cell(concat=[5])), r"cell 'normal': concat names state 5; this cell has the states 0 to 2"),
        (changed(cells=cell(nodes={})), r"cell 'normal': nodes is {}; expected a list"),
        (changed(cells=cell(nodes=[[]])), r"cell 'normal': node 2: a node is \[\]; expected an object with edges"),
        (
            changed(cells=cell(nodes=[{"edges": [["conv_1x1"]]}])),
            r"node 2: an edge is \['conv_1x1'\]; expected \[op, st",
        ),
        (changed(cells=cell(nodes=[{"edges": [["cnv_1x1", 0]]}])), r"node 2: op 'cnv_1x1'.*did you mean 'conv_1x1'"),
        (changed(cells=cell(nodes=[{"edges": [["conv_1x1", 2]]}])), r"node 2 reads state 2 \(conv_1x1\), which"),
        (changed(cells=cell(nodes=[{"edges": "conv_1x1"}])), r"node 2: edges is 'conv_1x1'; expected a list"),
        (changed(cells=None, blocks={"rows": []}), r"blocks has no 'stem_filters'"),
        (changed(cells=None, blocks={"rows": [{}], "stem_filters": 8}), r"row 1 of blocks: a block has no 'op'"),
        (
            changed(cells=None, blocks={"stem_filters": 8, "rows": [{"op": "conv", "kernel_size": 3, "filter": 8}]}),
            r"row 1 of blocks: a block has the unknown key 'filter' \(did you mean 'filters'\?\)",
        ),
        (changed(cells=None, chain=[{"op": "conv_3x3"}, {}]), r"layer 2: a layer has no 'op'"),
        (changed(cells=None, chain=[{"op": "conv_3x3", "skips": 0}]), r"layer 1: skips is 0; expected a list"),
        (changed(cells=None, chain=[{"op": "conv_3x3", "skips": [0]}]), r"layer 1 has a skip from state 0"),
    ],
)
def test_a_bad_file_is_refused_with_its_path_and_place(text, message, tmp_path):
    path = tmp_path / "bad.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(GenotypeError, match="(?s)bad.json: .*" + message):
        genotype_json.load(path)


@pytest.mark.parametrize("name", ["darts", "mnasnet_a1", "enas_macro"])
def test_a_damaged_file_is_read_or_refused_but_never_fails_otherwise(name, project):
    record = json.loads((project / "searched_genotypes" / f"{name}.json").read_text(encoding="utf-8"))
    choose, refusals = random.Random(0), 0
    for _ in range(500):
        try:
            genotype = genotype_json.from_dict(damaged(record, choose))
        except GenotypeError:
            refusals += 1
        else:
            assert genotype_json.from_json(genotype_json.to_json(genotype)) == genotype
    assert 100 < refusals < 500


def test_a_file_that_is_too_big_is_not_read_to_its_end(tmp_path):
    path = tmp_path / "big.json"
    with path.open("wb") as stream:
        stream.truncate(2**40)  # sparse: a terabyte without a block on the disk
    with pytest.raises(
        GenotypeError, match=r"big.json has more than 1048576 bytes; a genotype file has a few thousand"
    ):
        genotype_json.load(path)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "picture.json"
    path.write_bytes(b"\x89PNG\r\n\xff")
    with pytest.raises(GenotypeError, match=r"picture.json is not a text file in UTF-8"):
        genotype_json.load(path)


def test_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.json"):
        genotype_json.load(tmp_path / "nothing.json")


def test_a_byte_order_mark_does_not_matter(tmp_path):
    path = tmp_path / "windows.json"
    path.write_bytes(b"\xef\xbb\xbf" + genotype_json.to_json(GENOTYPE).replace("\n", "\r\n").encode())
    assert genotype_json.load(path) == GENOTYPE


def test_save_makes_the_folder_and_load_reads_it(tmp_path):
    genotype_json.save(GENOTYPE, tmp_path / "new" / "mine.json")
    assert genotype_json.load(str(tmp_path / "new" / "mine.json")) == GENOTYPE


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, b"bytes"])
def test_a_value_without_a_form_in_json_is_refused_before_a_file_is_touched(value, tmp_path):
    genotype = dataclasses.replace(GENOTYPE, source={"score": value})
    with pytest.raises(
        GenotypeError, match=r"'mine' cannot be written as JSON: .*In source, presets and published, use"
    ):
        genotype_json.save(genotype, tmp_path / "mine.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(call, tmp_path, monkeypatch):
    path = tmp_path / "mine.json"
    genotype_json.save(GENOTYPE, path)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    message = rf"cannot write {re.escape(str(path))}: No space left on device. Free some space or choose a folder"
    with pytest.raises(OSError, match=message) as caught:
        genotype_json.save(dataclasses.replace(GENOTYPE, notes="new"), path)
    assert caught.value.errno == errno.ENOSPC
    assert genotype_json.load(path) == GENOTYPE
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_a_real_full_device_leaves_nothing(tmp_path, monkeypatch):
    from zoo import atomic

    real = atomic.tempfile.NamedTemporaryFile

    def on_full_device(*args, **options):
        stream = real(*args, **options)
        os.dup2(device := os.open("/dev/full", os.O_WRONLY), stream.fileno())
        os.close(device)
        return stream

    monkeypatch.setattr(atomic.tempfile, "NamedTemporaryFile", on_full_device)
    with pytest.raises(OSError, match="No space left on device"):
        genotype_json.save(GENOTYPE, tmp_path / "mine.json")
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_that_cannot_be_written_is_named_in_the_error_where_the_path_is_relative(tmp_path, monkeypatch):
    def refuse(*args, **options):  # as tempfile does, by the whole path
        raise OSError(errno.EROFS, "Read-only file system", str(tmp_path / ".mine.json.part"))

    from zoo import atomic

    monkeypatch.setattr(atomic.tempfile, "NamedTemporaryFile", refuse)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match=r"cannot write mine\.json: Read-only file system.*choose a folder"):
        genotype_json.save(GENOTYPE, "mine.json")


def test_a_folder_that_is_a_file_is_named_in_the_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write .*mine\.json: .*choose a folder that you may write to"):
        genotype_json.save(GENOTYPE, tmp_path / "file" / "mine.json")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_named_in_the_error(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match=r"cannot write .*choose a folder that you may write to"):
        genotype_json.save(GENOTYPE, tmp_path / "mine.json")


@pytest.fixture(scope="module")
def schema(project):
    return json.loads((project / "searched_genotypes" / "schema.json").read_text(encoding="utf-8"))


def test_schema_and_code_name_the_same_values(schema):
    kinds = schema["$defs"]
    assert kinds["op"]["enum"] == sorted(OP_NAMES)
    assert kinds["node"]["properties"]["combine"]["enum"] == sorted(COMBINERS)
    assert kinds["block"]["properties"]["op"]["enum"] == sorted(BLOCK_OPS)
    assert kinds["block"]["properties"]["skip"]["enum"] == sorted(SKIPS)
    assert schema["properties"]["schema_version"]["const"] == genotype_json.SCHEMA_VERSION
    assert kinds["cell"]["properties"]["nodes"]["maxItems"] == MOST_NODES
    assert schema["properties"]["chain"]["maxItems"] == MOST_NODES


@pytest.mark.parametrize(
    ("kind", "definition"), [(CellGraph, "cell"), (Node, "node"), (Block, "block"), (Layer, "layer")]
)
def test_schema_and_code_have_the_same_keys_and_defaults(kind, definition, schema):
    fields = dataclasses.fields(kind)
    described = schema["$defs"][definition]
    assert list(described["properties"]) == [field.name for field in fields]
    assert described["required"] == [field.name for field in fields if field.default is dataclasses.MISSING]
    for field in fields:
        if field.default is not dataclasses.MISSING:
            default = described["properties"][field.name]["default"]
            assert default == (list(field.default) if isinstance(field.default, tuple) else field.default)


@pytest.mark.parametrize("key", ["schema_version", "name", "family"])
def test_what_the_schema_requires_the_reader_requires(key, schema):
    assert key in schema["required"]
    with pytest.raises(GenotypeError, match=f"has no '{key}'"):
        genotype_json.from_json(changed(**{key: None}))


def test_schema_and_reader_know_the_same_keys_of_a_file(schema):
    assert set(schema["properties"]) == {"schema_version", *(f.name for f in dataclasses.fields(Genotype)), "cells"} - {
        "body"
    } | {"blocks", "chain"}


@pytest.mark.parametrize("key", ["name", "family"])
@pytest.mark.parametrize("value", ["a", "a1", "a_b", "a-b", "A", "", "-a", "a" * 150, "ä", "1a"])
def test_schema_and_reader_agree_about_a_name(key, value, schema):
    allowed = re.search(schema["properties"][key]["pattern"], value) is not None
    if allowed:
        genotype_json.from_json(changed(**{key: value}))
    else:
        with pytest.raises(GenotypeError, match=f"{key} is"):
            genotype_json.from_json(changed(**{key: value}))
