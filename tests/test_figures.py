"""The figures of a set against scipy, with and without failures, and where they are undefined."""

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

from q_hawkeye_trl.evaluation.figures import CORRELATIONS, ERRORS, breakdown, point_figures, set_figures
from q_hawkeye_trl.evaluation.score_tables import ScoreTable

NAN = math.nan
FAST = {"draws": 60, "seed": 3}


def table_of(score, mos, **columns) -> ScoreTable:
    score, mos = np.asarray(score, dtype=float), np.asarray(mos, dtype=float)
    names = tuple(f"{i:03}" for i in range(len(score)))
    return ScoreTable("set", names, score, mos, **columns)


@pytest.fixture
def rated() -> ScoreTable:
    rng = np.random.default_rng(0)
    quality = rng.uniform(1, 5, size=(12, 6))
    scores = np.clip(quality + 0.4 * rng.normal(size=(12, 6)) + 0.4 * rng.normal(size=(12, 1)), 1, 5).round(1).ravel()
    scores[[4, 30, 31]] = NAN
    return table_of(
        scores,
        quality.ravel(),
        spread=np.where(np.isnan(scores), NAN, rng.uniform(0, 1, size=72)),
        group=tuple(f"r{i // 6}" for i in range(72)),
        distortion=tuple(("blur", "noise", "jpeg")[i % 3] for i in range(72)),
    )


def _reference(score, mos):
    return {
        "plcc": stats.pearsonr(score, mos).statistic,
        "srcc": stats.spearmanr(score, mos).statistic,
        "krcc": stats.kendalltau(score, mos).statistic,
        "rmse": math.sqrt(sum((s - m) ** 2 for s, m in zip(score, mos, strict=True)) / len(score)),
        "mae": sum(abs(s - m) for s, m in zip(score, mos, strict=True)) / len(score),
    }


def test_figures_without_and_with_failures(rated):
    figures = set_figures(rated, **FAST)
    known = ~np.isnan(rated.score)
    for name, value in _reference(rated.score[known], rated.mos[known]).items():
        assert figures[name] == pytest.approx(value), name
    for name, value in _reference(np.where(known, rated.score, 3.0), rated.mos).items():
        assert figures["with_failures"][name] == pytest.approx(value), name
    assert (figures["images"], figures["parsed"], figures["coverage"]) == (72, 69, 69 / 72)
    assert (figures["resampled"], figures["units"]) == ("group", 12)
    for part in (figures, figures["with_failures"]):
        for name in (*CORRELATIONS, *ERRORS):
            assert part[f"{name}_low"] < part[name] < part[f"{name}_high"], name
    assert figures["plcc_fitted"] >= figures["plcc"]
    assert figures["logistic"]["rises"]


def test_the_interval_is_that_of_the_draws_with_the_curve_fitted_anew(rated):
    """The whole computation once more: groups drawn in a loop, curve_fit's correlation in each draw."""
    from test_logistic import _reference_plcc

    known = ~np.isnan(rated.score)
    groups = np.array(rated.group)
    names = sorted(set(groups[known]))
    rng = np.random.default_rng(3)
    values = []
    for _ in range(60):
        drawn = [names[i] for i in rng.integers(12, size=12)]
        rows = [row for name in drawn for row in range(72) if groups[row] == name and known[row]]
        values.append(math.atanh(_reference_plcc(rated.score[rows], rated.mos[rows])))
    estimate = _reference_plcc(rated.score[known], rated.mos[known])
    half = stats.t.ppf(0.975, 11) * np.std(values, ddof=1) * math.sqrt(12 / 11)
    figures = set_figures(rated, **FAST)
    assert figures["plcc_fitted"] == pytest.approx(estimate, abs=1e-6)
    assert figures["plcc_fitted_low"] == pytest.approx(math.tanh(math.atanh(estimate) - half), abs=1e-5)
    assert figures["plcc_fitted_high"] == pytest.approx(math.tanh(math.atanh(estimate) + half), abs=1e-5)


