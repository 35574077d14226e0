"""A checkpoint is written beside its place and moved there when it is whole: a crash leaves none half written."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from ..errors import CheckpointWriteError
from ..io.atomic import fsync_path
from .checkpoint_files import MANIFEST, resume_hint, write_manifest

STAGING = ".checkpoint-in-writing"
"""Folder, in that of the run, in which a checkpoint is written; whatever is found there is left over from a crash."""

_TORCH_WRITE_ERRORS = ("PytorchStreamWriter", "inline_container", "iostream", "file write failed")


def clear_staging(run_dir: str | Path) -> None:
    """
    Removes what a crash left half written.

    Args:
        run_dir (`str` or `Path`):
            Folder of the run.
    """
    shutil.rmtree(Path(run_dir) / STAGING, ignore_errors=True)


def move_into_place(run_dir: str | Path, name: str) -> None:
    """
    Moves a checkpoint that is written to its end to its place; one of the same name gives way.

    Args:
        run_dir (`str` or `Path`):
            Folder of the run.
        name (`str`):
            Name of the checkpoint, which lies in the folder `STAGING`.
    """
    staging, final = Path(run_dir) / STAGING, Path(run_dir) / name
    if final.exists():
        os.replace(final, staging / f"{name}-before")
    os.replace(staging / name, final)
    for folder in (final, final.parent):
        fsync_path(folder)
    clear_staging(run_dir)


@contextlib.contextmanager
def explained_write_errors(what: str, run_dir: str | Path) -> Iterator[None]:
    """
    Turns the errors of a failed write into one that says what to do, and frees what was half written.

    Args:
        what (`str`):
            What is written.
        run_dir (`str` or `Path`):
            Folder of the run.

    Raises:
        [`~errors.CheckpointWriteError`]: In place of the `OSError`, `SafetensorError` or `RuntimeError` of the writer.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        text = getattr(error, "strerror", None) or next(iter(str(error).strip().splitlines()), type(error).__name__)
        if isinstance(error, RuntimeError) and not any(mark in text for mark in _TORCH_WRITE_ERRORS):
            raise
        free = shutil.disk_usage(run_dir).free / 2**20
        if isinstance(error, RuntimeError) and free < 1:  # torch tells positions in its file
            text = "no space left"
        clear_staging(run_dir)
        raise CheckpointWriteError(
            f"{what} could not be written to {run_dir} ({text}; {free:.1f} MiB were free). Make room, for example by "
            f"a smaller save_total_limit or another disk. {resume_hint(run_dir)}"
        ) from error


def finish_checkpoint(run_dir: str | Path, name: str) -> None:
    """
    Writes the manifest of a checkpoint in `STAGING`, brings its files to the disk and moves it to its place.

    Args:
        run_dir (`str` or `Path`):
            Folder of the run.
        name (`str`):
            Name of the checkpoint.
    """
    write_manifest(Path(run_dir) / STAGING / name)
    move_into_place(run_dir, name)


def take_own_share(run_dir: str | Path, name: str) -> None:
    """
    Moves what a node with a disk of its own has of a checkpoint to its place; does nothing where the main process has
    moved the whole, on a disk that all nodes share. Its manifest tells: over a network file system a node may still
    see the folder in `STAGING` for a while after it was moved.

    Args:
        run_dir (`str` or `Path`):
            Folder of the run.
        name (`str`):
            Name of the checkpoint.
    """
    run_dir = Path(run_dir)
    if not (run_dir / name / MANIFEST).is_file() and (run_dir / STAGING / name).is_dir():
        move_into_place(run_dir, name)
