"""The package works where it is installed, far from the checkout, with every data file."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import zoo

pytestmark = pytest.mark.slow

CODE = ("zoo", "recipes", "searched_genotypes")
LEFTOVERS = shutil.ignore_patterns(".git", ".venv*", "__pycache__", "build", "dist", "*.egg-info", "runs", ".*_cache")


def run(*command: str | Path, folder: Path) -> str:
    variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    command = [str(word) for word in command]
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of `make dist`, in a copy of the project and with the Python of the tests: nothing is installed."""
    source = tmp_path_factory.mktemp("wheel") / "source"
    shutil.copytree(project, source, ignore=LEFTOVERS)
    run("make", "--old-file=.venv/.has-test", "dist", f"venv_python={sys.executable}", folder=source)
    (built,) = (source / "dist").glob("*.whl")
    assert len(list((source / "dist").glob("*.tar.gz"))) == 1
    return built


@pytest.fixture(scope="module")
def installed_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has the wheel, and of the libraries those of this environment, which it only reads."""
    folder = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv", folder=folder)
    python = folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", folder=folder).strip())
    # A path in a .pth file brings the libraries of that folder but not its own .pth files, and so no editable project.
    (packages / "libraries.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index")
    run(*pip, "--ignore-installed", wheel, folder=folder)
    return python


def test_wheel_holds_all_code_and_data_and_nothing_else(wheel: Path, project: Path):
    names = set(zipfile.ZipFile(wheel).namelist())
    kept = {name for name in names if ".dist-info/" not in name}
    expected = {
        path.relative_to(project).as_posix()
        for folder in CODE
        for path in (project / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    }
    assert kept == expected
    assert any(name.endswith("/LICENSE") for name in names)
    assert {"zoo/py.typed", "recipes/py.typed"} <= kept
    assert wheel.name.split("-")[1] == zoo.__version__


def test_genotypes_are_found_outside_the_checkout(installed_python: Path, project: Path, tmp_path: Path):
    code = """
import importlib.resources
import zoo
print(zoo.__file__)
for name in zoo.list_models():
    zoo.info(name)
    print(name)
files = importlib.resources.files("searched_genotypes").iterdir()
print("files", *sorted(file.name for file in files if file.name.endswith(".json")))
"""
    where, *names, files = run(installed_python, "-c", code, folder=tmp_path).splitlines()
    assert Path(where).is_relative_to(installed_python.parent.parent)
    assert "darts" in names
    assert files.split()[1:] == sorted(path.name for path in (project / "searched_genotypes").glob("*.json"))


def test_a_network_is_built_outside_the_checkout(installed_python: Path, tmp_path: Path):
    code = "import zoo; print(zoo.build('darts', preset='cifar10', classes=3, input_shape=(32, 32, 3)).output_shape)"
    assert run(installed_python, "-c", code, folder=tmp_path).strip() == "(None, 3)"


def test_programs_run_outside_the_checkout_on_the_images_that_came_along(installed_python: Path, tmp_path: Path):
    assert "\n  train " in run(installed_python, "-m", "recipes", folder=tmp_path)
    printed = run(installed_python, "-m", "recipes.train", "--preset=smoke", "--dry_run", folder=tmp_path)
    assert printed.startswith("dry run: fashion_mnist_small: 64 training, 50 validation and 2,000 test images")
    assert not list(tmp_path.iterdir())
