"""From the labels of a set to a `datasets` folder: look at every image, split, check, and only then write."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from datasets import Features, Value
from datasets import Image as ImageFeature

from .arrow_folder import Shard, WorkFolder, refuse_inside, write_index, write_split, write_text
from .card import prepared_card
from .faults import FAULTS, Fault, check_faults, check_labels, row_faults, split_faults, write_faults
from .inspection import Finding, Journal, inspect_images, read_image_file
from .preparation import CARD_FILE, FAULTS_FILE, RECORD_FILE, Preparation, file_hash, finished
from .readers.labels import EmbeddedImage, LabelRow, LabelSet
from .splits import SHARES, SPLITS, draw_splits, image_key, join_groups

FEATURES = Features(
    {
        "image": ImageFeature(),
        "image_id": Value("string"),
        "dataset": Value("string"),
        "reference": Value("string"),
        "mos": Value("float64"),
        "mos_raw": Value("float64"),
        "mos_std": Value("float64"),
        "mos_std_raw": Value("float64"),
        "mos_scale": Value("string"),
        "mos_direction": Value("string"),
        "image_hash": Value("string"),
    }
)
"""
Columns of prepared data. `mos` in [1, 5] is `mos_raw` under the rule `mos_scale`, `mos_direction` the better end of
`mos_raw`; `mos_std` is in points of `mos`, `mos_std_raw` as released; `image_hash` is
[`~data.degradations.pixel_hash`] of the upright image. `reference` and both spreads are `None` where a set has none.
"""

_SHARD_ROWS = {True: 500, False: 20_000}  # embedded or not
_BATCH_BYTES = 4 * 2**20


class PreparedRow(NamedTuple):
    """One row of the result: its label, MOS, spread in points of MOS, finding and split."""

    label: LabelRow
    mos: float
    mos_std: float | None
    finding: Finding
    split: str


def prepare(
    labels: LabelSet,
    out: str | os.PathLike,
    *,
    seed: int = 0,
    shares: Sequence[float] = SHARES,
    embed: bool = False,
    allowed: Mapping[str, int] | None = None,
    follow_links: bool = False,
    workers: int = 1,
    progress: Callable[[int], Callable[[], object]] = lambda total: lambda: None,
) -> Preparation:
    """
    Prepares one set: looks at its images, splits it, checks it, writes it.

    Until the folder `out` appears, whole, everything stands in `out.partial`. A run that was stopped there is gone on
    with by the same call; images that were looked at aren't opened again, not even with other options.

    Args:
        labels ([`~data.readers.labels.LabelSet`]):
            What a reader returned.
        out (`str` or `os.PathLike`):
            Folder to make.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the split, where the set has none.
        shares (`Sequence[float]`, *optional*):
            Shares of train, validation and test, where the set has no split.
        embed (`bool`, *optional*, defaults to `False`):
            Whether the image files are copied into the folder, byte for byte, in place of their absolute paths. Images
            that stand in a table always are.
        allowed (`Mapping[str, int]`, *optional*):
            How many faults are permitted, by the keys of [`~data.faults.FAULTS`]. Rows whose image is missing,
            unreadable or outside, and rows without a score, are left out then; what stands in several splits stays.
        follow_links (`bool`, *optional*, defaults to `False`):
            Whether symbolic links may lead out of the set's folder, as in stores that link to one copy of each file.
        workers (`int`, *optional*, defaults to `1`):
            Threads that decode images; the result does not depend on them.
        progress (`Callable`, *optional*):
            Is given the number of images and returns what is called after each.

    Returns:
        [`Preparation`]

    Raises:
        `FileExistsError`: `out` holds other data.
        `ValueError`: Faults that are not permitted, listed; labels that can't be right; nothing left.
        `OSError`: Something can't be written.
    """
    unknown = set(allowed or ()) - set(FAULTS)
    if unknown:
        raise ValueError(f"Unknown faults {', '.join(sorted(unknown))}; known are {', '.join(FAULTS)}.")
    out = Path(out)
    refuse_inside(out, [path for path in labels.files if path.is_dir()])
    request = _request(labels, seed, shares, embed)
    done = finished(out, request, allowed or {})
    if done is not None:
        return done
    check_labels(labels)
    with WorkFolder(out) as work:
        findings, references = _inspect(labels, work.path / "inspected.jsonl", follow_links, workers, progress)
        rows, faults, notes = _split(labels, findings, references, shares, seed)
        check_faults(faults, allowed or {}, work.path / FAULTS_FILE)
        fingerprint = _fingerprint(rows, request)
        data, parts = work.data(fingerprint), {name: [row for row in rows if row.split == name] for name in SPLITS}
        parts = {name: part for name, part in parts.items() if part}
        for name, part in parts.items():
            write_split(
                data, name, _shards(labels, part, embed), FEATURES, f"{fingerprint[:12]}{SPLITS.index(name):04d}"
            )
        write_index(data, list(parts))
        result = Preparation(work.out, {name: summarise(part) for name, part in parts.items()}, faults, notes)
        record = {"request": request, "splits": result.splits, "notes": notes, "faults": faults}
        write_text(data / RECORD_FILE, json.dumps(record, indent=2))
        if faults:
            write_faults(faults, data / FAULTS_FILE)
        write_text(data / CARD_FILE, prepared_card(labels, result, request))
        work.finish(data)
    return result


def summarise(rows: Sequence[PreparedRow]) -> dict[str, Any]:
    """Counts and ranges of one split, for [`Preparation`]."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(f"{row.label.image_id}\0{row.finding.pixels}\0{row.mos!r}\n".encode("utf-8", "surrogatepass"))
    return {
        "rows": len(rows),
        "references": len({row.label.reference for row in rows} - {None}),
        "mos": _range([row.mos for row in rows]),
        "mos_raw": _range([row.label.score for row in rows]),
        "mos_std": _range([row.mos_std for row in rows]),
        "sha256": digest.hexdigest(),
    }


