"""
Open every image of a set once: check that it exists, is inside the folder and decodes, and hash its pixels.

Each finding is written to a journal immediately, so a killed run resumes where it stopped.
"""

import contextlib
import hashlib
import io
import json
import os
import stat
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import PIL
from PIL import Image

from ..io.atomic import write_text
from ..io.journal import append_line, read_lines
from .degradations import pixel_hash
from .images import load_image
from .labels import EmbeddedImage

_HEADER = {"version": 2, "pillow": PIL.__version__}  # raise it when `pixel_hash` or the reading of images changes


class Finding(NamedTuple):
    """
    What one image is: `key` is its path, or the hash of its bytes if it is embedded; `size` (bytes) and `stamp`
    (modification time in nanoseconds) are 0 for a missing file; `pixels` is the `pixel_hash` of the upright image,
    `None` if unusable; `fault` is `"missing"`, `"outside"` or `"unreadable"`, with its reason.
    """

    key: str
    size: int
    stamp: int
    pixels: str | None
    fault: str | None = None
    reason: str = ""


def inspect_images(
    images: Sequence[str | EmbeddedImage],
    folder: Path,
    journal: Path,
    *,
    follow_links: bool = False,
    workers: int = 1,
    progress: Callable[[], object] = lambda: None,
) -> Iterator[Finding]:
    """
    Inspect images, absolute paths inside `folder` or images of a table, and yield their findings in order.

    Findings in `journal` are reused for unchanged files. Memory holds the pixels of one image per worker.
    """
    known = _read_findings(journal)
    resolve = os.path.abspath if follow_links else os.path.realpath
    home = resolve(folder)
    pending: deque[Future[tuple[Finding, bool]]] = deque()

    def finish() -> Finding:
        finding, is_new = pending.popleft().result()
        if is_new:
            known[finding.key] = finding
            append_line(journal, finding._asdict(), sync=False)
        progress()
        return finding

    pool = ThreadPoolExecutor(workers)
    try:
        for image in images:
            pending.append(pool.submit(_inspect, image, home, resolve, known))
            if len(pending) >= 4 * workers:
                yield finish()
        while pending:
            yield finish()
    finally:
        pool.shutdown(cancel_futures=True)


def read_image_file(image: str | EmbeddedImage, finding: Finding) -> bytes:
    """Read the bytes of an inspected image; raise `ValueError` if the file has changed since."""
    if isinstance(image, EmbeddedImage):
        return image.read()
    with open(image, "rb") as file:
        status = os.fstat(file.fileno())
        data = file.read()
    if (status.st_size, status.st_mtime_ns) != (finding.size, finding.stamp) or len(data) != finding.size:
        raise ValueError(f"{image} has changed while the set was prepared: run the same command again.")
    return data


def _read_findings(journal: Path) -> dict[str, Finding]:
    """Read the findings up to the first damaged line and drop the rest; decoders differ between versions of Pillow."""
    known: dict[str, Finding] = {}
    lines = read_lines(journal)
    with contextlib.suppress(ValueError, TypeError):
        first = next(lines, None)
        if first is not None and first.content == _HEADER:
            for line in lines:
                finding = Finding(**line.content)
                known[finding.key] = finding
    journal.parent.mkdir(parents=True, exist_ok=True)
    kept = [_HEADER, *(finding._asdict() for finding in known.values())]
    write_text(journal, "".join(json.dumps(content) + "\n" for content in kept))
    return known


def _inspect(
    image: str | EmbeddedImage, home: str, resolve: Callable[[str], str], known: dict[str, Finding]
) -> tuple[Finding, bool]:
    """Return the finding and whether it is new; missing and outside files are looked up by every run."""
    source: str | bytes
    if isinstance(image, EmbeddedImage):
        source, name = image.read(), image.label
        finding = Finding(f"embedded:{hashlib.blake2b(source, digest_size=16).hexdigest()}", len(source), 0, None)
    else:
        source = name = image
        try:
            status = os.stat(image)
        except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
            reason = getattr(error, "strerror", None) or str(error)
            return Finding(image, 0, 0, None, "missing", reason), False
        finding = Finding(image, status.st_size, status.st_mtime_ns, None)
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would block
            return finding._replace(fault="missing", reason="it is not a regular file"), False
        real = resolve(image)
        if os.path.commonpath([home, real]) != home:
            return finding._replace(fault="outside", reason=f"it leads to {real}, out of {home}"), False
    earlier = known.get(finding.key)
    if earlier is not None and earlier[:3] == finding[:3]:
        return earlier, False
    return _decode(finding, source, name), True


def _decode(finding: Finding, source: str | bytes, name: str) -> Finding:
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as opened:
            limit = Image.MAX_IMAGE_PIXELS  # Pillow itself only warns up to twice as many
            if limit is not None and opened.width * opened.height > limit:
                raise ValueError(
                    f"{opened.width} x {opened.height} pixels are more than `PIL.Image.MAX_IMAGE_PIXELS` = {limit}"
                )
        return finding._replace(pixels=pixel_hash(load_image(source)))
    except Exception as error:  # Pillow's decoders raise many kinds, each of which makes the image unusable
        reason = str(error).replace(f" {name!r}", "").replace(name, "it")  # the name precedes it in every list
        return finding._replace(fault="unreadable", reason=reason)
