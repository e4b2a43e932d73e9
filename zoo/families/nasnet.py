"""NASNet (Zoph et al., 2018, arXiv:1707.07012), as the authors' TF-slim code builds it (nets/nasnet).

Pools leave out pixels outside the image, as in TF-slim, where all published weights were trained. The conversions in
timm and keras.applications count zeros there in strided means, keras.applications also in maxima; logits then differ by
a tenth of their standard deviation. `Style.border_average` selects timm's way.

Drop path has the rate of the end of training; recipes/train.py raises it to that from 0.
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
