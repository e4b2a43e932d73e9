"""Do the shared weights of DARTS' supernet rank cells as training them alone does? Kendall's tau over random cells."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from recipes.darts.supernet import OPS, Supernet
from zoo.genotype import INPUT_STATES, Cells

_CERTAIN = 50.0  # an alpha whose softmax beside zeros is 1 in float32
_BATCH = 250  # images; the supernet normalises by the statistics of a batch


def alphas_of(cells: Cells, nodes: int) -> np.ndarray:
    """Returns alphas (2, edges, ops) whose softmax is the cells: 1 for their operations, and for "none" elsewhere.

    Raises:
        ValueError: cells of another number of nodes, or without a reduction cell.
    """
    if cells.reduce is None or any(len(graph.nodes) != nodes for graph in (cells.normal, cells.reduce)):
        raise ValueError(f"expected a normal and a reduction cell of {nodes} nodes each, as the supernet has them")
    edges = sum(INPUT_STATES + node for node in range(nodes))
    alphas = np.zeros((2, edges, len(OPS)), np.float32)
    alphas[..., OPS.index("none")] = _CERTAIN
    for table, graph in zip(alphas, (cells.normal, cells.reduce), strict=True):
        start = 0
        for number, node in enumerate(graph.nodes):
            for edge in node.edges:
                table[start + edge.state] = 0
                table[start + edge.state, OPS.index(edge.op)] = _CERTAIN
            start += INPUT_STATES + number
    return alphas


class SharedAccuracies:
    """Judges cells with the weights of a supernet; one trace serves all weights and cells."""

    def __init__(self, net: Supernet):
        self._net = net
        self._right = tf.function(self._count_right, autograph=False)

    def __call__(
        self, weights: np.ndarray, candidates: Sequence[Cells], images: np.ndarray, labels: np.ndarray
    ) -> list[float]:
        """Returns each candidate's accuracy, 0 to 1.

        Args:
            weights: the supernet's, after its search.
            candidates: cells of its space.
            images, labels: validation data, normalised as the supernet's training was; what does not fill a batch is
                left out, for it would have other statistics.
        """
        size = min(_BATCH, len(images))
        count = len(images) // size * size
        vector, found = tf.constant(weights), []
        for cells in candidates:
            alphas, total = tf.constant(alphas_of(cells, self._net.nodes)), 0
            for start in range(0, count, size):
                part = slice(start, start + size)
                batch, wanted = tf.constant(images[part], tf.float32), tf.constant(labels[part], tf.int32)
                total += int(self._right(vector, alphas, batch, wanted))
            found.append(total / count)
        return found

    def _count_right(self, weights: Any, alphas: Any, images: Any, labels: Any) -> Any:
        told = tf.argmax(self._net.logits(weights, alphas, images), -1, tf.int32)
        return tf.reduce_sum(tf.cast(tf.equal(told, labels), tf.int32))
