"""
KonIQ-10k from its official files, checked before the first image is decoded.

Source: http://database.mmsp-kn.de/koniq-10k-database.html. Of the two label files, the one with the official split is
preferred; both give the same MOS.
"""

import csv
import math
import os
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from datasets import Dataset, Image

from ..text import quality_messages
from .image_columns import with_uniform_images
from .scales import koniq_mos, mean_opinion, spread_factor
from .splits import draw_splits, image_key

SETS_FILE = "koniq10k_distributions_sets.csv"
"""Label file with the official split: c1 to c5 are shares, MOS is the column of 0 to 100."""
SCORES_FILE = "koniq10k_scores_and_distributions.csv"
"""Label file without a split: c1 to c5 are counts, MOS is the mean answer, MOS_zscore the column of 0 to 100."""
SPLITS = ("training", "validation", "test")
RESOLUTIONS = ("1024x768", "512x384")

_COLUMNS = {
    SETS_FILE: ("image_name", "c1", "c2", "c3", "c4", "c5", "c_total", "MOS", "SD", "set"),
    SCORES_FILE: ("image_name", "c1", "c2", "c3", "c4", "c5", "c_total", "MOS", "SD", "MOS_zscore"),
}


class KoniqLabel(NamedTuple):
    """
    One row of a label file.

    Args:
        name (`str`):
            File name of the image.
        shares (`tuple[float, ...]`):
            Shares of the answers 1 to 5, summing to 1.
        zscore (`float`):
            Score in [0, 100].
        std (`float`):
            Standard deviation of the answers, on their scale of 1 to 5.
        split (`str` or `None`):
            One of `SPLITS`, `None` where the file has no split.
    """

    name: str
    shares: tuple[float, ...]
    zscore: float
    std: float
    split: str | None


def load_koniq(
    data_dir: str | os.PathLike,
    split: str = "training",
    *,
    scale: str = "deqa",
    resolution: str | None = None,
    seed: int = 0,
    allow_missing: int = 0,
) -> Dataset:
    """
    Loads one split of KonIQ-10k from a folder of the official layout: `1024x768/` or `512x384/` with the images, and
    `koniq10k_distributions_sets.csv` or `koniq10k_scores_and_distributions.csv`.

    Args:
        data_dir (`str` or `os.PathLike`):
            Folder of the set.
        split (`str`, *optional*, defaults to `"training"`):
            `"training"`, `"validation"` or `"test"`.
        scale (`str`, *optional*, defaults to `"deqa"`):
            Rule of the MOS, see [`~data.scales.koniq_mos`]. Minima and maxima are those of the whole file.
        resolution (`str`, *optional*):
            `"1024x768"` or `"512x384"`. By default the first of them that exists.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the random split that stands in for the official one where only the file without it is there. It
            is the split that `q-hawkeye prepare koniq10k` draws, which also keeps images of the same pixels together.
        allow_missing (`int`, *optional*, defaults to `0`):
            Number of the split's images that may be missing; they are left out with a warning.

    Returns:
        `Dataset`: One row an image, with the columns

        - `prompt`: conversation that asks for the quality.
        - `image`: decoded on access from its path.
        - `image_id`: file name. `dataset`: `"koniq10k"`.
        - `mos`: MOS in [1, 5], higher is better.
        - `mos_raw`: value that the rule started from: the mean answer in [1, 5] for `deqa` and `raw`, the column of
          0 to 100 for the others. `mos_direction`: `"higher"`, the better end of `mos_raw`. `mos_scale`: the rule.
        - `mos_std`: standard deviation of the answers in points of `mos`, see [`~data.scales.spread_factor`].
          `mos_std_raw`: the same on the answers' own scale of 1 to 5, as published.

    Raises:
        `FileNotFoundError`: A folder, the label file or images are missing.
        `ValueError`: Unknown option, or a label file that is not as published; the message names the row.
    """
    if split not in SPLITS:
        raise ValueError(f"Unknown split {split!r} of KonIQ-10k; choose one of {', '.join(SPLITS)}.")
    images = koniq_image_folder(Path(data_dir), resolution)
    labels = read_koniq_labels(koniq_label_file(Path(data_dir)))
    mean, zscore = mean_opinion(np.array([label.shares for label in labels])), [label.zscore for label in labels]
    mos, source = koniq_mos(mean, np.array(zscore), scale)
    factor = spread_factor(mos, mean)
    splits = _splits(labels, seed)
    rows = _present([i for i in range(len(labels)) if splits[i] == split], labels, images, allow_missing)
    columns = {
        "prompt": [quality_messages() for _ in rows],
        "image": [os.path.abspath(images / labels[i].name) for i in rows],
        "image_id": [labels[i].name for i in rows],
        "dataset": ["koniq10k"] * len(rows),
        "mos": [float(mos[i]) for i in rows],
        "mos_raw": [float(source[i]) for i in rows],
        "mos_direction": ["higher"] * len(rows),
        "mos_scale": [scale] * len(rows),
        "mos_std": [labels[i].std * factor for i in rows],
        "mos_std_raw": [labels[i].std for i in rows],
    }
    return with_uniform_images(Dataset.from_dict(columns).cast_column("image", Image()))


def read_koniq_labels(path: str | os.PathLike) -> list[KoniqLabel]:
    """
    Reads and checks one of KonIQ-10k's label files.

    Args:
        path (`str` or `os.PathLike`):
            File with one of the two official names.

    Returns:
        `list[KoniqLabel]`: Rows in the file's order.

    Raises:
        `ValueError`: Wrong columns, a value that is missing, not finite or out of range, a duplicate or no row.
    """
    path = Path(path)
    if path.name not in _COLUMNS:
        raise ValueError(f"{path}: expected a file named {' or '.join(_COLUMNS)}, which tells what its columns mean.")
    try:
        return _read_rows(path)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}): fetch it again.") from error
    except csv.Error as error:
        raise ValueError(f"{path} can't be read as CSV ({error}): fetch it again.") from error


