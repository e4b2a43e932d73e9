"""Weights trained by others, for models of `zoo.build`."""

from zoo.weights.download import DownloadError, cache_folder, fetch
from zoo.weights.importing import WeightsError, from_keras_applications, from_tensorflow, from_torch

__all__ = [
    "DownloadError", "WeightsError", "cache_folder", "fetch", "from_keras_applications", "from_tensorflow",
    "from_torch",
]  # fmt: skip
