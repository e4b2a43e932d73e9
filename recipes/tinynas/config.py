"""The options of recipes.tinynas, and their presets."""

import dataclasses
from pathlib import Path
from typing import ClassVar, Literal

from recipes.engine.config import ChildConfig
from recipes.tinynas.needs import Budget
from recipes.tinynas.space import RESOLUTIONS, SMALL_STRIDES, STRIDES, WIDTHS, TinySpace
from recipes.training import check_at_least, check_options


@dataclasses.dataclass(frozen=True)
class Config(ChildConfig):
    """Options of the search."""

    trials: int = 100  # sub-networks to score by the shared weights
    # random, local and bayesian are baselines; the paper has only random. All score by the shared weights
    algorithm: Literal["evolution", "random", "local", "bayesian"] = "evolution"
    # its RAM and flash are the limits, unless max_sram and max_flash are given; tiny is made up: 48 KiB of RAM and
    # 192 KiB of flash, which networks for small images can fill
    board: Literal[
        "tiny", "stm32f412", "stm32f746", "stm32f765", "stm32h743", "nrf52840", "nrf5340", "rp2040", "esp32s3"
    ] = "tiny"
    engine: Literal["tflm", "bare"] = "tflm"  # bare counts only activations and weights, as for the paper's engine
    image_size: int | None = None  # the resolution; none lets the first stage choose
    resolutions: tuple[int, ...] = (16, 20, 24, 28)  # resolutions to choose from
    widths: tuple[float, ...] = (0.15, 0.2, 0.25, 0.3, 0.4)  # multiples of ProxylessNAS' widths to choose from
    space_networks: int = 500  # random networks per resolution and width
    rank_by: Literal["mean", "percentile"] = "mean"  # statistic of their multiply-adds; the percentile is the 80th
    least_share: float = 0.05  # share of the random networks that must fit at the chosen resolution and width
    strides: Literal["small", "imagenet"] = "small"  # halve images three times, or five times
    kernels: tuple[int, ...] = (3, 5, 7)  # kernel sizes that a block chooses from
    expansions: tuple[int, ...] = (3, 4, 6)  # factors that a block chooses from
    depths: tuple[int, ...] = (1, 2)  # numbers of blocks that a stage chooses from
    shares: tuple[float, ...] = (1.0,)  # shares of its filters that a stage may keep, such as 0.75,1
    stages: int = 6  # the first of six stages, the last with one block; fewer make a space that can be tabulated
    kernel_transform: bool = False  # transform smaller kernels by learnt matrices, not just cut them out (once-for-all)
    largest_epochs: int = 3  # epochs of the largest sub-network alone, which come first
    elastic_epochs: int = 6  # epochs of several sub-networks per step
    networks: int = 4  # sub-networks per step
    # sandwich: the largest, the smallest and random ones; random, as in the paper; fair: random ones in which the
    # choices of each decision occur equally often in a step (Chu et al., "FairNAS", ICCV 2021, strict fairness)
    sampling: Literal["sandwich", "random", "fair"] = "sandwich"
    distillation: float = 1.0  # weight of the loss against the largest sub-network's predictions; 0 in the paper
    score: Literal["accuracy", "loss"] = "accuracy"  # score of sub-networks; the loss ranks better without distillation
    supernets: int = 1  # once-for-all networks, each with its own seed; a sub-network's score is the mean over them
    supernet_rate: float = 0.05  # learning rate of the shared weights
    population: int = 20  # networks per generation
    parents: int = 5  # networks, the best so far, that are parents of the next generation
    mutation: float = 0.1  # probability that a choice is drawn again
    calibration_batches: int = 8  # batches of batch_size images for the normalisation of each sub-network
    # file of the shared weights, if several searches share them; none: supernet.npz in the folder. With several
    # supernets, this is the first one's, and files next to it have the others
    supernet: Path | None = None
    save_seconds: float = 30.0  # seconds between two saves of the shared weights
    training_images: int | None = 3000  # images to train on, with the classes in proportion; none for all
    augment: bool = False  # crop and flip
    epochs: int = 3  # epochs of fine-tuning, and of trainings from scratch to compare
    random_networks: int = 12  # networks to train from scratch for comparison, and to rank by shared weights too
    folder: Path = Path("runs/tinynas")  # results, and the state to resume from

    metrics: ClassVar[tuple[str, ...]] = (
        "val_accuracy", "val_loss", "params", "macs", "peak_memory", "flash", "arena", "file"
    )  # fmt: skip

    added: ClassVar[tuple[str, ...]] = ("score", "stages", "supernets")
    free: ClassVar[tuple[str, ...]] = ("random_networks", "save_seconds", "supernet")

    def __post_init__(self):
        super().__post_init__()
        least = {"largest_epochs": 0, "elastic_epochs": 0, "networks": 1, "population": 2, "parents": 1, "supernets": 1}
        check_at_least(self, least | {"calibration_batches": 1, "random_networks": 0, "space_networks": 1})
        check_options(self, "resolutions", "one or more, from 8 pixels", lambda sides: min(sides, default=0) >= 8)
        check_options(self, "widths", "one or more numbers above 0", lambda widths: min(widths, default=0) > 0)
        check_options(self, "supernet_rate", "a rate above 0", lambda value: value > 0)
        check_options(self, "distillation save_seconds", "a number of 0 or more", lambda value: value >= 0)
        check_options(self, "least_share", "a share from 0 to 1", lambda value: 0 <= value <= 1)
        if self.elastic_epochs + self.largest_epochs == 0:
            raise ValueError("largest_epochs and elastic_epochs are both 0; nothing would be learnt. Raise one of them")
        Budget.from_board(self.board)
        self.make_space(self.widths[0])

    def make_space(self, width: float) -> TinySpace:
        """Returns the space of this width."""
        strides = SMALL_STRIDES if self.strides == "small" else STRIDES
        return TinySpace(width, strides, self.kernels, self.expansions, self.depths, self.shares, stages=self.stages)

    @property
    def score_name(self) -> str:
        """The metric that serves as the score."""
        return "val_loss" if self.score == "loss" else "val_accuracy"

    @property
    def budget(self) -> Budget:
        """The memory that a network may take."""
        return Budget.from_board(self.board, self.max_sram, self.max_flash, bare=self.engine == "bare")


PRESETS = {
    "laptop": Config(  # the best on the table tinynas: docs/results.md
        sampling="fair", distillation=0.0, largest_epochs=0, supernet_rate=0.15, score="loss", supernets=3
    ),
    "paper": Config(
        trials=3100, data="tfds:imagenet2012", board="stm32f746", resolutions=RESOLUTIONS, widths=WIDTHS,
        space_networks=1000, least_share=0.01, strides="imagenet", depths=(2, 3, 4), largest_epochs=150,
        elastic_epochs=300, sampling="random", distillation=0.0, population=100, parents=20, calibration_batches=20,
        training_images=None, validation_images=10_000, epochs=100, random_networks=0, batch_size=256,
        weight_decay=5e-5, augment=True, folder=Path("runs/tinynas-paper"),
    ),
    "smoke": Config(
        trials=4, resolutions=(12, 16), widths=(0.15, 0.2), space_networks=20, kernels=(3, 5), depths=(1,),
        largest_epochs=1, elastic_epochs=1, networks=2, population=2, parents=1, calibration_batches=1,
        training_images=60, validation_images=50, epochs=1, random_networks=2, batch_size=20,
        folder=Path("runs/tinynas-smoke"),
    ),
}  # fmt: skip
