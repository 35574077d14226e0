"""Correlations and errors of predicted scores against mean opinion scores."""

from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

if TYPE_CHECKING:
    import torch


def srcc(predicted: ArrayLike, target: ArrayLike) -> float:
    """
    Compute Spearman's rank correlation; tied values share their mean rank.

    Args:
        predicted (array-like of shape `(N,)`):
            Predicted scores, on any scale.
        target (array-like of shape `(N,)`):
            Mean opinion scores, on any scale.

    Returns:
        `float`: In [-1, 1]; `nan` if either side is constant, for example with a single pair.

    Raises:
        `ValueError`: The inputs are not 1-D, differ in length, are empty, or hold a value that is not finite.

    Source: Spearman (1904), "The proof and measurement of association between two things".
    """
    return _correlation(stats.spearmanr, predicted, target)


def plcc(predicted: ArrayLike, target: ArrayLike) -> float:
    """
    Compute Pearson's linear correlation of the scores as they are; see [`srcc`] for arguments and errors.

    Not comparable with a PLCC after a logistic fit, see [`~evaluation.logistic.plcc_fitted`].

    Source: Pearson (1895), "Note on regression and inheritance in the case of two parents".
    """
    return _correlation(stats.pearsonr, predicted, target)


def krcc(predicted: ArrayLike, target: ArrayLike) -> float:
    """
    Compute Kendall's rank correlation, tau-b; see [`srcc`] for arguments and errors.

    Source: Kendall (1945), "The treatment of ties in ranking problems".
    """
    # only the p-value, which is not used, depends on the method: exact is slow, asymptotic undefined for two images
    method = "asymptotic" if np.size(predicted) > 2 else "auto"
    return _correlation(partial(stats.kendalltau, variant="b", method=method), predicted, target)


def rmse(predicted: ArrayLike, target: ArrayLike) -> float:
    """Compute the root mean squared error, in points of the common scale; errors as for [`srcc`]."""
    predicted, target = checked(predicted, target)
    return float(np.sqrt(np.mean((predicted - target) ** 2)))


def mae(predicted: ArrayLike, target: ArrayLike) -> float:
    """Compute the mean absolute error, in points of the common scale; errors as for [`srcc`]."""
    predicted, target = checked(predicted, target)
    return float(np.mean(np.abs(predicted - target)))


class ScoreMonitor:
    """
    Running correlations of the rollouts' mean scores with the MOS, for the training log.

    Args:
        window (`int`, *optional*, defaults to `512`):
            Number of most recent images that are correlated.
    """

    def __init__(self, window: int = 512):
        self._pairs: deque[tuple[float, float]] = deque(maxlen=window)

    def update(self, scores: "torch.Tensor", mos: "torch.Tensor") -> None:
        """Add N images: `scores` of shape `(N, G)` and `mos` of shape `(N,)`, NaN where unknown."""
        means = scores.nanmean(dim=1)
        known = ~(means.isnan() | mos.isnan())
        self._pairs.extend(zip(means[known].tolist(), mos[known].tolist(), strict=True))

    def correlations(self) -> dict[str, float]:
        """Return `srcc` and `plcc` over the window; empty with fewer than three images."""
        if len(self._pairs) < 3:
            return {}
        means, mos = zip(*self._pairs, strict=True)
        return {"srcc": srcc(means, mos), "plcc": plcc(means, mos)}

    def state(self) -> list[tuple[float, float]]:
        """Return the window's content, for a checkpoint."""
        return list(self._pairs)

    def load_state(self, pairs: Iterable[tuple[float, float]]) -> None:
        """Replace the window's content by what [`~ScoreMonitor.state`] returned."""
        self._pairs.clear()
        self._pairs.extend((mean, mos) for mean, mos in pairs)

    def clear(self) -> None:
        """Empty the window."""
        self._pairs.clear()


def checked(predicted: ArrayLike, target: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return both sequences as float64 arrays of shape `(N,)`; errors as for [`srcc`]."""
    predicted, target = np.asarray(predicted, dtype=np.float64), np.asarray(target, dtype=np.float64)
    if predicted.ndim != 1 or predicted.shape != target.shape:
        raise ValueError(f"Expected two sequences of equal length, got shapes {predicted.shape} and {target.shape}.")
    if predicted.size == 0:
        raise ValueError("Both sequences are empty: expected at least one score.")
    for name, values in (("predicted", predicted), ("target", target)):
        if not np.isfinite(values).all():
            raise ValueError(f"`{name}` has {int((~np.isfinite(values)).sum())} values that are not finite.")
    return predicted, target


def _correlation(compute: Callable, predicted: ArrayLike, target: ArrayLike) -> float:
    predicted, target = checked(predicted, target)
    if constant(predicted) or constant(target):
        return float("nan")
    return float(compute(predicted, target).statistic)


def constant(values: np.ndarray) -> bool:
    """Return whether all values of a non-empty array are equal."""
    return bool((values == values[0]).all())
