"""Several prepared sets as one, for training on all of them; each row keeps the name of its set."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, Features, Value
from datasets import Image as ImageFeature

from .arrow_folder import Shard, WorkFolder, refuse_inside, write_index, write_split, write_text
from .card import mix_card
from .faults import FAULTS, check_faults, split_faults, write_faults
from .folder import read_folder
from .preparation import CARD_FILE, FAULTS_FILE, RECORD_FILE, Preparation, finished
from .splits import SPLITS

_NEEDED = ("image", "image_id", "dataset", "mos", "mos_scale", "image_hash")
_SHARD_ROWS = 2000
_BATCH_ROWS = 64


class _Part(NamedTuple):
    """One set's share of one split."""

    place: str
    table: Dataset


def mix(
    inputs: Sequence[str | os.PathLike], out: str | os.PathLike, *, allowed: Mapping[str, int] | None = None
) -> Preparation:
    """
    Joins prepared sets: train with train, validation with validation, test with test. Rows of the sets alternate in
    proportion, so that any first part of a split is a fair sample. Columns that only some sets have, such as
    `degraded_image`, are `None` in the rows of the others.

    Args:
        inputs (`Sequence[str | os.PathLike]`):
            Folders that [`~data.prepare.prepare`] wrote, at least two, with or without degraded views.
        out (`str` or `os.PathLike`):
            Folder to make; it appears whole at the end.
        allowed (`Mapping[str, int]`, *optional*):
            How many faults are permitted, by the keys of [`~data.faults.FAULTS`]; here `leakage` counts, the same
            pixels in the training split of one set and in the test split of another.

    Returns:
        [`~data.preparation.Preparation`]

    Raises:
        `FileNotFoundError`: A folder is missing.
        `FileExistsError`: `out` holds other data.
        `ValueError`: Fewer than two sets, two of one name, missing or clashing columns, faults that are not permitted.
    """
    unknown = set(allowed or ()) - set(FAULTS)
    if unknown:
        raise ValueError(f"Unknown faults {', '.join(sorted(unknown))}; known are {', '.join(FAULTS)}.")
    if len(inputs) < 2:
        raise ValueError("A mix needs at least two prepared folders.")
    refuse_inside(Path(out), inputs)
    data = {os.path.abspath(path): _read(Path(path)) for path in inputs}
    if len(data) < len(inputs):
        raise ValueError("A mix names one folder twice.")
    names = _names(data)
    splits = {
        split: [_Part(f"{path}, {split}", sets[split]) for path, sets in data.items() if split in sets]
        for split in SPLITS
        if any(split in sets for sets in data.values())
    }
    features = _features([part for parts in splits.values() for part in parts])
    request = _request(data, splits)
    done = finished(Path(out), request, allowed or {})
    if done is not None:
        return done
    with WorkFolder(Path(out)) as work:
        faults = _leakage(splits)
        check_faults(faults, allowed or {}, work.path / FAULTS_FILE)
        fingerprint = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:24]
        folder = work.data(fingerprint)
        for split, parts in splits.items():
            mark = f"{fingerprint[:12]}{SPLITS.index(split):04d}"
            write_split(folder, split, _shards(parts, features), features, mark)
        write_index(folder, list(splits))
        notes = [f"{path}: {', '.join(found)}." for path, found in names.items()]
        result = Preparation(work.out, {split: _summary(parts) for split, parts in splits.items()}, faults, notes)
        record = {"request": request, "splits": result.splits, "notes": notes, "faults": faults}
        write_text(folder / RECORD_FILE, json.dumps(record, indent=2))
        if faults:
            write_faults(faults, folder / FAULTS_FILE)
        write_text(folder / CARD_FILE, mix_card(list(data), result))
        work.finish(folder)
    return result


def _read(path: Path) -> dict[str, Dataset]:
    if not path.is_dir():
        raise FileNotFoundError(f"There is no folder {path}: a mix takes folders that `q-hawkeye prepare` wrote.")
    data = read_folder(path)
    if not isinstance(data, DatasetDict):
        raise ValueError(f"{path} has no splits: a mix takes folders that `q-hawkeye prepare` wrote.")
    unknown = [split for split in data if split not in SPLITS]
    if unknown:
        raise ValueError(f"{path} has the splits {', '.join(data)}; a mix joins {', '.join(SPLITS)}.")
    for split, table in data.items():
        missing = [column for column in _NEEDED if column not in table.column_names]
        if missing:
            raise ValueError(
                f"{path}, {split}: there is no {', '.join(missing)}; prepare the set by `q-hawkeye prepare`."
            )
    return {
        split: table.cast_column("image", ImageFeature(decode=False)).with_format("arrow")
        for split, table in data.items()
    }


def _names(data: Mapping[str, Mapping[str, Dataset]]) -> dict[str, list[str]]:
    """The sets of each folder; a set that stands in two has two MOS for one image, or one image twice."""
    names: dict[str, list[str]] = {}
    owners: dict[str, str] = {}
    for path, sets in data.items():
        found = {name for table in sets.values() for name in table.data.column("dataset").unique().to_pylist()}
        names[path] = sorted(found)
        for name in names[path]:
            if name in owners:
                raise ValueError(f"{path} and {owners[name]} both hold the set {name!r}; keep one of them.")
            owners[name] = path
    return names


