"""Folders that appear complete or not at all."""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .atomic import fsync_path, fsync_tree
from .lock import locked
from .outputs import refuse_taken


@contextlib.contextmanager
def publish_folder(out: str | os.PathLike) -> Iterator[Path]:
    """Yield a new folder beside `out` that is renamed to it when the block ends, and removed if it fails."""
    out = Path(os.path.abspath(out))
    refuse_taken(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{out.name}-", suffix=".partial", dir=out.parent))
    staging.chmod(0o755)  # mkdtemp's folders are private
    try:
        yield staging
        move_folder(staging, out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextlib.contextmanager
def resumable_folder(out: str | os.PathLike) -> Iterator[Path]:
    """
    Yield the locked work folder `OUT.partial`, kept for the next run when the block fails.

    The caller publishes with [`move_folder`] and removes what is left. Raises `FileExistsError` if `out` has content,
    `BlockingIOError` if another run is making it, `OSError` with advice if the disk is full.
    """
    out = Path(os.path.abspath(out))
    work = out.with_name(f"{out.name}.partial")
    refuse_taken(out)
    work.mkdir(parents=True, exist_ok=True)
    with locked(work / "lock", busy=f"Another run is making {out}: wait for it, or name another folder."):
        refuse_taken(out)  # the other run may just have finished
        with advise_full_disk(work):
            yield work


@contextlib.contextmanager
def advise_full_disk(folder: str | os.PathLike) -> Iterator[None]:
    """Raise `OSError` with advice if the disk of a folder fills up during the block."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            message = f"no space left for {folder}: free some and run the same command again"
            raise OSError(error.errno, message) from error
        raise


def move_folder(complete: str | os.PathLike, out: str | os.PathLike) -> None:
    """Rename a complete folder to `out`, which is missing or empty, with its content synced to disk first."""
    fsync_tree(complete)
    os.rename(complete, out)
    fsync_path(Path(out).parent)
