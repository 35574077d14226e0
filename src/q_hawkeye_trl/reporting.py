"""What a run leaves to look at: the table before and after, and the learning curves as a picture."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

FIGURES = {
    "srcc_sampled": "SRCC, sampled",
    "plcc_sampled": "PLCC, sampled",
    "srcc_greedy": "SRCC, greedy",
    "plcc_greedy": "PLCC, greedy",
    "parse_rate": "parse rate",
    "spread": "mean spread of the rollouts",
}
"""Held-out figures in the order of the table, with their names."""

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
"""Metrics that get a panel when the run logged them, with their titles."""


def before_after_table(before: Mapping[str, float] | None, after: Mapping[str, float], images: int) -> str:
    """
    Sets the held-out figures before and after training side by side.

    Args:
        before (`Mapping[str, float | None]` or `None`):
            Figures with the keys of `FIGURES`; `None` where they are not known any more or not a number.
        after (`Mapping[str, float]`):
            The same after training.
        images (`int`):
            Number of held-out images.

    Returns:
        `str`: A table of plain text.
    """
    lines = [f"{f'{images} held-out images':<28} {'before':>8} {'after':>8} {'change':>8}"]
    for key, name in FIGURES.items():
        start, end = (
            math.nan if figures is None or figures[key] is None else figures[key] for figures in (before, after)
        )
        lines.append(f"{name:<28} {start:>8.3f} {end:>8.3f} {end - start:>+8.3f}")
    width = max(map(len, lines))
    return "\n".join([lines[0], "-" * width, *lines[1:]])


def plot_curves(metrics: Sequence[Mapping], path: str | Path, title: str = "") -> None:
    """
    Draws the learning curves, one panel a metric: the validation's points, and running means over the raw values of
    training.

    Args:
        metrics (`Sequence[Mapping]`):
            Lines of `metrics.jsonl`: `step` and the metrics of that step.
        path (`str` or `Path`):
            PNG file to write.
        title (`str`, *optional*, defaults to `""`):
            Title of the picture.
    """
    from matplotlib.figure import Figure  # no pyplot: it would choose a window system

    panels = [(key, name) for key, name in CURVES if any(line.get(key) is not None for line in metrics)]
    if not panels:
        raise ValueError(f"No curve for {path}: the metrics have none of {', '.join(key for key, _ in CURVES)}.")
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4.2 * columns, 2.8 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for axis, (key, name) in zip(axes, panels, strict=False):
        points = [(line["step"], line[key]) for line in metrics if line.get(key) is not None]
        steps, values = zip(*points, strict=True)
        if key.startswith("eval_"):  # few and steady: no mean over them
            axis.plot(steps, values, color="tab:orange", linewidth=1.8, marker="o", markersize=4)
        else:
            axis.plot(steps, values, color="0.75", linewidth=1)
            axis.plot(steps, running_mean(values), color="tab:blue", linewidth=1.8)
        axis.set_title(name, fontsize=10)
        axis.grid(alpha=0.3)
        axis.set_xlabel("step", fontsize=9)
    for axis in list(figure.axes)[len(panels) :]:
        axis.remove()
    figure.suptitle(title)
    partial = Path(path).with_suffix(".partial.png")
    figure.savefig(partial, dpi=110)
    partial.replace(path)


def running_mean(values: Sequence[float], window: int = 10) -> list[float]:
    """
    Averages each value with those before it.

    Args:
        values (`Sequence[float]`):
            Values in order.
        window (`int`, *optional*, defaults to `10`):
            Number of values averaged, fewer at the start.

    Returns:
        `list[float]`: As many as `values`.
    """
    recent = [values[max(0, end - window) : end] for end in range(1, len(values) + 1)]
    return [sum(part) / len(part) for part in recent]
