"""Every script of benchmarks/ runs, each in a size that takes a minute at most; `make bench` runs them in full."""

import itertools
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from zoo import manifest

PROJECT = Path(__file__).resolve().parents[2]
# Programs that fill documents
MAINTAINERS = {"zoo_table", "int8_table", "foreign_models", "weights_table", "embedded_images", "shipped_tables"}
LIBRARY = {"__init__", "machine", "table_search"}
SCRIPTS = sorted({path.stem for path in (PROJECT / "benchmarks").glob("*.py")} - MAINTAINERS - LIBRARY)
QUICK = ["front_gates", "halving_gates", "input_pipeline", "search_gates"]  # in a process that has TensorFlow already


@pytest.fixture
def arguments(tmp_path: Path) -> dict[str, list[str]]:
    """Script -> what it is given: the gates a table of 2,187 networks, the others their own smoke size."""
    networks = {
        "".join(digits): {"test_acc": [90.0 + number % 7, 91.0, 92.0], "flops": 10 + number % 7, "params": 1}
        for number, digits in enumerate(itertools.product("012", repeat=7))
    }
    table = tmp_path / "nas-bench-macro.json"
    table.write_text(json.dumps(networks))
    given = {name: ["--smoke"] for name in SCRIPTS}
    return given | {name: [str(table), "--smoke"] for name in SCRIPTS if name.endswith("_gates")}


def check_printed(text: str) -> None:
    """A script says on what it measured, and then what: a line of the machine, the date, and numbers."""
    first, *others = text.splitlines()
    assert re.search(r"\b\d+ cores\b", first)
    assert any(re.search(r"\d\.\d", line) for line in others) or "left out" in text


def test_make_bench_runs_every_measurement_and_no_maintainers_program():
    makefile = (PROJECT / "Makefile").read_text().replace("\\\n", " ")
    (names,) = re.findall(r"^BENCHMARKS := (.*)$", makefile, re.MULTILINE)
    assert sorted(names.split()) == SCRIPTS


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_script_reads_its_arguments_by_hand_and_so_each_refuses_a_wrong_flag(name: str):
    assert "sys.argv" not in (PROJECT / "benchmarks" / f"{name}.py").read_text()


@pytest.mark.parametrize("name", QUICK)
def test_quick_scripts_print_measurements(name: str, arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, *arguments[name]])
    monkeypatch.delitem(sys.modules, f"benchmarks.{name}", raising=False)  # where another test has imported it
    runpy.run_module(f"benchmarks.{name}", run_name="__main__")
    check_printed(capsys.readouterr().out)


def run_script(name: str, *arguments: str) -> str:
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
    variables = os.environ | {"PYTHONPATH": str(PROJECT)}  # not another copy that may be installed
    done = subprocess.run(
        command, cwd=PROJECT, env=variables, capture_output=True, text=True, timeout=1800, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_prints_measurements(name: str, arguments):
    check_printed(run_script(name, *arguments[name]))


@pytest.mark.slow
def test_help_shows_no_line_of_tensorflow():
    command = [sys.executable, "-m", "benchmarks.int8_table", "--help"]
    variables = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    done = subprocess.run(command, cwd=PROJECT, env=variables, capture_output=True, text=True, timeout=300, check=True)
    assert "--readme" in done.stdout
    assert done.stderr == ""


@pytest.mark.slow
def test_the_table_of_foreign_models_has_a_row_for_each(tmp_path: Path):
    text = run_script("foreign_models", "--preset=smoke", f"--folder={tmp_path}")
    assert [line.split()[1] for line in text.splitlines() if line.startswith("|")][2:] == ["MobileNetV2"]
    assert (tmp_path / "table.md").read_text() in text


def test_the_table_of_weights_has_a_row_for_each_entry():
    text = run_script("weights_table")
    assert all(f"| {entry.name} |" in text for entry in manifest.entries())
