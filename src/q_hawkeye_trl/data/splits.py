"""Splits by group: what shows the same content never stands in two of them."""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

SPLITS = ("train", "validation", "test")
SHARES = (0.7, 0.1, 0.2)
"""Shares of the splits where a set has none of its own: KonIQ-10k's, rounded."""

_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "val", "valid", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def split_name(value: object, where: str) -> str:
    """
    Reads the name of a split as label files write it.

    Args:
        value (`object`):
            `train` or `training`, `validation`, `val`, `valid` or `dev`, `test` or `testing`, in any case.
        where (`str`):
            What the message calls the place.

    Returns:
        `str`: One of `SPLITS`.

    Raises:
        `ValueError`: Anything else.
    """
    name = _NAMES.get(str(value).strip().lower())
    if name is None:
        raise ValueError(f"{where}: expected a split (train, validation or test), got {value!r}.")
    return name


def image_key(image_id: str) -> str:
    """Names the group of an image that belongs to no other one, as [`draw_splits`] takes it."""
    return f"image {image_id}"


def draw_splits(groups: Iterable[str], shares: Sequence[float] = SHARES, seed: int = 0) -> dict[str, int]:
    """
    Draws a split for each group. Shares count groups, not images; every split with a share gets one group at least
    where there are enough of them. Groups are ordered by a hash of the seed and their name, so that a group more or
    less moves one or two others and not all.

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
        raise ValueError(f"Shares of splits are at least 0 and not all 0, got {tuple(shares)}.")
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
    Joins rows that share a key, directly or by way of other rows.

    Args:
        keys (`Sequence[Sequence[str]]`):
            Keys of each row, at least one: its own name, its reference, the hash of its pixels.

    Returns:
        `list[str]`: Group of each row, named by the smallest first key among its rows, so that the name does not
        depend on the order of the rows.
    """
    parents: dict[str, str] = {}

    def root(key: str) -> str:
        parents.setdefault(key, key)
        while parents[key] != key:
            parents[key] = parents[parents[key]]
            key = parents[key]
        return key

    for row in keys:
        for key in row[1:]:
            parents[root(key)] = root(row[0])
    names: dict[str, str] = {}
    for row in keys:
        top = root(row[0])
        names[top] = min(names.get(top, row[0]), row[0])
    return [names[root(row[0])] for row in keys]


def _draw(seed: int, name: str) -> bytes:
    # surrogates: names of files that are no UTF-8
    return hashlib.blake2b(f"{seed}/{name}".encode("utf-8", "surrogatepass"), digest_size=16).digest()
