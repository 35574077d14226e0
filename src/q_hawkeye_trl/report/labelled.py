"""Scoring prepared sets with a policy, for a report: labels and pictures from the data, scores from the scorer."""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from datasets import Dataset
from PIL import Image

from ..data.folder import load_folder
from ..evaluation.public_sets import WHOLE, Preset
from ..evaluation.score_tables import ScoreTable, build_table
from ..files import without_nan, write_atomically
from ..scoring.journal import Journal
from ..scoring.run import Processes, fill
from ..scoring.scored import ScoredImage
from ..scoring.scorer import HawkeyeScorer
from ..scoring.sources import ImageSource, find_images

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
        """Loads one picture; `None` where it can't be read."""
        try:
            return self.sources[self._places[dataset, image_id]].load()
        except (ValueError, OSError):
            return None

    @cached_property
    def _places(self) -> dict[tuple[str, str], int]:
        return {(label["dataset"], label["image_id"]): number for number, label in enumerate(self.labels)}


def find_labelled(folders: Sequence[str], *, split: str | None = None, preset: Preset | None = None) -> LabelledImages:
    """
    Finds the images to score.

    Args:
        folders (`Sequence[str]`):
            Folders of prepared data.
        split (`str`, *optional*):
            Split of all folders. By default that of the preset, else `test` where there is one, else the only one.
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
        for part in _splits_of(folder, split, preset):
            rows = load_folder(folder, part)
            if "mos" not in rows.column_names:
                raise ValueError(
                    f"{folder} has no column `mos`, but {', '.join(rows.column_names)}: nothing to compare."
                )
            found = find_images([folder], part)
            if len(found) != len(rows):
                raise ValueError(f"{folder}: {len(rows)} rows, but {len(found)} images.")
            sources += found
            labels += _labels(rows, Path(folder).name)
    return LabelledImages(sources, labels)


def score_labelled(
    images: LabelledImages,
    load_scorer: Callable[[], HawkeyeScorer],
    *,
    settings: Mapping[str, Any],
    folder: str | os.PathLike,
    overwrite: bool = False,
    processes: Processes | None = None,
    progress: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> list[ScoredImage] | None:
    """
    Scores the images; a run that was cut off goes on with the scores in `folder`.

    Args:
        images ([`LabelledImages`]):
            Images.
        load_scorer (`Callable[[], HawkeyeScorer]`):
            Makes the scorer; called only if something is left to score.
        settings (`Mapping[str, Any]`):
            What the scores depend on.
        folder (`str` or `os.PathLike`):
            Folder of the unfinished scores.
        overwrite (`bool`, *optional*, defaults to `False`):
            Whether unfinished scores are dropped.
        processes ([`~scoring.run.Processes`], *optional*):
            By default this one alone.
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar.
        say (`Callable[[str], None]`, *optional*):
            Gets a line about scores that were there already.

    Returns:
        `list[ScoredImage]` in the order of the images in the first process, `None` in the others.

    Raises:
        `ValueError`: The folder holds scores of other settings.
        `OSError`: An image file was replaced while the run went on.
    """
    processes = processes or Processes()
    journal = Journal(folder)
    fill(
        journal,
        load_scorer,
        images.sources,
        settings=settings,
        overwrite=overwrite,
        processes=processes,
        progress=progress,
        say=say,
    )
    return list(journal.scored(images.sources)) if processes.number == 0 else None


def tables_of(images: LabelledImages, scored: Iterable[ScoredImage]) -> tuple[list[ScoreTable], list[dict]]:
    """
    Joins labels and scores.

    Args:
        images ([`LabelledImages`]):
            Images.
        scored (`Iterable[ScoredImage]`):
            Their scores, in the same order.

    Returns:
        `tuple[list[ScoreTable], list[dict]]`: A table a set, and the rows of a file that
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
    return [build_table(name, part) for name, part in sets.items()], rows


def unscored_tables(images: LabelledImages) -> list[ScoreTable]:
    """The tables of [`tables_of`] without a score; `ValueError` where a label is wrong or an image stands twice."""
    return tables_of(images, (ScoredImage(label["image_id"]) for label in images.labels))[0]


def write_rows(path: str | Path, rows: Sequence[Mapping]) -> None:
    """Writes rows as JSONL, atomically."""
    lines = (json.dumps(without_nan(dict(row)), ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    write_atomically(path, "".join(lines))


def _splits_of(folder: str, split: str | None, preset: Preset | None) -> list[str | None]:
    known = _split_names(Path(folder))
    if split is not None:
        return [split]
    if preset is not None and known:
        dataset = _labels(load_folder(folder, known[0]).select([0]), Path(folder).name)[0]["dataset"]
        wanted = preset.splits.get(dataset, "test")
        return list(known) if wanted == WHOLE else [wanted]
    return ["test"] if "test" in known else [None]


def _split_names(folder: Path) -> list[str]:
    file = folder / "dataset_dict.json"
    return json.loads(file.read_text("utf-8"))["splits"] if file.is_file() else []


def _labels(rows: Dataset, name: str) -> list[dict]:
    plain = rows.select_columns([column for column in LABELS if column in rows.column_names])
    return [{**row, "image_id": str(row["image_id"]), "dataset": row.get("dataset") or name} for row in plain]
