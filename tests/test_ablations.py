"""Intervals, paired differences, the table of figures, the page and the picture of a set of runs."""

import csv
import io
import math

import numpy as np
import pytest
from matplotlib.image import imread
from scipy import stats

from q_hawkeye_trl.train.ablation_page import (
    Interval,
    Run,
    ablation_page,
    paired_differences,
    plot_ablations,
    results_csv,
    t_interval,
    values_by_seed,
)
from q_hawkeye_trl.wording import FIGURES


def figures(value: float | None) -> dict:
    return dict.fromkeys(FIGURES, value)


def run(recipe: str, seed: int, value: float | None, *, unseen: float | None = None, metrics=()) -> Run:
    measured = {"before": figures(0.5), "after": figures(value)}
    return Run(recipe, seed, measured | ({} if unseen is None else {"unseen": figures(unseen)}), metrics)


@pytest.mark.parametrize("values", [[0.1, 0.4], [1.0, 2.0, 4.0, 3.0, 2.5], list(np.linspace(0, 1, 30))])
def test_the_interval_is_scipys(values):
    found = t_interval(values)
    low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    assert found == pytest.approx((np.mean(values), low, high, len(values)))


def test_one_value_has_no_interval_and_none_no_mean():
    one, none = t_interval([0.25]), t_interval([])
    assert (one.mean, one.seeds, one.text(), one.text("+")) == (0.25, 1, "0.250", "+0.250")
    assert math.isnan(one.low)
    assert (none.seeds, none.text()) == (0, "–")
    assert Interval(-0.1, -0.2, 0.05, 3).text("+") == "-0.100 [-0.200, +0.050]"


def test_differences_are_paired_by_seed_and_need_both_sides():
    runs = [run("a", 0, 0.5), run("a", 1, 0.6), run("a", 2, 0.7), run("b", 0, 0.6), run("b", 2, math.nan)]
    runs += [run("b", 1, 0.5), run("b", 3, 0.9)]
    assert values_by_seed(runs, "b", "after", "spread") == {0: 0.6, 1: 0.5, 3: 0.9}
    assert paired_differences(runs, "b", "a", "after", "spread") == pytest.approx({0: 0.1, 1: -0.1})
    assert paired_differences(runs, "b", "a", "unseen", "spread") == {}


def test_the_table_of_all_figures_reads_back():
    rows = list(csv.DictReader(io.StringIO(results_csv([run("a,b", 3, 0.25, unseen=0.75), run("c", 4, None)]))))
    assert [(row["recipe"], row["seed"], row["images"]) for row in rows] == [
        ("a,b", "3", "before"),
        ("a,b", "3", "after"),
        ("a,b", "3", "unseen"),
        ("c", "4", "before"),
        ("c", "4", "after"),
    ]
    assert [row["srcc_sampled"] for row in rows] == ["0.5", "0.25", "0.75", "0.5", ""]


def page(runs, recipes=("base", "new"), **options) -> str:
    settings = {"baseline": "base", "failures": {}, "facts": {"seeds": "0, 1"}, "curves": "curves.png"}
    return ablation_page(runs, {name: f"what {name} is" for name in recipes}, **settings | options)


def test_the_page_has_means_differences_and_seeds():
    runs = [run("base", 0, 0.5), run("base", 1, 0.7), run("new", 0, 0.6), run("new", 1, 0.9)]
    text = page(runs)
    lines = text.splitlines()
    cells = [cell.strip() for cell in next(line for line in lines if line.startswith("| new | 2 |")).split("|")]
    mean = t_interval([0.6, 0.9])
    assert cells[3:-1] == [mean.text()] * len(FIGURES)
    difference = t_interval([0.1, 0.2]).text("+")
    assert f"| new | 2 | {' | '.join([difference] * len(FIGURES))} |" in lines
    assert "| (before training) |  | 0.500 | 0.500 |" in text
    assert "- new: 0: +0.100, 1: +0.200" in lines
    assert "0 of 6 intervals" in text
    assert "| new | what new is |" in lines
    assert "![learning curves](curves.png)" in lines
    assert "no run has seen" not in text


def test_recipes_that_start_elsewhere_have_rows_of_their_own():
    """Two models, for example."""
    other = Run("new", 0, {"before": figures(0.25), "after": figures(0.6)}, ())
    text = page([run("base", 0, 0.5), other])
    assert "| (base before training) |  | 0.500 | 0.500 |" in text
    assert "| (new before training) |  | 0.250 | 0.250 |" in text
    assert "| (before training)" not in text


def test_intervals_that_leave_zero_out_are_counted():
    runs = [run(name, n, value + n) for name, value in (("base", 0.0), ("new", 0.1)) for n in range(3)]
    assert "6 of 6 intervals" in page(runs)


def test_one_seed_allows_no_interval():
    text = page([run("base", 0, 0.5), run("new", 0, 0.9)])
    assert "One seed allows no interval" in text
    assert "of 0 intervals" not in text


def test_failures_and_unequal_numbers_of_seeds_are_told():
    runs = [run("base", 0, 0.5, unseen=0.4), run("base", 1, 0.6, unseen=0.5), run("new", 0, 0.6, unseen=0.3)]
    text = page(runs, failures={("new", 1): "killed | by <b>hand</b>"}, curves=None)
    assert "## 1 run failed" in text
    assert "new, seed 1: killed" in text
    assert "<b>" not in text
    assert "| new | 1 | 0.600 |" in text
    assert "| new | 1 | +0.100 |" in text
    assert "| new | 1 | -0.100 |" in text  # unseen
    assert "Curves" not in text


def test_the_page_of_nothing_but_failures():
    text = page([], failures={("new", 0): "no"}, curves=None)
    assert "what base is" in text
    assert "Mean over" not in text


def test_the_page_of_one_recipe_has_no_differences():
    assert "Difference" not in page([run("base", 0, 0.5)], recipes=("base",))


def metrics(offset: float, steps: int = 5) -> list[dict]:
    lines = [{"step": n, "reward": offset + 0.1 * n, "kl": None} for n in range(1, steps + 1)]
    return [*lines, {"step": steps, "eval_srcc_sampled": 0.5 + offset}]


@pytest.mark.parametrize("recipes", [2, 12])
def test_the_picture_shows_every_recipe(tmp_path, recipes):
    runs = [run(f"r{n}", s, 0.5, metrics=metrics(0.1 * n + 0.01 * s)) for n in range(recipes) for s in range(2)]
    assert plot_ablations(runs, tmp_path / "curves.png", title="some")
    pixels = (imread(tmp_path / "curves.png")[..., :3] * 255).astype(int).reshape(-1, 3)
    strong = np.unique(pixels[pixels.max(axis=1) - pixels.min(axis=1) > 80] // 24, axis=0)
    assert len(strong) >= recipes  # a hue a recipe at least
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]


def test_runs_of_unequal_length_are_drawn(tmp_path):
    runs = [run("a", 0, 0.5, metrics=metrics(0.1, 5)), run("a", 1, 0.5, metrics=metrics(0.2, 3)), run("b", 0, 0.4)]
    assert plot_ablations(runs, tmp_path / "curves.png")


def test_no_metrics_no_picture(tmp_path):
    assert not plot_ablations([run("a", 0, 0.5)], tmp_path / "curves.png")
    assert not list(tmp_path.iterdir())