def _features(parts: Sequence[_Part]) -> Features:
    features, owner = Features(), {}
    for place, table in parts:
        for column, feature in table.features.items():
            feature = ImageFeature() if isinstance(feature, ImageFeature) else feature
            if column not in features or features[column] == Value("null"):
                features[column], owner[column] = feature, place
            elif feature not in (features[column], Value("null")):
                raise ValueError(
                    f"Column `{column}` is {features[column]} in {owner[column]} and {feature} in {place}: make them "
                    "alike."
                )
    return features


def _request(data: Mapping[str, Any], splits: Mapping[str, Sequence[_Part]]) -> dict:
    rows = {}
    for parts in splits.values():
        for place, table in parts:
            digest = hashlib.sha256(repr(table.column_names).encode())
            # The rest of the rows, degraded views above all: made anew by other settings, they are other data.
            digest.update(table._fingerprint.encode())
            for key in ("image_id", "image_hash", "mos"):
                for value in table.data.column(key).to_pylist():
                    digest.update(f"{value!r}\n".encode())
            rows[place] = digest.hexdigest()
    return {
        "mix": list(data),
        "rows": rows,
        "versions": {name: version(name) for name in ("q-hawkeye-trl", "datasets", "pillow")},
    }


def _leakage(splits: Mapping[str, Sequence[_Part]]):
    names: list[str] = []
    where: list[str] = []
    pixels: list[str] = []
    for split, parts in splits.items():
        for _, table in parts:
            columns = (table.data.column(key).to_pylist() for key in ("dataset", "image_id", "image_hash"))
            for name, image_id, digest in zip(*columns, strict=True):
                names.append(f"{name}/{image_id}")
                where.append(split)
                pixels.append(digest)
    return split_faults(names, where, pixels, [None] * len(names))


def _order(sizes: Sequence[int]) -> np.ndarray:
    """Which part each row of the mix is of: part p's i-th row of n stands at (i + 1/2) / n."""
    places = np.concatenate([(np.arange(size) + 0.5) / size for size in sizes])
    owners = np.repeat(np.arange(len(sizes)), sizes)
    return owners[np.argsort(places, kind="stable")]


def _shards(parts: Sequence[_Part], features: Features) -> list[Shard]:
    owners = _order([len(part.table) for part in parts])
    shards = []
    for start in range(0, len(owners), _SHARD_ROWS):
        stop = min(start + _SHARD_ROWS, len(owners))
        shards.append(
            Shard(stop - start, lambda start=start, stop=stop: _tables(parts, owners, start, stop, features))  # type: ignore[misc]
        )
    return shards


def _tables(
    parts: Sequence[_Part], owners: np.ndarray, start: int, stop: int, features: Features
) -> Iterator[pa.Table]:
    taken = np.bincount(owners[:start], minlength=len(parts))
    for begin in range(start, stop, _BATCH_ROWS):
        chosen = owners[begin : min(begin + _BATCH_ROWS, stop)]
        counts = np.bincount(chosen, minlength=len(parts))
        tables = [
            _aligned(part.table[int(first) : int(first + count)], features)
            for part, first, count in zip(parts, taken, counts, strict=True)
            if count
        ]
        # The tables stand one behind the other: bring the rows into the mix's order.
        positions = np.empty(len(chosen), dtype=np.int64)
        positions[np.argsort(chosen, kind="stable")] = np.arange(len(chosen))
        yield pa.concat_tables(tables).take(pa.array(positions))
        taken = taken + counts


def _aligned(table: pa.Table, features: Features) -> pa.Table:
    schema = features.arrow_schema
    columns = []
    for column in schema:
        if column.name in table.column_names and not pa.types.is_null(table.column(column.name).type):
            columns.append(table.column(column.name).cast(column.type))
        else:
            columns.append(pa.chunked_array([pa.nulls(len(table), column.type)]))
    return pa.table(columns, schema=schema)


def _summary(parts: Sequence[_Part]) -> dict[str, Any]:
    digest, totals = hashlib.sha256(), {}
    for key in ("mos", "mos_raw", "mos_std"):
        columns = [part.table.data.column(key) for part in parts if key in part.table.column_names]
        joined = pa.chunked_array([chunk for column in columns for chunk in column.chunks], pa.float64())
        known = joined.length() > joined.null_count
        totals[key] = [pc.min(joined).as_py(), pc.mean(joined).as_py(), pc.max(joined).as_py()] if known else None
    references = set()
    for part in parts:
        columns = [part.table.data.column(key).to_pylist() for key in ("image_id", "image_hash", "mos")]
        for row in zip(*columns, strict=True):
            digest.update("{}\0{}\0{!r}\n".format(*row).encode("utf-8", "surrogatepass"))
        if "reference" in part.table.column_names:
            names = part.table.data.column("dataset").to_pylist()
            references |= {*zip(names, part.table.data.column("reference").to_pylist(), strict=True)}
    counts = {name: 0 for part in parts for name in part.table.data.column("dataset").unique().to_pylist()}
    for part in parts:
        for entry in part.table.data.column("dataset").value_counts().to_pylist():
            counts[entry["values"]] += entry["counts"]
    known_references = {pair for pair in references if pair[1] is not None}
    rows = sum(len(part.table) for part in parts)
    return {"rows": rows, "sets": counts, "references": len(known_references), **totals, "sha256": digest.hexdigest()}
