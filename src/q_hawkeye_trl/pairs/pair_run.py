"""`make_pairs`: a folder of pairs, made by any number of workers, resumable after an interruption."""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset

from ..data.arrow_folder import write_index, write_split_files
from ..io.atomic import remove_partials, write_json, write_text
from ..io.lock import locked
from ..io.outputs import is_taken, refuse_inside
from ..io.publication import advise_full_disk, move_folder, resumable_folder
from .chunks import Chunk, Job, cut_chunks, make_chunks, output_features
from .decisions import read_decisions
from .pair_manifest import (
    MANIFEST_FILE,
    UNFINISHED,
    PairKey,
    card_text,
    iterate_manifest,
    read_manifest,
    write_manifest,
)
from .pair_settings import PairSettings
from .source import SINGLE, open_source

RUN_FILE = "pairs.json"
# settings that apply to existing pairs
_OF_DECISIONS = ("decisions", "rejected", "second", "mild_ssim", "mild_psnr", "drop_mild")
_FORMAT = 1


@dataclass
class PairSummary:
    """
    Result of a run.

    Args:
        folder (`Path`):
            Folder of pairs.
        made (`int`):
            Rows that this run made; the others existed before.
        rows (`int`):
            Rows of the folder.
        verdicts (`Counter[str]`), operations (`Counter[str]`):
            Rows by verdict, and by degradation.
        strengthened (`int`):
            Pairs with a second degradation.
        problems (`list[tuple[str, str, str]]`):
            The first 20 unfinished rows: image_id, verdict, error.
        notes (`list[tuple[str, str]]`):
            The first 20 rows with a note: image_id, note.
        unused_decisions (`int`):
            Decisions about pairs that are not in the folder.
    """

    folder: Path
    made: int = 0
    rows: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    operations: Counter[str] = field(default_factory=Counter)
    strengthened: int = 0
    problems: list[tuple[str, str, str]] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)
    unused_decisions: int = 0

    @property
    def unfinished(self) -> int:
        """Rows that the next run retries."""
        return sum(self.verdicts[verdict] for verdict in UNFINISHED)


class _Work(NamedTuple):
    """Where a run writes: the folder of pairs and the parts of its manifest."""

    folder: Path
    parts: Path
    is_new: bool


def make_pairs(
    data: str | os.PathLike, out: str | os.PathLike, settings: PairSettings, *, workers: int = 1, progress: bool = True
) -> PairSummary:
    """
    Make a folder of pairs: the rows of `data` with a `degraded_image` column (lossless PNG, embedded), the manifest
    `pairs.parquet` and a card.

    The folder appears once it is complete. Call again to resume an interrupted run. On a complete folder, this remakes
    only the chunks with unfinished rows: unreadable images, and pairs without the judge's verdict. The pixels depend
    only on the settings and on each image's pixels.

    Args:
        data (`str` or `os.PathLike`):
            `datasets` folder with an `image` column. With `settings.decisions` also a folder of pairs, which are kept
            except for the decisions.
        out (`str` or `os.PathLike`):
            Folder to write, outside of `data`.
        settings ([`PairSettings`]):
            What to make.
        workers (`int`, *optional*, defaults to `1`):
            Number of processes.
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar.

    Returns:
        [`PairSummary`]

    Raises:
        `FileNotFoundError` or `ValueError`: Invalid data or settings.
        `FileExistsError`: `out` holds something else, or pairs with other settings.
        `BlockingIOError`: Another run is writing to `out`.
        `OSError`: The disk is full or fails, or a worker was killed.
    """
    data, out = Path(data), Path(out).absolute()
    if workers < 1:
        raise ValueError(f"workers is {workers}; it must be at least 1.")
    refuse_inside(out, [data])
    full = open_source(data)
    source = full
    if settings.limit is not None:
        source = {name: split.select(range(min(settings.limit, len(split)))) for name, split in full.items()}
    _check_request(data, source, settings)
    identity = _identity(full, source, settings)
    chunks = cut_chunks(source)
    with _work_folder(out) as work:
        _claim(work, identity)
        for folder in (work.parts, *(work.folder / name for name in source)):
            folder.mkdir(exist_ok=True)
        missing = [chunk for chunk in _unfinished(chunks, work) if not chunk.part_file(work.parts).is_file()]
        made = make_chunks(missing, Job(data, work.folder, work.parts, settings), workers, progress)
        if work.is_new or any(work.parts.iterdir()):
            _complete(work, source, chunks, identity, data)
        if work.is_new:
            move_folder(work.folder, out)
    return summarize(out, settings, made)


def summarize(folder: Path, settings: PairSettings | None = None, made: int = 0) -> PairSummary:
    """Count what a folder of pairs holds."""
    summary = PairSummary(folder, made)
    unused = set(read_decisions(settings.decisions)) if settings and settings.decisions else set()
    strengthened = set()  # originals whose weaker pair people rejected
    columns = ["image_id", "verdict", "stage", "operation", "error", "note", "first_reason", *PairKey._fields]
    for line in iterate_manifest(folder, columns):
        summary.rows += 1
        summary.verdicts[line["verdict"]] += 1
        if line["operation"]:
            summary.operations[line["operation"]] += 1
        summary.strengthened += line["stage"] == "strengthened"
        if line["verdict"] in UNFINISHED and len(summary.problems) < 20:
            summary.problems.append((line["image_id"], line["verdict"], line["error"]))
        if line["note"] and len(summary.notes) < 20:
            summary.notes.append((line["image_id"], line["note"]))
        unused.discard(PairKey.of(line))
        if line["first_reason"] == "person":
            strengthened.add(line["pixel_hash"])
    summary.unused_decisions = sum(key.pixel_hash not in strengthened for key in unused)
    return summary


def _check_request(data: Path, source: dict[str, Dataset], settings: PairSettings) -> None:
    unknown = [name for name in settings.splits or () if name not in source or name == SINGLE]
    if unknown:
        known = f"its splits are {', '.join(source)}" if SINGLE not in source else "it has no splits"
        raise ValueError(f"{data} has no split {', '.join(unknown)}; {known}.")
    if not _has_pairs(source):
        return
    if settings.decisions is None:
        raise ValueError(
            f"{data} already has a `degraded_image` column, which would be overwritten: pass the data without pairs, "
            "or apply people's decisions to these pairs with --decisions FILE."
        )
    if settings.limit is not None or settings.splits is not None or settings.judge is not None:
        raise ValueError(f"{data} already holds pairs: drop the limit, splits or judge to apply --decisions.")
    lines, rows = read_manifest(data, ["row"]).num_rows, sum(map(len, source.values()))
    if lines != rows:
        raise ValueError(f"{data / MANIFEST_FILE} has {lines} lines for {rows} rows: make the pairs again.")


def _has_pairs(source: dict[str, Dataset]) -> bool:
    return any("degraded_image" in split.column_names for split in source.values())


def _identity(full: dict[str, Dataset], source: dict[str, Dataset], settings: PairSettings) -> dict:
    """What a run must share with the run that it resumes."""
    # fingerprints of the full splits: `select` draws a new one
    splits = {name: {"rows": len(source[name]), "fingerprint": split._fingerprint} for name, split in full.items()}
    described = settings.identity()
    if _has_pairs(full):  # which keep their degradations and seeds
        described = {name: described[name] for name in _OF_DECISIONS}
    return {"format": _FORMAT, "settings": described, "source": splits}


@contextmanager
def _work_folder(out: Path) -> Iterator[_Work]:
    """Lock and yield the work folder: one beside `out`, or `out` itself if it is complete."""
    if not is_taken(out):
        with resumable_folder(out) as work:
            (work / "data").mkdir(exist_ok=True)
            yield _Work(work / "data", work / "parts", True)
            _remove_work(work)
        return
    if not (out / RUN_FILE).is_file():
        raise FileExistsError(f"{out} exists and holds no pairs: choose another folder with --out.")
    with locked(out, busy=f"Another run is writing to {out}: wait for it, or choose another folder."):
        _remove_work(out.with_name(f"{out.name}.partial"))  # of a run that was killed after publishing
        with advise_full_disk(out):
            yield _Work(out, out / ".redo", False)
            shutil.rmtree(out / ".redo")


def _remove_work(work: Path) -> None:
    shutil.rmtree(work / "parts", ignore_errors=True)
    (work / "lock").unlink(missing_ok=True)
    with suppress(OSError):  # missing, or it holds something else
        work.rmdir()


def _claim(work: _Work, identity: dict) -> None:
    """Record the identity of a new run, or check it against that of the run to resume."""
    remove_partials(work.folder)
    path = work.folder / RUN_FILE
    if not path.is_file():
        shutil.rmtree(work.parts, ignore_errors=True)  # of chunks that somebody removed
        names = ("q-hawkeye-trl", "numpy", "pillow", "scipy", "scikit-image", "datasets")
        write_json(path, {"identity": identity, "versions": {name: version(name) for name in names}})
        return
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))["identity"]
        theirs = {**stored["settings"], "data": stored["source"]}
    except (ValueError, TypeError, KeyError) as error:
        raise FileExistsError(f"{path} can't be read ({error}): choose another folder, or remove this one.") from error
    if stored == identity:
        return
    mine = {**identity["settings"], "data": identity["source"]}
    differing = [key for key in mine if mine[key] != theirs.get(key)]
    folder, what = (work.folder.parent, "an unfinished run") if work.is_new else (work.folder, "pairs")
    raise FileExistsError(
        f"{folder} holds {what} with other settings ({', '.join(differing) or 'format'}): use the same settings, "
        "choose another folder, or remove this one."
    )


def _unfinished(chunks: list[Chunk], work: _Work) -> list[Chunk]:
    """All chunks of a new folder; of a complete one those with an unfinished row."""
    if work.is_new:
        return chunks
    verdicts = read_manifest(work.folder, ["verdict"])["verdict"]
    is_unfinished = pc.is_in(verdicts, pa.array(UNFINISHED)).to_numpy()
    return [chunk for chunk in chunks if is_unfinished[chunk.line : chunk.line + len(chunk.rows)].any()]


def _complete(work: _Work, source: dict[str, Dataset], chunks: list[Chunk], identity: dict, data: Path) -> None:
    """Write the manifest, the card, and the files that `load_from_disk` needs."""
    write_manifest(work.folder / MANIFEST_FILE, _merged(work, chunks))
    digest = hashlib.sha256((work.folder / MANIFEST_FILE).read_bytes()).hexdigest()
    for name, split in source.items():
        files = [chunk.file_name for chunk in chunks if chunk.split == name]
        fingerprint = hashlib.sha256(f"{digest}/{name}".encode()).hexdigest()[:16]
        where = work.folder / name
        write_split_files(where, files, output_features(split), fingerprint, split=name or None, info=split.info)
    if SINGLE not in source:
        write_index(work.folder, list(source))
    card, summary = data / "README.md", summarize(work.folder)
    source_card = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else None
    text = card_text(summary.verdicts, summary.operations, identity["settings"], source_card)
    write_text(work.folder / "README.md", text)


def _merged(work: _Work, chunks: list[Chunk]) -> Iterator[pa.Table]:
    """The parts of the manifest in order; chunks without a part keep their lines of the existing manifest."""
    old = read_manifest(work.folder) if (work.folder / MANIFEST_FILE).is_file() else None
    for chunk in chunks:
        part = chunk.part_file(work.parts)
        if old is None or part.is_file():
            yield pq.read_table(part)
        else:
            yield old.slice(chunk.line, len(chunk.rows))
