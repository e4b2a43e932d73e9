"""Faithful copies of layers and models: their weights by layer name, their other state, and a check."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from zoo.graph.calls import GraphError, calls, kind_of

TOLERANCE = 2e-3  # by which a copy's output may differ, in standard deviations of the output
OPEN_SIZE = 64  # given to an input's open sides when outputs are compared


def copy_model(model: keras.Model, change: Callable[[Any], Mapping[str, Any]] | None = None) -> keras.Model:
    """Returns a copy of a functional or Sequential model with layers and weights of its own.

    Args:
        change: takes a layer, returns the options to change in its copy; outputs are then not compared.
    """

    def clone(layer: Any) -> Any:
        return type(layer).from_config({**layer.get_config(), **(change(layer) if change else {})})

    copy: keras.Model = keras.models.clone_model(model, clone_function=clone)
    for ours, theirs in zip(model.layers, copy.layers, strict=True):
        copy_state(ours, theirs)
        theirs.trainable = ours.trainable
    if change is None:
        check_copy(model, copy)
    return copy


def call_copy(layer: Any, copies: dict[str, Any], changes: Mapping[str, Any], *arguments: Any, **options: Any) -> Any:
    """Calls a copy of a Keras layer with some of its options changed, and returns the output.

    Args:
        copies: made so far, by layer name; a layer that is called again is not copied again.
    """
    if layer.name in copies:
        return copies[layer.name](*arguments, **options)
    copy = copies[layer.name] = type(layer).from_config({**layer.get_config(), **changes})
    outputs = copy(*arguments, **options)
    copy_state(layer, copy)
    copy.trainable = layer.trainable
    return outputs


def copy_state(layer: Any, copy: Any) -> None:
    """Gives a built copy of a Keras layer the layer's weights and other state.

    Other state is an adapted Normalization's statistics, vocabularies, and states of random generators and recurrent
    layers.

    Raises:
        GraphError: the copy's weights have other shapes.
    """
    ours, theirs = [tuple(one.shape) for one in layer.weights], [tuple(one.shape) for one in copy.weights]
    if ours != theirs:
        raise GraphError(f"layer {layer.name!r} has weights of {ours}, its copy of {theirs}")
    copy.set_weights(
        [np.asarray(keras.ops.cast(one, "float32")) if "float" in one.dtype else one for one in layer.weights]
    )
    for one, other in zip(layer._flatten_layers(), copy._flatten_layers(), strict=True):
        for source, target in zip(_other_state(one), _other_state(other), strict=True):
            target.assign(source)
        if isinstance(one, keras.layers.Normalization):
            other.finalize_state()
        elif hasattr(one, "save_assets") and hasattr(one, "get_vocabulary"):
            with tempfile.TemporaryDirectory() as folder:
                store: dict[str, Any] = {}
                one.save_own_variables(store)
                other.load_own_variables(store)
                one.save_assets(folder)
                other.load_assets(folder)


def _other_state(layer: Any) -> list[Any]:
    """Returns a layer's own variables that are not weights: states of random generators and of a stateful RNN."""
    variables = [generator.state for generator in getattr(layer, "_seed_generators", [])]
    if getattr(layer, "stateful", False):
        variables += [state for state in keras.tree.flatten(getattr(layer, "states", None)) if state is not None]
    return variables


def weights_by_name(model: Any) -> dict[str, list[np.ndarray]]:
    """Returns the weights of each layer of a Keras 3 or tf_keras model that has any; a nested model is one layer."""
    return {layer.name: [weight.numpy() for weight in layer.weights] for layer in model.layers if layer.weights}


def put_weights(
    layers: Mapping[str, Any], values: Mapping[str, Sequence[np.ndarray]], source: str, target: str
) -> None:
    """Sets the weights of the layers, of Keras 3 or tf_keras, that have the arrays' names.

    Args:
        source, target: names of what the arrays came from and what the layers belong to, for the error.

    Raises:
        GraphError: a layer is missing, or its weights have other shapes; no weights are set then.
    """
    for name, arrays in values.items():
        ours = [array.shape for array in arrays]
        theirs = [tuple(weight.shape) for weight in layers[name].weights] if name in layers else "no such layer"
        if ours != theirs:
            raise GraphError(
                f"layer {name!r} has weights of {ours} in {source!r}, but {target!r} has {theirs}. Both must be made "
                "from the same model"
            )
    for name, arrays in values.items():
        layers[name].set_weights(arrays)
        if hasattr(layers[name], "adapt_mean"):  # a Normalization computes with values that it derives from its weights
            layers[name].finalize_state()


def copy_weights(source: Any, target: Any) -> None:
    """Copies each layer's weights from `source` to the layer of that name in `target`; each is Keras 3 or tf_keras.

    Raises:
        GraphError: a layer with weights is missing in one of them, or shapes differ; nothing is copied then.
    """
    values = weights_by_name(source)
    wanted = {layer.name: layer for layer in target.layers if layer.weights}
    if values.keys() != wanted.keys():
        alone = sorted(values.keys() ^ wanted.keys())
        raise GraphError(
            f"layers with weights in only one of {source.name!r} and {target.name!r}: {', '.join(alone[:8])}"
            f"{' ...' if len(alone) > 8 else ''}. Both must be made from the same model"
        )
    put_weights(wanted, values, source.name, target.name)


