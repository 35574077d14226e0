"""The manifest of a folder of pairs, `pairs.parquet`: one line for each row of the data; and the folder's card."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from ..io.atomic import open_atomic
from ..wording import markdown_table

MANIFEST_FILE = "pairs.parquet"

VERDICTS = {
    "ok": "the difference is visible by SSIM and PSNR, and to the judge if there is one",
    "too_mild": "too mild, even after a second degradation if one was possible",
    "unjudged": "visible by SSIM and PSNR, but the judge returned no verdict",
    "accepted": "accepted by a person",
    "rejected": "rejected by a person",
    "error": "no pair: the image can't be read or degraded",
    "none": "no pair requested for this split",
}
"""Final verdicts on a row and their meaning."""

UNFINISHED = ("error", "unjudged")
"""Verdicts of rows that the next run retries."""

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
        ("mode", pa.string()),  # Pillow's mode of the file
        ("orientation", pa.int32()),  # EXIF orientation of the file, 1 by default
        ("pixel_hash", pa.string()),
        ("file_hash", pa.string()),  # SHA-256
        ("degraded_pixel_hash", pa.string()),
        ("degraded_file_hash", pa.string()),
        ("first_operation", pa.string()),  # before the pair was strengthened
        ("first_ssim", pa.float64()),
        ("first_psnr", pa.float64()),
        ("first_reason", pa.string()),  # why it was strengthened: "distance", "judge" or "person"
        ("judge", pa.string()),
        ("judge_answer", pa.string()),
        ("decision", pa.string()),
        ("note", pa.string()),
        ("error", pa.string()),
    ]
)
"""Columns of the manifest; pixel hashes are those of [`~data.degradations.pixel_hash`]."""


_INTRODUCTION = """\
Made by `q-hawkeye pair`. Load the folder with `datasets.load_from_disk`: it has the rows of the source data and one
more column, `degraded_image` (PNG, embedded; empty in a row without a pair). `pairs.parquet` lists degradation,
parameters, seed, hashes, distances and verdict of every row."""


class PairKey(NamedTuple):
    """Identity of a pair: the pixel hashes of the original and of its degraded view."""

    pixel_hash: str
    degraded_pixel_hash: str

    @classmethod
    def of(cls, record: dict) -> "PairKey":
        """The key of a line of the manifest, of a decision or of a verdict."""
        return cls(*(record[name] for name in cls._fields))


def write_manifest(path: str | os.PathLike, tables: Iterable[pa.Table]) -> None:
    """Write a manifest, or a part of one, atomically."""
    with open_atomic(path, "wb") as file, pq.ParquetWriter(file, SCHEMA, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table)


def read_manifest(folder: str | os.PathLike, columns: list[str] | None = None) -> pa.Table:
    """
    Read the manifest of a folder of pairs.

    Args:
        folder (`str` or `os.PathLike`):
            Folder that `q-hawkeye pair` wrote.
        columns (`list[str]`, *optional*):
            Columns to read. By default all of `SCHEMA`.

    Returns:
        `pa.Table` with one line for each row of the data.

    Raises:
        `FileNotFoundError`: The folder has no manifest.
        `ValueError`: The manifest is damaged or lacks a column.
    """
    path = Path(folder) / MANIFEST_FILE
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}: pass a folder that `q-hawkeye pair` wrote.")
    try:
        table = pq.read_table(path, columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is not a manifest of pairs ({error}): make the pairs again.") from error
    missing = set(columns or SCHEMA.names) - set(table.column_names)
    if missing:
        raise ValueError(f"{path} has no column {', '.join(sorted(missing))}: make the pairs again.")
    return table


def iterate_manifest(folder: Path, columns: list[str]) -> Iterator[dict]:
    """Yield the lines of a manifest as dictionaries, without loading the whole table."""
    with pq.ParquetFile(folder / MANIFEST_FILE) as file:
        for batch in file.iter_batches(batch_size=1024, columns=columns):
            yield from batch.to_pylist()


def card_text(verdicts: dict[str, int], operations: dict[str, int], settings: dict, source_card: str | None) -> str:
    """Return the folder's card in Markdown, with the card of the source data quoted at its end."""
    shown = {
        name: ", ".join(map(str, v)) if isinstance(v, list) else str(v)
        for name, v in settings.items()
        if v is not None
    }
    blocks = [
        "# Degraded pairs",
        _INTRODUCTION,
        markdown_table(["verdict", "rows", "meaning"], [[v, n, VERDICTS[v]] for v, n in _most_frequent(verdicts)]),
        markdown_table(["degradation", "rows"], [[f"`{name}`", n] for name, n in _most_frequent(operations)]),
        markdown_table(["setting", "value"], [list(item) for item in shown.items()]),
    ]
    if source_card is not None:
        quoted = "\n".join(f"> {line}".rstrip() for line in source_card.splitlines())
        blocks += ["## Source data", "Card of the source data:", quoted]
    return "\n\n".join(blocks) + "\n"


def _most_frequent(counts: dict[str, int]) -> list[tuple[str, str]]:
    return [(name, f"{count:,}") for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
