"""The source data of pairs: rows of a `datasets` folder and their stored images."""

import hashlib
import io
import os
import stat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset, DatasetDict, load_from_disk
from datasets import Image as ImageFeature
from PIL import ExifTags, Image

from ..data.degradations import pixel_hash
from ..data.images import load_image

SINGLE = ""
"""Split name of a folder without splits."""

MAX_FILE_BYTES = 1 << 30
"""Largest image file that is read."""


class Picture(NamedTuple):
    """An image of a row: upright RGB pixels `(H, W, 3)` in `uint8`, and facts about its file."""

    array: np.ndarray
    pixel_hash: str
    file_hash: str
    mode: str
    orientation: int
    note: str | None

    @property
    def facts(self) -> dict[str, Any]:
        """The columns of the manifest about the original."""
        height, width, _ = self.array.shape
        return {"width": width, "height": height, **dict(zip(self._fields[1:], self[1:], strict=True))}


def open_source(path: str | os.PathLike) -> dict[str, Dataset]:
    """Open a folder that `save_to_disk` wrote and return its splits by name; nothing is decoded or copied."""
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
    """Decode an image cell (`bytes` or the `path` of a local file); raise `OSError` or `ValueError` naming it."""
    data, name, note = _stored_bytes(value or {})
    try:
        opened = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name} is too large to decode ({error}): shrink it, or drop its row.") from error
    except Exception as error:  # Pillow's readers raise a dozen kinds
        raise ValueError(
            f"{name} is not a readable image ({error}): fetch the file again, or drop its row."
        ) from error
    with opened:
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and opened.width * opened.height > limit:  # Pillow only warns up to twice as many
            raise ValueError(
                f"{name} is too large to decode ({opened.width} x {opened.height} pixels, at most {limit}): shrink "
                "it, or drop its row."
            )
        opened.filename = name  # so that errors name it
        mode, image = opened.mode, load_image(opened)
        orientation = opened.getexif().get(ExifTags.Base.Orientation, 1)
        orientation = orientation if orientation in range(1, 9) else 1
    return Picture(np.array(image), pixel_hash(image), hashlib.sha256(data).hexdigest(), mode, orientation, note)


def leads_out(path: str | os.PathLike) -> str | None:
    """Return the target of a symbolic link that leaves its folder, `None` for any other file."""
    if not os.path.islink(path):
        return None
    target = os.path.realpath(path)
    folder = os.path.realpath(os.path.dirname(os.path.abspath(path)))
    return None if os.path.commonpath([folder, target]) == folder else target


def _stored_bytes(value: dict) -> tuple[bytes, str, str | None]:
    """Return the bytes of a cell, a name for messages, and a note for the manifest."""
    data, path = value.get("bytes"), value.get("path")
    if data is not None:
        return data, path or "the embedded image", None
    if not path:
        raise ValueError("The row has no image: add one, or drop the row.")
    if "://" in path:
        raise ValueError(f"{path} is not a local file: download the images first.")
    status = os.stat(path)  # raises for missing files, loops of links and names that are too long
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path} is not a regular file: correct the path, or drop its row.")
    if status.st_size > MAX_FILE_BYTES:
        raise ValueError(f"{path} is larger than {MAX_FILE_BYTES >> 20} MiB: shrink it, or drop its row.")
    target = leads_out(path)
    note = None if target is None else f"symbolic link out of its folder, to {target}"
    return Path(path).read_bytes(), path, note


def _check_features(split: Dataset, where: str) -> None:
    if not isinstance(split.features.get("image"), ImageFeature):
        hint = " (rows with several images get their views during training)" if "images" in split.features else ""
        raise ValueError(f"{where}: expected a column `image` with the feature Image(), found {split.features}{hint}.")
    degraded = split.features.get("degraded_image")
    if degraded is not None and not isinstance(degraded, ImageFeature):
        raise ValueError(f"{where}, column `degraded_image`: expected the feature Image(), got {degraded}.")
