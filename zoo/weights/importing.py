"""Weights trained in PyTorch or by TensorFlow's own code, put into a built model."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from zoo.weights import cell_names, mobile_names, tensorflow_names


class WeightsError(ValueError):
    """Weights that do not fit a model; nothing has been changed in it."""


class Naming(NamedTuple):
    """How some code names its tensors.

    Attributes:
        code: whose code it is.
        mark: a tensor that only its networks have.
        names: (our layers, the tensors) -> our layer -> their module.
        optional: beginnings of the names of tensors that a model may lack: heads.
        transposed: whether the tensors have PyTorch's layout, not TensorFlow's, which is Keras'.
    """

    code: str
    mark: str
    names: Callable[[Collection[str], Collection[str]], Mapping[str, str]]
    optional: tuple[str, ...]
    transposed: bool = True


NAMINGS = (
    Naming("quark0/darts", "cells.0.preprocess1.op.1.weight", cell_names.darts, ("classifier.", "auxiliary_head.")),
    Naming(
        "NNI darts", "stages.0.0.preprocessor.pre1.1.weight", cell_names.nni_darts, ("classifier.", "auxiliary_head.")
    ),
    Naming("pytorchcv darts", "features.stem1_unit.conv1.conv.weight", cell_names.pytorchcv_darts, ("output.",)),
    Naming("timm nasnetalarge", "conv0.conv.weight", cell_names.timm_nasnet, ("last_linear.",)),
    Naming("timm pnasnet5large", "conv_0.conv.weight", cell_names.timm_pnasnet, ("last_linear.",)),
    Naming("timm mnasnet", "conv_stem.weight", mobile_names.timm, ("classifier.",)),
    Naming("torchvision mnasnet", "layers.0.weight", mobile_names.torchvision, ("classifier.",)),
    Naming("mit-han-lab/mcunet", "first_conv.conv.weight", mobile_names.once_for_all, ("classifier.",)),
)

_SLIM = ("final_layer/", "aux_")
TENSORFLOW_NAMINGS = (
    Naming("TF-slim or tensorflow/tpu", "cell_0/1x1.weight", tensorflow_names.cells, _SLIM, transposed=False),
    Naming(
        "tensorflow/tpu mnasnet", "block_0/project_conv.weight", tensorflow_names.mnasnet, ("fc.",), transposed=False
    ),
)

# Keras' name of a variable -> PyTorch's
_VARIABLES = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def from_torch(model: keras.Model, tensors: Mapping[str, Any], *, head: bool = True) -> str:
    """Fills a built model, in place, with tensors under the names of the code that trained them.

    Args:
        model: of `zoo.build`, of the same architecture.
        tensors: name -> array in PyTorch's layout (a `state_dict`'s values, as numpy arrays). `num_batches_tracked` is
            not needed; heads that the model lacks may be there.
        head: False leaves the classifiers as they are, for another number of classes.

    Returns:
        Whose naming it was.

    Raises:
        WeightsError: an unknown naming, tensors missing, left over or of another shape. The model is as it was.
    """
    tensors = {name: value for name, value in tensors.items() if not name.endswith("num_batches_tracked")}
    return _fill(model, tensors, NAMINGS, head)


def from_tensorflow(model: keras.Model, variables: Mapping[str, Any], *, head: bool = True) -> str:
    """Fills a built model, in place, with variables under the names of the TensorFlow 1 code that trained them.

    Args:
        model: of `zoo.build`, of the same architecture.
        variables: name -> array, as a checkpoint has them. Moving averages of variables are taken in their place; what
            belongs to an optimiser is not needed; heads that the model lacks may be there. A classifier of one class
            more than the model's, the first of them TF-slim's "background", is taken without that.
        head: as in `from_torch`.

    Returns:
        Whose naming it was.

    Raises:
        WeightsError: as in `from_torch`.
    """
    names = tensorflow_names.rename(variables)
    tensors = {tensor: variables[variable] for variable, tensor in names.items()}
    return _fill(model, tensors, TENSORFLOW_NAMINGS, head)


def _fill(model: keras.Model, tensors: Mapping[str, Any], namings: Sequence[Naming], head: bool) -> str:
    naming = next((naming for naming in namings if naming.mark in tensors), None)
    if naming is None:
        raise WeightsError(
            f"the names of these {len(tensors)} tensors, such as {sorted(tensors)[:3]}, are not known; expected those "
            "of " + ", ".join(naming.code for naming in namings)
        )
    layers = {layer.name: layer for layer in model.layers if layer.weights}
    try:
        modules = naming.names(list(layers), list(tensors))
    except (KeyError, ValueError) as error:
        raise WeightsError(
            f"{model.name} is no network of {naming.code}: no place for its layer {error}. "
            "Build the one that was trained"
        ) from error
    if not head:
        modules = {layer: module for layer, module in modules.items() if not f"{module}.".startswith(naming.optional)}
    values = _values(layers, modules, tensors, naming)
    for layer, arrays in values.items():
        layers[layer].set_weights(arrays)
    return naming.code


def _values(
    layers: Mapping[str, Any], modules: Mapping[str, str], tensors: Mapping[str, Any], naming: Naming
) -> dict[str, list[np.ndarray]]:
    """Returns each layer's arrays in Keras' layout, after checking all of them."""
    values: dict[str, list[np.ndarray]] = {}
    offsets: dict[str, int] = {}
    used, missing, wrong = set(), [], []
    for name, module in modules.items():
        arrays, offset = [], offsets.get(module, 0)
        shared = sum(other == module for other in modules.values()) > 1
        for variable in layers[name].weights:
            source = f"{module}.{_VARIABLES[variable.name]}"
            if source not in tensors:
                missing.append(source)
                continue
            used.add(source)
            array = np.asarray(tensors[source], dtype=np.float32)
            if naming.transposed:
                array = _transposed(array, layers[name])
            elif f"{module}.".startswith(naming.optional) and array.shape[-1] == variable.shape[-1] + 1:
                array = array[..., 1:]  # without TF-slim's background class
            if shared:
                array = array[offset : offset + variable.shape[0]]
            if array.shape != tuple(variable.shape):
                wrong.append(
                    f"{source} has the shape {np.shape(tensors[source])}, {variable.path} {tuple(variable.shape)}"
                )
            arrays.append(array)
        offsets[module] = offset + layers[name].weights[0].shape[-1]
        values[name] = arrays
    left = [name for name in tensors if name not in used and not name.startswith(naming.optional)]
    for problem, names in (("missing", missing), ("of another shape", wrong), ("left over", left)):
        if names:
            shown = "; ".join(names[:4]) + (f"; and {len(names) - 4} more" if len(names) > 4 else "")
            raise WeightsError(
                f"these weights of {naming.code} do not fit: {len(names)} tensors are {problem}: {shown}. Build the "
                "model that was trained: the same genotype, preset, classes and input channels"
            )
    return values


def _transposed(array: np.ndarray, layer: Any) -> np.ndarray:
    """Returns a tensor in Keras' layout: (height, width, in, out), or (in, out), or a vector."""
    if array.ndim == 4:
        return array.transpose((2, 3, 0, 1) if isinstance(layer, keras.layers.DepthwiseConv2D) else (2, 3, 1, 0))
    return array.T
