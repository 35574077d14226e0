"""A `datasets` folder written shard by shard: each file whole or not there, the folder itself in one step."""

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import datasets
import pyarrow as pa
from datasets import Dataset, Features


class Shard(NamedTuple):
    """
    Part of a split.

    Args:
        rows (`int`):
            How many rows it has.
        batches (`Callable`):
            Makes its tables in order, called when the shard is written.
    """

    rows: int
    batches: Callable[[], Iterator[pa.Table]]


class WorkFolder:
    """
    The folder `OUT.partial` beside `OUT`, in which everything is made until `OUT` appears. One run at a time has it;
    what it holds is for the next run, and it goes when `OUT` is there.

    Args:
        out (`Path`):
            The folder to make. It must not exist, or be empty.

    Raises:
        `FileExistsError`: `OUT` holds something.
        `BlockingIOError`: Another run is at work on it.
        `OSError`: The folder can't be created, or the disk is full.
    """

    def __init__(self, out: Path):
        self.out = Path(os.path.abspath(out))
        self.path = self.out.with_name(self.out.name + ".partial")
        refuse_taken(self.out)
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = (self.path / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise BlockingIOError(f"another run is making {self.out}: wait for it, or name another folder.") from None
        refuse_taken(self.out)  # once more: the other run may just have ended

    def __enter__(self) -> "WorkFolder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.close()
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(
                error.errno, f"there is no space left for {self.path}: free some and run the same command again"
            ) from error

    def data(self, fingerprint: str) -> Path:
        """Returns the folder of the data of one plan; what a run with another plan left is removed."""
        wanted = self.path / f"data-{fingerprint}"
        for other in self.path.glob("data-*"):
            if other != wanted:
                shutil.rmtree(other)
        wanted.mkdir(exist_ok=True)
        return wanted

    def finish(self, data: Path) -> None:
        """Makes `data` the folder `OUT`, in one step, and removes the rest."""
        refuse_taken(self.out)
        os.rename(data, self.out)  # an empty OUT is replaced, a full one is an error
        sync_folder(self.out.parent)
        shutil.rmtree(self.path)


def refuse_taken(out: Path) -> None:
    """
    Raises:
        `FileExistsError`: `out` is a file or a folder that is not empty.
    """
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file, which is not overwritten: name another folder by --out.")
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty and nothing in it is overwritten: name another folder by --out.")


def refuse_inside(out: Path, inputs: Iterable[str | os.PathLike]) -> None:
    """
    Raises:
        `ValueError`: `out` is one of the input folders or lies in one, which are only read.
    """
    for folder in map(Path, inputs):
        if out.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{out} lies in {folder}, which is only read: name a folder outside of it by --out.")


def write_split(folder: Path, split: str, shards: Sequence[Shard], features: Features, fingerprint: str) -> None:
    """
    Writes one split of a dataset. Shards that are there already are kept.

    Args:
        folder (`Path`):
            Folder of the dataset.
        split (`str`):
            Name of the split.
        shards (`Sequence[Shard]`):
            Its parts, at least one.
        features (`Features`):
            Columns of the tables.
        fingerprint (`str`):
            Stands for the content: caches of `datasets` go by it.

    Raises:
        `OSError`: Something can't be written. No half-written shard stays under its name.
        `ValueError`: A shard has another number of rows than it says.
    """
    target = folder / split
    target.mkdir(parents=True, exist_ok=True)
    names = [f"data-{number:05d}-of-{len(shards):05d}.arrow" for number in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        if not (target / name).exists():
            _write_shard(target / name, shard, features)
    # `datasets` itself says what stands in these two files, which changes with its version.
    scratch, quiet = folder / f"{split}.empty", datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        Dataset.from_dict({column: [] for column in features}, features=features).save_to_disk(str(scratch))
    finally:
        if not quiet:
            datasets.enable_progress_bars()
    state = json.loads((scratch / "state.json").read_text())
    state |= {"_data_files": [{"filename": name} for name in names], "_split": split, "_fingerprint": fingerprint[:16]}
    write_text(target / "dataset_info.json", (scratch / "dataset_info.json").read_text())
    write_text(target / "state.json", json.dumps(state, indent=2, sort_keys=True))
    shutil.rmtree(scratch)


def write_index(folder: Path, splits: Sequence[str]) -> None:
    """Writes the file by which `load_from_disk` knows the splits of a folder."""
    write_text(folder / "dataset_dict.json", json.dumps({"splits": list(splits)}))


def write_text(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all; it is on the disk when this returns."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Makes sure that the names in a folder are on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_shard(path: Path, shard: Shard, features: Features) -> None:
    partial, rows = path.with_name(path.name + ".partial"), 0
    with partial.open("wb") as file:
        with pa.ipc.new_stream(file, features.arrow_schema) as stream:
            for table in shard.batches():
                stream.write_table(table)
                rows += len(table)
        file.flush()
        os.fsync(file.fileno())
    if rows != shard.rows:
        raise ValueError(f"{path.name} has {rows} rows in place of {shard.rows}: run the same command again.")
    os.replace(partial, path)
