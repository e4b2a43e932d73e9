"""From files and data sets to batches of pixels: reading, resizing, augmentation; start at recipes.images.sources."""

import dataclasses
from typing import Any, Literal

EMBEDDED = "fashion_mnist_small"  # the name of the images that come with the package


# What a network reads: values of 0..1 (unit), of -1..1 (centered), by the means and deviations of the channels of
# CIFAR-10 or ImageNet (torchvision's), or pixels of 0..255 as they are
Preprocess = Literal["unit", "0..1", "centered", "-1..1", "cifar10", "imagenet", "torch", "pixels"]

Interpolation = Literal["bilinear", "bicubic"]  # of an image that is resized; both antialiased


@dataclasses.dataclass(frozen=True)
class FolderOptions:
    """How the programs read a folder of images; see recipes.images.sources.load."""

    on_unreadable: Literal["error", "skip"] = "error"  # about a file of a folder that cannot be read
    # that the values in a folder's 16-bit files use, such as 12 of an X-ray detector; none goes by the largest of all
    pixel_bits: int | None = None

    @property
    def folder_options(self) -> dict[str, Any]:
        """Returns them by name."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(FolderOptions)}
