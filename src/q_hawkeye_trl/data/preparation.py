"""From the labels of a set to a `datasets` folder: inspect every image, split, check, and only then write."""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from datasets import Features, Value
from datasets import Image as ImageFeature

from ..io.atomic import remove_partials, write_json, write_text
from ..io.outputs import refuse_inside, refuse_taken
from ..io.publication import move_folder, resumable_folder
from .arrow_folder import Shard, write_index, write_split
from .dataset_card import Preparation, prepared_card
from .faults import FAULTS_FILE, Fault, check_faults, check_labels, over_limit, row_faults, split_faults, write_faults
from .inspection import Finding, inspect_images, read_image_file
from .labels import EmbeddedImage, LabelRow, LabelSet
from .splits import SHARES, SPLITS, draw_splits, image_key, join_groups

CARD_FILE = "README.md"
RECORD_FILE = "prepare.json"
FEATURES = Features(
    {"image": ImageFeature()}
    | dict.fromkeys(("image_id", "dataset", "reference"), Value("string"))
    | dict.fromkeys(("mos", "mos_raw", "mos_std", "mos_std_raw"), Value("float64"))
    | dict.fromkeys(("mos_scale", "mos_direction", "image_hash"), Value("string"))
)
"""
Columns of prepared data. `mos` in [1, 5] is made from `mos_raw` by the rule `mos_scale`; `mos_direction` is the better
end of `mos_raw`. `mos_std` is in points of `mos`, `mos_std_raw` as released. `image_hash` is
[`~data.degradations.pixel_hash`] of the upright image. `reference` and both spreads are `None` if a set has none.
"""

_SHARD_ROWS = {True: 500, False: 20_000}  # embedded or not
_BATCH_BYTES = 4 * 2**20


