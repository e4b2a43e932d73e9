"""What people add to a training of their images: mixed batches, another optimiser, weights of classes, precision."""

import dataclasses
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from recipes.images import FolderOptions

if TYPE_CHECKING:
    from recipes.images import augment
    from recipes.training.optimizer import Optimizer

ADAMW_RATE = 0.001  # of a training whose learning rate is not given
_UNBALANCED = 2.0  # the largest class has this many times the images of the smallest: worth a word


@dataclasses.dataclass(frozen=True)
class TrainingOptions(FolderOptions):
    """Options that recipes.train and recipes.finetune share."""

    optimizer: Literal["adamw"] | None = None  # none takes that of the settings
    # of activations, while weights stay float32: faster and half the memory on GPUs that have it
    mixed_precision: Literal["bfloat16", "float16"] | None = None
    class_weights: Literal["balanced"] | None = None  # balanced: all classes count alike, however many images they have
    mixup: float | None = None  # blends pairs of images and labels; alpha of the share's Beta distribution, such as 0.2
    cutmix: float | None = None  # pastes a window of another image; alpha as above, up to 1; with mixup, each batch one
    rand_augment: float | None = None  # two random changes of shape or colour an image, of this strength, 0 to 1

    def __post_init__(self):
        for name, most in (("mixup", float("inf")), ("cutmix", 1.0), ("rand_augment", 1.0)):
            value = getattr(self, name)
            if value is not None and not 0 < value <= most:
                limit = "" if most == float("inf") else f", at most {most:g}"
                raise ValueError(f"{name} is {value}; expected a number above 0{limit}, or none")

    @property
    def dtype(self) -> str | None:
        """The Keras policy of the network that trains, or None for its own."""
        return None if self.mixed_precision is None else f"mixed_{self.mixed_precision}"

    def choose_optimizer(self, usual: "Optimizer") -> "Optimizer":
        """Returns the step of a training whose settings have `usual`.

        AdamW as Loshchilov and Hutter (2019) with PyTorch's betas; decay of 0.05 as is usual for images, of kernels
        alone.
        """
        from recipes.training.optimizer import Optimizer

        if self.optimizer is None:
            return usual
        return Optimizer("adam", mean_decay=0.999, epsilon=1e-8, weight_decay=0.05, decay_in="weights", clip=usual.clip)

    def make_augment(self, usual: "augment.Step | None") -> "augment.Step | None":
        """Returns the augmentation of a training whose settings have `usual`."""
        from recipes.images import augment

        if self.rand_augment is None:
            return usual
        added = augment.rand_augment(self.rand_augment)
        return added if usual is None else augment.chain(usual, added)

    def make_mix(self, classes: int) -> "augment.Mix | None":
        """Returns what mixes the images of a batch and their labels, if anything does."""
        from recipes.images import augment

        return augment.Mix(classes, self.mixup, self.cutmix) if self.mixup or self.cutmix else None

    def weigh_classes(self, class_names: Sequence[str], labels: Sequence[int]) -> tuple[float, ...] | None:
        """Returns the weight of each class in the loss, or None; says where classes differ much in size.

        A weight is images / (classes x images of the class), so that an image's weight is 1 on average.
        """
        import numpy as np

        counts = np.bincount(np.asarray(labels), minlength=len(class_names))
        if self.class_weights is None:
            least, most = int(counts.argmin()), int(counts.argmax())
            if counts[most] > _UNBALANCED * counts[least]:
                print(
                    f"{class_names[most]} has {counts[most]:,} training images and {class_names[least]} "
                    f"{counts[least]:,}: what is rare counts little. --class_weights=balanced weighs all classes alike",
                    file=sys.stderr,
                )
            return None
        return tuple((counts.sum() / (len(counts) * np.maximum(counts, 1))).tolist())

    def warn_of_precision(self) -> None:
        """Says on stderr where mixed precision is of no use."""
        import tensorflow as tf

        if self.mixed_precision is not None and not tf.config.list_physical_devices("GPU"):
            print(
                f"mixed_precision={self.mixed_precision}: no GPU is visible, and on a CPU a step takes 2 to 3 times as "
                "long as in float32 (measured on mcunet_in0); leave --mixed_precision out",
                file=sys.stderr,
            )
