"""PNASNet (Liu et al., 2018, arXiv:1712.00559), as TF-slim's nets/nasnet/pnasnet.py builds it.

There is one cell; it is its own reduction cell, run at stride 2, and all of its nodes are concatenated.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import keras

from zoo.blocks import Style
from zoo.genotype import Genotype
from zoo.skeleton import Options, stack_cells

STYLE = Style(momentum=0.9997, epsilon=1e-3)
CIFAR_STYLE = dataclasses.replace(STYLE, momentum=0.9, epsilon=1e-5)


def build(genotype: Genotype, preset: Mapping[str, Any], options: Options) -> keras.Model:
    """Returns the network; `preset` is a `CellStack`."""
    return stack_cells(genotype, preset, options, STYLE, CIFAR_STYLE)
