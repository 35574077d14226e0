"""Tables of scored images: read from CSV or JSONL, checked row by row, one table per set."""

import csv
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import IO

import numpy as np

SCALE = (1.0, 5.0)
"""Scale of the scores, of the MOS and of the errors."""

OUT_OF_RANGE_SHARE = 0.5
"""Largest share of scores outside their range; above it, the range is taken to be wrong."""

ABSURD = 1e6
"""Largest absolute score, in points of the scale; a larger one would dominate RMSE and PLCC."""

_TEXTS = ("group", "distortion", "image", "answer", "error")
_Rows = Sequence[tuple[str, Mapping]]  # how messages name each row, and the row


@dataclass(frozen=True)
class ScoreTable:
    """
    The N scored images of one set, sorted by `image_id` so that the order of a file doesn't matter.

    Args:
        name (`str`):
            Name of the set.
        image_id (`tuple[str, ...]`):
            Distinct names of the images.
        score (`np.ndarray` of shape `(N,)`):
            Scores on the scale of 1 to 5, not clamped, `nan` where there is none.
        mos (`np.ndarray` of shape `(N,)`):
            Mean opinion scores in [1, 5], higher is better.
        mos_raw (`np.ndarray` of shape `(N,)`, *optional*):
            The labels as released, negated if lower is better.
        spread (`np.ndarray` of shape `(N,)`, *optional*):
            Standard deviation of the rollouts' scores, in points of the scale, `nan` where there is none.
        group (`tuple[str, ...]`, *optional*):
            Reference image of each image.
        distortion, image, answer, error (`tuple[str, ...]`, *optional*):
            Kind of distortion, path of the picture, the model's answer, why there is no score; empty where unknown.
        out_of_range (`int`):
            Number of scores outside the scale.
    """

    name: str
    image_id: tuple[str, ...]
    score: np.ndarray
    mos: np.ndarray
    mos_raw: np.ndarray | None = None
    spread: np.ndarray | None = None
    group: tuple[str, ...] | None = None
    distortion: tuple[str, ...] | None = None
    image: tuple[str, ...] | None = None
    answer: tuple[str, ...] | None = None
    error: tuple[str, ...] | None = None
    out_of_range: int = 0

    def __len__(self) -> int:
        return len(self.image_id)

    def select(self, rows: np.ndarray) -> "ScoreTable":
        """Return rows by index or mask, in the given order."""
        rows = np.arange(len(self))[rows]
        columns: dict = {}
        for name, values in vars(self).items():
            if isinstance(values, np.ndarray):
                columns[name] = values[rows]
            elif isinstance(values, tuple):
                columns[name] = tuple(values[i] for i in rows)
        return replace(self, **columns)


