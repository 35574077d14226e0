"""What a reader returns: the labels of one whole set, checked and on the common scale, before any image is opened."""

import math
import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from datasets import Dataset

from ..scales import to_mos


class EmbeddedImage(NamedTuple):
    """
    An image whose file stands inside a table.

    Args:
        table (`Dataset`):
            The table, its `image` column not decoded.
        row (`int`):
            Number of the row.
        label (`str`):
            What messages call it.
    """

    table: Dataset
    row: int
    label: str

    def read(self) -> bytes:
        """Returns the bytes of the image file."""
        return self.table[self.row]["image"]["bytes"]


class LabelRow(NamedTuple):
    """
    One row of a label file.

    Args:
        image_id (`str`):
            Name of the image, unique within the set.
        image (`str` or `EmbeddedImage`):
            Absolute path of the file, which need not exist, or the image itself.
        where (`str`):
            Place of the row, for messages: file and line.
        score (`float` or `None`):
            Score as released; `None` where there is none.
        std (`float` or `None`):
            Standard deviation of the opinions, in units of `score`.
        split (`str` or `None`):
            One of [`~data.splits.SPLITS`] where the set has splits of its own.
        reference (`str` or `None`):
            Name of the undistorted original.
        group (`str` or `None`):
            What else must stay in one split, like the text that an image was generated from.
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
        scores (`str`):
            What the released scores are, for the card.
        rule (`str`):
            How MOS came from them, for the card.
        folder (`Path`):
            Folder that the images must lie in.
        files (`list[Path]`):
            Label files that were read.
        splits (`str`):
            Where the splits come from, or what is kept together when they are drawn.
        references (`dict[str, str]`):
            Path of the undistorted originals by name, as far as the set has them.
        ends (`tuple[float, float]`, *optional*):
            Ends of the scale on which people answered, in units of the rows' `std`.
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


def label_set(
    name: str,
    rows: list[LabelRow],
    *,
    scale: str | None,
    ends: tuple[float, float] | None,
    direction: str = "higher",
    **described,
) -> LabelSet:
    """
    Makes a [`LabelSet`] of one released score by [`~data.scales.to_mos`].

    Args:
        name (`str`), rows (`list[LabelRow]`), **described:
            Fields of [`LabelSet`].
        scale (`str` or `None`):
            Rule, `None` for `"deqa"`.
        ends (`tuple[float, float]` or `None`):
            Lowest and highest value of the released scale; `None` where it has none.
        direction (`str`, *optional*, defaults to `"higher"`):
            Better end of the released score.

    Returns:
        [`LabelSet`]

    Raises:
        `ValueError`: No rows, a score beyond `ends`, or an unknown rule; the message names the row or the file.
    """
    files = described["files"]
    if not rows:
        raise ValueError(f"{files[0]}: there are no rows.")
    scores = np.array([math.nan if row.score is None else row.score for row in rows])
    if ends is not None:
        check_ends(rows, ends)
    scale = scale or "deqa"
    if scale == "linear" and ends is None:
        raise ValueError(f"{name} has no scale with fixed ends, so `linear` is not defined; use `deqa`.")
    try:
        mos, factor = to_mos(scores, scale, direction, ends)
    except ValueError as error:
        raise ValueError(f"{files[0]}: {error}") from error
    better = f"{direction} is better" + (", so it is turned round" if direction == "lower" else "")
    described["scores"] += f"; {better}"
    described.setdefault("rule", describe_rule(scores, scale, direction, ends))
    stds = np.array([math.nan if row.std is None else row.std for row in rows])
    return LabelSet(name, rows, mos, stds * factor, scale, direction, ends=ends, **described)


def describe_rule(scores: np.ndarray, scale: str, direction: str, ends: tuple[float, float] | None) -> str:
    """Says in a sentence what [`~data.scales.to_mos`] did."""
    if scale == "deqa":
        low, high = np.nanmin(scores), np.nanmax(scores)
        form = "(v - min) / (max - min)" if direction == "higher" else "(max - v) / (max - min)"
        return (
            f"1 + 4 {form} (DeQA-Score's rule) with min = {low:.6g} and max = {high:.6g} over the whole set, test "
            "images included"
        )
    assert ends is not None  # to_mos has refused it
    low, high = ends
    form = f"(v - {low:g})" if direction == "higher" else f"({high:g} - v)"
    return f"1 + 4 {form} / ({high:g} - {low:g}), linear between the ends of the released scale"


def check_ends(rows: Sequence[LabelRow], ends: tuple[float, float]) -> None:
    """
    Checks that scores lie on the released scale.

    Raises:
        `ValueError`: One does not; the message names its row.
    """
    low, high = ends
    for row in rows:
        if row.score is not None and not low <= row.score <= high:
            raise ValueError(
                f"{row.where} ({row.image_id}): expected a score in [{low:g}, {high:g}], got {row.score:g}. Scores "
                "are never clamped: correct the row or the scale's ends."
            )


class ReferencePattern:
    """
    Takes the reference from an image's file name.

    Args:
        text (`str`):
            Regular expression, looked for anywhere in the file name; its first group is the reference.

    Raises:
        `ValueError`: It is no regular expression, or has no group.
    """

    def __init__(self, text: str):
        try:
            self._pattern = re.compile(text)
        except re.error as error:
            raise ValueError(f"--reference-pattern {text!r} is no regular expression ({error}).") from error
        if self._pattern.groups < 1:
            raise ValueError(f"--reference-pattern {text!r} needs a group in parentheses, like '^(I[0-9]+)_'.")

    def reference(self, image_id: str, where: str) -> str:
        """
        Returns the reference of one image.

        Raises:
            `ValueError`: The file name does not match; the message names the row.
        """
        found = self._pattern.search(os.path.basename(image_id))
        if found is None or found.group(1) is None:
            raise ValueError(f"{where} ({image_id}): the file name does not match {self._pattern.pattern!r}.")
        return found.group(1)


def parse_number(value: object) -> float | None:
    """
    Reads a cell as a number.

    Args:
        value (`object`):
            Text or number.

    Returns:
        `float` or `None`: `None` for an empty cell, text that is no number, NaN and infinity.
    """
    if value is None or isinstance(value, bool) or (isinstance(value, str) and "_" in value):  # Python reads 1_0 as 10
        return None
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def parse_spread(value: object, where: str) -> float | None:
    """
    Reads a cell as a standard deviation or variance of opinions.

    Args:
        value (`object`):
            Text or number.
        where (`str`):
            What the message calls the cell.

    Returns:
        `float` or `None`: `None` for an empty cell and NaN.

    Raises:
        `ValueError`: Anything else that is no number of at least 0.
    """
    number = parse_number(value)
    is_empty = value is None or str(value).strip().lower() in ("", "nan")
    if number is None and is_empty:
        return None
    if number is None or number < 0:
        raise ValueError(f"{where} must be a number of at least 0, or empty, got {value!r}.")
    return number


class FileIndex:
    """
    Files of some folders by name, whatever the case of letters or the Unicode form in which a label file spells them.

    Args:
        folders (`Sequence[Path]`):
            Folders, not searched deeper. The first one stands in the path of a file that is in none.
    """

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
        """
        Finds a file.

        Args:
            name (`str`):
                Plain file name.

        Returns:
            `str`: Its path as it is on disk; where it would be, if there is none.

        Raises:
            `ValueError`: Several files differ from the name by case only, and none has it.
        """
        if name in self._exact:
            return self._exact[name]
        found = self._loose.get(_loose(name), [])
        if len(found) > 1:
            raise ValueError(f"{' and '.join(found)} both could be {name}; keep one.")
        return found[0] if found else os.path.join(self._home, name)


def image_folder(root: Path, wanted: str | None, official: Sequence[str], set_name: str) -> Path:
    """
    Finds a set's image folder.

    Args:
        root (`Path`):
            Folder of the set.
        wanted (`str` or `None`):
            Folder that the user named, from `root` or absolute.
        official (`Sequence[str]`):
            Names that it has in the official layout, the first one that exists counts.
        set_name (`str`):
            Name of the set, for messages.

    Returns:
        `Path`: Absolute.

    Raises:
        `FileNotFoundError`: There is none.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"There is no folder {root}: --root is the folder that holds {set_name}.")
    names = [wanted] if wanted else list(official)
    for name in names:
        if (root / name).is_dir():
            return Path(os.path.abspath(root / name))
    raise FileNotFoundError(
        f"{root}: expected the image folder {' or '.join(names)} of {set_name}; unpack the images there, or name "
        "their folder by --images."
    )


def _loose(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
