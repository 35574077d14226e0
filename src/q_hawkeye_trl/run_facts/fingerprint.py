"""
A fingerprint of a dataset's content.

The fingerprint of `datasets` changes with paths, caches and the order of operations; this one only with the content.
"""

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from datasets import Dataset
from tqdm import tqdm

_VERSION = "1"  # what is hashed and how; raise it when that changes
_ROWS = 128  # rows in memory at a time, with their embedded images


def data_fingerprint(dataset: Dataset, *, workers: int = 4, progress: bool = True) -> dict[str, Any]:
    """
    Hash every row of a dataset in order.

    The hash covers the names and values of all columns and the bytes of each image file, embedded or beside the table.
    It does not cover paths of images, the order of columns, `None` entries in dictionaries, formats and transforms.

    Args:
        dataset (`Dataset`):
            Rows; nothing is decoded.
        workers (`int`, *optional*, defaults to `4`):
            Threads that read images; the result is the same for any number.
        progress (`bool`, *optional*, defaults to `True`):
            Whether a progress bar appears after three seconds.

    Returns:
        `dict`: `sha256` (64 hexadecimal digits), `rows`, `columns` (sorted), `images` (their number) and `image_bytes`
        (their total size).

    Raises:
        `OSError`: An image file can't be read.
    """
    columns = sorted(dataset.column_names)
    total = hashlib.sha256(json.dumps([_VERSION, columns]).encode())
    images = size = 0
    tables = dataset.with_format("arrow").iter(batch_size=_ROWS)
    bar = tqdm(total=len(dataset), desc="Fingerprint of the data", delay=3, leave=False, disable=not progress)
    with bar, ThreadPoolExecutor(workers) as pool:
        for table in tables:
            rows = table.to_pylist()
            digests = list(pool.map(_digest, (image for row in rows for image in _images_in(row))))
            images, size = images + len(digests), size + sum(length for _, length in digests)
            found = iter(digests)
            for row in rows:
                total.update(hashlib.sha256(_canonical(row, found).encode()).digest())
            bar.update(len(rows))
    return {
        "sha256": total.hexdigest(),
        "rows": len(dataset),
        "columns": columns,
        "images": images,
        "image_bytes": size,
    }


def describe_data(dataset: Any, **options: Any) -> dict[str, Any]:
    """Return the fingerprint, or `sha256` `None` and the `reason`: for a stream, or an unreadable image."""
    if not isinstance(dataset, Dataset):
        return {"sha256": None, "reason": f"{type(dataset).__name__} has no rows to read ahead of the training"}
    try:
        return data_fingerprint(dataset, **options)
    except OSError as error:
        return {"sha256": None, "rows": len(dataset), "reason": f"an image can't be read: {error}"}


def _is_image(value: Any) -> bool:
    """Whether a value is an undecoded image of `datasets`."""
    return isinstance(value, dict) and value.keys() == {"bytes", "path"}


def _images_in(value: Any) -> Iterator[dict]:
    if _is_image(value):
        yield value
    elif isinstance(value, dict | list):
        for item in (value[key] for key in sorted(value)) if isinstance(value, dict) else value:
            yield from _images_in(item)


def _digest(image: dict) -> tuple[str, int]:
    """SHA-256 and size of an image's bytes."""
    if image["bytes"] is not None:
        return hashlib.sha256(image["bytes"]).hexdigest(), len(image["bytes"])
    with Path(image["path"]).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return digest, file.tell()


def _canonical(row: dict, digests: Iterator[tuple[str, int]]) -> str:
    return json.dumps(_without_bytes(row, digests), sort_keys=True, default=str)


def _without_bytes(value: Any, digests: Iterator[tuple[str, int]]) -> Any:
    """The same value with digests for bytes; takes those of its images in the order of [`_images_in`]."""
    if _is_image(value):
        return {"image": next(digests)[0]}
    if isinstance(value, dict):
        return {key: _without_bytes(value[key], digests) for key in sorted(value) if value[key] is not None}
    if isinstance(value, list):
        return [_without_bytes(item, digests) for item in value]
    return hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else value
