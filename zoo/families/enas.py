"""ENAS (Pham et al., 2018, arXiv:1802.03268), as the authors' code builds its final networks (melodyguan/enas,
src/cifar10/micro_child.py and general_child.py). Cells are its micro search space, a Chain is its macro space.

Parameters: the released scripts give 3,894,372 (micro) and 42,559,392 (macro), as built here; the paper's Table 1 has
4.6 and 38.0 million. Micro: the cell drawn in the paper is not the script's, and the code puts two 1x1 convolutions on
h[c-1], which the paper does not mention; with one there would be 3,729,420 parameters. Macro: the paper has separable
convolutions among its six operations, which the released code builds as plain ones; preset `cifar10_separable` follows
the paper's text and has 30,947,424 parameters. The macro network drawn in the paper has 12 layers and was never
released. Classifiers have no bias.

The released code cannot build a macro pool in a final network; here it comes after a 1x1 convolution, as in that code's
search network and as the convolutions do. Drop path has the rate of the end of training; recipes/train.py raises it to
that from 0.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import keras
from keras import layers

from zoo import blocks
from zoo.blocks import Style
from zoo.cell import expand
from zoo.formats.enas import MACRO_OPS
from zoo.genotype import Cells, Chain, Genotype, GenotypeError
from zoo.skeleton import NetworkBuilder, Options, get_body, read_preset

STYLE = Style(momentum=0.9, epsilon=1e-5, strided_skip="factorized_reduce_without_relu")
AUXILIARY_WIDTHS = (128, 768)


@dataclasses.dataclass(frozen=True)
class CellScale:
    """A preset for Cells: the number of normal cells, which two reductions join, and `filters` a node at the start."""

    cells: int
    filters: int


@dataclasses.dataclass(frozen=True)
class ChainScale:
    """A preset for a Chain: each layer's `filters` at the start, and whether sep_conv is separable, as in the paper."""

    filters: int
    separable: bool = False


def build(genotype: Genotype, preset: Mapping[str, Any], options: Options) -> keras.Model:
    """Returns the network; `preset` is a `CellScale` or a `ChainScale`, depending on the body."""
    body = get_body(genotype, Cells, Chain)
    network = NetworkBuilder(options, smallest=4, classifier_bias=False)
    if isinstance(body, Cells):
        return network.finish(blocks.relu(_add_cells(network, body, read_preset(CellScale, preset)), "top"))
    return network.finish(_add_chain(network, body, read_preset(ChainScale, preset)))


def _add_cells(network: NetworkBuilder, body: Cells, scale: CellScale) -> Any:
    """Adds stem, cells and auxiliary head: of L+2 cells, L//3 and 2(L//3)+1 reduce; the head reads the next cell."""
    rate, filters = network.options.drop_path_rate, scale.filters
    x = network.note(blocks.conv_bn(network.image, 3 * filters, 3, 1, STYLE, "stem"), 1)
    outputs = [(x, 0), (x, 0)]  # of each cell, and how often it was halved
    third, total = scale.cells // 3, scale.cells + 2
    for number in range(total):
        reducing = number in (third, 2 * third + 1)
        filters *= 2 if reducing else 1
        (oldest, oldest_level), (newest, level) = outputs[-2:]
        name = f"cell{number:02d}" + ("_reduce" if reducing else "")
        # the first of two 1x1 convolutions on h[c-1], only if the width differs; `expand` makes the second
        if newest.shape[-1] != filters:
            newest = blocks.conv_bn(blocks.relu(newest, f"{name}_calibrate"), filters, 1, 1, STYLE, f"{name}_calibrate")
        x = expand(
            (body.reduce or body.normal) if reducing else body.normal,
            (oldest, newest),
            filters,
            style=STYLE,
            name=name,
            strides=2 if reducing else 1,
            oldest_strides=2 if oldest_level < level else 1,
            drop_path_rate=rate * (number + 1) / total,
        )
        level += int(reducing)
        outputs.append((network.note(x, 2**level), level))
        if number == 2 * third + 2:
            network.add_auxiliary(x, STYLE, AUXILIARY_WIDTHS, strides=3, averaged=True)
    return outputs[-1][0]


def _add_chain(network: NetworkBuilder, body: Chain, scale: ChainScale) -> Any:
    """Adds stem and layers; after layers L//3 and 2(L//3) of L (from 1), all states that are read later are halved."""
    options = network.options
    if options.auxiliary or options.drop_path_rate:
        raise ValueError(
            f"auxiliary={options.auxiliary}, drop_path_rate={options.drop_path_rate}: ENAS' chains have neither an "
            "auxiliary head nor drop path; leave both out"
        )
    filters, level, third = scale.filters, 0, len(body.layers) // 3
    states = {0: network.note(blocks.conv_bn(network.image, filters, 3, 1, STYLE, "stem"), 1)}
    for number, layer in enumerate(body.layers, start=1):
        name = f"layer{number:02d}"
        x = _add_operation(states[number - 1], layer.op, filters, scale.separable, name)
        if number > 1:
            joined = [*(states[skip] for skip in sorted(layer.skips)), x]
            if len(joined) > 1:
                x = layers.Concatenate(name=f"{name}_concat")(joined)
            x = blocks.conv_bn(blocks.relu(x, f"{name}_join"), filters, 1, 1, STYLE, f"{name}_join")
        states[number] = network.note(x, 2**level)
        if number in (third, 2 * third):
            filters, level = 2 * filters, level + 1
            read_later = {number, *(skip for later in body.layers[number:] for skip in later.skips)}
            states = {
                state: blocks.factorized_reduce(x, filters, STYLE, f"{name}_halve{state:02d}")
                for state, x in states.items()
                if state in read_later
            }
    return states[len(body.layers)]


def _add_operation(x: Any, op: str, filters: int, separable: bool, name: str) -> Any:
    """Adds ReLU, 1x1 convolution, BN, ReLU, then the operation: a pool, or a convolution with BN."""
    if op not in MACRO_OPS:
        raise GenotypeError(f"{name} has the op {op!r}; a chain of ENAS has {', '.join(MACRO_OPS)}")
    x = blocks.conv_bn(blocks.relu(x, f"{name}_narrow"), filters, 1, 1, STYLE, f"{name}_narrow")
    x, size = blocks.relu(x, name), int(op[-1])
    if "pool" in op:
        return blocks.pool(x, "avg" if op.startswith("avg") else "max", size, 1, STYLE, f"{name}_{op}")
    if separable and op.startswith("sep"):
        x, size = blocks.depthwise(x, size, 1, STYLE, f"{name}_dw"), 1
    return blocks.conv_bn(x, filters, size, 1, STYLE, name)
