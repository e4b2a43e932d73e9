"""Metadata, dependencies and package data; every tool's settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

DEPLOY = [
    "tensorflow-model-optimization>=0.8.1,<0.9",  # 0.8.1's layer registry shaped zoo/deploy
    "tf-keras>=2.20,<3",  # must be TensorFlow's minor version, which it asks for itself
    "ai-edge-litert>=2.1,<3",
    "tflite-micro>=0.dev20261002000000",  # earlier wheels do not load on Python 3.11, or need pkg_resources
]
ETHOS_U = ["ethos-u-vela>=5,<6"]  # recipes.deploy --board=corstone300
HUB = ["huggingface_hub>=0.34"]  # zoo.from_pretrained("hf://user/name")
BAYESIAN = ["scikit-learn>=1.5,<2"]  # --algorithm=bayesian; as KerasTuner calls its own extra
RAY = ["ray[default]>=2.40"]  # searches on a cluster
TENSORBOARD = ["tensorboard>=2.20,<3"]  # --tensorboard of searches and trainings, and what KerasTuner's own tuner logs
CONVERT = ["torch>=2.6", "safetensors>=0.4"]  # what the tests compare the readers of weights with
TEST = [
    *DEPLOY,
    *ETHOS_U,
    *HUB,
    *TENSORBOARD,
    *BAYESIAN,
    "pytest>=8.3",
    "pytest-xdist>=3.6",
    "hypothesis>=6.100",
    "setuptools>=77",
    "wheel>=0.45",
]
BROWSER = ["playwright>=1.50"]  # what the slow tests drive a Chromium of the system with
DOCS = ["mkdocs>=1.6,<2", "mkdocs-material>=9.6,<10", "mkdocstrings[python]>=0.27", "latex2mathml>=3.77"]  # make docs
NOTEBOOKS = ["nbclient>=0.10", "nbformat>=5.10", "ipykernel>=6.29"]  # to run those of docs/notebooks
LINT = ["ruff>=0.14", "pyright[nodejs]>=1.1.400"]

PACKAGE = Path(__file__).parent / "zoo" / "__init__.py"

setup(
    name="keras-searched-zoo",
    version=re.findall(r'^__version__ = "(.+?)"', PACKAGE.read_text(encoding="utf-8"), re.MULTILINE)[0],
    description="Searched architectures (NASNet, AmoebaNet, DARTS and others) in Keras 3: build, search, train, deploy",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["zoo*", "recipes*", "searched_genotypes"]),
    package_data={
        "zoo": ["py.typed", "imagenet_classes.txt"],
        "recipes": ["py.typed"],
        "searched_genotypes": ["*.json"],
        "recipes.cards": ["*.html"],
        "recipes.images": ["embedded/*"],
        "zoo.deploy": ["firmware_files/*"],
        "recipes.tables": ["*.csv"],
        "zoo.weights": ["*.json"],
    },
    install_requires=[
        "tensorflow>=2.20,<3",
        "keras>=3.12,<4",
        "keras-tuner>=1.4.8,<1.5",  # the oracles keep clear of faults of 1.4.8 by using its inner methods
        "tensorflow-datasets>=4.9.10,<5",
        "importlib-resources>=7",  # tensorflow-datasets 4.9.10 cannot prepare a set without it, and does not ask for it
        "absl-py>=1.4",
        "rich>=13.9",
        "matplotlib>=3.10",
        "pillow>=10.1",
        "numpy>=2.0",
    ],
    extras_require={
        "deploy": DEPLOY,
        "ethos-u": ETHOS_U,
        "hub": HUB,
        "bayesian": BAYESIAN,
        "ray": RAY,
        "tensorboard": TENSORBOARD,
        "test": TEST,
        "docs": [*DOCS, *NOTEBOOKS, *BROWSER],  # the site, and what the tests of documents need besides `test`
        "lint": LINT,
        "dev": [*TEST, *LINT, *CONVERT, *RAY, *DOCS, *NOTEBOOKS, *BROWSER],
    },
    keywords=["keras", "neural architecture search", "NASNet", "AmoebaNet", "DARTS", "quantization", "tinyml"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
