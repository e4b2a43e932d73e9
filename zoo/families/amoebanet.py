"""AmoebaNet (Real et al., 2019, arXiv:1802.01548), as the authors' TPU code builds it (models/official/amoeba_net).

The stack is NASNet's. The differences: bottlenecks around conv_3x3 and conv_1x7_7x1, a drop path rate that does not
grow with depth, and an auxiliary head of 0.4 times the width.

Batch normalisation has the TPU code's hyperparameters (amoeba_net_model.py: 0.9997, 1e-3). That code has no CIFAR
networks, and the paper does not give theirs. It trains CIFAR networks like NASNet's, so they have TF-slim's values for
NASNet on CIFAR (nasnet_cifar_arg_scope: 0.9, 1e-5).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import keras

from zoo.blocks import Style
from zoo.genotype import Genotype
from zoo.skeleton import Options, stack_cells

STYLE = Style(momentum=0.9997, epsilon=1e-3, bottleneck=True, drop_path_by_depth=False)
CIFAR_STYLE = dataclasses.replace(STYLE, momentum=0.9, epsilon=1e-5)
AUXILIARY_WIDTHS = (51, 307)  # int(128 x 0.4), int(768 x 0.4)


def build(genotype: Genotype, preset: Mapping[str, Any], options: Options) -> keras.Model:
    """Returns the network; `preset` is a `CellStack`."""
    return stack_cells(genotype, preset, options, STYLE, CIFAR_STYLE, AUXILIARY_WIDTHS)
