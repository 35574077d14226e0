"""The figures of one set: correlations and errors with their intervals, without and with the failures."""

from collections.abc import Callable, Mapping

import numpy as np
from scipy import stats

from .intervals import DRAWS, correlation_interval, difference_interval, error_interval, replicate, units_of
from .logistic import Logistic, correlation_of_curve, fit_logistic, plcc_fitted
from .metrics import constant, krcc, mae, plcc, rmse, srcc
from .spread import REJECTED, risk_coverage, spread_figures
from .tables import SCALE, ScoreTable

CORRELATIONS = ("plcc", "plcc_fitted", "srcc", "krcc")
ERRORS = ("rmse", "mae")
MIDDLE = sum(SCALE) / 2
"""Score that stands for a missing one in the figures with failures."""

Figures = dict[str, float]


def point_figures(
    score: np.ndarray, target: np.ndarray, mos: np.ndarray, start: Logistic | None = None
) -> dict[str, float]:
    """
    Computes correlations and errors, without intervals.

    Args:
        score (`np.ndarray` of shape `(N,)`):
            Scores, all known.
        target (`np.ndarray` of shape `(N,)`):
            What the correlations are taken with: the MOS on any linear scale.
        mos (`np.ndarray` of shape `(N,)`):
            MOS on the scale of the scores, for the errors.
        start ([`Logistic`], *optional*):
            Where the fit of the logistic begins.

    Returns:
        `dict[str, float]`: With the keys of `CORRELATIONS` and `ERRORS`; all `nan` without an image.
    """
    if len(score) == 0:
        return dict.fromkeys((*CORRELATIONS, *ERRORS), float("nan"))
    return {
        "plcc": plcc(score, target),
        "plcc_fitted": plcc_fitted(score, target, start),
        "srcc": srcc(score, target),
        "krcc": krcc(score, target),
        "rmse": rmse(score, mos),
        "mae": mae(score, mos),
    }


def draw_figures(
    score: np.ndarray, target: np.ndarray, mos: np.ndarray, start: Logistic | None = None
) -> dict[str, float]:
    """
    Computes the same as [`point_figures`], without scipy's checks and p-values, which would take most of the time of
    thousands of draws; arguments and result as there.
    """
    if len(score) < 2 or constant(score) or constant(target):
        return point_figures(score, target, mos, start)
    curve = fit_logistic(score, target, start)
    error = score - mos
    return {
        "plcc": _pearson(score, target),
        "plcc_fitted": float("nan") if curve is None else correlation_of_curve(curve, score, target, _pearson),
        "srcc": _pearson(stats.rankdata(score), stats.rankdata(target)),
        "krcc": krcc(score, target),
        "rmse": float(np.sqrt(np.mean(error**2))),
        "mae": float(np.mean(np.abs(error))),
    }


def set_figures(table: ScoreTable, *, target: str = "mos", draws: int = DRAWS, seed: int = 0) -> dict:
    """
    Computes everything about one set.

    Args:
        table ([`ScoreTable`]):
            The set.
        target (`str`, *optional*, defaults to `"mos"`):
            `"mos"` or `"mos_raw"`: what the correlations are taken with. The errors always count on [1, 5].
        draws (`int`, *optional*, defaults to `1000`):
            Draws of the bootstrap.
        seed (`int`, *optional*, defaults to `0`):
            Its seed.

    Returns:
        `dict`: The figures over the images with a score, each with `_low` and `_high`; `images`, `parsed`, `coverage`;
        `with_failures`: the same figures with a score of 3 for each missing one; `spread`: what the spread says of the
        error, or `None`; `logistic`: the fitted curve, or `None`; `units` and `resampled`: what was drawn;
        `out_of_range`. Undefined figures are `nan`.

    Raises:
        `ValueError`: The set has no `mos_raw`, or an unknown target is asked for.
    """
    parsed = ~np.isnan(table.score)
    known = table.select(parsed)
    filled = np.where(parsed, table.score, MIDDLE)
    answers = target_of(table, target)
    curve = fit_logistic(known.score, answers[parsed]) if len(known) else None
    figures = _with_intervals(known.score, answers[parsed], known, curve, draws, seed)
    whole = figures if parsed.all() else _with_intervals(filled, answers, table, None, draws, seed)
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
        "spread": _spread(known, draws, seed),
    }


