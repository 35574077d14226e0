"""Chunks of rows, each one data file and one part of the manifest, made by one process or by several."""

import functools
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, disable_progress_bars
from datasets import Image as ImageFeature
from tqdm import tqdm

from ..data.arrow_folder import shard_names, write_arrow
from .decisions import read_decisions
from .judge import VERDICTS_FILE, VerdictStore, build_judge
from .making import Pair, PairMaker, SourceRow
from .pair_manifest import MANIFEST_FILE, SCHEMA, write_manifest
from .pair_settings import PairSettings
from .source import open_source

ROWS_PER_CHUNK = 32
CHUNKS_PER_SPLIT = 1000


class Chunk(NamedTuple):
    """Rows `start` to `stop` of a split, one data file; their lines of the manifest start at `line`."""

    split: str
    file_name: str
    start: int
    stop: int
    line: int

    @property
    def rows(self) -> range:
        """Its rows in the split."""
        return range(self.start, self.stop)

    def part_file(self, parts: Path) -> Path:
        """File with its lines of the manifest."""
        return parts / f"{self.split}-{self.file_name}.parquet"


def cut_chunks(source: dict[str, Dataset]) -> list[Chunk]:
    """Cut each split into chunks of 32 rows, or at most 1,000 chunks; an empty split is one chunk without rows."""
    chunks, line = [], 0
    for split, rows in source.items():
        size = max(ROWS_PER_CHUNK, -(-len(rows) // CHUNKS_PER_SPLIT))
        names = shard_names(max(1, -(-len(rows) // size)))
        for name, start in zip(names, range(0, max(1, len(rows)), size), strict=True):
            chunks.append(Chunk(split, name, start, min(len(rows), start + size), line + start))
        line += len(rows)
    return chunks


class Job(NamedTuple):
    """What all workers share: source data, folder of pairs, parts of the manifest, settings."""

    data: Path
    folder: Path
    parts: Path
    settings: PairSettings


class Worker:
    """Opens the data once and makes chunks of them; calls `row_done` after each row."""

    def __init__(self, job: Job, row_done: Callable[[], None] = lambda: None):
        settings = job.settings
        self.job, self.row_done = job, row_done
        self.source = open_source(job.data)
        judge = build_judge(settings.judge) if settings.judge else None
        store = VerdictStore(job.folder / VERDICTS_FILE, settings.judge.model) if settings.judge else None
        decisions = read_decisions(settings.decisions) if settings.decisions else None
        self.maker = PairMaker(settings, judge, store, decisions)
        self.threads = settings.judge.concurrency if settings.judge and settings.judge.base_url else 1

    def do(self, chunk: Chunk) -> None:
        """Write the data file of a chunk, then its part of the manifest: a chunk with a part is done."""
        records: list[dict[str, Any]] = []
        path, features = self.job.folder / chunk.split / chunk.file_name, output_features(self.source[chunk.split])
        write_arrow(path, self._tables(chunk, features.arrow_schema, records), features, len(chunk.rows))
        write_manifest(chunk.part_file(self.job.parts), [pa.Table.from_pylist(records, schema=SCHEMA)])

    def _tables(self, chunk: Chunk, schema: pa.Schema, records: list[dict[str, Any]]) -> Iterator[pa.Table]:
        table, splits = self.source[chunk.split].with_format("arrow"), self.job.settings.splits
        make = self.maker.make if splits is None or chunk.split in splits else _without_pair
        for index, pair in zip(chunk.rows, _made(self._rows(chunk), make, self.threads), strict=True):
            yield _with_view(table[index : index + 1], pair.png, schema)
            records.append(pair.record)
            self.row_done()

    def _rows(self, chunk: Chunk) -> Iterator[SourceRow]:
        source = self.source[chunk.split]
        records = iter(())
        if "degraded_image" in source.column_names:
            lines = [("split", "=", chunk.split), ("row", ">=", chunk.start), ("row", "<", chunk.stop)]
            path = self.job.data / MANIFEST_FILE
            records = iter(pq.read_table(path, columns=SCHEMA.names, filters=lines).sort_by("row").to_pylist())
        names = [name for name in ("image_id", "dataset", "image", "degraded_image") if name in source.column_names]
        table = source.select_columns(names).with_format("arrow")
        for number in chunk.rows:
            (values,) = table[number : number + 1].to_pylist()
            image_id, dataset, view = (values.get(name) for name in ("image_id", "dataset", "degraded_image"))
            yield SourceRow(
                chunk.split,
                number,
                f"row-{number}" if image_id is None else str(image_id),
                None if dataset is None else str(dataset),
                values["image"],
                next(records, None),
                view and view["bytes"],
            )


def output_features(source: Dataset) -> Features:
    """Columns of the source with the column of the degraded views."""
    return Features({**source.features, "degraded_image": ImageFeature()})


def make_chunks(chunks: list[Chunk], job: Job, workers: int, progress: bool) -> int:
    """Make chunks, in several processes with `workers` above 1, and return their number of rows."""
    total = sum(len(chunk.rows) for chunk in chunks)
    with tqdm(total=total, desc="Making pairs", unit="image", disable=not progress or not total) as bar:
        if workers > 1 and len(chunks) > 1:
            _in_processes(chunks, job, min(workers, len(chunks)), bar)
        elif chunks:
            worker = Worker(job, bar.update)
            for chunk in chunks:
                worker.do(chunk)
    return total


def _in_processes(chunks: list[Chunk], job: Job, workers: int, bar: tqdm) -> None:
    context = multiprocessing.get_context("spawn")
    done, stop = context.Value("Q", 0), context.Event()
    with ProcessPoolExecutor(workers, context, _begin, (job, done, stop, os.getpid())) as pool:
        pending = {pool.submit(_do, chunk) for chunk in chunks}
        try:
            while pending:
                finished, pending = wait(pending, timeout=0.2, return_when=FIRST_EXCEPTION)
                for future in finished:
                    future.result()
                bar.update(done.value - bar.n)
        except BrokenProcessPool as error:
            raise ChildProcessError(
                "A worker was killed, possibly out of memory. Finished chunks are kept: run again with fewer --workers"
            ) from error
        finally:
            stop.set()
            for future in pending:
                future.cancel()


class _Stopped(Exception):
    """The main process asked this worker to end."""


_get_worker: Callable[[], Worker]


def _begin(job: Job, done: Any, stop: Any, parent: int) -> None:
    global _get_worker
    disable_progress_bars()  # those of `datasets` would overwrite ours
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process stops all workers
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()

    def row_done() -> None:
        with done.get_lock():
            done.value += 1
        if stop.is_set():
            raise _Stopped

    # Built with the first chunk: an error in the pool's initializer would be lost.
    _get_worker = functools.cache(lambda: Worker(job, row_done))


def _do(chunk: Chunk) -> None:
    _get_worker().do(chunk)


def _end_with(parent: int) -> None:
    """End this process when its parent is killed."""
    while os.getppid() == parent:
        time.sleep(0.3)
    os._exit(1)


def _without_pair(row: SourceRow) -> Pair:
    return Pair(None, {**row.place, "verdict": "none", "kept": False})


def _with_view(row: pa.Table, png: bytes | None, schema: pa.Schema) -> pa.Table:
    view = pa.array([None if png is None else {"bytes": png, "path": None}], type=ImageFeature().pa_type)
    columns = [view if name == "degraded_image" else row.column(name) for name in schema.names]
    return pa.table(columns, names=schema.names).cast(schema)


def _made(rows: Iterable[SourceRow], make: Callable[[SourceRow], Pair], threads: int) -> Iterator[Pair]:
    """Make pairs in order with up to `threads` at a time, and hold only their rows in memory."""
    if threads == 1:
        yield from map(make, rows)
        return
    waiting: deque[Future[Pair]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for row in rows:
                waiting.append(pool.submit(make, row))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
