"""PLCC after the 4-parameter logistic curve that many papers fit to the scores first."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize
from scipy.special import expit

from .metrics import checked, constant, plcc

MIN_IMAGES = 5
"""Fewest images for a fit: four parameters fit any four points."""

_FLAT = 1e-6  # of the target's range
_TOLERANCE = 1.49012e-8  # MINPACK's default, the root of the machine epsilon


class Logistic(NamedTuple):
    """
    The curve f(s) = lower + (upper - lower) / (1 + exp(-(s - centre) / width)).

    Args:
        upper (`float`), lower (`float`):
            Limits for large and small s if `width` is positive, in points of the target.
        centre (`float`):
            Score at which the curve is half-way.
        width (`float`):
            Range of scores over which it climbs; not 0.
    """

    upper: float
    lower: float
    centre: float
    width: float

    def __call__(self, scores: ArrayLike) -> np.ndarray:
        """Return the curve's values, of the shape of `scores`."""
        position = (np.asarray(scores, dtype=np.float64) - self.centre) / self.width
        return self.lower + (self.upper - self.lower) * expit(position)

    @property
    def rises(self) -> bool:
        """Whether higher scores go with higher targets; a falling curve hides a reversed order."""
        return (self.upper - self.lower) / self.width > 0


def fit_logistic(predicted: ArrayLike, target: ArrayLike, start: Logistic | None = None) -> Logistic | None:
    """
    Fit the curve by least squares, from several starts unless one is given.

    Args:
        predicted (array-like of shape `(N,)`):
            Predicted scores, on any scale.
        target (array-like of shape `(N,)`):
            Mean opinion scores, on any scale.
        start ([`Logistic`], *optional*):
            Initial curve. By default VQEG's initial parameters, nearly a line, nearly a step, and a curve from the
            quartiles of the scores.

    Returns:
        [`Logistic`] or `None`: The best curve. `None` if either side is constant, for fewer than `MIN_IMAGES` images,
        or if no start leads to a finite curve.

    Raises:
        `ValueError`: The inputs are not 1-D, differ in length, are empty, or hold a value that is not finite.

    Source: VQEG (2000), "Final report on the validation of objective models of video quality assessment".
    """
    predicted, target = checked(predicted, target)
    if len(predicted) < MIN_IMAGES or constant(predicted) or constant(target):
        return None
    starts = _starts(predicted, target) if start is None else [start]
    # from a near start only fits that approach a line or a step take long, with nothing to gain
    evaluations = 5000 if start is None else 300
    fits = [_descend(predicted, target, begin, evaluations) for begin in starts]
    finite = [(error, curve) for error, curve in fits if np.isfinite(error) and curve.width != 0]
    return min(finite)[1] if finite else None


def plcc_fitted(
    predicted: ArrayLike,
    target: ArrayLike,
    start: Logistic | None = None,
    correlate: Callable[[np.ndarray, np.ndarray], float] = plcc,
) -> float:
    """
    Compute Pearson's correlation of the fitted curve's values with the target; arguments as for [`fit_logistic`].

    It is at least as high as the raw correlation, and positive even for a reversed order: see [`Logistic.rises`].

    Returns:
        `float`: In [-1, 1]; 0 if the best curve is flat, `nan` if [`fit_logistic`] finds none.

    Raises:
        `ValueError`: As for [`fit_logistic`].
    """
    curve = fit_logistic(predicted, target, start)
    if curve is None:
        return float("nan")
    predicted, target = checked(predicted, target)
    values = curve(predicted)
    # in a flat curve only rounding errors vary
    return 0.0 if np.ptp(values) < _FLAT * np.ptp(target) else correlate(values, target)


def _starts(predicted: np.ndarray, target: np.ndarray) -> list[Logistic]:
    high, low, centre, deviation = target.max(), target.min(), predicted.mean(), predicted.std()
    slope = np.polyfit(predicted - centre, target, 1)[0]
    wide = 10 * deviation
    line = Logistic(target.mean() + 2 * slope * wide, target.mean() - 2 * slope * wide, centre, wide)
    starts = [Logistic(high, low, centre, deviation / 4), line, Logistic(high, low, centre, deviation / 40)]
    lower, median, upper = np.quantile(predicted, [0.25, 0.5, 0.75])
    if upper > lower:  # an outlier dominates mean and deviation, but no quartile
        starts.append(Logistic(high, low, median, (upper - lower) / 2))
    return starts


def _descend(predicted: np.ndarray, target: np.ndarray, start: Logistic, evaluations: int) -> tuple[float, Logistic]:
    """Run Levenberg-Marquardt on standardised scores; return the sum of squared errors and the curve."""
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
        return np.array([share, 1 - share, slope, slope * position]).T

    with np.errstate(all="ignore"):
        best = optimize.least_squares(
            residual,
            [start.upper, start.lower, (start.centre - centre) / scale, start.width / scale],
            jac=jacobian,
            method="lm",
            x_scale="jac",
            ftol=_TOLERANCE,
            xtol=_TOLERANCE,
            gtol=np.finfo(float).eps,
            max_nfev=evaluations,
        ).x
        error = float((residual(best) ** 2).sum())
    upper, lower, middle, width = best
    return error, Logistic(upper, lower, middle * scale + centre, width * scale)
