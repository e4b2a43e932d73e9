"""The tour, walked once in its smallest form as a user starts it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import zoo
from zoo.deploy import metadata


@pytest.mark.slow
def test_the_smallest_tour_makes_every_file_and_a_page_that_agrees_with_them(project: Path, tmp_path: Path):
    run = subprocess.run(
        [sys.executable, "-m", "recipes.tour", "--preset=smoke", f"--folder={tmp_path}"],
        cwd=project,
        env={name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert run.returncode == 0, run.stderr
    page = (tmp_path / "tour.md").read_text()
    assert page.strip() in run.stdout
    report = json.loads((tmp_path / "deploy" / "deploy.json").read_text())
    assert {row["scheme"] for row in report["rows"]} == {"float32", "int8"}
    for row in report["rows"]:
        assert len(metadata.detach(tmp_path / "deploy" / row["file"])) == row["size"]
        assert re.search(rf"\| {row['scheme']} \| {row['accuracy']:.4f} \|", page)
    assert (tmp_path / "cell.png").read_bytes().startswith(b"\x89PNG")
    genotype = zoo.load(tmp_path / "search" / "genotype.json")
    assert genotype.source["config"]["trials"] == 2
    for name in ("Step 1 of 4", "Step 4 of 4"):
        assert name in run.stderr
    noise = re.findall(r".*(?:cuda|port\.cc|oneDNN|Warning).*", run.stderr + run.stdout)
    assert not noise
