"""What pairs are made of: rows of a `datasets` folder, and their images as bytes, as they are stored."""

import hashlib
import io
import os
import stat
from pathlib import Path
from typing import NamedTuple

import numpy as np
from datasets import Dataset, DatasetDict, load_from_disk
from datasets import Image as ImageFeature
from PIL import ExifTags, Image

from ..data.degradations import pixel_hash
from ..data.images import load_image

SINGLE = ""
"""Name of the split of a folder without splits."""

MAX_FILE_BYTES = 1 << 30
"""Larger image files are refused before they are read."""


class Picture(NamedTuple):
    """
    One original.

    Args:
        array (`np.ndarray`):
            Upright RGB pixels of shape `(H, W, 3)`, dtype `uint8`.
        pixel_hash (`str`):
            Hash of these.
        file_hash (`str`):
            SHA-256 of the file or the embedded bytes.
        mode (`str`):
            Pillow's mode of the file.
        orientation (`int`):
            Its EXIF orientation, 1 to 8.
        note (`str` or `None`):
            What is worth telling.
    """

    array: np.ndarray
    pixel_hash: str
    file_hash: str
    mode: str
    orientation: int
    note: str | None


def open_source(path: str | os.PathLike) -> dict[str, Dataset]:
    """
    Opens a folder that `save_to_disk` wrote; nothing is decoded or copied.

    Args:
        path (`str` or `os.PathLike`):
            Folder of one dataset or of several splits.

    Returns:
        `dict[str, Dataset]`: Splits by name, under `SINGLE` the dataset of a folder without splits.

    Raises:
        `FileNotFoundError`: There is no such folder.
        `ValueError`: It is no such folder, has no image column, or no rows.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"There is no folder {path}: pass a folder that `q-hawkeye prepare` wrote.")
    try:
        data = load_from_disk(str(path))
    except Exception as error:  # `datasets` and pyarrow raise many kinds
        raise ValueError(
            f"{path} can't be read ({error}): expected a folder that `save_to_disk` or `q-hawkeye prepare` wrote."
        ) from error
    splits = dict(data) if isinstance(data, DatasetDict) else {SINGLE: data}
    for name, split in splits.items():
        _check_features(split, f"{path}{f', split {name}' if name else ''}")
    if not sum(map(len, splits.values())):
        raise ValueError(f"{path} has no rows.")
    return splits


def read_picture(value: dict | None) -> Picture:
    """
    Reads the image of a row.

    Args:
        value (`dict` or `None`):
            What the image column stores: `bytes`, or the `path` of a local file.

    Returns:
        [`Picture`]

    Raises:
        `OSError` or `ValueError`: There is no image, or it can't be read; the message names it.
    """
    data, name, note = _stored_bytes(value)
    try:
        opened = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name} is too large to decode ({error}): shrink it, or drop its row.") from error
    except Exception as error:  # Pillow's readers raise a dozen kinds on what is no image
        raise ValueError(
            f"{name} is not a readable image ({error}): fetch the file again, or drop its row."
        ) from error
    with opened:
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and opened.width * opened.height > limit:
            raise ValueError(
                f"{name} is too large to decode ({opened.width} x {opened.height} pixels, at most {limit}): shrink "
                "it, or drop its row."
            )
        opened.filename = name  # so that errors name it
        mode, orientation = opened.mode, _orientation(opened)
        image = load_image(opened)
    return Picture(np.array(image), pixel_hash(image), hashlib.sha256(data).hexdigest(), mode, orientation, note)


def leads_out(path: str | os.PathLike) -> str | None:
    """
    Tells whether a file is a symbolic link whose target lies outside of the link's own folder.

    Args:
        path (`str` or `os.PathLike`):
            File.

    Returns:
        `str` or `None`: The target where it leads out.
    """
    if not os.path.islink(path):
        return None
    target = os.path.realpath(path)
    folder = os.path.realpath(os.path.dirname(os.path.abspath(path)))
    return None if os.path.commonpath([folder, target]) == folder else target


def _stored_bytes(value: dict | None) -> tuple[bytes, str, str | None]:
    value = value or {}
    data, path = value.get("bytes"), value.get("path")
    if data is not None:
        return data, path or "the embedded image", None
    if not path:
        raise ValueError("The row has no image: give it one, or drop the row.")
    if "://" in path:
        raise ValueError(f"{path} is no local file: download the images first.")
    if not stat.S_ISREG(os.stat(path).st_mode):  # names a missing file, a loop of links and a name that is too long
        raise ValueError(f"{path} is no regular file: correct the path, or drop its row.")
    if os.path.getsize(path) > MAX_FILE_BYTES:
        raise ValueError(f"{path} is larger than {MAX_FILE_BYTES >> 20} MiB: is it an image?")
    target = leads_out(path)
    note = None if target is None else f"symbolic link out of its folder, to {target}"
    with open(path, "rb") as file:
        return file.read(), path, note


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # broken EXIF: `load_image` decides whether the image is
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _check_features(split: Dataset, where: str) -> None:
    if not isinstance(split.features.get("image"), ImageFeature):
        several = " (rows of several images get their views while training)" if "images" in split.features else ""
        raise ValueError(
            f"{where}: expected a column `image` with the feature Image(), found {split.features}{several}."
        )
    degraded = split.features.get("degraded_image")
    if degraded is not None and not isinstance(degraded, ImageFeature):
        raise ValueError(f"{where}, column `degraded_image`: expected the feature Image(), got {degraded}.")
