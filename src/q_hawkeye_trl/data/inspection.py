"""
Every image of a set opened once: is it there, inside its folder, whole, and what are its pixels. What was found is on
disk at once, so that a run that was killed goes on where it stopped.
"""

import hashlib
import io
import json
import os
import stat
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import PIL
from PIL import Image

from .degradations import pixel_hash
from .images import load_image
from .readers.labels import EmbeddedImage

_VERSION = 1  # of the records: raise it when `pixel_hash` or the reading of images changes


class Finding(NamedTuple):
    """
    What one image is.

    Args:
        key (`str`):
            Its path; of an embedded image the hash of its bytes.
        size (`int`), stamp (`int`):
            Bytes and modification time (nanoseconds) of the file that was looked at; 0 and 0 where there is none.
        pixels (`str` or `None`):
            [`~data.degradations.pixel_hash`] of the upright image; `None` where it can't be used.
        fault (`str` or `None`):
            `"missing"`, `"outside"` or `"unreadable"`.
        reason (`str`):
            What is wrong, in words.
    """

    key: str
    size: int
    stamp: int
    pixels: str | None
    fault: str | None = None
    reason: str = ""


class Journal:
    """
    Findings on disk, one JSON object a line, appended as they come. A last line that a killed run left half-written is
    dropped; findings of another Pillow are, too, since decoders differ.

    Args:
        path (`Path`):
            The file; it is created with its folder.
    """

    def __init__(self, path: Path):
        self._found: dict[str, Finding] = {}
        header = json.dumps({"version": _VERSION, "pillow": PIL.__version__}).encode() + b"\n"
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = 0
        if path.exists():
            with path.open("rb") as file:
                if file.readline() == header:
                    whole = len(header)
                    for line in file:
                        try:
                            record = Finding(*json.loads(line))
                        except (ValueError, TypeError):
                            break
                        if not line.endswith(b"\n"):
                            break
                        self._found[record.key] = record
                        whole += len(line)
        self._file = path.open("r+b" if path.exists() else "w+b")
        self._file.truncate(whole)
        self._file.seek(whole)
        if whole == 0:
            self._file.write(header)
            self._file.flush()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._found)

    def get(self, key: str, size: int, stamp: int) -> Finding | None:
        """Returns what was found for a file, `None` if it was never opened or has changed since."""
        found = self._found.get(key)
        return found if found is not None and (found.size, found.stamp) == (size, stamp) else None

    def add(self, finding: Finding) -> None:
        """
        Stores a finding.

        Raises:
            `OSError`: It can't be written; what stands on disk stays whole.
        """
        self._found[finding.key] = finding
        # Surrogates of names that are no UTF-8 are escaped by JSON.
        self._file.write(json.dumps(finding).encode() + b"\n")
        self._file.flush()


def inspect_images(
    images: Sequence[str | EmbeddedImage],
    folder: Path,
    journal: Journal,
    *,
    follow_links: bool = False,
    workers: int = 1,
    progress: Callable[[], object] = lambda: None,
) -> Iterator[Finding]:
    """
    Looks at images one after the other; memory holds the pixels of as many as there are workers.

    Args:
        images (`Sequence[str | EmbeddedImage]`):
            Absolute paths, or images of a table.
        folder (`Path`):
            Folder that paths must lie in.
        journal ([`Journal`]):
            What is known already, and where new findings go.
        follow_links (`bool`, *optional*, defaults to `False`):
            Whether symbolic links may lead out of the folder.
        workers (`int`, *optional*, defaults to `1`):
            Threads that decode; the result does not depend on them.
        progress (`Callable`, *optional*):
            Called after each image.

    Yields:
        [`Finding`]: In the order of `images`.
    """
    resolve = os.path.abspath if follow_links else os.path.realpath
    home = resolve(folder)
    pending: deque[Future[tuple[Finding, bool]]] = deque()

    def finish() -> Finding:
        finding, is_new = pending.popleft().result()
        if is_new:
            journal.add(finding)
        progress()
        return finding

    pool = ThreadPoolExecutor(workers)
    try:
        for image in images:
            pending.append(pool.submit(_inspect, image, home, resolve, journal))
            if len(pending) >= 4 * workers:
                yield finish()
        while pending:
            yield finish()
    finally:
        pool.shutdown(cancel_futures=True)


def read_image_file(image: str | EmbeddedImage, finding: Finding) -> bytes:
    """
    Reads the bytes of an image that was looked at before.

    Args:
        image (`str` or `EmbeddedImage`):
            The image.
        finding ([`Finding`]):
            What it was.

    Returns:
        `bytes`: The file as it is, undecoded.

    Raises:
        `ValueError`: The file has changed since.
    """
    if isinstance(image, EmbeddedImage):
        return image.read()
    with open(image, "rb") as file:
        status = os.fstat(file.fileno())
        data = file.read()
    if (status.st_size, status.st_mtime_ns) != (finding.size, finding.stamp) or len(data) != finding.size:
        raise ValueError(f"{image} has changed while the set was prepared: run the same command again.")
    return data


def _inspect(
    image: str | EmbeddedImage, home: str, resolve: Callable[[str], str], journal: Journal
) -> tuple[Finding, bool]:
    """The finding, and whether it is new; a file that is missing or outside is looked at again by every run."""
    if isinstance(image, EmbeddedImage):
        data = image.read()
        key = f"embedded:{hashlib.blake2b(data, digest_size=16).hexdigest()}"
        known = journal.get(key, len(data), 0)
        if known is not None:
            return known, False
        return _decode(Finding(key, len(data), 0, None), io.BytesIO(data), image.label), True
    try:
        status = os.stat(image)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        reason = getattr(error, "strerror", None) or str(error)
        return Finding(image, 0, 0, None, "missing", reason), False
    finding = Finding(image, status.st_size, status.st_mtime_ns, None)
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        return finding._replace(fault="missing", reason="it is no regular file"), False
    real = resolve(image)
    if os.path.commonpath([home, real]) != home:
        return finding._replace(fault="outside", reason=f"it leads to {real}, out of {home}"), False
    known = journal.get(*finding[:3])
    if known is not None:
        return known, False
    return _decode(finding, image, image), True


def _decode(finding: Finding, source: str | io.BytesIO, name: str) -> Finding:
    try:
        with Image.open(source) as opened:
            limit = Image.MAX_IMAGE_PIXELS  # Pillow itself only warns up to twice as many
            if limit is not None and opened.width * opened.height > limit:
                raise ValueError(
                    f"{opened.width} x {opened.height} pixels are more than `PIL.Image.MAX_IMAGE_PIXELS` = {limit}"
                )
        if isinstance(source, io.BytesIO):
            source.seek(0)
            with Image.open(source) as opened:
                return finding._replace(pixels=pixel_hash(load_image(opened)))
        return finding._replace(pixels=pixel_hash(load_image(source)))
    except Exception as error:  # Pillow's decoders raise many kinds; whichever it is, the image can't be used
        reason = str(error).replace(f" {name!r}", "").replace(name, "it")  # the name stands before it anyway
        return finding._replace(fault="unreadable", reason=reason)