def target_of(table: ScoreTable, target: str) -> np.ndarray:
    """The labels that the correlations are taken with, shape `(N,)`; parameters and errors as in [`set_figures`]."""
    if target not in ("mos", "mos_raw"):
        raise ValueError(f"Unknown target {target!r}; choose mos or mos_raw.")
    if target == "mos":
        return table.mos
    if table.mos_raw is None:
        raise ValueError(f"{table.name} has no column mos_raw, the labels as released, which the target asks for.")
    return table.mos_raw


def with_interval(name: str, estimate: float, replicates: np.ndarray, images: int, units: int) -> Figures:
    """One figure with its interval: `name`, `name_low`, `name_high`."""
    kind = {"spread_gain": difference_interval, **dict.fromkeys(ERRORS, error_interval)}.get(
        name, correlation_interval
    )
    low, high = kind(estimate, replicates, images=images, units=units)
    return {name: estimate, f"{name}_low": low, f"{name}_high": high}


def breakdown(table: ScoreTable, labels: tuple[str, ...], target: str = "mos") -> dict[str, dict]:
    """
    Computes the figures of the parts of a set, without intervals.

    Args:
        table ([`ScoreTable`]):
            The set.
        labels (`tuple[str, ...]` of length N):
            Part of each image, such as its distortion or its reference.
        target (`str`, *optional*, defaults to `"mos"`):
            As in [`set_figures`].

    Returns:
        `dict[str, dict]`: By label, sorted: `images`, `coverage`, `plcc`, `srcc`, `mae` and `bias`, the mean of score
        minus MOS; over the images with a score.
    """
    answers, parsed = target_of(table, target), ~np.isnan(table.score)
    members: dict[str, list[int]] = {}
    for row, label in enumerate(labels):
        members.setdefault(label, []).append(row)
    parts = {}
    for label in sorted(members):
        part = np.array(members[label])
        rows = part[parsed[part]]
        some = len(rows) > 0
        score, mos = table.score[rows], table.mos[rows]
        parts[label] = {
            "images": len(part),
            "coverage": float(parsed[part].mean()),
            "plcc": plcc(score, answers[rows]) if some else float("nan"),
            "srcc": srcc(score, answers[rows]) if some else float("nan"),
            "mae": mae(score, mos) if some else float("nan"),
            "bias": float((score - mos).mean()) if some else float("nan"),
        }
    return parts


def _pearson(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float(np.clip(a @ b / np.sqrt((a @ a) * (b @ b)), -1, 1))


def _with_intervals(
    score: np.ndarray, target: np.ndarray, table: ScoreTable, start: Logistic | None, draws: int, seed: int
) -> Figures:
    curve = start or (fit_logistic(score, target) if len(score) else None)
    estimates = point_figures(score, target, table.mos, curve)

    def measure(rows: np.ndarray) -> dict[str, float]:
        return draw_figures(score[rows], target[rows], table.mos[rows], curve)

    return _intervals(estimates, measure, table, draws, seed)


def _intervals(
    estimates: Mapping[str, float], measure: Callable[[np.ndarray], Figures], table: ScoreTable, draws: int, seed: int
) -> Figures:
    images, units = len(table), units_of(len(table), table.group)
    replicates = replicate(measure, images, table.group, draws=draws, seed=seed) if images else {}
    figures: Figures = {}
    for name, estimate in estimates.items():
        figures |= with_interval(name, estimate, replicates.get(name, np.empty(0)), images, units)
    return figures


def _spread(known: ScoreTable, draws: int, seed: int) -> dict | None:
    if known.spread is None:
        return None
    known = known.select(~np.isnan(known.spread))
    if len(known) == 0 or known.spread is None:
        return None
    spread, error = known.spread, np.abs(known.score - known.mos)
    figures = _intervals(
        spread_figures(spread, error), lambda rows: spread_figures(spread[rows], error[rows]), known, draws, seed
    )
    curve = risk_coverage(spread, error)
    return {
        "images": len(known),
        "mean": float(spread.mean()),
        **figures,
        "risk_coverage": [{"rejected": share, "mae": curve.at(share)} for share in REJECTED],
        "area": curve.area,
        "area_oracle": float(curve.oracle.mean()),
        "area_chance": float(curve.risk[-1]),
    }
