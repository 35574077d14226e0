"""The metas of DeQA-Score: JSON lists with the scores of a set as released and normalised."""

import json
import os
from pathlib import Path

import numpy as np

from ..scales import to_mos
from ..splits import split_name
from .labels import LabelRow, LabelSet, ReferencePattern, parse_number, parse_spread


def read_deqa(
    root: Path,
    *,
    scale: str | None = None,
    images: str | None = None,
    labels: list[str] | None = None,
    name: str | None = None,
    reference_pattern: str | None = None,
) -> LabelSet:
    """
    Reads metas of one set as DeQA-Score lays them out, `SET/metas/train_….json` and `SET/metas/test_….json`.

    MOS is the file's own `gt_score_norm`, made over the whole set; that it is one straight line of `gt_score` is
    checked, and rows without it get theirs from that line. Without any, the line goes from the smallest to the largest
    `gt_score` of the files that were read.

    Args:
        root (`Path`):
            Folder of the set, with `metas/`.
        scale (`str`, *optional*):
            Only `"deqa"`.
        images (`str`, *optional*):
            Folder from which the files' image paths count; by default `root` or the folder above, whichever has them.
        labels (`list[str]`, *optional*):
            Files from `root` in place of all of `metas/`, each `SPLIT=FILE` or `FILE` with a name that begins with its
            split (`train_koniq_7k.json`).
        name (`str`, *optional*):
            Value of the `dataset` column, by default the name of `root` in small letters.
        reference_pattern (`str`, *optional*):
            [`~data.readers.labels.ReferencePattern`]: the metas name no references.

    Returns:
        [`LabelSet`]

    Raises:
        `FileNotFoundError`: There are no metas.
        `ValueError`: A file that is no such list, a row without an image, or norms that are no straight line.
    """
    if scale not in (None, "deqa"):
        raise ValueError(f"Unknown scale {scale!r} of DeQA-Score's metas; they are normalised by `deqa`.")
    files, pattern = _files(root, labels), ReferencePattern(reference_pattern) if reference_pattern else None
    rows: list[LabelRow] = []
    norms: list[float] = []
    entries = [(split, path, number, entry) for split, path in files for number, entry in _entries(path)]
    folder = _base(root, images, [entry["image"] for _, _, _, entry in entries[:50]])
    for split, path, number, entry in entries:
        where = f"{path}, entry {number}"
        score, std = parse_number(entry.get("gt_score")), parse_spread(entry.get("std"), f"{where}: `std`")
        norm = parse_number(entry.get("gt_score_norm"))
        norms.append(np.nan if norm is None else norm)
        image = os.path.normpath(folder / entry["image"])
        reference = pattern.reference(entry["image"], where) if pattern else None
        rows.append(LabelRow(entry["image"], image, where, score, std, split, reference))
    scores = np.array([np.nan if row.score is None else row.score for row in rows])
    mos, factor, rule = _mos(scores, np.array(norms), [row.where for row in rows])
    return LabelSet(
        name=name or Path(os.path.abspath(root)).name.lower(),
        rows=rows,
        mos=mos,
        mos_std=np.array([np.nan if row.std is None else row.std for row in rows]) * factor,
        scale="deqa",
        direction="higher",
        scores="gt_score of DeQA-Score's metas; higher is better (CSIQ's DMOS stands there with a minus)",
        rule=rule,
        folder=folder,
        files=[path for _, path in files],
        splits="of the metas, by file",
    )


def _files(root: Path, labels: list[str] | None) -> list[tuple[str, Path]]:
    if labels is None:
        labels = [f"metas/{path.name}" for path in sorted((root / "metas").glob("*.json"))]
    if not labels:
        raise FileNotFoundError(f"{root / 'metas'}: expected DeQA-Score's metas, like train_koniq_7k.json.")
    files = []
    for text in labels:
        split, separator, file = text.rpartition("=")
        path = root / file
        if not path.is_file():
            raise FileNotFoundError(f"There is no file {path}: --labels counts from --root.")
        where = f"{path}: name the split by --labels SPLIT={file}"
        files.append((split_name(split if separator else path.name.split("_")[0], where), path))
    return files


def _entries(path: Path):
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}): fetch it again.") from error
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path}: expected a list of images with their scores.")
    for number, entry in enumerate(entries, 1):
        image = entry.get("image") if isinstance(entry, dict) else None
        if not isinstance(image, str) or not image or os.path.isabs(image):
            raise ValueError(f"{path}, entry {number}: expected `image`, a relative path, got {image!r}.")
        yield number, {key: entry.get(key) for key in ("image", "gt_score", "gt_score_norm", "std")}


def _base(root: Path, images: str | None, names: list[str]) -> Path:
    candidates = [root / images] if images else [root, Path(os.path.abspath(root)).parent]
    found = [sum(os.path.exists(folder / name) for name in names) for folder in candidates]
    return Path(os.path.abspath(candidates[found.index(max(found))]))


def _mos(scores: np.ndarray, norms: np.ndarray, places: list[str]) -> tuple[np.ndarray, float, str]:
    both = np.isfinite(scores) & np.isfinite(norms)
    if not both.any():
        mos, factor = to_mos(scores, "deqa")
        rule = "1 + 4 (v - min) / (max - min) over the images of these files: they hold no gt_score_norm"
        return mos, factor, rule
    low, high = np.flatnonzero(both)[[np.argmin(scores[both]), np.argmax(scores[both])]]
    if not scores[low] < scores[high]:
        raise ValueError(f"{places[low]}: all scores are {scores[low]:g}: a scale needs two.")
    factor = (norms[high] - norms[low]) / (scores[high] - scores[low])
    line = norms[low] + factor * (scores - scores[low])
    off = np.abs(line - norms)
    worst = int(np.nanargmax(off))
    if factor <= 0 or off[worst] > 0.01 or np.nanmin(norms) < 1 or np.nanmax(norms) > 5:
        raise ValueError(
            f"{places[worst]}: `gt_score_norm` is no rising straight line of `gt_score` within [1, 5]: there "
            f"{scores[worst]:g} has {norms[worst]:g}, the line says {line[worst]:.4f}. Fetch the metas again."
        )
    mos = np.where(np.isfinite(norms), norms, line)
    mos[~np.isfinite(scores)] = np.nan
    # The line reaches 1 and 5 where the whole set's smallest and largest scores lie.
    ends = [scores[low] + (value - norms[low]) / factor for value in (1, 5)]
    rule = (
        f"gt_score_norm of the metas: 1 + 4 (v - min) / (max - min) with min = {ends[0]:.5g} and max = {ends[1]:.5g} "
        "over the whole set, test images included"
    )
    return mos, float(factor), rule
