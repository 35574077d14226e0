"""Append-only files of JSON lines that survive a crash at any moment: verdicts of judges, decisions of people."""

import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path

from ..data.arrow_folder import sync_folder


def append_line(path: str | os.PathLike, content: dict) -> None:
    """
    Appends one line and returns when it is on the disk. A line that an earlier crash cut off is removed first; several
    processes may append to one file.

    Args:
        path (`str` or `os.PathLike`):
            File, created where it is missing; its folder exists.
        content (`dict`):
            What the line holds.

    Raises:
        `OSError`: The line can't be written; the file then ends with the line before.
    """
    line = json.dumps(content, ensure_ascii=False).encode() + b"\n"
    is_new = not os.path.exists(path)
    with open(path, "a+b", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        end = _end_of_last_line(file)
        file.truncate(end)
        try:
            written = file.write(line)
            if written != len(line):
                raise OSError(f"{path}: the disk took {written} of {len(line)} bytes; free some space.")
            os.fsync(file.fileno())
        except OSError:
            file.truncate(end)
            raise
    if is_new:
        sync_folder(Path(path).parent)


def read_lines(path: str | os.PathLike) -> Iterator[dict]:
    """
    Reads such a file.

    Args:
        path (`str` or `os.PathLike`):
            File; a missing one counts as empty.

    Yields:
        `dict`: The lines in order, without a last one that a crash cut off.

    Raises:
        `ValueError`: A line is no JSON object; the message names it.
    """
    if not os.path.exists(path):
        return
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
            yield content


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
