"""The labels of a set before any image is opened: what readers return, and how they read label files. No pickle."""

import csv
import math
import os
import re
import unicodedata
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset

from .scales import to_mos


class EmbeddedImage(NamedTuple):
    """An image inside a table: its row in `table`, whose `image` column is not decoded, and its name in messages."""

    table: Dataset
    row: int
    label: str

    def read(self) -> bytes:
        """Return the bytes of the image file."""
        return self.table[self.row]["image"]["bytes"]


class LabelRow(NamedTuple):
    """
    One row of a label file.

    `image_id` is unique within the set. `image` is an absolute path, which need not exist, or the image itself.
    `where` is file and line, for messages. `score` is as released and `std` in its units. `split` is one of
    [`~data.splits.SPLITS`]. `reference` names the undistorted original. `group` is another key of
    rows that must stay in one split, like the text that an image was generated from.
    """

    image_id: str
    image: str | EmbeddedImage
    where: str
    score: float | None
    std: float | None = None
    split: str | None = None
    reference: str | None = None
    group: str | None = None


@dataclass
class LabelSet:
    """
    The labels of one set.

    Args:
        name (`str`):
            Value of the `dataset` column.
        rows (`list[LabelRow]`):
            In the label file's order.
        mos (`np.ndarray`):
            MOS in [1, 5], shape `(N,)`, NaN where a row has no score.
        mos_std (`np.ndarray`):
            Standard deviations in points of MOS, shape `(N,)`, NaN where there is none.
        scale (`str`), direction (`str`):
            Rule of the MOS and better end of the released score.
        scores (`str`), rule (`str`):
            What the released scores are and how MOS is made from them, for the card.
        folder (`Path`):
            Folder that must contain the images.
        files (`list[Path]`):
            Label files.
        splits (`str`):
            Where the splits come from, or what is kept together when they are drawn.
        references (`dict[str, str]`):
            Paths of the undistorted originals by name, if the set has them.
        ends (`tuple[float, float]`, *optional*):
            Ends of the raters' scale, in units of the rows' `std`.
        levels (`np.ndarray`, *optional*):
            Strength of each row's distortion, shape `(N,)`: MOS must fall with it.
        notes (`list[str]`):
            What a user should know, for the card and the terminal.
    """

    name: str
    rows: list[LabelRow]
    mos: np.ndarray
    mos_std: np.ndarray
    scale: str
    direction: str
    scores: str
    rule: str
    folder: Path
    files: list[Path]
    splits: str = "by image"
    references: dict[str, str] = field(default_factory=dict)
    ends: tuple[float, float] | None = None
    levels: np.ndarray | None = None
    notes: list[str] = field(default_factory=list)

    def columns(self, number: int) -> dict[str, Any]:
        """Return the label columns of a row of training data."""
        row, std = self.rows[number], float(self.mos_std[number])
        return {
            "image_id": row.image_id,
            "dataset": self.name,
            "mos": float(self.mos[number]),
            "mos_raw": row.score,
            "mos_direction": self.direction,
            "mos_scale": self.scale,
            "mos_std": None if math.isnan(std) else std,
            "mos_std_raw": row.std,
        }


def label_set(
    name: str,
    rows: list[LabelRow],
    *,
    scale: str | None,
    ends: tuple[float, float] | None,
    direction: str = "higher",
    **described: Any,
) -> LabelSet:
    """
    Make a [`LabelSet`] of one released score by [`~data.scales.to_mos`].

    `scale` is `"deqa"` by default. `ends` are the lowest and highest value of the released scale, if any. The other
    arguments are fields of [`LabelSet`]. Raises `ValueError` for no rows, a score beyond `ends` or an unknown rule.
    """
    file, scale = described["files"][0], scale or "deqa"
    if not rows:
        raise ValueError(f"{file}: there are no rows.")
    for row in rows:
        if ends is not None and row.score is not None and not ends[0] <= row.score <= ends[1]:
            raise ValueError(
                f"{row.where} ({row.image_id}): the score is {row.score:g}, expected one in [{ends[0]:g}, "
                f"{ends[1]:g}]. Scores are never clamped: correct the row, or the ends of the scale."
            )
    if scale == "linear" and ends is None:
        raise ValueError(f"{name} has no scale with fixed ends, so `linear` is not defined; use `deqa`.")
    scores = as_floats(row.score for row in rows)
    try:
        mos, factor = to_mos(scores, scale, direction, ends)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    described["scores"] += f"; {direction} is better" + (", so it is reversed" if direction == "lower" else "")
    described.setdefault("rule", _describe_rule(scores, scale, direction, ends))
    stds = as_floats(row.std for row in rows) * factor
    return LabelSet(name, rows, mos, stds, scale, direction, ends=ends, **described)


