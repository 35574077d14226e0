"""Sets of distorted references: KADID-10k, PIPAL, CSIQ, TID2013. They are split by reference, never by image."""

import os
import re
from pathlib import Path

import numpy as np

from ..scales import spread_reading
from .files import cell_text, check_file, plain_name, read_csv, read_xlsx
from .labels import FileIndex, LabelRow, LabelSet, image_folder, label_set, parse_number, parse_spread

KADID_RATERS = 30
"""Answers an image in KADID-10k: its means are thirtieths."""
SPREADS = ("auto", "std", "variance")

# What CSIQ's sheet calls a distortion: its folder and the middle of its file names.
_CSIQ_KINDS = {
    "noise": ("awgn", "AWGN"),
    "awgn": ("awgn", "AWGN"),
    "blur": ("blur", "BLUR"),
    "contrast": ("contrast", "contrast"),
    "fnoise": ("fnoise", "fnoise"),
    "jpeg": ("jpeg", "JPEG"),
    "jpeg 2000": ("jpeg2000", "jpeg2000"),
    "jpeg2000": ("jpeg2000", "jpeg2000"),
}


def read_kadid10k(
    root: Path, *, scale: str | None = None, images: str | None = None, spread: str = "auto"
) -> LabelSet:
    """
    Reads KADID-10k: `images/` and `dmos.csv`, whose "dmos" of 1 to 5 is a MOS: higher is better.

    Args:
        root (`Path`):
            Folder of the set.
        scale (`str`, *optional*):
            One of [`~data.scales.SCALES`], by default `"deqa"`. The same holds for every reader here.
        images (`str`, *optional*):
            Image folder in place of the official one.
        spread (`str`, *optional*, defaults to `"auto"`):
            What the column `var` holds: `"variance"`, `"std"`, or `"auto"`, which lets the numbers tell by
            [`~data.scales.spread_reading`] and believes the column's name where they don't.

    Returns:
        [`LabelSet`]

    Raises:
        `FileNotFoundError`: A folder or label file is missing.
        `ValueError`: Unknown option, or a label file that is not as published; the message names the row.
    """
    if spread not in SPREADS:
        raise ValueError(f"Unknown spread {spread!r} of KADID-10k; choose one of {', '.join(SPREADS)}.")
    folder = image_folder(root, images, ["images"], "KADID-10k")
    index, path = FileIndex([folder]), root / "dmos.csv"
    rows, levels = [], []
    for where, row in read_csv(path, ["dist_img", "ref_img", "dmos", "var"], "KADID-10k"):
        name, reference = plain_name(row["dist_img"], where), plain_name(row["ref_img"], where)
        value = parse_spread(row["var"], f"{where}: `var`")
        rows.append(LabelRow(name, index.path(name), where, parse_number(row["dmos"]), std=value, reference=reference))
        levels.append(_level(name, r"_(\d+)\.\w+$"))
    rows, note = _kadid_stds(rows, spread)
    return label_set(
        "kadid10k", rows, scale=scale, ends=(1, 5), scores='"dmos" of 1 to 5', folder=folder, files=[path],
        splits="by reference", references=_references(rows, index), levels=np.array(levels),
        notes=[note, 'The column is named "dmos", but higher is better.'],
    )  # fmt: skip


def _kadid_stds(rows: list[LabelRow], spread: str) -> tuple[list[LabelRow], str]:
    if spread == "auto":
        pairs = [(row.score, row.std) for row in rows if row.score is not None and row.std is not None]
        means, values = np.array(pairs, dtype=float).reshape(-1, 2).T
        as_std, as_variance = spread_reading(means, values, KADID_RATERS)
        spread = "std" if as_std >= 0.9 and as_variance <= 0.5 else "variance"
        why = (
            f"{as_std:.1%} of the values are standard deviations of {KADID_RATERS} whole-number answers, "
            f"{as_variance:.1%} are variances"
        )
    else:
        why = "as asked for"
    if spread == "variance":
        rows = [row._replace(std=None if row.std is None else row.std**0.5) for row in rows]
        return rows, f"The column `var` is read as a variance, of which mos_std is the root ({why})."
    return rows, f"The column `var` is read as a standard deviation, whatever its name ({why})."