class PreparedRow(NamedTuple):
    """One row of the result: its image and finding, its split, and its columns but the image."""

    image: str | EmbeddedImage
    finding: Finding
    split: str
    columns: dict[str, Any]


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
    Prepare one set: inspect its images, split it, check it, write it.

    The folder `out` appears complete; until then the work is in `out.partial`. The same call resumes a run that was
    stopped; images are not opened twice, not even with other options.

    Args:
        labels ([`~data.labels.LabelSet`]):
            What a reader returned.
        out (`str` or `os.PathLike`):
            Folder to make.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the split, if the set has none.
        shares (`Sequence[float]`, *optional*):
            Shares of train, validation and test, if the set has no split.
        embed (`bool`, *optional*, defaults to `False`):
            Whether to copy the image files into the folder, byte for byte, instead of their absolute paths. Images
            inside a table are always copied.
        allowed (`Mapping[str, int]`, *optional*):
            Number of permitted faults by the keys of [`~data.faults.FAULTS`]. Rows whose image is missing, unreadable
            or outside, and rows without a score, are then dropped; what is in several splits is kept.
        follow_links (`bool`, *optional*, defaults to `False`):
            Whether symbolic links may lead out of the set's folder, as in stores that link to one copy of each file.
        workers (`int`, *optional*, defaults to `1`):
            Threads that decode images; the result does not depend on them.
        progress (`Callable`, *optional*):
            Takes the number of images and returns what is called after each.

    Returns:
        [`Preparation`]

    Raises:
        `FileExistsError`: `out` holds other data.
        `ValueError`: Faults that are not permitted, listed; labels that can't be right; no usable image.
        `OSError`: Something can't be written.
    """
    out, allowed = Path(os.path.abspath(out)), allowed or {}
    refuse_inside(out, [path for path in labels.files if path.is_dir()])
    request = _request(labels, seed, shares, embed)
    done = finished(out, request, allowed)
    if done is not None:
        return done
    check_labels(labels)
    with resumable_folder(out) as work:
        images, originals = [row.image for row in labels.rows], list(labels.references.values())
        found = list(
            inspect_images(
                [*images, *originals], labels.folder, work / "inspected.jsonl", follow_links=follow_links,
                workers=workers, progress=progress(len(images) + len(originals)),
            )
        )  # fmt: skip
        references = dict(zip(labels.references, found[len(images) :], strict=True))
        rows, faults, notes = _split(labels, found[: len(images)], references, shares, seed)
        check_faults(faults, allowed, work / FAULTS_FILE)
        parts = {name: [row for row in rows if row.split == name] for name in SPLITS}
        parts = {name: part for name, part in parts.items() if part}
        summaries = {name: summarise(row.columns for row in part) for name, part in parts.items()}
        result = Preparation(out, summaries, faults, notes)
        shards = {name: _shards(part, embed) for name, part in parts.items()}
        card = prepared_card(labels, result, request)
        publish(work, shards, FEATURES, _fingerprint(rows, request), result, request, card)
    return result


def finished(out: Path, request: dict, allowed: Mapping[str, int]) -> Preparation | None:
    """
    Return what the same command has made already, `None` if the folder is missing or empty.

    Raises `FileExistsError` if it holds something else, or has faults that are not permitted now.
    """
    over_limit([], allowed)
    try:
        record = json.loads((out / RECORD_FILE).read_text(encoding="utf-8"))
        made = dict(record["request"])
    except (OSError, ValueError, TypeError, KeyError):
        refuse_taken(out)
        return None
    if made != request:
        changed = [key for key in request if made.get(key) != request[key]]
        raise FileExistsError(
            f"{out} was made with another {', '.join(changed) or 'request'}, and nothing is overwritten: name another "
            "folder by --out, or remove it."
        )
    faults = [Fault(*fault) for fault in record["faults"]]
    over = over_limit(faults, allowed)
    if over:
        raise FileExistsError(
            f"{out} was made with faults that this command does not permit "
            f"({', '.join(f'{count} {kind}' for kind, count in over.items())}, listed in {out / FAULTS_FILE}): permit "
            "them, name another folder by --out, or remove it."
        )
    return Preparation(out, record["splits"], faults, record["notes"], existed=True)


def publish(
    work: Path,
    shards: Mapping[str, Sequence[Shard]],
    features: Features,
    fingerprint: str,
    result: Preparation,
    request: dict,
    card: str,
) -> None:
    """Write all files of the result below the work folder, move them to `result.out` and remove the work folder."""
    data = work / f"data-{fingerprint}"
    for other in work.glob("data-*"):
        if other != data:  # of a run with another plan
            shutil.rmtree(other)
    for split, parts in shards.items():
        write_split(data, split, parts, features, f"{fingerprint[:12]}{SPLITS.index(split):04d}")
    write_index(data, list(shards))
    record = {"request": request, "splits": result.splits, "notes": result.notes, "faults": result.faults}
    write_json(data / RECORD_FILE, record)
    if result.faults:
        write_faults(result.faults, data / FAULTS_FILE)
    write_text(data / CARD_FILE, card)
    remove_partials(data)
    refuse_taken(result.out)
    move_folder(data, result.out)
    shutil.rmtree(work)


def summarise(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Count the rows of a split and take their ranges and hash, for [`Preparation`]."""
    rows = list(rows)
    digest = hashlib.sha256()
    for row in rows:
        digest.update(f"{row['image_id']}\0{row['image_hash']}\0{row['mos']!r}\n".encode("utf-8", "surrogatepass"))
    references = {(row["dataset"], row["reference"]) for row in rows if row.get("reference") is not None}
    summary: dict[str, Any] = {"rows": len(rows), "sets": dict(Counter(row["dataset"] for row in rows))}
    summary["references"] = len(references)
    for column in ("mos", "mos_raw", "mos_std"):
        known = [row[column] for row in rows if row.get(column) is not None]
        summary[column] = [min(known), float(np.mean(known)), max(known)] if known else None
    return {**summary, "sha256": digest.hexdigest()}


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file, or of a folder's files with their names."""
    if not path.is_dir():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for inner in sorted(inner for inner in path.rglob("*") if inner.is_file()):
        digest.update(f"{inner.relative_to(path)} {file_hash(inner)}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Return the versions that the result depends on."""
    return {name: version(name) for name in ("q-hawkeye-trl", "datasets", "pillow")}


def _request(labels: LabelSet, seed: int, shares: Sequence[float], embed: bool) -> dict:
    """Everything that the result depends on but the images themselves."""
    rows = hashlib.sha256()  # without their places; options of a reader change rows, not files
    for row in labels.rows:
        image = row.image if isinstance(row.image, str) else row.image.label
        rows.update(repr((row.image_id, image, *row[3:])).encode())
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
        "rows": rows.hexdigest(),
        "versions": versions(),
    }


