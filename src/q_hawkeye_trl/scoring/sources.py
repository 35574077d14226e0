"""Where images come from: files, folders, globs, `datasets` folders, and images in memory."""

import glob
import io
import os
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from PIL import Image

from ..data.images import decode_cell, load_image

if TYPE_CHECKING:
    from datasets import Dataset  # slow to import, and needed for `datasets` folders only

_SUFFIXES = "avif bmp dib gif jfif jp2 jpe jpeg jpg pbm pgm png pnm ppm tga tif tiff webp"
IMAGE_SUFFIXES = frozenset(f".{suffix}" for suffix in _SUFFIXES.split())
"""Endings, in lower case, of the files that a folder is searched for."""


class ImageSource(Protocol):
    """
    What one prompt shows, loaded on demand: an image, or the several images of a dataset row.

    `name` is what the output calls it, `key` tells it from all others and is the same in the next run, `prompt` is the
    conversation of its own, if it has one.
    """

    @property
    def name(self) -> str: ...

    @property
    def key(self) -> str: ...

    @property
    def prompt(self) -> list[dict] | None: ...

    def load(self) -> list[Image.Image]:
        """The upright RGB images; raise `ValueError` or `OSError` with a message that names the unreadable one."""

    def pixels(self) -> tuple[int, int]:
        """Width and height by the file's header, `(0, 0)` if unknown."""

    def stamp(self) -> str:
        """A text that changes when an image is replaced by another."""


@dataclass(frozen=True, slots=True)
class FileSource:
    """An image file."""

    path: str
    prompt: None = None

    @property
    def name(self) -> str:
        return _valid_text(self.path)

    @property
    def key(self) -> str:
        return f"file:{_valid_text(os.path.abspath(self.path))}"

    def load(self) -> list[Image.Image]:
        return [load_image(self.path)]

    def pixels(self) -> tuple[int, int]:
        return _header_size(self.path)

    def stamp(self) -> str:
        return _file_stamp(self.path)


@dataclass(frozen=True, slots=True)
class RowSource:
    """The images of a row of a `datasets` folder; `rows` holds images undecoded, in `image` or `images`."""

    rows: "Dataset"
    number: int
    name: str
    folder: str

    @property
    def key(self) -> str:
        return f"row:{self.folder}:{self.number}"

    @property
    def prompt(self) -> list[dict] | None:
        return self.rows[self.number].get("prompt")

    def load(self) -> list[Image.Image]:
        where = f"{self.folder}, row {self.number} ({self.name})"
        return [decode_cell(cell, where) for cell in self._cells()]

    def pixels(self) -> tuple[int, int]:
        sizes = [
            _header_size(cell["path"] or "") if cell["bytes"] is None else _header_size(io.BytesIO(cell["bytes"]))
            for cell in self._cells()
            if cell is not None
        ]
        return sizes[0] if len(sizes) == 1 else (sum(width * height for width, height in sizes), 1)

    def stamp(self) -> str:
        stamps = []
        for cell in self._cells():
            if cell is None:
                stamps.append("missing")
            elif cell["bytes"] is None:
                stamps.append(_file_stamp(cell["path"]))
            else:
                stamps.append(f"{len(cell['bytes'])}:{zlib.crc32(cell['bytes'])}")
        return ",".join(stamps)

    def _cells(self) -> list[dict[str, Any] | None]:
        row = self.rows[self.number]
        return (row["images"] or [None]) if "images" in row else [row["image"]]


@dataclass(frozen=True, slots=True)
class MemorySource:
    """Images that the caller holds, or the paths of several that belong together."""

    images: Sequence[Image.Image | str | os.PathLike]
    name: str
    prompt: None = None

    @property
    def key(self) -> str:
        return f"memory:{self.name}"

    def load(self) -> list[Image.Image]:
        return [load_image(image) for image in self.images]

    def pixels(self) -> tuple[int, int]:
        sizes = [image.size if isinstance(image, Image.Image) else _header_size(image) for image in self.images]
        return sizes[0] if len(sizes) == 1 else (sum(width * height for width, height in sizes), 1)

    def stamp(self) -> str:
        return ""


def find_images(paths: Sequence[str | os.PathLike], split: str | None = None) -> list[ImageSource]:
    """
    Find the images of files, folders (searched recursively without hidden ones), globs and `datasets` folders.

    Args:
        paths (`Sequence[str]`):
            Where to look, in order.
        split (`str`, *optional*):
            Split of the `datasets` folders. By default the only one.

    Returns:
        `list[ImageSource]`: In the order of `paths`, within a folder and a glob sorted by path, without duplicates.

    Raises:
        `FileNotFoundError`: A path is missing, a glob matches nothing, or a folder has no image.
        `ValueError`: No paths, or a `datasets` folder can't be read.
    """
    if not paths:
        raise ValueError("There is nothing to score: name files, folders, globs or a `datasets` folder.")
    found: dict[str, ImageSource] = {}
    for path in paths:
        for source in _sources_of(os.fspath(path), split):
            found.setdefault(source.key, source)
    return list(found.values())


def row_sources(dataset: "Dataset", folder: str, split: str | None = None) -> list[RowSource]:
    """The rows of a folder's dataset as sources; without `image_id` a row is named by folder and number."""
    from datasets import Image as ImageFeature
    from datasets import List

    columns = [column for column in ("image", "images") if column in dataset.column_names]
    if len(columns) != 1:
        raise ValueError(
            f"{folder} needs an `image` or an `images` column, and has {', '.join(dataset.column_names)}: rename the "
            "one with the images."
        )
    ids = [str(value) for value in dataset["image_id"]]
    undecoded = ImageFeature(decode=False)
    rows = dataset.select_columns([*columns, *(["prompt"] if "prompt" in dataset.column_names else [])])
    rows = rows.cast_column(columns[0], undecoded if columns[0] == "image" else List(undecoded))
    place = folder if split is None else f"{folder}:{split}"
    names = [f"{folder}#{number}" if name == f"row-{number}" else name for number, name in enumerate(ids)]
    return [RowSource(rows, number, name, place) for number, name in enumerate(names)]


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
            f"{folder} has no file with the ending of an image ({', '.join(sorted(IMAGE_SUFFIXES))}), and is not a "
            "folder that `save_to_disk` of `datasets` wrote, or of Parquet files."
        )
    return map(FileSource, sorted(paths))


def _is_datasets_folder(folder: Path) -> bool:
    if any((folder / mark).is_file() for mark in ("dataset_dict.json", "state.json")):
        return True
    # a CSV or JSON file does not tell, nor a Parquet file beside images: they are labels or scores
    tables = any(folder.glob("*.parquet")) or any(folder.glob("data/*.parquet"))
    return tables and not any(_is_image_name(path.name) for path in folder.iterdir())


def _rows(folder: str, split: str | None) -> list[RowSource]:
    from ..data.folder import load_folder

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # rows without `image_id` get names of their own
        return row_sources(load_folder(folder, split), folder, split)


def _valid_text(path: str) -> str:
    # JSON, CSV and Parquet hold valid text only, file names any bytes
    return path.encode("utf-8", "backslashreplace").decode("utf-8")


def _file_stamp(path: str) -> str:
    try:
        status = os.stat(path)
    except OSError:
        return "missing"
    return f"{status.st_size}:{status.st_mtime_ns}"


def _header_size(file: str | os.PathLike | io.BytesIO) -> tuple[int, int]:
    try:
        with Image.open(file) as image:
            return image.size
    except Exception:  # Pillow's decoders raise a dozen kinds; loading the image reports what is wrong
        return 0, 0
