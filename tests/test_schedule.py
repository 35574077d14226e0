import itertools
import math

import pytest

from q_hawkeye_trl.objective.schedule import SCHEDULES, perception_gamma_at


def _reference_gamma(epoch, gamma, schedule, zero_epoch):
    if schedule == "constant" or zero_epoch == 0:
        return gamma
    if epoch >= zero_epoch:
        return 0.0
    if schedule == "linear":
        return gamma * (zero_epoch - epoch) / zero_epoch
    return gamma * math.cos(math.pi * epoch / (2 * zero_epoch)) ** 2  # (1 + cos 2x)/2 = cos² x


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("zero_epoch", [0, 0.5, 1, 5, 15])
def test_perception_gamma_equals_the_reference(schedule, zero_epoch):
    for step in range(200):
        epoch = step * 0.0937
        expected = _reference_gamma(epoch, 1e-4, schedule, zero_epoch)
        value = perception_gamma_at(epoch, gamma=1e-4, schedule=schedule, zero_epoch=zero_epoch)
        assert value == pytest.approx(expected, rel=1e-12, abs=1e-19)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_perception_gamma_starts_full_is_half_midway_and_ends_at_exactly_zero(schedule):
    gammas = [perception_gamma_at(e / 10, gamma=0.02, schedule=schedule, zero_epoch=5) for e in range(151)]
    assert gammas[0] == 0.02
    assert gammas[25] == pytest.approx(0.01, rel=1e-12)
    assert gammas[49] > 0
    assert all(gamma == 0.0 for gamma in gammas[50:])
    assert all(later <= earlier for earlier, later in itertools.pairwise(gammas))


def test_perception_gamma_follows_the_cosine_by_default():
    assert perception_gamma_at(1.0, gamma=1.0, zero_epoch=3) == pytest.approx(0.75, rel=1e-12)


@pytest.mark.parametrize("epoch", [0.0, 3.0, 1e6])
def test_zero_epoch_of_zero_and_constant_never_anneal(epoch):
    assert perception_gamma_at(epoch, gamma=0.3, schedule="constant", zero_epoch=1) == 0.3
    assert all(perception_gamma_at(epoch, gamma=0.3, schedule=name, zero_epoch=0) == 0.3 for name in SCHEDULES)


@pytest.mark.parametrize(
    "kwargs", [{"schedule": "step", "zero_epoch": 5}, {"zero_epoch": -1}, {"zero_epoch": math.nan}]
)
def test_perception_gamma_refuses_what_it_does_not_know(kwargs):
    with pytest.raises(ValueError, match=r"schedule|zero_epoch"):
        perception_gamma_at(0.0, gamma=1.0, **kwargs)
