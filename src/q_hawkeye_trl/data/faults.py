"""What is wrong with a set, counted and listed, and what the user permits."""

import csv
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .inspection import Finding
from .readers.labels import LabelSet

FAULTS = {
    "missing": "images that are named by the labels and missing",
    "unreadable": "images that can't be read",
    "outside": "images out of the set's folder",
    "unscored": "rows without a score",
    "leakage": "contents that stand in more than one split",
    "shared-reference": "references that stand in more than one split",
}
"""Kinds of faults that `--allow-KIND N` permits, each in words."""

_SHOWN = 10  # of each kind, in messages


class Fault(NamedTuple):
    """
    One fault.

    Args:
        kind (`str`):
            Key of `FAULTS`.
        place (`str`):
            Image, row or images concerned.
        reason (`str`):
            What is wrong.
    """

    kind: str
    place: str
    reason: str


def row_faults(labels: LabelSet, findings: Sequence[Finding]) -> list[Fault]:
    """
    Lists the faults of single rows.

    Args:
        labels ([`~data.readers.labels.LabelSet`]):
            The set.
        findings (`Sequence[Finding]`):
            What its images are, in the rows' order.

    Returns:
        `list[Fault]`: In the rows' order.
    """
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
    """
    Lists what stands in more than one split.

    Args:
        names (`Sequence[str]`):
            Names of the images.
        splits (`Sequence[str]`):
            Split of each.
        pixels (`Sequence[str]`):
            Hash of each image's pixels.
        references (`Sequence[str | None]`):
            Reference of each.

    Returns:
        `list[Fault]`: One for each content, and one for each reference, that stands in several splits.
    """
    faults = []
    for kind, keys in (("leakage", pixels), ("shared-reference", references)):
        seen: dict[str, set[str]] = defaultdict(set)
        for key, split in zip(keys, splits, strict=True):
            if key is not None:
                seen[key].add(split)
        crossing = {key for key, found in seen.items() if len(found) > 1}
        members: dict[str, list[str]] = defaultdict(list)
        for name, split, key in zip(names, splits, keys, strict=True):
            if key in crossing:
                members[key].append(f"{name} ({split})")
        for key, places in members.items():
            reason = "the same pixels" if kind == "leakage" else f"all of {key}"
            faults.append(Fault(kind, ", ".join(places[:6]) + (", …" if len(places) > 6 else ""), reason))
    return faults


def check_labels(labels: LabelSet) -> None:
    """
    Checks what no permission helps against: repeated rows, spreads that no opinions can have, a wrong direction.

    Args:
        labels ([`~data.readers.labels.LabelSet`]):
            The set.

    Raises:
        `ValueError`: One of them; the message names the rows. Names must be valid Unicode, too.
    """
    _check_names(labels)
    _check_repetitions(labels)
    _check_spreads(labels)
    _check_direction(labels)


def _check_names(labels: LabelSet) -> None:
    for row in labels.rows:
        try:
            for text in (row.image_id, row.image if isinstance(row.image, str) else "", row.reference or ""):
                text.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{row.where}: {row.image_id!r} is no valid Unicode: rename the file.") from None


def _check_repetitions(labels: LabelSet) -> None:
    first: dict[tuple[str, str | None], str] = {}
    for row in labels.rows:
        earlier = first.setdefault((row.image_id, row.split), row.where)
        if earlier != row.where:
            raise ValueError(f"{row.where}: {row.image_id} already stands in {earlier}; keep one of them.")


def _check_spreads(labels: LabelSet) -> None:
    if labels.ends is None:
        return
    # The widest opinions there are, two of them at both ends, have the standard deviation (b - a) / sqrt(2).
    limit = (labels.ends[1] - labels.ends[0]) / math.sqrt(2)
    beyond = [row for row in labels.rows if row.std is not None and row.std > limit * 1.001]
    if beyond:
        raise ValueError(
            f"{beyond[0].where} ({beyond[0].image_id}): no opinions of {labels.ends[0]:g} to {labels.ends[1]:g} have "
            f"a standard deviation of {beyond[0].std:g}, and {len(beyond)} of {len(labels.rows)} rows are beyond "
            f"{limit:.4g}: are they variances? Name their column as such."
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
            f"over {known.sum()} images), so the scores point the other way: is this {labels.name}'s own label file?"
        )


def check_faults(faults: Sequence[Fault], allowed: Mapping[str, int], list_file: Path) -> None:
    """
    Stops unless every fault is permitted.

    Args:
        faults (`Sequence[Fault]`):
            All faults of the set.
        allowed (`Mapping[str, int]`):
            How many of each kind are permitted; 0 where a kind has no key.
        list_file (`Path`):
            CSV file that the whole list is written to.

    Raises:
        `ValueError`: There are more than permitted; the message counts and lists them and names the options.
    """
    counts = Counter(fault.kind for fault in faults)
    over = [kind for kind in FAULTS if counts[kind] > allowed.get(kind, 0)]
    if not over:
        return
    write_faults(faults, list_file)
    options = " ".join(f"--allow-{kind} {counts[kind]}" for kind in over)
    raise ValueError(
        f"nothing was written. Found:\n{describe_faults(faults)}\nThe whole list is in {list_file}. Correct them, or "
        f"go on all the same by {options}."
    )


def describe_faults(faults: Sequence[Fault], shown: int = _SHOWN) -> str:
    """Counts faults by kind and lists the first `shown` of each, a line each."""
    lines = []
    for kind, words in FAULTS.items():
        found = [fault for fault in faults if fault.kind == kind]
        if found:
            lines.append(f"  {len(found)} {words} ({kind})")
            lines += [f"    {fault.place}: {fault.reason}" for fault in found[:shown]]
            lines += [f"    … and {len(found) - shown} more"] if len(found) > shown else []
    return "\n".join(lines)


def write_faults(faults: Iterable[Fault], path: Path) -> None:
    """Writes faults as CSV, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(Fault._fields)
        writer.writerows(faults)
    os.replace(partial, path)
