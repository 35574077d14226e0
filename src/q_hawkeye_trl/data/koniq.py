"""
KonIQ-10k from its official files, checked before the first image is decoded.

Source: http://database.mmsp-kn.de/koniq-10k-database.html. Of the two label files, the one with the official split is
preferred; both give the same MOS.
"""

import math
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset, Image

from ..text import quality_messages
from .image_columns import with_uniform_images
from .labels import FileIndex, LabelRow, LabelSet, image_folder, plain_name, read_csv
from .scales import koniq_mos, mean_opinion, spread_factor
from .splits import SPLITS as _DRAWN
from .splits import draw_splits, image_key, split_name

SETS_FILE = "koniq10k_distributions_sets.csv"
"""Label file with the official split: c1 to c5 are shares, MOS is the column of 0 to 100."""
SCORES_FILE = "koniq10k_scores_and_distributions.csv"
"""Label file without a split: c1 to c5 are counts, MOS is the mean answer, MOS_zscore the column of 0 to 100."""
SPLITS = ("training", "validation", "test")
RESOLUTIONS = ("1024x768", "512x384")

_ANSWERS = ["c1", "c2", "c3", "c4", "c5"]
_COLUMNS = {
    SETS_FILE: ["image_name", *_ANSWERS, "c_total", "MOS", "SD", "set"],
    SCORES_FILE: ["image_name", *_ANSWERS, "c_total", "MOS", "SD", "MOS_zscore"],
}
_RANGES = {**dict.fromkeys(_ANSWERS, (0, math.inf)), "c_total": (1, math.inf), "SD": (0, 4), "MOS_zscore": (0, 100)}
_ENDS = "with min = {low:.6g} and max = {high:.6g} over the whole set, test images included"
_RULES = {
    "deqa": f"1 + 4 (r - min) / (max - min) of the mean answer r (DeQA-Score's rule), {_ENDS}",
    "raw": "the mean answer as it is",
    "zscore-minmax": f"1 + 4 (z - min) / (max - min) of the column of 0 to 100 (VisualQuality-R1's rule), {_ENDS}",
    "zscore": "1 + 4 z / 100 of the column of 0 to 100",
}


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
    Load one split of KonIQ-10k from a folder of the official layout: `1024x768/` or `512x384/` with the images, and
    `koniq10k_distributions_sets.csv` or `koniq10k_scores_and_distributions.csv`.

    Args:
        data_dir (`str` or `os.PathLike`):
            Folder of the set.
        split (`str`, *optional*, defaults to `"training"`):
            `"training"`, `"validation"` or `"test"`.
        scale (`str`, *optional*, defaults to `"deqa"`):
            Rule of the MOS, see [`~data.scales.koniq_mos`]. Minimum and maximum are those of the whole file.
        resolution (`str`, *optional*):
            `"1024x768"` or `"512x384"`. By default the first of them that exists.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the split drawn if only the label file without the official split exists. `q-hawkeye prepare
            koniq10k` draws the same split, except that it also keeps images with the same pixels together.
        allow_missing (`int`, *optional*, defaults to `0`):
            Maximum number of missing images of the split; they are dropped with a warning.

    Returns:
        `Dataset`: One row an image, with the columns

        - `prompt`: conversation that asks for the quality.
        - `image`: upright RGB, decoded on access from its path.
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
    labels = read_koniq10k(Path(data_dir), scale=scale, resolution=resolution)
    splits = [row.split for row in labels.rows]
    if splits[0] is None:
        warnings.warn(f"{SCORES_FILE} has no split: drawing one with seed {seed}, which is not the official one.")
        drawn = draw_splits([image_key(row.image_id) for row in labels.rows], seed=seed)
        splits = [_DRAWN[drawn[image_key(row.image_id)]] for row in labels.rows]
    chosen = [i for i, name in enumerate(splits) if name == split_name(split, "split")]
    kept = [i for i in chosen if os.path.isfile(labels.rows[i].image)]  # type: ignore[arg-type]
    _check_missing(labels, sorted(set(chosen) - set(kept)), len(chosen), allow_missing)
    rows = [{"prompt": quality_messages(), "image": labels.rows[i].image, **labels.columns(i)} for i in kept]
    return with_uniform_images(Dataset.from_list(rows).cast_column("image", Image()))


def _check_missing(labels: LabelSet, missing: list[int], count: int, allowed: int) -> None:
    few = ", ".join(labels.rows[i].image_id for i in missing[:5]) + (", …" if len(missing) > 5 else "")
    if len(missing) > allowed:
        raise FileNotFoundError(
            f"{labels.folder}: {len(missing)} of the split's {count} images are missing ({few}); unpack the set "
            f"again, or drop them by allow_missing={len(missing)}."
        )
    if len(missing) == count:
        raise ValueError(f"{labels.folder}: the split has no images.")
    if missing:
        warnings.warn(f"{labels.folder}: {len(missing)} of the split's {count} images are missing ({few}); dropped.")


