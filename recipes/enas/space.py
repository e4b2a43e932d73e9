"""What ENAS chooses from: cells or chains, as decisions and as paths of a supernet."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from recipes.enas.micro import body_of as micro_body
from recipes.engine.spaces import CellSpace, Decision, Space
from zoo.formats.enas import MACRO_OPS, MICRO_OPS, to_enas_macro, to_enas_micro
from zoo.genotype import Cells, Chain, Layer


class MicroSpace(CellSpace):
    """The cells of ENAS: five operations, results added; the output is what no node reads, inputs included."""

    def __init__(self, nodes: int = 5):
        super().__init__("enas_micro", MICRO_OPS, nodes)

    def body(self, values: Mapping[str, Any]) -> Cells:
        """Returns the cells that `values` (decision -> choice) stand for."""
        path = np.zeros((2, self.nodes, 2, 2), np.int32)
        for cell, node, edge in np.ndindex(*path.shape[:3]):
            at = f"{self.cells[cell]}/node{node}"
            path[cell, node, edge] = values[f"{at}/state{edge}"], MICRO_OPS.index(values[f"{at}/op{edge}"])
        return micro_body(path)


@dataclasses.dataclass(frozen=True)
class ChainSpace(Space):
    """The chains of ENAS' macro space: each layer has one of six operations and any set of skips."""

    layers: int

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """For each layer its operation, and for each earlier state but the last whether it joins."""
        found = []
        for number in range(1, self.layers + 1):
            found.append(Decision(f"layer{number:02d}/op", MACRO_OPS, "op"))
            for state in range(number - 1):
                found.append(Decision(f"layer{number:02d}/skip{state:02d}", (0, 1), "skip"))
        return tuple(found)

    def body(self, values: Mapping[str, Any]) -> Chain:
        """Returns the chain that `values` (decision -> choice) stand for."""
        layers = []
        for number in range(1, self.layers + 1):
            name = f"layer{number:02d}"
            skips = (state for state in range(number - 1) if values[f"{name}/skip{state:02d}"])
            layers.append(Layer(values[f"{name}/op"], tuple(skips)))
        return Chain(tuple(layers))

    def values(self, body: Chain) -> dict[str, Any]:
        """Returns the values that stand for `body`: the inverse of `body`."""
        found = {}
        for number, layer in enumerate(body.layers, start=1):
            found[f"layer{number:02d}/op"] = layer.op
            for state in range(number - 1):
                found[f"layer{number:02d}/skip{state:02d}"] = int(state in layer.skips)
        return found


def path_of(body: Cells | Chain) -> np.ndarray:
    """Returns the path, int32, under which a supernet is this architecture; see its class for the shape."""
    if isinstance(body, Cells):
        return np.array(to_enas_micro(body), np.int32).reshape(2, -1, 2, 2)
    layers = len(body.layers)
    path, arc = np.zeros((layers, 1 + layers), np.int32), to_enas_macro(body)
    for layer in range(layers):
        path[layer, : 1 + layer], arc = arc[: 1 + layer], arc[1 + layer :]
    return path
