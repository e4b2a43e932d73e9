"""MnasNet: a controller draws seven blocks, each with an architecture of its own; what scores is accuracy and latency.

    python -m recipes.mnasnet                            # minutes on 2 cores, embedded images, this machine's latency
    python -m recipes.mnasnet --algorithm=random         # the baseline at the same budget
    python -m recipes.mnasnet --algorithm=bayesian       # or local: baselines that the paper lacks, for small budgets
    python -m recipes.mnasnet --alpha=0 --beta=-1        # the target as a hard limit
    python -m recipes.mnasnet --latency_table=pixel.json --target=75    # latencies of another device
    python -m recipes.mnasnet --preset=paper --dry_run   # what the paper's search would need on this machine

The result is runs/mnasnet/genotype.json; runs/mnasnet/pareto holds the networks that no other dominates in accuracy
and latency. Killed and started again with the same command, the search resumes.

Source: Tan et al., arXiv:1807.11626, sections 3 to 5: reward = accuracy x (latency / target)^w. Departures: those
of recipes.nasnet, which has the same controller, and of BlockSpace; equal networks are trained once; the laptop preset
has MobileNetV2 at a quarter of its width and 0.4 of its depth, and strides for small images.

Result of the first command on 2 cores, seed 0, one run: the best of 24 networks has a reward of 0.739 (0.750 of the
1,000 validation images, 0.053 ms for a target of 0.043); 16 random networks have 0.620 on average, with a standard
deviation of 0.076.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from recipes import _main
from recipes.engine.config import SMOKE, ControllerConfig, offer_oracle
from recipes.engine.spaces import Decision, Space, check_values
from recipes.training import check_at_least, check_options
from recipes.training.progress import Observe
from zoo.genotype import Block, Blocks, Genotype

if TYPE_CHECKING:
    from recipes.engine.children import NetworkScorer
    from recipes.oracles import SearchOracle

Shape = tuple[int, int, int]  # height, width, channels
OBJECTIVE = "reward"
# Sandler et al., arXiv:1801.04381, table 2: filters, layers, strides; the first is depthwise separable
MOBILENET_V2 = ((16, 1, 1), (24, 2, 2), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1))
MOBILENET_V2_STEM, MOBILENET_V2_HEAD = 32, 1280
STRIDES = tuple(strides for _, _, strides in MOBILENET_V2)
SMALL_STRIDES = (1, 1, 2, 1, 1, 2, 1)  # for images of 28 to 64 pixels, after the stem has halved them
OPS = ("conv", "sep_conv", "mb_conv_e3", "mb_conv_e6")
KERNELS, SE_RATIOS, SKIPS = (3, 5), (0.0, 0.25), ("pool", "identity", "none")
FILTERS, LAYERS = (0.75, 1.0, 1.25), (-1, 0, 1)


@dataclasses.dataclass(frozen=True)
class Config(ControllerConfig):
    """Options of the search."""

    image_size: int | None = 28  # images are resized to this many pixels a side; none keeps their size
    target: float | None = None  # T, ms per image; none takes the latency of MobileNetV2 at this width and depth
    alpha: float = -0.07  # exponent of latency / T up to the target; 0 if the target is a hard limit
    beta: float = -0.07  # exponent beyond the target; -1 if the target is a hard limit
    latency_table: Path | None = None  # JSON of another device (recipes.measure_latencies); none measures this machine
    width: float = 0.25  # multiple of MobileNetV2's filters; the paper has 1
    depth: float = 0.4  # multiple of MobileNetV2's layers; the paper has 1
    divisor: int = 2  # filters are multiples of this; the paper's networks have 8
    strides: Literal["small", "imagenet"] = "small"  # halve images three times, or five
    pareto: tuple[str, ...] = ("val_accuracy:max", "latency_ms:min")  # metrics and directions that pareto/ trades off
    folder: Path = Path("runs/mnasnet")  # results, and the state to resume from

    metrics: ClassVar[tuple[str, ...]] = (*ControllerConfig.metrics, "latency_ms", OBJECTIVE)

    def __post_init__(self):
        super().__post_init__()
        check_at_least(self, {"divisor": 1})
        check_options(self, "target", "milliseconds above 0, or none", lambda value: value > 0)
        if self.alpha > 0 or self.beta > 0:
            raise ValueError(
                f"alpha is {self.alpha} and beta {self.beta}; above 0, slower networks would score higher. "
                "Expected -0.07 for both, or 0 and -1 for a hard limit"
            )
        if self.latency_table is not None and not self.latency_table.is_file():
            raise ValueError(
                f"latency_table: there is no file {self.latency_table}; see recipes.engine.latency for its format"
            )


PRESETS = {
    "laptop": Config(),
    "paper": Config(
        trials=8000, data="tfds:imagenet2012", image_size=224, training_images=None, validation_images=50_000,
        epochs=5, batch_size=256,  # this and the next two are not stated for the search
        learning_rate=0.1, weight_decay=1e-5, target=75.0, width=1.0, depth=1.0, divisor=8, strides="imagenet",
        controller_rate=0.00035, controller_batch=20, folder=Path("runs/mnasnet-paper"),
    ),
    "smoke": Config(
        **SMOKE, epochs=1, trials=3, width=0.125, depth=0.1, hidden=10, controller_batch=2,
        folder=Path("runs/mnasnet-smoke"),
    ),
}  # fmt: skip


def reward(accuracy: float, milliseconds: float, target: float, alpha: float, beta: float) -> float:
    """Returns accuracy x (latency / target)^w, where w is alpha up to the target and beta beyond (equation 2)."""
    return accuracy * (milliseconds / target) ** (alpha if milliseconds <= target else beta)


@dataclasses.dataclass(frozen=True)
class BlockSpace(Space):
    """Networks of seven blocks around MobileNetV2; `width`, `depth` and `strides` fit them to small images.

    Factorised and hierarchical (section 4.1): each block has its own choice of operation, kernel size,
    squeeze-and-excite, skip, filters and layers, and its layers are alike. Departures: a block of one layer cannot lose
    it; filters are the multiple of `divisor` nearest to their share of MobileNetV2's (the published MnasNet-A1 has 112
    filters where 1.25 x 96 is 120).

    Attributes:
        width: multiple of MobileNetV2's filters, including stem and head.
        depth: multiple of MobileNetV2's layers, rounded for each block, at least one.
        strides: of the first layer of each block.
        divisor: filters are multiples of this.
        name: for messages and provenance.
    """

    width: float = 1.0
    depth: float = 1.0
    strides: tuple[int, ...] = STRIDES
    divisor: int = 8
    name: str = "mnasnet"

    def __post_init__(self):
        blocks = len(MOBILENET_V2)
        check_options(self, "strides", f"{blocks} numbers, each 1 or 2", lambda s: len(s) == blocks and {*s} <= {1, 2})
        check_options(self, "width depth", "a number above 0, at most 10", lambda value: 0 < value <= 10)
        check_at_least(self, {"divisor": 1})

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """Block by block, in the order of the paper."""
        found = []
        for block in range(len(MOBILENET_V2)):
            layers = tuple(change for change in LAYERS if self._layers(block) + change >= 1)
            choices = {"op": OPS, "kernel": KERNELS, "se": SE_RATIOS, "skip": SKIPS}
            choices |= {"filters": FILTERS, "layers": layers}
            found += [Decision(f"block{block}/{kind}", options, kind) for kind, options in choices.items()]
        return tuple(found)

    def body(self, values: Mapping[str, Any]) -> Blocks:
        """Returns the blocks that `values` (decision -> choice) encode."""
        rows = []
        for block, strides in enumerate(self.strides):
            chosen = {kind: values[f"block{block}/{kind}"] for kind in ("op", "kernel", "se", "skip", "filters")}
            rows.append(
                self._row(block, strides, repeats=self._layers(block) + values[f"block{block}/layers"], **chosen)
            )
        stem, head = self._rounded(MOBILENET_V2_STEM), self._rounded(MOBILENET_V2_HEAD)
        return Blocks(tuple(rows), stem, head)

    def mobilenet_v2(self) -> dict[str, Any]:
        """Returns the values of MobileNetV2 itself, the centre of the space."""
        middle = {"kernel": 3, "se": 0.0, "skip": "identity", "filters": 1.0, "layers": 0}
        found = {}
        for decision in self.decisions:
            first = decision.name.startswith("block0/")
            found[decision.name] = middle.get(decision.kind, "sep_conv" if first else "mb_conv_e6")
        return check_values(found, self.decisions)

    def largest(self) -> list[dict[str, Any]]:
        """Returns, for each op, the values of the largest network that has only this op."""
        most = {"kernel": 5, "se": 0.25, "skip": "pool", "filters": max(FILTERS), "layers": max(LAYERS)}
        return [{d.name: most.get(d.kind, op) for d in self.decisions} for op in OPS]

    def layers(self) -> Iterator[tuple[int, int, int, Block]]:
        """Yields all layers of the space's networks: block, halvings since the stem, input filters, layer.

        Some are repeated.
        """
        inputs, halvings = [self._rounded(MOBILENET_V2_STEM)], 0
        for block, strides in enumerate(self.strides):
            options = itertools.product(OPS, KERNELS, SE_RATIOS, SKIPS, FILTERS)
            rows = [self._row(block, strides, 1, *chosen) for chosen in options]
            for row, width in itertools.product(rows, inputs):
                yield block, halvings, width, row
            halvings += strides - 1
            for row in rows if self._layers(block) + max(LAYERS) > 1 else ():
                yield block, halvings, row.filters, dataclasses.replace(row, strides=1)
            inputs = sorted({row.filters for row in rows})

    def _row(self, block: int, strides: int, repeats: int, op: str, kernel: int, se: float, skip: Any, filters: float):
        kind, _, expansion = op.partition("_e")
        return Block(
            kind,  # pyright: ignore[reportArgumentType]
            kernel_size=kernel,
            filters=self._rounded(filters * MOBILENET_V2[block][0]),
            strides=strides,
            expansion=int(expansion or 1),
            repeats=repeats,
            se_ratio=se,
            skip=skip,
        )

    def _layers(self, block: int) -> int:
        return max(1, math.floor(self.depth * MOBILENET_V2[block][1] + 0.5))

    def _rounded(self, filters: float) -> int:
        return max(1, math.floor(self.width * filters / self.divisor + 0.5)) * self.divisor


def iterate_layers(space: BlockSpace, input_shape: Shape, classes: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yields, once for each layer that networks of a space may have, its name and a function that builds it alone.

    Args:
        space: the space of networks.
        input_shape: height, width and channels of the images.
        classes: of the data.
    """
    import keras
    from keras import layers

    from recipes.engine.latency import head_name, layer_name, stem_name
    from zoo.blocks import conv_bn
    from zoo.families.mnasnet import STYLE
    from zoo.mobile_blocks import block

    def build(shape: Shape, add: Callable[[Any], Any]) -> Any:
        image = keras.Input(shape)
        return keras.Model(image, add(image))

    def add_convolution(x: Any, filters: int, kernel_size: int, strides: int, name: str) -> Any:
        return layers.ReLU()(conv_bn(x, filters, kernel_size, strides, STYLE, name))

    def add_head(x: Any) -> Any:
        x = x if body.head_filters is None else add_convolution(x, body.head_filters, 1, 1, "head")
        return layers.Dense(classes)(layers.GlobalAveragePooling2D()(x))

    height, width, channels = input_shape
    body, seen = space.body(space.mobilenet_v2()), set()
    stem = functools.partial(add_convolution, filters=body.stem_filters, kernel_size=3, strides=2, name="stem")
    yield stem_name(height, width, channels, body.stem_filters), functools.partial(build, input_shape, stem)
    for number, halvings, inputs, row in space.layers():
        rows, columns = -(-height // 2 ** (halvings + 1)), -(-width // 2 ** (halvings + 1))
        layer: Any = functools.partial(block, row=row, strides=row.strides, style=STYLE, name="layer")
        found = [(layer_name(rows, columns, inputs, row, row.strides), (rows, columns, inputs), layer)]
        if number == len(space.strides) - 1:
            last = -(-rows // row.strides), -(-columns // row.strides), row.filters
            found.append((head_name(*last, body.head_filters, classes), last, add_head))
        for name, shape, add in found:
            if name not in seen:
                seen.add(name)
                yield name, functools.partial(build, shape, add)


def search(config: Config, observe: Observe | None = None) -> Genotype:
    """Searches and returns the best network; `observe` receives the search's state in place of a progress bar."""
    from recipes import _search
    from recipes.engine import children as child_networks
    from recipes.engine.dry_run import dry_run
    from recipes.engine.latency import LatencyTable, name_machine

    space = make_space(config)
    images = child_networks.load_images(config)
    table = None if config.latency_table is None else LatencyTable.load(config.latency_table)
    if table is not None:
        table.require(name for name, _ in iterate_layers(space, images.input_shape, images.classes))
    shape: dict[str, Any] = {"input_shape": list(images.input_shape), "classes": images.classes}
    presets = {"search": shape, "double": {"width_multiplier": 2.0, **shape}}
    scorer = child_networks.NetworkScorer(config, space, "mnasnet", presets, images, latencies=table)
    if config.dry_run:
        return dry_run(scorer, space.largest())
    try:
        target = config.target or scorer.latency(space.mobilenet_v2())
    finally:
        scorer.close()
    reward_at_target = functools.partial(reward, target=target, alpha=config.alpha, beta=config.beta)
    scorer = dataclasses.replace(scorer, reward=reward_at_target)
    provenance = {"target_ms": target, "latency_of": name_machine() if table is None else table.machine}
    return _search.run_trials(make_oracle(config, space, scorer), scorer, "mnasnet", observe, provenance)


def make_space(config: Config) -> BlockSpace:
    """Returns the space that `config` asks for."""
    strides = SMALL_STRIDES if config.strides == "small" else STRIDES
    return BlockSpace(config.width, config.depth, strides, config.divisor)


def make_oracle(config: Config, space: BlockSpace, scorer: "NetworkScorer") -> "SearchOracle":
    """Returns the oracle that `config` asks for."""
    return scorer.baseline_oracle(config.algorithm) or config.make_controller(scorer.oracle_arguments())


__getattr__ = offer_oracle("ControllerOracle", __name__)


if __name__ == "__main__":
    _main.run(search, PRESETS)
