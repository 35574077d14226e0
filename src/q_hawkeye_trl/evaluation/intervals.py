"""
Confidence intervals by the bootstrap, over images or over whole reference contents.

Images that are made from one reference share its error, so sets with references are resampled by reference: an
interval over images would be far too narrow. The interval of a correlation is symmetric on Fisher's z scale, that of
an error on a logarithmic one: estimate ± t·s, with s the standard deviation over the draws and t Student's quantile
for one degree of freedom less than there are units. Percentiles of the draws are too narrow for a few references.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
DRAWS = 1000
MIN_IMAGES = 4
"""Fewest images of an interval: Fisher's z has a standard error from four on."""

_EDGE = 1e-12  # correlations so near to 1, and errors so near to 0, count as perfect


def resamples(count: int, groups: Sequence[str] | None, *, draws: int, seed: int) -> Iterator[np.ndarray]:
    """
    Draws images with replacement, or whole groups of them.

    Args:
        count (`int`):
            Number of images.
        groups (`Sequence[str]` of length `count` or `None`):
            Group of each image; `None` draws images.
        draws (`int`):
            Number of draws.
        seed (`int`):
            Seed of the draws.

    Yields:
        `np.ndarray`: Indices of one draw; as many as images, or as the drawn groups hold.
    """
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
    """
    Measures every draw.

    Args:
        measure (`Callable[[np.ndarray], Mapping[str, float]]`):
            From the indices of a draw to its figures; the same keys each time, `nan` where a figure is undefined.
        count, groups, draws, seed:
            As in [`resamples`].

    Returns:
        `dict[str, np.ndarray]`: The figures of the draws, each of shape `(draws,)`.
    """
    measured = [measure(rows) for rows in resamples(count, groups, draws=draws, seed=seed)]
    return {name: np.array([figures[name] for figures in measured]) for name in (measured[0] if measured else ())}


def units_of(count: int, groups: Sequence[str] | None) -> int:
    """Number of units that are drawn: groups, or images."""
    return count if groups is None else len(set(groups))


def correlation_interval(
    estimate: float, replicates: np.ndarray, *, images: int, units: int, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """
    Computes the interval of a correlation, on Fisher's z scale.

    Args:
        estimate (`float`):
            The correlation over all images, in [-1, 1].
        replicates (`np.ndarray` of shape `(R,)`):
            The same over the draws; undefined ones, `nan`, are left out.
        images (`int`):
            Number of images.
        units (`int`):
            Number of units that were drawn.
        confidence (`float`, *optional*, defaults to `0.95`):
            Share of the samples whose interval shall hold the truth.

    Returns:
        `tuple[float, float]`: In [-1, 1]. `nan` when the estimate or half of the draws are undefined, for fewer than
        `MIN_IMAGES` images or two units. A perfect correlation has an interval of no width: the bootstrap can't know
        better.

    Source: Fisher (1921), "On the probable error of a coefficient of correlation"; for few groups Cameron and Miller
    (2015), "A practitioner's guide to cluster-robust inference", section VI.
    """
    if abs(estimate) >= 1 - _EDGE and images >= MIN_IMAGES and units >= 2:
        return estimate, estimate
    edge = 1 - _EDGE
    half = _half_width(np.arctanh(np.clip(replicates, -edge, edge)), images, units, confidence)
    middle = math.atanh(min(max(estimate, -edge), edge))
    return math.tanh(middle - half), math.tanh(middle + half)


def error_interval(
    estimate: float, replicates: np.ndarray, *, images: int, units: int, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """
    Computes the interval of a positive error, on the logarithmic scale; parameters as in [`correlation_interval`].

    Returns:
        `tuple[float, float]`: At least 0; `nan` as there. An error of 0 has an interval of no width.
    """
    if estimate <= _EDGE and images >= MIN_IMAGES and units >= 2:
        return estimate, estimate
    half = _half_width(np.log(np.maximum(replicates, _EDGE)), images, units, confidence)
    half = min(half, 700.0)  # exp() ends there
    return estimate * math.exp(-half), estimate * math.exp(half)


def difference_interval(
    estimate: float, replicates: np.ndarray, *, images: int, units: int, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """
    Computes the interval of a difference between two figures of the same draws; parameters as in
    [`correlation_interval`].

    Returns:
        `tuple[float, float]`: Symmetric around the estimate; `nan` as there.
    """
    half = _half_width(replicates, images, units, confidence)
    return estimate - half, estimate + half


def _half_width(replicates: np.ndarray, images: int, units: int, confidence: float) -> float:
    known = replicates[~np.isnan(replicates)]
    if images < MIN_IMAGES or units < 2 or len(known) < max(2, len(replicates) / 2):
        return math.nan
    # a draw of u units has a variance too small by (u - 1) / u
    error = known.std(ddof=1) * math.sqrt(units / (units - 1))
    return float(stats.t.ppf((1 + confidence) / 2, units - 1) * error)
