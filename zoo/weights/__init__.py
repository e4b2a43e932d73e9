"""Weights that others have trained, in models of `zoo.build`."""

from zoo.weights.download import DownloadError, cache_folder, fetch
from zoo.weights.keras_import import from_keras_applications
from zoo.weights.torch_import import WeightsError, from_torch

__all__ = ["DownloadError", "WeightsError", "cache_folder", "fetch", "from_keras_applications", "from_torch"]
