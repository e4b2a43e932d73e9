"""The documentation builds without a warning and without the network, with a page for each model and each program."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import zoo
from recipes.__main__ import list_programs

PROJECT = Path(__file__).resolve().parent.parent
LOADED = re.compile(r"<(?:script|img|link|iframe)\b[^>]*?(?:src|href)=\"?((?:https?:)?//[^\"\s>]+)")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("mkdocs", "material", "mkdocstrings", "latex2mathml"):
        pytest.importorskip(package, reason=f"{package} is not installed: make docs")
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(build, cwd=PROJECT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.slow
def test_every_model_has_a_page_with_its_picture_its_numbers_and_its_weights(site: Path):
    for name in zoo.list_models():
        page, about = (site / "models" / f"{name}.html").read_text(), zoo.info(name)
        assert (site / "models" / f"{name}.svg").stat().st_size > 1000
        for preset in about["presets"]:
            assert f"<td>{preset}</td>" in page
        for weights, entry in about["weights"].items():
            assert weights in page
            assert entry["license"] in page
    page = (site / "models" / "mcunet_in0.html").read_text()
    assert re.search(
        r"0\.75</td>\s*<td[^>]*>0\.75</td>\s*<td[^>]*>6</td>\s*<td[^>]*>6\.4</td>", page
    )  # beside published


@pytest.mark.slow
def test_every_program_has_a_page_with_its_options(site: Path):
    for name in list_programs():
        assert "<code>--" in (site / "programs" / f"{name}.html").read_text()
    assert "--strips" in (site / "programs" / "deploy.html").read_text()


@pytest.mark.slow
def test_pages_load_nothing_from_elsewhere_and_show_no_raw_maths(site: Path):
    for path in site.rglob("*.html"):
        assert not LOADED.findall(path.read_text()), path
    maths = (site / "darts_supernet.html").read_text()
    assert "<math" in maths
    assert r"\bar" not in maths


@pytest.mark.slow
def test_guides_bring_in_the_sections_of_the_contributing_page(site: Path):
    assert "run_trials" in (site / "own_search.html").read_text()
    assert "Style" in (site / "own_family.html").read_text()
