"""Weights that others have trained, in models of `zoo.build`."""

from zoo.weights.keras_import import from_keras_applications
from zoo.weights.torch_import import WeightsError, from_torch

__all__ = ["WeightsError", "from_keras_applications", "from_torch"]
