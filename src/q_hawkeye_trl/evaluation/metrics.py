"""Correlations and errors of predicted scores against mean opinion scores."""

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
    predicted, target = checked(predicted, target)
    if constant(predicted) or constant(target):
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
    predicted, target = checked(predicted, target)
    if constant(predicted) or constant(target):
        return float("nan")
    return float(stats.pearsonr(predicted, target).statistic)


def krcc(predicted: ArrayLike, target: ArrayLike) -> float:
    """
    Computes Kendall's rank correlation, tau-b: pairs that are tied on one side count in the denominator only.

    Args:
        predicted (array-like of shape `(N,)`):
            Predicted scores, on any scale.
        target (array-like of shape `(N,)`):
            Mean opinion scores, on any scale.

    Returns:
        `float`: In [-1, 1]. `nan` when either side is constant, a single pair included.

    Raises:
        `ValueError`: Not two 1-D sequences of one length, empty, or a value that is not finite.

    Source: Kendall (1945), "The treatment of ties in ranking problems".
    """
    predicted, target = checked(predicted, target)
    if constant(predicted) or constant(target):
        return float("nan")
    # of the p-values, which nobody asks for here, the exact one is slow and the other one undefined for two images
    method = "asymptotic" if len(predicted) > 2 else "auto"
    return float(stats.kendalltau(predicted, target, variant="b", method=method).statistic)


def rmse(predicted: ArrayLike, target: ArrayLike) -> float:
    """
    Computes the root of the mean squared error, both sides as they are: no curve is fitted first.

    Args:
        predicted (array-like of shape `(N,)`):
            Predicted scores, on the scale of `target`.
        target (array-like of shape `(N,)`):
            Mean opinion scores.

    Returns:
        `float`: At least 0, in points of the scale.

    Raises:
        `ValueError`: Not two 1-D sequences of one length, empty, or a value that is not finite.
    """
    predicted, target = checked(predicted, target)
    return float(np.sqrt(np.mean((predicted - target) ** 2)))


def mae(predicted: ArrayLike, target: ArrayLike) -> float:
    """
    Computes the mean absolute error; parameters, result and errors as for [`rmse`].

    Returns:
        `float`: At least 0, in points of the scale.
    """
    predicted, target = checked(predicted, target)
    return float(np.mean(np.abs(predicted - target)))


def checked(predicted: ArrayLike, target: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Both sequences as float64 arrays of shape `(N,)`; raises `ValueError` as the metrics say."""
    predicted, target = np.asarray(predicted, dtype=np.float64), np.asarray(target, dtype=np.float64)
    if predicted.ndim != 1 or predicted.shape != target.shape:
        raise ValueError(f"Expected two sequences of one length, got shapes {predicted.shape} and {target.shape}.")
    if predicted.size == 0:
        raise ValueError("There is nothing to correlate: both sequences are empty.")
    for name, values in (("predicted", predicted), ("target", target)):
        if not np.isfinite(values).all():
            raise ValueError(f"`{name}` has {int((~np.isfinite(values)).sum())} values that are not finite.")
    return predicted, target


def constant(values: np.ndarray) -> bool:
    """Whether all values of a filled array are the same."""
    return bool((values == values[0]).all())
