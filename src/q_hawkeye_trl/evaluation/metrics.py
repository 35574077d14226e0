"""Agreement between predicted scores and mean opinion scores, by scipy."""

import warnings

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats


def srcc(predicted: ArrayLike, target: ArrayLike) -> float:
    """
    Spearman's rank correlation coefficient; ties get their mean rank.

    Args:
        predicted (array-like of shape `(N,)`):
            Predicted scores.
        target (array-like of shape `(N,)`):
            Mean opinion scores.

    Returns:
        `float`: In [-1, 1]; NaN where one side is constant, which has no order.

    Raises:
        `ValueError`: Shapes differ, fewer than two values, or a value that is not finite.
    """
    return _correlation(stats.spearmanr, predicted, target)


def plcc(predicted: ArrayLike, target: ArrayLike) -> float:
    """
    Pearson's linear correlation coefficient of the raw scores, without the logistic fit that some papers put before it.

    Args:
        predicted (array-like of shape `(N,)`):
            Predicted scores.
        target (array-like of shape `(N,)`):
            Mean opinion scores.

    Returns:
        `float`: In [-1, 1]; NaN where one side is constant.

    Raises:
        `ValueError`: Shapes differ, fewer than two values, or a value that is not finite.
    """
    return _correlation(stats.pearsonr, predicted, target)


def _correlation(function, predicted: ArrayLike, target: ArrayLike) -> float:
    left, right = np.asarray(predicted, dtype=float), np.asarray(target, dtype=float)
    if left.ndim != 1 or left.shape != right.shape:
        raise ValueError(f"Expected two series of one length, got shapes {left.shape} and {right.shape}.")
    if len(left) < 2:
        raise ValueError(f"A correlation needs at least two values, got {len(left)}.")
    if not (np.isfinite(left).all() and np.isfinite(right).all()):
        raise ValueError("A correlation needs finite values; fill or drop unparsed scores first.")
    if (left == left[0]).all() or (right == right[0]).all():
        return float("nan")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.NearConstantInputWarning)
        return float(function(left, right).statistic)
