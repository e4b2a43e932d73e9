"""The calls of a functional keras.Model in running order, and their replay."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras

_PASS_ON = ("Dropout", "Flatten", "Identity", "Reshape")  # may stand between the last activation and the output


class GraphError(ValueError):
    """The model has no graph that can be walked, or cannot be copied faithfully."""


@dataclass(frozen=True)
class Call:
    """One call of one layer or operation; `inputs` and `outputs` are the model's own symbolic tensors."""

    layer: Any
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]
    node: Any

    @property
    def kind(self) -> str:
        """The class name of a layer of keras.layers, such as Conv2D; otherwise a dotted name, as in `kind_of`."""
        return kind_of(self.layer)

    def replay(self, value_of: Mapping[int, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Returns the call's positional and keyword arguments with each tensor replaced by `value_of[id(tensor)]`."""

        def swap(value: Any) -> Any:
            return value_of.get(id(value), value)

        arguments = self.node.arguments
        replaced: Any = keras.tree.map_structure(swap, (arguments.args, arguments.kwargs))
        return replaced


Run = Callable[[Call, tuple[Any, ...], dict[str, Any]], Any]


def kind_of(layer: Any) -> str:
    """Returns "Conv2D" for keras.layers.Conv2D itself, "keras.ops.Add" for an operation, else module and class."""
    name = type(layer).__name__
    if getattr(keras.layers, name, None) is type(layer):
        return name
    module = type(layer).__module__
    return f"keras.ops.{name}" if module.startswith(("keras.src.ops", "keras.src.activations")) else f"{module}.{name}"


def calls(model: keras.Model) -> list[Call]:
    """Returns every call between the model's inputs and outputs, each after the calls that it reads.

    Raises:
        GraphError: the model is subclassed or not built yet, so it has no graph.
    """
    require_functional(model)
    ordered: list[Call] = []
    seen: set[int] = set()
    stack = [(node_of(tensor), False) for tensor in reversed(model.outputs)]
    while stack:  # depth first without recursion: a chain may be longer than Python's stack
        node, inputs_are_done = stack.pop()
        if node.is_input or id(node) in seen:
            continue
        if inputs_are_done:
            seen.add(id(node))
            ordered.append(Call(node.operation, tuple(node.input_tensors), tuple(node.output_tensors), node))
        else:
            stack.append((node, True))
            stack.extend((node_of(tensor), False) for tensor in reversed(node.input_tensors))
    return ordered


def call_layer(call: Call, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Calls the layer again, unchanged: the default of `replay`."""
    return call.layer(*arguments, **options)


def replay(model: keras.Model, inputs: Iterable[Any], run: Run = call_layer) -> list[Any]:
    """Returns the model's outputs for `inputs`, symbolic or not, with `run` in place of each layer's call.

    Args:
        run: takes a call and its current positional and keyword arguments; returns the call's output or outputs.
    """
    value_of = dict(zip(map(id, model.inputs), inputs, strict=True))
    for call in calls(model):
        outputs = keras.tree.flatten(run(call, *call.replay(value_of)))
        value_of.update(zip(map(id, call.outputs), outputs, strict=True))
    return [value_of[id(tensor)] for tensor in model.outputs]


def model_like(model: keras.Model, inputs: Sequence[Any], outputs: Sequence[Any]) -> keras.Model:
    """Returns a functional model of symbolic `inputs` and `outputs`, structured (in a dict, say) like `model`'s."""
    functional = getattr(model, "_functional", None) or model
    return keras.Model(
        keras.tree.pack_sequence_as(functional._inputs_struct, list(inputs)),
        keras.tree.pack_sequence_as(functional._outputs_struct, list(outputs)),
        name=model.name,
    )


def readers_of(model: keras.Model, graph: Iterable[Call]) -> dict[int, list[Call | None]]:
    """Returns the calls that read each tensor, by the tensor's id; None stands for an output of the model."""
    readers: dict[int, list[Call | None]] = {}
    for call in graph:
        for tensor in call.inputs:
            readers.setdefault(id(tensor), []).append(call)
    for tensor in model.outputs:
        readers.setdefault(id(tensor), []).append(None)
    return readers


def head_activations(model: keras.Model) -> list[str]:
    """Returns the activation that each output of a functional model ends in, such as softmax or linear."""
    made = {id(tensor): call for call in calls(model) for tensor in call.outputs}
    names = []
    for tensor in model.outputs:
        call = made.get(id(tensor))
        while call is not None and (call.kind in _PASS_ON or _is_linear(call)):
            call = made.get(id(call.inputs[0]))
        if call is None:
            names.append("linear")
        elif isinstance(call.layer, keras.Model):
            names.append(head_activations(call.layer)[[id(one) for one in call.outputs].index(id(tensor))])
        elif call.kind.removeprefix("keras.ops.") in ("Softmax", "ReLU", "Sigmoid"):
            names.append(call.kind.removeprefix("keras.ops.").lower())
        else:
            names.append(getattr(getattr(call.layer, "activation", None), "__name__", "linear"))
    return names


def _is_linear(call: Call) -> bool:
    return call.kind == "Activation" and call.layer.activation.__name__ == "linear"


def node_of(tensor: Any) -> Any:
    """Returns the node of Keras' graph that made a symbolic tensor."""
    history = tensor._keras_history
    return history.operation._inbound_nodes[history.node_index]


def require_functional(model: keras.Model) -> None:
    """Raises GraphError if a model has no graph of layers."""
    if not isinstance(model, keras.Model):
        raise GraphError(f"expected a keras.Model, got {type(model).__name__}")
    if not getattr(model, "outputs", None) or not getattr(model, "inputs", None):
        raise GraphError(
            f"model {model.name!r} ({type(model).__name__}) has no graph of layers. Build it with keras.Input and "
            "keras.Model(inputs, outputs), or call a Sequential model on an input once"
        )
