import math
import statistics

import numpy as np
import pytest

from iqa_layouts import refused
from q_hawkeye_trl.data.scales import SCALES, mean_opinion, spread_factor, spread_reading, to_mos

SCORES = [3.42, 50.0, 92.43, 20.5, 61.0]


def _reference(scores, scale, direction, ends):
    """The rules one score at a time, as their papers write them."""
    turned = [-score if direction == "lower" else score for score in scores]
    if scale == "deqa":
        low, high = min(turned), max(turned)
    else:
        low, high = ends if direction == "higher" else (-ends[1], -ends[0])
    return [4 * (score - low) / (high - low) + 1 for score in turned]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("direction", ["higher", "lower"])
def test_mos_equals_the_published_formulas(scale, direction):
    mos, factor = to_mos(np.array(SCORES), scale, direction, (0, 100))
    assert mos == pytest.approx(_reference(SCORES, scale, direction, (0, 100)), abs=1e-12)
    # a difference of one unit is worth `factor` points, whichever way it points
    assert factor == pytest.approx(abs((mos[1] - mos[0]) / (SCORES[1] - SCORES[0])), rel=1e-12)
    order = np.argsort(SCORES) if direction == "higher" else np.argsort(SCORES)[::-1]
    assert np.argsort(mos).tolist() == order.tolist()


@pytest.mark.parametrize("direction", ["higher", "lower"])
def test_the_ends_are_hit_exactly(direction):
    for scale in SCALES:
        mos, _ = to_mos(np.array([0.0, 0.3, 1.0]), scale, direction, (0, 1))
        assert (mos.min(), mos.max()) == (1, 5)
    mos, _ = to_mos(np.random.default_rng(0).normal(40, 13, 500), "deqa", direction)
    assert (mos.min(), mos.max()) == (1, 5)


def test_mean_opinion_of_unanimous_answers_stays_in_range():
    means = mean_opinion(np.eye(5) * np.array([[0.999999999999], [1.0], [1.0], [1.0], [1.000000000001]]))
    assert means.tolist() == pytest.approx([1, 2, 3, 4, 5])
    assert means.min() >= 1
    assert means.max() <= 5


def test_rows_without_a_score_stay_without_and_change_nothing():
    scores = [1.0, math.nan, 3.0, 5.0]
    for scale in SCALES:
        mos, factor = to_mos(np.array(scores), scale, "higher", (0, 10))
        whole, same = to_mos(np.array([1.0, 3.0, 5.0]), scale, "higher", (0, 10))
        assert np.isnan(mos[1])
        assert mos[[0, 2, 3]].tolist() == whole.tolist()
        assert factor == same


@pytest.mark.parametrize(
    ("values", "scale", "direction", "ends", "message"),
    [
        ([50.0, 104.0, 3.0], "linear", "higher", (0, 100), r"1 of 3.*\[0, 100\], 104 "),  # nothing is clamped
        ([1.0, 2.0], "raw", "higher", (0, 5), "'raw'; choose one of deqa, linear"),
        ([1.0, 2.0], "deqa", "up", None, "'up': which end is better, higher or lower"),
        ([1.0, 2.0], "linear", "higher", None, "lowest and the highest"),
        ([1.0, 2.0], "linear", "higher", (5, 1), "lowest and the highest"),
        ([2.0, 2.0], "deqa", "higher", None, "needs two"),
        ([2.0], "deqa", "higher", None, "needs two"),
        ([math.nan], "deqa", "higher", None, "No image has a score"),
    ],
)
def test_undefined_rules_are_refused(values, scale, direction, ends, message):
    refused(message, to_mos, np.array(values), scale, direction, ends)


def test_the_spread_factor_is_the_slope_of_a_line_and_a_ratio_of_spreads_otherwise():
    answers = [1.0, 2.5, 3.0, 4.75]
    assert spread_factor(np.array([1 + 1.3 * a for a in answers]), np.array(answers)) == pytest.approx(1.3)
    bent = [a**2 / 5 for a in answers]
    expected = statistics.pstdev(bent) / statistics.pstdev(answers)
    assert spread_factor(np.array(bent), np.array(answers)) == pytest.approx(expected)
    assert spread_factor(np.array([3.0, 3.0]), np.array([2.0, 2.0])) == 1


@pytest.mark.parametrize("kind", ["std", "variance"])
def test_standard_deviations_and_variances_are_distinguished(kind):
    rng = np.random.default_rng(0)
    answers = [np.clip(np.rint(rng.normal(rng.uniform(1.2, 4.8), 0.8, 30)), 1, 5).tolist() for _ in range(400)]
    means = np.array([round(statistics.fmean(row), 2) for row in answers])
    spread = statistics.pstdev if kind == "std" else statistics.pvariance
    as_std, as_variance = spread_reading(means, np.array([round(spread(row), 3) for row in answers]), 30)
    right, wrong = (as_std, as_variance) if kind == "std" else (as_variance, as_std)
    assert right > 0.99
    assert wrong < 0.15


def test_numbers_that_are_not_answers_fit_neither():
    rng = np.random.default_rng(1)
    means, spreads = np.round(rng.uniform(1, 5, 400), 2), np.round(rng.uniform(0.2, 1.2, 400), 3)
    assert max(spread_reading(means, spreads, 30)) < 0.2
    for means in ([np.nan], []):
        assert spread_reading(np.array(means), np.ones(len(means)), 30) == (0, 0)
