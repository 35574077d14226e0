"""A `datasets` folder written shard by shard: each Arrow file is complete or absent."""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from datasets import DatasetInfo, Features

from ..io.atomic import open_atomic, write_json


class Shard(NamedTuple):
    """Part of a split: its number of rows, and a function that yields its tables in order."""

    rows: int
    tables: Callable[[], Iterable[pa.Table]]


def shard_names(count: int) -> list[str]:
    """Name the Arrow files of a split of `count` shards, as `save_to_disk` names them."""
    return [f"data-{number:05d}-of-{count:05d}.arrow" for number in range(count)]


def write_arrow(path: str | os.PathLike, tables: Iterable[pa.Table], features: Features, rows: int) -> None:
    """
    Write one Arrow file atomically, table by table, so that memory holds one table.

    Raises `ValueError` if the tables don't have `rows` rows in all. An error from `tables` leaves no file behind.
    """
    written = 0
    with open_atomic(path, "wb") as file:
        with pa.ipc.new_stream(file, features.arrow_schema) as stream:
            for table in tables:
                stream.write_table(table)
                written += len(table)
        if written != rows:
            raise ValueError(f"{path} has {written} rows, expected {rows}: run the same command again.")


def write_split_files(
    folder: Path,
    names: Sequence[str],
    features: Features,
    fingerprint: str,
    *,
    split: str | None = None,
    info: DatasetInfo | None = None,
) -> None:
    """
    Write what `load_from_disk` reads beside the Arrow files `names` of the folder.

    Caches of `datasets` are named by `fingerprint`, which stands for the content. `info` may hold a description.
    """
    info = info.copy() if info is not None else DatasetInfo()
    info.features = features
    info.splits = info.download_checksums = info.download_size = info.dataset_size = info.size_in_bytes = None
    info.write_to_directory(str(folder))
    state: dict[str, Any] = {
        "_data_files": [{"filename": name} for name in names],
        "_fingerprint": fingerprint,
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": split,
    }
    write_json(folder / "state.json", state)


def write_split(folder: Path, split: str, shards: Sequence[Shard], features: Features, fingerprint: str) -> None:
    """Write a split of at least one shard below `folder`; existing shards are kept."""
    target = folder / split
    target.mkdir(parents=True, exist_ok=True)
    names = shard_names(len(shards))
    for name, shard in zip(names, shards, strict=True):
        if not (target / name).exists():
            write_arrow(target / name, shard.tables(), features, shard.rows)
    write_split_files(target, names, features, fingerprint, split=split)


def write_index(folder: Path, splits: Sequence[str]) -> None:
    """Write the file by which `load_from_disk` knows the splits of a folder."""
    write_json(folder / "dataset_dict.json", {"splits": list(splits)}, indent=None)
