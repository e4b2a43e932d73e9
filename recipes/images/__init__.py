"""Images, from files and data sets to batches: reading, resizing, augmentation; start at recipes.images.sources."""

import dataclasses
from typing import Any, Literal

EMBEDDED = "fashion_mnist_small"  # the name of the images that come with the package


# A network's input: values 0..1 (unit) or -1..1 (centered), values normalised by the mean and standard deviation of
# each channel of CIFAR-10 or ImageNet (as in torchvision), or unchanged pixels 0..255
Preprocess = Literal["unit", "0..1", "centered", "-1..1", "cifar10", "imagenet", "torch", "pixels"]

Interpolation = Literal["bilinear", "bicubic"]  # for resizing; both antialiased


@dataclasses.dataclass(frozen=True)
class FolderOptions:
    """How the programs read a folder of images; see recipes.images.sources.load."""

    on_unreadable: Literal["error", "skip"] = "error"  # what to do if a file of a folder cannot be read
    # bits used in a folder's 16-bit files, such as 12 from an X-ray detector; none finds them by the largest value
    pixel_bits: int | None = None

    @property
    def folder_options(self) -> dict[str, Any]:
        """Returns these options by name."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(FolderOptions)}
