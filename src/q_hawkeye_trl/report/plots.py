"""Pictures of a set as SVG: deterministic, without a window system or a network."""

import base64
import io
from collections.abc import Callable

import numpy as np

from ..evaluation.logistic import Logistic
from ..evaluation.results import SetResult
from ..evaluation.spread import risk_coverage

RASTER = 2000
"""Points from which a cloud is drawn as pixels inside of the SVG, which would grow with each of them."""

_SIZE = (4.4, 4.2)
_TICKS = (1, 2, 3, 4, 5)
_INK, _POINT, _LINE = "#1d2733", "#1664b8", "#b3541e"


def scatter(result: SetResult) -> str:
    """
    Draws score against MOS, with the fitted curve and the diagonal.

    Args:
        result ([`SetResult`]):
            The set.

    Returns:
        `str`: SVG.
    """
    table, fitted = result.table, result.figures["logistic"]
    known = ~np.isnan(table.score)

    def draw(axes) -> None:
        axes.plot([1, 5], [1, 5], color="0.75", linewidth=1, label="score = MOS")
        _cloud(axes, table.score[known], table.mos[known])
        if fitted is not None and result.figures["target"] == "mos":
            curve = Logistic(*(fitted[name] for name in Logistic._fields))
            scores = np.linspace(table.score[known].min(), table.score[known].max(), 200)
            axes.plot(scores, curve(scores), color=_LINE, linewidth=1.8, label="fitted logistic")
        ends = (min(0.9, table.score[known].min() - 0.1), max(5.1, table.score[known].max() + 0.1))
        axes.set(xlabel="score", ylabel="MOS", xlim=ends, ylim=(0.9, 5.1), yticks=_TICKS)
        axes.legend(loc="upper left", fontsize=8, frameon=False)

    return _svg(draw)


def residuals(result: SetResult) -> str:
    """
    Draws score minus MOS against MOS, with its mean in tenths of the images; arguments and result as [`scatter`].
    """
    table = result.table
    known = ~np.isnan(table.score)
    mos, error = table.mos[known], (table.score - table.mos)[known]

    def draw(axes) -> None:
        axes.axhline(0, color="0.75", linewidth=1)
        _cloud(axes, mos, error)
        if len(mos) >= 20:
            order = np.argsort(mos, kind="stable")
            tenths = np.array_split(order, 10)
            axes.plot(
                [mos[part].mean() for part in tenths],
                [error[part].mean() for part in tenths],
                color=_LINE,
                linewidth=1.8,
                marker="o",
                markersize=3,
                label="mean of a tenth",
            )
            axes.legend(loc="upper right", fontsize=8, frameon=False)
        axes.set(xlabel="MOS", ylabel="score - MOS", xlim=(0.9, 5.1), xticks=_TICKS)

    return _svg(draw)


def risk(result: SetResult) -> str:
    """
    Draws the error against the share of images left out by their spread; arguments and result as [`scatter`].

    Raises:
        `ValueError`: The set has no spread.
    """
    table = result.table
    if table.spread is None:
        raise ValueError(f"{result.name} has no spread to draw.")
    known = ~np.isnan(table.score) & ~np.isnan(table.spread)
    curve = risk_coverage(table.spread[known], np.abs(table.score - table.mos)[known])
    rejected = 1 - np.arange(1, len(curve.risk) + 1) / len(curve.risk)

    def draw(axes) -> None:
        axes.axhline(curve.risk[-1], color="0.75", linewidth=1, label="at random")
        axes.plot(rejected, curve.oracle, color=_INK, linewidth=1, linestyle=":", label="by the true error")
        axes.plot(rejected, curve.risk, color=_POINT, linewidth=1.8, label="by the spread")
        axes.set(xlabel="share left out", ylabel="MAE of the rest", xlim=(0, 1))
        axes.set_ylim(bottom=0)
        axes.legend(loc="best", fontsize=8, frameon=False)

    return _svg(draw)


def as_data_uri(svg: str) -> str:
    """SVG as a `data:` address: shown as a picture, so that nothing in it could ever run."""
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode('ascii')}"


def _cloud(axes, x: np.ndarray, y: np.ndarray) -> None:
    size = float(np.clip(4000 / max(len(x), 1), 2, 14))
    axes.scatter(x, y, s=size, color=_POINT, alpha=0.45, linewidths=0, rasterized=len(x) > RASTER)


def _svg(draw: Callable) -> str:
    import matplotlib
    from matplotlib.figure import Figure  # no pyplot: it would choose a window system

    # the salt and the missing date make equal input give equal files
    with matplotlib.rc_context({"svg.hashsalt": "q-hawkeye", "svg.fonttype": "path", "font.size": 10}):
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.subplots()
        draw(axes)
        axes.grid(alpha=0.25)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", dpi=150, metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