def _range(values: Sequence[float | None]) -> list[float] | None:
    known = [value for value in values if value is not None]
    return [min(known), float(np.mean(known)), max(known)] if known else None


def _request(labels: LabelSet, seed: int, shares: Sequence[float], embed: bool) -> dict:
    """All that the result depends on but the images themselves."""
    return {
        "dataset": labels.name,
        "folder": str(labels.folder),
        "scale": labels.scale,
        "direction": labels.direction,
        "splits": labels.splits,
        "seed": seed,
        "shares": list(shares),
        "embed": embed,
        "labels": {str(path): file_hash(path) for path in labels.files},
        "rows": _rows_hash(labels.rows),
        "versions": {name: version(name) for name in ("q-hawkeye-trl", "datasets", "pillow")},
    }


def _rows_hash(rows: Sequence[LabelRow]) -> str:
    """Over all that the rows say but their places: with the same label file, options of a reader can change it."""
    digest = hashlib.sha256()
    for row in rows:
        image = row.image if isinstance(row.image, str) else row.image.label
        digest.update(repr((row.image_id, image, *row[3:])).encode())
    return digest.hexdigest()


def _inspect(
    labels: LabelSet,
    journal: Path,
    follow_links: bool,
    workers: int,
    progress: Callable[[int], Callable[[], object]],
) -> tuple[list[Finding], dict[str, Finding]]:
    images = [row.image for row in labels.rows]
    originals = list(labels.references.values())
    step = progress(len(images) + len(originals))
    options = {"follow_links": follow_links, "workers": workers, "progress": step}
    with Journal(journal) as known:
        found = list(inspect_images([*images, *originals], labels.folder, known, **options))  # type: ignore[arg-type]
    return found[: len(images)], dict(zip(labels.references, found[len(images) :], strict=True))


