"""How well the spread of a model's rollouts predicts its error: correlation, and error against rejected share."""

from typing import NamedTuple

import numpy as np

from .metrics import srcc

REJECTED = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7)
"""Shares of the images, those of the largest spread, that the table of errors leaves out."""

_ROUNDING = 1e-12  # relative: sums of equal errors differ by less


class RiskCoverage(NamedTuple):
    """
    Mean absolute errors when the least certain images are left out.

    Args:
        risk (`np.ndarray` of shape `(N,)`):
            Mean absolute error of the 1, 2, ..., N images of the smallest spread.
        oracle (`np.ndarray` of shape `(N,)`):
            The same if the errors themselves were known: no order can be lower.
    """

    risk: np.ndarray
    oracle: np.ndarray

    @property
    def area(self) -> float:
        """Area under the curve: the risk averaged over all shares kept, in points of the scale."""
        return float(self.risk.mean())

    @property
    def gain(self) -> float:
        """
        Share of the possible gain over a random order that the spread reaches: 1 is the oracle, 0 chance, below 0
        worse than chance; `nan` when all errors are equal.
        """
        chance, best = self.risk[-1], self.oracle.mean()
        rounding = _ROUNDING * abs(chance)
        if not chance - best > rounding:
            return float("nan")
        gain = chance - self.risk.mean()
        return float(gain / (chance - best)) if abs(gain) > rounding else 0.0

    def at(self, rejected: float) -> float:
        """Mean absolute error after leaving out a share in [0, 1); at least one image is kept."""
        kept = max(1, round((1 - rejected) * len(self.risk)))
        return float(self.risk[kept - 1])


def risk_coverage(spread: np.ndarray, error: np.ndarray) -> RiskCoverage:
    """
    Computes the error that is left when images are rejected by their spread. Images of equal spread count as rejected
    in random order: each stands with the mean error of its equals.

    Args:
        spread (`np.ndarray` of shape `(N,)`):
            Spread of each image.
        error (`np.ndarray` of shape `(N,)`):
            Absolute error of each image.

    Returns:
        [`RiskCoverage`]

    Source: Geifman and El-Yaniv (2017), "Selective classification for deep neural networks".
    """
    return RiskCoverage(_running_mean(spread, error), _running_mean(error, error))


def spread_figures(spread: np.ndarray, error: np.ndarray) -> dict[str, float]:
    """
    Computes the figures of one set or draw.

    Args:
        spread (`np.ndarray` of shape `(N,)`):
            Spread of each image, all known.
        error (`np.ndarray` of shape `(N,)`):
            Absolute error of each image.

    Returns:
        `dict[str, float]`: `spread_srcc`, the rank correlation between spread and error, and `spread_gain`, see
        [`RiskCoverage.gain`].
    """
    return {"spread_srcc": srcc(spread, error), "spread_gain": risk_coverage(spread, error).gain}


def _running_mean(order: np.ndarray, error: np.ndarray) -> np.ndarray:
    _, tied, counts = np.unique(order, return_inverse=True, return_counts=True)
    means = np.bincount(tied, weights=error) / counts
    return np.cumsum(np.repeat(means, counts)) / np.arange(1, len(error) + 1)