def as_floats(values: Any) -> np.ndarray:
    """Make an array `(N,)` of numbers, NaN for `None`."""
    return np.array([math.nan if value is None else value for value in values], dtype=float)


def _describe_rule(scores: np.ndarray, scale: str, direction: str, ends: tuple[float, float] | None) -> str:
    if scale == "deqa":
        form = "(v - min) / (max - min)" if direction == "higher" else "(max - v) / (max - min)"
        return (
            f"1 + 4 {form} (DeQA-Score's rule) with min = {np.nanmin(scores):.6g} and max = {np.nanmax(scores):.6g} "
            "over the whole set, test images included"
        )
    low, high = ends or (math.nan, math.nan)
    form = f"(v - {low:g})" if direction == "higher" else f"({high:g} - v)"
    return f"1 + 4 {form} / ({high:g} - {low:g}), linear between the ends of the released scale"


# Label files


def check_file(path: Path, set_name: str) -> Path:
    """Return `path` if it is a file; otherwise raise `FileNotFoundError` with the names of its neighbours."""
    if path.is_file():
        return path
    beside = sorted(file.name for file in path.parent.iterdir())[:20] if path.parent.is_dir() else []
    raise FileNotFoundError(
        f"{path} is missing, the label file of {set_name}. Its folder holds {', '.join(beside) or 'nothing'}."
    )


def read_csv(path: Path, required: Sequence[str], set_name: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield file and line, and the cells by column, of each row of a UTF-8 CSV file that has the required columns."""
    check_file(path, set_name)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            check_columns(path, required, reader.fieldnames or [])
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                if None in row or None in row.values():
                    raise ValueError(f"{where}: expected {len(reader.fieldnames or [])} cells as in the header.")
                yield where, row
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}): save it as UTF-8.") from error
    except csv.Error as error:
        raise ValueError(f"{path} can't be read as CSV ({error}): fetch it again.") from error


def check_columns(path: Path, required: Sequence[str], found: Sequence[str]) -> None:
    """Raise `ValueError` if a required column is missing or occurs twice."""
    missing = [column for column in required if column not in found]
    if missing:
        raise ValueError(
            f"{path}: the columns {', '.join(missing)} are missing; it has {', '.join(map(str, found)) or 'none'}."
        )
    twice = [column for column in dict.fromkeys(required) if list(found).count(column) > 1]
    if twice:
        raise ValueError(f"{path}: there is more than one column {', '.join(twice)}; keep one.")


def read_xlsx(
    path: Path, required: Sequence[str], set_name: str, sheet: str | None = None
) -> Iterator[tuple[str, dict[str, object]]]:
    """
    Yield place and cells of each row of an Excel sheet, by default the first; empty rows are skipped.

    The header is the first of the first 20 rows that has the required columns, wherever it begins.
    """
    from openpyxl import load_workbook  # type: ignore[import-untyped]
    from openpyxl.utils.exceptions import InvalidFileException  # type: ignore[import-untyped]

    check_file(path, set_name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # openpyxl warns of styles that it does not know
            book = load_workbook(path, read_only=True, data_only=True)
    except (InvalidFileException, zipfile.BadZipFile, KeyError, ValueError, OSError) as error:
        raise ValueError(f"{path} can't be read as an Excel file ({error}): fetch it again.") from error
    try:
        if sheet is not None and sheet not in book.sheetnames:
            raise ValueError(f"{path}: there is no sheet {sheet!r}; it has {', '.join(book.sheetnames)}.")
        page = book[sheet] if sheet is not None else book.worksheets[0]
        header: dict[str, int] = {}
        for number, cells in enumerate(page.iter_rows(values_only=True), 1):
            if not header:
                names = {str(cell).strip(): i for i, cell in reversed(list(enumerate(cells))) if cell is not None}
                if set(required) <= set(names):
                    header = names
                elif number == 20:
                    break
            elif any(cell is not None for cell in cells):
                row = {name: cells[i] if i < len(cells) else None for name, i in header.items()}
                yield f"{path}, sheet {page.title}, row {number}", row
        if not header:
            raise ValueError(f"{path}, sheet {page.title}: none of the first 20 rows has {', '.join(required)}.")
    finally:
        book.close()


def read_mat(path: Path, variable: str, set_name: str) -> np.ndarray:
    """Read a variable of a MATLAB file, flattened to `(N,)`; a cell array gives its texts."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    check_file(path, set_name)
    try:
        values = loadmat(path, variable_names=[variable]).get(variable)
    except (MatReadError, NotImplementedError, ValueError, TypeError, OSError, EOFError) as error:
        raise ValueError(f"{path} can't be read as a MATLAB file ({error}): fetch it again.") from error
    if values is None:
        raise ValueError(f"{path}: there is no variable {variable}.")
    if values.dtype != object:
        return values.ravel()
    return np.array([str(np.ravel(cell)[0]) for cell in values.ravel()])


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield place and text of each line that is not empty."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"{path}, line {number}", line.strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}): fetch it again.") from error


