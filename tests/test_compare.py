"""Two models on the same draws: signs, pairing, groups, and sets that don't belong together."""

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

from q_hawkeye_trl.evaluation.figures import compare_tables
from q_hawkeye_trl.evaluation.metrics import srcc
from test_figures import table_of

FAST = {"draws": 200, "seed": 0}


def models(rng, noise_first, noise_second, count=150, shared=0.6):
    """Two models whose errors are mostly the same."""
    mos = rng.uniform(1, 5, size=count)
    common = shared * rng.normal(size=count)
    scores = [np.clip(mos + common + noise * rng.normal(size=count), 1, 5) for noise in (noise_first, noise_second)]
    return table_of(scores[0], mos), table_of(scores[1], mos)


def test_difference_and_its_sign():
    first, second = models(np.random.default_rng(0), 0.1, 1.0)
    result = compare_tables(first, second, **FAST)
    one, other = (stats.spearmanr(table.score, table.mos).statistic for table in (first, second))
    assert result["srcc"] == pytest.approx(one - other)
    assert (result["srcc_first"], result["srcc_second"]) == (pytest.approx(one), pytest.approx(other))
    assert 0 < result["srcc_low"] < result["srcc"] < result["srcc_high"]
    assert result["rmse"] < 0
    assert result["rmse_high"] < 0
    back = compare_tables(second, first, **FAST)
    assert (back["srcc"], back["srcc_low"]) == (pytest.approx(-result["srcc"]), pytest.approx(-result["srcc_high"]))


def test_the_interval_is_that_of_a_loop_over_the_same_draws():
    first, second = models(np.random.default_rng(1), 0.2, 0.3, count=40)
    rng = np.random.default_rng(0)
    differences = []
    for _ in range(200):
        rows = rng.integers(40, size=40)
        one, other = (stats.spearmanr(t.score[rows], t.mos[rows]).statistic for t in (first, second))
        differences.append(one - other)
    half = stats.t.ppf(0.975, 39) * np.std(differences, ddof=1) * math.sqrt(40 / 39)
    result = compare_tables(first, second, **FAST)
    assert result["srcc_high"] - result["srcc"] == pytest.approx(half)


def test_pairing_makes_the_interval_narrower_than_two_separate_ones():
    first, second = models(np.random.default_rng(2), 0.1, 0.15)
    result = compare_tables(first, second, **FAST)
    rng = np.random.default_rng(5)

    def draws(table):
        rows = [rng.integers(len(table), size=len(table)) for _ in range(200)]
        return np.array([srcc(table.score[r], table.mos[r]) for r in rows])

    unpaired = 1.97 * math.sqrt(draws(first).var() + draws(second).var())
    assert result["srcc_high"] - result["srcc"] < 0.5 * unpaired


def test_a_model_compared_with_itself_differs_by_nothing():
    first, _ = models(np.random.default_rng(3), 0.2, 0.2)
    result = compare_tables(first, first, **FAST)
    assert result["plcc"] == result["plcc_low"] == result["plcc_high"] == 0


def test_missing_scores_count_as_the_middle():
    first, second = models(np.random.default_rng(4), 0.2, 0.2)
    score = first.score.copy()
    score[:60] = math.nan
    lazy = dataclasses.replace(first, score=score)
    result = compare_tables(lazy, second, **FAST)
    assert result["images"] == 150
    filled = np.where(np.isnan(score), 3, score)
    assert result["srcc_first"] == pytest.approx(stats.spearmanr(filled, first.mos).statistic)
    assert result["srcc_high"] < 0


def test_groups_are_drawn_whole():
    first, second = models(np.random.default_rng(5), 0.3, 0.4)
    groups = tuple(str(i // 10) for i in range(150))
    first, second = (dataclasses.replace(table, group=groups) for table in (first, second))
    assert compare_tables(first, second, **FAST)["units"] == 15


def test_different_images_labels_or_groups_are_refused():
    first, second = models(np.random.default_rng(6), 0.2, 0.2)
    with pytest.raises(ValueError, match=r"50 images are scored by one model only \(100, 101, 102"):
        compare_tables(first.select(np.arange(100)), second)
    mos = second.mos.copy()
    mos[7] = 1.0
    with pytest.raises(ValueError, match=r"`mos` of 007 is .* and 1\.0 on the other \(1 images differ\)"):
        compare_tables(first, dataclasses.replace(second, mos=mos))
    with pytest.raises(ValueError, match="groups of the two files differ"):
        compare_tables(first, dataclasses.replace(second, group=("a",) * 150))


@pytest.mark.slow
def test_coverage_of_the_difference(record_property):
    """Equal models: the interval of the difference holds 0 in 95% of the samples."""
    from q_hawkeye_trl.evaluation.intervals import difference_interval, replicate

    def quick(score, mos):
        return np.corrcoef(stats.rankdata(score), stats.rankdata(mos))[0, 1]

    rng, held = np.random.default_rng(7), 0
    for _ in range(1000):
        first, second = models(rng, 0.4, 0.4, count=300)

        def measure(rows, first=first, second=second):
            mos = first.mos[rows]
            return {"srcc": quick(first.score[rows], mos) - quick(second.score[rows], mos)}

        draws = replicate(measure, 300, None, draws=150)["srcc"]
        estimate = measure(np.arange(300))["srcc"]
        low, high = difference_interval(estimate, draws, images=300, units=300)
        held += low <= 0 <= high
    print(f"coverage of the difference: {held / 1000:.3f}")
    record_property("coverage", float(held / 1000))
    assert 930 <= held <= 970
