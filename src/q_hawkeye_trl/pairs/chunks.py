"""
The folder of pairs while it grows and when it is whole: data files of some rows each, every one written under another
name and renamed, beside the part of the manifest that belongs to it.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from datasets import Dataset, Features
from datasets import Image as ImageFeature

from ..data.arrow_folder import sync_folder, write_text
from .making import Pair, SourceRow
from .manifest import records_table, write_records

PARTS = ".parts"
REDO = ".redo"
ROWS_PER_CHUNK = 32
CHUNKS_PER_SPLIT = 1000


class Chunk(NamedTuple):
    """
    Consecutive rows of a split that make one data file.

    Args:
        split (`str`):
            Name of the split, empty where there are no splits.
        number (`int`), total (`int`):
            Which of how many of the split.
        start (`int`), stop (`int`):
            Rows.
    """

    split: str
    number: int
    total: int
    start: int
    stop: int

    def data_file(self, folder: Path) -> Path:
        """The file of its rows in a folder of pairs."""
        return folder / self.split / f"data-{self.number:05d}-of-{self.total:05d}.arrow"

    def part_file(self, parts: Path) -> Path:
        """The file of its lines of the manifest in a folder of parts."""
        return parts / f"{self.split or 'data'}-{self.number:05d}.parquet"


def cut_chunks(split: str, rows: int) -> list[Chunk]:
    """
    Cuts a split: 32 rows a chunk, more where that would give over 1,000 chunks.

    Args:
        split (`str`):
            Name of the split.
        rows (`int`):
            Its rows.

    Returns:
        `list[Chunk]`: One without rows where there are none, since a split needs a data file.
    """
    size = max(ROWS_PER_CHUNK, -(-rows // CHUNKS_PER_SPLIT))
    count = max(1, -(-rows // size))
    return [Chunk(split, i, count, i * size, min(rows, (i + 1) * size)) for i in range(count)]


def output_features(source: Dataset) -> Features:
    """
    Adds the column of the degraded views, or keeps it where it stands.

    Args:
        source (`Dataset`):
            Rows.

    Returns:
        `Features`
    """
    return Features({**source.features, "degraded_image": ImageFeature()})


def write_chunk(
    chunk: Chunk,
    source: Dataset,
    rows: Iterable[SourceRow],
    make: Callable[[SourceRow], Pair],
    folder: Path,
    parts: Path,
    *,
    threads: int = 1,
    row_done: Callable[[], None] = lambda: None,
) -> None:
    """
    Makes the pairs of a chunk and writes its data file and its part of the manifest, the latter last: where that
    stands, the chunk is done.

    Args:
        chunk ([`Chunk`]):
            Which rows.
        source (`Dataset`):
            The split.
        rows (`Iterable[SourceRow]`):
            The chunk's rows as [`PairMaker.make`] takes them, made one by one.
        make (`Callable`):
            That method.
        folder (`Path`):
            Folder of pairs.
        parts (`Path`):
            Folder of parts.
        threads (`int`, *optional*, defaults to `1`):
            Rows made at the same time, for judges that answer slowly.
        row_done (`Callable`, *optional*):
            Called after each row; what it raises ends the work.

    Raises:
        `OSError`: The disk is full or fails; nothing half-written keeps its name.
    """
    path = chunk.data_file(folder)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    schema = output_features(source).arrow_schema
    table = source.with_format("arrow")
    records = []
    try:
        with open(partial, "wb") as file:
            with pa.ipc.new_stream(file, schema) as writer:
                for index, pair in zip(range(chunk.start, chunk.stop), _made(rows, make, threads), strict=True):
                    writer.write_table(_with_view(table[index : index + 1], pair.png, schema))
                    records.append(pair.record)
                    row_done()
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        message = f"{path} can't be written ({error.strerror or error}); what is done stays: run again"
        raise OSError(error.errno, message) if error.errno is not None else OSError(message) from error
    finally:
        partial.unlink(missing_ok=True)
    write_records(chunk.part_file(parts), [records_table(records)])


def write_dataset_files(folder: Path, split: str, source: Dataset, chunks: list[Chunk], fingerprint: str) -> None:
    """
    Writes what `load_from_disk` reads beside the data files.

    Args:
        folder (`Path`):
            Folder of pairs.
        split (`str`):
            Name of the split.
        source (`Dataset`):
            The split that it comes from.
        chunks (`list[Chunk]`):
            Its chunks.
        fingerprint (`str`):
            What caches of `datasets` know the rows by.
    """
    info = source.info.copy()
    info.features = output_features(source)
    info.splits = info.download_checksums = info.download_size = info.dataset_size = info.size_in_bytes = None
    target = folder / split
    state: dict[str, Any] = {
        "_data_files": [{"filename": chunk.data_file(folder).name} for chunk in chunks],
        "_fingerprint": fingerprint,
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": str(source.split) if source.split is not None else None,
    }
    info.write_to_directory(str(target))
    write_text(target / "state.json", json.dumps(state, indent=2) + "\n")


def remove_leftovers(folder: Path) -> None:
    """
    Removes files that a killed run had not finished writing.

    Args:
        folder (`Path`):
            Folder of pairs, which no other run writes to.
    """
    for partial in folder.rglob(".*.partial"):
        partial.unlink(missing_ok=True)


def remove_folder(folder: Path) -> None:
    """
    Removes a folder of parts.

    Args:
        folder (`Path`):
            Folder; it may be missing.
    """
    if folder.is_dir():
        shutil.rmtree(folder)


def _with_view(row: pa.Table, png: bytes | None, schema: pa.Schema) -> pa.Table:
    view = pa.array([None if png is None else {"bytes": png, "path": None}], type=ImageFeature().pa_type)
    columns = [view if name == "degraded_image" else row.column(name) for name in schema.names]
    return pa.table(columns, names=schema.names).cast(schema)


def _made(rows: Iterable[SourceRow], make: Callable[[SourceRow], Pair], threads: int) -> Iterator[Pair]:
    if threads == 1:
        yield from map(make, rows)
        return
    waiting: list[Future[Pair]] = []
    with ThreadPoolExecutor(threads) as pool:
        try:
            for row in rows:  # never more rows in memory than are worked on
                waiting.append(pool.submit(make, row))
                if len(waiting) > threads:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        finally:
            for future in waiting:
                future.cancel()
