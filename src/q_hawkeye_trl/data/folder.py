"""Prepared data from a folder that `datasets` reads, and the checks that every row passes before training."""

import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
from datasets import Dataset, DatasetDict, List, Value, load_dataset, load_from_disk
from datasets import Image as ImageFeature
from PIL import Image

from ..text import QUALITY_SCALE, quality_messages
from .image_columns import with_uniform_images

_IMAGE_COLUMNS = ("image", "images", "degraded_image", "degraded_images")
_TABLES = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json"}


def load_folder(
    path: str | os.PathLike, split: str | None = None, *, scale: tuple[float, float] = QUALITY_SCALE
) -> Dataset:
    """
    Loads one split of prepared data: a folder that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote, or one
    of Parquet, CSV or JSON files, each (or each set of shards) a split named like the file; anything else is left to
    `load_dataset`. In text columns images are paths that count from the folder.

    Args:
        path (`str` or `os.PathLike`):
            The folder.
        split (`str`, *optional*):
            Name of the split. By default the only one.
        scale (`tuple[float, float]`, *optional*, defaults to `(1.0, 5.0)`):
            Lower and upper end of `mos`; the project's prompt asks for a rating on its own scale alone.

    Returns:
        `Dataset`: What the folder holds, with a `prompt` column (the project's prompt) and an `image_id` column (the
        row's number) where it has none; the latter is said by a warning.

    Raises:
        `FileNotFoundError`: There is no such folder, or images that it names are missing.
        `ValueError`: The folder holds nothing readable, or the split is unknown or ambiguous.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"There is no folder {path}: pass a folder of prepared data.")
    dataset = with_uniform_images(_with_images(_one_split(read_folder(path), split, path), path))
    if "prompt" not in dataset.column_names:
        if tuple(scale) != QUALITY_SCALE:
            raise ValueError(
                f"{path} has no `prompt` column, and the project's prompt asks for a rating between 1 and 5, not "
                f"between {scale[0]:g} and {scale[1]:g}: add a column with a prompt of your own."
            )
        dataset = dataset.add_column("prompt", [quality_messages() for _ in range(len(dataset))])
    if "image_id" not in dataset.column_names:
        warnings.warn(
            f"{path} has no `image_id` column: every row counts as an image of its own, named by its number."
        )
        dataset = dataset.add_column("image_id", [f"row-{i}" for i in range(len(dataset))])
    return dataset


def check_rows(dataset: Dataset, *, score_min: float, score_max: float) -> None:
    """
    Checks columns and values of prepared data; no image is decoded, see [`check_pair`] for what that shows.

    Args:
        dataset (`Dataset`):
            Rows with `prompt`, `mos`, `image_id`, one of `image` and `images`, and optionally `degraded_image` or
            `degraded_images`, `None` (or an empty list) in a row without a degraded view.
        score_min (`float`), score_max (`float`):
            Range of `mos`.

    Raises:
        `ValueError`: A column or value is wrong; the message names column and row.
    """
    _check_columns(set(dataset.column_names))
    _check_features(dataset)
    if len(dataset) == 0:
        raise ValueError("The dataset has no rows.")
    plural = "images" if "images" in dataset.column_names else "image"
    for number, row in _undecoded(dataset):
        where = f"Row {number}"
        mos = row["mos"]
        # NaN compares as out of range.
        if not isinstance(mos, int | float) or not score_min <= mos <= score_max:
            raise ValueError(
                f"{where}, column `mos`: expected a number in [{score_min}, {score_max}], got {mos!r}. Bring scores "
                "to that scale first; they are never clamped."
            )
        for column in ("prompt", "image_id"):
            if row[column] is None or row[column] == "":
                raise ValueError(f"{where}, column `{column}`: there is no value.")
        _check_images(row[plural], row.get(f"degraded_{plural}", 0), plural, where)


def check_pair(original: Image.Image, degraded: Image.Image | None, where: str) -> None:
    """
    Checks that a degraded image has its original's size: both passes of the model share one grid of image tokens.

    Args:
        original (`PIL.Image.Image`):
            Original image, upright.
        degraded (`PIL.Image.Image` or `None`):
            Its degraded view; `None`, a row without one, is legal.
        where (`str`):
            What the message calls the row, e.g. `"row 12 (a.jpg)"`.

    Raises:
        `ValueError`: The sizes differ.
    """
    if degraded is not None and degraded.size != original.size:
        raise ValueError(
            f"{where}: the image is {original.width} x {original.height} and its degraded view {degraded.width} x "
            f"{degraded.height}; both need the same size (mind EXIF orientation), so make the view again."
        )


def read_folder(path: Path) -> Dataset | DatasetDict:
    """
    Reads all splits of a folder of prepared data, see [`load_folder`]; images stay undecoded.

    Raises:
        `ValueError`: The folder holds nothing readable; the message names it.
    """
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return load_from_disk(str(path))
    tables = [file for file in sorted(path.iterdir()) if file.suffix in _TABLES and file.stem != "metadata"]
    builders = {_TABLES[file.suffix] for file in tables}
    if len(builders) > 1:
        raise ValueError(f"{path} mixes formats ({', '.join(file.name for file in tables)}): keep tables of one.")
    try:
        if not tables:
            return load_dataset(str(path.absolute()))
        # By hand: beside a folder of images `load_dataset` would take the images and leave the table.
        return load_dataset(builders.pop(), data_files=_splits_by_name(tables))
    except Exception as error:  # `datasets` raises a dozen of its own kinds and pyarrow's, without naming the folder
        raise ValueError(
            f"{path} can't be read as a dataset ({error}): expected what `save_to_disk` writes, or Parquet, CSV or "
            "JSON files with the same columns."
        ) from error


def _splits_by_name(tables: list[Path]) -> dict[str, list[str]]:
    splits: dict[str, list[str]] = {}
    for file in tables:
        name = re.sub(r"-[0-9]+-of-[0-9]+$", "", file.stem)  # shards of one split
        splits.setdefault(re.sub(r"\W", "_", name), []).append(str(file.absolute()))
    return splits


def _one_split(data: Dataset | DatasetDict, split: str | None, path: Path) -> Dataset:
    if isinstance(data, Dataset):
        if split is not None:
            raise ValueError(f"{path} holds one dataset without splits; leave out the split {split!r}.")
        return data
    known = ", ".join(data)
    if split is None and len(data) > 1:
        raise ValueError(f"{path} has the splits {known}: name one.")
    if split is not None and split not in data:
        raise ValueError(f"{path} has no split {split!r}; its splits are {known}.")
    return data[split or next(iter(data))]


def _with_images(dataset: Dataset, folder: Path) -> Dataset:
    # CSV and JSON know no images: text in an image column is a path.
    texts = (Value("string"), Value("large_string"))
    single = [c for c in _IMAGE_COLUMNS if c in dataset.column_names and dataset.features[c] in texts]
    several = [
        c for c in _IMAGE_COLUMNS if c in dataset.column_names and getattr(dataset.features[c], "feature", 0) in texts
    ]
    for column in single + several:
        rows = [_absolute(value, folder) for value in dataset[column]]
        _check_files(rows, column, folder)
        paths, images = Value("string"), ImageFeature()
        if column in several:
            paths, images = List(paths), List(images)
        dataset = dataset.remove_columns(column).add_column(column, rows, feature=paths).cast_column(column, images)
    return dataset


def _absolute(value: str | list | None, folder: Path) -> str | list | None:
    if isinstance(value, list):
        return [_absolute(item, folder) for item in value]
    return os.path.abspath(folder / value) if value else None


def _check_files(rows: list, column: str, folder: Path) -> None:
    paths = [path for row in rows for path in (row if isinstance(row, list) else [row]) if path]
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        few = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
        raise FileNotFoundError(
            f"{folder}, column `{column}`: {len(missing)} of {len(paths)} files are missing ({few})."
        )


def _check_columns(names: set[str]) -> None:
    found = f"found {', '.join(sorted(names)) or 'none'}"
    if ("image" in names) == ("images" in names):
        raise ValueError(f"Expected either an `image` or an `images` column and not both, {found}.")
    missing = [column for column in ("prompt", "mos", "image_id") if column not in names]
    if missing:
        raise ValueError(f"Expected the columns {', '.join(missing)}, {found}.")
    other = "degraded_images" if "image" in names else "degraded_image"
    if other in names:
        raise ValueError(
            f"`{other}` does not go with the image column: name both in singular or both in plural, {found}."
        )


def _check_features(dataset: Dataset) -> None:
    for column in set(_IMAGE_COLUMNS) & set(dataset.column_names):
        feature = dataset.features[column]
        inner = getattr(feature, "feature", None) if column.endswith("s") else feature
        if not isinstance(inner, ImageFeature) and feature != Value("null"):
            wanted = "List(Image())" if column.endswith("s") else "Image()"
            raise ValueError(f"Column `{column}`: expected the feature {wanted}, got {feature}; cast it.")


def _undecoded(dataset: Dataset) -> Iterator[tuple[int, dict]]:
    # Arrow instead of Python: images embedded in the table are neither decoded nor copied.
    columns = [c for c in ("mos", "prompt", "image_id", *_IMAGE_COLUMNS) if c in dataset.column_names]
    number = 0
    for table in dataset.select_columns(columns).with_format("arrow").iter(batch_size=1000):
        plain = table.select([c for c in columns if c not in _IMAGE_COLUMNS]).to_pylist()
        for offset, row in enumerate(plain):
            for column in set(columns) & set(_IMAGE_COLUMNS):
                row[column] = _presence(table.column(column)[offset])
            yield number, row
            number += 1


def _presence(value: pa.Scalar) -> list[bool] | bool:
    if isinstance(value, pa.ListScalar | pa.LargeListScalar | pa.FixedSizeListScalar):
        return [item.is_valid for item in value.values] if value.is_valid else False
    return value.is_valid


def _check_images(images: list[bool] | bool, degraded: list[bool] | bool, column: str, where: str) -> None:
    if images is False or images == [] or (isinstance(images, list) and not all(images)):
        raise ValueError(f"{where}, column `{column}`: an image is missing.")
    if not isinstance(images, list) or not isinstance(degraded, list):
        return
    if degraded and (len(degraded) != len(images) or not all(degraded)):
        raise ValueError(
            f"{where}, column `degraded_{column}`: expected a view of each of the {len(images)} images, or None for "
            f"the whole row, got {sum(degraded)} in {len(degraded)} places."
        )
