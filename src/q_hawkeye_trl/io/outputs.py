"""Checks of output paths, made before any time is spent on what they will hold."""

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path


def check_outputs(*paths: str | os.PathLike | None, overwrite: bool) -> None:
    """Raise `ValueError` if two outputs are one file; check each one with [`check_output`]."""
    wanted = [path for path in paths if path is not None]
    places = [os.path.realpath(path) for path in wanted]
    for number, path in enumerate(wanted):
        if places[number] in places[:number]:
            raise ValueError(f"Two outputs would be written to {path}: name two different files.")
        check_output(path, overwrite=overwrite)


def check_output(path: str | os.PathLike, *, overwrite: bool) -> None:
    """Raise `FileExistsError` if the file exists, `OSError` if its folder, which is created, can't be written to."""
    path = Path(path)
    if path.is_dir() or (path.exists() and not overwrite):
        raise FileExistsError(f"{path} exists and is not overwritten: name another file, or pass --overwrite.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        check_writable(path.parent)
    except OSError as error:
        raise OSError(f"{path} can't be written ({error.strerror or error}): name another file.") from error


def check_writable(folder: str | os.PathLike) -> None:
    """Raise `OSError` if no file can be created and written in a folder."""
    with tempfile.NamedTemporaryFile(dir=os.fspath(folder)) as file:
        file.write(b"0")
        file.flush()


def is_taken(folder: str | os.PathLike) -> bool:
    """Tell whether a path is a file or a folder with content."""
    folder = Path(folder)
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))


def refuse_taken(folder: str | os.PathLike, advice: str = "name another folder by --out") -> None:
    """Raise `FileExistsError` if a path is a file or a folder with content."""
    if is_taken(folder):
        kind = "is not empty" if Path(folder).is_dir() else "is a file"
        raise FileExistsError(f"{folder} {kind} and nothing is overwritten: {advice}.")


def refuse_inside(out: str | os.PathLike, inputs: Iterable[str | os.PathLike]) -> None:
    """Raise `ValueError` if an output folder is one of the input folders, which are only read, or inside one."""
    for folder in map(Path, inputs):
        if Path(out).resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{out} is inside {folder}, which is only read: name a folder outside of it by --out.")
