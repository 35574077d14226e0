"""Names and number formats that all forms of the report share."""

import math
from collections.abc import Mapping

NAMES = {
    "plcc": "PLCC",
    "plcc_fitted": "PLCC, fitted",
    "srcc": "SRCC",
    "krcc": "KRCC",
    "rmse": "RMSE",
    "mae": "MAE",
}
"""Figures in the order of the tables."""

EXPLANATION = (
    "PLCC is that of the scores as they are; PLCC, fitted that after a 4-parameter logistic curve. Figures of one "
    "kind do not compare with published ones of the other. RMSE and MAE are in points of the scale of 1 to 5."
)

QUOTED = "Quoted, not measured here: models trained on KonIQ-10k alone, each by its paper's protocol"


def number(value: float | None, digits: int = 3, sign: bool = False) -> str:
    """A figure in plain digits; a dash where it is undefined."""
    if value is None or math.isnan(value):
        return "–"
    return f"{value:{'+' if sign else ''}.{digits}f}"


def with_interval(figures: Mapping, name: str, digits: int = 3) -> str:
    """A figure and its interval; one dash where the figure is undefined."""
    value = number(figures[name], digits)
    return value if value == "–" else f"{value} {interval(figures, name, digits)}"


def counted(count: int, what: str) -> str:
    """A number of things, such as `1 image` or `2 images`."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def interval(figures: Mapping, name: str, digits: int = 3, sign: bool = False) -> str:
    """The interval of a figure in brackets; a dash where it is undefined."""
    low, high = figures[f"{name}_low"], figures[f"{name}_high"]
    if low is None or math.isnan(low):
        return "–"
    return f"[{number(low, digits, sign)}, {number(high, digits, sign)}]"


def units(figures: Mapping) -> str:
    """What was resampled, in words."""
    what = counted(figures["units"], "reference" if figures["resampled"] == "group" else "image")
    return f"95% intervals over {what}, {figures['draws']} draws, seed {figures['seed']}"


def comparison_rows(comparison: Mapping) -> list[list[str]]:
    """A row a figure: its name, both values, their difference, its interval, and what that says."""
    return [
        [
            heading,
            number(comparison[f"{name}_first"]),
            number(comparison[f"{name}_second"]),
            number(comparison[name], sign=True),
            interval(comparison, name, sign=True),
            verdict(comparison, name),
        ]
        for name, heading in NAMES.items()
    ]


def verdict(comparison: Mapping, name: str) -> str:
    """What the interval of a difference says, in words."""
    low, high = comparison[f"{name}_low"], comparison[f"{name}_high"]
    if math.isnan(low) or low <= 0 <= high:
        return "no difference shown"
    better = low > 0 if name not in ("rmse", "mae") else high < 0
    return "better" if better else "worse"
