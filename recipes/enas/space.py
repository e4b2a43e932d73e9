"""The search spaces of ENAS, cells and chains: as decisions, and as paths of a supernet."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from recipes.engine.spaces import CellSpace, Decision, Space
from zoo.formats.enas import MACRO_OPS, MICRO_OPS, from_enas_macro, from_enas_micro, to_enas_macro, to_enas_micro
from zoo.genotype import INPUT_STATES, Cells, Chain, Layer


class MicroSpace(CellSpace):
    """The cells of ENAS: a node adds two of five operations; the output joins all states, also inputs, that none reads.

    A path is an int32 array (2, nodes, 2, 2): for the normal and the reduction cell, for each node and each of its two
    edges, the state that it reads and its operation, an index of MICRO_OPS.

    Args:
        nodes: number of nodes of a cell.
        ops: operations that an edge chooses from.
        fixed_reduction: whether to search only the normal cell. The first node of the reduction cell then adds max
            pools of both inputs, and each other node adds the node before it and a max pool of h[c-1].
    """

    def __init__(self, nodes: int = 5, ops: Sequence[str] = MICRO_OPS, fixed_reduction: bool = False):
        searched = ("normal",) if fixed_reduction else ("normal", "reduce")
        super().__init__("enas_micro", tuple(op for op in MICRO_OPS if op in ops), nodes, cells=searched)

    @property
    def numbers(self) -> np.ndarray:
        """The operations' numbers in a path."""
        return np.array([MICRO_OPS.index(op) for op in self.ops])

    def body(self, values: Mapping[str, Any]) -> Cells:
        """Returns the cells for the values of the decisions."""
        path = np.zeros((len(self.cells), self.nodes, 2, 2), np.int32)
        for cell, node, edge in np.ndindex(*path.shape[:3]):
            at = f"{self.cells[cell]}/node{node}"
            path[cell, node, edge] = values[f"{at}/state{edge}"], MICRO_OPS.index(values[f"{at}/op{edge}"])
        return self.decode(self.complete(path))

    def complete(self, searched: np.ndarray) -> np.ndarray:
        """Adds the fixed reduction cell, if any, to paths (.., 1 or 2, nodes, 2, 2); returns (.., 2, nodes, 2, 2)."""
        if len(self.cells) == 2:
            return searched
        pool, skip = MICRO_OPS.index("max_pool_3x3"), MICRO_OPS.index("skip_connect")
        fixed = [[[0, pool] if node == 0 else [1 + node, skip], [1, pool]] for node in range(self.nodes)]
        fixed = np.broadcast_to(np.array(fixed, np.int32), searched.shape)
        return np.concatenate([searched, fixed], axis=-4)

    def encode(self, body: Cells) -> np.ndarray:
        """Returns the path of cells."""
        return np.array(to_enas_micro(body), np.int32).reshape(2, -1, 2, 2)

    def decode(self, path: np.ndarray) -> Cells:
        """Returns the cells of a path."""
        normal, reduce = path.reshape(2, -1).tolist()
        body = from_enas_micro(normal, reduce).body
        assert isinstance(body, Cells)
        return body

    def draw_path(self, rng: np.random.Generator) -> np.ndarray:
        """Draws a path uniformly: every choice has equal chances."""
        path = np.zeros((len(self.cells), self.nodes, 2, 2), np.int32)
        for node in range(self.nodes):
            path[:, node, :, 0] = rng.integers(INPUT_STATES + node, size=(len(path), 2))
        path[..., 1] = self.numbers[rng.integers(len(self.ops), size=path.shape[:-1])]
        return self.complete(path)


@dataclasses.dataclass(frozen=True)
class ChainSpace(Space):
    """The chains of ENAS' macro space: each layer has one of six operations and any set of skips.

    A path is an int32 array (layers, 1 + layers): for each layer its operation, an index of MACRO_OPS, and a bit for
    each state: 0 is the stem, k is layer k. Layer k (from 1) has skips from states 0 to k-2; other bits are not read.
    """

    layers: int

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """For each layer its operation, and for each earlier state but the last whether there is a skip from it."""
        found = []
        for number in range(1, self.layers + 1):
            found.append(Decision(f"layer{number:02d}/op", MACRO_OPS, "op"))
            for state in range(number - 1):
                found.append(Decision(f"layer{number:02d}/skip{state:02d}", (0, 1), "skip"))
        return tuple(found)

    def body(self, values: Mapping[str, Any]) -> Chain:
        """Returns the chain for the values of the decisions."""
        layers = []
        for number in range(1, self.layers + 1):
            name = f"layer{number:02d}"
            skips = (state for state in range(number - 1) if values[f"{name}/skip{state:02d}"])
            layers.append(Layer(values[f"{name}/op"], tuple(skips)))
        return Chain(tuple(layers))

    def values(self, body: Chain) -> dict[str, Any]:
        """Returns the values of the decisions for this chain: the inverse of `body`."""
        found = {}
        for number, layer in enumerate(body.layers, start=1):
            found[f"layer{number:02d}/op"] = layer.op
            for state in range(number - 1):
                found[f"layer{number:02d}/skip{state:02d}"] = int(state in layer.skips)
        return found

    def encode(self, body: Chain) -> np.ndarray:
        """Returns the path of a chain."""
        path, arc = np.zeros((self.layers, 1 + self.layers), np.int32), to_enas_macro(body)
        for layer in range(self.layers):
            path[layer, : 1 + layer], arc = arc[: 1 + layer], arc[1 + layer :]
        return path

    def decode(self, path: np.ndarray) -> Chain:
        """Returns the chain of a path."""
        body = from_enas_macro([int(number) for layer, row in enumerate(path) for number in row[: 1 + layer]]).body
        assert isinstance(body, Chain)
        return body

    def draw_path(self, rng: np.random.Generator) -> np.ndarray:
        """Draws a path uniformly: every choice has equal chances."""
        path = np.zeros((self.layers, self.layers + 1), np.int32)
        path[:, 0] = rng.integers(len(MACRO_OPS), size=self.layers)
        path[:, 1:] = np.tril(rng.integers(2, size=(self.layers, self.layers)), -1)
        return path
