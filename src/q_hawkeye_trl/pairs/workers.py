"""Chunks of rows worked on by one process or by several."""

import functools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
from datasets import Dataset, disable_progress_bars
from tqdm import tqdm

from .chunks import Chunk, write_chunk
from .decisions import read_decisions
from .judge import build_judge
from .making import Pair, PairMaker, SourceRow
from .manifest import MANIFEST_FILE, SCHEMA
from .settings import PairSettings
from .source import open_source
from .verdicts import VERDICTS_FILE, VerdictStore


class Job(NamedTuple):
    """
    What all workers share.

    Args:
        data (`str`):
            Folder of the data.
        folder (`str`):
            Folder of pairs to write.
        parts (`str`):
            Folder of parts of the manifest.
        settings ([`PairSettings`]):
            What is asked for.
    """

    data: str
    folder: str
    parts: str
    settings: PairSettings


class Stopped(Exception):
    """The main process asked this worker to end."""


class Worker:
    """
    One worker: opens the data once and makes chunks of them.

    Args:
        job ([`Job`]):
            What is to do.
        row_done (`Callable`, *optional*):
            Called after each row.
    """

    def __init__(self, job: Job, row_done: Callable[[], None] = lambda: None):
        settings = job.settings
        self.folder, self.parts = Path(job.folder), Path(job.parts)
        self.settings, self.data = settings, Path(job.data)
        self.source = open_source(job.data)
        self.row_done = row_done
        judge = build_judge(settings.judge) if settings.judge else None
        store = VerdictStore(self.folder / VERDICTS_FILE, settings.judge.model) if settings.judge else None
        decisions = read_decisions(settings.decisions) if settings.decisions else None
        self.maker = PairMaker(settings, judge, store, decisions)
        self.threads = settings.judge.concurrency if settings.judge and settings.judge.base_url else 1

    def do(self, chunk: Chunk) -> int:
        """Makes a chunk; returns its number of rows."""
        source = self.source[chunk.split]
        has_pairs = "degraded_image" in source.column_names
        write_chunk(
            chunk,
            source,
            self._rows(chunk, source, has_pairs),
            self.maker.make if self._is_wanted(chunk) else _unpaired,
            self.folder,
            self.parts,
            threads=self.threads,
            row_done=self.row_done,
        )
        return chunk.stop - chunk.start

    def _is_wanted(self, chunk: Chunk) -> bool:
        return self.settings.splits is None or chunk.split in self.settings.splits

    def _rows(self, chunk: Chunk, source: Dataset, has_pairs: bool) -> Iterator[SourceRow]:
        records = self._records(chunk) if has_pairs else iter(())
        names = [name for name in ("image_id", "dataset", "image", "degraded_image") if name in source.column_names]
        table = source.select_columns(names).with_format("arrow")
        for number in range(chunk.start, chunk.stop):
            values = {name: table[number : number + 1].column(name)[0].as_py() for name in names}
            image_id = values.get("image_id")
            view = values.get("degraded_image")
            yield SourceRow(
                chunk.split,
                number,
                f"row-{number}" if image_id is None else str(image_id),
                None if values.get("dataset") is None else str(values["dataset"]),
                values["image"],
                next(records, None),
                view and view["bytes"],
            )

    def _records(self, chunk: Chunk) -> Iterator[dict[str, Any]]:
        rows = [("split", "=", chunk.split), ("row", ">=", chunk.start), ("row", "<", chunk.stop)]
        records = pq.read_table(self.data / MANIFEST_FILE, columns=SCHEMA.names, filters=rows).sort_by("row")
        yield from records.to_pylist()


def work(chunks: list[Chunk], job: Job, workers: int, progress: bool) -> int:
    """
    Makes chunks.

    Args:
        chunks (`list[Chunk]`):
            What is missing.
        job ([`Job`]):
            What is to do.
        workers (`int`):
            Processes; with one the work is done in this one.
        progress (`bool`):
            Whether to show a progress bar.

    Returns:
        `int`: Rows made.

    Raises:
        `OSError`: The disk is full or fails, or a worker died.
    """
    total = sum(chunk.stop - chunk.start for chunk in chunks)
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
                if done.value > bar.n:
                    bar.update(done.value - bar.n)
        except BrokenProcessPool as error:
            raise ChildProcessError(
                "A worker was killed, perhaps for want of memory; what is done stays: run again with fewer --workers."
            ) from error
        finally:
            stop.set()
            for future in pending:
                future.cancel()


_get_worker: Callable[[], Worker]


def _begin(job: Job, done: Any, stop: Any, parent: int) -> None:
    global _get_worker
    disable_progress_bars()  # of `datasets`: each worker would draw one over ours
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process is told, and stops all
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()

    def row_done() -> None:
        with done.get_lock():
            done.value += 1
        if stop.is_set():
            raise Stopped

    # Built with the first chunk: an error here, in the pool's initializer, would reach nobody.
    _get_worker = functools.cache(lambda: Worker(job, row_done))


def _do(chunk: Chunk) -> int:
    return _get_worker().do(chunk)


def _end_with(parent: int) -> None:
    """Ends this process when its parent is killed, which tells nobody."""
    while os.getppid() == parent:
        time.sleep(0.3)
    os._exit(1)


def _unpaired(row: SourceRow) -> Pair:
    where = {"split": row.split, "row": row.row, "image_id": row.image_id, "dataset": row.dataset}
    return Pair(None, {**where, "verdict": "none", "kept": False})
