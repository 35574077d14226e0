"""Readers of the IQA sets as they are released, one function a set; distorted references are split by reference."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .koniq import read_koniq10k
from .label_tables import read_deqa, read_table
from .labels import (
    FileIndex,
    LabelRow,
    LabelSet,
    cell_text,
    check_file,
    image_folder,
    label_set,
    parse_number,
    parse_spread,
    plain_name,
    read_csv,
    read_lines,
    read_mat,
    read_xlsx,
)
from .scales import spread_reading

SPAQ_FILE = "Annotations/MOS and Image attribute scores.xlsx"
KADID_RATERS = 30
"""Answers an image in KADID-10k: its means are thirtieths."""
SPREADS = ("auto", "std", "variance")

_PRACTICE_IMAGE = re.compile(r"t[1-7]\.\w+", re.IGNORECASE)  # LIVE Challenge's first seven, on which raters practised
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


def read_spaq(root: Path, *, scale: str | None = None, images: str | None = None) -> LabelSet:
    """
    Read SPAQ: `TestImage/` and `Annotations/MOS and Image attribute scores.xlsx`, MOS of 0 to 100.

    Args:
        root (`Path`):
            Folder of the set.
        scale (`str`, *optional*):
            One of [`~data.scales.SCALES`], by default `"deqa"`.
        images (`str`, *optional*):
            Image folder instead of the official one.

    Returns:
        [`~data.labels.LabelSet`]

    Raises:
        `FileNotFoundError`: A folder or label file is missing.
        `ValueError`: Unknown option, or a label file that is not as published; the message names the row.
    """
    folder = image_folder(root, images, ["TestImage"], "SPAQ")
    index, path = FileIndex([folder]), root / SPAQ_FILE
    rows = []
    for where, row in read_xlsx(path, ["Image name", "MOS"], "SPAQ"):
        name = plain_name(row["Image name"], where)
        rows.append(LabelRow(name, index.path(name), where, parse_number(row["MOS"])))
    return label_set(
        "spaq", rows, scale=scale, ends=(0, 100), scores="MOS of 0 to 100", folder=folder, files=[path],
        notes=["SPAQ has no standard deviations and no official split."],
    )  # fmt: skip


def read_livec(
    root: Path, *, scale: str | None = None, images: str | None = None, keep_training_images: bool = False
) -> LabelSet:
    """
    Read LIVE In the Wild Image Quality Challenge: `Images/` and three files of `Data/`; see [`read_spaq`].

    With `keep_training_images` the first seven images, on which the raters practised, are kept; most papers drop them.
    """
    folder = image_folder(root, images, ["Images"], "LIVE Challenge")
    files = [root / "Data" / f"All{what}_release.mat" for what in ("Images", "MOS", "StdDev")]
    names, scores, stds = (read_mat(path, path.stem, "LIVE Challenge") for path in files)
    if not len(names) == len(scores) == len(stds):
        raise ValueError(
            f"{root / 'Data'}: the files have {len(names)} images, {len(scores)} scores and {len(stds)} standard "
            "deviations, expected the same number of each: fetch them again."
        )
    training = folder / "trainingImages"
    index = FileIndex([folder, training] if training.is_dir() else [folder])
    rows, practised = [], 0
    for number, (name, score, std) in enumerate(zip(names, scores, stds, strict=True), 1):
        where = f"{files[0]}, entry {number}"
        name = plain_name(name, where)
        if _PRACTICE_IMAGE.fullmatch(name):
            practised += 1
            if not keep_training_images:
                continue
        spread = parse_spread(std, f"{files[2]}, entry {number}")
        rows.append(LabelRow(name, index.path(name), where, parse_number(score), spread))
    dropped = f"The {practised} practice images (t1 to t7) are {'kept' if keep_training_images else 'dropped'}."
    return label_set(
        "livec", rows, scale=scale, ends=(0, 100), scores="MOS of 0 to 100", folder=folder, files=files,
        notes=[dropped, "LIVE Challenge has no official split."],
    )  # fmt: skip


def read_agiqa3k(
    root: Path, *, scale: str | None = None, images: str | None = None, target: str = "quality"
) -> LabelSet:
    """
    Read AGIQA-3K: images beside `data.csv`, scores of 0 to 5; see [`read_spaq`].

    `target` is `"quality"`, or `"alignment"` with the text that an image was generated from, which is another value of
    `dataset`. Images of one text stay in one split.
    """
    if target not in ("quality", "alignment"):
        raise ValueError(f"Unknown target {target!r} of AGIQA-3K; choose quality or alignment.")
    folder = image_folder(root, images, ["."], "AGIQA-3K")
    index, path = FileIndex([folder]), root / "data.csv"
    score, std = {"quality": ("mos_quality", "std_quality"), "alignment": ("mos_align", "std_align")}[target]
    rows = []
    for where, row in read_csv(path, ["name", "prompt", score, std], "AGIQA-3K"):
        name, spread = plain_name(row["name"], where), parse_spread(row[std], f"{where}: `{std}`")
        rows.append(LabelRow(name, index.path(name), where, parse_number(row[score]), spread, group=row["prompt"]))
    return label_set(
        "agiqa3k" if target == "quality" else "agiqa3k-alignment", rows, scale=scale, ends=(0, 5),
        scores=f"{score} of 0 to 5", folder=folder, files=[path], splits="by text prompt",
        notes=[f"The target is {target}; AGIQA-3K's two, quality and alignment, are not comparable."],
    )  # fmt: skip


def read_flive(root: Path, *, scale: str | None = None, images: str | None = None) -> LabelSet:
    """Read FLIVE (LIVE-FB): `database/` and `labels_image.csv`, MOS of 0 to 100, names with folders; [`read_spaq`]."""
    folder = image_folder(root, images, ["database"], "FLIVE")
    path = root / "labels_image.csv"
    rows = []
    for where, row in read_csv(path, ["name", "mos"], "FLIVE"):
        name = row["name"].strip()
        if not name or os.path.isabs(name):
            raise ValueError(f"{where}: expected a path inside {folder}, got {row['name']!r}.")
        rows.append(LabelRow(name, os.path.normpath(folder / name), where, parse_number(row["mos"])))
    return label_set(
        "flive", rows, scale=scale, ends=(0, 100), scores="MOS of 0 to 100", folder=folder, files=[path],
        notes=["labels_image.csv has no standard deviations and no split."],
    )  # fmt: skip


def read_kadid10k(
    root: Path, *, scale: str | None = None, images: str | None = None, spread: str = "auto"
) -> LabelSet:
    """
    Read KADID-10k: `images/` and `dmos.csv`, whose "dmos" of 1 to 5 is a MOS, higher is better; see [`read_spaq`].

    `spread` says what the column `var` holds: `"variance"`, `"std"`, or `"auto"`, which decides from the numbers by
    [`~data.scales.spread_reading`] and falls back to the column's name.
    """
    if spread not in SPREADS:
        raise ValueError(f"Unknown spread {spread!r} of KADID-10k; choose one of {', '.join(SPREADS)}.")
    folder = image_folder(root, images, ["images"], "KADID-10k")
    index, path = FileIndex([folder]), root / "dmos.csv"
    rows = []
    for where, row in read_csv(path, ["dist_img", "ref_img", "dmos", "var"], "KADID-10k"):
        name, reference = plain_name(row["dist_img"], where), plain_name(row["ref_img"], where)
        value = parse_spread(row["var"], f"{where}: `var`")
        rows.append(LabelRow(name, index.path(name), where, parse_number(row["dmos"]), std=value, reference=reference))
    rows, note = _kadid_stds(rows, spread)
    return label_set(
        "kadid10k", rows, scale=scale, ends=(1, 5), scores='"dmos" of 1 to 5', folder=folder, files=[path],
        splits="by reference", references=_references(rows, [folder]), levels=_levels(rows),
        notes=[note, 'The column is named "dmos", but higher is better.'],
    )  # fmt: skip


def _kadid_stds(rows: list[LabelRow], spread: str) -> tuple[list[LabelRow], str]:
    why = "as requested"
    if spread == "auto":
        pairs = [(row.score, row.std) for row in rows if row.score is not None and row.std is not None]
        means, values = np.array(pairs, dtype=float).reshape(-1, 2).T
        as_std, as_variance = spread_reading(means, values, KADID_RATERS)
        spread = "std" if as_std >= 0.9 and as_variance <= 0.5 else "variance"
        why = (
            f"{as_std:.1%} of the values are standard deviations of {KADID_RATERS} whole-number answers, "
            f"{as_variance:.1%} are variances"
        )
    if spread == "variance":
        rows = [row._replace(std=None if row.std is None else row.std**0.5) for row in rows]
        return rows, f"The column `var` is read as a variance; mos_std is its root ({why})."
    return rows, f"The column `var` is read as a standard deviation despite its name ({why})."


def read_pipal(root: Path, *, scale: str | None = None, images: str | None = None) -> LabelSet:
    """
    Read PIPAL's training part: `Train_Label/*.txt` with lines of name and Elo rating, and the distorted images in
    folders named `Train_Dist…`, `Dist…` or `Distortion_…`, at the root or one folder deeper; see [`read_spaq`].

    The Elo rating has no fixed ends, so the scale `linear` is refused.
    """
    folders = [] if images else _folders(root, ("train_dist", "dist"))
    folders = folders or [image_folder(root, images, ["Train_Dist", "Distortion_1"], "PIPAL")]
    files = sorted((root / "Train_Label").glob("*.txt"))
    if not files:
        raise FileNotFoundError(f"{root / 'Train_Label'}: expected PIPAL's label files, A0001.txt and so on.")
    index, rows = FileIndex(folders), []
    for where, line in (entry for path in files for entry in read_lines(path)):
        name, separator, score = line.rpartition(",")
        if not separator:
            raise ValueError(f"{where}: expected `name,rating`, got {line!r}.")
        name = plain_name(name, where)
        reference = f"{name.split('_')[0]}.bmp"
        rows.append(LabelRow(name, index.path(name), where, parse_number(score), reference=reference))
    return label_set(
        "pipal", rows, scale=scale, ends=None, scores="Elo rating, without fixed ends", files=files,
        folder=_common(root, folders[0]), splits="by reference", notes=["PIPAL has no standard deviations."],
        references=_references(rows, _folders(root, ("train_ref", "ref"))),
    )  # fmt: skip


def read_csiq(root: Path, *, scale: str | None = None, images: str | None = None) -> LabelSet:
    """
    Read CSIQ: `dst_imgs/`, `src_imgs/` and the sheet `all_by_image` of `csiq.DMOS.xlsx`, DMOS of 0 to 1 where lower is
    better; see [`read_spaq`].
    """
    folder = image_folder(root, images, ["dst_imgs"], "CSIQ")
    path, indices, rows = root / "csiq.DMOS.xlsx", {}, []
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
    return label_set(
        "csiq", rows, scale=scale, ends=(0, 1), direction="lower", scores="DMOS of 0 to 1",
        folder=_common(root, folder), files=[path], splits="by reference", levels=_levels(rows),
        references=_references(rows, [root / "src_imgs"]),
    )  # fmt: skip


def read_tid2013(root: Path, *, scale: str | None = None, images: str | None = None) -> LabelSet:
    """
    Read TID2013: `distorted_images/`, `reference_images/`, `mos_with_names.txt` and `mos_std.txt`, MOS of 0 to 9; see
    [`read_spaq`].
    """
    folder = image_folder(root, images, ["distorted_images"], "TID2013")
    path, spreads = root / "mos_with_names.txt", root / "mos_std.txt"
    labels, files = list(read_lines(check_file(path, "TID2013"))), [path]
    stds: list[float | None] = [None] * len(labels)
    note = "mos_std.txt is missing, so there are no standard deviations."
    if spreads.is_file():
        files.append(spreads)
        stds = [parse_spread(line, where) for where, line in read_lines(spreads)]
        note = "TID2013's standard deviations are small: the error of the mean, not the spread of the opinions."
        if len(stds) != len(labels):
            raise ValueError(f"{spreads}: expected a number for each of the {len(labels)} images, got {len(stds)}.")
    index, rows = FileIndex([folder]), []
    for (where, line), std in zip(labels, stds, strict=True):
        score, _, name = line.partition(" ")
        name = plain_name(name, where)
        reference = f"{name.split('_')[0].upper()}.BMP"  # the file writes both I01_01_1.bmp and i01_01_2.bmp
        rows.append(LabelRow(name, index.path(name), where, parse_number(score), std, reference=reference))
    return label_set(
        "tid2013", rows, scale=scale, ends=(0, 9), scores="MOS of 0 to 9", folder=_common(root, folder), files=files,
        splits="by reference", levels=_levels(rows), notes=[note],
        references=_references(rows, [root / "reference_images"]),
    )  # fmt: skip


def _references(rows: list[LabelRow], folders: list[Path]) -> dict[str, str]:
    """Return the paths of the references that exist, by name."""
    folders = [folder for folder in folders if folder.is_dir()]
    if not folders:
        return {}
    index, names = FileIndex(folders), sorted({row.reference for row in rows if row.reference is not None})
    return {name: path for name in names if os.path.exists(path := index.path(name))}


def _levels(rows: list[LabelRow]) -> np.ndarray:
    """Return the strength of each distortion `(N,)`, the last number of the file name, NaN where there is none."""
    found = [re.search(r"[_.](\d+)\.\w+$", row.image_id) for row in rows]
    return np.array([float(match[1]) if match else np.nan for match in found])


def _common(root: Path, folder: Path) -> Path:
    """The folder that must contain images and references: the set's, unless the images are elsewhere."""
    root = Path(os.path.abspath(root))
    return root if folder.is_relative_to(root) else folder


def _folders(root: Path, prefixes: tuple[str, ...]) -> list[Path]:
    found = [path for depth in ("*", "*/*") for path in sorted(root.glob(depth))]
    return [Path(os.path.abspath(p)) for p in found if p.is_dir() and p.name.lower().startswith(prefixes)]


READERS: dict[str, Callable[..., LabelSet]] = {
    "koniq10k": read_koniq10k,
    "spaq": read_spaq,
    "kadid10k": read_kadid10k,
    "pipal": read_pipal,
    "livec": read_livec,
    "agiqa3k": read_agiqa3k,
    "csiq": read_csiq,
    "tid2013": read_tid2013,
    "flive": read_flive,
    "deqa": read_deqa,
    "table": read_table,
}
"""Readers by the name of their set; each takes the set's folder and its own options."""
