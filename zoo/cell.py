"""Cells as Keras layers: `expand` adds a cell's layers to a functional graph; `Cell` wraps them as one layer."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import layers

from zoo import blocks
from zoo.blocks import Style, Tensor
from zoo.genotype import INPUT_STATES, CellGraph, GenotypeError, check_whole
from zoo.genotype_json import graph_as_dict, graph_from_dict
from zoo.ops import OPS, State


def expand(
    graph: CellGraph,
    inputs: Sequence[Tensor],
    filters: int,
    *,
    style: Style,
    name: str,
    strides: int = 1,
    oldest_strides: int = 1,
    drop_path_rate: float = 0.0,
) -> Tensor:
    """Adds the layers of one cell to a functional graph and returns its output.

    Args:
        graph: the cell.
        inputs: h[c-2] and h[c-1]. If h[c-2] is None, state 0 is h[c-1] itself, unprojected.
        filters: channels of each node.
        style: the family's conventions.
        name: prefix of the layers' names; those of an edge begin with NAME_node2_edge0.
        strides: of the operations that read states 0 and 1; 2 in a reduction cell.
        oldest_strides: 2 if h[c-2] is twice as high and wide as h[c-1].
        drop_path_rate: the probability that training drops an edge for an image.

    Raises:
        GenotypeError: the output needs a node that is zero.
    """
    live = graph.live_states()
    states: dict[int, State] = {}
    if 0 in live:
        states[0] = State(_project_oldest(inputs, filters, oldest_strides, style, f"{name}_input0"), f"{name}_input0")
    if 1 in live:
        newest = blocks.relu(inputs[1], f"{name}_input1_newest")
        states[1] = State(blocks.conv_bn(newest, filters, 1, 1, style, f"{name}_input1"), f"{name}_input1")
    for number, node in enumerate(graph.nodes, start=INPUT_STATES):
        if number not in live:
            continue
        parts = []
        for place, (op, source) in graph.edges_of(number):
            edge = f"{name}_node{number}_edge{place}"
            step = strides if source < INPUT_STATES else 1
            x = OPS[op](states[source], filters, step, style, edge)
            parts.append(_drop_path(x, op, states[source], drop_path_rate, style, edge))
        if not parts:
            raise GenotypeError(
                f'node {number} of {name} is zero, because its edges are "none" or read zero nodes, but the output '
                "needs it: put an operation on an edge, or leave the node out of concat"
            )
        states[number] = State(
            _combine(parts, node.combine, filters, style, f"{name}_node{number}"), f"{name}_node{number}"
        )
    outputs = [
        _as_output(states[number], number, filters, strides, style, f"{name}_output{number}") for number in graph.concat
    ]
    return outputs[0] if len(outputs) == 1 else layers.Concatenate(name=f"{name}_concat")(outputs)


def _project_oldest(inputs: Sequence[Tensor], filters: int, oldest_strides: int, style: Style, name: str) -> Tensor:
    """Returns h[c-2] with the height, width and channels of the cell."""
    oldest, newest = inputs
    if oldest is None:
        return newest
    if oldest_strides > 1:
        return blocks.factorized_reduce(blocks.relu(oldest, f"{name}_oldest"), filters, style, name)
    if style.oldest_input == "always" or oldest.shape[-1] != filters:
        return blocks.conv_bn(blocks.relu(oldest, f"{name}_oldest"), filters, 1, 1, style, name)
    return oldest


def _drop_path(x: Tensor, op: str, source: State, rate: float, style: Style, name: str) -> Tensor:
    if rate <= 0 or (op == "skip_connect" and (x is source.tensor or not style.drop_path_on_skip)):
        return x
    return layers.Dropout(rate, noise_shape=(None, 1, 1, 1), name=f"{name}_drop_path")(x)


def _combine(parts: list[Tensor], combine: str, filters: int, style: Style, name: str) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    if combine == "add":
        return layers.Add(name=f"{name}_add")(parts)
    # NASNet's paper has "1x1 convolutions inserted as necessary" to keep each state at the same number of filters.
    x = layers.Concatenate(name=f"{name}_concat")(parts)
    return blocks.conv_bn(blocks.relu(x, f"{name}_concat"), filters, 1, 1, style, name)


def _as_output(state: State, number: int, filters: int, strides: int, style: Style, name: str) -> Tensor:
    """Gives an input state that is part of the output the shape of the nodes (without ReLU, as in TF-slim)."""
    if number >= INPUT_STATES:
        return state.tensor
    if strides > 1:
        return blocks.factorized_reduce(state.tensor, filters, style, name)
    if state.filters != filters:
        return blocks.conv_bn(state.tensor, filters, 1, 1, style, name)
    return state.tensor


_DEFAULT_STYLE = Style()


@keras.saving.register_keras_serializable("zoo")
class Cell(layers.Layer):
    """One cell as a layer, for your own models: `y = zoo.Cell(zoo.load("darts").body.normal, 32)([h0, h1])`.

    It computes the same as the flat layers of `expand`, which `zoo.build` uses because TFLite and TF-MOT need them.

    Input: a pair (h[c-2], h[c-1]) of shape (batch, height, width, channels); their channels may differ.
    Output: (batch, height / strides rounded up, width / strides rounded up, filters x number of concatenated states).
    """

    def __init__(
        self,
        graph: CellGraph | Mapping[str, Any],
        filters: int,
        *,
        strides: int = 1,
        oldest_strides: int = 1,
        drop_path_rate: float = 0.0,
        style: Style | Mapping[str, Any] = _DEFAULT_STYLE,
        **layer_options: Any,
    ):
        """Creates the layer; the arguments are those of `expand`, or their plain form from `get_config`."""
        super().__init__(**layer_options)
        check_whole("a Cell's filters", filters)
        if strides not in (1, 2) or oldest_strides not in (1, 2):
            raise ValueError(f"strides={strides!r}, oldest_strides={oldest_strides!r}; expected 1 or 2")
        if not isinstance(drop_path_rate, (int, float)) or not 0 <= drop_path_rate < 1:
            raise ValueError(f"drop_path_rate={drop_path_rate!r}; expected a number from 0 to less than 1")
        if not isinstance(graph, (CellGraph, Mapping)):
            raise GenotypeError(f"graph is {graph!r:.200}; expected a CellGraph, such as zoo.load('darts').body.normal")
        if not isinstance(style, (Style, Mapping)):
            raise ValueError(f"style is {style!r:.200}; expected a zoo.blocks.Style, such as zoo.families.darts.STYLE")
        self.graph = graph if isinstance(graph, CellGraph) else graph_from_dict(graph)
        self.filters = filters
        self.strides = strides
        self.oldest_strides = oldest_strides
        self.drop_path_rate = drop_path_rate
        self.style = style if isinstance(style, Style) else Style(**style)
        self.network: Any = None  # a keras.Model after `build`

    def build(self, input_shape: Sequence[Sequence[int | None]]) -> None:
        """Builds the inner network; `input_shape` is the pair of input shapes, batch first."""
        if len(input_shape) != 2 or not all(isinstance(shape, Sequence) for shape in input_shape):
            raise ValueError(f"a Cell is called on a pair [h0, h1]; got an input of shape {input_shape}")
        if any(len(shape) != 4 or shape[-1] is None for shape in input_shape):
            raise ValueError(
                f"a Cell is called on images (batch, height, width, channels) of known channels; got {input_shape}"
            )
        for oldest, newest in zip(input_shape[0][1:3], input_shape[1][1:3], strict=True):
            if oldest is not None and newest is not None and -(-oldest // self.oldest_strides) != newest:
                raise ValueError(
                    f"the sizes of {input_shape} do not fit oldest_strides={self.oldest_strides}: expected h0 as high "
                    "and wide as h1 with 1, and twice as high and wide with 2"
                )
        with blocks.layer_defaults(self.dtype_policy):
            inputs = [keras.Input(shape[1:]) for shape in input_shape]
            output = expand(
                self.graph, inputs, self.filters, style=self.style, name=self.name, strides=self.strides,
                oldest_strides=self.oldest_strides, drop_path_rate=self.drop_path_rate,
            )  # fmt: skip
            self.network = keras.Model(inputs, output, name=f"{self.name}_network")
        self.built = True

    def call(self, inputs: Sequence[Tensor], training: bool | None = None) -> Tensor:
        """Returns the cell's output for the pair (h[c-2], h[c-1])."""
        return self.network(inputs, training=training)

    def compute_output_shape(self, input_shape: Sequence[Sequence[int | None]]) -> tuple[int | None, ...]:
        """Returns the output's shape for the pair of input shapes."""
        sides = [side if side is None else -(-side // self.strides) for side in input_shape[1][1:3]]
        return (input_shape[1][0], *sides, self.filters * len(self.graph.concat))

    def get_config(self) -> dict[str, Any]:
        """Returns plain values from which `from_config` makes the same layer."""
        own = {
            "graph": graph_as_dict(self.graph),
            "filters": self.filters,
            "strides": self.strides,
            "oldest_strides": self.oldest_strides,
            "drop_path_rate": self.drop_path_rate,
            "style": dataclasses.asdict(self.style),
        }
        return super().get_config() | own
