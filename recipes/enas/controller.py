"""The controllers of ENAS: the steps that draw a cell or a chain; recipes.oracles.attention takes these steps.

Source: Pham et al., ICML 2018, section 2, and melodyguan/enas (micro_controller.py, general_controller.py).
"""

from typing import Any

import keras
import numpy as np

from recipes.enas.space import ChainSpace, MicroSpace
from recipes.oracles.attention import AttentionController, Step
from zoo.formats.enas import MACRO_OPS
from zoo.genotype import INPUT_STATES

_FIRST_BIAS = (10.0, 10.0, 0.0, 0.0, 0.0)  # initial bias of micro operations, which favours both convolutions
_CONSTANT_BIAS = (0.25, 0.25, -0.25, -0.25, -0.25)  # added in the normal cell, never learned


class MicroController(AttentionController):
    """Draws the cells of a space: for each node two states, then two operations."""

    def __init__(self, space: MicroSpace, **settings: Any):
        self._space, steps = space, []
        for bias in (np.array(_CONSTANT_BIAS)[space.numbers].tolist(), 0.0)[: len(space.cells)]:
            steps += [Step(writes=place, blank=True) for place in range(INPUT_STATES)]
            for node in range(space.nodes):
                visible = INPUT_STATES + node
                steps += [Step("state", visible, then="places")] * 2 + [Step("op", then="op", bias=bias)] * 2
                steps.append(Step(writes=visible))
        first = np.array([INPUT_STATES + 5 * node for node in range(space.nodes)])[:, None, None]
        within = np.array([[0, 2], [1, 3]])  # the step of the state and of the operation of each edge
        cells = np.arange(len(space.cells))[:, None, None, None] * (len(steps) // len(space.cells))
        self._step_of = cells + first + within  # (cells, nodes, 2, 2)
        super().__init__(steps, len(space.ops), **settings)

    def draw_weight(self, weight: keras.Variable, rng: np.random.Generator) -> np.ndarray:
        """Returns initial values of a weight."""
        if weight is self.op_head.bias:
            return np.array(_FIRST_BIAS)[self._space.numbers]
        return super().draw_weight(weight, rng)

    def _paths(self, choices: np.ndarray) -> np.ndarray:
        paths = np.moveaxis(choices.argmax(axis=-1)[self._step_of], -1, 0).astype(np.int32)
        paths[..., 1] = self._space.numbers[paths[..., 1]]
        return self._space.complete(paths)

    def _choices(self, paths: np.ndarray) -> np.ndarray:
        choices = np.zeros((len(self._steps), len(paths), self._width), np.float32)
        chosen = paths[:, : len(self._space.cells)].copy()
        chosen[..., 1] = np.searchsorted(self._space.numbers, chosen[..., 1])
        choices[self._step_of, np.arange(len(paths))[:, None, None, None, None], chosen] = 1
        return choices


class MacroController(AttentionController):
    """Draws the layers in turn: an operation, then the skips from earlier layers."""

    reduces_ops = False

    def __init__(self, space: ChainSpace, **settings: Any):
        self.layers, steps = space.layers, []
        for layer in range(space.layers):
            steps.append(Step("op", then="op"))
            steps.append(Step("skips", layer, layer, then="places") if layer else Step(writes=layer))
        super().__init__(steps, len(MACRO_OPS), **settings)

    def _paths(self, choices: np.ndarray) -> np.ndarray:
        paths = np.zeros((choices.shape[1], self.layers, 1 + self.layers), np.int32)
        paths[:, :, 0] = choices[::2].argmax(axis=-1).T
        paths[:, :, 1 : 1 + self._places] = np.moveaxis(choices[1::2, :, : self._places], 0, 1)[:, :, : self.layers]
        return paths

    def _choices(self, paths: np.ndarray) -> np.ndarray:
        choices = np.zeros((len(self._steps), len(paths), self._width), np.float32)
        layers = np.arange(self.layers)
        choices[2 * layers, np.arange(len(paths))[:, None], paths[:, :, 0]] = 1
        choices[1::2, :, : self._places] = np.moveaxis(paths[:, :, 1 : 1 + self._places], 1, 0)
        return choices
