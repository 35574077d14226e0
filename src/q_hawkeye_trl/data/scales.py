"""
From released scores to MOS in [1, 5].

"1 to 5" is not one scale: KonIQ-10k's rules differ by 0.44 on average and order images differently, so every row names
the rule that made its MOS.
"""

import numpy as np

KONIQ_SCALES = ("deqa", "raw", "zscore-minmax", "zscore")
"""Rules of [`koniq_mos`]."""

SCALES = ("deqa", "linear")
"""Rules of [`to_mos`], for every other set."""

DIRECTIONS = ("higher", "lower")
"""Better end of a released score."""


def mean_opinion(shares: np.ndarray) -> np.ndarray:
    """Return the means `(N,)` of answers from 1 to K, sum over k of k c_k, from their shares or counts `(N, K)`."""
    answers = np.arange(1, shares.shape[1] + 1)
    means = shares @ answers / shares.sum(axis=1)
    return np.clip(means, 1, answers[-1])  # unanimous answers can round to just outside


def min_max(values: np.ndarray) -> np.ndarray:
    """
    Map the smallest value to 1 and the largest to 5, linearly: 1 + 4 (v - min) / (max - min), DeQA-Score's rule.

    `values` `(N,)` must be of the whole set, test images included, or scores of different splits are not comparable.
    Higher must be better. Raises `ValueError` if all values are the same.
    """
    low, high = values.min(), values.max()
    if not low < high:
        raise ValueError(f"All {len(values)} scores are {low}; a scale from the smallest to the largest needs two.")
    return 1 + 4 * ((values - low) / (high - low))


def koniq_mos(mean: np.ndarray, zscore: np.ndarray, scale: str) -> tuple[np.ndarray, np.ndarray]:
    """
    Compute KonIQ-10k's MOS by one of the rules in use.

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


def to_mos(
    values: np.ndarray, scale: str, direction: str = "higher", ends: tuple[float, float] | None = None
) -> tuple[np.ndarray, float]:
    """
    Map the released scores of a whole set to MOS in [1, 5], higher is better. Nothing is clamped.

    Args:
        values (`np.ndarray`):
            Scores of the whole set, test images included, shape `(N,)`; NaN where an image has none.
        scale (`str`):
            `"deqa"`: from the smallest to the largest score that occurs ([`min_max`], DeQA-Score). `"linear"`: from
            end to end of the released scale, 1 + 4 (v - low) / (high - low).
        direction (`str`, *optional*, defaults to `"higher"`):
            Better end of `values`, one of `DIRECTIONS`; `"lower"` is reversed.
        ends (`tuple[float, float]`, *optional*):
            Lowest and highest value of the scale; `"linear"` needs them.

    Returns:
        `tuple[np.ndarray, float]`: MOS of shape `(N,)`, NaN where `values` is, and the points of MOS in one unit of
        the released score, by which standard deviations are multiplied.

    Raises:
        `ValueError`: Unknown rule or direction, no ends, a score beyond them, or fewer than two different scores.
    """
    if scale not in SCALES:
        raise ValueError(f"Unknown scale {scale!r}; choose one of {', '.join(SCALES)}.")
    if direction not in DIRECTIONS:
        raise ValueError(f"Unknown direction {direction!r}: which end is better, {' or '.join(DIRECTIONS)}?")
    scored = np.isfinite(values)
    if not scored.any():
        raise ValueError("No image has a score.")
    if scale == "deqa":
        oriented = values if direction == "higher" else -values
        mos = np.full(values.shape, np.nan)
        mos[scored] = min_max(oriented[scored])
        return mos, float(4 / (oriented[scored].max() - oriented[scored].min()))
    if ends is None or not ends[0] < ends[1]:
        raise ValueError(f"The scale `linear` needs the lowest and the highest value of the scale, got {ends}.")
    low, high = ends
    beyond = values[scored & ~((low <= values) & (values <= high))]
    if len(beyond):
        raise ValueError(
            f"{len(beyond)} of {scored.sum()} scores are outside [{low:g}, {high:g}], {beyond[0]:g} for one; give the "
            "scale's true ends. Scores are never clamped."
        )
    distance = values - low if direction == "higher" else high - values
    return 1 + 4 * (distance / (high - low)), 4 / (high - low)


def spread_factor(mos: np.ndarray, answers: np.ndarray) -> float:
    """
    Return the points of MOS in one point of the raters' scale: the ratio of the standard deviations of both `(N,)`.

    It is the slope if MOS is linear in the mean answer, and close to it otherwise (KonIQ-10k's rules of the z-scores).
    It is 1 for one image or equal answers.
    """
    spread = float(np.std(answers))
    return float(np.std(mos)) / spread if spread > 0 else 1.0


def spread_reading(means: np.ndarray, spreads: np.ndarray, raters: int) -> tuple[float, float]:
    """
    Decide from the numbers whether a column holds standard deviations or variances of whole-number answers.

    n answers with mean m and variance v have the sum of squares n (v + m²), a whole number that is even or odd as the
    sum n m is.

    Args:
        means (`np.ndarray`):
            Mean answers, shape `(N,)`, rounded to two decimals or finer.
        spreads (`np.ndarray`):
            The column in question, shape `(N,)`, rounded to three decimals or finer.
        raters (`int`):
            Answers an image, n.

    Returns:
        `tuple[float, float]`: Share of the rows that fit a standard deviation and that fit a variance (population
        form, divided by n), in [0, 1]; a few percent fit the wrong reading by chance. Both are 0 if no mean is a mean
        of n whole numbers.
    """
    sums = np.rint(means * raters)
    usable = np.isfinite(means) & np.isfinite(spreads) & (np.abs(sums / raters - means) <= 0.0051)
    if not usable.any():
        return 0.0, 0.0
    sums, spreads = sums[usable], spreads[usable]
    shares = []
    for variances, rounding in ((spreads**2, spreads * 0.001), (spreads, 0.0005)):
        squares = raters * variances + sums**2 / raters
        off = np.abs((squares - sums + 1) % 2 - 1)  # distance to a whole number of the sum's parity
        shares.append(float(np.mean(off <= raters * rounding + 1e-3)))
    return shares[0], shares[1]
