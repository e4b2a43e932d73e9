"""How each family's paper trained its networks: the table for `recipes.train --settings=paper`.

Each row names its sources, the paper and the code that the authors released, and notes what they do not say. Batches
and rates are those of all workers together if the paper gives them so; asynchronous workers are replaced by one
synchronous worker.
"""

import dataclasses
from typing import Literal

from recipes.training.optimizer import Optimizer, Schedule, Settings


@dataclasses.dataclass(frozen=True)
class Paper:
    """A row: how to train, the network's options for training, and the source."""

    settings: Settings
    source: str
    drop_path: float = 0.0
    dropout: float = 0.0
    auxiliary: bool = True
    augment: Literal["crop", "cutout", "imagenet"] = "crop"


def _cosine(
    rate: float, epochs: int, batch_size: int, decay: float, clip: float | None = 5.0, decay_all: bool = False
) -> Settings:
    optimizer = Optimizer(weight_decay=decay, clip=clip, decay_all=decay_all)
    return Settings(epochs, batch_size, Schedule("cosine", rate), optimizer)


def _rmsprop(
    rate: float, decay: float, epochs: int = 250, batch_size: int = 1600, last: float = 0.0, warmup: float = 0.0
) -> Settings:
    """RMSProp as in TF-slim's notes; its momentum of 0.9 is slim's default, and the 250 epochs are not stated."""
    optimizer = Optimizer("rmsprop", epsilon=1.0, weight_decay=decay, clip=10.0)
    schedule = Schedule("exponential", rate, last, warmup, period=2.4, factor=0.97)
    return Settings(epochs, batch_size, schedule, optimizer, label_smoothing=0.1, average=0.9999)


_SLIM = "TF-slim nets/nasnet (notes, cifar_config)"
_SLIM_CIFAR = _cosine(0.025, 600, 32, 5e-4)
# The paper (AAAI 2019, Methods) has rate 0.001, period 2 and epsilon 0.1, for 100 asynchronous workers.
_AMOEBA_IMAGENET = _rmsprop(0.015, 4e-5, epochs=100, batch_size=32, last=0.015e-4, warmup=3)
_DARTS = "quark0/darts, cnn/train.py and train_imagenet.py"
_ENAS = "melodyguan/enas, final scripts; l2 without 1/2, hence twice; the auxiliary head is trained here, not there"
_ENAS_OPTIMIZER = Optimizer(nesterov=True, weight_decay=4e-4, decay_all=True)

# Not from a paper: the best settings for a short training
SMALL = Paper(
    Settings(6, 64, Schedule("cosine", 0.1, warmup=0.5), Optimizer(nesterov=True, weight_decay=5e-4, clip=5.0)),
    "measured on the embedded images",
    auxiliary=False,
)
# family -> scale, else cifar or imagenet -> row
PAPER: dict[str, dict[str, Paper]] = {
    "nasnet": {
        "cifar": Paper(_SLIM_CIFAR, _SLIM, drop_path=0.4),
        "mobile": Paper(_rmsprop(2.0, 4e-5), _SLIM, dropout=0.5, augment="imagenet"),
        "imagenet": Paper(_rmsprop(1.5, 5e-5), _SLIM, drop_path=0.3, dropout=0.5, augment="imagenet"),
    },
    "pnasnet": {
        "cifar": Paper(_SLIM_CIFAR, f"not known to us; as NASNet: {_SLIM}", drop_path=0.4),
        "mobile": Paper(
            _rmsprop(2.0, 4e-5),
            "rate and batch not known to us, as NASNet's mobile; the rest: TF-slim nets/nasnet/pnasnet.py", dropout=0.5,
            augment="imagenet",
        ),
        "imagenet": Paper(
            _rmsprop(1.5, 4e-5), "PNASNet.TF, pnasnet.py", drop_path=0.4, dropout=0.5, augment="imagenet"
        ),
    },
    "amoebanet": {
        "cifar": Paper(
            dataclasses.replace(_cosine(0.024, 600, 128, 5e-4, clip=None), auxiliary_weight=0.5),
            "AAAI 2019, Methods", drop_path=0.3
        ),
        "imagenet": Paper(
            _AMOEBA_IMAGENET, "tensorflow/tpu models/official/amoeba_net, imagenet_hparams", drop_path=0.3,
            dropout=0.5, augment="imagenet",
        ),
    },
    "mnasnet": {
        "imagenet": Paper(
            Settings(
                350, 4096, Schedule("exponential", 0.256, warmup=5, period=2.4, factor=0.97),
                Optimizer("rmsprop", epsilon=1e-3, weight_decay=1e-5, decay_biases=True), label_smoothing=0.1,
                average=0.9999,
            ),
            "arXiv:1807.11626, section 5, and tensorflow/tpu's configs", dropout=0.2, auxiliary=False,
            augment="imagenet",
        ),
    },
    "enas": {
        "cifar": Paper(
            Settings(630, 144, Schedule("restarts", 0.05, 1e-4, period=10, factor=2), _ENAS_OPTIMIZER), _ENAS,
            drop_path=0.4, dropout=0.2,
        ),
        "macro": Paper(
            Settings(310, 100, Schedule("restarts", 0.05, 1e-3, period=10, factor=2), _ENAS_OPTIMIZER), _ENAS,
            dropout=0.5, auxiliary=False,
        ),
    },
    "darts": {
        "cifar": Paper(
            dataclasses.replace(_cosine(0.025, 600, 96, 3e-4, decay_all=True), drop_path_by="epoch"), _DARTS,
            drop_path=0.2, augment="cutout",
        ),
        "imagenet": Paper(
            Settings(
                250, 128, Schedule("exponential", 0.1, period=1, factor=0.97),
                Optimizer(weight_decay=3e-5, decay_all=True, clip=5.0), label_smoothing=0.1,
            ),
            _DARTS, augment="imagenet",
        ),
    },
    "mcunet": {
        "imagenet": Paper(
            _cosine(0.05, 150, 256, 5e-5, clip=None), "arXiv:2007.10319, appendix E", auxiliary=False,
            augment="imagenet",
        ),
    },
}  # fmt: skip


def find_paper(family: str, scale: str, side: int) -> Paper:
    """Returns a family's row for the preset named `scale`, or, if it has no row, for images of `side` pixels.

    Raises:
        ValueError: the table has no such family.
    """
    if family not in PAPER:
        raise ValueError(f"no paper's settings for the family {family!r}; expected one of {', '.join(PAPER)}")
    rows = PAPER[family]
    return rows.get(scale) or rows.get("cifar" if side <= 64 else "imagenet") or next(iter(rows.values()))
