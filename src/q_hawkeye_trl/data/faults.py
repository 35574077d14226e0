"""What is wrong with a set, counted and listed, and what the user permits."""

import csv
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from ..io.atomic import open_atomic
from .inspection import Finding
from .labels import LabelSet

FAULTS = {
    "missing": "images named by the labels are missing",
    "unreadable": "images can't be read",
    "outside": "images are outside the set's folder",
    "unscored": "rows have no score",
    "leakage": "contents are in more than one split",
    "shared-reference": "references are in more than one split",
}
"""Kinds of faults that `--allow-KIND N` permits, each in words."""

FAULTS_FILE = "faults.csv"


class Fault(NamedTuple):
    """One fault: a key of `FAULTS`, the image, row or images concerned, and what is wrong."""

    kind: str
    place: str
    reason: str


def row_faults(labels: LabelSet, findings: Sequence[Finding]) -> list[Fault]:
    """List the faults of single rows; `findings` are in the rows' order."""
    faults = []
    for row, mos, finding in zip(labels.rows, labels.mos, findings, strict=True):
        if finding.fault is not None:
            place = row.where if row.split is None else f"{row.where}, {row.split}"
            faults.append(Fault(finding.fault, finding.key, f"{finding.reason} ({place})"))
        if not np.isfinite(mos):
            faults.append(Fault("unscored", row.image_id, f"{row.where} has no score"))
    return faults


def split_faults(
    names: Sequence[str], splits: Sequence[str], pixels: Sequence[str], references: Sequence[str | None]
) -> list[Fault]:
    """List each content and each reference that is in more than one split; all arguments have one entry an image."""
    faults = []
    columns = {"name": names, "split": splits, "leakage": pixels, "shared-reference": references}
    table = pd.DataFrame(columns, dtype=object)
    for kind in ("leakage", "shared-reference"):
        count = table.groupby(kind, sort=False)["split"].transform("nunique")
        for key, members in table[count > 1].groupby(kind, sort=False):
            places = [f"{name} ({split})" for name, split in zip(members["name"], members["split"], strict=True)]
            reason = "the same pixels" if kind == "leakage" else f"all of {key}"
            faults.append(Fault(kind, ", ".join(places[:6]) + (", …" if len(places) > 6 else ""), reason))
    return faults


def check_labels(labels: LabelSet) -> None:
    """
    Raise `ValueError` for faults that no option permits: names that are not Unicode, repeated rows, impossible
    standard deviations, reversed scores.
    """
    first: dict[tuple[str, str | None], str] = {}
    for row in labels.rows:
        try:
            for text in (row.image_id, row.image if isinstance(row.image, str) else "", row.reference or ""):
                text.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{row.where}: {row.image_id!r} is not valid Unicode: rename the file.") from None
        earlier = first.setdefault((row.image_id, row.split), row.where)
        if earlier != row.where:
            raise ValueError(f"{row.where}: {row.image_id} is also in {earlier}; keep one of them.")
    _check_spreads(labels)
    _check_direction(labels)


def _check_spreads(labels: LabelSet) -> None:
    if labels.ends is None:
        return
    # The largest sample standard deviation is (b - a) / sqrt(2): two ratings, one at each end.
    limit = (labels.ends[1] - labels.ends[0]) / math.sqrt(2)
    beyond = [row for row in labels.rows if row.std is not None and row.std > limit * 1.001]
    if beyond:
        raise ValueError(
            f"{beyond[0].where} ({beyond[0].image_id}): the standard deviation is {beyond[0].std:g}, but opinions of "
            f"{labels.ends[0]:g} to {labels.ends[1]:g} have {limit:.4g} at most; {len(beyond)} of "
            f"{len(labels.rows)} rows exceed it. If they are variances, name their column as such."
        )


def _check_direction(labels: LabelSet) -> None:
    if labels.levels is None:
        return
    known = np.isfinite(labels.mos) & np.isfinite(labels.levels)
    if known.sum() < 30 or len(np.unique(labels.levels[known])) < 2 or np.ptp(labels.mos[known]) == 0:
        return
    from scipy.stats import spearmanr

    correlation = float(spearmanr(labels.levels[known], labels.mos[known]).statistic)
    if correlation > 0.3:
        raise ValueError(
            f"{labels.files[0]}: MOS rises with the strength of the distortion (rank correlation {correlation:.2f} "
            f"over {known.sum()} images), so the scores are reversed: check that this is {labels.name}'s label file."
        )


def over_limit(faults: Iterable[Fault], allowed: Mapping[str, int]) -> dict[str, int]:
    """Count the faults of each kind that has more than are permitted; raise `ValueError` for an unknown kind."""
    unknown = set(allowed) - set(FAULTS)
    if unknown:
        raise ValueError(f"Unknown faults {', '.join(sorted(unknown))}; known are {', '.join(FAULTS)}.")
    counts = Counter(fault.kind for fault in faults)
    return {kind: counts[kind] for kind in FAULTS if counts[kind] > allowed.get(kind, 0)}


def check_faults(faults: Sequence[Fault], allowed: Mapping[str, int], list_file: Path) -> None:
    """Unless all faults are permitted, list them in a CSV file and raise `ValueError` with the options for them."""
    over = over_limit(faults, allowed)
    if over:
        write_faults(faults, list_file)
        options = " ".join(f"--allow-{kind} {count}" for kind, count in over.items())
        raise ValueError(
            f"nothing was written:\n{describe_faults(faults)}\nThe complete list is in {list_file}. Correct them, or "
            f"permit them by {options}."
        )


def describe_faults(faults: Sequence[Fault], shown: int = 10) -> str:
    """Count faults by kind and list the first of each, a line each."""
    lines = []
    for kind, words in FAULTS.items():
        found = [fault for fault in faults if fault.kind == kind]
        if found:
            lines.append(f"  {len(found)} {words} ({kind})")
            lines += [f"    {fault.place}: {fault.reason}" for fault in found[:shown]]
            lines += [f"    … and {len(found) - shown} more"] if len(found) > shown else []
    return "\n".join(lines)


def write_faults(faults: Iterable[Fault], path: Path) -> None:
    """Write faults as CSV, atomically."""
    with open_atomic(path, newline="", errors="backslashreplace") as file:
        csv.writer(file).writerows([Fault._fields, *faults])
