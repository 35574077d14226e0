"""The image columns of any dataset, decoded by `load_image` and once a batch."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import datasets
import pyarrow as pa
from datasets import Features, Image, IterableDataset, LargeList, List, Value
from datasets.fingerprint import update_fingerprint
from datasets.utils.file_utils import is_local_path
from PIL import Image as PILImage

from .images import decode_cell, to_rgb

IMAGE_COLUMNS = ("image", "images", "degraded_image", "degraded_images")
_TEXTS = (Value("string"), Value("large_string"), Value("binary"), Value("large_binary"))


def with_uniform_images(dataset: Any) -> Any:
    """
    Return a dataset whose images are upright RGB, as [`~data.images.load_image`] decodes them.

    It covers the columns `image`, `images`, `degraded_image` and `degraded_images` and the image blocks of `prompt`,
    whether they hold files, bytes or decoded images. A format or transform of the dataset stays in effect; the images
    that a transform returns are converted too. Nothing is decoded or copied before a row is read. A second call
    changes nothing.

    Args:
        dataset (`Dataset`, `IterableDataset`, a dict of them, another iterable of rows, or `None`):
            Rows of any source.

    Returns:
        The same kind of dataset; for other iterables a PyTorch dataset over them. Reading a row raises `ValueError` or
        `FileNotFoundError` for an image that can't be decoded; the message names the column, the file, and the row if
        it is known (through [`read_rows`] and [`DecodeOnce`]).
    """
    if dataset is None or isinstance(dataset, str | _Rows | _Stream):
        return dataset
    if isinstance(dataset, Mapping):
        kind: Any = type(dataset)
        return kind({name: with_uniform_images(part) for name, part in dataset.items()})
    if isinstance(dataset, datasets.Dataset):
        return _uniform_table(dataset)
    if isinstance(dataset, IterableDataset):
        return _uniform_stream(dataset)
    if hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"):
        return _Rows(dataset)
    import torch.utils.data  # takes seconds, and labels are read without it

    torch.utils.data.IterableDataset.register(_Stream)
    return _Stream(dataset)


def read_rows(dataset: Any, indices: Sequence[int]) -> list[dict[str, Any]]:
    """Read rows together; an error of an image names the row."""
    try:
        if indices and hasattr(dataset, "__getitems__"):
            return dataset.__getitems__(indices)
        return [dataset[index] for index in indices]
    except (ValueError, FileNotFoundError):
        for index in indices:
            try:
                dataset[index]
            except (ValueError, FileNotFoundError) as error:
                if type(error) not in (ValueError, FileNotFoundError) or str(error).startswith("row "):
                    raise
                raise type(error)(f"row {index}, {error}") from error
        raise


class UniformImage(Image):
    """The `Image` feature of `datasets`, decoded by [`~data.images.decode_cell`]."""

    column = "image"

    @classmethod
    def of(cls, column: str, mode: str | None = None, decode: bool = True) -> "UniformImage":
        """Build the feature for a column, whose errors it names."""
        feature = cls(mode=mode, decode=decode)
        feature.column = column
        return feature

    def decode_example(self, value: Any, token_per_repo_id: dict | None = None) -> PILImage.Image:
        """Decode a cell to upright RGB."""
        if isinstance(value, dict) and value["bytes"] is None and value["path"] and not is_local_path(value["path"]):
            fetched = self.embed_storage(pa.array([value], self.pa_type), token_per_repo_id)
            value = {"bytes": fetched[0]["bytes"].as_py(), "path": value["path"]}
        image = decode_cell(value, f"column `{self.column}`")
        return image if self.mode in (None, "RGB") else to_rgb(image.convert(self.mode))


class DecodeOnce:
    """
    A dataset that reads the distinct rows of a batch once, and not at all if the previous batch had them. TRL repeats
    each prompt for its rollouts, and each generation batch for its micro-steps.

    Rows are new dictionaries over shared values.
    """

    def __init__(self, dataset: Any):
        self.dataset = dataset
        self._rows: dict[int, dict[str, Any]] = {}

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str):
        if name == "dataset":  # missing while being copied or unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        distinct = list(dict.fromkeys(indices))
        missing = [index for index in distinct if index not in self._rows]
        kept = {index: self._rows[index] for index in distinct if index in self._rows}
        self._rows = kept | dict(zip(missing, read_rows(self.dataset, missing), strict=True))
        return [dict(self._rows[index]) for index in indices]


class _Transform:
    """A dataset's transform, followed by the conversion of the images that it returns."""

    def __init__(self, transform: Callable[[dict], dict]):
        self.transform = transform

    def __call__(self, batch: dict) -> dict:
        batch = self.transform(batch)
        if not isinstance(batch, Mapping):
            return batch
        return {
            column: [_uniform_value(cell, column, f"column `{column}`") for cell in cells]
            if column in (*IMAGE_COLUMNS, "prompt") and isinstance(cells, list | tuple)
            else cells
            for column, cells in batch.items()
        }


