"""MnasNet: a controller draws seven blocks, each with an architecture of its own; what scores is accuracy and latency.

    python -m recipes.mnasnet                            # minutes on 2 cores, embedded images, latency of this machine
    python -m recipes.mnasnet --algorithm=random         # the baseline at the same budget
    python -m recipes.mnasnet --alpha=0 --beta=-1        # the target as a hard limit
    python -m recipes.mnasnet --latency_table=pixel.json --target=75    # of a device that is not at hand
    python -m recipes.mnasnet --preset=paper --dry_run   # what the paper's search would need on this machine

The result is runs/mnasnet/genotype.json; runs/mnasnet/pareto holds the networks that no other beats in accuracy and
latency. Killed and started again with the same command, the search goes on.

Source: Tan et al., arXiv:1807.11626, sections 3 to 5: reward = accuracy x (latency / target)^w. Departures: those of
recipes.engine.spaces_mnasnet and recipes.nasnet, whose controller this is; equal networks are trained once; the laptop
preset has MobileNetV2 at a quarter of its width and 0.4 of its depth, and strides for small images.

Seen of the first command on 2 cores, seed 0, one run: the best of 24 networks has the reward 0.739 (0.750 of the 1,000
validation images, 0.053 ms where the target is 0.043); 16 random ones have 0.620 on average, with a deviation of 0.076.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import keras

from recipes import _main
from recipes.engine import children as child_networks
from recipes.engine import run as child_search
from recipes.engine import tuner
from recipes.engine.children import Children
from recipes.engine.controller_config import ControllerConfig
from recipes.engine.dry_run import dry_run
from recipes.engine.latency import machine
from recipes.engine.latency_table import Table, names_of_space
from recipes.engine.spaces_mnasnet import SMALL_STRIDES, STRIDES, BlockSpace
from recipes.oracles import ControllerOracle, SearchOracle
from zoo.genotype import Genotype

__all__ = [
    "OBJECTIVE",
    "PRESETS",
    "Config",
    "ControllerOracle",
    "RewardedChildren",
    "oracle",
    "reward",
    "search",
    "space_of",
]

OBJECTIVE = "reward"


@dataclasses.dataclass(frozen=True)
class Config(ControllerConfig):
    """Options of the search."""

    image_size: int | None = 28  # side in pixels that images are resized to; none keeps theirs
    target: float | None = None  # T, ms an image; none takes the latency of MobileNetV2 at this width and depth
    alpha: float = -0.07  # exponent of latency / T up to the target; 0 where the target is a hard limit
    beta: float = -0.07  # exponent beyond it; -1 where the target is a hard limit
    latency_table: Path | None = None  # JSON of another device (recipes.measure_latencies); none measures here
    width: float = 0.25  # of MobileNetV2's filters; the paper has 1
    depth: float = 0.4  # of MobileNetV2's layers; the paper has 1
    divisor: int = 2  # filters are multiples of it; the paper's networks have 8
    strides: Literal["small", "imagenet"] = "small"  # halve images three times, or five
    pareto: tuple[str, ...] = ("val_accuracy:max", "latency_ms:min")  # what pareto/ trades off: metrics and directions
    folder: Path = Path("runs/mnasnet")  # results, and the state to resume from

    metrics: ClassVar[tuple[str, ...]] = (*ControllerConfig.metrics, "latency_ms", OBJECTIVE)

    def __post_init__(self):
        super().__post_init__()
        if self.divisor < 1:
            raise ValueError(f"divisor is {self.divisor}; expected a whole number from 1")
        if self.target is not None and not self.target > 0:
            raise ValueError(f"target is {self.target}; expected milliseconds above 0, or none")
        if self.alpha > 0 or self.beta > 0:
            raise ValueError(
                f"alpha is {self.alpha} and beta {self.beta}; above 0 slower networks would score higher. "
                "Expected -0.07 for both, or 0 and -1 for a hard limit"
            )
        if self.latency_table is not None and not self.latency_table.is_file():
            raise ValueError(
                f"latency_table: there is no file {self.latency_table}; see recipes.engine.latency_table for its form"
            )


PRESETS = {
    "laptop": Config(),
    "paper": Config(
        trials=8000,
        data="tfds:imagenet2012",
        image_size=224,
        training_images=None,
        validation_images=50_000,
        epochs=5,
        batch_size=256,  # this and the next two are not stated for the search
        learning_rate=0.1,
        weight_decay=1e-5,
        target=75.0,
        width=1.0,
        depth=1.0,
        divisor=8,
        strides="imagenet",
        controller_rate=0.00035,
        controller_batch=20,
        folder=Path("runs/mnasnet-paper"),
    ),
    "smoke": Config(
        trials=3,
        image_size=8,
        training_images=60,
        validation_images=100,
        epochs=1,
        width=0.125,
        depth=0.1,
        hidden=10,
        controller_batch=2,
        folder=Path("runs/mnasnet-smoke"),
    ),
}


def reward(accuracy: float, milliseconds: float, target: float, alpha: float, beta: float) -> float:
    """Returns accuracy x (latency / target)^w, w = alpha up to the target and beta beyond (the paper's equation 2)."""
    return accuracy * (milliseconds / target) ** (alpha if milliseconds <= target else beta)


@dataclasses.dataclass(frozen=True)
class RewardedChildren(Children):
    """Children that are scored by accuracy and latency; `table` is of the device, None for this machine."""

    table: Table | None = None

    @property
    def portable(self) -> bool:
        """Whether a trial gives the same in another process: latencies are measured on an idle machine only."""
        return self.table is not None

    def latency(self, values: Mapping[str, Any], model: keras.Model | None = None) -> float:
        """Returns the ms of one image, by the table or measured here."""
        if self.table is None:
            return super().latency(values, model)
        return self.table.latency(self.space.body(values), self.images.input_shape, self.images.classes)

    def target(self) -> float:
        """Returns T, in ms."""
        assert isinstance(self.config, Config)
        assert isinstance(self.space, BlockSpace)
        return self.config.target or self.latency(self.space.mobilenet_v2())

    def score(self, task: tuner.Task) -> dict[str, float]:
        """Returns the reward and what it is made of; the latency comes first, while the cores have nothing to do."""
        config = self.config
        assert isinstance(config, Config)
        milliseconds, target = self.latency(task.values), self.target()
        tuner.forget_models()
        found = super().score(task)
        score = reward(found["val_accuracy"], milliseconds, target, config.alpha, config.beta)
        return found | {"latency_ms": milliseconds, OBJECTIVE: score}


def search(config: Config, observe: Callable[[tuner.Status], None] | None = None) -> Genotype:
    """Searches and returns the best network; `observe` gets the state of the search instead of a progress bar."""
    space = space_of(config)
    images = child_networks.load_images(config)
    table = None if config.latency_table is None else Table.load(config.latency_table)
    if table is not None:
        table.require(names_of_space(space, images.input_shape, images.classes))
    shape: dict[str, Any] = {"input_shape": list(images.input_shape), "classes": images.classes}
    presets = {"search": shape, "double": {"width_multiplier": 2.0, **shape}}
    children = RewardedChildren(config, space, "mnasnet", presets, images, table)
    if config.dry_run:
        return dry_run(children, space.largest())
    device = machine() if table is None else table.machine
    try:
        provenance = {"target_ms": children.target(), "latency_of": device}
        return child_search.run(oracle(config, space, children), children, "mnasnet", observe, provenance)
    finally:
        children.close()


def space_of(config: Config) -> BlockSpace:
    """Returns the space that `config` asks for."""
    strides = SMALL_STRIDES if config.strides == "small" else STRIDES
    return BlockSpace(config.width, config.depth, strides, config.divisor)


def oracle(config: Config, space: BlockSpace, children: Children) -> SearchOracle:
    """Returns the oracle that `config` asks for."""
    return config.oracle(child_search.oracle_arguments(config, space, children, OBJECTIVE))


if __name__ == "__main__":
    _main.run(search, PRESETS)
