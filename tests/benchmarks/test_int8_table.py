"""`python -m benchmarks.int8_table`: which networks, what a row holds, going on after a stop, the document."""

import dataclasses
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

import zoo
from benchmarks import int8_table
from zoo.deploy import measure

DOCUMENT = "# Title\n\n<!-- deploy-table:begin -->\nold\n<!-- deploy-table:end -->\nend\n"
FILE = {"file": "x.tflite", "size": 123_456, "arena": 50_400, "planned": 50_100}
ROW = {"params": 73_122, "macs": 2_416_544, "n": 2000, "training": 9000, "float": 0.861}


@pytest.fixture
def measured(monkeypatch) -> list[tuple[str, int]]:
    """Stands in for hours of work; lists what was to be measured."""
    calls = []

    def measure_row(small: Any, seed: int, *rest: Any) -> dict[str, Any]:
        calls.append((small.name, seed))
        return {**ROW, "ptq": {**FILE, "accuracy": 0.8595 + 0.01 * seed}, "qat": {**FILE, "accuracy": 0.8675}}

    monkeypatch.setattr(int8_table, "measure_row", measure_row)
    monkeypatch.setattr(int8_table, "measure_latencies", lambda file: (1.234, 5.678))
    return calls


def test_every_family_has_a_row():
    families = Path(str(importlib.util.find_spec("zoo.families").submodule_search_locations[0])).glob("[a-z]*.py")
    assert {path.stem for path in families} == {zoo.load(small.name).family for small in int8_table.NETWORKS.values()}


def test_table_stands_between_the_markers_and_says_how_it_was_made(measured, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(DOCUMENT)
    text = int8_table.write_table(int8_table.Config(families=("nasnet", "mcunet"), readme=readme, folder=tmp_path))
    assert "| nasnet_a (repeats 1, filters 8) | 14 x 14 | 73 | 2.4 | 0.8610 | 0.8595 | 0.8675 | 123 | 50.1 |" in text
    assert "| 50.1 | 50.4 | 1.23 | 5.68 |" in text
    assert "n = 2,000 held-out images" in text
    assert "9,000 images for 4 epochs, for QAT one epoch more" in text
    assert readme.read_text() == DOCUMENT.replace("old\n", text)
    assert (tmp_path / "table.md").read_text() == text


def test_rows_that_are_there_are_not_measured_again_unless_another_way_is_asked_for(measured, tmp_path):
    config = int8_table.Config(families=("darts",), folder=tmp_path)
    int8_table.write_table(config)
    text = int8_table.write_table(dataclasses.replace(config, seeds=2))
    assert measured == [("darts", 0), ("darts", 1)]
    assert "0.8645 ± 0.0071" in text  # of 0.8595 and 0.8695
    assert "over the seeds 0 to 1" in text
    int8_table.write_table(dataclasses.replace(config, epochs=5))
    assert measured[2:] == [("darts", 0)]


def test_document_without_markers_is_refused_before_the_work(measured, tmp_path):
    (tmp_path / "README.md").write_text("# Title\n")
    with pytest.raises(ValueError, match="needs the lines <!-- deploy-table:begin -->"):
        int8_table.write_table(int8_table.Config(readme=tmp_path / "README.md", folder=tmp_path))
    assert not measured


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs is 0; expected a whole number from 1"),
        ({"families": ()}, "name one or more, each once"),
        ({"families": ("darts", "darts")}, "families=darts,darts"),
    ],
)
def test_options_that_cannot_work_are_refused(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        int8_table.Config(**options)


@pytest.mark.slow
def test_row_holds_what_is_measured_on_the_files_that_are_kept(tmp_path, capsys):
    config = dataclasses.replace(int8_table.PRESETS["smoke"], folder=tmp_path)
    int8_table.write_table(config)
    row = json.loads((tmp_path / "mcunet-seed0.json").read_text())
    for scheme in ("ptq", "qat"):
        file = tmp_path / f"mcunet-seed0.{scheme}.tflite"
        assert row[scheme]["size"] == file.stat().st_size
        assert row[scheme]["arena"] == measure.arena(file).total
        assert row[scheme]["planned"] == pytest.approx(row[scheme]["arena"], rel=0.05)
    assert row["n"] == 20
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".md", ".tflite", ".tflite"]
    assert "1 of 1: mcunet, seed 0: int8 by training" in capsys.readouterr().err
