"""Locks between processes, released by the system when their holder dies."""

import contextlib
import fcntl
import os
from collections.abc import Iterator


@contextlib.contextmanager
def locked(path: str | os.PathLike, *, busy: str) -> Iterator[None]:
    """Lock a folder, or a file created if missing, exclusively; raise `BlockingIOError(busy)` if it is taken."""
    flags = os.O_RDONLY if os.path.isdir(path) else os.O_RDWR | os.O_CREAT
    descriptor = os.open(path, flags, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(busy) from None
        yield
    finally:
        os.close(descriptor)
