"""Walks, replays, flattens and copies the graph of a functional keras.Model: any model, not only this zoo's.

`calls` lists a model's calls, `replay` makes them again with changes, `flatten` returns the one form that tools have to
know. Copies are returned only after `check_copy` has compared their outputs with the model's.
"""

from zoo.graph.calls import (
    Call,
    GraphError,
    call_layer,
    calls,
    head_activations,
    kind_of,
    model_like,
    node_of,
    readers_of,
    replay,
)
from zoo.graph.copies import call_copy, check_copy, copy_model, copy_state, copy_weights, put_weights, weights_by_name
from zoo.graph.flat import Flat, flatten, inline

__all__ = [
    "Call", "Flat", "GraphError", "call_copy", "call_layer", "calls", "check_copy", "copy_model", "copy_state",
    "copy_weights", "flatten", "head_activations", "inline", "kind_of", "model_like", "node_of", "put_weights",
    "readers_of", "replay", "weights_by_name",
]  # fmt: skip
