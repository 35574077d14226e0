import math
import random

import pytest
import torch

from q_hawkeye_trl.objective.uncertainty import (
    WEIGHTINGS,
    rollout_uncertainty,
    score_statistics,
    uncertainty_weights,
)

NAN = math.nan


def _reference_variance(group, low, high):
    values = [min(max(score, low), high) for score in group if not math.isnan(score)]
    if len(values) < 2:
        return 0.0
    mean = math.fsum(values) / len(values)
    return math.fsum((value - mean) ** 2 for value in values) / len(values)


def _reference_uncertainty(group, low, high, unparsed):
    share = sum(not math.isnan(score) for score in group) / len(group)
    uncertainty = min(_reference_variance(group, low, high) / ((high - low) ** 2 / 4), 1.0)
    return uncertainty if unparsed == "exclude" else share * uncertainty + (1 - share)


def _reference_weight(uncertainty, alpha, weighting):
    if weighting == "exponential":
        return math.exp(-alpha * uncertainty)
    return 1 - alpha * uncertainty if weighting == "linear" else 1 / (1 + alpha * uncertainty)


def _random_groups(groups, rollouts, seed, share_unparsed=0.3):
    rng = random.Random(seed)
    return [
        [NAN if rng.random() < share_unparsed else rng.uniform(-1, 7) for _ in range(rollouts)] for _ in range(groups)
    ]


@pytest.mark.parametrize("unparsed", ["penalize", "exclude"])
@pytest.mark.parametrize("rollouts", range(2, 9))
@pytest.mark.parametrize(("low", "high"), [(1.0, 5.0), (0.0, 100.0)])
def test_rollout_uncertainty_equals_the_reference(unparsed, rollouts, low, high):
    groups = _random_groups(40, rollouts, seed=rollouts)
    groups += [[NAN] * rollouts, [2.0] + [NAN] * (rollouts - 1), [3.0] * rollouts]
    value = rollout_uncertainty(
        torch.tensor(groups, dtype=torch.float64), score_min=low, score_max=high, unparsed=unparsed
    )
    expected = [_reference_uncertainty(group, low, high, unparsed) for group in groups]
    assert value.tolist() == pytest.approx(expected, rel=1e-12, abs=1e-15)
    assert value.shape == (43,)
    assert ((value >= 0) & (value <= 1)).all()


@pytest.mark.parametrize(
    ("group", "penalize", "exclude"),
    [
        ([1.0, 1.0, 5.0, 5.0], 1.0, 1.0),
        ([-9.0, 1.0, 5.0, 1e30], 1.0, 1.0),  # clamped before the variance
        ([math.inf, 5.0], 0.0, 0.0),
        ([3.0, 3.0, 3.0, 3.0], 0.0, 0.0),
        ([3.0, 4.0], 0.0625, 0.0625),  # variance 0.25 of 4
        ([NAN, NAN, NAN, NAN], 1.0, 0.0),
        ([2.0, NAN, NAN, NAN], 0.75, 0.0),
        ([1.0, 5.0, NAN, NAN], 1.0, 1.0),
        ([3.0, 4.0, NAN, NAN], 0.53125, 0.0625),
        ([2.0], 0.0, 0.0),
        ([NAN], 1.0, 0.0),
    ],
)
def test_rollout_uncertainty_known_values(group, penalize, exclude):
    scores = torch.tensor([group])
    assert rollout_uncertainty(scores).tolist() == pytest.approx([penalize])
    assert rollout_uncertainty(scores, unparsed="exclude").tolist() == pytest.approx([exclude])


def test_rollout_uncertainty_ignores_the_order_of_rollouts_and_keeps_that_of_groups():
    scores = torch.tensor(_random_groups(6, 5, seed=3))
    value = rollout_uncertainty(scores)
    torch.testing.assert_close(rollout_uncertainty(scores.flip(1)), value)
    torch.testing.assert_close(rollout_uncertainty(scores.flip(0)), value.flip(0))


def test_rollout_uncertainty_grows_with_each_lost_score_of_an_agreeing_group():
    values = [rollout_uncertainty(torch.tensor([[3.0] * (8 - lost) + [NAN] * lost])).item() for lost in range(9)]
    assert values == pytest.approx([lost / 8 for lost in range(9)])


@pytest.mark.parametrize("high", [0.1, 0.3, 0.7, 5.0, 9.99])
def test_rollout_uncertainty_stays_at_one_where_float32_rounds_up(high):
    assert rollout_uncertainty(torch.tensor([[0.0, high]]), score_min=0.0, score_max=high).item() <= 1.0


def test_rollout_uncertainty_neither_writes_into_the_scores_nor_changes_their_dtype():
    scores = torch.tensor([[0.0, NAN, 9.0]], dtype=torch.float64)
    before = scores.clone()
    assert rollout_uncertainty(scores).dtype == torch.float64
    torch.testing.assert_close(scores, before, equal_nan=True, rtol=0, atol=0)