def _read_rows(path: Path) -> list[KoniqLabel]:
    labels: list[KoniqLabel] = []
    first: dict[str, int] = {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        expected, found = _COLUMNS[path.name], reader.fieldnames or []
        if not set(expected) <= set(found):
            raise ValueError(
                f"{path}: expected the columns {', '.join(expected)}, found {', '.join(found) or 'none'}."
            )
        for row in reader:
            where = f"{path}, line {reader.line_num} ({row['image_name']})"
            labels.append(_label(row, where))
            earlier = first.setdefault(labels[-1].name, reader.line_num)
            if earlier != reader.line_num:
                raise ValueError(f"{where}: this image already stands in line {earlier}; keep one of them.")
    if not labels:
        raise ValueError(f"{path}: there are no rows below the header; fetch the file again.")
    return labels


def _label(row: dict, where: str) -> KoniqLabel:
    if not row["image_name"] or row["image_name"] != os.path.basename(row["image_name"]):
        raise ValueError(f"{where}: `image_name` must be a plain file name, got {row['image_name']!r}.")
    shares = _shares(row, where)
    std = _number(row, "SD", 0, 4, where)
    if "MOS_zscore" not in row:
        split = row["set"]
        if split not in SPLITS:
            raise ValueError(f"{where}: `set` must be one of {', '.join(SPLITS)}, got {split!r}.")
        return KoniqLabel(row["image_name"], shares, _number(row, "MOS", 0, 100, where), std, split)
    mos, mean = _number(row, "MOS", 1, 5, where), sum(k * share for k, share in enumerate(shares, 1))
    if abs(mos - mean) > 0.05:
        raise ValueError(f"{where}: `MOS` is {mos} while c1 to c5 average to {mean:.4f}: they are not of one image.")
    return KoniqLabel(row["image_name"], shares, _number(row, "MOS_zscore", 0, 100, where), std, None)


def _shares(row: dict, where: str) -> tuple[float, ...]:
    counts = [_number(row, f"c{k}", 0, math.inf, where) for k in range(1, 6)]
    total, answers = sum(counts), _number(row, "c_total", 1, math.inf, where)
    if abs(total - 1) > 1e-4 and abs(total - answers) > 1e-4:  # shares in one of the files, counts in the other
        raise ValueError(f"{where}: c1 to c5 sum to {total:g}, expected 1 (shares) or c_total = {answers:g} (counts).")
    return tuple(count / total for count in counts)


def _number(row: dict, column: str, low: float, high: float, where: str) -> float:
    try:
        value = float(row[column])
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value) or not low <= value <= high:
        raise ValueError(f"{where}: `{column}` must be a number in [{low}, {high}], got {row[column]!r}.")
    return value


def koniq_label_file(data_dir: Path) -> Path:
    """
    Finds the label file in KonIQ-10k's folder, the one with the official split first.

    Raises:
        `FileNotFoundError`: None of the two is there; the message lists what is.
    """
    for name in (SETS_FILE, SCORES_FILE):
        if (data_dir / name).is_file():
            return data_dir / name
    found = ", ".join(sorted(file.name for file in data_dir.glob("*.csv"))) or "none"
    raise FileNotFoundError(f"{data_dir}: expected {SETS_FILE} or {SCORES_FILE}, found these csv files: {found}.")


def koniq_image_folder(data_dir: Path, resolution: str | None) -> Path:
    """
    Finds the images in KonIQ-10k's folder, those of `resolution` or else the largest.

    Raises:
        `FileNotFoundError`: There is no such folder.
        `ValueError`: Unknown resolution.
    """
    if resolution is not None and resolution not in RESOLUTIONS:
        raise ValueError(f"Unknown resolution {resolution!r} of KonIQ-10k; choose one of {', '.join(RESOLUTIONS)}.")
    if not data_dir.is_dir():
        raise FileNotFoundError(f"There is no folder {data_dir}: pass the folder that holds KonIQ-10k's label file.")
    wanted = [resolution] if resolution else RESOLUTIONS
    for name in wanted:
        if (data_dir / name).is_dir():
            return data_dir / name
    raise FileNotFoundError(f"{data_dir}: expected an image folder {' or '.join(wanted)}; unpack the set's zip there.")


def _splits(labels: list[KoniqLabel], seed: int) -> list[str | None]:
    if labels[0].split is not None:
        return [label.split for label in labels]
    warnings.warn(f"{SCORES_FILE} has no split: drawing one with seed {seed}, which is not the official one.")
    keys = [image_key(label.name) for label in labels]
    drawn = draw_splits(keys, seed=seed)
    return [SPLITS[drawn[key]] for key in keys]


def _present(rows: list[int], labels: list[KoniqLabel], images: Path, allow_missing: int) -> list[int]:
    names = set(os.listdir(images))
    missing = [labels[i].name for i in rows if labels[i].name not in names]
    few = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
    if len(missing) > allow_missing:
        raise FileNotFoundError(
            f"{images}: {len(missing)} of the split's {len(rows)} images are missing ({few}); unpack the set again, "
            f"or go on without them by allow_missing={len(missing)}."
        )
    if missing:
        warnings.warn(f"{images}: going on without {len(missing)} of the split's {len(rows)} images ({few}).")
    kept = [i for i in rows if labels[i].name in names]
    if not kept:
        raise ValueError(f"{images}: no image is left in this split.")
    return kept
