"""Label files by format: CSV, Excel and MATLAB, read row by row, with errors that name file and line. No pickle."""

import csv
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np


def check_file(path: Path, set_name: str) -> Path:
    """
    Returns `path` if it is a file.

    Raises:
        `FileNotFoundError`: It is not; the message lists what stands beside it.
    """
    if path.is_file():
        return path
    beside = sorted(file.name for file in path.parent.iterdir())[:20] if path.parent.is_dir() else []
    raise FileNotFoundError(
        f"{path} is missing, the label file of {set_name}. Found there: {', '.join(beside) or 'nothing'}."
    )


def read_csv(path: Path, required: Sequence[str], set_name: str) -> Iterator[tuple[str, dict[str, str]]]:
    """
    Reads a CSV file with a header.

    Args:
        path (`Path`):
            UTF-8, with or without a byte order mark.
        required (`Sequence[str]`):
            Columns that must be there.
        set_name (`str`):
            Name of the set, for messages.

    Yields:
        `tuple[str, dict[str, str]]`: Place of the row (file and line) and its cells.

    Raises:
        `FileNotFoundError`: There is no such file.
        `ValueError`: Wrong columns, a row of too few or too many cells, or text that is no UTF-8 CSV.
    """
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
        raise ValueError(f"{path} can't be read as CSV ({error}).") from error


def check_columns(path: Path, required: Sequence[str], found: Sequence[str]) -> None:
    """
    Checks the columns of a label file.

    Raises:
        `ValueError`: Some of `required` are missing, or stand there twice.
    """
    missing = [column for column in required if column not in found]
    if missing:
        raise ValueError(
            f"{path}: the columns {', '.join(missing)} are missing, found {', '.join(map(str, found)) or 'none'}."
        )
    twice = [column for column in dict.fromkeys(required) if list(found).count(column) > 1]
    if twice:
        raise ValueError(f"{path}: there is more than one column {', '.join(twice)}: keep one.")


def read_xlsx(
    path: Path, required: Sequence[str], set_name: str, sheet: str | None = None
) -> Iterator[tuple[str, dict[str, object]]]:
    """
    Reads a sheet of an Excel file. The header is the first of its first 20 rows that has the required columns,
    wherever it begins.

    Args:
        path (`Path`), required (`Sequence[str]`), set_name (`str`):
            As for [`read_csv`].
        sheet (`str`, *optional*):
            Name of the sheet, by default the first.

    Yields:
        `tuple[str, dict[str, object]]`: Place of the row (file, sheet and row) and its cells; empty rows are skipped.

    Raises:
        `FileNotFoundError`: There is no such file.
        `ValueError`: It is no Excel file, or has no such sheet or header.
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
            raise ValueError(f"{path}: there is no sheet {sheet!r}, found {', '.join(book.sheetnames)}.")
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
    """
    Reads a variable of a MATLAB file, flattened.

    Args:
        path (`Path`), set_name (`str`):
            As for [`read_csv`].
        variable (`str`):
            Its name.

    Returns:
        `np.ndarray`: Shape `(N,)`; of a cell array its texts.

    Raises:
        `FileNotFoundError`: There is no such file.
        `ValueError`: It is no MATLAB file, or lacks the variable.
    """
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


def cell_text(value: object) -> str:
    """Returns a cell as text; whole numbers without a point: Excel stores the name 1600 as a number."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None else str(value).strip()


def plain_name(value: object, where: str) -> str:
    """
    Returns a cell as a plain file name.

    Raises:
        `ValueError`: It is empty or has a folder in it.
    """
    name = cell_text(value)
    if not name or name in (".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise ValueError(f"{where}: expected a plain file name, got {value!r}.")
    return name
