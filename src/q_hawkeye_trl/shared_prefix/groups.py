"""Groups as the rows of TRL's batches: TRL shuffles and splits whole groups, whose images are stored once."""

from typing import Any

import torch
from trl.trainer.utils import split_pixel_values_by_grid, unsplit_pixel_values_by_grid

from ..trl_compat import IMAGE_KEYS


def group_rows(batch: dict[str, Any], group_size: int) -> dict[str, Any]:
    """
    Make the groups of a batch of B rows its N = B/G rows.

    The rollouts of a group are adjacent. Tensors `(B, ...)` become `(N, G, ...)`; images and lists, which are the same
    for all rollouts of a group, are those of its first row.
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
    """Keep the images (`IMAGE_KEYS` of a batch) of the first row of each group."""
    split = split_pixel_values_by_grid(images)
    kept = {key: None if value is None else value[::group_size] for key, value in split.items()}
    # contiguous, as models that view their pixels expect
    kept = {key: value.contiguous() if isinstance(value, torch.Tensor) else value for key, value in kept.items()}
    return unsplit_pixel_values_by_grid(kept)


def ungroup_rows(batch: dict[str, Any]) -> dict[str, Any]:
    """Undo [`group_rows`]: tensors `(N, G, ...)` become `(B, ...)`. Images and lists stay one per group."""
    batch = dict(batch)
    for key, value in batch.items():
        if isinstance(value, torch.Tensor) and value.ndim > 1 and key not in IMAGE_KEYS:
            batch[key] = value.flatten(0, 1)
    return batch
