"""DARTS (Liu et al., 2019, arXiv:1806.09055), as the authors' PyTorch code builds it (quark0/darts, cnn/model.py).

Strided layers pad as PyTorch does, so that weights trained there give the same outputs.
Drop path has the rate of the end of training; recipes/train.py raises it to that from 0.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import keras

from zoo import blocks
from zoo.blocks import Style
from zoo.cell import expand
from zoo.genotype import Cells, Genotype
from zoo.skeleton import NetworkBuilder, Options, get_body, read_preset

STYLE = Style(
    padding="torch",
    strided_skip="factorized_reduce",
    oldest_input="always",
    drop_path_on_skip=True,
    drop_path_by_depth=False,
)
AUXILIARY_WIDTHS = (128, 768)


@dataclasses.dataclass(frozen=True)
class DartsStack:
    """A preset: the number of cells, with the reductions at one and two thirds, and `filters` a node at the start."""

    cells: int
    filters: int
    stem: Literal["cifar", "imagenet"]
    stem_multiplier: int = 3  # the CIFAR stem's width / filters


def build(genotype: Genotype, preset: Mapping[str, Any], options: Options) -> keras.Model:
    """Returns the network; `preset` is a `DartsStack`."""
    graphs, scale = get_body(genotype, Cells), read_preset(DartsStack, preset)
    network = NetworkBuilder(options, smallest=32 if scale.stem == "imagenet" else 4)
    outputs = _add_imagenet_stem(network, scale) if scale.stem == "imagenet" else _add_cifar_stem(network, scale)
    filters = scale.filters
    for number in range(scale.cells):
        reducing = number in (scale.cells // 3, 2 * scale.cells // 3)
        filters *= 2 if reducing else 1
        (oldest, oldest_level), (newest, level) = outputs[-2:]
        x = expand(
            (graphs.reduce or graphs.normal) if reducing else graphs.normal,
            (oldest, newest),
            filters,
            style=STYLE,
            name=f"cell{number:02d}" + ("_reduce" if reducing else ""),
            strides=2 if reducing else 1,
            oldest_strides=2 if oldest_level < level else 1,
            drop_path_rate=options.drop_path_rate,
        )
        level += int(reducing)
        outputs.append((network.note(x, 2**level), level))
        if number == 2 * scale.cells // 3:
            imagenet = scale.stem == "imagenet"  # its auxiliary head lacks the last normalisation, as published
            network.add_auxiliary(x, STYLE, AUXILIARY_WIDTHS, strides=2 if imagenet else 3, normalised=not imagenet)
    return network.finish(outputs[-1][0])


def _add_cifar_stem(network: NetworkBuilder, scale: DartsStack) -> list[tuple[Any, int]]:
    """Returns h[c-2] and h[c-1] of the first cell, each with how often it was halved."""
    x = blocks.conv_bn(network.image, scale.stem_multiplier * scale.filters, 3, 1, STYLE, "stem")
    network.note(x, 1)
    return [(x, 0), (x, 0)]


def _add_imagenet_stem(network: NetworkBuilder, scale: DartsStack) -> list[tuple[Any, int]]:
    x = blocks.conv_bn(network.image, scale.filters // 2, 3, 2, STYLE, "stem0_first")
    x = blocks.relu(network.note(x, 2), "stem0_second")
    oldest = network.note(blocks.conv_bn(x, scale.filters, 3, 2, STYLE, "stem0_second"), 4)
    newest = blocks.conv_bn(blocks.relu(oldest, "stem1"), scale.filters, 3, 2, STYLE, "stem1")
    return [(oldest, 2), (network.note(newest, 8), 3)]
