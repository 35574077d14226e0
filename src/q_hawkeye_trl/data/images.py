"""The one way in for images: upright RGB, or an error that names the image. Nothing is replaced silently."""

import contextlib
import io
import os
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image, ImageFile, ImageOps

BROKEN = (
    *(OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, ArithmeticError, RuntimeError),
    *(AssertionError, struct.error, zlib.error),
)
"""Errors that Pillow's decoders raise on broken files."""

_IN_MEMORY = "an image in memory"


def load_image(image: str | os.PathLike | bytes | Image.Image) -> Image.Image:
    """
    Decode one image in full, apply its EXIF orientation and convert it to RGB by [`to_rgb`].

    Args:
        image (`str`, `os.PathLike`, `bytes` or `PIL.Image.Image`):
            Path of a file, the content of a file, or an image, decoded or not. An animation is read
            as its first frame.

    Returns:
        `PIL.Image.Image`: RGB image, never the object that was passed. Colour profiles are not applied.

    Raises:
        `FileNotFoundError`: The file is missing.
        `ValueError`: The file is not an image, is truncated, broken or larger than Pillow's limit, or its mode has no
        defined conversion. The message names the file.
    """
    return _load(image, None)


def decode_cell(cell: Any, where: str) -> Image.Image:
    """
    Load the image of a dataset's cell by [`load_image`].

    Args:
        cell (`dict`, `str`, `os.PathLike`, `bytes` or `PIL.Image.Image`):
            What an image column holds, undecoded (`{"bytes": ..., "path": ...}`) or decoded.
        where (`str`):
            Start of the error message, such as ``"row 3, column `image`"``.

    Returns:
        `PIL.Image.Image`: Upright RGB image.

    Raises:
        `FileNotFoundError`: The file is missing.
        `ValueError`: There is no image, or it can't be decoded. Both messages start with `where`.
    """
    name = None
    if isinstance(cell, dict):
        name = cell.get("path") or "the embedded image"
        cell = cell.get("path") if cell.get("bytes") is None else cell["bytes"]
    if cell is None:
        raise ValueError(f"{where}: there is no image; add one, or drop the row.")
    try:
        return _load(cell, name)
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"{where}: {error}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """
    Convert an image of any mode to RGB at the same size and without turning it.

    16-bit grey `v` becomes `round(v / 257)` (Pillow clips it at 255), transparency is composited over white, and
    CMYK, 8-bit grey, palettes, YCbCr and HSV are converted by Pillow.

    Args:
        image (`PIL.Image.Image`):
            Image of any mode.

    Returns:
        `PIL.Image.Image`: RGB image; the same object if it was RGB without transparency.

    Raises:
        `ValueError`: The mode has no defined range or conversion (`F`, `LAB`, integers beyond 16 bits).
    """
    if image.mode in ("F", "LAB"):
        raise ValueError(f"Images of mode {image.mode} have no defined conversion to RGB: save them as 8-bit RGB.")
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = _from_16_bit(image)
    if image.has_transparency_data:
        if image.mode == "La":  # which Pillow converts to LA only
            image = image.convert("LA")
        opaque = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, opaque).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _load(image: Any, name: str | None) -> Image.Image:
    if isinstance(image, Image.Image):
        return _decode(image, name or getattr(image, "filename", "") or _IN_MEMORY)
    if isinstance(image, bytes | bytearray):
        name, file = name or _IN_MEMORY, io.BytesIO(image)
    else:
        name = file = os.fspath(image)
        if not os.path.isfile(name):
            raise FileNotFoundError(f"There is no image file {name}: correct the path, or drop its row.")
    with _naming(name):
        opened = Image.open(file)
    with opened:
        return _decode(opened, name)


def _decode(image: Image.Image, name: str) -> Image.Image:
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise ValueError(
            "`PIL.ImageFile.LOAD_TRUNCATED_IMAGES` is set, by this program or by a package that it imports: Pillow "
            "would fill the missing part of broken images with grey. Set it to False."
        )
    with _naming(name):
        image.load()
        image = ImageOps.exif_transpose(image)
    try:
        return to_rgb(image)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


@contextlib.contextmanager
def _naming(name: str) -> Iterator[None]:
    """Turn the errors of Pillow's decoders into a `ValueError` that names the image."""
    try:
        yield
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{name} is too large to decode ({error}): shrink it, or raise `PIL.Image.MAX_IMAGE_PIXELS` if you trust "
            "it."
        ) from error
    except BROKEN as error:
        # the message of an `UnidentifiedImageError` would name the buffer
        reason = "its format is unknown" if isinstance(error, Image.UnidentifiedImageError) else error
        raise ValueError(
            f"{name} is not a readable image ({reason}): fetch the file again, or drop its row."
        ) from error


def _from_16_bit(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
        raise ValueError(
            f"Integer values from {values.min()} to {values.max()} of mode {image.mode} are beyond 16 bits, so their "
            "scale is unknown: save the image as 8-bit RGB."
        )
    grey = np.rint(values / 257).astype(np.uint8)  # 65535 / 257 = 255
    if "transparency" in image.info:
        grey[values == image.info["transparency"]] = 255
    return Image.fromarray(grey)
