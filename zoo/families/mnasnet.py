"""MnasNet (Tan et al., 2019, arXiv:1807.11626), from the block lists of the authors' TPU code (mnasnet_models.py).

Departures: the TPU code pads strided convolutions as TensorFlow does and normalises with an epsilon of 1e-3; these
networks pad as PyTorch does, with 1e-5, because most published weights are timm's and torchvision's. The presets named
imagenet_tpu, and mnasnet_small_tpu, are the TPU code's networks. The momentum is the paper's (section 5; timm has 0.9,
torchvision 0.9997); it matters in training only.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import keras

from zoo.blocks import Style
from zoo.genotype import Block, Blocks, Genotype, GenotypeError
from zoo.mobile_blocks import expand_blocks
from zoo.skeleton import NetworkBuilder, Options, get_body, read_preset

STYLE = Style(padding="torch", momentum=0.99, epsilon=1e-5)
SMALLEST_MULTIPLIER, LARGEST_MULTIPLIER = 0.05, 10


@dataclasses.dataclass(frozen=True)
class Preset:
    """What a genotype file's preset, or `zoo.build` itself, may set besides input shape and classes."""

    width_multiplier: float = 1.0  # of all widths except the last convolution's; published: 0.35 to 1.4
    padding: Literal["same", "torch"] | None = None  # replaces the style's, as epsilon does
    epsilon: float | None = None

    def __post_init__(self):
        value = self.width_multiplier
        numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not numeric or not SMALLEST_MULTIPLIER <= value <= LARGEST_MULTIPLIER:
            raise GenotypeError(
                f"width_multiplier is {value!r}; expected a number from {SMALLEST_MULTIPLIER} to {LARGEST_MULTIPLIER} "
                "(published networks have 0.35, 0.5, 0.75, 1.0, 1.3 and 1.4)"
            )


def build(genotype: Genotype, preset: Mapping[str, Any], options: Options) -> keras.Model:
    """Returns the network; `preset`, overridden by `options.extra`, is a `Preset`. There is no auxiliary head."""
    if options.auxiliary:
        raise ValueError("auxiliary=True: MnasNet has no auxiliary head; leave the argument out")
    scale = read_preset(Preset, {**preset, **options.extra})
    own = {name: value for name in ("padding", "epsilon") if (value := getattr(scale, name)) is not None}
    network = NetworkBuilder(options, smallest=1)
    x = expand_blocks(
        scale_widths(get_body(genotype, Blocks), scale.width_multiplier),
        network.image,
        style=dataclasses.replace(STYLE, **own),
        activation="relu",
        drop_path_rate=options.drop_path_rate,
        note=network.note,
    )
    return network.finish(x)


def scale_widths(body: Blocks, multiplier: float) -> Blocks:
    """Returns the blocks with all widths multiplied; the last convolution keeps its width."""
    if multiplier == 1:
        return body
    rows = tuple(_scale_row(row, multiplier) for row in body.rows)
    return dataclasses.replace(body, rows=rows, stem_filters=round_filters(body.stem_filters * multiplier))


def _scale_row(row: Block, multiplier: float) -> Block:
    middle = None if row.mid_filters is None else round_filters(row.mid_filters * multiplier)
    return dataclasses.replace(row, filters=round_filters(row.filters * multiplier), mid_filters=middle)


def round_filters(filters: float) -> int:
    """Returns the nearest multiple of 8 (ties go up), or the next one if that loses more than a tenth."""
    rounded = max(8, int(filters + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * filters else rounded + 8
