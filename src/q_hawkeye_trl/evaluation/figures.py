"""Correlations and errors of one set, or of two models compared, with confidence intervals."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from scipy import stats

from .intervals import DRAWS, correlation_interval, difference_interval, error_interval, replicate, units_of
from .logistic import Logistic, fit_logistic, plcc_fitted
from .metrics import constant, krcc, mae, plcc, rmse, srcc
from .score_tables import SCALE, ScoreTable

CORRELATIONS = ("plcc", "plcc_fitted", "srcc", "krcc")
ERRORS = ("rmse", "mae")
MIDDLE = sum(SCALE) / 2
"""Value of a missing score in the figures with failures."""

REJECTED = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7)
"""Shares of the images that the table of errors leaves out, largest spread first."""

_ROUNDING = 1e-12  # relative: rounding of sums of equal errors
_INTERVALS = dict.fromkeys(ERRORS, error_interval) | {"spread_gain": difference_interval}

Figures = dict[str, float]


def set_figures(table: ScoreTable, *, target: str = "mos", draws: int = DRAWS, seed: int = 0) -> dict:
    """
    Compute all figures of one set.

    Args:
        table ([`ScoreTable`]):
            The set.
        target (`str`, *optional*, defaults to `"mos"`):
            Labels of the correlations, `"mos"` or `"mos_raw"`. Errors are always in points of [1, 5].
        draws (`int`, *optional*, defaults to `1000`), seed (`int`, *optional*, defaults to `0`):
            Draws of the bootstrap, and its seed.

    Returns:
        `dict`: The figures over the images with a score, each with `_low` and `_high`; `images`, `parsed`, `coverage`;
        `with_failures`: the same figures with 3 for each missing score; `spread`: how the spread predicts the error,
        or `None`; `logistic`: the fitted curve, or `None`; `units` and `resampled`; `out_of_range`. Undefined figures
        are `nan`.

    Raises:
        `ValueError`: The set has no `mos_raw`, or the target is unknown.
    """
    parsed = ~np.isnan(table.score)
    known = table.select(parsed)
    filled = np.where(parsed, table.score, MIDDLE)
    answers = target_of(table, target)
    curve = fit_logistic(known.score, answers[parsed]) if len(known) else None
    figures = _score_figures(known.score, answers[parsed], known, curve, draws, seed)
    whole = figures if parsed.all() else _score_figures(filled, answers, table, None, draws, seed)
    return {
        "images": len(table),
        "parsed": int(parsed.sum()),
        "coverage": float(parsed.mean()),
        "out_of_range": table.out_of_range,
        "resampled": "image" if table.group is None else "group",
        "units": units_of(len(table), table.group),
        "draws": draws,
        "seed": seed,
        "target": target,
        **figures,
        "with_failures": whole,
        "logistic": None if curve is None else {**curve._asdict(), "rises": bool(curve.rises)},
        "spread": _spread_part(known, draws, seed),
    }


def compare_tables(
    first: ScoreTable, second: ScoreTable, *, target: str = "mos", draws: int = DRAWS, seed: int = 0
) -> dict:
    """
    Compare two models on the images of one set by a paired bootstrap, with the logistic refitted in each draw.

    A missing score counts as 3, so that both models are compared on the same images.

    Args:
        first ([`ScoreTable`]), second ([`ScoreTable`]):
            Scores of both models for the same images with the same labels.
        target (`str`), draws (`int`), seed (`int`):
            As in [`set_figures`].

    Returns:
        `dict`: `images`, `units`, `draws`, `seed`, and for each figure such as `srcc`: `srcc`, first minus second;
        `srcc_low` and `srcc_high`, its 95% interval; `srcc_first`, `srcc_second`.

    Raises:
        `ValueError`: The images, their labels or their groups differ.
    """
    check_same(first, second)
    answers, mos = target_of(first, target), first.mos
    scores = [np.where(np.isnan(table.score), MIDDLE, table.score) for table in (first, second)]
    curves = [fit_logistic(score, answers) for score in scores]

    def both(rows: np.ndarray, quick: bool = False) -> list[Figures]:
        pairs = zip(scores, curves, strict=True)
        return [point_figures(score[rows], answers[rows], mos[rows], curve, quick=quick) for score, curve in pairs]

    def measure(rows: np.ndarray) -> Figures:
        one, other = both(rows, quick=True)
        return {name: one[name] - other[name] for name in one}

    one, other = both(np.arange(len(first)))
    differences = {name: one[name] - other[name] for name in one}
    kinds = dict.fromkeys(differences, difference_interval)
    return {
        "images": len(first),
        "units": units_of(len(first), first.group),
        "draws": draws,
        "seed": seed,
        **_with_intervals(differences, measure, first, draws, seed, kinds),
        **{f"{name}_first": value for name, value in one.items()},
        **{f"{name}_second": value for name, value in other.items()},
    }


def check_same(first: ScoreTable, second: ScoreTable) -> None:
    """Raise `ValueError` if two tables differ in images, labels or groups."""
    odd = sorted(set(first.image_id) ^ set(second.image_id))
    if odd:
        raise ValueError(
            f"{first.name}: {len(odd)} images are scored by one model only ({', '.join(odd[:3])}, ...); a comparison "
            "needs the same images on both sides."
        )
    for column in ("mos", "mos_raw"):
        one, other = getattr(first, column), getattr(second, column)
        if one is None or other is None:
            continue
        differing = np.flatnonzero(~np.isclose(one, other, rtol=0, atol=1e-6))
        if len(differing):
            row = differing[0]
            raise ValueError(
                f"{first.name}: `{column}` of {first.image_id[row]} is {one[row]} on one side and {other[row]} on "
                f"the other ({len(differing)} images differ); both files need the same labels."
            )
    if first.group != second.group:
        raise ValueError(f"{first.name}: the groups of the two files differ; give both the same `group` column.")


def breakdown(table: ScoreTable, labels: tuple[str, ...], target: str = "mos") -> dict[str, dict]:
    """
    Compute the figures of the parts of a set, without intervals, over the images with a score.

    Args:
        table ([`ScoreTable`]):
            The set.
        labels (`tuple[str, ...]` of length N):
            Part of each image, such as its distortion or its reference.
        target (`str`, *optional*, defaults to `"mos"`):
            As in [`set_figures`].

    Returns:
        `dict[str, dict]`: By label, sorted: `images`, `coverage`, `plcc`, `srcc`, `mae` and `bias`, the mean of score
        minus MOS.
    """
    answers, parsed = target_of(table, target), ~np.isnan(table.score)
    members: dict[str, list[int]] = {}
    for row, label in enumerate(labels):
        members.setdefault(label, []).append(row)
    parts = {}
    for label in sorted(members):
        part = np.array(members[label])
        rows = part[parsed[part]]
        figures = dict.fromkeys(("plcc", "srcc", "mae", "bias"), float("nan"))
        if len(rows):
            score, mos = table.score[rows], table.mos[rows]
            figures = {
                "plcc": plcc(score, answers[rows]),
                "srcc": srcc(score, answers[rows]),
                "mae": mae(score, mos),
                "bias": float((score - mos).mean()),
            }
        parts[label] = {"images": len(part), "coverage": float(parsed[part].mean()), **figures}
    return parts


def target_of(table: ScoreTable, target: str) -> np.ndarray:
    """Return the labels of the correlations, shape `(N,)`; errors as in [`set_figures`]."""
    if target not in ("mos", "mos_raw"):
        raise ValueError(f"Unknown target {target!r}; choose mos or mos_raw.")
    if target == "mos":
        return table.mos
    if table.mos_raw is None:
        raise ValueError(f"{table.name} has no column mos_raw, which the target asks for; add it or choose mos.")
    return table.mos_raw


def point_figures(
    score: np.ndarray, target: np.ndarray, mos: np.ndarray, start: Logistic | None = None, *, quick: bool = False
) -> Figures:
    """
    Compute correlations with `target` and errors against `mos`, arrays of shape `(N,)`; `nan` without an image.

    `quick` skips scipy's checks and p-values, which take most of the time of a bootstrap.
    """
    if len(score) == 0:
        return dict.fromkeys((*CORRELATIONS, *ERRORS), float("nan"))
    quick = quick and len(score) > 1 and not constant(score) and not constant(target)
    pearson, spearman = (_pearson, _spearman) if quick else (plcc, srcc)
    return {
        "plcc": pearson(score, target),
        "plcc_fitted": plcc_fitted(score, target, start, pearson),
        "srcc": spearman(score, target),
        "krcc": krcc(score, target),
        "rmse": rmse(score, mos),
        "mae": mae(score, mos),
    }


class RiskCoverage(NamedTuple):
    """
    Mean absolute errors when the least certain images are left out.

    Args:
        risk (`np.ndarray` of shape `(N,)`):
            Mean absolute error of the 1, 2, ..., N images of the smallest spread.
        oracle (`np.ndarray` of shape `(N,)`):
            The same in the order of the true errors, the lowest possible.
    """

    risk: np.ndarray
    oracle: np.ndarray

    @property
    def area(self) -> float:
        """The risk averaged over all shares kept, in points of the scale."""
        return float(self.risk.mean())

    @property
    def gain(self) -> float:
        """Share of the possible gain over a random order: 1 for the oracle, `nan` if all errors are equal."""
        chance, best = self.risk[-1], self.oracle.mean()
        rounding = _ROUNDING * abs(chance)
        if not chance - best > rounding:
            return float("nan")
        gain = chance - self.risk.mean()
        return float(gain / (chance - best)) if abs(gain) > rounding else 0.0

    def at(self, rejected: float) -> float:
        """Return the mean absolute error after leaving out a share in [0, 1); at least one image is kept."""
        kept = max(1, round((1 - rejected) * len(self.risk)))
        return float(self.risk[kept - 1])


def risk_coverage(spread: np.ndarray, error: np.ndarray) -> RiskCoverage:
    """
    Compute the error of the images that are left when those of the largest spread are rejected; ties in random order.

    Args:
        spread (`np.ndarray` of shape `(N,)`), error (`np.ndarray` of shape `(N,)`):
            Spread and absolute error of each image.

    Source: Geifman and El-Yaniv (2017), "Selective classification for deep neural networks".
    """
    return RiskCoverage(_running_mean(spread, error), _running_mean(error, error))


def spread_figures(spread: np.ndarray, error: np.ndarray) -> Figures:
    """Compute `spread_srcc`, between spread and absolute error of shape `(N,)`, and `spread_gain`."""
    return {"spread_srcc": srcc(spread, error), "spread_gain": risk_coverage(spread, error).gain}


def _running_mean(order: np.ndarray, error: np.ndarray) -> np.ndarray:
    _, tied, counts = np.unique(order, return_inverse=True, return_counts=True)
    means = np.bincount(tied, weights=error) / counts
    return np.cumsum(np.repeat(means, counts)) / np.arange(1, len(error) + 1)


def _pearson(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float(np.clip(a @ b / np.sqrt((a @ a) * (b @ b)), -1, 1))


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    return _pearson(stats.rankdata(a), stats.rankdata(b))


def _score_figures(
    score: np.ndarray, target: np.ndarray, table: ScoreTable, start: Logistic | None, draws: int, seed: int
) -> Figures:
    curve = start or (fit_logistic(score, target) if len(score) else None)
    estimates = point_figures(score, target, table.mos, curve)

    def measure(rows: np.ndarray) -> Figures:
        return point_figures(score[rows], target[rows], table.mos[rows], curve, quick=True)

    return _with_intervals(estimates, measure, table, draws, seed)


def _with_intervals(
    estimates: Mapping[str, float],
    measure: Callable[[np.ndarray], Figures],
    table: ScoreTable,
    draws: int,
    seed: int,
    kinds: Mapping[str, Callable] = _INTERVALS,
) -> Figures:
    images, units = len(table), units_of(len(table), table.group)
    replicates = replicate(measure, images, table.group, draws=draws, seed=seed) if images else {}
    figures: Figures = {}
    for name, estimate in estimates.items():
        interval = kinds.get(name, correlation_interval)
        low, high = interval(estimate, replicates.get(name, np.empty(0)), images=images, units=units)
        figures |= {name: estimate, f"{name}_low": low, f"{name}_high": high}
    return figures


def _spread_part(known: ScoreTable, draws: int, seed: int) -> dict | None:
    if known.spread is None or np.isnan(known.spread).all():
        return None
    known = known.select(~np.isnan(known.spread))
    spread, error = np.asarray(known.spread), np.abs(known.score - known.mos)
    curve = risk_coverage(spread, error)
    return {
        "images": len(known),
        "mean": float(spread.mean()),
        **_with_intervals(
            spread_figures(spread, error), lambda rows: spread_figures(spread[rows], error[rows]), known, draws, seed
        ),
        "risk_coverage": [{"rejected": share, "mae": curve.at(share)} for share in REJECTED],
        "area": curve.area,
        "area_oracle": float(curve.oracle.mean()),
        "area_chance": float(curve.risk[-1]),
    }