def read_tables(
    path: str | os.PathLike,
    *,
    score_range: tuple[float, float] = SCALE,
    mos_range: tuple[float, float] = SCALE,
) -> list[ScoreTable]:
    """
    Read scored images from a file.

    Args:
        path (`str` or `os.PathLike`):
            `.csv`, `.jsonl` or `.ndjson` file with the columns `image_id`, `score` (empty, null, not finite or beyond
            `ABSURD` where there is none) and `mos`; optionally `spread`, `group`, `distortion`, `mos_raw`,
            `mos_direction`, `image`, `answer`, `error`, and `dataset`, which splits the file into several sets.
        score_range (`tuple[float, float]`, *optional*, defaults to `(1, 5)`):
            Worst and best score of the scale in the file; mapped linearly to [1, 5].
        mos_range (`tuple[float, float]`, *optional*, defaults to `(1, 5)`):
            Worst and best MOS of the scale in the file; `(1, 0)` reads a DMOS, where lower is better.

    Returns:
        `list[ScoreTable]`: One per set, in order of first appearance; named like the file without a `dataset` column.

    Raises:
        `FileNotFoundError`: The file does not exist.
        `ValueError`: A column or value is missing, wrong or duplicate; the message names file, row and column.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}: pass CSV or JSONL with image_id, score and mos.")
    sets: dict[str, list[tuple[str, Mapping]]] = {}
    for where, row in _rows(path):
        for column in ("image_id", "score", "mos"):
            if column not in row:
                raise ValueError(
                    f"{where}: there is no `{column}`, but {', '.join(row) or 'nothing'}; each row needs image_id, "
                    "score and mos (in CSV separated by commas)."
                )
        if row["image_id"] in (None, ""):
            raise ValueError(f"{where}: `image_id` is empty; name every image.")
        sets.setdefault(_text(row.get("dataset") or path.stem), []).append((where, row))
    if not sets:
        raise ValueError(f"{path} has no rows: expected one per image.")
    return [build_table(name, rows, score_range=score_range, mos_range=mos_range) for name, rows in sets.items()]


def build_table(
    name: str, rows: _Rows, *, score_range: tuple[float, float] = SCALE, mos_range: tuple[float, float] = SCALE
) -> ScoreTable:
    """Build and check the table of one set; columns, ranges and errors as in [`read_tables`]."""
    rows = sorted(rows, key=lambda item: str(item[1]["image_id"]))
    for (earlier, row), (where, again) in pairwise(rows):
        if str(row["image_id"]) == str(again["image_id"]):
            raise ValueError(f"{where}: image_id {row['image_id']!r} is already in {earlier}; keep one of them.")
    score = _onto_scale("score", _numbers(rows, "score", optional=True), score_range)
    score = np.where(np.abs(score) > ABSURD, np.nan, score)
    mos = _onto_scale("mos", _numbers(rows, "mos"), mos_range)
    for column, values, ends, share in (
        ("score", score, score_range, OUT_OF_RANGE_SHARE),
        ("mos", mos, mos_range, 0.0),
    ):
        if _outside(values) > share * len(values):
            raise ValueError(
                f"{name}: {_outside(values)} of {len(values)} values of `{column}` are outside "
                f"[{min(ends):g}, {max(ends):g}]; set their scale with --{column}-range WORST BEST."
            )
    texts = {column: _texts(rows, column) for column in _TEXTS}
    group = texts["group"]
    if group is not None and "" in group:
        where = rows[group.index("")][0]
        raise ValueError(f"{where}: `group` is empty while other rows have one; give every row of {name} a group.")
    return ScoreTable(
        name=name,
        image_id=tuple(_text(row["image_id"]) for _, row in rows),
        score=score,
        mos=np.clip(mos, *SCALE),  # rounding
        mos_raw=_raw(rows),
        spread=_spread(rows, score_range),
        out_of_range=_outside(score),
        **texts,
    )


def _rows(path: Path) -> Iterator[tuple[str, Mapping]]:
    # pandas renames duplicate columns, fills short rows and loses the line numbers that the messages name
    readers = {".csv": _csv_rows, ".jsonl": _json_rows, ".ndjson": _json_rows}
    if path.suffix.lower() not in readers:
        raise ValueError(f"{path}: expected a file that ends in .csv or .jsonl.")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            yield from readers[path.suffix.lower()](path, file)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}): save it as UTF-8.") from error


def _csv_rows(path: Path, file: IO[str]) -> Iterator[tuple[str, Mapping]]:
    reader = csv.DictReader(file)
    try:
        names = reader.fieldnames or []
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{path}, line 1: duplicate column {', '.join(twice)}; keep one of them.")
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if None in row or None in row.values():
                raise ValueError(f"{where}: expected {len(names)} values, as in the header.")
            yield where, row
    except csv.Error as error:
        raise ValueError(f"{path}, after line {reader.line_num}: not CSV ({error}): is a quote not closed?") from error


def _json_rows(path: Path, file: IO[str]) -> Iterator[tuple[str, Mapping]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where} is not JSON ({error}); expected one object per line.") from error
        if not isinstance(row, dict):
            raise ValueError(f"{where}: expected a JSON object, got {type(row).__name__}.")
        yield where, row


def _number(value: object, where: str, column: str, optional: bool) -> float:
    """Return a finite number; `nan` for an optional one that is empty or not finite."""
    number: float | None
    if value is None or (isinstance(value, str) and not value.strip()):
        number = math.nan
    elif isinstance(value, bool) or (isinstance(value, str) and "_" in value):  # float("3_0") is 30
        number = None
    else:
        try:
            number = float(value)  # type: ignore[arg-type]
        except OverflowError:  # a JSON integer of hundreds of digits
            number = math.inf
        except (TypeError, ValueError):
            number = None
    if number is None or not (optional or math.isfinite(number)):
        wanted = "a number or empty" if optional else "a finite number"
        raise ValueError(f"{where}: `{column}` must be {wanted}, got {value!r}.")
    return number if math.isfinite(number) else math.nan


def _numbers(rows: _Rows, column: str, optional: bool = False) -> np.ndarray:
    return np.array([_number(row.get(column), where, column, optional) for where, row in rows])


def _onto_scale(column: str, values: np.ndarray, ends: tuple[float, float]) -> np.ndarray:
    """Map a scale, worst end first, to [1, 5]."""
    worst, best = ends
    if not (math.isfinite(worst) and math.isfinite(best)) or worst == best:
        raise ValueError(f"The range of `{column}` needs two different numbers, worst and best, got {worst}, {best}.")
    low, high = SCALE
    with np.errstate(over="ignore"):  # 1e308 is dropped or refused later
        return values if ends == SCALE else low + (high - low) * ((values - worst) / (best - worst))


def _outside(values: np.ndarray) -> int:
    low, high = SCALE
    return int(((values < low - 1e-9) | (values > high + 1e-9)).sum())


def _spread(rows: _Rows, score_range: tuple[float, float]) -> np.ndarray | None:
    values = _numbers(rows, "spread", optional=True)
    for (where, _), value in zip(rows, values, strict=True):
        if value < 0:
            raise ValueError(f"{where}: `spread` must be a standard deviation, at least 0, got {value}.")
    values = values * (SCALE[1] - SCALE[0]) / abs(score_range[1] - score_range[0])
    return None if np.isnan(values).all() else values


def _raw(rows: _Rows) -> np.ndarray | None:
    if not all("mos_raw" in row for _, row in rows):
        return None
    directions = {str(row.get("mos_direction") or "higher") for _, row in rows}
    if directions - {"higher", "lower"} or len(directions) > 1:
        raise ValueError(f"{rows[0][0]}: `mos_direction` must be higher or lower, the same in all rows of a set.")
    values = _numbers(rows, "mos_raw")
    return -values if directions == {"lower"} else values


def _texts(rows: _Rows, column: str) -> tuple[str, ...] | None:
    values = tuple("" if row.get(column) is None else _text(row[column]) for _, row in rows)
    return values if any(values) else None


def _text(value: object) -> str:
    # JSON can hold halves of surrogate pairs, which no output file accepts
    return str(value).encode("utf-8", "backslashreplace").decode("utf-8")
