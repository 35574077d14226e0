"""Sets of photographs and generated images without a reference: SPAQ, LIVE Challenge, AGIQA-3K, FLIVE."""

import os
import re
from pathlib import Path

from .files import plain_name, read_csv, read_mat, read_xlsx
from .labels import FileIndex, LabelRow, LabelSet, image_folder, label_set, parse_number, parse_spread

SPAQ_FILE = "Annotations/MOS and Image attribute scores.xlsx"
LIVEC_TRAINING_IMAGES = re.compile(r"t[1-7]\.\w+", re.IGNORECASE)
"""Names of LIVE Challenge's first seven images, on which raters practised."""


def read_spaq(root: Path, *, scale: str | None = None, images: str | None = None) -> LabelSet:
    """
    Reads SPAQ: `TestImage/` and `Annotations/MOS and Image attribute scores.xlsx`, MOS of 0 to 100.

    Args:
        root (`Path`):
            Folder of the set.
        scale (`str`, *optional*):
            One of [`~data.scales.SCALES`], by default `"deqa"`. The same holds for every reader here.
        images (`str`, *optional*):
            Image folder in place of the official one.

    Returns:
        [`LabelSet`]

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
    Reads LIVE In the Wild Image Quality Challenge: `Images/` and three files of `Data/`; arguments and errors as in
    [`read_spaq`].

    Args:
        keep_training_images (`bool`, *optional*, defaults to `False`):
            Whether the first seven images, on which the raters practised, are kept; most papers drop them.
    """
    folder = image_folder(root, images, ["Images"], "LIVE Challenge")
    names, scores, stds = (
        (path := root / "Data" / f"All{what}_release.mat", read_mat(path, f"All{what}_release", "LIVE Challenge"))
        for what in ("Images", "MOS", "StdDev")
    )
    if not len(names[1]) == len(scores[1]) == len(stds[1]):
        raise ValueError(
            f"{root / 'Data'}: {len(names[1])} images, {len(scores[1])} scores and {len(stds[1])} standard deviations "
            "don't belong together."
        )
    training = folder / "trainingImages"
    index = FileIndex([folder, training] if training.is_dir() else [folder])
    rows, practised = [], 0
    for number, (name, score, std) in enumerate(zip(names[1], scores[1], stds[1], strict=True), 1):
        where = f"{names[0]}, entry {number}"
        name = plain_name(name, where)
        is_practice = LIVEC_TRAINING_IMAGES.fullmatch(name) is not None
        practised += is_practice
        if is_practice and not keep_training_images:
            continue
        spread = parse_spread(std, f"{stds[0]}, entry {number}")
        rows.append(LabelRow(name, index.path(name), where, parse_number(score), spread))
    dropped = f"The {practised} practice images (t1 to t7) are {'kept' if keep_training_images else 'left out'}."
    return label_set(
        "livec", rows, scale=scale, ends=(0, 100), scores="MOS of 0 to 100", folder=folder,
        files=[names[0], scores[0], stds[0]], notes=[dropped, "LIVE Challenge has no official split."],
    )  # fmt: skip


def read_agiqa3k(
    root: Path, *, scale: str | None = None, images: str | None = None, target: str = "quality"
) -> LabelSet:
    """
    Reads AGIQA-3K: images beside `data.csv`, scores of 0 to 5; arguments and errors as in [`read_spaq`].

    Args:
        target (`str`, *optional*, defaults to `"quality"`):
            `"quality"`, or `"alignment"` with the text that an image was generated from: another target, so another
            value of `dataset`. Images of one text stay in one split.
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
        notes=[f"The target is {target}; AGIQA-3K has two, quality and alignment, which don't compare."],
    )  # fmt: skip


def read_flive(root: Path, *, scale: str | None = None, images: str | None = None) -> LabelSet:
    """
    Reads FLIVE (LIVE-FB): `database/` and `labels_image.csv`, MOS of 0 to 100, names with the folder of their source;
    arguments and errors as in [`read_spaq`].
    """
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
