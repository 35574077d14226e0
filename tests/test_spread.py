"""Risk and coverage against loops, and what equal spreads count as."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from q_hawkeye_trl.evaluation.figures import risk_coverage, spread_figures


def _reference_risk(spread, error):
    """Mean over all orders of equally certain images, by trying every order."""
    count = len(spread)
    total, orders = [0.0] * count, 0
    for order in itertools.permutations(range(count)):
        if any(spread[a] > spread[b] for a, b in itertools.pairwise(order)):
            continue
        orders += 1
        for kept in range(1, count + 1):
            total[kept - 1] += math.fsum(error[i] for i in order[:kept]) / kept
    return [value / orders for value in total]


@pytest.mark.parametrize("spread", [[0.3, 0.1, 0.5, 0.2, 0.4], [0.2, 0.1, 0.2, 0.1, 0.2], [0.5] * 5])
def test_risk_agrees_with_all_orders(spread):
    error = [0.9, 0.1, 1.3, 0.4, 0.2]
    curve = risk_coverage(np.array(spread), np.array(error))
    assert curve.risk.tolist() == pytest.approx(_reference_risk(spread, error))
    assert curve.oracle.tolist() == pytest.approx(_reference_risk(error, error))
    assert curve.area == pytest.approx(sum(_reference_risk(spread, error)) / 5)
    assert curve.at(0) == pytest.approx(sum(error) / 5)
    assert curve.at(0.4) == pytest.approx(_reference_risk(spread, error)[2])
    assert curve.at(0.99) == pytest.approx(_reference_risk(spread, error)[0])


def test_gain_is_one_for_the_oracle_zero_for_no_order_and_negative_for_the_worst():
    error = np.random.default_rng(0).exponential(size=50)
    assert risk_coverage(error, error).gain == pytest.approx(1)
    assert risk_coverage(np.ones(50), error).gain == pytest.approx(0, abs=1e-12)
    assert risk_coverage(-error, error).gain < -0.5
    assert risk_coverage(np.full(50, 0.1), error).gain == 0.0
    for value in (0.1, 0.3, 0.7, 1.0):  # sums of equal numbers round
        for count in (3, 10, 30, 50):
            assert math.isnan(risk_coverage(error[:count], np.full(count, value)).gain)


def test_figures():
    rng = np.random.default_rng(1)
    spread = rng.uniform(size=40).round(1)
    error = np.abs(rng.normal(size=40)) * spread
    figures = spread_figures(spread, error)
    assert figures["spread_srcc"] == pytest.approx(stats.spearmanr(spread, error).statistic)
    assert 0 < figures["spread_gain"] < 1
