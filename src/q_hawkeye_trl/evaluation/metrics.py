"""Correlations between predicted scores and mean opinion scores."""

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats


def srcc(predicted: ArrayLike, target: ArrayLike) -> float:
    """
    Computes Spearman's rank correlation; tied values share their mean rank.

    Args:
        predicted (array-like of shape `(N,)`):
            Predicted scores, on any scale.
        target (array-like of shape `(N,)`):
            Mean opinion scores, on any scale.

    Returns:
        `float`: In [-1, 1]. `nan` when either side is constant, a single pair included: it then has no order.

    Raises:
        `ValueError`: Not two 1-D sequences of one length, empty, or a value that is not finite.

    Source: Spearman (1904), "The proof and measurement of association between two things".
    """
    predicted, target = _checked(predicted, target)
    if _constant(predicted) or _constant(target):
        return float("nan")
    return float(stats.spearmanr(predicted, target).statistic)


def plcc(predicted: ArrayLike, target: ArrayLike) -> float:
    """
    Computes Pearson's linear correlation of the scores as they are: no logistic curve is fitted first, so that figures
    after such a fit are not comparable.

    Args:
        predicted (array-like of shape `(N,)`):
            Predicted scores, on any scale.
        target (array-like of shape `(N,)`):
            Mean opinion scores, on any scale.

    Returns:
        `float`: In [-1, 1]. `nan` when either side is constant, a single pair included.

    Raises:
        `ValueError`: Not two 1-D sequences of one length, empty, or a value that is not finite.

    Source: Pearson (1895), "Note on regression and inheritance in the case of two parents".
    """
    predicted, target = _checked(predicted, target)
    if _constant(predicted) or _constant(target):
        return float("nan")
    return float(stats.pearsonr(predicted, target).statistic)


def _checked(predicted: ArrayLike, target: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    predicted, target = np.asarray(predicted, dtype=np.float64), np.asarray(target, dtype=np.float64)
    if predicted.ndim != 1 or predicted.shape != target.shape:
        raise ValueError(f"Expected two sequences of one length, got shapes {predicted.shape} and {target.shape}.")
    if predicted.size == 0:
        raise ValueError("There is nothing to correlate: both sequences are empty.")
    for name, values in (("predicted", predicted), ("target", target)):
        if not np.isfinite(values).all():
            raise ValueError(f"`{name}` has {int((~np.isfinite(values)).sum())} values that are not finite.")
    return predicted, target


def _constant(values: np.ndarray) -> bool:
    return bool((values == values[0]).all())
