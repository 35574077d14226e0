"""The manifest of a set of pairs, `pairs.parquet`: one line a row of the data, whatever became of it."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ..data.arrow_folder import sync_folder

MANIFEST_FILE = "pairs.parquet"

VERDICTS = {
    "ok": "visible by distance, and to the judge where there is one",
    "too_mild": "still too mild in the end",
    "unjudged": "visible by distance, but the judge gave no verdict",
    "accepted": "accepted by a person",
    "rejected": "rejected by a person",
    "error": "the image can't be read, so there is no pair",
    "none": "not asked for: a row of another split",
}
"""The last word on a row."""

UNFINISHED = ("error", "unjudged")
"""Verdicts that a second run tries again."""

SCHEMA = pa.schema(
    [
        ("split", pa.string()),
        ("row", pa.int64()),
        ("image_id", pa.string()),
        ("dataset", pa.string()),
        ("verdict", pa.string()),
        ("kept", pa.bool_()),  # whether `degraded_image` holds the view
        ("stage", pa.string()),  # "once", or "strengthened" by a second degradation
        ("operation", pa.string()),
        ("ssim", pa.float64()),
        ("psnr", pa.float64()),
        ("parameters", pa.string()),  # JSON: kind, level and parameters of each step
        ("seed", pa.int64()),
        ("view_seed", pa.uint64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("mode", pa.string()),  # of the file, as Pillow names it, before it became upright RGB
        ("orientation", pa.int32()),  # EXIF, 1 where there is none
        ("pixel_hash", pa.string()),
        ("file_hash", pa.string()),  # SHA-256
        ("degraded_pixel_hash", pa.string()),
        ("degraded_file_hash", pa.string()),
        ("first_operation", pa.string()),  # before it was strengthened
        ("first_ssim", pa.float64()),
        ("first_psnr", pa.float64()),
        ("first_reason", pa.string()),  # why it was: "distance", "judge" or "person"
        ("judge", pa.string()),
        ("judge_answer", pa.string()),
        ("decision", pa.string()),
        ("note", pa.string()),
        ("error", pa.string()),
    ]
)
"""Columns of the manifest; hashes of pixels are those of [`~data.degradations.pixel_hash`]."""


def write_records(path: str | os.PathLike, tables: Iterable[pa.Table]) -> None:
    """
    Writes a manifest, or a part of one, so that it is there whole or not at all.

    Args:
        path (`str` or `os.PathLike`):
            File to write or replace.
        tables (`Iterable[pa.Table]`):
            Its lines in order, with `SCHEMA`.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            with pq.ParquetWriter(file, SCHEMA, compression="zstd") as writer:
                for table in tables:
                    writer.write_table(table)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def records_table(records: list[dict]) -> pa.Table:
    """
    Turns records into a table with `SCHEMA`.

    Args:
        records (`list[dict]`):
            Lines; a key that is missing is null, an unknown one an error.

    Returns:
        `pa.Table`
    """
    unknown = {key for record in records for key in record} - set(SCHEMA.names)
    if unknown:
        raise KeyError(f"The manifest has no column {', '.join(sorted(unknown))}.")
    return pa.Table.from_pylist(records, schema=SCHEMA)


def read_manifest(folder: str | os.PathLike, columns: list[str] | None = None) -> pa.Table:
    """
    Reads the manifest of a folder of pairs.

    Args:
        folder (`str` or `os.PathLike`):
            What `q-hawkeye pair` wrote.
        columns (`list[str]`, *optional*):
            Only these.

    Returns:
        `pa.Table`

    Raises:
        `FileNotFoundError`: There is none.
        `ValueError`: It is no manifest.
    """
    path = Path(folder) / MANIFEST_FILE
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}: pass a folder that `q-hawkeye pair` wrote.")
    try:
        table = pq.read_table(path, columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is no manifest of pairs ({error}): make the pairs again.") from error
    missing = set(columns or SCHEMA.names) - set(table.column_names)
    if missing:
        raise ValueError(f"{path} has no column {', '.join(sorted(missing))}: make the pairs again.")
    return table


def count_values(tables: Iterable[pa.Table], column: str) -> dict[str, int]:
    """
    Counts the values of a column.

    Args:
        tables (`Iterable[pa.Table]`):
            Parts of a manifest.
        column (`str`):
            A column of text.

    Returns:
        `dict[str, int]`: The most frequent first.
    """
    counts: dict[str, int] = {}
    for table in tables:
        for entry in table.column(column).value_counts().to_pylist():
            if entry["values"] is not None:
                counts[entry["values"]] = counts.get(entry["values"], 0) + entry["counts"]
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def iterate_manifest(path: str | os.PathLike, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """
    Reads a manifest piece by piece.

    Args:
        path (`str` or `os.PathLike`):
            Parquet file.
        columns (`list[str]`, *optional*):
            Only these.

    Yields:
        `pa.Table`: Some hundred lines.
    """
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=1024, columns=columns):
            yield pa.Table.from_batches([batch])
