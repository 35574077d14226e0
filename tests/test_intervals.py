"""Intervals against scipy's bootstrap, closed forms and loops, and their coverage in simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from q_hawkeye_trl.evaluation.intervals import (
    correlation_interval,
    difference_interval,
    error_interval,
    replicate,
    resamples,
    units_of,
)
from q_hawkeye_trl.evaluation.logistic import Logistic, plcc_fitted
from q_hawkeye_trl.evaluation.metrics import krcc, mae, plcc, rmse, srcc

NAN = math.nan


def bivariate(rng, count, correlation):
    a, b = rng.normal(size=(2, count))
    return a, correlation * a + math.sqrt(1 - correlation**2) * b


def test_images_are_drawn_with_replacement_and_by_seed():
    first, again, other = (list(resamples(50, None, draws=200, seed=seed)) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))
    counts = np.bincount(np.concatenate(first), minlength=50)
    assert all(rows.shape == (50,) for rows in first)
    assert counts.min() > 140  # 200 expected, standard deviation 14
    assert counts.max() < 260
    distinct = np.mean([len(set(rows)) for rows in first]) / 50
    assert distinct == pytest.approx(1 - (1 - 1 / 50) ** 50, abs=0.01)


def test_groups_are_drawn_whole():
    groups = ["b", "a", "b", "c", "a", "b"]
    members = {"a": [1, 4], "b": [0, 2, 5], "c": [3]}
    sizes = set()
    for rows in resamples(6, groups, draws=100, seed=0):
        counts = np.bincount(rows, minlength=6)
        taken = {name: {int(counts[i]) for i in indices} for name, indices in members.items()}
        assert all(len(times) == 1 for times in taken.values())  # each member as often as its group
        assert sum(times.pop() for times in taken.values()) == 3
        sizes.add(len(rows))
    assert len(sizes) > 1
    assert units_of(6, groups) == 3
    assert units_of(6, None) == 6


def test_replicates_agree_with_scipys_bootstrap():
    """Another implementation of the bootstrap, another random stream: standard errors within their own noise."""
    x, y = bivariate(np.random.default_rng(0), 120, 0.8)
    ours = replicate(lambda rows: {"srcc": srcc(x[rows], y[rows])}, 120, None, draws=2000, seed=0)["srcc"]
    theirs = stats.bootstrap(
        (x, y),
        lambda a, b: stats.spearmanr(a, b).statistic,
        paired=True,
        vectorized=False,
        n_resamples=2000,
        method="percentile",
        rng=np.random.default_rng(5),
    )
    assert ours.std(ddof=1) == pytest.approx(theirs.standard_error, rel=0.08)
    assert np.quantile(ours, [0.025, 0.975]) == pytest.approx(list(theirs.confidence_interval), abs=0.015)


def test_interval_of_normal_data_is_fishers():
    x, y = bivariate(np.random.default_rng(1), 400, 0.7)
    estimate = plcc(x, y)
    draws = replicate(lambda rows: {"r": plcc(x[rows], y[rows])}, 400, None, draws=3000, seed=0)["r"]
    low, high = correlation_interval(estimate, draws, images=400, units=400)
    half = 1.959964 / math.sqrt(400 - 3)
    expected = [math.tanh(math.atanh(estimate) + sign * half) for sign in (-1, 1)]
    assert [low, high] == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize(
    ("interval", "to_scale", "from_scale"),
    [
        (correlation_interval, math.atanh, math.tanh),
        (error_interval, math.log, math.exp),
        (difference_interval, float, float),
    ],
)
def test_intervals_equal_their_formulas(interval, to_scale, from_scale):
    known = [to_scale(value) for value in (0.5, 0.7, 0.6, 0.8)]
    mean = math.fsum(known) / 4
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in known) / 3)
    half = stats.t.ppf(0.975, 9) * deviation * math.sqrt(10 / 9)
    expected = [from_scale(to_scale(0.65) + sign * half) for sign in (-1, 1)]
    assert interval(0.65, np.array([0.5, 0.7, 0.6, NAN, 0.8]), images=40, units=10) == pytest.approx(expected)


@pytest.mark.filterwarnings("error")
def test_perfect_figures_have_intervals_of_width_0():
    ones = np.ones(100)
    assert correlation_interval(1.0, ones, images=50, units=50) == (1, 1)
    assert correlation_interval(-1.0, -ones, images=50, units=50) == (-1, -1)
    assert correlation_interval(0.9999999999999998, ones, images=50, units=50)[1] == pytest.approx(1)
    assert error_interval(0.0, 0 * ones, images=50, units=50) == (0, 0)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("estimate", "draws", "images", "units"),
    [
        (NAN, np.full(10, NAN), 50, 50),
        (1.0, np.ones(10), 2, 2),
        (0.5, np.full(10, 0.5), 3, 3),
        (0.5, np.linspace(0.4, 0.6, 10), 50, 1),
        (0.5, np.array([0.5] * 4 + [NAN] * 6), 50, 50),
        (0.5, np.empty(0), 50, 50),
    ],
    ids=["undefined", "two images", "three images", "one group", "most draws undefined", "no draws"],
)
def test_there_is_not_always_an_interval(estimate, draws, images, units):
    for interval in (correlation_interval, error_interval, difference_interval):
        assert all(math.isnan(end) for end in interval(estimate, draws, images=images, units=units))


@pytest.mark.filterwarnings("error")
def test_a_perfect_draw_of_an_imperfect_set_gives_a_wide_and_finite_interval():
    low, high = correlation_interval(0.6, np.array([0.2, 0.6, 1.0, 0.9]), images=5, units=5)
    assert -1 <= low < 0.6 < high <= 1


# Simulated coverage: 95% intervals of repeated samples, and how many hold the truth.


def rated(rng, count):
    """Scores of one decimal with clipped ends, MOS skewed towards good pictures: nothing is normal."""
    quality = 1 + 4 * rng.beta(2.5, 1.5, size=count)
    mos = quality + 0.15 * rng.normal(size=count)
    return np.round(np.clip(quality + 0.5 * rng.normal(size=count), 1, 5), 1), mos


def holds(measure, interval, truth, scores, mos, groups, draws):
    def both(rows):
        return {"value": measure(scores[rows], mos[rows])}

    values = replicate(both, len(scores), groups, draws=draws, seed=0)["value"]
    units = units_of(len(scores), groups)
    low, high = interval(measure(scores, mos), values, images=len(scores), units=units)
    return low <= truth <= high


def quick_plcc(a, b):
    return np.corrcoef(a, b)[0, 1]


def quick_srcc(a, b):
    return quick_plcc(stats.rankdata(a), stats.rankdata(b))


def fitted(scores, mos):
    return plcc_fitted(scores, mos, Logistic(5.3, 0.9, 3.0, 1.26))  # near every sample's curve


@pytest.mark.slow
@pytest.mark.parametrize(
    ("measure", "interval"),
    [
        (quick_plcc, correlation_interval),
        (fitted, correlation_interval),
        (quick_srcc, correlation_interval),
        (krcc, correlation_interval),
        (rmse, error_interval),
        (mae, error_interval),
    ],
    ids=["plcc", "plcc_fitted", "srcc", "krcc", "rmse", "mae"],
)
def test_coverage_without_groups(measure, interval, record_property):
    slow = measure in (krcc, fitted)
    truth = measure(*rated(np.random.default_rng(1), 30_000 if measure is krcc else 300_000))
    rng, draws = np.random.default_rng(2), 100 if slow else 200
    count = sum(holds(measure, interval, truth, *rated(rng, 300), None, draws) for _ in range(1000))
    print(f"coverage of the 95% interval, n = 300: {count / 1000:.3f}")
    record_property("coverage", float(count / 1000))
    assert 930 <= count <= 970


def with_shared_error(rng, references, each=25):
    """The reference shifts all scores of its images."""
    quality = 1 + 4 * rng.beta(2.5, 1.5, size=(references, each))
    scores = quality + 0.5 * rng.normal(size=(references, each)) + 0.6 * rng.normal(size=(references, 1))
    return scores.ravel(), quality.ravel(), np.repeat(np.arange(references), each).astype(str)


@pytest.mark.slow
@pytest.mark.parametrize("measure", [quick_plcc, quick_srcc], ids=["plcc", "srcc"])
def test_coverage_with_twenty_references(measure, record_property):
    scores, mos, _ = with_shared_error(np.random.default_rng(1), 100_000)
    truth = measure(scores, mos)
    rng = np.random.default_rng(2)
    counts = {"reference": 0, "image": 0}
    for _ in range(500):
        scores, mos, groups = with_shared_error(rng, 20)
        counts["reference"] += holds(measure, correlation_interval, truth, scores, mos, groups, 200)
        counts["image"] += holds(measure, correlation_interval, truth, scores, mos, None, 200)
    print(f"coverage with 20 references: {counts['reference'] / 500:.3f}, over images {counts['image'] / 500:.3f}")
    record_property("coverage", float(counts["reference"] / 500))
    assert counts["reference"] >= 0.86 * 500  # twenty references are too few for the full 95%: about 90%
    assert counts["reference"] > counts["image"] + 0.15 * 500
