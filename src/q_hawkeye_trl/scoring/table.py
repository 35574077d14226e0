"""The output file: a line an image, as JSONL, CSV or Parquet, there whole or not at all."""

import csv
import json
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .scored import ScoredImage

SUFFIXES = (".jsonl", ".csv", ".parquet")

_FIELDS = {
    "image": pa.string(),
    "score": pa.float64(),
    "spread": pa.float64(),
    "parse_rate": pa.float64(),
    "rollouts": pa.list_(pa.float64()),
    "clamped": pa.int64(),
    "error": pa.string(),
    "reasoning": pa.string(),
}


def table_row(scored: ScoredImage, *, reasoning: bool = False) -> dict[str, Any]:
    """
    Builds the line of one image.

    Args:
        scored ([`ScoredImage`]):
            Its score.
        reasoning (`bool`, *optional*, defaults to `False`):
            Whether to add what the policy wrote before its answer.

    Returns:
        `dict[str, Any]`: `image`, `score`, `spread`, `parse_rate`, `rollouts`, `clamped`, `error`, and `reasoning` if
        wanted; see [`ScoredImage`].
    """
    row = {name: getattr(scored, name) for name in _FIELDS if reasoning or name != "reasoning"}
    return row | {"rollouts": list(scored.rollouts)}


def check_table_path(path: str | os.PathLike) -> None:
    """
    Checks that a file's name ends in one of `SUFFIXES`.

    Args:
        path (`str` or `os.PathLike`):
            The file.

    Raises:
        `ValueError`: It ends otherwise.
    """
    if Path(path).suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: expected a name that ends in {', '.join(SUFFIXES)}.")


def write_table(
    path: str | os.PathLike, scored: Iterable[ScoredImage], partial: str | os.PathLike, *, reasoning: bool = False
) -> None:
    """
    Writes the file line by line under another name, then renames it.

    Args:
        path (`str` or `os.PathLike`):
            File to write or replace; its ending says the format. In CSV `rollouts` is a JSON list and what is missing
            is empty.
        scored (`Iterable[ScoredImage]`):
            Scores, read once.
        partial (`str` or `os.PathLike`):
            The other name, in the same file system.
        reasoning (`bool`, *optional*, defaults to `False`):
            As in [`table_row`].

    Raises:
        `ValueError`: The name ends otherwise than in `SUFFIXES`.
    """
    check_table_path(path)
    rows = (table_row(each, reasoning=reasoning) for each in scored)
    writers = {".jsonl": _write_jsonl, ".csv": _write_csv, ".parquet": _write_parquet}
    writers[Path(path).suffix.lower()](
        Path(partial), rows, [name for name in _FIELDS if reasoning or name != "reasoning"]
    )
    with open(partial, "rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)


def _write_jsonl(path: Path, rows: Iterator[dict[str, Any]], names: list[str]) -> None:
    with open(path, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.writelines(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)


def _write_csv(path: Path, rows: Iterator[dict[str, Any]], names: list[str]) -> None:
    with open(path, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow(row | {"rollouts": json.dumps(row["rollouts"])})


def _write_parquet(path: Path, rows: Iterator[dict[str, Any]], names: list[str]) -> None:
    schema = pa.schema([(name, _FIELDS[name]) for name in names])
    with pq.ParquetWriter(path, schema) as writer:
        while part := list(islice(rows, 1000)):
            writer.write_table(pa.Table.from_pylist([_valid(row) for row in part], schema=schema))


def _valid(row: dict[str, Any]) -> dict[str, Any]:
    # lone surrogates, which a policy can write as little as a file name can hold them, are no text to Arrow
    return {
        name: value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
        for name, value in row.items()
    }
