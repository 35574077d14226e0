"""Atomic writes: a file has its old or its new content, never part of it."""

import contextlib
import json
import math
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

_PARTIAL = ".{name}.{pid}-{thread}.partial"


@contextlib.contextmanager
def open_atomic(path: str | os.PathLike, mode: str = "w", **options: Any) -> Iterator[IO]:
    """Open a file that replaces `path`, synced to disk, when the block ends without an error."""
    path = Path(path)
    partial = path.with_name(_PARTIAL.format(name=path.name[:100], pid=os.getpid(), thread=threading.get_native_id()))
    if "b" not in mode:
        options.setdefault("encoding", "utf-8")
    try:
        with open(partial, mode, **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        fsync_path(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text file atomically."""
    with open_atomic(path, errors="backslashreplace") as file:
        file.write(text)


def write_json(path: str | os.PathLike, content: Any, *, indent: int | None = 2) -> None:
    """Write JSON atomically; floats that are not finite become `null`."""
    write_text(path, json.dumps(without_nan(content), indent=indent, allow_nan=False) + "\n")


def without_nan(value: Any) -> Any:
    """Replace each float that is not finite by `None`, inside dictionaries and lists too."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def remove_partials(folder: str | os.PathLike) -> None:
    """Remove what killed writers left behind below a folder."""
    for partial in Path(folder).rglob(".*.partial"):
        partial.unlink(missing_ok=True)


def fsync_path(path: str | os.PathLike) -> None:
    """Wait until a file's content, or a folder's list of names, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(folder: str | os.PathLike) -> None:
    """Wait until everything below a folder is on disk."""
    for path in [*Path(folder).rglob("*"), Path(folder)]:
        fsync_path(path)
