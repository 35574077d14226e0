"""PLCC after the 4-parameter logistic curve that many papers lay through the scores first."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize
from scipy.special import expit

from .metrics import checked, constant, plcc

MIN_IMAGES = 5
"""Fewest images of a fit: four parameters go through any four points."""

_FLAT = 1e-6  # of the target's range


class Logistic(NamedTuple):
    """
    The curve f(s) = lower + (upper - lower) / (1 + exp(-(s - centre) / width)).

    Args:
        upper (`float`):
            Limit for large s (for a positive `width`), in points of the target.
        lower (`float`):
            Limit for small s.
        centre (`float`):
            Score at which the curve is half-way.
        width (`float`):
            Scale of the scores over which it climbs; not 0.
    """

    upper: float
    lower: float
    centre: float
    width: float

    def __call__(self, scores: ArrayLike) -> np.ndarray:
        """Values of the curve, of the shape of `scores`."""
        position = (np.asarray(scores, dtype=np.float64) - self.centre) / self.width
        return self.lower + (self.upper - self.lower) * expit(position)

    @property
    def rises(self) -> bool:
        """Whether higher scores go with higher targets. A falling curve hides that a model's order is reversed."""
        return (self.upper - self.lower) / self.width > 0


def fit_logistic(predicted: ArrayLike, target: ArrayLike, start: Logistic | None = None) -> Logistic | None:
    """
    Fits the curve by least squares, from several starts unless one is given.

    Args:
        predicted (array-like of shape `(N,)`):
            Predicted scores, on any scale.
        target (array-like of shape `(N,)`):
            Mean opinion scores, on any scale.
        start ([`Logistic`], *optional*):
            Where to start. By default VQEG's initial parameters (extremes of the target, mean and a quarter of the
            standard deviation of the scores), a curve that is nearly a straight line, one that is nearly a step, and
            one by the quartiles of the scores.

    Returns:
        [`Logistic`] or `None`: The best curve found. `None` when either side is constant, for fewer than
        `MIN_IMAGES` images, or when no start leads to a finite curve.

    Raises:
        `ValueError`: Not two 1-D sequences of one length, empty, or a value that is not finite.

    Source: VQEG (2000), "Final report on the validation of objective models of video quality assessment".
    """
    predicted, target = checked(predicted, target)
    if len(predicted) < MIN_IMAGES or constant(predicted) or constant(target):
        return None
    starts = _starts(predicted, target) if start is None else [start]
    # from a near start only curves on their way to a line or a step take long, and gain nothing by it
    effort = 5000 if start is None else 300
    fits = [_descend(predicted, target, begin, effort) for begin in starts]
    finite = [(error, curve) for error, curve in fits if np.isfinite(error) and curve.width != 0]
    return min(finite)[1] if finite else None


def plcc_fitted(predicted: ArrayLike, target: ArrayLike, start: Logistic | None = None) -> float:
    """
    Computes Pearson's correlation between the target and the fitted curve of the scores. It is at least as high as the
    raw one, and positive even for a reversed order: see [`Logistic.rises`].

    Args:
        predicted (array-like of shape `(N,)`):
            Predicted scores, on any scale.
        target (array-like of shape `(N,)`):
            Mean opinion scores, on any scale.
        start ([`Logistic`], *optional*):
            As in [`fit_logistic`].

    Returns:
        `float`: In [-1, 1]; 0 where the best curve is flat, `nan` where [`fit_logistic`] finds none.

    Raises:
        `ValueError`: As [`fit_logistic`].
    """
    curve = fit_logistic(predicted, target, start)
    return float("nan") if curve is None else correlation_of_curve(curve, *checked(predicted, target), plcc)


def correlation_of_curve(
    curve: Logistic, predicted: np.ndarray, target: np.ndarray, correlate: Callable[[np.ndarray, np.ndarray], float]
) -> float:
    """
    Correlates the curve's values with the target; 0 for a flat curve, whose correlation would be that of its rounding
    errors.

    Args:
        curve ([`Logistic`]):
            The curve.
        predicted (`np.ndarray` of shape `(N,)`), target (`np.ndarray` of shape `(N,)`):
            Scores and target.
        correlate (`Callable[[np.ndarray, np.ndarray], float]`):
            Pearson's correlation.

    Returns:
        `float`: In [-1, 1].
    """
    values = curve(predicted)
    return 0.0 if np.ptp(values) < _FLAT * np.ptp(target) else correlate(values, target)


def _starts(predicted: np.ndarray, target: np.ndarray) -> list[Logistic]:
    high, low, centre, deviation = target.max(), target.min(), predicted.mean(), predicted.std()
    slope = np.polyfit(predicted - centre, target, 1)[0]
    wide = 10 * deviation
    line = Logistic(target.mean() + 2 * slope * wide, target.mean() - 2 * slope * wide, centre, wide)
    starts = [Logistic(high, low, centre, deviation / 4), line, Logistic(high, low, centre, deviation / 40)]
    lower, median, upper = np.quantile(predicted, [0.25, 0.5, 0.75])
    if upper > lower:  # one absurd score owns mean and deviation, but no quartile
        starts.append(Logistic(high, low, median, (upper - lower) / 2))
    return starts


def _descend(predicted: np.ndarray, target: np.ndarray, start: Logistic, effort: int) -> tuple[float, Logistic]:
    """Sum of squared errors and curve at the end of Levenberg-Marquardt, on standardised scores."""
    centre, scale = predicted.mean(), predicted.std()
    scores = (predicted - centre) / scale

    def residual(parameters: np.ndarray) -> np.ndarray:
        upper, lower, middle, width = parameters
        return lower + (upper - lower) * expit((scores - middle) / width) - target

    def jacobian(parameters: np.ndarray) -> np.ndarray:
        upper, lower, middle, width = parameters
        position = (scores - middle) / width
        share = expit(position)
        slope = (lower - upper) / width * share * (1 - share)
        return np.array([share, 1 - share, slope, slope * position])

    begin = [start.upper, start.lower, (start.centre - centre) / scale, start.width / scale]
    with np.errstate(all="ignore"):
        best = optimize.leastsq(
            residual,
            begin,
            Dfun=jacobian,
            col_deriv=True,
            maxfev=effort,
            full_output=True,
        )[0]
        error = float((residual(best) ** 2).sum())
    upper, lower, middle, width = best
    return error, Logistic(upper, lower, middle * scale + centre, width * scale)
