"""Append-only files of JSON lines that survive a crash at any moment."""

import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from .atomic import fsync_path


class JournalLine(NamedTuple):
    """A complete line of a journal: its content, its number from 1 and its byte offset."""

    content: dict[str, Any]
    number: int
    offset: int


def append_line(path: str | os.PathLike, content: dict, *, sync: bool = True) -> None:
    """
    Append one line, after removing an incomplete last line; several processes may append to one file.

    With `sync` it is on disk when this returns. On `OSError` the file ends with the line before.
    """
    line = json.dumps(content, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
    is_new = not os.path.exists(path)
    with open(path, "a+b", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        end = _end_of_last_line(file)
        file.truncate(end)
        try:
            written = file.write(line)
            if written != len(line):
                raise OSError(f"{path}: only {written} of {len(line)} bytes were written; free some disk space.")
            if sync:
                os.fsync(file.fileno())
        except OSError:
            file.truncate(end)
            raise
    if is_new and sync:
        fsync_path(Path(path).parent)


def read_lines(path: str | os.PathLike) -> Iterator[JournalLine]:
    """Yield the complete lines of a journal, none if it is missing; raise `ValueError` if one is not a JSON object."""
    if not os.path.exists(path):
        return
    offset = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                content = json.loads(line)
            except ValueError:
                content = None
            if not isinstance(content, dict):
                raise ValueError(f"{path}, line {number}: expected a JSON object, got {line[:60]!r}; remove the line.")
            yield JournalLine(content, number, offset)
            offset += len(line)


def _end_of_last_line(file) -> int:
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - 4096)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0
