"""Training a network to the end; this file has the options that users add when they train on their own images."""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from recipes.images import FolderOptions

if TYPE_CHECKING:
    from recipes.images import augment
    from recipes.images.sources import Data

ADAMW_RATE = 0.001  # used if no learning rate is given
_UNBALANCED = 2.0  # warns if the largest class has over this many times the images of the smallest


def check_options(options: Any, names: str, expected: str, is_valid: Callable[[Any], bool]) -> None:
    """Raises ValueError unless all fields of `options` in `names`, separated by spaces, are valid; None always is."""
    for name in names.split():
        value = getattr(options, name)
        if value is not None and not is_valid(value):
            raise ValueError(f"{name} is {value}; expected {expected}")


def check_at_least(options: Any, least: dict[str, int]) -> None:
    """Raises ValueError if an option is below its smallest value; None is always valid."""
    for name, smallest in least.items():
        value = getattr(options, name)
        if value is not None and value < smallest:
            raise ValueError(f"{name} is {value}; expected a whole number from {smallest}")


@dataclasses.dataclass(frozen=True)
class TrainingOptions(FolderOptions):
    """Options that recipes.train and recipes.finetune share."""

    optimizer: Literal["adamw"] | None = None  # none uses the optimizer of the settings
    # type of activations, while weights stay float32: faster and half the memory on GPUs that support it
    mixed_precision: Literal["bfloat16", "float16"] | None = None
    class_weights: Literal["balanced"] | None = None  # balanced: all classes count equally, whatever their size
    mixup: float | None = None  # blends pairs of images and labels; alpha of the share's Beta distribution, such as 0.2
    cutmix: float | None = None  # pastes a window of another image; alpha as for mixup, at most 1; both: one per batch
    rand_augment: float | None = None  # two random changes of shape or colour per image, of this strength, 0 to 1

    def __post_init__(self):
        check_options(self, "mixup", "a number above 0, or none", lambda value: value > 0)
        check_options(self, "cutmix rand_augment", "a number above 0, at most 1, or none", lambda value: 0 < value <= 1)

    @property
    def dtype(self) -> str | None:
        """The Keras dtype policy to train the network with, or None to keep its own."""
        return None if self.mixed_precision is None else f"mixed_{self.mixed_precision}"

    def prepare(self, images: "Data", augmentation: "augment.Augmentation | None") -> dict[str, Any]:
        """Returns the arguments of `fit` for these options and the usual augmentation; warns about poor choices."""
        import tensorflow as tf

        from recipes.images import augment

        if self.mixed_precision is not None and not tf.config.list_physical_devices("GPU"):
            print(
                f"mixed_precision={self.mixed_precision}: no GPU is visible, and on a CPU a step takes 2 to 3 times as "
                "long as in float32 (measured on mcunet_in0); omit --mixed_precision",
                file=sys.stderr,
            )
        if self.rand_augment is not None:
            added = augment.rand_augment(self.rand_augment)
            augmentation = added if augmentation is None else augment.chain(augmentation, added)
        return {
            "augment": augmentation,
            "mix": augment.Mix(images.classes, self.mixup, self.cutmix) if self.mixup or self.cutmix else None,
            "class_weights": self.weigh_classes(images.class_names, images.train.labels.tolist()),
        }

    def weigh_classes(self, class_names: Sequence[str], labels: Sequence[int]) -> tuple[float, ...] | None:
        """Returns the weight of each class in the loss, or None, with a warning if classes differ much in size.

        A class has the weight images / (classes x images of the class), so that an image's weight is 1 on average.
        """
        import numpy as np

        counts = np.bincount(np.asarray(labels), minlength=len(class_names))
        if self.class_weights is None:
            least, most = int(counts.argmin()), int(counts.argmax())
            if counts[most] > _UNBALANCED * counts[least]:
                print(
                    f"{class_names[most]} has {counts[most]:,} training images and {class_names[least]} "
                    f"{counts[least]:,}: rare classes count little; --class_weights=balanced weights all alike",
                    file=sys.stderr,
                )
            return None
        return tuple((counts.sum() / (len(counts) * np.maximum(counts, 1))).tolist())