def read_pipal(root: Path, *, scale: str | None = None, images: str | None = None) -> LabelSet:
    """
    Reads PIPAL's training part: `Train_Label/*.txt` with lines of name and Elo rating, the distorted images in folders
    named `Train_Dist…`, `Dist…` or `Distortion_…`, at the root or one folder deeper; arguments and errors as in
    [`read_kadid10k`]. The Elo rating has no fixed ends, so the scale `linear` is refused.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"There is no folder {root}: --root is the folder that holds PIPAL.")
    folders = [image_folder(root, images, (), "PIPAL")] if images else _folders(root, ("train_dist", "dist"))
    if not folders:
        raise FileNotFoundError(f"{root}: expected image folders like Train_Dist or Distortion_1; or use --images.")
    files = sorted((root / "Train_Label").glob("*.txt"))
    if not files:
        raise FileNotFoundError(f"{root / 'Train_Label'}: expected PIPAL's label files, A0001.txt and so on.")
    index, rows = FileIndex(folders), []
    for path in files:
        for where, line in _lines(path):
            name, separator, score = line.rpartition(",")
            if not separator:
                raise ValueError(f"{where}: expected `name,rating`, got {line!r}.")
            name = plain_name(name, where)
            reference = f"{name.split('_')[0]}.bmp"
            rows.append(LabelRow(name, index.path(name), where, parse_number(score), reference=reference))
    folder = _common(root, folders[0])
    originals = _folders(root, ("train_ref", "ref"))
    return label_set(
        "pipal", rows, scale=scale, ends=None, scores="Elo rating, without fixed ends", folder=folder, files=files,
        splits="by reference", references=_references(rows, FileIndex(originals)) if originals else {},
        notes=["PIPAL has no standard deviations."],
    )  # fmt: skip


def read_csiq(root: Path, *, scale: str | None = None, images: str | None = None) -> LabelSet:
    """
    Reads CSIQ: `dst_imgs/`, `src_imgs/` and the sheet `all_by_image` of `csiq.DMOS.xlsx`, DMOS of 0 to 1 where lower
    is better; arguments and errors as in [`read_kadid10k`].
    """
    folder = image_folder(root, images, ["dst_imgs"], "CSIQ")
    path, indices = root / "csiq.DMOS.xlsx", {}
    rows, levels = [], []
    columns = ["image", "dst_type", "dst_lev", "dmos_std", "dmos"]
    for where, row in read_xlsx(path, columns, "CSIQ", sheet="all_by_image"):
        stem, level = plain_name(row["image"], where), cell_text(row["dst_lev"])
        kind = _CSIQ_KINDS.get(cell_text(row["dst_type"]).lower())
        if kind is None:
            raise ValueError(f"{where}: unknown `dst_type` {row['dst_type']!r}; known are {', '.join(_CSIQ_KINDS)}.")
        subfolder, middle = kind
        name = plain_name(f"{stem}.{middle}.{level}.png", where)
        if subfolder not in indices and (folder / subfolder).is_dir():
            indices[subfolder] = FileIndex([folder / subfolder])
        image = indices[subfolder].path(name) if subfolder in indices else os.path.join(folder, subfolder, name)
        score, std = parse_number(row["dmos"]), parse_spread(row["dmos_std"], f"{where}: `dmos_std`")
        rows.append(LabelRow(name, image, where, score, std, reference=f"{stem}.png"))
        levels.append(_level(level, r"^(\d+)$"))
    originals = root / "src_imgs"
    return label_set(
        "csiq", rows, scale=scale, ends=(0, 1), direction="lower", scores="DMOS of 0 to 1",
        folder=_common(root, folder), files=[path], splits="by reference", levels=np.array(levels),
        references=_references(rows, FileIndex([originals])) if originals.is_dir() else {},
    )  # fmt: skip


def read_tid2013(root: Path, *, scale: str | None = None, images: str | None = None) -> LabelSet:
    """
    Reads TID2013: `distorted_images/`, `reference_images/`, `mos_with_names.txt` and `mos_std.txt`, MOS of 0 to 9;
    arguments and errors as in [`read_kadid10k`].
    """
    folder = image_folder(root, images, ["distorted_images"], "TID2013")
    path, spreads = root / "mos_with_names.txt", root / "mos_std.txt"
    labels, files, stds = list(_lines(check_file(path, "TID2013"))), [path], None
    notes = ["mos_std.txt is missing, so there are no standard deviations."]
    if spreads.is_file():
        files.append(spreads)
        stds = [parse_spread(line, where) for where, line in _lines(spreads)]
        small = "TID2013's standard deviations are small: the error of the mean, not the spread of the opinions."
        notes = [small]
        if len(stds) != len(labels):
            raise ValueError(f"{spreads}: expected a number for each of the {len(labels)} images, got {len(stds)}.")
    index, rows, levels = FileIndex([folder]), [], []
    for number, (where, line) in enumerate(labels):
        score, _, name = line.partition(" ")
        name = plain_name(name, where)
        # The case varies in the file: I01_01_1.bmp, i01_01_2.bmp.
        reference = f"{name.split('_')[0].upper()}.BMP"
        std = stds[number] if stds else None
        rows.append(LabelRow(name, index.path(name), where, parse_number(score), std, reference=reference))
        levels.append(_level(name, r"_(\d+)\.\w+$"))
    originals = root / "reference_images"
    return label_set(
        "tid2013", rows, scale=scale, ends=(0, 9), scores="MOS of 0 to 9", folder=_common(root, folder), files=files,
        splits="by reference", levels=np.array(levels), notes=notes,
        references=_references(rows, FileIndex([originals])) if originals.is_dir() else {},
    )  # fmt: skip


def _references(rows: list[LabelRow], index: FileIndex) -> dict[str, str]:
    names = sorted({row.reference for row in rows if row.reference is not None})
    return {name: path for name in names if os.path.exists(path := index.path(name))}


def _level(name: str, pattern: str) -> float:
    found = re.search(pattern, name)
    return float(found.group(1)) if found else np.nan


def _common(root: Path, folder: Path) -> Path:
    """The folder that images and references must lie in: the set's, unless the images were named elsewhere."""
    root = Path(os.path.abspath(root))
    return root if folder.is_relative_to(root) else folder


def _folders(root: Path, prefixes: tuple[str, ...]) -> list[Path]:
    found = []
    for depth in ("*", "*/*"):
        found += [
            path for path in sorted(root.glob(depth)) if path.is_dir() and path.name.lower().startswith(prefixes)
        ]
    return [Path(os.path.abspath(path)) for path in found]


def _lines(path: Path):
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"{path}, line {number}", line.strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}): fetch it again.") from error