def read_koniq10k(
    root: Path, *, scale: str | None = None, images: str | None = None, resolution: str | None = None
) -> LabelSet:
    """
    Read the labels of KonIQ-10k in its official layout, see [`load_koniq`].

    Args:
        root (`Path`):
            Folder of the set.
        scale (`str`, *optional*):
            One of [`~data.scales.KONIQ_SCALES`], by default `"deqa"`.
        images (`str`, *optional*):
            Image folder instead of the official ones.
        resolution (`str`, *optional*):
            `"1024x768"` or `"512x384"`, by default the first that exists.

    Returns:
        [`~data.labels.LabelSet`]

    Raises:
        `FileNotFoundError`: A folder or the label file is missing.
        `ValueError`: Unknown option, or a label file that is not as published; the message names the row.
    """
    if resolution not in (None, *RESOLUTIONS):
        raise ValueError(f"Unknown resolution {resolution!r} of KonIQ-10k; choose one of {', '.join(RESOLUTIONS)}.")
    folder = image_folder(root, images, [resolution] if resolution else RESOLUTIONS, "KonIQ-10k")
    path, scale = _label_file(root), scale or "deqa"
    table = read_koniq_labels(path)
    mean = mean_opinion(table[_ANSWERS].to_numpy())
    mos, source = koniq_mos(mean, table["zscore"].to_numpy(), scale)
    index = FileIndex([folder])
    rows = [
        LabelRow(row.name, index.path(row.name), row.where, float(score), row.std, row.split)
        for row, score in zip(table.itertuples(index=False), source, strict=True)
    ]
    has_split, notes = path.name == SETS_FILE, []
    if not has_split:
        notes.append(f"{path.name} has no split: the drawn one is not the official one, which {SETS_FILE} has.")
    if scale.startswith("zscore"):
        notes.append("The rule is not linear in the mean answer: mos_std is scaled by the ratio of spreads.")
    return LabelSet(
        "koniq10k", rows, mos, table["std"].to_numpy() * spread_factor(mos, mean), scale, "higher",
        scores="mean answer of 1 to 5, from c1 to c5" if scale in ("deqa", "raw") else "z-scored MOS of 0 to 100",
        rule=_RULES[scale].format(low=source.min(), high=source.max()), folder=folder, files=[path], ends=(1, 5),
        splits="official" if has_split else "by image", notes=notes,
    )  # fmt: skip


def read_koniq_labels(path: str | os.PathLike) -> pd.DataFrame:
    """
    Read and check one of the two official label files, which are recognised by name.

    Returns one row an image in the file's order: `where`, `name`, `c1` to `c5` (shares that sum to 1), `zscore` in
    [0, 100], `std` of the answers on their scale of 1 to 5, and `split` (`None` in the file without splits). Raises
    `ValueError` for wrong columns, a value that is missing, not finite or out of range, a repeated row, or no row.
    """
    path = Path(path)
    if path.name not in _COLUMNS:
        raise ValueError(f"{path}: expected a file named {' or '.join(_COLUMNS)}, whose columns differ.")
    has_split = path.name == SETS_FILE
    read = [{**row, "where": where} for where, row in read_csv(path, _COLUMNS[path.name], "KonIQ-10k")]
    if not read:
        raise ValueError(f"{path}: there are no rows below the header; fetch the file again.")
    raw = pd.DataFrame(read, dtype=object)
    names = [plain_name(row["image_name"], f"{row['where']}: `image_name`") for row in read]
    raw["where"] = raw["where"] + [f" ({name})" for name in names]
    repeated = pd.Series(names, dtype=object).duplicated()
    _check(raw, repeated, lambda i: f"the image is also in {raw['where'][names.index(names[i])]}; keep one row")
    ranges = {**_RANGES, "MOS": (0, 100) if has_split else (1, 5)}
    values = pd.DataFrame({column: _numbers(raw, column, *ranges[column]) for column in ranges if column in raw})
    answers, total = values[_ANSWERS], values[_ANSWERS].sum(axis=1)
    is_sum = ((total - 1).abs() <= 1e-4) | ((total - values["c_total"]).abs() <= 1e-4)  # shares, or counts
    counted = values["c_total"]
    _check(raw, ~is_sum, lambda i: f"c1 to c5 sum to {total[i]:g}, expected 1 (shares) or c_total = {counted[i]:g}")
    shares = answers.div(total, axis=0)
    mean = shares @ np.arange(1, 6)
    variance = shares @ np.arange(1, 6) ** 2 - mean**2
    if not has_split:
        off = (values["MOS"] - mean).abs() > 0.05
        _check(raw, off, lambda i: f"`MOS` is {values['MOS'][i]}, but c1 to c5 average to {mean[i]:.4f}")
    off_std, off_variance = ((measure - values["SD"]).abs() for measure in (np.sqrt(variance.clip(lower=0)), variance))
    wrong = (off_std > 0.05) & (off_variance < 0.05)
    _check(raw, wrong, lambda _: f"`SD` is the variance of c1 to c5, not their deviation, in {wrong.sum()} rows")
    splits = pd.Series([None] * len(raw), dtype=object)
    if has_split:
        known = ", ".join(SPLITS)
        _check(raw, ~raw["set"].isin(SPLITS), lambda i: f"`set` must be one of {known}, got {raw['set'][i]!r}")
        splits = raw["set"].map(lambda name: split_name(name, str(path)))
    zscore = values["MOS" if has_split else "MOS_zscore"]
    return shares.assign(where=raw["where"], name=names, zscore=zscore, std=values["SD"], split=splits)


def _numbers(raw: pd.DataFrame, column: str, low: float, high: float) -> pd.Series:
    values = pd.to_numeric(raw[column], errors="coerce").astype(float)
    wrong = ~values.between(low, high) | ~np.isfinite(values)
    _check(raw, wrong, lambda i: f"`{column}` must be a number in [{low}, {high}], got {raw[column][i]!r}")
    return values


def _check(raw: pd.DataFrame, wrong: pd.Series, message: Callable[[int], str]) -> None:
    if wrong.any():
        first = int(wrong.to_numpy().argmax())
        raise ValueError(f"{raw['where'][first]}: {message(first)}.")


def _label_file(data_dir: Path) -> Path:
    for name in (SETS_FILE, SCORES_FILE):
        if (data_dir / name).is_file():
            return data_dir / name
    found = ", ".join(sorted(file.name for file in data_dir.glob("*.csv"))) or "none"
    raise FileNotFoundError(f"{data_dir}: expected {SETS_FILE} or {SCORES_FILE}; its csv files are: {found}.")
