"""
Groups as the rows of TRL's batches: TRL shuffles and splits rows, so a row that is a group keeps its rollouts
together, and its images stand there once.
"""

from typing import Any

import torch
from trl.trainer.utils import split_pixel_values_by_grid, unsplit_pixel_values_by_grid

from ..trl_compat import IMAGE_KEYS


def group_rows(batch: dict[str, Any], group_size: int) -> dict[str, Any]:
    """
    Makes the groups of a batch its rows.

    Args:
        batch (`dict`):
            TRL's batch of B rows, the rollouts of a group side by side.
        group_size (`int`):
            Rollouts of a group, G, a divisor of B.

    Returns:
        `dict`: A new batch of N = B/G rows. Tensors `(B, ...)` are `(N, G, ...)`; images and lists, which are the
        same for all rollouts of a group, are those of its first row.
    """
    batch = {**batch, **group_images({key: batch[key] for key in IMAGE_KEYS if key in batch}, group_size)}
    for key, value in batch.items():
        if key in IMAGE_KEYS or value is None:
            continue
        if isinstance(value, list):
            batch[key] = value[::group_size]
        elif value.ndim > 0:
            batch[key] = value.unflatten(0, (-1, group_size))
    return batch


def group_images(images: dict[str, Any], group_size: int) -> dict[str, Any]:
    """
    Keeps the images of the first row of each group.

    Args:
        images (`dict`):
            Those entries of a TRL batch of B rows that describe its images (`trl_compat.IMAGE_KEYS`).
        group_size (`int`):
            Rollouts of a group.

    Returns:
        `dict`: The same entries for B/G rows.
    """
    split = split_pixel_values_by_grid(images)
    kept = {key: None if value is None else value[::group_size] for key, value in split.items()}
    # contiguous, as models that view their pixels expect
    kept = {key: value.contiguous() if isinstance(value, torch.Tensor) else value for key, value in kept.items()}
    return unsplit_pixel_values_by_grid(kept)


def ungroup_rows(batch: dict[str, Any]) -> dict[str, Any]:
    """
    Takes a batch of [`group_rows`] back to one row a rollout; images and lists stay one a group.

    Args:
        batch (`dict`):
            Batch of N groups.

    Returns:
        `dict`: A new batch in which tensors `(N, G, ...)` are `(B, ...)`.
    """
    batch = dict(batch)
    for key, value in batch.items():
        if isinstance(value, torch.Tensor) and value.ndim > 1 and key not in IMAGE_KEYS:
            batch[key] = value.flatten(0, 1)
    return batch
