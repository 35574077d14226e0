"""The 4-parameter logistic against scipy's curve_fit, known curves, and the cases without a curve."""

import math

import numpy as np
import pytest
from scipy import optimize, stats

from q_hawkeye_trl.evaluation.logistic import Logistic, fit_logistic, plcc_fitted
from q_hawkeye_trl.evaluation.metrics import plcc


def _reference_curve(s, upper, lower, centre, width):
    return (upper - lower) / (1 + np.exp(-(s - centre) / width)) + lower


def _reference_plcc(scores, mos):
    """As the field's scripts have it: curve_fit from VQEG's initial parameters, then Pearson's correlation."""
    start = [np.max(mos), np.min(mos), np.mean(scores), np.std(scores) / 4]
    parameters, _ = optimize.curve_fit(_reference_curve, scores, mos, p0=start, maxfev=20000)
    return stats.pearsonr(_reference_curve(scores, *parameters), mos).statistic


def sample(seed, count=300, noise=0.3, decimals=2):
    rng = np.random.default_rng(seed)
    mos = rng.uniform(1, 5, size=count)
    scores = 1 + 4 / (1 + np.exp(-(mos - 3) / 0.6)) + noise * rng.normal(size=count)
    return np.round(scores, decimals), mos


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("decimals", [2, 0], ids=["distinct", "ties"])
def test_agrees_with_curve_fit(seed, decimals):
    scores, mos = sample(seed, decimals=decimals)
    assert plcc_fitted(scores, mos) == pytest.approx(_reference_plcc(scores, mos), abs=1e-7)
    assert plcc_fitted(scores, mos) >= plcc(scores, mos)


def test_a_known_curve_is_found_again():
    scores = np.linspace(0, 100, 50)
    truth = Logistic(4.5, 1.2, 40.0, 12.0)
    found = fit_logistic(scores, truth(scores))
    np.testing.assert_allclose(found(scores), _reference_curve(scores, *truth), atol=1e-6)
    assert found.rises
    assert plcc_fitted(scores, truth(scores)) == pytest.approx(1)


def test_the_curve_follows_a_change_of_units():
    scores, mos = sample(0)
    np.testing.assert_allclose(
        fit_logistic(1000 * scores - 7, mos)(1000 * scores - 7), fit_logistic(scores, mos)(scores)
    )
    assert plcc_fitted(1000 * scores - 7, 5 * mos + 100) == pytest.approx(plcc_fitted(scores, mos), abs=1e-6)


def test_an_outlier_does_not_hide_the_curve():
    scores, mos = sample(2)
    near, far = scores.copy(), scores.copy()
    near[mos.argmin()], far[mos.argmin()] = 50, 1e5
    assert plcc_fitted(far, mos) == pytest.approx(plcc_fitted(near, mos), abs=1e-4)
    assert plcc_fitted(far, mos) > 0.9 > abs(plcc(far, mos))


def test_a_reversed_order_gives_a_falling_curve_and_still_a_positive_correlation():
    scores, mos = sample(1)
    falling = fit_logistic(-scores, mos)
    assert not falling.rises
    assert plcc_fitted(-scores, mos) == pytest.approx(plcc_fitted(scores, mos), abs=1e-6)
    assert plcc(-scores, mos) < 0


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("scores", "mos", "expected", "tolerance"),
    [
        (range(1, 9), [2 * score + 1 for score in range(1, 9)], 1, 1e-9),
        (range(8), [1, 1, 1, 1, 5, 5, 5, 5], 1, 1e-6),
        ([1, 1, 2, 2] * 3, [1, 5, 1, 5] * 3, 0, 1e-6),
    ],
    ids=["line", "step", "flat"],
)
def test_limits_of_the_curve(scores, mos, expected, tolerance):
    assert plcc_fitted(list(scores), mos) == pytest.approx(expected, abs=tolerance)


def test_a_start_gives_the_same_curve():
    scores, mos = sample(2)
    start = fit_logistic(*sample(3))
    assert plcc_fitted(scores, mos, start) == pytest.approx(plcc_fitted(scores, mos), abs=1e-7)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("scores", "mos"),
    [([3] * 9, range(9)), (range(9), [3] * 9), (range(4), range(4)), ([1, 2], [1, 2]), ([1], [2])],
    ids=["constant scores", "constant mos", "four points", "two points", "one point"],
)
def test_there_is_not_always_a_curve(scores, mos):
    assert fit_logistic(list(scores), list(mos)) is None
    assert math.isnan(plcc_fitted(list(scores), list(mos)))


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="not finite"):
        fit_logistic([1, 2, 3, 4, math.nan], [1, 2, 3, 4, 5])


@pytest.mark.parametrize(
    ("upper", "lower", "width", "rises"),
    [(5, 1, 0.5, True), (1, 5, 0.5, False), (5, 1, -0.5, False), (1, 5, -0.5, True)],
)
def test_a_curve_rises_by_its_limits_and_the_sign_of_its_width(upper, lower, width, rises):
    curve = Logistic(upper, lower, 3.0, width)
    assert curve.rises == rises == (curve(3.1) > curve(2.9))
