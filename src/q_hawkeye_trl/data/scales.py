"""
From released scores to MOS in [1, 5]. "1 to 5" is not one scale: KonIQ-10k's rules differ by 0.44 on average and order
images differently, so that every row of ours names the rule that made its MOS.
"""

import numpy as np

KONIQ_SCALES = ("deqa", "raw", "zscore-minmax", "zscore")
"""Rules that [`koniq_mos`] knows."""


def mean_opinion(shares: np.ndarray) -> np.ndarray:
    """
    Averages answers on a scale of 1 to K: r = sum over k of k c_k.

    Args:
        shares (`np.ndarray`):
            Shares or counts of the answers 1 to K, shape `(N, K)`; each row is divided by its sum.

    Returns:
        `np.ndarray`: Means of shape `(N,)`, in [1, K].
    """
    answers = np.arange(1, shares.shape[1] + 1)
    means = shares @ answers / shares.sum(axis=1)
    return np.clip(means, 1, answers[-1])  # unanimous answers can round to just outside


def min_max(values: np.ndarray) -> np.ndarray:
    """
    Maps the smallest value to 1 and the largest to 5, linearly: 1 + 4 (v - min) / (max - min), DeQA-Score's
    normalisation. Minimum and maximum must be taken over the whole set, test images included, or scores of different
    splits don't compare.

    Args:
        values (`np.ndarray`):
            Scores of a whole set where higher is better, shape `(N,)`, any unit.

    Returns:
        `np.ndarray`: Shape `(N,)`, in [1, 5].

    Raises:
        `ValueError`: All values are the same.
    """
    low, high = values.min(), values.max()
    if not low < high:
        raise ValueError(f"All {len(values)} scores are {low}: a scale from the smallest to the largest needs two.")
    return 1 + 4 * ((values - low) / (high - low))


def koniq_mos(mean: np.ndarray, zscore: np.ndarray, scale: str) -> tuple[np.ndarray, np.ndarray]:
    """
    Computes KonIQ-10k's MOS by one of the rules in use.

    Args:
        mean (`np.ndarray`):
            Mean answers of the whole set, shape `(N,)`, in [1, 5].
        zscore (`np.ndarray`):
            The set's column of 0 to 100, shape `(N,)`.
        scale (`str`):
            `"deqa"` ([`min_max`] of the mean, DeQA-Score), `"raw"` (the mean), `"zscore-minmax"` ([`min_max`] of the
            column of 0 to 100, VisualQuality-R1) or `"zscore"` (1 + 4 z / 100).

    Returns:
        `tuple[np.ndarray, np.ndarray]`: MOS in [1, 5] and the values that it was computed from, both `(N,)`.

    Raises:
        `ValueError`: Unknown rule.
    """
    if scale not in KONIQ_SCALES:
        raise ValueError(f"Unknown scale {scale!r} for KonIQ-10k; choose one of {', '.join(KONIQ_SCALES)}.")
    source = mean if scale in ("deqa", "raw") else zscore
    if scale == "raw":
        return mean, source
    if scale == "zscore":
        return 1 + 4 * zscore / 100, source
    return min_max(source), source
