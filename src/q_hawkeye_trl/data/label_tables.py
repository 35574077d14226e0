"""Labels in tables: the user's own (CSV, JSON, JSON lines, Parquet or a `datasets` folder), and DeQA-Score's metas."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict
from datasets import Image as ImageFeature

from .folder import read_folder
from .labels import (
    EmbeddedImage,
    LabelRow,
    LabelSet,
    as_floats,
    cell_text,
    check_columns,
    label_set,
    parse_number,
    parse_spread,
    read_csv,
    reference_reader,
)
from .scales import to_mos
from .splits import split_name

Cells = Iterator[tuple[str, str | None, dict[str, Any]]]
"""Place, split and cells of each row."""


class TableColumns(NamedTuple):
    """
    Names of a table's columns; `None` where it has no such column.

    Args:
        image (`str`):
            Path of the image, or the image itself.
        score (`str`):
            Opinion score.
        std (`str` or `None`), variance (`str` or `None`):
            Spread of the opinions, in units of the score or their square; at most one of them.
        reference (`str` or `None`):
            Name of the undistorted original.
        group (`str` or `None`):
            Key of rows that must stay in one split, such as a text prompt.
        split (`str` or `None`):
            Split of the row.
        image_id (`str` or `None`):
            Name of the image, by default its path.
    """

    image: str = "image"
    score: str = "mos"
    std: str | None = None
    variance: str | None = None
    reference: str | None = None
    group: str | None = None
    split: str | None = None
    image_id: str | None = None


def read_table(
    root: Path,
    *,
    labels: str,
    direction: str,
    ends: tuple[float, float] | None,
    name: str,
    columns: TableColumns | None = None,
    scale: str | None = None,
    images: str | None = None,
    reference_pattern: str | None = None,
) -> LabelSet:
    """
    Read a table of the user.

    Args:
        root (`Path`):
            Folder that contains the images.
        labels (`str`):
            From `root`: a `.csv`, `.json` (a list of objects), `.jsonl` or `.parquet` file, or a folder that
            [`~data.folder.load_folder`] reads. Several splits in a folder are kept; a single one is split.
        direction (`str`):
            Better end of the score, `"higher"` or `"lower"`.
        ends (`tuple[float, float]` or `None`):
            Lowest and highest value that a score can have. Needed unless `scale` is `"deqa"`.
        name (`str`):
            Value of the `dataset` column.
        columns ([`TableColumns`], *optional*):
            Names of the columns, by default `image` and `mos`.
        scale (`str`, *optional*):
            `"linear"` (default) or `"deqa"`.
        images (`str`, *optional*):
            Folder that relative paths start from, by default `root`.
        reference_pattern (`str`, *optional*):
            Regular expression whose first group, in the image's file name, is the reference.

    Returns:
        [`~data.labels.LabelSet`]

    Raises:
        `FileNotFoundError`: The table is missing.
        `ValueError`: Columns or values are wrong; the message names the row.
    """
    columns, scale = columns or TableColumns(), scale or "linear"
    if columns.std and columns.variance:
        raise ValueError("A table has a column of standard deviations or one of variances; name one.")
    if scale == "linear" and ends is None:
        raise ValueError("A table needs the ends of its scale (--low and --high), or --scale deqa.")
    path, base = root / labels, Path(os.path.abspath(root / (images or ".")))
    if not base.is_dir():
        raise FileNotFoundError(f"There is no folder {base}: name the one that image paths start from.")
    pattern = reference_reader(reference_pattern) if reference_pattern else None
    rows = [_row(cells, where, split, base, columns, pattern) for where, split, cells in _cells(path, columns)]
    return label_set(
        name, rows, scale=scale, ends=ends, direction=direction, folder=base,
        scores=f"column `{columns.score}`" + ("" if ends is None else f" of {ends[0]:g} to {ends[1]:g}"),
        files=[path], splits=_split_rule(rows, columns, pattern is not None), notes=_notes(columns, direction),
    )  # fmt: skip


def _split_rule(rows: list[LabelRow], columns: TableColumns, has_pattern: bool) -> str:
    missing = [row for row in rows if row.split is None]
    if len(missing) < len(rows):
        if missing:
            raise ValueError(f"{missing[0].where} ({missing[0].image_id}) has no split, but other rows have one.")
        return f"of the table's column `{columns.split}`" if columns.split else "of the folder"
    kept = [f"column `{name}`" for name in (columns.reference, columns.group) if name]
    kept += ["the reference in the file name"] if has_pattern else []
    return "by " + (" and ".join(kept) or "image")


def _notes(columns: TableColumns, direction: str) -> list[str]:
    name = columns.score.lower()
    kind, usual = ("DMOS", "lower") if "dmos" in name else ("MOS", "higher") if "mos" in name else ("", direction)
    if direction == usual:
        return []
    return [f"The column is named `{columns.score}`: a {kind} is usually better when {usual}, not {direction}."]


def _row(
    cells: dict[str, Any],
    where: str,
    split: str | None,
    base: Path,
    columns: TableColumns,
    pattern: Callable[[str, str], str] | None,
) -> LabelRow:
    def text(column: str | None) -> str | None:
        return (cell_text(cells[column]) or None) if column else None

    image = cells[columns.image]
    image_id = image.label if isinstance(image, EmbeddedImage) else cell_text(image)
    if not image_id:
        raise ValueError(f"{where}: column `{columns.image}` has no path.")
    if not isinstance(image, EmbeddedImage):
        image = os.path.normpath(base / image_id)
    if columns.image_id:
        image_id = cell_text(cells[columns.image_id])
        if not image_id:
            raise ValueError(f"{where}: column `{columns.image_id}` has no name.")
    column = columns.std or columns.variance
    spread = parse_spread(cells[column], f"{where}: column `{column}`") if column else None
    if columns.variance and spread is not None:
        spread = spread**0.5
    if text(columns.split):
        split = split_name(cells[columns.split or ""], where)
    reference = pattern(image_id, where) if pattern else text(columns.reference)
    score = parse_number(cells[columns.score])
    return LabelRow(image_id, image, where, score, spread, split, reference, text(columns.group))


def _cells(path: Path, columns: TableColumns) -> Cells:
    required = [column for column in columns if column is not None]
    if path.is_dir():
        yield from _from_folder(path, required, columns)
    elif not path.is_file():
        raise FileNotFoundError(f"There is no table {path}: --labels starts from --root.")
    elif path.suffix == ".csv":
        yield from ((where, None, row) for where, row in read_csv(path, required, "your set"))
    elif path.suffix in (".json", ".jsonl"):
        yield from _from_json(path, required)
    elif path.suffix == ".parquet":
        yield from _from_parquet(path, required, columns)
    else:
        raise ValueError(f"{path}: expected a .csv, .json, .jsonl or .parquet file, or a `datasets` folder.")


def _from_json(path: Path, required: list[str]) -> Cells:
    try:
        with path.open(encoding="utf-8-sig") as file:
            if path.suffix == ".jsonl":
                rows = [(f"line {number}", json.loads(line)) for number, line in enumerate(file, 1) if line.strip()]
            else:
                rows = [(f"entry {number}", row) for number, row in enumerate(json.load(file), 1)]
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} can't be read as a list of JSON objects ({error}).") from error
    for place, row in rows:
        if not isinstance(row, dict):
            raise ValueError(f"{path}, {place}: expected an object with {', '.join(required)}, got {row!r:.80}.")
        missing = [column for column in required if column not in row]
        if missing:
            raise ValueError(f"{path}, {place}: {', '.join(missing)} is missing; it has {', '.join(row)}.")
        yield f"{path}, {place}", None, row


def _from_parquet(path: Path, required: list[str], columns: TableColumns) -> Cells:
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} can't be read as Parquet ({error}).") from error
    check_columns(path, required, schema.names)
    kind = schema.field(columns.image).type
    if pa.types.is_struct(kind):
        if not {"bytes", "path"} <= {field.name for field in kind}:
            raise ValueError(f"{path}, column `{columns.image}`: expected paths, or images as `datasets` stores them.")
        yield from _from_dataset(Dataset.from_parquet(str(path)), str(path), None, columns, required)
        return
    for number, row in enumerate(pq.read_table(path, columns=required).to_pylist(), 1):
        yield f"{path}, row {number}", None, row


def _from_folder(path: Path, required: list[str], columns: TableColumns) -> Cells:
    data = read_folder(path)
    parts = data if isinstance(data, DatasetDict) else {"": data}
    for key, part in parts.items():
        check_columns(path / key, required, part.column_names)
        split = split_name(key, str(path)) if len(parts) > 1 and columns.split is None else None
        yield from _from_dataset(part, f"{path}, {key or 'split'}", split, columns, required)


def _from_dataset(table: Dataset, place: str, split: str | None, columns: TableColumns, required: list[str]) -> Cells:
    if isinstance(table.features[columns.image], dict):  # bytes and path, written by another library than `datasets`
        table = table.cast_column(columns.image, ImageFeature(decode=False))
    if not isinstance(table.features[columns.image], ImageFeature):
        for number, row in enumerate(table.select_columns(required), 1):
            yield f"{place}, row {number}", split, row
        return
    if columns.image != "image":
        table = table.select_columns(required).rename_column(columns.image, "image")
    table, number = table.cast_column("image", ImageFeature(decode=False)), 0
    others = [column for column in required if column != columns.image]
    for batch in table.with_format("arrow").iter(batch_size=1000):
        images = batch.column("image")
        paths = pc.struct_field(images, "path").to_pylist()
        embedded = pc.is_valid(pc.struct_field(images, "bytes")).to_pylist()
        for path, is_inside, row in zip(paths, embedded, batch.select(others).to_pylist(), strict=True):
            number += 1
            label = path or f"{split or 'row'}-{number}"
            image = EmbeddedImage(table, number - 1, label) if is_inside else path
            yield f"{place}, row {number}", split, {**row, columns.image: image}


def read_deqa(
    root: Path,
    *,
    scale: str | None = None,
    images: str | None = None,
    labels: list[str] | None = None,
    name: str | None = None,
    reference_pattern: str | None = None,
) -> LabelSet:
    """
    Read the metas of one set in DeQA-Score's layout, `SET/metas/train_….json` and `SET/metas/test_….json`.

    MOS is the file's own `gt_score_norm`, made over the whole set. It must be linear in `gt_score`; rows without it
    get theirs from that line. If no row has it, the line goes from the smallest to the largest `gt_score`.

    Args:
        root (`Path`):
            Folder of the set, with `metas/`.
        scale (`str`, *optional*):
            Only `"deqa"`.
        images (`str`, *optional*):
            Folder that the files' image paths start from; by default `root` or its parent, whichever has them.
        labels (`list[str]`, *optional*):
            Files from `root` instead of all of `metas/`, each `SPLIT=FILE` or a `FILE` whose name begins with its
            split (`train_koniq_7k.json`).
        name (`str`, *optional*):
            Value of the `dataset` column, by default the name of `root` in lower case.
        reference_pattern (`str`, *optional*):
            Regular expression whose first group, in the image's file name, is the reference, which the metas lack.

    Returns:
        [`~data.labels.LabelSet`]

    Raises:
        `FileNotFoundError`: There are no metas.
        `ValueError`: A file is not such a list, a row has no image, or the norms are not linear in the scores.
    """
    if scale not in (None, "deqa"):
        raise ValueError(f"Unknown scale {scale!r} of DeQA-Score's metas; they are normalised by `deqa`.")
    files, pattern = _metas(root, labels), reference_reader(reference_pattern) if reference_pattern else None
    entries = [(split, where, entry) for split, path in files for where, entry in _entries(path)]
    folder = _base(root, images, [entry["image"] for _, _, entry in entries[:50]])
    rows = [
        LabelRow(
            image_id=entry["image"],
            image=os.path.normpath(folder / entry["image"]),
            where=where,
            score=parse_number(entry.get("gt_score")),
            std=parse_spread(entry.get("std"), f"{where}: `std`"),
            split=split,
            reference=pattern(entry["image"], where) if pattern else None,
        )
        for split, where, entry in entries
    ]
    norms = as_floats(parse_number(entry.get("gt_score_norm")) for _, _, entry in entries)
    mos, factor, rule = _norms_to_mos(rows, norms)
    name, stds = name or Path(os.path.abspath(root)).name.lower(), as_floats(row.std for row in rows) * factor
    return LabelSet(
        name, rows, mos, stds, "deqa", "higher", rule=rule, folder=folder, files=[path for _, path in files],
        scores="gt_score of DeQA-Score's metas; higher is better (CSIQ's DMOS has a minus there)",
        splits="of the metas, by file",
    )  # fmt: skip


def _metas(root: Path, labels: list[str] | None) -> list[tuple[str, Path]]:
    if labels is None:
        labels = [f"metas/{path.name}" for path in sorted((root / "metas").glob("*.json"))]
    if not labels:
        raise FileNotFoundError(f"{root / 'metas'}: expected DeQA-Score's metas, like train_koniq_7k.json.")
    files = []
    for text in labels:
        split, separator, file = text.rpartition("=")
        path = root / file
        if not path.is_file():
            raise FileNotFoundError(f"There is no file {path}: --labels starts from --root.")
        where = f"{path}: name the split by --labels SPLIT={file}"
        files.append((split_name(split if separator else path.name.split("_")[0], where), path))
    return files


def _entries(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): fetch it again.") from error
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path}: expected a list of images with their scores.")
    for number, entry in enumerate(entries, 1):
        image = entry.get("image") if isinstance(entry, dict) else None
        if not isinstance(image, str) or not image or os.path.isabs(image):
            raise ValueError(f"{path}, entry {number}: expected `image`, a relative path, got {image!r}.")
        yield f"{path}, entry {number}", {key: entry.get(key) for key in ("image", "gt_score", "gt_score_norm", "std")}


def _base(root: Path, images: str | None, names: list[str]) -> Path:
    candidates = [root / images] if images else [root, Path(os.path.abspath(root)).parent]
    best = max(candidates, key=lambda folder: sum((folder / name).exists() for name in names))
    return Path(os.path.abspath(best))


def _norms_to_mos(rows: list[LabelRow], norms: np.ndarray) -> tuple[np.ndarray, float, str]:
    scores = as_floats(row.score for row in rows)
    both = np.isfinite(scores) & np.isfinite(norms)
    if not both.any():
        rule = "1 + 4 (v - min) / (max - min) over the images of these files, which have no gt_score_norm"
        return (*to_mos(scores, "deqa"), rule)
    low, high = np.flatnonzero(both)[[np.argmin(scores[both]), np.argmax(scores[both])]]
    if not scores[low] < scores[high]:
        raise ValueError(f"{rows[low].where}: all scores are {scores[low]:g}; a scale needs two different ones.")
    factor = (norms[high] - norms[low]) / (scores[high] - scores[low])
    line = norms[low] + factor * (scores - scores[low])
    off = np.abs(line - norms)
    worst = int(np.nanargmax(off))
    if factor <= 0 or off[worst] > 0.01 or np.nanmin(norms) < 1 or np.nanmax(norms) > 5:
        raise ValueError(
            f"{rows[worst].where}: `gt_score_norm` is {norms[worst]:g} for the score {scores[worst]:g}, expected "
            f"{line[worst]:.4f}: it must rise linearly with `gt_score` within [1, 5]. Fetch the metas again."
        )
    mos = np.where(np.isfinite(norms), norms, line)
    mos[~np.isfinite(scores)] = np.nan
    ends = [scores[low] + (value - norms[low]) / factor for value in (1, 5)]  # smallest and largest of the whole set
    rule = (
        f"gt_score_norm of the metas: 1 + 4 (v - min) / (max - min) with min = {ends[0]:.5g} and max = {ends[1]:.5g} "
        "over the whole set, test images included"
    )
    return mos, float(factor), rule
