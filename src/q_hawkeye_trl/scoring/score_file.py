"""The output file of a scoring run: one row per image, as JSONL, CSV or Parquet, written atomically."""

import csv
import json
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..io.atomic import open_atomic
from .scored import ScoredImage

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


def check_table_path(path: str | os.PathLike) -> None:
    """Raise `ValueError` if the name of the output file has an unknown ending."""
    if Path(path).suffix.lower() not in _WRITERS:
        raise ValueError(f"{path}: expected a name that ends in {', '.join(_WRITERS)}.")


def write_table(path: str | os.PathLike, scored: Iterable[ScoredImage], *, reasoning: bool = False) -> None:
    """
    Write the file, atomically and row by row.

    Args:
        path (`str` or `os.PathLike`):
            File to write or replace, in the format of its ending. In CSV `rollouts` is a JSON list and missing values
            are empty.
        scored (`Iterable[ScoredImage]`):
            Scores, read once.
        reasoning (`bool`, *optional*, defaults to `False`):
            Whether to add a column of what the policy wrote before its answer.

    Raises:
        `ValueError`: The ending is not `.jsonl`, `.csv` or `.parquet`.
    """
    check_table_path(path)
    names = [name for name in _FIELDS if reasoning or name != "reasoning"]
    rows = ({name: getattr(each, name) for name in names} | {"rollouts": list(each.rollouts)} for each in scored)
    write, options = _WRITERS[Path(path).suffix.lower()]
    with open_atomic(path, **options) as file:
        write(file, rows, names)


def _write_jsonl(file: IO[str], rows: Iterator[dict[str, Any]], names: list[str]) -> None:
    file.writelines(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)


def _write_csv(file: IO[str], rows: Iterator[dict[str, Any]], names: list[str]) -> None:
    writer = csv.DictWriter(file, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(row | {"rollouts": json.dumps(row["rollouts"])} for row in rows)


def _write_parquet(file: IO[bytes], rows: Iterator[dict[str, Any]], names: list[str]) -> None:
    schema = pa.schema([(name, _FIELDS[name]) for name in names])
    with pq.ParquetWriter(file, schema) as writer:
        while part := list(islice(rows, 1000)):
            writer.write_table(pa.Table.from_pylist([_valid(row) for row in part], schema=schema))


def _valid(row: dict[str, Any]) -> dict[str, Any]:
    # Arrow refuses halves of surrogate pairs, which file names and answers can hold
    return {
        name: value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
        for name, value in row.items()
    }


_TEXT = {"mode": "w", "errors": "backslashreplace", "newline": ""}
_WRITERS: dict[str, tuple] = {
    ".jsonl": (_write_jsonl, _TEXT),
    ".csv": (_write_csv, _TEXT),
    ".parquet": (_write_parquet, {"mode": "wb"}),
}
