"""The report as one HTML page: the page of scored images with the statistics on top."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from ..data.images import load_image
from ..evaluation.presets import Preset
from ..evaluation.results import SetResult
from ..scoring.gallery import GalleryRow, page_environment, write_gallery
from ..scoring.scored import ScoredImage
from .plots import as_data_uri, residuals, risk, scatter
from .wording import EXPLANATION, NAMES, QUOTED, counted, interval, number, units, verdict, with_interval

PictureOf = Callable[[str, str], Image.Image | None]


def write_page(
    path: str | os.PathLike,
    results: Sequence[SetResult],
    *,
    title: str,
    facts: Mapping[str, str | int | float],
    preset: Preset | None = None,
    scored: Mapping[tuple[str, str], ScoredImage] | None = None,
    picture_of: PictureOf | None = None,
    pictures: int = 100,
) -> None:
    """
    Writes the page, atomically. Everything that comes from outside, names, answers, errors, is escaped; the page loads
    nothing and runs no script but its own, see [`~scoring.gallery.write_gallery`].

    Args:
        path (`str` or `os.PathLike`):
            HTML file to write or replace.
        results (`Sequence[SetResult]`):
            Results of the sets.
        title (`str`):
            Title.
        facts (`Mapping`):
            What stands below the title.
        preset ([`Preset`], *optional*):
            Protocol.
        scored (`Mapping[tuple[str, str], ScoredImage]`, *optional*):
            By set and `image_id` what the model said in full. By default the table's own columns are shown.
        picture_of (`Callable[[str, str], PIL.Image.Image | None]`, *optional*):
            Loads the picture of a set's image. By default the files that the table's `image` column names.
        pictures (`int`, *optional*, defaults to `100`):
            Images shown of each set, those of the largest errors.

    Raises:
        `OSError`: The file can't be written.
    """
    environment = page_environment(Path(__file__).parent)
    shown = [result.worst(pictures) for result in results]
    sections = environment.get_template("sections.html.jinja").render(
        results=results,
        preset=preset,
        names=NAMES,
        explanation=EXPLANATION,
        quoted=QUOTED,
        number=number,
        interval=interval,
        with_interval=with_interval,
        counted=counted,
        units=units,
        verdict=verdict,
        plots=[_plots(result) for result in results],
        shown=sum(map(len, shown)),
        total=sum(len(result.table) for result in results),
    )
    several = len(results) > 1
    columns = [*(["Set"] if several else []), "MOS", "Error"]
    for title_of, column in (("Distortion", "distortion"), ("Reference", "group")):
        if any(getattr(result.table, column) for result in results):
            columns.append(title_of)
    write_gallery(
        path,
        _rows(results, shown, columns, scored or {}, picture_of),
        title=title,
        extra_sections_html=sections,
        extra_columns=columns,
        facts=facts,
    )


def _plots(result: SetResult) -> list[dict[str, str]]:
    if result.figures["parsed"] == 0:
        return []
    plots = [(scatter, "score against MOS"), (residuals, "score minus MOS against MOS")]
    if result.figures["spread"] is not None:
        plots.append((risk, "error against the share of images left out by their spread"))
    return [{"uri": as_data_uri(draw(result)), "text": f"{result.name}: {text}"} for draw, text in plots]


def _rows(
    results: Sequence[SetResult],
    shown: Sequence[np.ndarray],
    columns: Sequence[str],
    scored: Mapping[tuple[str, str], ScoredImage],
    picture_of: PictureOf | None,
) -> Iterator[GalleryRow]:
    for result, rows in zip(results, shown, strict=True):
        table = result.table
        for row in rows:
            name = table.image_id[row]
            extra: dict[str, float | str | None] = {
                "Set": table.name,
                "MOS": float(table.mos[row]),
                "Error": float(result.errors[row]),
                "Distortion": table.distortion[row] if table.distortion else "",
                "Reference": table.group[row] if table.group else "",
            }
            picture = partial(picture_of, table.name, name) if picture_of else partial(_file, table, row)
            yield GalleryRow(
                scored.get((table.name, name)) or _scored_of(table, row),
                picture,
                {column: extra[column] for column in columns},
            )


def _scored_of(table, row: int) -> ScoredImage:
    score, spread = table.score[row], np.nan if table.spread is None else table.spread[row]
    answer = table.answer[row] if table.answer else ""
    value = None if np.isnan(score) else float(score)
    return ScoredImage(
        image=table.image_id[row],
        score=value,
        spread=None if np.isnan(spread) else float(spread),
        rollouts=(value,) if answer else (),
        error=(table.error[row] or None) if table.error else None,
        answers=(answer,) if answer else (),
    )


def _file(table, row: int) -> Image.Image | None:
    path = table.image[row] if table.image else ""
    try:
        return load_image(path) if path else None
    except (ValueError, OSError):  # the page says "no picture"
        return None
