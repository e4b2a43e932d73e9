"""`python -m benchmarks.zoo_table`: counts, resuming, and the place in a document."""

import dataclasses
import json

import pytest

from benchmarks import zoo_table

BEGIN, END = "<!-- table:begin -->", "<!-- table:end -->"
TEXT = f"# Title\n\n{BEGIN}\nold\n{END}\nend\n"


def test_text_between_the_markers_is_replaced_and_nothing_else():
    once = zoo_table.replace_between(TEXT, "table", "new\n")
    assert once == f"# Title\n\n{BEGIN}\nnew\n{END}\nend\n"
    assert zoo_table.replace_between(once, "table", "new\n") == once


@pytest.mark.parametrize("document", ["", BEGIN, f"{END}\n{BEGIN}", TEXT + TEXT])
def test_document_without_the_markers_is_refused(document):
    with pytest.raises(ValueError, match="needs the lines <!-- table:begin --> and <!-- table:end --> once each"):
        zoo_table.replace_between(document, "table", "new")


def test_row_has_counts_published_numbers_and_measurements_and_is_kept(tmp_path, capsys):
    readme = tmp_path / "README.md"
    readme.write_text(TEXT)
    config = dataclasses.replace(zoo_table.PRESETS["smoke"], sizes=False, readme=readme, folder=tmp_path)
    text = zoo_table.write_table(config)
    (row,) = [line for line in text.splitlines() if line.startswith("| mcunet_vww0")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    numbers = zoo_table.zoo.info("mcunet_vww0")["published"]["vww"]
    assert cells[:3] == ["mcunet_vww0", "vww", f"{numbers['trainable_params'] / 1e6:.2f}"]
    assert cells[4] == f"{numbers['macs'] / 1e6:,.0f}"
    assert float(cells[7]) > 0
    assert cells[8] == ""
    assert readme.read_text() == zoo_table.replace_between(TEXT, "table", text)
    assert (tmp_path / "table.md").read_text() == text
    assert "network 1 of 1: mcunet_vww0 vww" in capsys.readouterr().err

    known = json.loads((tmp_path / "table.json").read_text())
    known["mcunet_vww0 vww"]["seconds"] = 1234.5
    (tmp_path / "table.json").write_text(json.dumps(known))
    assert "1234.5" in zoo_table.write_table(config)  # not measured again
    assert "1234.5" not in zoo_table.write_table(dataclasses.replace(config, largest=0.001))  # another way to measure


@pytest.mark.slow
def test_lite_file_is_about_four_bytes_a_weight():
    genotype = zoo_table.zoo.load("mcunet_vww0")
    found = zoo_table.measure(genotype, "vww", zoo_table.Config())
    assert 0.95 < found["bytes"] / (4 * found["params"]) < 1.1  # scale and offset fold into one bias


@pytest.mark.slow
def test_files_are_made_by_another_process(tmp_path):
    text = zoo_table.write_table(dataclasses.replace(zoo_table.PRESETS["smoke"], folder=tmp_path))
    (row,) = [line for line in text.splitlines() if line.startswith("| mcunet_vww0")]
    assert float(row.split("|")[8]) > 0
    assert float(row.split("|")[9]) == pytest.approx(1.5, abs=0.1)  # 0.37 M weights of four bytes


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="matches no network"):
        zoo_table.write_table(zoo_table.Config(names="resnet*"))
