"""Checkpoints are written in a staging folder and moved when complete: a crash leaves no partial one."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from ..errors import CheckpointWriteError
from ..io.publication import move_folder
from .checkpoint_files import MANIFEST, resume_hint, write_manifest

STAGING = ".checkpoint-in-writing"
"""Folder inside the run's folder in which a checkpoint is written. Leftovers of a crash are removed."""

_TORCH_WRITE_ERRORS = ("PytorchStreamWriter", "inline_container", "iostream", "file write failed")


def clear_staging(run_dir: str | Path) -> None:
    """Remove partial checkpoints."""
    shutil.rmtree(Path(run_dir) / STAGING, ignore_errors=True)


def publish_checkpoint(run_dir: str | Path, name: str) -> None:
    """Write the manifest of a staged checkpoint and move it to its place, replacing one of the same name."""
    write_manifest(Path(run_dir) / STAGING / name)
    _move(Path(run_dir), name)


def publish_node_share(run_dir: str | Path, name: str) -> None:
    """
    Move the files of a node that has a disk of its own.

    On a shared disk the main process has already moved the complete checkpoint, recognized by its manifest. There a
    network file system may still show the staging folder to other nodes for a while.
    """
    run_dir = Path(run_dir)
    if not (run_dir / name / MANIFEST).is_file() and (run_dir / STAGING / name).is_dir():
        _move(run_dir, name)


def _move(run_dir: Path, name: str) -> None:
    staging, final = run_dir / STAGING, run_dir / name
    if final.exists():
        os.replace(final, staging / f"{name}-before")
    move_folder(staging / name, final)
    clear_staging(run_dir)


@contextlib.contextmanager
def explained_write_errors(what: str, run_dir: str | Path) -> Iterator[None]:
    """
    Raise `CheckpointWriteError`, which says what to do, instead of the writer's `OSError`, `SafetensorError` or
    `RuntimeError`, and remove what was partially written.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        text = getattr(error, "strerror", None) or next(iter(str(error).strip().splitlines()), type(error).__name__)
        if isinstance(error, RuntimeError) and not any(mark in text for mark in _TORCH_WRITE_ERRORS):
            raise
        free = shutil.disk_usage(run_dir).free / 2**20
        if isinstance(error, RuntimeError) and free < 1:  # torch reports positions in its file
            text = "no space left"
        clear_staging(run_dir)
        raise CheckpointWriteError(
            f"{what} could not be written to {run_dir} ({text}; {free:.1f} MiB were free). Free some space, for "
            f"example with a smaller save_total_limit, or use another disk. {resume_hint(run_dir)}"
        ) from error
