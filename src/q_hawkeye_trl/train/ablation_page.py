"""Comparison of recipes trained over the same seeds: intervals, paired differences, learning curves and their page."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from ..report.plots import logged_curves, panel_figure, running_mean, save_figure
from ..wording import DASH, FIGURES, counted, escape, markdown_table, number


class Run(NamedTuple):
    """
    One finished training: its recipe and seed, the figures by the images measured (`before`, `after`, `unseen`) and
    the lines of its `metrics.jsonl`. `before` is the start of the training, on the images of `after`.
    """

    recipe: str
    seed: int
    figures: Mapping[str, Mapping[str, float | None]]
    metrics: Sequence[Mapping]


class Interval(NamedTuple):
    """A mean over seeds and its 95% confidence interval; `nan` without values, ends `nan` for one value."""

    mean: float
    low: float
    high: float
    seeds: int

    def text(self, sign: str = "") -> str:
        """`0.850 [0.841, 0.859]`; with `sign` "+" a plus before positive numbers."""
        if math.isnan(self.mean):
            return DASH
        if math.isnan(self.low):
            return f"{self.mean:{sign}.3f}"
        return f"{self.mean:{sign}.3f} [{self.low:{sign}.3f}, {self.high:{sign}.3f}]"


def t_interval(values: Sequence[float]) -> Interval:
    """Student's t interval of the mean of finite values, one per seed."""
    array = np.asarray(values, dtype=float)
    if not len(array):
        return Interval(math.nan, math.nan, math.nan, 0)
    mean = float(array.mean())
    if len(array) == 1:
        return Interval(mean, math.nan, math.nan, 1)
    half = float(stats.t.ppf(0.975, len(array) - 1) * array.std(ddof=1) / math.sqrt(len(array)))
    return Interval(mean, mean - half, mean + half, len(array))


def values_by_seed(runs: Sequence[Run], recipe: str, data: str, figure: str) -> dict[int, float]:
    """The finite values of one recipe and figure, by seed."""
    found = {run.seed: run.figures.get(data, {}).get(figure) for run in runs if run.recipe == recipe}
    return {seed: value for seed, value in found.items() if value is not None and math.isfinite(value)}


def paired_differences(runs: Sequence[Run], recipe: str, baseline: str, data: str, figure: str) -> dict[int, float]:
    """Difference of one recipe to the baseline in one figure, by seed, where both have a value."""
    own, base = (values_by_seed(runs, name, data, figure) for name in (recipe, baseline))
    return {seed: own[seed] - base[seed] for seed in sorted(own.keys() & base.keys())}


def results_csv(runs: Sequence[Run]) -> str:
    """All figures as CSV: `recipe`, `seed`, `images` and a column per figure, empty if undefined."""
    rows = [
        {"recipe": run.recipe, "seed": run.seed, "images": data, **{figure: figures.get(figure) for figure in FIGURES}}
        for run in runs
        for data, figures in run.figures.items()
    ]
    return pd.DataFrame(rows, columns=["recipe", "seed", "images", *FIGURES]).to_csv(index=False, lineterminator="\n")


IMAGES = {"after": "Held-out images", "unseen": "Held-out images with distortions that no run has seen"}
"""Sections of the page, in their order."""


def ablation_page(
    runs: Sequence[Run],
    recipes: Mapping[str, str],
    *,
    baseline: str,
    failures: Mapping[tuple[str, int], str],
    facts: Mapping[str, str],
    curves: str | None,
) -> str:
    """
    Write the Markdown page of a set of runs.

    Args:
        runs (`Sequence[Run]`):
            Finished runs.
        recipes (`Mapping[str, str]`):
            Description of each recipe by name, in the order of the tables.
        baseline (`str`):
            Name of the recipe that the others are compared with.
        failures (`Mapping[tuple[str, int], str]`):
            Reason of each failure, by recipe and seed.
        facts (`Mapping[str, str]`):
            Lines for the top: seeds, options, versions, machine.
        curves (`str`, *optional*):
            File name of the learning curves.

    Returns:
        `str`
    """
    lines = ["# Ablations", "", *(f"- {escape(name)}: {escape(text)}" for name, text in facts.items()), ""]
    lines += [
        markdown_table(["recipe", "what it is"], [[escape(name), escape(text)] for name, text in recipes.items()])
    ]
    if failures:
        lines += ["", f"## {counted(len(failures), 'run')} failed", ""]
        lines += [f"- {escape(name)}, seed {seed}: {escape(why)}" for (name, seed), why in failures.items()]
    for data, title in IMAGES.items():
        if any(data in run.figures for run in runs):
            lines += ["", f"## {title}", "", *_tables(runs, list(recipes), baseline, data)]
    if curves is not None:
        lines += ["", "## Curves", "", "Thin lines are runs, thick ones their mean over the seeds.", ""]
        lines += [f"![learning curves]({curves})"]
    return "\n".join(lines) + "\n"