def test_an_interval_over_references_is_wider_than_one_over_images():
    rng = np.random.default_rng(1)
    mos = rng.uniform(2, 4, size=(30, 10))
    scores = np.clip(mos + 0.2 * rng.normal(size=(30, 10)) + 0.8 * rng.normal(size=(30, 1)), 1, 5)
    table = table_of(scores.ravel(), mos.ravel(), group=tuple(str(i // 10) for i in range(300)))
    by_group = set_figures(table, **FAST)
    by_image = set_figures(dataclasses.replace(table, group=None), **FAST)
    assert by_image["resampled"] == "image"
    for name in ("plcc", "rmse"):
        assert by_image[name] == by_group[name]
        width, narrow = (part[f"{name}_high"] - part[f"{name}_low"] for part in (by_group, by_image))
        assert width > 1.5 * narrow


def test_complete_sets_have_the_same_figures_with_failures():
    figures = set_figures(table_of(np.linspace(1, 5, 30) ** 0.5 + 1, np.linspace(1, 5, 30)), **FAST)
    assert figures["coverage"] == 1
    assert all(figures["with_failures"][name] == figures[name] for name in (*CORRELATIONS, *ERRORS))


def test_raw_labels_change_the_correlations_and_not_the_errors(rated):
    raw = dataclasses.replace(rated, mos_raw=np.exp(rated.mos))
    plain, other = set_figures(raw, **FAST), set_figures(raw, target="mos_raw", **FAST)
    known = ~np.isnan(raw.score)
    assert other["plcc"] == pytest.approx(stats.pearsonr(raw.score[known], raw.mos_raw[known]).statistic)
    assert other["srcc"] == pytest.approx(plain["srcc"])
    assert other["rmse"] == plain["rmse"]
    with pytest.raises(ValueError, match="set has no column mos_raw"):
        set_figures(rated, target="mos_raw")


def test_spread_and_error(rated):
    spread = set_figures(rated, **FAST)["spread"]
    known = ~np.isnan(rated.score)
    error = np.abs(rated.score - rated.mos)[known]
    assert spread["images"] == 69
    assert spread["spread_srcc"] == pytest.approx(stats.spearmanr(rated.spread[known], error).statistic)
    assert spread["spread_srcc_low"] < spread["spread_srcc"] < spread["spread_srcc_high"]
    assert spread["spread_gain_low"] < spread["spread_gain"] < spread["spread_gain_high"]
    kept = np.argsort(rated.spread[known])[: round(0.7 * 69)]
    at = {row["rejected"]: row["mae"] for row in spread["risk_coverage"]}
    assert at[0.3] == pytest.approx(error[kept].mean())
    assert spread["area_oracle"] <= spread["area"]
    assert set_figures(dataclasses.replace(rated, spread=None), **FAST)["spread"] is None


def test_perfect_and_reversed_order():
    mos = np.linspace(1.2, 4.8, 20)
    perfect = set_figures(table_of(mos, mos), **FAST)
    for name in ("plcc", "srcc", "krcc"):
        assert perfect[name] == perfect[f"{name}_low"] == perfect[f"{name}_high"] == pytest.approx(1)
    assert perfect["rmse"] == perfect["rmse_high"] == 0
    reversed_ = set_figures(table_of(6 - mos, mos), **FAST)
    for name in ("plcc", "srcc", "krcc"):
        assert reversed_[name] == pytest.approx(-1)
    assert reversed_["plcc_fitted"] == pytest.approx(1)
    assert reversed_["logistic"]["rises"] is False


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("decimals", [3, 0], ids=["distinct", "ties"])
@pytest.mark.parametrize("count", [2, 3, 4, 40])
def test_the_quick_figures_of_draws_are_those_of_scipy(count, decimals):
    rng = np.random.default_rng(count)
    score, target = np.round(rng.uniform(1, 5, size=(2, count)), decimals)
    score[0], score[1] = 1, 2
    target[0], target[1] = 3, 1
    mos = target / 2 + 1
    assert point_figures(score, target, mos, quick=True) == pytest.approx(
        point_figures(score, target, mos), nan_ok=True
    )
    same = np.full(count, 2.0)
    assert point_figures(same, target, mos, quick=True) == pytest.approx(point_figures(same, target, mos), nan_ok=True)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("score", "defined"),
    [([3.0] * 6, ("rmse", "mae")), ([NAN] * 6, ()), ([2.0, 4.0] + [NAN] * 4, ("plcc", "srcc", "krcc", "rmse", "mae"))],
    ids=["constant", "nothing parsed", "two points"],
)
def test_what_is_undefined_is_nan(score, defined):
    figures = set_figures(table_of(score, [1, 2, 3, 4, 5, 4.5]), **FAST)
    for name in (*CORRELATIONS, *ERRORS):
        assert math.isnan(figures[name]) == (name not in defined), name
        if math.isnan(figures[name]):
            assert math.isnan(figures[f"{name}_low"])
            assert math.isnan(figures[f"{name}_high"])
    assert math.isnan(figures["plcc_low"])
    assert figures["with_failures"]["rmse"] > 0


def test_one_image():
    figures = set_figures(table_of([2.0], [3.0]), **FAST)
    assert figures["mae"] == 1
    assert math.isnan(figures["srcc"])
    assert math.isnan(figures["mae_low"])


def test_breakdown(rated):
    parts = breakdown(rated, rated.distortion)
    assert list(parts) == ["blur", "jpeg", "noise"]
    rows = [i for i in range(72) if rated.distortion[i] == "blur" and not math.isnan(rated.score[i])]
    blur = parts["blur"]
    assert (blur["images"], blur["coverage"]) == (24, len(rows) / 24)
    assert blur["srcc"] == pytest.approx(stats.spearmanr(rated.score[rows], rated.mos[rows]).statistic)
    assert blur["mae"] == pytest.approx(sum(abs(rated.score[i] - rated.mos[i]) for i in rows) / len(rows))
    assert blur["bias"] == pytest.approx(sum(rated.score[i] - rated.mos[i] for i in rows) / len(rows))
    empty = breakdown(table_of([NAN, 2], [1, 2]), ("a", "b"))["a"]
    assert empty["coverage"] == 0
    assert math.isnan(empty["mae"])
