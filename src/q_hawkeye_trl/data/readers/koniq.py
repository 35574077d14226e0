"""KonIQ-10k for `prepare`: the rows of `data.koniq`."""

import math
from pathlib import Path

import numpy as np

from ..koniq import (
    SETS_FILE,
    KoniqLabel,
    koniq_image_folder,
    koniq_label_file,
    read_koniq_labels,
)
from ..scales import koniq_mos, mean_opinion, spread_factor
from ..splits import split_name
from .labels import FileIndex, LabelRow, LabelSet, image_folder

_RULES = {
    "deqa": "1 + 4 (r - min) / (max - min) of the mean answer r (DeQA-Score's rule), with min = {low:.6g} and max = "
    "{high:.6g} over the whole set, test images included",
    "raw": "the mean answer as it is",
    "zscore-minmax": "1 + 4 (z - min) / (max - min) of the column of 0 to 100 (VisualQuality-R1's rule), with min = "
    "{low:.6g} and max = {high:.6g} over the whole set, test images included",
    "zscore": "1 + 4 z / 100 of the column of 0 to 100",
}


def read_koniq10k(
    root: Path, *, scale: str | None = None, images: str | None = None, resolution: str | None = None
) -> LabelSet:
    """
    Reads KonIQ-10k's official layout, see [`~data.koniq.load_koniq`].

    Args:
        root (`Path`):
            Folder of the set.
        scale (`str`, *optional*):
            One of [`~data.scales.KONIQ_SCALES`], by default `"deqa"`.
        images (`str`, *optional*):
            Image folder in place of the official ones.
        resolution (`str`, *optional*):
            `"1024x768"` or `"512x384"`, by default the first that exists.

    Returns:
        [`LabelSet`]

    Raises:
        `FileNotFoundError`: A folder or the label file is missing.
        `ValueError`: Unknown option, or a label file that is not as published; the message names the row.
    """
    folder = image_folder(root, images, (), "KonIQ-10k") if images else koniq_image_folder(root, resolution)
    path = koniq_label_file(root)
    labels, scale = read_koniq_labels(path), scale or "deqa"
    mean = mean_opinion(np.array([label.shares for label in labels]))
    mos, source = koniq_mos(mean, np.array([label.zscore for label in labels]), scale)
    index = FileIndex([folder.absolute()])
    rows = [
        LabelRow(
            image_id=label.name,
            image=index.path(label.name),
            where=f"{path}, row {number}",
            score=float(source[number - 1]),
            std=label.std,
            split=None if label.split is None else split_name(label.split, str(path)),
        )
        for number, label in enumerate(labels, 1)
    ]
    return LabelSet(
        name="koniq10k",
        rows=rows,
        mos=mos,
        mos_std=np.array([label.std for label in labels]) * spread_factor(mos, mean),
        scale=scale,
        direction="higher",
        scores="mean answer of 1 to 5, from c1 to c5" if scale in ("deqa", "raw") else "z-scored MOS of 0 to 100",
        rule=_RULES[scale].format(low=source.min(), high=source.max()),
        folder=folder.absolute(),
        files=[path],
        ends=(1, 5),
        splits="official" if path.name == SETS_FILE else "by image",
        notes=_notes(labels, path, scale),
    )


def _notes(labels: list[KoniqLabel], path: Path, scale: str) -> list[str]:
    notes = []
    if path.name != SETS_FILE:
        notes.append(f"{path.name} has no split: the drawn one is not the official one, which {SETS_FILE} has.")
    if scale.startswith("zscore"):
        notes.append("The rule is no linear function of the mean answer: mos_std is scaled by the ratio of spreads.")
    wrong = sum(abs(_std(label) - label.std) > 0.05 > abs(_std(label) ** 2 - label.std) for label in labels)
    if wrong:
        raise ValueError(
            f"{path}: in {wrong} of {len(labels)} rows `SD` is the variance of c1 to c5, not the standard deviation."
        )
    return notes


def _std(label: KoniqLabel) -> float:
    mean = sum(k * share for k, share in enumerate(label.shares, 1))
    return math.sqrt(sum(share * (k - mean) ** 2 for k, share in enumerate(label.shares, 1)))