# Cells


def cell_text(value: object) -> str:
    """Return a cell as text, whole numbers without a point: Excel stores the name 1600 as a number."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None else str(value).strip()


def plain_name(value: object, where: str) -> str:
    """Return a cell as a file name; raise `ValueError` if it is empty or names a folder."""
    name = cell_text(value)
    if not name or name in (".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise ValueError(f"{where}: expected a plain file name, got {value!r}.")
    return name


def parse_number(value: object) -> float | None:
    """Read a cell as a number, `None` for an empty cell, other text, NaN and infinity."""
    if value is None or isinstance(value, bool) or (isinstance(value, str) and "_" in value):  # Python reads 1_0 as 10
        return None
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def parse_spread(value: object, where: str) -> float | None:
    """Read a standard deviation or variance, `None` if empty or NaN; raise `ValueError` if it can't be one."""
    number = parse_number(value)
    if number is None and (value is None or str(value).strip().lower() in ("", "nan")):
        return None
    if number is None or number < 0:
        raise ValueError(f"{where} must be a number of at least 0, or empty, got {value!r}.")
    return number


def reference_reader(pattern: str) -> Callable[[str, str], str]:
    """Return a function of image name and place that returns the first group of `pattern` in the file name."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"--reference-pattern {pattern!r} is not a regular expression ({error}).") from error
    if compiled.groups < 1:
        raise ValueError(f"--reference-pattern {pattern!r} needs a group in parentheses, like '^(I[0-9]+)_'.")

    def reference(image_id: str, where: str) -> str:
        found = compiled.search(os.path.basename(image_id))
        if found is None or found.group(1) is None:
            raise ValueError(f"{where} ({image_id}): the file name does not match {pattern!r}.")
        return found.group(1)

    return reference


# Image files


class FileIndex:
    """Files of some folders by name, in any case of letters and any Unicode form; the first folder is the default."""

    def __init__(self, folders: Sequence[Path]):
        self._home = folders[0]
        self._exact: dict[str, str] = {}
        self._loose: dict[str, list[str]] = {}
        for folder in folders:
            for name in os.listdir(folder):
                path = os.path.join(folder, name)
                self._exact.setdefault(name, path)
                self._loose.setdefault(_loose(name), []).append(path)

    def path(self, name: str) -> str:
        """Return the path of a file as it is on disk, or where it should be; raise `ValueError` if several match."""
        if name in self._exact:
            return self._exact[name]
        found = self._loose.get(_loose(name), [])
        if len(found) > 1:
            raise ValueError(f"{' and '.join(found)} both could be {name}; keep one.")
        return found[0] if found else os.path.join(self._home, name)


def image_folder(root: Path, wanted: str | None, official: Sequence[str], set_name: str) -> Path:
    """Return the absolute image folder of a set: `wanted`, from `root` or absolute, or the first official name."""
    if not root.is_dir():
        raise FileNotFoundError(f"There is no folder {root}: name the folder that holds {set_name}.")
    names = [wanted] if wanted else list(official)
    for name in names:
        if (root / name).is_dir():
            return Path(os.path.abspath(root / name))
    raise FileNotFoundError(
        f"{root}: expected the image folder {' or '.join(names)} of {set_name}; unpack the images there, or "
        "name their folder by --images of `q-hawkeye prepare`."
    )


def _loose(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