def _split(
    labels: LabelSet, findings: list[Finding], references: dict[str, Finding], shares: Sequence[float], seed: int
) -> tuple[list[PreparedRow], list[Fault], list[str]]:
    """Return the usable rows with their splits, all faults, and notes."""
    notes, faults = list(labels.notes), row_faults(labels, findings)
    splits = [str(row.split) for row in labels.rows]
    is_given = labels.rows[0].split is not None
    if not is_given:
        groups = join_groups([_keys(*pair, references) for pair in zip(labels.rows, findings, strict=True)])
        drawn = draw_splits(groups, shares, seed)
        splits = [SPLITS[drawn[group]] for group in groups]
    rows = []
    for i, (row, finding) in enumerate(zip(labels.rows, findings, strict=True)):
        if finding.fault is None and np.isfinite(labels.mos[i]):
            columns = {**labels.columns(i), "reference": row.reference, "image_hash": finding.pixels}
            rows.append(PreparedRow(row.image, finding, splits[i], columns))
    if not rows:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(Counter(fault.kind for fault in faults).items()))
        raise ValueError(f"{labels.files[0]}: no image is usable ({kinds}): is {labels.folder} the right folder?")
    names, hashes, named = ([row.columns[key] for row in rows] for key in ("image_id", "image_hash", "reference"))
    faults += split_faults(names, [row.split for row in rows], hashes, named)
    notes += _repetition_notes(names, hashes)
    empty = [split for split, share in zip(SPLITS, shares, strict=True) if share > 0 and split not in splits]
    if empty and not is_given:
        notes.append(f"There are too few groups for all splits: {', '.join(empty)} got none.")
    broken = [name for name, finding in references.items() if finding.fault is not None]
    if broken:
        notes.append(f"{len(broken)} references can't be read ({broken[0]}): they count by name, not by content.")
    return rows, faults, notes


def _keys(row: LabelRow, finding: Finding, references: Mapping[str, Finding]) -> list[str]:
    """Return the keys by which a row joins the group of others."""
    named = {"reference": row.reference, "group": row.group}
    keys = [f"{kind} {name}" for kind, name in named.items() if name is not None] or [image_key(row.image_id)]
    shown = [finding, references.get(row.reference or "")]
    return keys + [f"pixels {image.pixels}" for image in shown if image is not None and image.pixels is not None]


def _repetition_notes(names: Sequence[str], hashes: Sequence[str]) -> list[str]:
    first: dict[str, str] = {}
    pairs = [(name, first.setdefault(key, name)) for name, key in zip(names, hashes, strict=True)]
    repeated = [f"{name} = {original}" for name, original in pairs if name != original]
    few = ", ".join(repeated[:3]) + (", …" if len(repeated) > 3 else "")
    return [f"{len(repeated)} images have the same pixels as another one ({few})."] if repeated else []


def _fingerprint(rows: Sequence[PreparedRow], request: dict) -> str:
    digest = hashlib.sha256(json.dumps(request, sort_keys=True).encode())
    for row in rows:
        key = f"{row.columns['image_id']}\0{row.finding}\0{row.split}\0{row.columns['mos']!r}\n"
        digest.update(key.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:24]


def _shards(rows: Sequence[PreparedRow], embed: bool) -> list[Shard]:
    embed = embed or isinstance(rows[0].image, EmbeddedImage)
    size = _SHARD_ROWS[embed]
    parts = [rows[start : start + size] for start in range(0, len(rows), size)]
    return [Shard(len(part), lambda part=part: _tables(part, embed)) for part in parts]  # type: ignore[misc]


def _tables(rows: Sequence[PreparedRow], embed: bool) -> Iterator[pa.Table]:
    batch: list[dict] = []
    waiting = 0
    for number, row in enumerate(rows, 1):
        stored: dict[str, Any] = {"bytes": None, "path": row.image}
        if embed:
            path = row.image.label if isinstance(row.image, EmbeddedImage) else row.image
            stored = {"bytes": read_image_file(row.image, row.finding), "path": os.path.basename(path)}
            waiting += len(stored["bytes"])
        batch.append({"image": stored, **row.columns})
        if waiting >= _BATCH_BYTES or len(batch) >= 1000 or number == len(rows):
            yield pa.Table.from_pylist(batch, schema=FEATURES.arrow_schema)
            batch, waiting = [], 0
