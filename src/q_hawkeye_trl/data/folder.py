"""Load prepared data from a folder that `datasets` reads, and check every row before training."""

import os
import re
import warnings
from pathlib import Path

import pyarrow as pa
from datasets import Dataset, DatasetDict, List, Value, load_dataset, load_from_disk
from datasets import Image as ImageFeature
from PIL import Image

from ..text import QUALITY_SCALE, quality_messages
from .image_columns import IMAGE_COLUMNS, with_uniform_images

_TABLES = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json"}
_TEXTS = (Value("string"), Value("large_string"))


def load_folder(
    path: str | os.PathLike, split: str | None = None, *, scale: tuple[float, float] = QUALITY_SCALE
) -> Dataset:
    """
    Load one split of prepared data.

    The folder holds what `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote, or Parquet, CSV or JSON files,
    each (or each set of shards) a split named like the file; anything else is left to `load_dataset`. In text columns
    images are paths that start from the folder.

    Args:
        path (`str` or `os.PathLike`):
            The folder.
        split (`str`, *optional*):
            Name of the split. By default the only one.
        scale (`tuple[float, float]`, *optional*, defaults to `(1.0, 5.0)`):
            Lower and upper end of `mos`; the project's prompt asks for a rating on its own scale only.

    Returns:
        `Dataset`: The rows of the folder, with upright RGB images. If there is no `prompt` column, it is the project's
        prompt. If there is no `image_id` column, it is the row's number, with a warning.

    Raises:
        `FileNotFoundError`: The folder, or an image that it names, is missing.
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
                f"between {scale[0]:g} and {scale[1]:g}: add a column with your own prompt."
            )
        dataset = dataset.add_column("prompt", [quality_messages() for _ in range(len(dataset))])
    if "image_id" not in dataset.column_names:
        warnings.warn(
            f"{path} has no `image_id` column: each row is treated as a separate image, named by its number."
        )
        dataset = dataset.add_column("image_id", [f"row-{i}" for i in range(len(dataset))])
    return dataset


def check_rows(dataset: Dataset, *, score_min: float, score_max: float) -> None:
    """
    Check columns and values of prepared data without decoding an image; see [`check_pair`] for decoded ones.

    Args:
        dataset (`Dataset`):
            Rows with `prompt`, `mos`, `image_id`, one of `image` and `images`, and optionally `degraded_image` or
            `degraded_images`, `None` (or an empty list) in a row without a degraded view.
        score_min (`float`), score_max (`float`):
            Range of `mos`.

    Raises:
        `ValueError`: A column or value is wrong; the message names column and row.
    """
    plural = _check_columns(dataset)
    if len(dataset) == 0:
        raise ValueError("The dataset has no rows.")
    columns = [c for c in ("mos", "prompt", "image_id", plural, f"degraded_{plural}") if c in dataset.column_names]
    number = 0
    # Arrow instead of Python: embedded images are neither decoded nor copied.
    for table in dataset.select_columns(columns).with_format("arrow").iter(batch_size=1000):
        plain = table.select(["mos", "prompt", "image_id"]).to_pylist()
        for offset, row in enumerate(plain):
            where = f"Row {number + offset}"
            if not isinstance(row["mos"], int | float) or not score_min <= row["mos"] <= score_max:  # NaN too
                raise ValueError(
                    f"{where}, column `mos`: expected a number in [{score_min}, {score_max}], got {row['mos']!r}. "
                    "Bring scores to that scale first; they are never clamped."
                )
            for column in ("prompt", "image_id"):
                if row[column] is None or row[column] == "":
                    raise ValueError(f"{where}, column `{column}`: there is no value.")
            images, views = (_presence(table, f"{kind}{plural}", offset) for kind in ("", "degraded_"))
            if not images or not all(images):
                raise ValueError(f"{where}, column `{plural}`: an image is missing.")
            if plural == "images" and views and (len(views) != len(images) or not all(views)):
                raise ValueError(
                    f"{where}, column `degraded_images`: expected a view of each of the {len(images)} images, or None "
                    f"for the row, got {sum(views)} in {len(views)} places."
                )
        number += len(plain)


def check_pair(original: Image.Image, degraded: Image.Image | None, where: str) -> None:
    """
    Raise `ValueError` if a degraded image has another size than its original: both share one grid of image tokens.

    `None`, a row without a degraded view, is accepted. `where` is the row in the message, such as `"row 12 (a.jpg)"`.
    """
    if degraded is not None and degraded.size != original.size:
        raise ValueError(
            f"{where}: the image is {original.width} x {original.height} and its degraded view {degraded.width} x "
            f"{degraded.height}; both need the same size (mind EXIF orientation), so make the view again."
        )


def read_folder(path: Path) -> Dataset | DatasetDict:
    """Read all splits of a folder as [`load_folder`]; raise `ValueError` if it holds nothing readable."""
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return load_from_disk(str(path))
    tables = [file for file in sorted(path.iterdir()) if file.suffix in _TABLES and file.stem != "metadata"]
    builders = {_TABLES[file.suffix] for file in tables}
    if len(builders) > 1:
        raise ValueError(f"{path} mixes formats ({', '.join(file.name for file in tables)}): keep tables of one.")
    splits: dict[str, list[str]] = {}
    for file in tables:
        name = re.sub(r"-[0-9]+-of-[0-9]+$", "", file.stem)  # shards of one split
        splits.setdefault(re.sub(r"\W", "_", name), []).append(str(file.absolute()))
    try:
        # With a folder of images beside the tables `load_dataset` would take the images and ignore the tables.
        return load_dataset(builders.pop(), data_files=splits) if tables else load_dataset(str(path.absolute()))
    except Exception as error:  # `datasets` and pyarrow raise many kinds, without naming the folder
        raise ValueError(
            f"{path} can't be read as a dataset ({error}): expected what `save_to_disk` writes, or Parquet, CSV or "
            "JSON files with the same columns."
        ) from error


def _one_split(data: Dataset | DatasetDict, split: str | None, path: Path) -> Dataset:
    if isinstance(data, Dataset):
        if split is not None:
            raise ValueError(f"{path} holds one dataset without splits; don't name the split {split!r}.")
        return data
    known = ", ".join(data)
    if split is None and len(data) > 1:
        raise ValueError(f"{path} has the splits {known}: name one.")
    if split is not None and split not in data:
        raise ValueError(f"{path} has no split {split!r}; its splits are {known}.")
    return data[split or next(iter(data))]


def _with_images(dataset: Dataset, folder: Path) -> Dataset:
    """Make images of the paths in text columns, as CSV and JSON files have them."""
    for column in set(IMAGE_COLUMNS) & set(dataset.column_names):
        feature = dataset.features[column]
        inner = getattr(feature, "feature", feature)
        if inner not in _TEXTS:
            continue
        rows = [_absolute(value, folder) for value in dataset[column]]
        paths = [path for row in rows for path in (row if isinstance(row, list) else [row]) if path]
        missing = [path for path in paths if not os.path.isfile(path)]
        if missing:
            few = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
            raise FileNotFoundError(
                f"{folder}, column `{column}`: {len(missing)} of {len(paths)} files are missing ({few})."
            )
        text = Value("string") if inner is feature else List(Value("string"))
        dataset = dataset.remove_columns(column).add_column(column, rows, feature=text)
    return dataset


def _absolute(value: str | list | None, folder: Path) -> str | list | None:
    if isinstance(value, list):
        return [_absolute(item, folder) for item in value]
    return os.path.abspath(folder / value) if value else None


def _check_columns(dataset: Dataset) -> str:
    """Check names and features of the columns and return the one with the images."""
    names = set(dataset.column_names)
    found = f"found {', '.join(sorted(names)) or 'none'}"
    if ("image" in names) == ("images" in names):
        raise ValueError(f"Expected either an `image` or an `images` column and not both, {found}.")
    missing = [column for column in ("prompt", "mos", "image_id") if column not in names]
    if missing:
        raise ValueError(f"Expected the columns {', '.join(missing)}, {found}.")
    other = "degraded_images" if "image" in names else "degraded_image"
    if other in names:
        raise ValueError(f"`{other}` does not match the image column: both must be singular or plural, {found}.")
    for column in set(IMAGE_COLUMNS) & names:
        feature = dataset.features[column]
        inner = getattr(feature, "feature", None) if column.endswith("s") else feature
        if not isinstance(inner, ImageFeature) and feature != Value("null"):
            wanted = "List(Image())" if column.endswith("s") else "Image()"
            raise ValueError(f"Column `{column}`: expected the feature {wanted}, got {feature}; cast it.")
    return "image" if "image" in names else "images"


def _presence(table: pa.Table, column: str, row: int) -> list[bool]:
    """Which images of a cell exist; empty for a missing column, `None` or an empty list."""
    if column not in table.column_names:
        return []
    value = table.column(column)[row]
    if not value.is_valid:
        return []
    is_list = isinstance(value, pa.ListScalar | pa.LargeListScalar | pa.FixedSizeListScalar)
    return [item.is_valid for item in value.values] if is_list else [True]