def _split(
    labels: LabelSet, findings: list[Finding], references: dict[str, Finding], shares: Sequence[float], seed: int
) -> tuple[list[PreparedRow], list[Fault], list[str]]:
    """The rows that can be used with their splits, all faults, and notes."""
    notes, faults = list(labels.notes), row_faults(labels, findings)
    if labels.rows[0].split is not None:
        splits = [str(row.split) for row in labels.rows]
    else:
        keys = [_keys(row, finding, references) for row, finding in zip(labels.rows, findings, strict=True)]
        groups = join_groups(keys)
        drawn = draw_splits(groups, shares, seed)
        splits = [SPLITS[drawn[group]] for group in groups]
    spreads = [None if np.isnan(std) else float(std) for std in labels.mos_std]
    rows = [
        PreparedRow(row, float(mos), std, finding, split)
        for row, mos, std, finding, split in zip(labels.rows, labels.mos, spreads, findings, splits, strict=True)
        if finding.fault is None and np.isfinite(mos)
    ]
    if not rows:
        faults_found = ", ".join(f"{sum(f.kind == k for f in faults)} {k}" for k in sorted({f.kind for f in faults}))
        raise ValueError(
            f"{labels.files[0]}: no image can be used ({faults_found}): is {labels.folder} the right folder?"
        )
    pixels = [str(row.finding.pixels) for row in rows]
    faults += split_faults(
        [row.label.image_id for row in rows],
        [row.split for row in rows],
        pixels,
        [row.label.reference for row in rows],
    )
    notes += _repetition_notes(rows)
    empty = [split for split, share in zip(SPLITS, shares, strict=True) if share > 0 and split not in splits]
    if empty and labels.rows[0].split is None:
        notes.append(f"There are too few groups for all splits: {', '.join(empty)} got none.")
    broken = [name for name, finding in references.items() if finding.fault is not None]
    if broken:
        notes.append(f"{len(broken)} references can't be read ({broken[0]}): they count by name, not by content.")
    return rows, faults, notes


def _repetition_notes(rows: Sequence[PreparedRow]) -> list[str]:
    first: dict[str, str] = {}
    repeated = []
    for row in rows:
        original = first.setdefault(str(row.finding.pixels), row.label.image_id)
        if original != row.label.image_id:
            repeated.append(f"{row.label.image_id} = {original}")
    few = ", ".join(repeated[:3]) + (", …" if len(repeated) > 3 else "")
    return [f"{len(repeated)} images have the same pixels as another one ({few})."] if repeated else []


def _keys(row: LabelRow, finding: Finding, references: Mapping[str, Finding]) -> list[str]:
    keys = [f"reference {row.reference}"] if row.reference is not None else []
    keys += [f"group {row.group}"] if row.group is not None else []
    keys = keys or [image_key(row.image_id)]
    keys += [f"pixels {finding.pixels}"] if finding.pixels is not None else []
    original = references.get(row.reference) if row.reference is not None else None
    return keys + ([f"pixels {original.pixels}"] if original is not None and original.pixels is not None else [])


def _fingerprint(rows: Sequence[PreparedRow], request: dict) -> str:
    digest = hashlib.sha256(json.dumps(request, sort_keys=True).encode())
    for row in rows:
        key = f"{row.label.image_id}\0{row.finding}\0{row.split}\0{row.mos!r}\n"
        digest.update(key.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:24]


def _shards(labels: LabelSet, rows: Sequence[PreparedRow], embed: bool) -> list[Shard]:
    size = _SHARD_ROWS[embed or isinstance(rows[0].label.image, EmbeddedImage)]
    parts = [rows[start : start + size] for start in range(0, len(rows), size)]
    return [Shard(len(part), lambda part=part: _tables(labels, part, embed)) for part in parts]  # type: ignore[misc]


def _tables(labels: LabelSet, rows: Sequence[PreparedRow], embed: bool) -> Iterator[pa.Table]:
    batch: list[dict] = []
    waiting = 0
    for row in rows:
        batch.append(_record(labels, row, embed))
        waiting += len(batch[-1]["image"]["bytes"] or b"")
        if waiting >= _BATCH_BYTES or len(batch) >= 1000:
            yield pa.Table.from_pylist(batch, schema=FEATURES.arrow_schema)
            batch, waiting = [], 0
    if batch:
        yield pa.Table.from_pylist(batch, schema=FEATURES.arrow_schema)


def _record(labels: LabelSet, row: PreparedRow, embed: bool) -> dict[str, Any]:
    label, image = row.label, row.label.image
    if embed or isinstance(image, EmbeddedImage):
        name = os.path.basename(image.label if isinstance(image, EmbeddedImage) else image)
        stored: dict[str, Any] = {"bytes": read_image_file(image, row.finding), "path": name}
    else:
        stored = {"bytes": None, "path": image}
    return {
        "image": stored,
        "image_id": label.image_id,
        "dataset": labels.name,
        "reference": label.reference,
        "mos": row.mos,
        "mos_raw": label.score,
        "mos_std": row.mos_std,
        "mos_std_raw": label.std,
        "mos_scale": labels.scale,
        "mos_direction": labels.direction,
        "image_hash": row.finding.pixels,
    }
