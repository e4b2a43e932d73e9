"""MCUNet (Lin et al., 2020, arXiv:2007.10319) and its baselines, as in the configurations that its authors released.

The networks pad as PyTorch does. So do the TFLite files released with them, by explicit padding.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import keras

from zoo.blocks import Style
from zoo.genotype import Blocks, Genotype
from zoo.mobile_blocks import expand_blocks
from zoo.skeleton import NetworkBuilder, Options, get_body, read_preset

STYLE = Style(padding="torch", momentum=0.9, epsilon=1e-5)


@dataclasses.dataclass(frozen=True)
class Preset:
    """What a genotype file's preset may set besides input shape and classes."""

    epsilon: float = STYLE.epsilon  # of batch normalisation; the MobileNetV2 and Proxyless baselines have 1e-3


def build(genotype: Genotype, preset: Mapping[str, Any], options: Options) -> keras.Model:
    """Returns the network; `preset`, overridden by `options.extra`, is a `Preset`. There is no auxiliary head."""
    if options.auxiliary:
        raise ValueError("auxiliary=True: MCUNet has no auxiliary head; leave the argument out")
    epsilon = read_preset(Preset, {**preset, **options.extra}).epsilon
    network = NetworkBuilder(options, smallest=1)
    x = expand_blocks(
        get_body(genotype, Blocks),
        network.image,
        style=dataclasses.replace(STYLE, epsilon=epsilon),
        activation="relu6",
        drop_path_rate=options.drop_path_rate,
        note=network.note,
    )
    return network.finish(x)
