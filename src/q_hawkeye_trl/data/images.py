"""The one way in for images: upright RGB, or an error that names the file. Nothing is replaced silently."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, ImageOps

# What Pillow's decoders raise on broken files; errors of ours, like a misspelt name, stay what they are.
BROKEN = (
    *(OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, ArithmeticError, RuntimeError),
    *(AssertionError, struct.error, zlib.error),
)
"""Errors of Pillow on files that can't be decoded."""


def load_image(image: str | os.PathLike | Image.Image) -> Image.Image:
    """
    Reads one image: decodes it in full, turns it upright by its EXIF orientation and converts it to RGB as [`to_rgb`]
    says. Of an animation the first frame counts.

    Args:
        image (`str`, `os.PathLike` or `PIL.Image.Image`):
            Path of a file, or an image, decoded or not.

    Returns:
        `PIL.Image.Image`: RGB image, never the object that was passed. Colour profiles are not applied.

    Raises:
        `FileNotFoundError`: There is no such file.
        `ValueError`: The file is no image, is truncated, broken or too large for Pillow's limit, or its mode has no
        defined conversion. The message names the file.
    """
    if isinstance(image, Image.Image):
        return _decoded(image, getattr(image, "filename", "") or "an image in memory")
    path = Path(image)
    if not path.is_file():
        raise FileNotFoundError(f"There is no image file {path}: correct the path, or drop its row.")
    try:
        opened = Image.open(path)
    except Image.DecompressionBombError as error:
        raise _too_large(path, error) from error
    except BROKEN as error:
        raise _broken(path, error) from error
    with opened:
        return _decoded(opened, path)


def to_rgb(image: Image.Image) -> Image.Image:
    """
    Converts an image of any mode to RGB at the same size and without turning it.

    16-bit grey is scaled to 8 bits (Pillow's own conversion clips), transparency is composited over white, CMYK, grey,
    palette, YCbCr and HSV go through Pillow.

    Args:
        image (`PIL.Image.Image`):
            Image of any mode.

    Returns:
        `PIL.Image.Image`: RGB image; the same object if it was RGB without transparency.

    Raises:
        `ValueError`: The mode has no defined range or conversion (`F`, `LAB`, 32-bit integers beyond 16 bits).
    """
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = _from_16_bit(image)
    elif image.mode in ("F", "LAB"):
        raise ValueError(f"Images of mode {image.mode} have no defined conversion to RGB: save them as 8-bit RGB.")
    if image.has_transparency_data:
        opaque = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, opaque).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _decoded(image: Image.Image, source: str | Path) -> Image.Image:
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise ValueError(
            "`PIL.ImageFile.LOAD_TRUNCATED_IMAGES` is set, by this program or by a package that it imports: Pillow "
            "would fill the missing part of broken images with grey. Set it to False."
        )
    try:
        image.load()
        image = ImageOps.exif_transpose(image)
    except Image.DecompressionBombError as error:
        raise _too_large(source, error) from error
    except BROKEN as error:
        raise _broken(source, error) from error
    try:
        return to_rgb(image)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def _from_16_bit(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(
            f"Integer values from {values.min()} to {values.max()} are beyond 16 bits, so their scale is unknown: "
            "save the image as 8-bit RGB."
        )
    return Image.fromarray(np.rint(values / 257).astype(np.uint8))  # 65535 / 257 = 255


def _broken(source: str | Path, error: Exception) -> ValueError:
    return ValueError(f"{source} is not a readable image ({error}): fetch the file again, or drop its row.")


def _too_large(source: str | Path, error: Exception) -> ValueError:
    return ValueError(
        f"{source} is too large to decode ({error}): shrink it, or raise `PIL.Image.MAX_IMAGE_PIXELS` if you trust it."
    )
