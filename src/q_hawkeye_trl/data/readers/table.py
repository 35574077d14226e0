"""The user's own table: CSV, JSON, JSON lines, Parquet, or a `datasets` folder, with columns, scale and direction."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict
from datasets import Image as ImageFeature

from ..folder import read_folder
from ..scales import DIRECTIONS
from ..splits import split_name
from .files import cell_text, check_columns, read_csv
from .labels import EmbeddedImage, LabelRow, LabelSet, ReferencePattern, label_set, parse_number, parse_spread


class TableColumns(NamedTuple):
    """
    Names of a table's columns; `None` where it has no such column.

    Args:
        image (`str`):
            Path of the image, or the image itself.
        score (`str`):
            Opinion score.
        std (`str` or `None`), variance (`str` or `None`):
            Spread of the opinions, in units of the score or their square; one of them at most.
        reference (`str` or `None`):
            Name of the undistorted original.
        group (`str` or `None`):
            What else must stay in one split.
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
    Reads a table of the user's own.

    Args:
        root (`Path`):
            Folder that the images lie in.
        labels (`str`):
            From `root`: a `.csv`, `.json` (a list of objects), `.jsonl` or `.parquet` file, or a folder that
            [`~data.folder.load_folder`] reads. Several splits in a folder are kept; a single one is split anew.
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
            Folder from which relative paths count, by default `root`.
        reference_pattern (`str`, *optional*):
            Regular expression whose first group, in the image's file name, is the reference.

    Returns:
        [`LabelSet`]

    Raises:
        `FileNotFoundError`: The table is missing.
        `ValueError`: Columns or values are wrong; the message names the row.
    """
    if direction not in DIRECTIONS:
        raise ValueError(f"Unknown direction {direction!r}: which end is better, {' or '.join(DIRECTIONS)}?")
    columns = columns or TableColumns()
    if columns.std and columns.variance:
        raise ValueError("A table has a column of standard deviations or one of variances: name one.")
    scale = scale or "linear"
    if scale == "linear" and ends is None:
        raise ValueError("A table needs the ends of its scale (--low and --high), or --scale deqa.")
    path, base = root / labels, Path(os.path.abspath(root / (images or ".")))
    if not base.is_dir():
        raise FileNotFoundError(f"There is no folder {base}: name the one that image paths count from.")
    pattern = ReferencePattern(reference_pattern) if reference_pattern else None
    rows = [_row(cells, where, split, base, columns, pattern) for where, split, cells in _cells(path, columns)]
    return label_set(
        name, rows, scale=scale, ends=ends, direction=direction, folder=base,
        scores=f"column `{columns.score}`" + ("" if ends is None else f" of {ends[0]:g} to {ends[1]:g}"),
        files=[path], splits=_split_rule(rows, columns, pattern), notes=_notes(columns, direction),
    )  # fmt: skip


def _split_rule(rows: list[LabelRow], columns: TableColumns, pattern: ReferencePattern | None) -> str:
    with_split = [row.split is not None for row in rows]
    if any(with_split):
        if not all(with_split):
            row = rows[with_split.index(False)]
            raise ValueError(f"{row.where} ({row.image_id}): there is no split, while other rows have one.")
        return f"of the table's column `{columns.split}`" if columns.split else "of the folder"
    kept = [f"column `{name}`" for name in (columns.reference, columns.group) if name]
    kept += ["the reference in the file name"] if pattern else []
    return "by " + (" and ".join(kept) if kept else "image")


def _notes(columns: TableColumns, direction: str) -> list[str]:
    name = columns.score.lower()
    if "dmos" in name and direction == "higher":
        return [f"The column is named `{columns.score}`: a DMOS is mostly better when lower. You said higher."]
    if "mos" in name and "dmos" not in name and direction == "lower":
        return [f"The column is named `{columns.score}`: a MOS is mostly better when higher. You said lower."]
    return []


def _row(
    cells: dict[str, Any],
    where: str,
    split: str | None,
    base: Path,
    columns: TableColumns,
    pattern: ReferencePattern | None,
) -> LabelRow:
    image = cells[columns.image]
    if isinstance(image, EmbeddedImage):
        image_id = image.label
    else:
        image_id = cell_text(image)
        if not image_id:
            raise ValueError(f"{where}: column `{columns.image}` has no path.")
        image = os.path.normpath(base / image_id)
    if columns.image_id:
        image_id = cell_text(cells[columns.image_id])
        if not image_id:
            raise ValueError(f"{where}: column `{columns.image_id}` has no name.")
    column = columns.std or columns.variance
    spread = parse_spread(cells[column], f"{where}: column `{column}`") if column else None
    if columns.variance and spread is not None:
        spread = spread**0.5
    if columns.split and cell_text(cells[columns.split]):
        split = split_name(cells[columns.split], where)
    reference = cell_text(cells[columns.reference]) or None if columns.reference else None
    if pattern is not None:
        reference = pattern.reference(image_id, where)
    group = cell_text(cells[columns.group]) or None if columns.group else None
    return LabelRow(image_id, image, where, parse_number(cells[columns.score]), spread, split, reference, group)


def _cells(path: Path, columns: TableColumns) -> Iterator[tuple[str, str | None, dict[str, Any]]]:
    """Place, split and cells of each row."""
    required = [column for column in columns if column is not None]
    if path.is_dir():
        yield from _from_folder(path, required, columns)
    elif not path.is_file():
        raise FileNotFoundError(f"There is no table {path}: --labels counts from --root.")
    elif path.suffix == ".csv":
        yield from ((where, None, row) for where, row in read_csv(path, required, "your set"))
    elif path.suffix in (".json", ".jsonl"):
        yield from ((where, None, row) for where, row in _from_json(path, required))
    elif path.suffix == ".parquet":
        yield from _from_parquet(path, required, columns)
    else:
        raise ValueError(f"{path}: expected a .csv, .json, .jsonl or .parquet file, or a `datasets` folder.")


def _from_json(path: Path, required: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            if path.suffix == ".jsonl":
                lines = ((number, json.loads(line)) for number, line in enumerate(file, 1) if line.strip())
                rows = [(f"{path}, line {number}", row) for number, row in lines]
            else:
                rows = [(f"{path}, entry {number}", row) for number, row in enumerate(json.load(file), 1)]
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} can't be read as a list of JSON objects ({error}).") from error
    for where, row in rows:
        if not isinstance(row, dict):
            raise ValueError(f"{where}: expected an object with {', '.join(required)}, got {row!r:.80}.")
        missing = [column for column in required if column not in row]
        if missing:
            raise ValueError(f"{where}: {', '.join(missing)} is missing, found {', '.join(row)}.")
        yield where, row


def _from_parquet(path: Path, required: list[str], columns: TableColumns):
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} can't be read as Parquet ({error}).") from error
    check_columns(path, required, schema.names)
    kind = schema.field(columns.image).type
    if pa.types.is_struct(kind):
        if not {"bytes", "path"} <= {kind.field(number).name for number in range(kind.num_fields)}:
            raise ValueError(f"{path}, column `{columns.image}`: expected paths, or images as `datasets` stores them.")
        yield from _from_dataset(Dataset.from_parquet(str(path)), str(path), None, columns, required)
        return
    number = 0
    for batch in pq.ParquetFile(path).iter_batches(columns=required):
        for row in batch.to_pylist():
            number += 1
            yield f"{path}, row {number}", None, row


def _from_folder(path: Path, required: list[str], columns: TableColumns):
    data = read_folder(path)
    parts = data if isinstance(data, DatasetDict) else {"": data}
    for key, part in parts.items():
        check_columns(path / key, required, part.column_names)
        split = split_name(key, str(path)) if len(parts) > 1 and columns.split is None else None
        yield from _from_dataset(part, f"{path}, {key or 'split'}", split, columns, required)


def _from_dataset(table: Dataset, place: str, split: str | None, columns: TableColumns, required: list[str]):
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
        for path, inside, row in zip(paths, embedded, batch.select(others).to_pylist(), strict=True):
            number += 1
            label = path or f"{split or 'row'}-{number}"
            image = EmbeddedImage(table, number - 1, label) if inside else path
            yield f"{place}, row {number}", split, {**row, columns.image: image}
