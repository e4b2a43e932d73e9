"""What every test gets: a quiet TensorFlow, its share of the cores, the same seeds, and the reference data."""

import os
import random
import sys
from pathlib import Path

import pytest

# All of it is read when TensorFlow, Keras and Matplotlib are imported, which no test module has done yet.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ["MPLBACKEND"] = "Agg"
if "PYTEST_XDIST_WORKER" in os.environ:  # one process a core: more threads would only wait for one another
    for variable in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS"):
        os.environ[variable] = "1"

PROJECT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def project() -> Path:
    """The root of the checkout."""
    return PROJECT


@pytest.fixture(scope="session")
def reference() -> Path:
    """Published numbers, genotypes and logits of independent code; they lie beside the checkout, not in it."""
    folder = PROJECT.parent / "shared" / "reference"
    if not folder.is_dir():
        pytest.skip(f"no reference data: {folder} is not there")
    return folder


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Starts every test from the same random state, so that it passes or fails alone as it does among the others."""
    random.seed(0)
    if "keras" in sys.modules:
        sys.modules["keras"].utils.set_random_seed(0)
    elif "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
