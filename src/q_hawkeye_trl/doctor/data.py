"""The data: opens, has its columns, a MOS that differs, images that decode, splits that do not share images."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .finding import Finding, Plan, ok, problem, warning

_SAMPLE = 8  # images of a split that are decoded


def check_data(plan: Plan) -> tuple[list[Finding], dict[str, Any]]:
    """
    Looks at a folder of prepared data or of KonIQ-10k, as `examples/train_koniq.py` reads it.

    Args:
        plan ([`Plan`]):
            What is planned.

    Returns:
        `tuple[list[Finding], dict[str, Dataset]]`: Findings, and the splits that could be loaded.
    """
    if plan.data is None:
        return [], {}
    from ..data.koniq import SCORES_FILE, SETS_FILE

    folder = Path(plan.data)
    if not folder.is_dir():
        return [problem("data", f"there is no folder {folder}", "see docs/data.md for how to prepare a set")], {}
    is_koniq = any((folder / name).is_file() for name in (SETS_FILE, SCORES_FILE))
    with warnings.catch_warnings(record=True) as said, _without_bars():
        warnings.simplefilter("always", UserWarning)
        found, splits = _load(folder, plan, is_koniq=is_koniq)
    for message in dict.fromkeys(str(each.message) for each in said if issubclass(each.category, UserWarning)):
        found.append(warning("data", message, "the training goes on like this; see docs/data.md"))
    for name, rows in splits.items():
        found += _look_at(name, rows, scale_of(plan))
    return [*found, *_expected(splits, plan, is_koniq=is_koniq), *_leakage(splits)], splits


@contextmanager
def _without_bars() -> Iterator[None]:
    import datasets

    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def scale_of(plan: Plan) -> tuple[float, float]:
    """Lower and upper end of the MOS."""
    from ..text import QUALITY_SCALE

    return QUALITY_SCALE if plan.args is None else (plan.args.score_min, plan.args.score_max)


def _load(folder: Path, plan: Plan, *, is_koniq: bool) -> tuple[list[Finding], dict[str, Any]]:
    from datasets import Dataset

    from ..data.folder import load_folder, read_folder
    from ..data.koniq import SPLITS, load_koniq

    found, splits = [], {}
    advice = "the training would stop at this; see docs/data.md"
    if is_koniq:
        options: dict[str, Any] = {
            "scale": getattr(plan.script_args, "mos_scale", "deqa"),
            "allow_missing": getattr(plan.script_args, "allow_missing", 0),
        }
        names = list(SPLITS)
    else:
        try:
            read = read_folder(folder)
        except (OSError, ValueError) as error:
            return [problem("data", str(error), advice)], {}
        names = [""] if isinstance(read, Dataset) else list(read)
    for name in names:
        try:
            if is_koniq:
                splits[name] = load_koniq(folder, name, **options)
            else:
                splits[name] = load_folder(folder, name or None, scale=scale_of(plan))
        except (OSError, ValueError) as error:
            found.append(problem("data", str(error), advice))
    return list(dict.fromkeys(found)), splits


def _look_at(name: str, rows: Any, scale: tuple[float, float]) -> list[Finding]:
    from ..data.folder import check_rows

    area = f"data {name}".strip()
    try:
        check_rows(rows, score_min=scale[0], score_max=scale[1])
    except ValueError as error:
        return [problem(area, str(error), "the training would stop at this; see docs/data.md")]
    mos = rows["mos"]
    low, high = min(mos), max(mos)
    text = f"{len(rows):,} rows, MOS {low:.2f} to {high:.2f}, mean {sum(mos) / len(mos):.2f}"
    if low == high and len(rows) > 1:
        advice = "check the labels: nothing can be learned or correlated from one value"
        return [problem(area, f"{text}: all are the same", advice)]
    return [_decode(area, rows, text)]


def _decode(area: str, rows: Any, text: str) -> Finding:
    """Decodes a sample of the rows; where all is well the line says `text` too."""
    from ..data.folder import check_pair

    count = min(_SAMPLE, len(rows))
    chosen = sorted({round(i * (len(rows) - 1) / max(count - 1, 1)) for i in range(count)})
    plural = "images" if "images" in rows.column_names else "image"
    views = 0
    for number in chosen:
        try:
            row = rows[number]
            originals, views_of_row = row[plural], row.get(f"degraded_{plural}")
            if plural == "image":
                originals, views_of_row = [originals], None if views_of_row is None else [views_of_row]
            for original, view in zip(originals, views_of_row or [None] * len(originals), strict=True):
                check_pair(original, view, f"row {number} ({row['image_id']})")
                views += view is not None
        except (OSError, ValueError) as error:
            return problem(area, str(error), "repair the file, or prepare the data again by `q-hawkeye prepare`")
    degraded = f" and {views} degraded views" if f"degraded_{plural}" in rows.column_names else ""
    return ok(area, f"{text}; the images of {len(chosen)} rows{degraded} decode")


def _expected(splits: dict[str, Any], plan: Plan, *, is_koniq: bool) -> list[Finding]:
    """Splits that the training script reads."""
    if is_koniq or not splits:
        return []
    found, known = [], ", ".join(filter(None, splits)) or "none"
    held_out = getattr(plan.script_args, "held_out_split", "test")
    for name, advice in (
        ("train", "name the split that is trained on `train`"),
        (held_out, "name the split to measure on by --held_out_split"),
    ):
        if name not in splits:
            text = f"no split {name!r}, which examples/train_koniq.py reads; found {known}"
            found.append(problem("data", text, advice))
    validation = getattr(plan.script_args, "validation_split", None) or "validation"
    if getattr(plan.script_args, "validate", True) and validation not in splits:
        advice = "make one by `q-hawkeye prepare`, or choose checkpoints without it (--validate false)"
        found.append(warning("data", f"no split {validation!r}: the best checkpoint can't be chosen", advice))
    return found


def _leakage(splits: dict[str, Any]) -> list[Finding]:
    found, names = [], list(splits)
    images = {name: set(rows["image_id"]) for name, rows in splits.items() if "image_id" in rows.column_names}
    for index, left in enumerate(names):
        for right in names[index + 1 :]:
            if shared := images.get(left, set()) & images.get(right, set()):
                text = f"{len(shared):,} image_ids are in {left!r} and in {right!r}, for example {min(shared)}"
                advice = "prepare the splits again: what is measured on trained images says nothing"
                found.append(warning("data", text, advice))
    return found
