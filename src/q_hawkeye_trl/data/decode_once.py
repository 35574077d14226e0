"""
A dataset that decodes each image of a batch once. TRL's sampler repeats every prompt for its rollouts, and the whole
generation batch again for each of its micro-steps; every repetition would read and decode the image anew.
"""

from collections.abc import Sequence
from typing import Any

from torch.utils.data import Dataset


class DecodeOnce(Dataset):
    """
    Wraps a dataset so that the distinct rows of a batch are fetched once, and not at all while the batch before
    still holds them. Rows come out as new dictionaries over shared values.

    Args:
        dataset:
            Dataset with `__len__` and `__getitem__`; where it has `__getitems__`, rows are fetched together.
    """

    def __init__(self, dataset: Any):
        self.dataset = dataset
        self._rows: dict[int, dict[str, Any]] = {}

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str):
        if name == "dataset":  # not there yet while being copied or unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Fetches rows, for PyTorch's fetcher."""
        distinct = list(dict.fromkeys(indices))
        missing = [index for index in distinct if index not in self._rows]
        kept = {index: self._rows[index] for index in distinct if index in self._rows}
        self._rows = kept | dict(zip(missing, self._fetch(missing), strict=True))
        return [dict(self._rows[index]) for index in indices]

    def _fetch(self, indices: list[int]) -> list[dict[str, Any]]:
        if indices and hasattr(self.dataset, "__getitems__"):
            return self.dataset.__getitems__(indices)
        return [self.dataset[index] for index in indices]