def test_rollout_uncertainty_of_no_groups_is_empty():
    assert rollout_uncertainty(torch.empty(0, 4)).shape == (0,)


def test_rollout_uncertainty_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="penalize, exclude"):
        rollout_uncertainty(torch.ones(1, 2), unparsed="ignore")
    with pytest.raises(ValueError, match=r"\(N, G\)"):
        rollout_uncertainty(torch.ones(4))
    with pytest.raises(ValueError, match="score_min"):
        rollout_uncertainty(torch.ones(1, 2), score_min=5.0, score_max=5.0)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("alpha", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("normalize", [False, True])
def test_uncertainty_weights_equal_the_reference(weighting, alpha, normalize):
    uncertainty = [0.0, 0.0625, 0.25, 0.25, 0.9, 1.0]
    expected = [_reference_weight(u, alpha, weighting) for u in uncertainty]
    if normalize:
        mean = math.fsum(expected) / len(expected)
        expected = [weight / mean for weight in expected]
    value = uncertainty_weights(
        torch.tensor(uncertainty, dtype=torch.float64), alpha=alpha, weighting=weighting, normalize=normalize
    )
    assert value.tolist() == pytest.approx(expected, rel=1e-12, abs=1e-15)
    assert (value.diff() <= 0).all()
    assert (value >= 0).all()


def test_uncertainty_weights_of_the_release():
    # method.md: standard deviations of 0.5 and 1.0 and the largest one, at alpha 0.2
    scores = torch.tensor([[2.5, 3.5], [2.0, 4.0], [1.0, 5.0]])
    weights = uncertainty_weights(rollout_uncertainty(scores), alpha=0.2)
    assert weights.tolist() == pytest.approx([0.988, 0.951, 0.819], abs=5e-4)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("normalize", [False, True])
def test_alpha_of_zero_gives_exactly_ones(weighting, normalize):
    weights = uncertainty_weights(torch.rand(37), alpha=0.0, weighting=weighting, normalize=normalize)
    assert torch.equal(weights, torch.ones(37))


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_normalized_weights_have_mean_one_and_keep_their_ratios(weighting):
    uncertainty = torch.rand(16, dtype=torch.float64)
    plain = uncertainty_weights(uncertainty, alpha=0.8, weighting=weighting)
    rescaled = uncertainty_weights(uncertainty, alpha=0.8, weighting=weighting, normalize=True)
    assert rescaled.mean().item() == pytest.approx(1.0, rel=1e-12)
    torch.testing.assert_close(rescaled / rescaled[0], plain / plain[0])


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_equal_uncertainties_normalize_to_ones(weighting):
    # linear with alpha 1 and u 1: all weights are 0, which must not become NaN
    weights = uncertainty_weights(torch.ones(5), alpha=1.0, weighting=weighting, normalize=True)
    torch.testing.assert_close(weights, torch.ones(5))


def test_uncertainty_weights_of_no_groups_are_empty():
    assert uncertainty_weights(torch.empty(0), alpha=0.2, normalize=True).shape == (0,)


@pytest.mark.parametrize(
    ("alpha", "weighting"),
    [(-0.1, "exponential"), (NAN, "exponential"), (-0.1, "reciprocal"), (-0.1, "linear"), (1.01, "linear")],
)
def test_uncertainty_weights_refuse_an_alpha_out_of_range(alpha, weighting):
    with pytest.raises(ValueError, match="alpha"):
        uncertainty_weights(torch.rand(3), alpha=alpha, weighting=weighting)


def test_uncertainty_weights_refuse_an_unknown_weighting():
    with pytest.raises(ValueError, match="exponential, linear, reciprocal"):
        uncertainty_weights(torch.rand(3), alpha=0.2, weighting="quadratic")


def test_score_statistics_equal_the_reference():
    groups = [
        *_random_groups(30, 4, seed=11, share_unparsed=0.5),
        [NAN] * 4,
        [3.0, NAN, NAN, NAN],
        [1.0, 2.0, 2.0, 9.0],
    ]
    parsed = [[score for score in group if not math.isnan(score)] for group in groups]
    measured = [group for group in parsed if len(group) >= 2]
    spreads = [math.sqrt(_reference_variance(group, 1.0, 5.0)) for group in measured]
    assert score_statistics(torch.tensor(groups, dtype=torch.float64)) == pytest.approx(
        {
            "parse_rate": sum(map(len, parsed)) / (4 * len(groups)),
            "unmeasured_groups": 1 - len(measured) / len(groups),
            "spread": math.fsum(spreads) / len(spreads),
        }
    )


def test_score_statistics_leave_out_a_spread_that_nothing_shows():
    scores = torch.tensor([[3.0, NAN], [NAN, NAN]])
    assert score_statistics(scores, prefix="scores/") == {"scores/parse_rate": 0.25, "scores/unmeasured_groups": 1.0}
    assert score_statistics(torch.empty(0, 4)) == {}
