"""The figures of a set and of two models against scipy and loops, and the cases without a figure."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from scipy import stats

from q_hawkeye_trl.evaluation.figures import (
    CORRELATIONS,
    ERRORS,
    breakdown,
    compare_tables,
    point_figures,
    risk_coverage,
    set_figures,
    spread_figures,
)
from q_hawkeye_trl.evaluation.score_tables import ScoreTable
from test_logistic import _reference_plcc

NAN = math.nan
NAMES = (*CORRELATIONS, *ERRORS)
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
    errors = [s - m for s, m in zip(score, mos, strict=True)]
    return {
        "plcc": stats.pearsonr(score, mos).statistic,
        "srcc": stats.spearmanr(score, mos).statistic,
        "krcc": stats.kendalltau(score, mos).statistic,
        "rmse": math.sqrt(math.fsum(error**2 for error in errors) / len(score)),
        "mae": math.fsum(map(abs, errors)) / len(score),
    }


def test_figures_without_and_with_failures(rated):
    figures = set_figures(rated, **FAST)
    known = ~np.isnan(rated.score)
    for part, expected in (
        (figures, _reference(rated.score[known], rated.mos[known])),
        (figures["with_failures"], _reference(np.where(known, rated.score, 3.0), rated.mos)),
    ):
        assert {name: part[name] for name in expected} == pytest.approx(expected)
        assert all(part[f"{name}_low"] < part[name] < part[f"{name}_high"] for name in NAMES)
    assert (figures["images"], figures["parsed"], figures["coverage"]) == (72, 69, 69 / 72)
    assert (figures["resampled"], figures["units"]) == ("group", 12)
    assert figures["plcc_fitted"] >= figures["plcc"]
    assert figures["logistic"]["rises"]
    complete = set_figures(table_of(np.linspace(1, 5, 30) ** 0.5 + 1, np.linspace(1, 5, 30)), **FAST)
    assert complete["coverage"] == 1
    assert all(complete["with_failures"][name] == complete[name] for name in NAMES)


def test_interval_refits_the_curve_in_each_draw_of_groups(rated):
    """The whole computation in plain loops, with curve_fit."""
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


def test_raw_labels_change_the_correlations_and_not_the_errors(rated):
    raw = dataclasses.replace(rated, mos_raw=np.exp(rated.mos))
    plain, other = set_figures(raw, **FAST), set_figures(raw, target="mos_raw", **FAST)
    known = ~np.isnan(raw.score)
    assert other["plcc"] == pytest.approx(stats.pearsonr(raw.score[known], raw.mos_raw[known]).statistic)
    assert other["srcc"] == pytest.approx(plain["srcc"])
    assert other["rmse"] == plain["rmse"]
    with pytest.raises(ValueError, match=r"set .*mos_raw"):
        set_figures(rated, target="mos_raw")


def test_spread_and_error(rated):
    spread = set_figures(rated, **FAST)["spread"]
    known = ~np.isnan(rated.score)
    error = np.abs(rated.score - rated.mos)[known]
    assert spread["images"] == 69
    assert spread["spread_srcc"] == pytest.approx(stats.spearmanr(rated.spread[known], error).statistic)
    for name in ("spread_srcc", "spread_gain"):
        assert spread[f"{name}_low"] < spread[name] < spread[f"{name}_high"]
    kept = np.argsort(rated.spread[known])[: round(0.7 * 69)]
    assert {row["rejected"]: row["mae"] for row in spread["risk_coverage"]}[0.3] == pytest.approx(error[kept].mean())
    assert spread["area_oracle"] <= spread["area"]
    assert set_figures(dataclasses.replace(rated, spread=None), **FAST)["spread"] is None


def test_perfect_and_reversed_order():
    mos = np.linspace(1.2, 4.8, 20)
    perfect, falling = (set_figures(table_of(score, mos), **FAST) for score in (mos, 6 - mos))
    for name in ("plcc", "srcc", "krcc"):
        assert perfect[name] == perfect[f"{name}_low"] == perfect[f"{name}_high"] == pytest.approx(1)
        assert falling[name] == pytest.approx(-1)
    assert perfect["rmse"] == perfect["rmse_high"] == 0
    assert falling["plcc_fitted"] == pytest.approx(1)
    assert falling["logistic"]["rises"] is False


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("decimals", [3, 0], ids=["distinct", "ties"])
@pytest.mark.parametrize("count", [2, 3, 4, 40])
def test_quick_figures_equal_scipys(count, decimals):
    rng = np.random.default_rng(count)
    score, target = np.round(rng.uniform(1, 5, size=(2, count)), decimals)
    score[0], score[1] = 1, 2
    target[0], target[1] = 3, 1
    for scores in (score, np.full(count, 2.0)):
        figures = (point_figures(scores, target, target / 2 + 1, quick=quick) for quick in (True, False))
        assert next(figures) == pytest.approx(next(figures), nan_ok=True)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("score", "defined"),
    [([3.0] * 6, ERRORS), ([NAN] * 6, ()), ([2.0, 4.0] + [NAN] * 4, ("plcc", "srcc", "krcc", *ERRORS))],
    ids=["constant", "nothing parsed", "two points"],
)
def test_undefined_figures_are_nan(score, defined):
    figures = set_figures(table_of(score, [1, 2, 3, 4, 5, 4.5]), **FAST)
    assert {name for name in NAMES if not math.isnan(figures[name])} == set(defined)
    for name in set(NAMES) - set(defined):
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
    expected = _reference(rated.score[rows], rated.mos[rows])
    blur = parts["blur"]
    assert (blur["images"], blur["coverage"]) == (24, len(rows) / 24)
    assert {name: blur[name] for name in ("plcc", "srcc", "mae")} == pytest.approx(
        {name: expected[name] for name in ("plcc", "srcc", "mae")}
    )
    assert blur["bias"] == pytest.approx(sum(rated.score[i] - rated.mos[i] for i in rows) / len(rows))
    empty = breakdown(table_of([NAN, 2], [1, 2]), ("a", "b"))["a"]
    assert empty["coverage"] == 0
    assert math.isnan(empty["mae"])


def _reference_risk(spread, error):
    """Mean over all orders of equally certain images, by trying every order."""
    total, orders = [0.0] * len(spread), 0
    for order in itertools.permutations(range(len(spread))):
        if any(spread[a] > spread[b] for a, b in itertools.pairwise(order)):
            continue
        orders += 1
        for kept in range(1, len(spread) + 1):
            total[kept - 1] += math.fsum(error[i] for i in order[:kept]) / kept
    return [value / orders for value in total]


@pytest.mark.parametrize("spread", [[0.3, 0.1, 0.5, 0.2, 0.4], [0.2, 0.1, 0.2, 0.1, 0.2], [0.5] * 5])
def test_risk_agrees_with_all_orders(spread):
    error = [0.9, 0.1, 1.3, 0.4, 0.2]
    curve, expected = risk_coverage(np.array(spread), np.array(error)), _reference_risk(spread, error)
    assert curve.risk.tolist() == pytest.approx(expected)
    assert curve.oracle.tolist() == pytest.approx(_reference_risk(error, error))
    assert curve.area == pytest.approx(sum(expected) / 5)
    assert [curve.at(share) for share in (0, 0.4, 0.99)] == pytest.approx([sum(error) / 5, expected[2], expected[0]])


def test_gain_is_one_for_the_oracle_zero_for_no_order_and_negative_for_the_worst():
    error = np.random.default_rng(0).exponential(size=50)
    assert risk_coverage(error, error).gain == pytest.approx(1)
    assert risk_coverage(np.ones(50), error).gain == pytest.approx(0, abs=1e-12)
    assert risk_coverage(np.full(50, 0.1), error).gain == 0.0
    assert risk_coverage(-error, error).gain < -0.5
    assert 0 < spread_figures((error + 0.1).round(1), error)["spread_gain"] <= 1
    for value, count in itertools.product((0.1, 0.3, 0.7, 1.0), (3, 10, 30, 50)):  # sums of equal numbers round
        assert math.isnan(risk_coverage(error[:count], np.full(count, value)).gain)


def models(rng, noise_first, noise_second, count=150, shared=0.6):
    """Tables of two models whose errors are mostly the same."""
    mos = rng.uniform(1, 5, size=count)
    common = shared * rng.normal(size=count)
    return tuple(
        table_of(np.clip(mos + common + noise * rng.normal(size=count), 1, 5), mos)
        for noise in (noise_first, noise_second)
    )


def test_difference_its_sign_and_its_interval():
    first, second = models(np.random.default_rng(0), 0.1, 1.0)
    result, back = (compare_tables(*pair, draws=200) for pair in ((first, second), (second, first)))
    one, other = (stats.spearmanr(table.score, table.mos).statistic for table in (first, second))
    assert result["srcc"] == pytest.approx(one - other)
    assert (result["srcc_first"], result["srcc_second"]) == (pytest.approx(one), pytest.approx(other))
    assert 0 < result["srcc_low"] < result["srcc"] < result["srcc_high"]
    assert result["rmse"] < result["rmse_high"] < 0
    assert (back["srcc"], back["srcc_low"]) == (pytest.approx(-result["srcc"]), pytest.approx(-result["srcc_high"]))
    itself = compare_tables(first, first, draws=20)
    assert itself["plcc"] == itself["plcc_low"] == itself["plcc_high"] == 0


def test_interval_of_a_difference_is_paired():
    first, second = models(np.random.default_rng(2), 0.1, 0.15, count=60)
    rng = np.random.default_rng(0)
    draws = [
        [stats.spearmanr(table.score[rows], table.mos[rows]).statistic for table in (first, second)]
        for rows in (rng.integers(60, size=60) for _ in range(200))
    ]
    half = stats.t.ppf(0.975, 59) * np.std(np.subtract(*np.transpose(draws)), ddof=1) * math.sqrt(60 / 59)
    result = compare_tables(first, second, draws=200)
    assert result["srcc_high"] - result["srcc"] == pytest.approx(half)
    assert half < 0.6 * 1.97 * math.sqrt(np.var(draws, axis=0).sum())  # two separate intervals


def test_missing_scores_count_as_the_middle_and_groups_are_drawn_whole():
    first, second = models(np.random.default_rng(4), 0.2, 0.2)
    score = np.where(np.arange(150) < 60, NAN, first.score)
    groups = tuple(str(i // 10) for i in range(150))
    pair = [dataclasses.replace(first, score=score, group=groups), dataclasses.replace(second, group=groups)]
    result = compare_tables(*pair, draws=200)
    assert (result["images"], result["units"]) == (150, 15)
    filled = np.where(np.isnan(score), 3, score)
    assert result["srcc_first"] == pytest.approx(stats.spearmanr(filled, first.mos).statistic)
    assert result["srcc_high"] < 0


def test_different_images_labels_or_groups_are_refused():
    first, second = models(np.random.default_rng(6), 0.2, 0.2)
    with pytest.raises(ValueError, match=r"set: 50 images.*100, 101, 102"):
        compare_tables(first.select(np.arange(100)), second)
    mos = np.where(np.arange(150) == 7, 1.0, second.mos)
    with pytest.raises(ValueError, match=r"`mos` of 007 .* 1\.0 .*1 images"):
        compare_tables(first, dataclasses.replace(second, mos=mos))
    with pytest.raises(ValueError, match="group"):
        compare_tables(first, dataclasses.replace(second, group=("a",) * 150))


@pytest.mark.slow
def test_coverage_of_the_difference(record_property):
    """Equal models: the interval of the difference holds 0 in 95% of the samples."""
    from q_hawkeye_trl.evaluation.intervals import difference_interval, replicate

    rng, held = np.random.default_rng(7), 0
    for _ in range(1000):
        first, second = models(rng, 0.4, 0.4, count=300)

        def measure(rows, first=first, second=second):
            ranks = [stats.rankdata(values[rows]) for values in (first.score, second.score, first.mos)]
            return {"srcc": np.corrcoef(ranks[0], ranks[2])[0, 1] - np.corrcoef(ranks[1], ranks[2])[0, 1]}

        draws = replicate(measure, 300, None, draws=150)["srcc"]
        low, high = difference_interval(measure(np.arange(300))["srcc"], draws, images=300, units=300)
        held += low <= 0 <= high
    print(f"coverage of the difference: {held / 1000:.3f}")
    record_property("coverage", float(held / 1000))
    assert 930 <= held <= 970