def _tables(runs: Sequence[Run], recipes: list[str], baseline: str, data: str) -> list[str]:
    head = ["recipe", "seeds", *FIGURES.values()]
    rows = _start_rows(runs, recipes) if data == "after" else []
    for name in recipes:
        count = len([run for run in runs if run.recipe == name and data in run.figures])
        found = [t_interval(list(values_by_seed(runs, name, data, figure).values())) for figure in FIGURES]
        rows.append([escape(name), str(count), *(interval.text() for interval in found)])
    lines = ["Mean over the seeds [95% t interval].", "", markdown_table(head, rows)]
    others = [name for name in recipes if name != baseline]
    if not others:
        return lines
    rows = []
    clear = total = 0
    for name in others:
        found = [t_interval(list(paired_differences(runs, name, baseline, data, f).values())) for f in FIGURES]
        clear += sum(interval.low > 0 or interval.high < 0 for interval in found)
        total += sum(interval.seeds > 1 for interval in found)
        seeds = max(interval.seeds for interval in found)
        rows.append([escape(name), str(seeds), *(interval.text("+") for interval in found)])
    lines += [
        "",
        f"Difference to {escape(baseline)}, paired by seed [95% t interval].",
        "",
        markdown_table(head, rows),
    ]
    note = f"{clear} of {total} intervals exclude zero. They are not corrected for their number: of twenty zero "
    note += "differences, one such interval excludes zero by chance, on average."
    lines += ["", note if total else "One seed allows no interval: nothing follows from these differences."]
    lines += ["", f"Differences in {FIGURES['srcc_sampled']} by seed:", ""]
    for name in others:
        by_seed = paired_differences(runs, name, baseline, data, "srcc_sampled")
        values = ", ".join(f"{seed}: {value:+.3f}" for seed, value in by_seed.items())
        lines.append(f"- {escape(name)}: {values or 'none'}")
    return lines


def _start_rows(runs: Sequence[Run], recipes: Sequence[str]) -> list[list[str]]:
    """Rows of the start: one if all recipes share it, otherwise, e.g. with two models, one per recipe."""
    cells = {}
    for name in recipes:
        means = [t_interval(list(values_by_seed(runs, name, "before", figure).values())).mean for figure in FIGURES]
        if not all(map(math.isnan, means)):
            cells[name] = ["", *map(number, means)]
    if cells and all(row == next(iter(cells.values())) for row in cells.values()):
        return [["(before training)", *next(iter(cells.values()))]]
    return [[f"({escape(name)} before training)", *row] for name, row in cells.items()]


def plot_ablations(runs: Sequence[Run], path: str | Path, title: str = "") -> bool:
    """
    Draw the learning curves of finished runs as a PNG: one panel per metric and one color per recipe.

    A thin line is a run, a thick one the mean over the seeds. Training metrics are running means over ten values.
    Returns whether there was anything to draw.
    """
    from matplotlib import colormaps

    panels = logged_curves([line for run in runs for line in run.metrics])
    if not panels:
        return False
    recipes = list({run.recipe: None for run in runs})
    if len(recipes) <= 10:
        colours = [colormaps["tab10"](number) for number in range(len(recipes))]
    else:
        colours = [colormaps["turbo"](share) for share in np.linspace(0.05, 0.95, len(recipes))]

    def draw(axes, key: str) -> None:
        for colour, recipe in zip(colours, recipes, strict=True):
            _draw(axes, [run for run in runs if run.recipe == recipe], key, colour)

    figure = panel_figure(panels, draw, title=title)
    handles = [figure.axes[0].plot([], [], color=colour, linewidth=2)[0] for colour in colours]
    figure.legend(handles, recipes, loc="outside lower center", ncols=min(6, len(recipes)), fontsize=9)
    save_figure(figure, path)
    return True


def _draw(axis, runs: Sequence[Run], key: str, colour) -> None:
    """The runs of one recipe and their mean in one panel."""
    by_step: dict[int, list[float]] = {}
    for run in runs:
        points = [(line["step"], line[key]) for line in run.metrics if line.get(key) is not None]
        if not points:
            continue
        steps, values = zip(*points, strict=True)
        smooth = values if key.startswith("eval_") else running_mean(values)
        marker = "o" if len(steps) == 1 else None
        axis.plot(steps, smooth, color=colour, linewidth=0.8, alpha=0.45, marker=marker, markersize=3)
        for step, value in zip(steps, smooth, strict=True):
            by_step.setdefault(step, []).append(value)
    common = sorted(step for step, values in by_step.items() if len(values) == max(map(len, by_step.values())))
    axis.plot(common, [float(np.mean(by_step[step])) for step in common], color=colour, linewidth=2)
