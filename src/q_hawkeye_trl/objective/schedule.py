"""How the weight of the perception KL falls over the epochs (Q-Hawkeye, arXiv 2601.22920)."""

import math
from typing import Literal

SCHEDULES = ("cosine", "linear", "constant")


def perception_gamma_at(
    epoch: float,
    *,
    gamma: float,
    schedule: Literal["cosine", "linear", "constant"] = "cosine",
    zero_epoch: float,
) -> float:
    """
    Weight of the perception KL at a point of training: gamma·(1 + cos(pi·epoch/E0))/2 or gamma·(1 - epoch/E0) before
    epoch E0, exactly 0 from there on.

    Args:
        epoch (`float`):
            Epochs trained so far, with their fraction.
        gamma (`float`):
            Weight at epoch 0.
        schedule (`str`, *optional*, defaults to `"cosine"`):
            `"cosine"` (the release), `"linear"` or `"constant"`, which ignores `zero_epoch`.
        zero_epoch (`float`):
            E0, the epoch from which the weight is 0. 0 keeps the weight constant, whatever the schedule. The release
            takes 5 of its 15 epochs.

    Returns:
        `float`: Weight in [0, `gamma`].

    Raises:
        `ValueError`: Unknown `schedule`, or a negative `zero_epoch`.

    Source: the annealing of the Q-Hawkeye release (gamma 1e-4, E0 5).
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"Unknown `schedule` {schedule!r}: choose one of {', '.join(SCHEDULES)}.")
    if not zero_epoch >= 0:
        raise ValueError(f"`zero_epoch` must be at least 0, got {zero_epoch}.")
    if schedule == "constant" or zero_epoch == 0:
        return gamma
    if epoch >= zero_epoch:
        return 0.0
    if schedule == "linear":
        return gamma * (1 - epoch / zero_epoch)
    return gamma * (1 + math.cos(math.pi * epoch / zero_epoch)) / 2