class _Rows:
    """Rows by index, of a list or a PyTorch dataset."""

    def __init__(self, rows: Any):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getattr__(self, name: str):
        if name in ("rows", "__getitems__"):
            raise AttributeError(name)
        return getattr(self.rows, name)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return _uniform_row(self.rows[index], index)


class _Stream:
    """Rows in order, of a generator or a PyTorch dataset."""

    def __init__(self, rows: Any):
        self.rows = rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (_uniform_row(row, number) for number, row in enumerate(self.rows))


def _uniform_table(dataset: datasets.Dataset) -> datasets.Dataset:
    transform = dataset.format["format_kwargs"].get("transform")  # of `set_transform`
    features = _uniform_features(dataset.features, decode=transform is None)
    if features == dataset.features and (transform is None or isinstance(transform, _Transform)):
        return dataset
    dataset = copy.deepcopy(dataset)  # shares the table, of which `cast` would write a copy
    if transform is not None and not isinstance(transform, _Transform):
        dataset._format_kwargs = {"transform": _Transform(transform)}
    dataset.info.features = features
    dataset._data = dataset._data.cast(features.arrow_schema)
    dataset._fingerprint = update_fingerprint(dataset._fingerprint, with_uniform_images, {})
    return dataset


def _uniform_stream(dataset: IterableDataset) -> IterableDataset:
    if dataset.features is None:
        return dataset.map(_uniform_row, with_indices=True)
    features = _uniform_features(dataset.features)
    for column in features:
        if features[column] != dataset.features[column]:
            dataset = dataset.cast_column(column, features[column])
    return dataset


def _uniform_features(features: Features, *, decode: bool = True) -> Features:
    """Replace the image features; with `decode`, undecoded ones and those of paths or bytes become images too."""
    replaced = features.copy()
    for column in (*IMAGE_COLUMNS, "prompt"):
        if column in replaced:
            texts = decode and column != "prompt"
            replaced[column] = _uniform_feature(replaced[column], column, decode, texts)
    return replaced


def _uniform_feature(feature: Any, column: str, decode: bool, texts: bool) -> Any:
    if isinstance(feature, Image):
        return UniformImage.of(column, feature.mode, feature.decode or decode)
    if texts and feature in _TEXTS:
        return UniformImage.of(column)
    if isinstance(feature, dict):
        return {name: _uniform_feature(part, column, decode, texts) for name, part in feature.items()}
    if isinstance(feature, List | LargeList):
        changed = copy.copy(feature)
        changed.feature = _uniform_feature(feature.feature, column, decode, texts)
        return changed
    if isinstance(feature, list):
        return [_uniform_feature(feature[0], column, decode, texts)]
    return feature


def _uniform_row(row: dict[str, Any], number: int) -> dict[str, Any]:
    columns = [column for column in (*IMAGE_COLUMNS, "prompt") if column in row]
    return {**row, **{c: _uniform_value(row[c], c, f"row {number}, column `{c}`") for c in columns}}


def _uniform_value(value: Any, column: str, where: str) -> Any:
    """Convert the images of a cell; `None`, arrays and tensors are kept."""
    if column == "prompt":
        return _uniform_prompt(value, where)
    if isinstance(value, list | tuple):
        return [_uniform_value(item, column, where) for item in value]
    is_image = isinstance(value, dict | str | bytes | PILImage.Image) or hasattr(value, "__fspath__")
    return decode_cell(value, where) if is_image else value


def _uniform_prompt(value: Any, where: str) -> Any:
    if isinstance(value, list | tuple):
        return [_uniform_prompt(item, where) for item in value]
    if isinstance(value, dict):
        if value.get("type") == "image" and value.get("image") is not None:
            return {**value, "image": _uniform_value(value["image"], "image", where)}
        if isinstance(value.get("content"), list):
            return {**value, "content": _uniform_prompt(value["content"], where)}
    return value