def check_copy(model: Any, copy: Any, *, turned: bool = False, tolerance: float = TOLERANCE) -> None:
    """Compares the outputs of a model and its copy, each of Keras 3 or tf_keras, on two random inputs.

    Args:
        turned: whether the copy takes images, and returns feature maps, turned by 180 degrees.
        tolerance: in standard deviations of the output.

    Raises:
        GraphError: the outputs differ; the text names the first layer whose output does.
    """
    probes = [_make_probe(tensor, other) for tensor, other in zip(model.inputs, copy.inputs, strict=True)]
    given = [_turn(probe) if turned else probe for probe in probes]
    states = [state for one in (model, copy) for layer in one._flatten_layers() for state in _other_state(layer)]
    kept = [np.asarray(state) for state in states]
    try:
        expected = _compute_outputs(model, probes)
    except ValueError as error:
        raise GraphError(
            f"model {model.name!r} takes {[tuple(one.shape) for one in model.inputs]} and failed on a random input of "
            f"{[probe.shape for probe in probes]}: {str(error).splitlines()[0]} Give the input_shape that it takes"
        ) from error
    found = _compute_outputs(copy, given)
    pairs = list(zip(expected, map(_turn, found) if turned else found, strict=True))
    wrong = [number for number, pair in enumerate(pairs) if not _agree(*pair, tolerance)]
    place = _find_first_difference(model, copy, probes, given, turned, tolerance) if wrong else ""
    for state, value in zip(states, kept, strict=True):  # comparing must not change a stateful layer
        state.assign(value)
    if wrong:
        ours, theirs = (np.asarray(one, np.float64) for one in pairs[wrong[0]])
        difference = f"by up to {np.abs(ours - theirs).max():.3g}" if ours.shape == theirs.shape else "in shape"
        raise GraphError(
            f"the copy of model {model.name!r} does not compute what the model does: output {wrong[0]} differs "
            f"{difference} (standard deviation {ours.std():.3g}){place}. Such a layer keeps something that is in "
            "neither its weights nor its get_config(): replace it by standard layers, or give it a complete get_config"
        )


def _find_first_difference(
    model: Any, copy: Any, probes: list[Any], given: list[Any], turned: bool, tolerance: float
) -> str:
    ours, theirs = _first_outputs(model), _first_outputs(copy)
    names = [
        name
        for name, (layer, tensor) in ours.items()
        if name in theirs
        and tuple(tensor.shape) == tuple(theirs[name][1].shape)
        and _activation_name(layer) == _activation_name(theirs[name][0])
    ]
    if not names:
        return ""
    values = []
    for one, tensors, inputs in ((model, ours, probes), (copy, theirs, given)):
        maker = keras.Model if isinstance(one, keras.Model) else type(one)
        values.append(_compute_outputs(maker(one.inputs, [tensors[name][1] for name in names]), inputs))
    for name, mine, other in zip(names, *values, strict=True):
        if not _agree(mine, _turn(other) if turned else other, tolerance):
            return f", first at layer {name!r} ({kind_of(ours[name][0])})"
    return ""


def _first_outputs(model: Any) -> dict[str, tuple[Any, Any]]:
    """Returns layer name -> (layer, its first output), in running order if the model is of Keras 3."""
    if isinstance(model, keras.Model):
        firsts: dict[str, tuple[Any, Any]] = {}
        for call in calls(model):
            firsts.setdefault(call.layer.name, (call.layer, call.outputs[0]))
        return firsts
    return {layer.name: (layer, layer.get_output_at(0)) for layer in model.layers}


def _activation_name(layer: Any) -> str:
    return getattr(getattr(layer, "activation", None), "__name__", "")


def _compute_outputs(model: Any, inputs: list[Any]) -> list[np.ndarray]:
    functional = getattr(model, "_functional", None) or model
    structure = getattr(functional, "_inputs_struct", None)
    packed = inputs if len(inputs) > 1 else inputs[0]
    if structure is not None:
        packed = keras.tree.pack_sequence_as(structure, inputs)
    outputs = keras.tree.flatten(model(packed, training=False))
    return [np.asarray(one, np.float32 if "float" in str(one.dtype) else None) for one in outputs]


def _agree(expected: np.ndarray, found: np.ndarray, tolerance: float) -> bool:
    if expected.shape != found.shape:
        return False
    if not np.issubdtype(expected.dtype, np.floating):
        return bool(np.all(expected == found))
    if not np.array_equal(np.isfinite(expected), np.isfinite(found)):
        return False
    pairs = zip(np.nan_to_num(expected), np.nan_to_num(found), strict=True)
    return all(_is_near(*pair, tolerance) for pair in pairs)  # one by one: the inputs differ in magnitude


def _is_near(expected: np.ndarray, found: np.ndarray, tolerance: float) -> bool:
    expected, found = expected.astype(np.float64), found.astype(np.float64)
    limit = tolerance * (expected.std() + 0.05 * np.abs(expected).max(initial=0.0)) + 1e-30
    return bool(np.abs(expected - found).max(initial=0.0) <= limit)


def _turn(value: np.ndarray) -> np.ndarray:
    return value[:, ::-1, ::-1] if value.ndim == 4 else value


def _make_probe(tensor: Any, other: Any) -> Any:
    """Returns two random inputs: one around 0, like normalized images, and one from 0 to 255, like plain ones."""
    rng = np.random.default_rng(0)
    shape = [ours or theirs or OPEN_SIZE for ours, theirs in zip(tensor.shape[1:], other.shape[1:], strict=True)]
    count = tensor.shape[0] or other.shape[0] or 2
    dtype = keras.backend.standardize_dtype(tensor.dtype)
    if dtype == "string":
        return np.full((count, *shape), "a")
    if "float" not in dtype:
        return rng.integers(0, 100 if len(shape) == 3 else 2, (count, *shape)).astype(dtype)  # pixels, or codes
    plain = rng.uniform(0, 255, (count, *shape))
    plain[: (count + 1) // 2] = rng.normal(size=plain[: (count + 1) // 2].shape)
    return plain.astype(np.float32)
