"""Several prepared sets as one, for training on all of them; each row keeps the name of its set."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict, Features, Value, concatenate_datasets
from datasets import Image as ImageFeature

from ..io.outputs import refuse_inside
from ..io.publication import resumable_folder
from .arrow_folder import Shard
from .dataset_card import mix_card
from .faults import FAULTS_FILE, check_faults, split_faults
from .folder import read_folder
from .preparation import Preparation, finished, publish, summarise, versions
from .splits import SPLITS

_NEEDED = ("image", "image_id", "dataset", "mos", "mos_scale", "image_hash")
_SUMMARISED = ("image_id", "dataset", "reference", "mos", "mos_raw", "mos_std", "image_hash")
_SHARD_ROWS = 2000
_BATCH_ROWS = 64


def mix(
    inputs: Sequence[str | os.PathLike], out: str | os.PathLike, *, allowed: Mapping[str, int] | None = None
) -> Preparation:
    """
    Join prepared sets: train with train, validation with validation, test with test.

    Rows of the sets alternate in proportion, so any first part of a split is a fair sample. Columns that only some
    sets have, such as `degraded_image`, are `None` in the rows of the others.

    Args:
        inputs (`Sequence[str | os.PathLike]`):
            Folders that [`~data.preparation.prepare`] wrote, at least two, with or without degraded views.
        out (`str` or `os.PathLike`):
            Folder to make; it appears complete.
        allowed (`Mapping[str, int]`, *optional*):
            Number of permitted faults by the keys of [`~data.faults.FAULTS`]. Only `leakage` applies: the same pixels
            in different splits, such as the training split of one set and the test split of another.

    Returns:
        [`~data.preparation.Preparation`]

    Raises:
        `FileNotFoundError`: A folder is missing.
        `FileExistsError`: `out` holds other data.
        `ValueError`: Fewer than two sets, two of one name, missing or clashing columns, faults that are not permitted.
    """
    out, allowed = Path(os.path.abspath(out)), allowed or {}
    if len(inputs) < 2:
        raise ValueError("A mix needs at least two prepared folders.")
    refuse_inside(out, inputs)
    data = {os.path.abspath(path): _read(Path(path)) for path in inputs}
    if len(data) < len(inputs):
        raise ValueError("A mix names one folder twice.")
    names = _names(data)
    splits = {
        split: {path: sets[split] for path, sets in data.items() if split in sets}
        for split in SPLITS
        if any(split in sets for sets in data.values())
    }
    features = _features(splits)
    rows = {
        split: [row for table in parts.values() for row in _without_images(table)] for split, parts in splits.items()
    }
    request = _request(splits, list(data), rows)
    done = finished(out, request, allowed)
    if done is not None:
        return done
    with resumable_folder(out) as work:
        pairs = [(split, row) for split, part in rows.items() for row in part]
        images = [f"{row['dataset']}/{row['image_id']}" for _, row in pairs]
        hashes = [row["image_hash"] for _, row in pairs]
        faults = split_faults(images, [split for split, _ in pairs], hashes, [None] * len(pairs))
        check_faults(faults, allowed, work / FAULTS_FILE)
        notes = [f"{path}: {', '.join(found)}." for path, found in names.items()]
        result = Preparation(out, {split: summarise(part) for split, part in rows.items()}, faults, notes)
        shards = {split: _shards(list(parts.values()), features) for split, parts in splits.items()}
        fingerprint = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:24]
        publish(work, shards, features, fingerprint, result, request, mix_card(result))
    return result


def _read(path: Path) -> dict[str, Dataset]:
    if not path.is_dir():
        raise FileNotFoundError(f"There is no folder {path}: a mix takes folders that `q-hawkeye prepare` wrote.")
    data = read_folder(path)
    if not isinstance(data, DatasetDict):
        raise ValueError(f"{path} has no splits: a mix takes folders that `q-hawkeye prepare` wrote.")
    if not set(data) <= set(SPLITS):
        raise ValueError(f"{path} has the splits {', '.join(data)}; a mix joins {', '.join(SPLITS)}.")
    for split, table in data.items():
        missing = [column for column in _NEEDED if column not in table.column_names]
        if missing:
            raise ValueError(f"{path}, {split} has no {', '.join(missing)}; prepare the set by `q-hawkeye prepare`.")
    return dict(data)


def _names(data: Mapping[str, Mapping[str, Dataset]]) -> dict[str, list[str]]:
    """Return the sets of each folder; raise `ValueError` if two folders hold one set."""
    names: dict[str, list[str]] = {}
    owners: dict[str, str] = {}
    for path, sets in data.items():
        names[path] = sorted({name for table in sets.values() for name in table.unique("dataset")})
        for name in names[path]:
            if name in owners:
                raise ValueError(f"{path} and {owners[name]} both hold the set {name!r}; keep one of them.")
            owners[name] = path
    return names


def _features(splits: Mapping[str, Mapping[str, Dataset]]) -> Features:
    features, owner = Features(), {}
    tables = [(f"{path}, {split}", table) for split, parts in splits.items() for path, table in parts.items()]
    for place, table in tables:
        for column, feature in table.features.items():
            feature = ImageFeature() if isinstance(feature, ImageFeature) else feature
            if column not in features or features[column] == Value("null"):
                features[column], owner[column] = feature, place
            elif feature not in (features[column], Value("null")):
                first = f"{features[column]} in {owner[column]}"
                raise ValueError(f"Column `{column}` is {first} and {feature} in {place}; cast one of them.")
    return features


def _without_images(table: Dataset) -> list[dict]:
    return table.select_columns([column for column in _SUMMARISED if column in table.column_names]).to_list()


def _request(splits: Mapping[str, Mapping[str, Dataset]], folders: list[str], rows: Mapping[str, list[dict]]) -> dict:
    # the fingerprints change with the other columns, above all degraded views
    tables = {
        f"{path}, {split}": [table._fingerprint, table.column_names]
        for split, parts in splits.items()
        for path, table in parts.items()
    }
    content = hashlib.sha256(repr(rows).encode()).hexdigest()
    return {"mix": folders, "rows": {"tables": tables, "content": content}, "versions": versions()}


def _order(sizes: Sequence[int]) -> np.ndarray:
    """Order the rows of concatenated parts so that the parts alternate: row i of n is at (i + 1/2) / n."""
    return np.argsort(np.concatenate([(np.arange(size) + 0.5) / size for size in sizes]), kind="stable")


def _shards(tables: Sequence[Dataset], features: Features) -> list[Shard]:
    mixed = concatenate_datasets([table.with_format("arrow") for table in tables]).with_format("arrow")
    order = _order([len(table) for table in tables])

    def batches(rows: np.ndarray):
        for start in range(0, len(rows), _BATCH_ROWS):
            table = mixed[rows[start : start + _BATCH_ROWS].tolist()]
            for column in set(features) - set(table.column_names):  # which another split has
                table = table.append_column(column, [[None] * len(table)])
            yield table.select(list(features)).cast(features.arrow_schema)

    parts = [order[start : start + _SHARD_ROWS] for start in range(0, len(order), _SHARD_ROWS)]
    return [Shard(len(part), lambda part=part: batches(part)) for part in parts]  # type: ignore[misc]
