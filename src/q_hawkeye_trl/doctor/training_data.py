"""The data: it loads, MOS differ and fit the scale, images decode, splits share no images."""

import contextlib
import io
import itertools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import Finding, Plan, ok, problem, warning

_SAMPLE = 8  # images per split that are decoded
_STOPS = "the training would stop with this error; see docs/data.md"


def check_data(plan: Plan) -> Iterator[Finding]:
    """Load a prepared folder or KonIQ-10k as the training does, and check every split."""
    if plan.data is None:
        return
    from ..data.folder import check_rows
    from ..data.koniq import SCORES_FILE, SETS_FILE
    from ..text import QUALITY_SCALE

    folder = Path(plan.data)
    if not folder.is_dir():
        yield problem("data", f"there is no folder {folder}", "docs/data.md explains how to prepare a set")
        return
    is_koniq = any((folder / name).is_file() for name in (SETS_FILE, SCORES_FILE))
    scale = QUALITY_SCALE if plan.args is None else (plan.args.score_min, plan.args.score_max)
    # the second one hides the progress bars of `datasets`
    with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("always", UserWarning)
        faults = _load(plan, folder, scale, is_koniq=is_koniq)
    for fault in dict.fromkeys(faults):
        yield problem("data", fault, _STOPS)
    for text in dict.fromkeys(str(each.message) for each in caught if issubclass(each.category, UserWarning)):
        yield warning("data", text, "the training continues with this warning; see docs/data.md")
    for name, rows in plan.splits.items():
        area = f"data {name}".strip()
        try:
            check_rows(rows, score_min=scale[0], score_max=scale[1])
        except ValueError as error:
            yield problem(area, str(error), _STOPS)
        else:
            yield _check_split(area, rows)
    if plan.splits and not is_koniq:
        yield from _missing_splits(plan)
    yield from _leaks(plan.splits)


def _load(plan: Plan, folder: Path, scale: tuple[float, float], *, is_koniq: bool) -> list[str]:
    """Load all splits into the plan, and return the errors."""
    from datasets import Dataset

    from ..data.folder import load_folder, read_folder
    from ..data.koniq import SPLITS, load_koniq

    faults = []
    names = list(SPLITS)
    if not is_koniq:
        try:
            data = read_folder(folder)
        except (OSError, ValueError) as error:
            return [str(error)]
        names = [""] if isinstance(data, Dataset) else list(data)
    mos_scale = getattr(plan.script_args, "mos_scale", "deqa")
    allow_missing = getattr(plan.script_args, "allow_missing", 0)
    for name in names:
        try:
            if is_koniq:
                plan.splits[name] = load_koniq(folder, name, scale=mos_scale, allow_missing=allow_missing)
            else:
                plan.splits[name] = load_folder(folder, name or None, scale=scale)
        except (OSError, ValueError) as error:
            faults.append(str(error))
    return faults


def _check_split(area: str, rows: Any) -> Finding:
    """Compare the MOS, and decode a sample of the rows."""
    from ..data.folder import check_pair

    mos = rows["mos"]
    text = f"{len(rows):,} rows, MOS {min(mos):.2f} to {max(mos):.2f}, mean {sum(mos) / len(mos):.2f}"
    if min(mos) == max(mos) and len(rows) > 1:
        return problem(area, f"{text}: all are the same", "check the labels: one value can't be learned or correlated")
    plural = "images" if "images" in rows.column_names else "image"
    count, views = min(_SAMPLE, len(rows)), 0
    chosen = sorted({round(i * (len(rows) - 1) / max(count - 1, 1)) for i in range(count)})
    for number in chosen:
        try:
            row = rows[number]
            images, degraded = row[plural], row.get(f"degraded_{plural}")
            if plural == "image":
                images, degraded = [images], None if degraded is None else [degraded]
            for image, view in zip(images, degraded or [None] * len(images), strict=True):
                check_pair(image, view, f"row {number} ({row['image_id']})")
                views += view is not None
        except (OSError, ValueError) as error:
            return problem(area, str(error), "repair the file, or prepare the data again with `q-hawkeye prepare`")
    also = f" and {views} degraded views" if f"degraded_{plural}" in rows.column_names else ""
    return ok(area, f"{text}; the images of {len(chosen)} rows{also} decode")


def _missing_splits(plan: Plan) -> Iterator[Finding]:
    known = ", ".join(filter(None, plan.splits)) or "none"
    held_out = getattr(plan.script_args, "held_out_split", "test")
    for name, advice in (
        ("train", "rename the split for training to `train`"),
        (held_out, "name the split to evaluate on by --held_out_split"),
    ):
        if name not in plan.splits:
            yield problem("data", f"there is no split {name!r}, which the training reads; found {known}", advice)
    validation = getattr(plan.script_args, "validation_split", None) or "validation"
    if getattr(plan.script_args, "validate", True) and validation not in plan.splits:
        text = f"there is no split {validation!r}: the best checkpoint can't be chosen"
        advice = "create one with `q-hawkeye prepare`, or train without it (--validate false)"
        yield warning("data", text, advice)


def _leaks(splits: dict[str, Any]) -> Iterator[Finding]:
    images = {name: set(rows["image_id"]) for name, rows in splits.items() if "image_id" in rows.column_names}
    for left, right in itertools.combinations(images, 2):
        if shared := images[left] & images[right]:
            text = f"{len(shared):,} image_ids are in {left!r} and in {right!r}, for example {min(shared)}"
            yield warning("data", text, "prepare the splits again: results on training images are meaningless")
