"""The graph of a functional keras.Model as a list of calls in running order, and its flattening."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras


class GraphError(ValueError):
    """The model is not a graph that the deploy tools can walk."""


@dataclass(frozen=True)
class Call:
    """One call of one layer; `inputs` and `outputs` are the model's own symbolic tensors."""

    layer: Any
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]
    node: Any

    def replay(self, value_of: dict[int, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Returns the call's positional and keyword arguments with each tensor replaced by `value_of[id(tensor)]`."""

        def swap(value: Any) -> Any:
            return value_of.get(id(value), value)

        arguments = self.node.arguments
        replaced: Any = keras.tree.map_structure(swap, (arguments.args, arguments.kwargs))
        return replaced


def calls(model: keras.Model) -> list[Call]:
    """Returns every call between the model's inputs and outputs, each after those that it reads.

    Raises:
        GraphError: the model is subclassed or not built yet, so it has no graph.
    """
    _require_functional(model)
    ordered: list[Call] = []
    seen: set[int] = set()
    stack = [(_node_of(tensor), False) for tensor in reversed(model.outputs)]
    while stack:  # depth first without recursion: a chain may be longer than Python's stack
        node, inputs_are_done = stack.pop()
        if node.is_input or id(node) in seen:
            continue
        if inputs_are_done:
            seen.add(id(node))
            ordered.append(Call(node.operation, tuple(node.input_tensors), tuple(node.output_tensors), node))
        else:
            stack.append((node, True))
            stack.extend((_node_of(tensor), False) for tensor in reversed(node.input_tensors))
    return ordered


def require_flat(model: keras.Model) -> None:
    """Raises GraphError if the model has no graph, or has a model among its layers."""
    for call in calls(model):
        if isinstance(call.layer, keras.Model):
            raise GraphError(
                f"layer {call.layer.name!r} of model {model.name!r} is itself a model ({len(call.layer.layers)} "
                "layers), and a flat graph was expected. Call zoo.deploy.graph.flatten(model) first: it inlines it "
                "with the same weights"
            )


def flatten(model: keras.Model) -> keras.Model:
    """Returns a functional model of the same layers (shared, not copied) with every model inside it inlined.

    Raises:
        GraphError: a subclassed model is inside; it has no graph to inline.
    """
    _require_functional(model)
    value_of = {id(tensor): tensor for tensor in model.inputs}
    _inline(model, value_of)
    outputs = [value_of[id(tensor)] for tensor in model.outputs]
    one = len(outputs) == 1
    return keras.Model(model.inputs, outputs[0] if one else outputs, name=model.name)


def _inline(model: keras.Model, value_of: dict[int, Any]) -> None:
    for call in calls(model):
        if isinstance(call.layer, keras.Model):
            _require_functional(call.layer)
            inner = dict(zip(map(id, call.layer.inputs), (value_of[id(tensor)] for tensor in call.inputs), strict=True))
            _inline(call.layer, inner)
            outputs: Sequence[Any] = [inner[id(tensor)] for tensor in call.layer.outputs]
        else:
            arguments, options = call.replay(value_of)
            outputs = keras.tree.flatten(call.layer(*arguments, **options))
        value_of.update(zip(map(id, call.outputs), outputs, strict=True))


def _node_of(tensor: Any) -> Any:
    history = tensor._keras_history
    return history.operation._inbound_nodes[history.node_index]


def _require_functional(model: keras.Model) -> None:
    if not isinstance(model, keras.Model):
        raise GraphError(f"expected a keras.Model, got {type(model).__name__}")
    if not getattr(model, "outputs", None) or not getattr(model, "inputs", None):
        raise GraphError(
            f"model {model.name!r} ({type(model).__name__}) has no graph of layers. Build it with keras.Input and "
            "keras.Model(inputs, outputs), or call a Sequential model on an input once"
        )
