"""Prepared sets scored for a report: labels and pictures from the data, scores from the scorer."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from datasets import Dataset
from PIL import Image

from ..data.folder import load_folder
from ..evaluation.held_out import held_out_metrics
from ..evaluation.public_sets import WHOLE, Preset
from ..evaluation.score_tables import SCALE, ScoreTable, build_table
from ..io.atomic import open_atomic, without_nan
from ..question import Question
from .run import picture_of
from .scored import ScoredImage
from .sources import ImageSource, row_sources

LABELS = ("image_id", "mos", "mos_raw", "mos_direction", "reference", "distortion", "dataset")


@dataclass(frozen=True)
class LabelledImages:
    """
    Images of prepared folders with their labels, in one order.

    Args:
        sources (`list[ImageSource]`):
            The images.
        labels (`list[dict]`):
            Their labels: `image_id`, `mos`, `dataset`, and those of `LABELS` that the data has.
    """

    sources: list[ImageSource]
    labels: list[dict]

    def picture(self, dataset: str, image_id: str) -> Image.Image | None:
        """Load one picture; `None` if it can't be read."""
        return picture_of(self.sources[self._places[dataset, image_id]])

    @cached_property
    def _places(self) -> dict[tuple[str, str], int]:
        return {(label["dataset"], label["image_id"]): number for number, label in enumerate(self.labels)}


def find_labelled(folders: Sequence[str], *, split: str | None = None, preset: Preset | None = None) -> LabelledImages:
    """
    Find the images to score.

    Args:
        folders (`Sequence[str]`):
            Folders of prepared data.
        split (`str`, *optional*):
            Split of all folders. By default that of the preset, else `test` if there is one, else the only one.
        preset ([`Preset`], *optional*):
            Protocol.

    Returns:
        [`LabelledImages`]

    Raises:
        `FileNotFoundError`: A folder is missing.
        `ValueError`: A folder can't be read or has no `mos`, or a split is missing.
    """
    sources: list[ImageSource] = []
    labels: list[dict] = []
    for folder in folders:
        for part, rows in _splits_of(folder, split, preset):
            if "mos" not in rows.column_names:
                raise ValueError(
                    f"{folder} has no column `mos`, but {', '.join(rows.column_names)}: nothing to compare."
                )
            sources += row_sources(rows, folder, part)
            labels += _labels(rows, folder)
    return LabelledImages(sources, labels)


def tables_of(
    images: LabelledImages,
    scored: Iterable[ScoredImage],
    question: Question,
    *,
    mos_range: tuple[float, float] | None = None,
) -> tuple[list[ScoreTable], list[dict]]:
    """
    Join labels and scores.

    Args:
        images ([`LabelledImages`]):
            Images.
        scored (`Iterable[ScoredImage]`):
            Their scores on the question's scale, in the same order.
        question ([`Question`]):
            What the policy was asked.
        mos_range (`tuple[float, float]`, *optional*):
            Worst and best MOS. By default 1 and 5 for sets that `q-hawkeye prepare` made (they have `mos_raw`), the
            question's scale for others.

    Returns:
        `tuple[list[ScoreTable], list[dict]]`: A table for each set, mapped onto [1, 5], and the rows of a file that
        [`~evaluation.score_tables.read_tables`] reads.
    """
    rows = []
    for label, result in zip(images.labels, scored, strict=True):
        reference = {"group": label["reference"]} if label.get("reference") else {}
        rows.append(
            {
                **{name: value for name, value in label.items() if name != "reference"},
                **reference,
                "score": result.score,
                "spread": result.spread,
                "parse_rate": result.parse_rate,
                "error": result.error,
                "answer": result.answers[0] if result.answers else None,
            }
        )
    sets: dict[str, list[tuple[str, Mapping]]] = {}
    for number, row in enumerate(rows):
        sets.setdefault(row["dataset"], []).append((f"row {number} ({row['image_id']})", row))
    tables = []
    for name, part in sets.items():
        prepared = all("mos_raw" in row for _, row in part)
        ends = mos_range or (SCALE if prepared else question.scale)
        tables.append(build_table(name, part, score_range=question.scale, mos_range=ends))
    return tables, rows


def held_out_figures(
    images: LabelledImages, scored: Sequence[ScoredImage], question: Question, *, sampled: bool
) -> dict[str, dict[str, float]]:
    """The figures of validation by set, over the readable images: those of the rollouts, or of the greedy answers."""
    sets: dict[str, list[tuple[float, tuple]]] = {}
    for label, each in zip(images.labels, scored, strict=True):
        if each.error is None:
            sets.setdefault(label["dataset"], []).append((label["mos"], each.rollouts))
    figures = {}
    for name, rows in sets.items():
        mos, scores = np.array([mos for mos, _ in rows]), np.array([row for _, row in rows], dtype=np.float64).T
        given = {"sampled": scores} if sampled else {"greedy": scores[0]}
        figures[name] = held_out_metrics(mos, **given, score_min=question.score_min, score_max=question.score_max)
    return figures


def unscored_tables(images: LabelledImages, question: Question, **options) -> list[ScoreTable]:
    """The tables of [`tables_of`] without a score; `ValueError` if a label is wrong or an image is there twice."""
    return tables_of(images, (ScoredImage(label["image_id"]) for label in images.labels), question, **options)[0]


def write_rows(path: str | os.PathLike, rows: Sequence[Mapping]) -> None:
    """Write rows as JSONL, atomically."""
    with open_atomic(path, errors="backslashreplace") as file:
        for row in rows:
            file.write(json.dumps(without_nan(dict(row)), ensure_ascii=False, allow_nan=False) + "\n")


def _splits_of(folder: str, split: str | None, preset: Preset | None) -> list[tuple[str | None, Dataset]]:
    """The splits to score, by name, each loaded once."""
    known = _split_names(Path(folder))
    if split is not None:
        return [(split, load_folder(folder, split))]
    if preset is None or not known:
        name = "test" if "test" in known else None
        return [(name, load_folder(folder, name))]
    first = load_folder(folder, known[0])
    wanted = preset.splits.get(_labels(first.select([0]), folder)[0]["dataset"], "test")
    names = known if wanted == WHOLE else [wanted]
    return [(name, first if name == known[0] else load_folder(folder, name)) for name in names]


def _split_names(folder: Path) -> list[str]:
    file = folder / "dataset_dict.json"
    return json.loads(file.read_text("utf-8"))["splits"] if file.is_file() else []


def _labels(rows: Dataset, folder: str) -> list[dict]:
    plain = rows.select_columns([column for column in LABELS if column in rows.column_names])
    name = Path(folder).name
    return [{**row, "image_id": str(row["image_id"]), "dataset": row.get("dataset") or name} for row in plain]
