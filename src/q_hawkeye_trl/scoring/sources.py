"""Where images come from: files, folders, globs, `datasets` folders, and images in memory."""

import glob
import io
import os
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image, UnidentifiedImageError

from ..data.folder import load_folder
from ..data.images import load_image

_SUFFIXES = "avif bmp dib gif jfif jp2 jpe jpeg jpg pbm pgm png pnm ppm tga tif tiff webp"
IMAGE_SUFFIXES = frozenset(f".{suffix}" for suffix in _SUFFIXES.split())
"""Endings, in lower case, of the files that a folder is searched for."""


class ImageSource(Protocol):
    """
    One image that can be loaded when its turn comes: `name` is what the output calls it, `key` tells it from all
    others and is the same in the next run.
    """

    @property
    def name(self) -> str: ...

    @property
    def key(self) -> str: ...

    def load(self) -> Image.Image:
        """Returns the upright RGB image; raises `ValueError` or `OSError` with a message that names it."""

    def pixels(self) -> tuple[int, int]:
        """Returns width and height by the file's header, `(0, 0)` where there is none."""

    def stamp(self) -> str:
        """Returns what changes when the image is replaced by another."""


@dataclass(frozen=True, slots=True)
class FileSource:
    """An image file."""

    path: str

    @property
    def name(self) -> str:
        return _valid_text(self.path)

    @property
    def key(self) -> str:
        return f"file:{_valid_text(os.path.abspath(self.path))}"

    def load(self) -> Image.Image:
        return load_image(self.path)

    def pixels(self) -> tuple[int, int]:
        return _header_size(self.path)

    def stamp(self) -> str:
        try:
            status = os.stat(self.path)
        except OSError:
            return "missing"
        return f"{status.st_size}:{status.st_mtime_ns}"


@dataclass(frozen=True, slots=True)
class RowSource:
    """The image of a row of a `datasets` folder; `rows` holds images undecoded."""

    rows: Dataset
    number: int
    name: str
    folder: str

    @property
    def key(self) -> str:
        return f"row:{self.folder}:{self.number}"

    def load(self) -> Image.Image:
        cell = self.rows[self.number]["image"]
        if cell is None:
            raise ValueError(f"{self.folder}, row {self.number}, column `image`: there is no image.")
        if cell["bytes"] is None:
            return load_image(cell["path"])
        try:
            return load_image(Image.open(io.BytesIO(cell["bytes"])))
        except (ValueError, OSError, SyntaxError) as error:
            reason = "cannot identify it" if isinstance(error, UnidentifiedImageError) else error
            raise ValueError(
                f"{self.folder}, row {self.number} ({self.name}) holds no readable image ({reason}): make it anew, or "
                "drop the row."
            ) from error

    def pixels(self) -> tuple[int, int]:
        cell = self.rows[self.number]["image"]
        if cell is None:
            return 0, 0
        return _header_size(cell["path"] if cell["bytes"] is None else io.BytesIO(cell["bytes"]))

    def stamp(self) -> str:
        cell = self.rows[self.number]["image"]
        if cell is None:
            return "missing"
        if cell["bytes"] is None:
            return FileSource(cell["path"]).stamp()
        return f"{len(cell['bytes'])}:{zlib.crc32(cell['bytes'])}"


@dataclass(frozen=True, slots=True)
class MemorySource:
    """An image that the caller holds."""

    image: Image.Image
    name: str

    @property
    def key(self) -> str:
        return f"memory:{self.name}"

    def load(self) -> Image.Image:
        return load_image(self.image)

    def pixels(self) -> tuple[int, int]:
        return self.image.size

    def stamp(self) -> str:
        return ""


def find_images(paths: Sequence[str | os.PathLike], split: str | None = None) -> list[ImageSource]:
    """
    Finds the images of files, folders (searched through, hidden ones left out), globs (`**` reaches into folders) and
    folders of the `datasets` library.

    Args:
        paths (`Sequence[str]`):
            Where to look, in order.
        split (`str`, *optional*):
            Split of the `datasets` folders. By default the only one.

    Returns:
        `list[ImageSource]`: In the order of `paths`, within a folder and a glob sorted by path. What is found twice
        stands there once.

    Raises:
        `FileNotFoundError`: A path is not there, a glob matches nothing, or a folder holds no image.
        `ValueError`: No paths, or a `datasets` folder can't be read.
    """
    if not paths:
        raise ValueError("There is nothing to score: name files, folders, globs or a `datasets` folder.")
    found: dict[str, ImageSource] = {}
    for path in paths:
        for source in _sources_of(os.fspath(path), split):
            found.setdefault(source.key, source)
    return list(found.values())


def _sources_of(path: str, split: str | None) -> Iterator[ImageSource]:
    if os.path.isdir(path):
        yield from _rows(path, split) if _is_datasets_folder(Path(path)) else _files_below(path)
    elif os.path.isfile(path):
        yield FileSource(path)
    elif glob.has_magic(path):
        matches = sorted(match for match in glob.glob(path, recursive=True) if os.path.isfile(match))
        matches = [match for match in matches if _is_image_name(match)]
        if not matches:
            raise FileNotFoundError(f"No image file matches {path}: correct the pattern.")
        yield from map(FileSource, matches)
    else:
        raise FileNotFoundError(f"There is no file or folder {path}: correct the path.")


def _is_image_name(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES


def _files_below(folder: str) -> Iterator[FileSource]:
    paths = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths += [os.path.join(parent, name) for name in files if not name.startswith(".") and _is_image_name(name)]
    if not paths:
        raise FileNotFoundError(
            f"{folder} holds no file with the ending of an image ({', '.join(sorted(IMAGE_SUFFIXES))}), nor what "
            "`save_to_disk` of `datasets` or Parquet files leave."
        )
    return map(FileSource, sorted(paths))


def _is_datasets_folder(folder: Path) -> bool:
    if any((folder / mark).is_file() for mark in ("dataset_dict.json", "state.json")):
        return True
    # a CSV or JSON file does not tell, nor a Parquet file beside images: they are labels or scores
    tables = any(folder.glob("*.parquet")) or any(folder.glob("data/*.parquet"))
    return tables and not any(_is_image_name(path.name) for path in folder.iterdir())


def _rows(folder: str, split: str | None) -> Iterator[RowSource]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # without `image_id` the rows are named by folder and number, see below
        dataset = load_folder(folder, split)
    if "image" not in dataset.column_names:
        raise ValueError(
            f"{folder} has no `image` column, but {', '.join(dataset.column_names)}: rename the one with the images."
        )
    ids = [str(value) for value in dataset["image_id"]]
    rows = dataset.select_columns("image").cast_column("image", ImageFeature(decode=False))
    for number, image_id in enumerate(ids):
        name = f"{folder}#{number}" if image_id == f"row-{number}" else image_id
        yield RowSource(rows, number, name, folder if split is None else f"{folder}:{split}")


def _valid_text(path: str) -> str:
    # JSON, CSV and Parquet hold valid text only, file names any bytes
    return path.encode("utf-8", "backslashreplace").decode("utf-8")


def _header_size(file: str | io.BytesIO) -> tuple[int, int]:
    try:
        with Image.open(file) as image:
            return image.size
    except Exception:  # Pillow's decoders raise a dozen kinds; loading the image will say what is wrong
        return 0, 0
