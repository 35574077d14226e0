import math

import numpy as np
import pytest

from q_hawkeye_trl.evaluation.metrics import krcc, mae, plcc, rmse, srcc


def _reference_pearson(a, b):
    mean_a, mean_b = math.fsum(a) / len(a), math.fsum(b) / len(b)
    cross = math.fsum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    return cross / math.sqrt(math.fsum((x - mean_a) ** 2 for x in a) * math.fsum((y - mean_b) ** 2 for y in b))


def _reference_ranks(values):
    """Mean rank of each value, by counting: smaller ones, and half of its equals."""
    return [
        sum(other < value for other in values) + (sum(other == value for other in values) + 1) / 2 for value in values
    ]


def _reference_kendall(a, b):
    """tau-b over all pairs: concordant minus discordant, over the root of the pairs untied on either side."""
    balance = untied_a = untied_b = 0
    for i in range(len(a)):
        for j in range(i):
            sign_a, sign_b = (a[i] > a[j]) - (a[i] < a[j]), (b[i] > b[j]) - (b[i] < b[j])
            balance, untied_a, untied_b = balance + sign_a * sign_b, untied_a + sign_a**2, untied_b + sign_b**2
    return balance / math.sqrt(untied_a * untied_b)


def _reference_spearman(a, b):
    return _reference_pearson(_reference_ranks(a), _reference_ranks(b))


@pytest.mark.parametrize("decimals", [6, 0], ids=["distinct", "ties"])
@pytest.mark.parametrize("count", [2, 3, 50])
def test_correlations_agree_with_loops(count, decimals):
    rng = np.random.default_rng(count)
    a, b = np.round(rng.normal(3, 2, size=(2, count)), decimals)
    a[0], a[1], b[0], b[1] = 1, 2, 5, 3  # neither is constant
    assert srcc(a, b) == pytest.approx(_reference_spearman(a.tolist(), b.tolist()), abs=1e-12)
    assert plcc(a, b) == pytest.approx(_reference_pearson(a.tolist(), b.tolist()), abs=1e-12)
    assert krcc(a, b) == pytest.approx(_reference_kendall(a.tolist(), b.tolist()), abs=1e-12)


def test_errors_agree_with_loops():
    a, b = np.random.default_rng(0).normal(3, 1, size=(2, 20))
    errors = [x - y for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    assert rmse(a, b) == pytest.approx(math.sqrt(math.fsum(e * e for e in errors) / 20), abs=1e-12)
    assert mae(a, b) == pytest.approx(math.fsum(abs(e) for e in errors) / 20, abs=1e-12)
    assert rmse(a, a) == mae(a, a) == 0
    assert rmse([1, 5], [3, 3]) == mae([1, 5], [3, 3]) == 2


def test_srcc_ignores_scale_and_plcc_ignores_affine_maps():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 40))
    assert srcc(np.exp(a), b) == pytest.approx(srcc(a, b))
    assert plcc(3 * a - 7, b) == pytest.approx(plcc(a, b))
    assert plcc(np.exp(3 * a), b) != pytest.approx(plcc(a, b), abs=1e-3)
    assert srcc(-a, b) == pytest.approx(-srcc(a, b))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("metric", [srcc, plcc, krcc])
@pytest.mark.parametrize(("a", "b"), [([2, 2, 2], [1, 2, 3]), ([1, 2, 3], [0.1] * 3), ([1], [2])])
def test_constants_have_no_correlation(metric, a, b):
    assert math.isnan(metric(a, b))


@pytest.mark.parametrize("metric", [srcc, plcc, krcc, rmse, mae])
@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([], [], "empty"),
        ([1, 2], [1, 2, 3], r"\(2,\) and \(3,\)"),
        ([[1, 2]], [[1, 2]], r"\(1, 2\)"),
        (1.0, 2.0, r"\(\)"),
        ([1, math.nan], [1, 2], "`predicted` has 1 "),
        ([1, 2], [math.inf, math.nan], "`target` has 2 "),
    ],
)
def test_bad_input_is_refused(metric, a, b, message):
    with pytest.raises(ValueError, match=message):
        metric(a, b)
