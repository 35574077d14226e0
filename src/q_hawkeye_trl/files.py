"""Files that are there whole or not at all."""

import json
import math
import os
import tempfile
from pathlib import Path


def write_json(path: str | Path, content: dict) -> None:
    """
    Writes figures as JSON, atomically. What is not a number (a correlation of constant scores) becomes `null`.

    Args:
        path (`str` or `Path`):
            File to write or replace.
        content (`dict`):
            Figures, nested dictionaries and lists included.
    """
    write_atomically(path, json.dumps(without_nan(content), indent=2, allow_nan=False) + "\n")


def without_nan(value):
    """The same value with `None` for each float that is not finite, in dictionaries and lists too."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_atomically(path: str | Path, text: str) -> None:
    """
    Writes a text file so that it is there whole or not at all.

    Args:
        path (`str` or `Path`):
            File to write or replace.
        text (`str`):
            What it is to hold.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    with open(partial, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def check_output(path: str | os.PathLike, *, overwrite: bool) -> None:
    """
    Checks that an output can be written, before any time is spent on what it is to hold.

    Args:
        path (`str` or `os.PathLike`):
            File to write; its folder is made.
        overwrite (`bool`):
            Whether an existing file may be replaced.

    Raises:
        `FileExistsError`: The file exists.
        `OSError`: Its folder can't be written to.
    """
    path = Path(path)
    if path.is_dir() or (path.exists() and not overwrite):
        raise FileExistsError(f"{path} exists and is not overwritten; name another file, or pass --overwrite.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise OSError(f"{path} can't be written ({error.strerror or error}): name another file.") from error


def check_outputs(*paths: str | os.PathLike | None, overwrite: bool) -> None:
    """
    Checks the outputs of a command as [`check_output`] does, and that each is a file of its own.

    Args:
        paths (`str`, `os.PathLike` or `None`):
            Files to write; what is `None` is not written.
        overwrite (`bool`):
            Whether existing files may be replaced.

    Raises:
        `ValueError`: Two of them are one file.
        `OSError`: As [`check_output`].
    """
    wanted = [path for path in paths if path is not None]
    places = [os.path.realpath(path) for path in wanted]
    for number, path in enumerate(wanted):
        if places[number] in places[:number]:
            raise ValueError(f"Two outputs would be written to {path}, one over the other: name two files.")
        check_output(path, overwrite=overwrite)
