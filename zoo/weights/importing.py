"""Fills a built model, by name, with weights of PyTorch, TensorFlow 1 code or keras.applications."""

import collections
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import keras
import numpy as np

from zoo.weights import cell_names, mobile_names


class WeightsError(ValueError):
    """Weights do not fit a model, which is unchanged."""


class Naming(NamedTuple):
    """How some code names its tensors.

    Attributes:
        code: the project.
        mark: name of a tensor that only its networks have.
        names: function of our layers and the tensors; returns our layer -> their module.
        optional: prefixes of tensors that a model may lack, which are those of heads.
        layout: of the tensors; "tensorflow" is "keras", with classifiers that may begin with TF-slim's "background".
    """

    code: str
    mark: str
    names: Callable[[Collection[str], Collection[str]], Mapping[str, str]]
    optional: tuple[str, ...]
    layout: Literal["torch", "tensorflow", "keras"] = "torch"


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

TENSORFLOW_NAMINGS = (
    Naming(
        "TF-slim or tensorflow/tpu", "cell_0/1x1.weight", cell_names.slim, ("final_layer/", "aux_"), layout="tensorflow"
    ),
    Naming("tensorflow/tpu mnasnet", "block_0/project_conv.weight", mobile_names.tpu, ("fc.",), layout="tensorflow"),
)
KERAS_NAMINGS = (
    Naming(
        "keras.applications' NASNetMobile and NASNetLarge", "stem_conv1.weight", cell_names.keras_applications,
        ("predictions.",), layout="keras",
    ),
)  # fmt: skip

# Keras' name of a variable -> PyTorch's, under which tensors are looked up
_VARIABLES = {
    "kernel": "weight", "bias": "bias", "gamma": "weight", "beta": "bias", "moving_mean": "running_mean",
    "moving_variance": "running_var",
}  # fmt: skip
# Ending of TensorFlow's name of a variable -> ending of the tensor's name; a separable convolution has two kernels
_TENSORFLOW_VARIABLES = {
    "depthwise_weights": "/depthwise.weight", "pointwise_weights": "/pointwise.weight", "weights": ".weight",
    "kernel": ".weight", "depthwise_kernel": ".weight", "biases": ".bias", "bias": ".bias", "gamma": ".weight",
    "beta": ".bias", "moving_mean": ".running_mean", "moving_variance": ".running_var",
}  # fmt: skip
_KERAS_VARIABLES = _TENSORFLOW_VARIABLES | {
    "depthwise_kernel": "/depthwise.weight", "pointwise_kernel": "/pointwise.weight",
}  # fmt: skip
_AVERAGE = "/ExponentialMovingAverage"


def from_torch(model: keras.Model, tensors: Mapping[str, Any], *, head: bool = True) -> str:
    """Fills a built model, in place, with PyTorch tensors under the names of the code that trained them.

    Args:
        model: from `zoo.build`, of the same architecture.
        tensors: name -> array in PyTorch's layout (a `state_dict`'s values, as numpy arrays). `num_batches_tracked` is
            ignored, and so are heads that the model lacks.
        head: False leaves the classifiers unchanged, for another number of classes.

    Returns:
        The project whose names they are.

    Raises:
        WeightsError: unknown names, or tensors missing, left over or of another shape. The model is unchanged.
    """
    tensors = {name: value for name, value in tensors.items() if not name.endswith("num_batches_tracked")}
    return _fill(model, tensors, NAMINGS, head)


def from_tensorflow(model: keras.Model, variables: Mapping[str, Any], *, head: bool = True) -> str:
    """Fills a built model, in place, with variables under the names of the TensorFlow 1 code that trained them.

    Args:
        model: from `zoo.build`, of the same architecture.
        variables: name -> array, as in a checkpoint. Moving averages of variables replace the variables. An optimiser's
            variables, and heads that the model lacks, are ignored. A classifier with one class more than the model's
            loses the first, which is TF-slim's "background".
        head: as in `from_torch`.

    Returns:
        The project whose names they are.

    Raises:
        WeightsError: as in `from_torch`.
    """
    prefix = "module/" if any(variable.startswith("module/") for variable in variables) else ""  # of TF Hub
    tensors = {}
    for variable in sorted(variables):  # an average comes after its variable, and replaces it
        scope, _, end = variable.removeprefix(prefix).removesuffix(_AVERAGE).rpartition("/")
        if scope and end in _TENSORFLOW_VARIABLES:
            tensors[scope + _TENSORFLOW_VARIABLES[end]] = variables[variable]
    return _fill(model, tensors, TENSORFLOW_NAMINGS, head)


def from_keras_applications(model: keras.Model, reference: keras.Model) -> None:
    """Fills `model`, a NASNet-A from `zoo.build`, from a NASNetMobile or NASNetLarge of keras.applications.

    The networks have one difference: pools in keras.applications' reduction cells count zeros around the image; ours
    leave them out, as in the code that trained these weights.

    Raises:
        WeightsError: as in `from_torch`.
    """
    tensors = {
        f"{layer.name}{_KERAS_VARIABLES[weight.name]}": weight
        for layer in reference.layers for weight in layer.weights if weight.name in _KERAS_VARIABLES
    }  # fmt: skip
    _fill(model, tensors, KERAS_NAMINGS, head=True)


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
        reason = f"no place for its layer {error}" if isinstance(error, KeyError) else str(error)
        raise WeightsError(
            f"{model.name} is not a network of {naming.code}: {reason}. Build the one that was trained"
        ) from error
    if not head:
        modules = {layer: module for layer, module in modules.items() if not f"{module}.".startswith(naming.optional)}
    values = _arrange_arrays(layers, modules, tensors, naming)
    for layer, arrays in values.items():
        layers[layer].set_weights(arrays)
    return naming.code


def _arrange_arrays(
    layers: Mapping[str, Any], modules: Mapping[str, str], tensors: Mapping[str, Any], naming: Naming
) -> dict[str, list[np.ndarray]]:
    """Returns each layer's arrays in Keras' layout, after checking all of them."""
    values: dict[str, list[np.ndarray]] = {}
    offsets: dict[str, int] = {}
    readers = collections.Counter(modules.values())
    used, missing, wrong = set(), [], []
    for name, module in modules.items():
        arrays, offset = [], offsets.get(module, 0)
        shared, is_head = readers[module] > 1, f"{module}.".startswith(naming.optional)
        for variable in layers[name].weights:
            source = f"{module}.{_VARIABLES[variable.name]}"
            if source not in tensors:
                missing.append(source)
                continue
            used.add(source)
            array = np.asarray(tensors[source], dtype=np.float32)
            if naming.layout == "torch":
                array = _transpose(array, layers[name])
            elif naming.layout == "tensorflow" and is_head and array.shape[-1] == variable.shape[-1] + 1:
                array = array[..., 1:]  # without the "background"
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
            raise WeightsError(
                f"these weights of {naming.code} do not fit: {len(names)} tensors are {problem}: {list_some(names)}. "
                "Build the model that was trained: the same genotype, preset, classes and input channels"
            )
    return values


def _transpose(array: np.ndarray, layer: Any) -> np.ndarray:
    """Returns a tensor in Keras' layout: (height, width, in, out), or (in, out), or a vector."""
    if array.ndim == 4:
        return array.transpose((2, 3, 0, 1) if isinstance(layer, keras.layers.DepthwiseConv2D) else (2, 3, 1, 0))
    return array.T


def list_some(names: Sequence[str]) -> str:
    """Returns the first four of some names, and how many more there are."""
    return "; ".join(names[:4]) + (f"; and {len(names) - 4} more" if len(names) > 4 else "")
