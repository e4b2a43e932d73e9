"""Cells selected by what the supernet loses without an operation or an edge, not by the strengths of its operations.

Source: Wang et al., "Rethinking Architecture Selection in Differentiable NAS", ICLR 2021, algorithm 1: edges in random
order each get the operation whose removal lowers the validation accuracy most, then nodes in random order keep the two
edges whose removal does; between two choices the supernet is tuned. Departures: only its weights are tuned, for the
steps that `tuning_steps` says (5 epochs in the paper); equal accuracies are told apart by the loss.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from recipes.darts.training import Bilevel
from zoo.genotype import Cells


def select_by_perturbation(
    state: Bilevel, batches: Sequence[tuple[Any, Any]], tune: Callable[[np.ndarray], None], rng: np.random.Generator
) -> Cells:
    """Returns the cells of a trained supernet.

    Args:
        state: the search at its end; its weights are tuned.
        batches: validation images and labels.
        tune: trains the weights with these strengths.
        rng: draws the order of edges and nodes.
    """
    space, strengths = state.net.space, state.strengths()

    def score_without(*place: Any) -> tuple[float, float]:
        """Returns accuracy and -loss of the supernet without a part."""
        perturbed = strengths.copy()
        perturbed[place] = 0
        found = [state.run([], batch, state.weights, strengths=perturbed)[0] for batch in batches]
        loss, accuracy = np.mean(found, axis=0)
        return float(accuracy), -float(loss)

    cells, edges, ops = space.shape
    for cell, edge in rng.permutation([(cell, edge) for cell in range(cells) for edge in range(edges)]):
        chosen = min(range(1, ops), key=lambda op, at=(cell, edge): score_without(*at, op))  # any but "none"
        strengths[cell, edge] = np.arange(ops) == chosen
        tune(strengths)
    nodes = space.split_edges(np.arange(edges))
    for cell, node in rng.permutation([(cell, node) for cell in range(cells) for node in range(space.nodes)]):
        ranked = sorted(nodes[node], key=lambda edge, cell=cell: score_without(cell, edge))
        if len(ranked) > 2:
            strengths[cell, ranked[2:]] = 0
            tune(strengths)
    return space.derive(strengths)
