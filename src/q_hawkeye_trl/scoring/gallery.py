"""A page of scored images: one HTML file that needs no server, network or library."""

import base64
import hashlib
import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from ..io.atomic import open_atomic
from ..wording import number
from .scored import ScoredImage

THUMBNAIL_SIZE = 160
"""Longest side of a thumbnail in pixels."""

Picture = Callable[[], Image.Image | None] | None


@dataclass(frozen=True)
class GalleryRow:
    """
    One image on the page.

    Args:
        scored ([`ScoredImage`]):
            Its score.
        picture (`Callable[[], PIL.Image.Image | None]`, *optional*):
            Loads the RGB image, called when its row is written.
        extra (`Mapping[str, float | str | None]`, *optional*):
            Further columns by their title.
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
    Write the page, atomically and row by row; readers can sort by every column and filter by text.

    Names, answers and errors are shown literally: the template escapes everything, and a Content-Security-Policy lets
    the page run only its own script and load nothing.

    Args:
        path (`str` or `os.PathLike`):
            HTML file to write or replace.
        rows (`Iterable[GalleryRow]`):
            Images in the order of the page; read once.
        title (`str`):
            Title of the page.
        extra_sections_html (`str`, *optional*, defaults to `""`):
            HTML between the heading and the images, inserted as is: **the caller has escaped it**. The policy allows
            pictures as `data:` addresses, inline SVG and the classes of the page's style sheet, but no script, no
            style of its own and nothing from elsewhere.
        extra_columns (`Sequence[str]`, *optional*):
            Titles of the further columns, the keys of each row's `extra`.
        facts (`Mapping[str, str | int | float]`, *optional*):
            Shown below the title, for example the model and the number of images.
        score_min (`float`, *optional*, defaults to `1.0`), score_max (`float`, *optional*, defaults to `5.0`):
            Ends of the scale.

    Raises:
        `OSError`: The file can't be written.
        `ValueError`: A row lacks one of the extra columns.
    """
    environment = page_environment(Path(__file__).parent)

    def across(value: float) -> float:
        """Return the position of a value on a strip of 100 units, with the ends of the scale at 4 and 96."""
        share = (min(max(value, score_min), score_max) - score_min) / (score_max - score_min)
        return round(4 + 92 * share, 2)

    environment.filters |= {"figure": _figure, "sort_key": _sort_key, "across": across}
    stream = environment.get_template("gallery.html.jinja").stream(
        title=title,
        facts=facts or {},
        extra_sections=extra_sections_html,
        extra_columns=list(extra_columns),
        rows=_cells(rows, list(extra_columns)),
        score_min=score_min,
        score_max=score_max,
        **_inlined(),
    )
    with open_atomic(path, errors="backslashreplace") as file:
        file.writelines(stream)


def thumbnail(image: Image.Image) -> tuple[str, tuple[int, int]]:
    """Return an RGB image, shrunk to `THUMBNAIL_SIZE`, as the `data:` address of a JPEG, and its width and height."""
    small, buffer = image.convert("RGB"), io.BytesIO()  # a copy
    small.thumbnail((THUMBNAIL_SIZE, THUMBNAIL_SIZE))
    small.save(buffer, "JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}", small.size


def page_environment(folder: Path) -> Environment:
    """Set up the templates of a folder: everything is escaped, and a missing name is an error."""
    return Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _inlined() -> dict[str, str]:
    # the policy names the hashes of the page's own script and style, so an injected one does not run or apply
    parts: dict[str, str] = {}
    for name, ending in (("script", "js"), ("style", "css")):
        content = (Path(__file__).parent / f"gallery.{ending}").read_text("utf-8")
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode("ascii")
        parts |= {name: content, f"{name}_hash": f"sha256-{digest}"}
    return parts


def _cells(rows: Iterable[GalleryRow], extra_columns: list[str]) -> Iterator[dict[str, Any]]:
    for count, row in enumerate(rows):
        missing = [title for title in extra_columns if title not in row.extra]
        if missing:
            raise ValueError(f"Row {count} of the page ({row.scored.image}) has no value for {', '.join(missing)}.")
        picture = None if row.picture is None else row.picture()
        uri, size = (None, None) if picture is None else thumbnail(picture)
        extra = [row.extra[title] for title in extra_columns]
        yield {"scored": row.scored, "thumbnail": uri, "size": size, "extra": extra}


def _figure(value: float | str | None) -> str:
    return value if isinstance(value, str) else number(value, 2)


def _sort_key(value: float | str | None) -> str:
    # the script reads numbers by Number(); an empty key is last in both directions
    return "" if value is None or value != value else str(value)
