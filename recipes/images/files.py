"""How an image file becomes pixels."""

import os
import stat

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # Pillow's other readers see no untrusted file

Size = int | tuple[int, int] | None  # an integer means a square; a pair is (height, width)


class UnreadableImageError(ValueError):
    """A file is no image that can be decoded whole; the text names it."""


def read_image(path: str | os.PathLike, size: Size, channels: int) -> np.ndarray:
    """Decodes a file to uint8 (height, width, channels), upright as its EXIF data says.

    Grayscale, palette, CMYK and 16-bit images are converted; what is transparent becomes white. With a size, the
    longer side's ends are cut off, then it is resized (bilinear, antialiased); an integer means a square.

    Raises:
        UnreadableImageError: no such file, not an image, cut short, or of a kind that has no meaning here.
    """
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):  # a link or a pipe that came after the scan
            raise ValueError("not a regular file")
        with Image.open(path, formats=_FORMATS) as stored:
            upright = ImageOps.exif_transpose(stored)
            return fit(_converted(upright, channels), size)
    except UnidentifiedImageError as error:
        raise UnreadableImageError(f"cannot read the image {os.fspath(path)}: not an image") from error
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:  # what Pillow raises
        reason = getattr(error, "strerror", None) or error
        raise UnreadableImageError(f"cannot read the image {os.fspath(path)}: {reason}") from error


def _converted(image: Image.Image, channels: int) -> Image.Image:
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, of unknown range")
    if image.mode.startswith("I"):  # Pillow would cut 16 bits at 255 instead of scaling them
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"its pixels reach from {values.min()} to {values.max()}, more than 16 bits")
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if channels == 1 else "RGB")


def fit(image: Image.Image, size: Size) -> np.ndarray:
    """Crops and resizes an L or RGB image as `read_image` says; returns uint8 (height, width, channels)."""
    if size is not None:
        height, width = (size, size) if isinstance(size, int) else size
        if image.size != (width, height):
            window_width = min(image.width, max(1, round(image.height * width / height)))
            window_height = min(image.height, max(1, round(image.width * height / width)))
            left, top = (image.width - window_width) // 2, (image.height - window_height) // 2
            # Cropped first: resizing with a box would let the pixels around it shine in.
            image = image.crop((left, top, left + window_width, top + window_height))
            image = image.resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels
