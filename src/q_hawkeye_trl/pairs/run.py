"""`make_pairs`: a whole folder of pairs, by any number of workers, resumed where an earlier run stopped."""

import fcntl
import hashlib
import json
import os
import sys
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa
from datasets import Dataset

from ..data.arrow_folder import refuse_inside, sync_folder, write_text
from .card import card_text
from .chunks import (
    PARTS,
    REDO,
    Chunk,
    cut_chunks,
    remove_folder,
    remove_leftovers,
    write_dataset_files,
)
from .manifest import MANIFEST_FILE, UNFINISHED, iterate_manifest, read_manifest, write_records
from .settings import PairSettings
from .source import SINGLE, open_source
from .workers import Job, work

RUN_FILE = "pairs.json"
_OF_DECISIONS = ("decisions", "rejected", "second", "mild_ssim", "mild_psnr", "drop_mild")  # what acts on ready pairs
_FORMAT = 1


@dataclass
class PairSummary:
    """
    What a run left.

    Args:
        folder (`Path`):
            Folder of pairs.
        rows (`int`):
            Rows in it.
        made (`int`):
            Rows that this run made; the others stood there from before.
        verdicts (`dict[str, int]`):
            Rows by verdict.
        operations (`dict[str, int]`):
            Rows by degradation.
        strengthened (`int`):
            Pairs with a second degradation.
        problems (`list[tuple[str, str, str]]`):
            The first rows without a pair or a verdict: image_id, verdict and why.
        notes (`list[tuple[str, str]]`):
            The first rows about which something is worth telling: image_id and what.
        unused_decisions (`int`):
            Decisions about pairs that are not here.
    """

    folder: Path
    rows: int
    made: int
    verdicts: dict[str, int]
    operations: dict[str, int]
    strengthened: int
    problems: list[tuple[str, str, str]]
    notes: list[tuple[str, str]]
    unused_decisions: int

    @property
    def unfinished(self) -> int:
        """Rows that a second run tries again."""
        return sum(self.verdicts.get(verdict, 0) for verdict in UNFINISHED)


def make_pairs(
    data: str | os.PathLike,
    out: str | os.PathLike,
    settings: PairSettings,
    *,
    workers: int = 1,
    progress: bool = True,
) -> PairSummary:
    """
    Makes a folder of pairs: the rows of `data` with a `degraded_image` column (lossless PNG, embedded), the manifest
    `pairs.parquet` and a card. The folder appears when it is whole; what a killed run had done is used again; a folder
    that stands already is completed where images could not be read or the judge gave no verdict. The pixels depend on
    the settings and each image's pixels alone.

    Args:
        data (`str` or `os.PathLike`):
            `datasets` folder with an `image` column. With `settings.decisions` also a folder of pairs: its pairs are
            then kept but for the decisions.
        out (`str` or `os.PathLike`):
            Folder to write.
        settings ([`PairSettings`]):
            What is asked for.
        workers (`int`, *optional*, defaults to `1`):
            Processes.
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar.

    Returns:
        [`PairSummary`]

    Raises:
        `FileNotFoundError` or `ValueError`: Data or settings are wrong.
        `FileExistsError`: `out` holds something else, or pairs with other settings.
        `BlockingIOError`: Another run writes there.
        `OSError`: The disk is full or fails.
    """
    data, out = Path(data), Path(out).absolute()
    if workers < 1:
        raise ValueError(f"workers is {workers}; it must be at least 1.")
    if out.resolve() == data.resolve():
        raise ValueError(f"{out} is the data itself, which is never changed: name another folder for the pairs.")
    refuse_inside(out, [data])
    whole = open_source(data)
    source = _limited(whole, settings)
    _check_request(data, source, settings)
    identity = _identity(whole, source, settings)
    is_new = not _is_taken(out)
    folder = out.with_name(f".{out.name}.unfinished") if is_new else out
    _check_folder(folder, identity, is_new)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        if is_new and _is_taken(out):
            raise BlockingIOError(f"Another run has just made {out}: run the same command again.")
        remove_leftovers(folder)
        chunks = [chunk for name, split in source.items() for chunk in cut_chunks(name, len(split))]
        parts = _start(folder, identity, chunks, source, is_new)
        missing = _missing(chunks, parts, None if is_new else folder)
        made = work(missing, Job(str(data), str(folder), str(parts), settings), workers, progress)
        if is_new or any(parts.iterdir()):
            _finish(folder, source, chunks, parts, identity, data)
        if is_new:
            os.rename(folder, out)
            sync_folder(out.parent)
        remove_folder(out / parts.name)
    return summarize(out, made, settings)


def summarize(folder: Path, made: int, settings: PairSettings) -> PairSummary:
    """
    Reads a manifest for what a person wants to know.

    Args:
        folder (`Path`):
            Folder of pairs.
        made (`int`):
            Rows that this run made.
        settings ([`PairSettings`]):
            Its settings.

    Returns:
        [`PairSummary`]
    """
    from .decisions import PairKey, read_decisions

    summary = PairSummary(folder, 0, made, {}, {}, 0, [], [], 0)
    unused = read_decisions(settings.decisions) if settings.decisions else {}
    strengthened = set()  # originals whose pair people rejected when it was weaker
    columns = ["image_id", "verdict", "stage", "operation", "error", "note", "pixel_hash"]
    for table in iterate_manifest(folder / MANIFEST_FILE, [*columns, "degraded_pixel_hash", "first_reason"]):
        for line in table.to_pylist():
            summary.rows += 1
            summary.verdicts[line["verdict"]] = summary.verdicts.get(line["verdict"], 0) + 1
            if line["operation"]:
                summary.operations[line["operation"]] = summary.operations.get(line["operation"], 0) + 1
            summary.strengthened += line["stage"] == "strengthened"
            if line["verdict"] in UNFINISHED and len(summary.problems) < 20:
                summary.problems.append((line["image_id"], line["verdict"], line["error"]))
            if line["note"] and len(summary.notes) < 20:
                summary.notes.append((line["image_id"], line["note"]))
            unused.pop(PairKey(line["pixel_hash"], line["degraded_pixel_hash"]), None)
            if line["first_reason"] == "person":
                strengthened.add(line["pixel_hash"])
    summary.unused_decisions = sum(key.pixel_hash not in strengthened for key in unused)
    return summary


def _limited(source: dict[str, Dataset], settings: PairSettings) -> dict[str, Dataset]:
    if settings.limit is None:
        return source
    return {name: split.select(range(min(settings.limit, len(split)))) for name, split in source.items()}


def _check_request(data: Path, source: dict[str, Dataset], settings: PairSettings) -> None:
    unknown = [name for name in settings.splits or () if name not in source or name == SINGLE]
    if unknown:
        known = f"its splits are {', '.join(source)}" if SINGLE not in source else "it has no splits"
        raise ValueError(f"{data} has no split {', '.join(unknown)}; {known}.")
    with_pairs = _has_pairs(source)
    if with_pairs and settings.decisions is None:
        raise ValueError(
            f"{data} has a `degraded_image` column already, which would be overwritten: name the data without pairs, "
            "or apply people's decisions to these pairs by --decisions FILE."
        )
    if with_pairs:
        if settings.limit is not None or settings.splits is not None or settings.judge is not None:
            raise ValueError(
                f"{data} holds pairs already: a limit, splits or a judge don't go with --decisions there."
            )
        rows = len(read_manifest(data, ["row"]))
        if rows != sum(map(len, source.values())):
            raise ValueError(f"{data / MANIFEST_FILE} has {rows} lines for another number of rows: make it again.")


def _identity(whole: dict[str, Dataset], source: dict[str, Dataset], settings: PairSettings) -> dict:
    # Fingerprints of the whole splits: `select` draws one of its own.
    splits = {name: {"rows": len(source[name]), "fingerprint": split._fingerprint} for name, split in whole.items()}
    described = settings.identity()
    if _has_pairs(whole):  # which keep their degradations and seeds
        described = {name: described[name] for name in _OF_DECISIONS}
    return {"format": _FORMAT, "settings": described, "source": splits}


def _has_pairs(source: dict[str, Dataset]) -> bool:
    return any("degraded_image" in split.column_names for split in source.values())


def _is_taken(out: Path) -> bool:
    return out.exists() and (not out.is_dir() or any(out.iterdir()))


def _check_folder(folder: Path, identity: dict, is_new: bool) -> None:
    path = folder / RUN_FILE
    if not path.is_file():
        if not is_new:
            raise FileExistsError(f"{folder} exists and holds no pairs: nothing in it is overwritten; name another.")
        return  # nothing there, or a run that was killed before its first file
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        settings, data = dict(stored["identity"]["settings"]), stored["identity"]["source"]
    except (ValueError, TypeError, KeyError) as error:
        raise FileExistsError(f"{path} can't be read ({error}): name another folder, or remove this one.") from error
    if stored["identity"] == identity:
        return
    mine, theirs = {**identity["settings"], "data": identity["source"]}, {**settings, "data": data}
    differing = [key for key in mine if mine[key] != theirs.get(key)]
    what = "an unfinished run" if is_new else "pairs"
    raise FileExistsError(
        f"{folder} holds {what} with other settings ({', '.join(differing) or 'format'}): repeat its settings, name "
        "another folder, or remove this one."
    )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise BlockingIOError(f"Another run writes to {folder}: wait for it, or name another folder.") from error
    finally:
        os.close(descriptor)


def _start(folder: Path, identity: dict, chunks: list[Chunk], source: dict[str, Dataset], is_new: bool) -> Path:
    """Creates the folders of a run and says where its parts of the manifest are."""
    parts = folder / (PARTS if is_new else REDO)
    if not is_new:
        remove_folder(folder / PARTS)  # killed after the folder had got its name
    elif not (folder / RUN_FILE).is_file():
        names = ("q-hawkeye-trl", "numpy", "pillow", "scipy", "scikit-image", "datasets")
        run = {"identity": identity, "versions": {name: version(name) for name in names}}
        write_text(folder / RUN_FILE, json.dumps(run, indent=2) + "\n")
    for path in (parts, *(folder / name for name in source)):
        path.mkdir(exist_ok=True)
    return parts


def _missing(chunks: list[Chunk], parts: Path, whole: Path | None) -> list[Chunk]:
    wanted = chunks
    if whole is not None:  # only chunks with a row that failed
        failed: dict[str, list[int]] = {}
        for table in iterate_manifest(whole / MANIFEST_FILE, ["split", "row", "verdict"]):
            for line in table.to_pylist():
                if line["verdict"] in UNFINISHED:
                    failed.setdefault(line["split"], []).append(line["row"])
        # Rows stand in order: the first failed one from a chunk's start on tells.
        rows = {split: [*numbers, sys.maxsize] for split, numbers in failed.items()}
        wanted = [c for c in chunks if c.split in rows and rows[c.split][bisect_left(rows[c.split], c.start)] < c.stop]
    return [chunk for chunk in wanted if not chunk.part_file(parts).is_file()]


def _finish(
    folder: Path, source: dict[str, Dataset], chunks: list[Chunk], parts: Path, identity: dict, data: Path
) -> None:
    """Writes manifest, card and what `load_from_disk` reads."""
    write_records(folder / MANIFEST_FILE, _merged(folder, chunks, parts))
    lines = hashlib.sha256((folder / MANIFEST_FILE).read_bytes()).hexdigest()
    for name, split in source.items():
        own = [chunk for chunk in chunks if chunk.split == name]
        fingerprint = hashlib.sha256(f"{lines}/{name}".encode()).hexdigest()[:16]
        write_dataset_files(folder, name, split, own, fingerprint)
    if SINGLE not in source:
        write_text(folder / "dataset_dict.json", json.dumps({"splits": list(source)}) + "\n")
    card = data / "README.md"
    source_card = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else None
    write_text(folder / "README.md", card_text(folder / MANIFEST_FILE, identity["settings"], source_card))


def _merged(folder: Path, chunks: list[Chunk], parts: Path) -> Iterator[pa.Table]:
    """The parts in order; the lines of chunks without a part are those of the manifest that stands."""
    old = read_manifest(folder) if (folder / MANIFEST_FILE).is_file() else None
    position = 0
    for chunk in chunks:
        rows = chunk.stop - chunk.start
        part = chunk.part_file(parts)
        if part.is_file():
            yield from iterate_manifest(part)
        elif old is not None:
            yield old.slice(position, rows)
        else:
            raise FileNotFoundError(f"{part} is missing: run again.")
        position += rows
