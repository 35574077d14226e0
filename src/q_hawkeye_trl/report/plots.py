"""Plots: of a set as SVG for its page, and the learning curves of a run as PNG."""

import base64
import io
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..evaluation.figures import risk_coverage
from ..evaluation.logistic import Logistic
from ..evaluation.results import SetResult
from ..io.atomic import open_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RASTER = 2000
"""Number of points above which a scatter plot is rasterized inside the SVG, to limit the file's size."""

CURVES = (
    ("eval_srcc_sampled", "validation SRCC, sampled"),
    ("eval_srcc_greedy", "validation SRCC, greedy"),
    ("eval_plcc_sampled", "validation PLCC, sampled"),
    ("reward", "reward"),
    ("scores/srcc", "running SRCC of the rollouts"),
    ("scores/spread", "spread of the scores"),
    ("scores/parse_rate", "parse rate"),
    ("uncertainty/weight_mean", "mean weight"),
    ("perception/kl", "perception KL"),
    ("perception/entropy_original", "entropy, original"),
    ("perception/entropy_degraded", "entropy, degraded"),
    ("kl", "KL to the reference"),
)
"""Metrics that get a panel if the run logged them, with their titles."""

_TICKS = (1, 2, 3, 4, 5)
_INK, _POINT, _LINE = "#1d2733", "#1664b8", "#b3541e"
_PALE = "0.75"


def scatter(result: SetResult) -> str:
    """Draw score against MOS, with the fitted curve and the diagonal, as SVG."""
    table, fitted = result.table, result.figures["logistic"]
    known = ~np.isnan(table.score)

    def draw(axes: "Axes") -> None:
        axes.plot([1, 5], [1, 5], color=_PALE, linewidth=1, label="score = MOS")
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
    """Draw score minus MOS against MOS, with its mean in tenths of the images, as SVG."""
    table = result.table
    known = ~np.isnan(table.score)
    mos, error = table.mos[known], (table.score - table.mos)[known]

    def draw(axes: "Axes") -> None:
        axes.axhline(0, color=_PALE, linewidth=1)
        _cloud(axes, mos, error)
        if len(mos) >= 20:
            tenths = np.array_split(np.argsort(mos, kind="stable"), 10)
            means = [[values[part].mean() for part in tenths] for values in (mos, error)]
            axes.plot(*means, color=_LINE, linewidth=1.8, marker="o", markersize=3, label="mean of a tenth")
            axes.legend(loc="upper right", fontsize=8, frameon=False)
        axes.set(xlabel="MOS", ylabel="score - MOS", xlim=(0.9, 5.1), xticks=_TICKS)

    return _svg(draw)


def risk(result: SetResult) -> str:
    """Draw the error against the share of images left out by their spread, of a set that has spreads, as SVG."""
    table = result.table
    spread = np.asarray(table.spread)
    known = ~np.isnan(table.score) & ~np.isnan(spread)
    curve = risk_coverage(spread[known], np.abs(table.score - table.mos)[known])
    rejected = 1 - np.arange(1, len(curve.risk) + 1) / len(curve.risk)

    def draw(axes: "Axes") -> None:
        axes.axhline(curve.risk[-1], color=_PALE, linewidth=1, label="random order")
        axes.plot(rejected, curve.oracle, color=_INK, linewidth=1, linestyle=":", label="by the true error")
        axes.plot(rejected, curve.risk, color=_POINT, linewidth=1.8, label="by the spread")
        axes.set(xlabel="share left out", ylabel="MAE of the rest", xlim=(0, 1))
        axes.set_ylim(bottom=0)
        axes.legend(loc="best", fontsize=8, frameon=False)

    return _svg(draw)


def as_data_uri(svg: str) -> str:
    """Return an SVG as a `data:` address: shown as a picture, so that no script in it runs."""
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode('ascii')}"


def plot_curves(metrics: Sequence[Mapping], path: str | os.PathLike, title: str = "") -> None:
    """
    Draw the learning curves, one panel per metric: validation figures as points, training metrics with a running mean.

    Args:
        metrics (`Sequence[Mapping]`):
            Lines of `metrics.jsonl`: `step` and the metrics of that step.
        path (`str` or `os.PathLike`):
            PNG file to write, atomically.
        title (`str`, *optional*, defaults to `""`):
            Title of the picture.

    Raises:
        `ValueError`: The metrics have none of `CURVES`.
    """
    panels = logged_curves(metrics)
    if not panels:
        raise ValueError(f"No curve for {path}: the metrics have none of {', '.join(key for key, _ in CURVES)}.")

    def draw(axes: "Axes", key: str) -> None:
        points = [(line["step"], line[key]) for line in metrics if line.get(key) is not None]
        steps, values = zip(*points, strict=True)
        if key.startswith("eval_"):  # few and steady: no running mean
            axes.plot(steps, values, color=_LINE, linewidth=1.8, marker="o", markersize=4)
        else:
            axes.plot(steps, values, color=_PALE, linewidth=1)
            axes.plot(steps, running_mean(values), color=_POINT, linewidth=1.8)

    save_figure(panel_figure(panels, draw, title=title), path)


def logged_curves(metrics: Sequence[Mapping]) -> list[tuple[str, str]]:
    """Return those of `CURVES` that have a value in some line."""
    return [(key, name) for key, name in CURVES if any(line.get(key) is not None for line in metrics)]


def panel_figure(
    panels: Sequence[tuple[str, str]], draw: Callable[["Axes", str], None], *, title: str = ""
) -> "Figure":
    """Make a figure with a panel per (key, name), filled by `draw(axes, key)`."""
    from matplotlib.figure import Figure  # pyplot would choose a window system
    from matplotlib.ticker import MaxNLocator

    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4.4 * columns, 2.9 * rows + 0.4), layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, (key, name) in zip(grid, panels, strict=False):
        draw(axes, key)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("step", fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        _style(axes)
    for axes in grid[len(panels) :]:
        axes.remove()
    figure.suptitle(title)
    return figure


def save_figure(figure: "Figure", path: str | os.PathLike) -> None:
    """Write a figure atomically, in the format of the file's ending."""
    with open_atomic(path, "wb") as file:
        figure.savefig(file, format=Path(path).suffix[1:], dpi=110)


def running_mean(values: Sequence[float], window: int = 10) -> list[float]:
    """Average each value with up to `window` - 1 values before it."""
    recent = [values[max(0, end - window) : end] for end in range(1, len(values) + 1)]
    return [sum(part) / len(part) for part in recent]


def _cloud(axes: "Axes", x: np.ndarray, y: np.ndarray) -> None:
    size = float(np.clip(4000 / max(len(x), 1), 2, 14))
    axes.scatter(x, y, s=size, color=_POINT, alpha=0.45, linewidths=0, rasterized=len(x) > RASTER)


def _style(axes: "Axes") -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _svg(draw: Callable[["Axes"], None]) -> str:
    import matplotlib
    from matplotlib.figure import Figure  # pyplot would choose a window system

    # the salt and the missing date make equal input give equal files
    with matplotlib.rc_context({"svg.hashsalt": "q-hawkeye", "svg.fonttype": "path", "font.size": 10}):
        figure = Figure(figsize=(4.4, 4.2), layout="constrained")
        axes = figure.subplots()
        draw(axes)
        _style(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", dpi=150, metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
