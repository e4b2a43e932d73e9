"""Search spaces: named decisions, and the genotype that their values stand for."""

from recipes.engine.spaces.cells import (
    AMOEBANET_OPS,
    NASNET_OPS,
    PNASNET_OPS,
    CellSpace,
    amoebanet,
    nasnet,
    uniform_cells,
)
from recipes.engine.spaces.decisions import Decision, Space, check_values, hyperparameters_of, kinds_of

__all__ = [
    "AMOEBANET_OPS",
    "NASNET_OPS",
    "PNASNET_OPS",
    "CellSpace",
    "Decision",
    "Space",
    "amoebanet",
    "check_values",
    "hyperparameters_of",
    "kinds_of",
    "nasnet",
    "uniform_cells",
]
