"""
Confidence intervals by the bootstrap, over images or over whole reference contents.

Images made from one reference share its error, so sets with references are resampled by reference: an interval over
images would be far too narrow. The interval is estimate ± t·s, on Fisher's z scale for a correlation and on a
logarithmic scale for an error. s is the standard deviation over the draws, t Student's quantile for one degree of
freedom less than there are units. `scipy.stats.bootstrap` draws neither groups nor several figures at once, and has
only percentile intervals, which are too narrow for a few references.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
DRAWS = 1000
MIN_IMAGES = 4
"""Fewest images for an interval: the standard error of Fisher's z is defined from four on."""

_EDGE = 1e-12  # correlations this near to 1 and errors this near to 0 count as perfect


def resamples(count: int, groups: Sequence[str] | None, *, draws: int, seed: int) -> Iterator[np.ndarray]:
    """Yield the row indices of each draw with replacement, of images or of whole groups."""
    rng = np.random.default_rng(seed)
    if groups is None:
        for _ in range(draws):
            yield rng.integers(count, size=count)
        return
    _, members = np.unique(np.asarray(groups), return_inverse=True)
    rows = [np.flatnonzero(members == group) for group in range(members.max() + 1)]
    for _ in range(draws):
        yield np.concatenate([rows[group] for group in rng.integers(len(rows), size=len(rows))])


def replicate(
    measure: Callable[[np.ndarray], Mapping[str, float]],
    count: int,
    groups: Sequence[str] | None,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Return the figures of all draws by name, each of shape `(draws,)`; `measure` gets the rows of a draw."""
    measured = [measure(rows) for rows in resamples(count, groups, draws=draws, seed=seed)]
    return {name: np.array([figures[name] for figures in measured]) for name in (measured[0] if measured else ())}


def units_of(count: int, groups: Sequence[str] | None) -> int:
    """Return the number of units that are drawn: groups, or images."""
    return count if groups is None else len(set(groups))


def correlation_interval(estimate: float, replicates: np.ndarray, *, images: int, units: int) -> tuple[float, float]:
    """
    Compute the 95% interval of a correlation, on Fisher's z scale.

    Args:
        estimate (`float`):
            The correlation over all images, in [-1, 1].
        replicates (`np.ndarray` of shape `(R,)`):
            The correlation over the draws; undefined ones, `nan`, are ignored.
        images (`int`), units (`int`):
            Number of images, and of units that were drawn.

    Returns:
        `tuple[float, float]`: In [-1, 1]. `nan` if the estimate or half of the draws are undefined, for fewer than
        `MIN_IMAGES` images or two units. A perfect correlation has an interval of width 0.

    Source: Fisher (1921), "On the probable error of a coefficient of correlation"; for few groups Cameron and Miller
    (2015), "A practitioner's guide to cluster-robust inference", section VI.
    """
    if abs(estimate) >= 1 - _EDGE and images >= MIN_IMAGES and units >= 2:
        return estimate, estimate
    edge = 1 - _EDGE
    half = _half_width(np.arctanh(np.clip(replicates, -edge, edge)), images, units)
    middle = math.atanh(min(max(estimate, -edge), edge))
    return math.tanh(middle - half), math.tanh(middle + half)


def error_interval(estimate: float, replicates: np.ndarray, *, images: int, units: int) -> tuple[float, float]:
    """Compute the interval of a positive error, on a logarithmic scale; see [`correlation_interval`]."""
    if estimate <= _EDGE and images >= MIN_IMAGES and units >= 2:
        return estimate, estimate
    half = _half_width(np.log(np.maximum(replicates, _EDGE)), images, units)
    half = min(half, 700.0)  # the largest argument of exp()
    return estimate * math.exp(-half), estimate * math.exp(half)


def difference_interval(estimate: float, replicates: np.ndarray, *, images: int, units: int) -> tuple[float, float]:
    """Compute the symmetric interval of a difference between two figures; see [`correlation_interval`]."""
    half = _half_width(replicates, images, units)
    return estimate - half, estimate + half


def _half_width(replicates: np.ndarray, images: int, units: int) -> float:
    known = replicates[~np.isnan(replicates)]
    if images < MIN_IMAGES or units < 2 or len(known) < max(2, len(replicates) / 2):
        return math.nan
    # the variance over draws of u units is too small by (u - 1) / u
    error = known.std(ddof=1) * math.sqrt(units / (units - 1))
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, units - 1) * error)
