"""The report as one HTML page: statistics, then the scored images."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from ..data.images import load_image
from ..evaluation.public_sets import Preset
from ..evaluation.results import SetResult
from ..evaluation.score_tables import ScoreTable
from ..scoring.gallery import GalleryRow, page_environment, write_gallery
from ..scoring.scored import ScoredImage
from .plots import as_data_uri, residuals, risk, scatter
from .sections import EXPLANATION, protocol_line, sections_of, summary_line

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
    Write the page, atomically; everything from outside is escaped, see [`~scoring.gallery.write_gallery`].

    Args:
        path (`str` or `os.PathLike`):
            HTML file to write or replace.
        results (`Sequence[SetResult]`):
            Results of the sets.
        title (`str`), facts (`Mapping`):
            Title, and the facts below it.
        preset ([`Preset`], *optional*):
            Protocol.
        scored (`Mapping[tuple[str, str], ScoredImage]`, *optional*):
            The model's answers by set and `image_id`. By default from the columns of the table.
        picture_of (`Callable[[str, str], PIL.Image.Image | None]`, *optional*):
            Loads the picture of a set's image. By default the files in the table's `image` column.
        pictures (`int`, *optional*, defaults to `100`):
            Number of images shown of each set, those of the largest errors.
    """
    shown = [result.worst(pictures) for result in results]
    template = page_environment(Path(__file__).parent).get_template("sections.html.jinja")
    html = template.render(
        results=[
            {
                "name": result.name,
                "summary": summary_line(result.figures),
                "warnings": result.warnings,
                "sections": list(sections_of(result, preset)),
                "plots": _plots(result),
            }
            for result in results
        ],
        protocol=None if preset is None else protocol_line(preset),
        explanation=EXPLANATION,
        shown=sum(map(len, shown)),
        total=sum(len(result.table) for result in results),
    )
    columns = [*(["Set"] if len(results) > 1 else []), "MOS", "Error"]
    for heading, column in (("Distortion", "distortion"), ("Reference", "group")):
        if any(getattr(result.table, column) for result in results):
            columns.append(heading)
    rows = _rows(results, shown, columns, scored or {}, picture_of)
    write_gallery(path, rows, title=title, extra_sections_html=html, extra_columns=columns, facts=facts)


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
            image = scored.get((table.name, name)) or _scored_of(table, row)
            yield GalleryRow(image, picture, {column: extra[column] for column in columns})


def _scored_of(table: ScoreTable, row: int) -> ScoredImage:
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


def _file(table: ScoreTable, row: int) -> Image.Image | None:
    path = table.image[row] if table.image else ""
    try:
        return load_image(path) if path else None
    except (ValueError, OSError):  # the page says "no picture"
        return None
