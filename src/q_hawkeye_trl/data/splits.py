"""Splits by group: images of the same content are always in one split."""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

SPLITS = ("train", "validation", "test")
SHARES = (0.7, 0.1, 0.2)
"""Default shares of the splits: KonIQ-10k's, rounded."""

_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "val", "valid", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def split_name(value: object, where: str) -> str:
    """Read the name of a split as label files write it, such as `training`, `val` or `dev`, as one of `SPLITS`."""
    name = _NAMES.get(str(value).strip().lower())
    if name is None:
        raise ValueError(f"{where}: expected a split (train, validation or test), got {value!r}.")
    return name


def image_key(image_id: str) -> str:
    """Return the group, for [`draw_splits`], of an image that shares its group with no other."""
    return f"image {image_id}"


def draw_splits(groups: Iterable[str], shares: Sequence[float] = SHARES, seed: int = 0) -> dict[str, int]:
    """
    Draw a split for each group.

    Shares count groups, not images; every split with a share gets at least one group if there are enough. Groups are
    ordered by a hash of the seed and their name, so adding or removing a group moves one or two others, not all.

    Args:
        groups (`Iterable[str]`):
            Names of the groups; their order and repetitions don't matter.
        shares (`Sequence[float]`, *optional*):
            Share of each split, of any sum above 0.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the draw.

    Returns:
        `dict[str, int]`: Number of the split, from 0, by group.

    Raises:
        `ValueError`: A share is negative or all are 0.
    """
    if min(shares) < 0 or not 0 < sum(shares) < float("inf"):
        raise ValueError(f"Shares of splits must be at least 0 and not all 0, got {tuple(shares)}.")
    names = set(groups)
    ends = np.rint(np.cumsum(shares) * len(names) / sum(shares)).astype(int)
    sizes = np.diff(ends, prepend=0)
    if len(names) >= np.count_nonzero(shares):
        for poor in np.flatnonzero((sizes == 0) & (np.array(shares) > 0)):
            sizes[int(np.argmax(sizes))] -= 1
            sizes[poor] = 1
    numbers = np.repeat(np.arange(len(sizes)), sizes).tolist()
    return dict(zip(sorted(names, key=lambda name: _draw(seed, name)), numbers, strict=True))


def join_groups(keys: Sequence[Sequence[str]]) -> list[str]:
    """
    Join rows that share a key, directly or through other rows, and return the group of each row.

    A group is named by the smallest first key of its rows, so its name does not depend on their order.
    """
    numbers = {key: number for number, key in enumerate(dict.fromkeys(key for row in keys for key in row))}
    pairs = np.array([(numbers[row[0]], numbers[key]) for row in keys for key in row]).T
    graph = coo_array((np.ones(pairs.shape[1], dtype=bool), pairs), shape=(len(numbers), len(numbers)))
    groups = connected_components(graph, directed=False)[1]
    names: dict[int, str] = {}
    for row in keys:
        group = groups[numbers[row[0]]]
        names[group] = min(names.get(group, row[0]), row[0])
    return [names[groups[numbers[row[0]]]] for row in keys]


def _draw(seed: int, name: str) -> bytes:
    # surrogates: file names that are not UTF-8
    return hashlib.blake2b(f"{seed}/{name}".encode("utf-8", "surrogatepass"), digest_size=16).digest()
