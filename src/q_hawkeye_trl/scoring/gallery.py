"""One HTML page that shows scored images: a single file without a server, a network or a dependency."""

import base64
import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from .scored import ScoredImage

THUMBNAIL_SIZE = 160
"""Longest side of a thumbnail in pixels."""

Picture = Image.Image | Callable[[], Image.Image | None] | None


@dataclass(frozen=True)
class GalleryRow:
    """
    One image on the page.

    Args:
        scored ([`ScoredImage`]):
            What scoring said.
        picture (`PIL.Image.Image`, `Callable[[], PIL.Image.Image | None]` or `None`):
            RGB image to show, or a function that loads it when its turn comes, so that a page of many images does not
            hold them all. `None` leaves the place empty.
        extra (`Mapping[str, float | str | None]`, *optional*):
            Further columns by their title, in order; each row of a page needs the same titles.
    """

    scored: ScoredImage
    picture: Picture = None
    extra: Mapping[str, float | str | None] = field(default_factory=dict)


def write_gallery(
    path: str | os.PathLike,
    rows: Iterable[GalleryRow],
    *,
    title: str,
    extra_sections_html: str = "",
    extra_columns: Sequence[str] = (),
    facts: Mapping[str, str | int | float] | None = None,
    score_min: float = 1.0,
    score_max: float = 5.0,
) -> None:
    """
    Writes the page, atomically and row by row. A reader can sort by every column and filter by text. Names, answers
    and errors are shown as text, whatever they hold: the template escapes everything, and a Content-Security-Policy
    lets the page run its own script and load nothing from anywhere.

    Args:
        path (`str` or `os.PathLike`):
            HTML file to write or replace.
        rows (`Iterable[GalleryRow]`):
            Images in the order of the page; read once.
        title (`str`):
            Title of the page.
        extra_sections_html (`str`, *optional*, defaults to `""`):
            HTML between the heading and the images, inserted as it is: **the caller has escaped it**. The policy of
            the page allows pictures as `data:` addresses, inline SVG and the classes of the page's style sheet, but no
            script, no `style` attribute, no `<style>` element and nothing from elsewhere.
        extra_columns (`Sequence[str]`, *optional*):
            Titles of the further columns, the keys of each row's `extra`.
        facts (`Mapping[str, str | int | float]`, *optional*):
            What stands below the title, for example the model and the number of images.
        score_min (`float`, *optional*, defaults to `1.0`), score_max (`float`, *optional*, defaults to `5.0`):
            Ends of the scale.

    Raises:
        `OSError`: The file can't be written.
        `ValueError`: A row lacks one of the extra columns.
    """
    path = Path(path)
    template = _environment().get_template("gallery.html.jinja")
    stream = template.stream(
        title=title,
        facts=facts or {},
        extra_sections=extra_sections_html,
        extra_columns=list(extra_columns),
        rows=_cells(rows, list(extra_columns)),
        scale=_Scale(score_min, score_max),
        **_inlined(),
    )
    handle, partial = tempfile.mkstemp(prefix=f".{path.name[:100]}-", suffix=".partial", dir=path.parent)
    try:
        with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(stream)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(partial, 0o644)  # mkstemp's files are private
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


def thumbnail_uri(image: Image.Image, size: int = THUMBNAIL_SIZE) -> str:
    """
    Shrinks an image and returns it as a `data:` address, for `src` of an `<img>`.

    Args:
        image (`PIL.Image.Image`):
            RGB image; it is left as it is.
        size (`int`, *optional*, defaults to `THUMBNAIL_SIZE`):
            Longest side in pixels. A smaller image is not enlarged.

    Returns:
        `str`: JPEG in base64.
    """
    small = _shrunk(image, size)
    buffer = io.BytesIO()
    small.convert("RGB").save(buffer, "JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _shrunk(image: Image.Image, size: int = THUMBNAIL_SIZE) -> Image.Image:
    small = image.copy()
    small.thumbnail((size, size))
    return small


@dataclass(frozen=True)
class _Scale:
    low: float
    high: float

    def across(self, value: float) -> float:
        """Where a value lies on a strip of 100 units, with the ends of the scale at 4 and 96."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return round(4 + 92 * share, 2)


def page_environment(folder: Path) -> Environment:
    """
    Sets up the templates of a page: everything is escaped, and a name that is not given is an error.

    Args:
        folder (`Path`):
            Folder of the templates.

    Returns:
        `jinja2.Environment`
    """
    return Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _environment() -> Environment:
    environment = page_environment(Path(__file__).parent)
    environment.filters["figure"] = _figure
    environment.filters["sort_key"] = _sort_key
    return environment


def _inlined() -> dict[str, str]:
    # The policy names the hashes of the page's own script and style: an injected one would not run, nor apply.
    parts: dict[str, str] = {}
    for name in ("script", "style"):
        content = (Path(__file__).parent / f"gallery.{'js' if name == 'script' else 'css'}").read_text("utf-8")
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode("ascii")
        parts |= {name: content, f"{name}_hash": f"sha256-{digest}"}
    return parts


def _cells(rows: Iterable[GalleryRow], extra_columns: list[str]) -> Iterator[dict[str, Any]]:
    for number, row in enumerate(rows):
        missing = [title for title in extra_columns if title not in row.extra]
        if missing:
            raise ValueError(f"Row {number} of the page ({row.scored.image}) has no value for {', '.join(missing)}.")
        picture = row.picture() if callable(row.picture) else row.picture
        small = None if picture is None else _shrunk(picture)
        yield {
            "scored": row.scored,
            "thumbnail": None if small is None else thumbnail_uri(small),
            "size": None if small is None else small.size,
            "extra": [row.extra[title] for title in extra_columns],
        }


def _figure(value: float | str | None, digits: int = 2) -> str:
    if value is None:
        return "–"
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def _sort_key(value: float | str | None) -> str:
    # the script reads numbers by Number(); an empty key stands last whichever way one sorts
    return "" if value is None or value != value else str(value)
