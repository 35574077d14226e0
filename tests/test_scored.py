"""The score of one image from the texts of its rollouts, against plain arithmetic."""

import math

import pytest

from q_hawkeye_trl.question import Question
from q_hawkeye_trl.scoring.scored import ScoredImage, score_answers


def stated(*values) -> list[str]:
    return [f"<think>x</think><answer>{value}</answer>" for value in values]


def test_mean_spread_and_parse_rate():
    scored = score_answers("a.png", [*stated("1.5", "2.5", "4"), "<think>never mind"])
    values = [1.5, 2.5, 4.0]
    mean = sum(values) / 3
    assert scored.score == pytest.approx(mean)
    assert scored.spread == pytest.approx(math.sqrt(sum((value - mean) ** 2 for value in values) / 3))
    assert scored.parse_rate == 0.75
    assert scored.rollouts == (1.5, 2.5, 4.0, None)
    assert (scored.image, scored.error, scored.clamped) == ("a.png", None, 0)


def test_one_score_has_no_spread():
    assert score_answers("a", stated("3.25")) == ScoredImage(
        "a", score=3.25, spread=None, parse_rate=1.0, rollouts=(3.25,), answers=tuple(stated("3.25"))
    )
    assert score_answers("a", [*stated("3.25"), ""]).spread is None
    assert score_answers("a", stated("3", "3")).spread == 0.0


def test_what_lies_beyond_the_scale_is_clamped_and_counted():
    scored = score_answers("a", stated("7", "-3", "2", "5", "1"))
    assert scored.rollouts == (7.0, -3.0, 2.0, 5.0, 1.0)  # as stated
    assert scored.score == pytest.approx((5 + 1 + 2 + 5 + 1) / 5)
    assert scored.clamped == 2
    other = score_answers("a", stated("7", "50"), Question(score_min=0, score_max=10))
    assert (other.score, other.clamped) == (8.5, 1)


@pytest.mark.parametrize("number", ["1e308", "nan", "inf", "-inf", "9" * 400, "3,5", "", "٣", "<b>3</b>", "3/5"])
def test_what_is_no_plain_number_is_unparsed(number):
    scored = score_answers("a", stated(number))
    assert scored.score is None
    assert scored.parse_rate == 0.0
    assert scored.rollouts == (None,)
    assert scored.error is None


def test_a_huge_plain_number_stays_finite():
    scored = score_answers("a", stated("9" * 300, "1"))
    assert scored.score == 3.0
    assert scored.clamped == 1
    assert math.isfinite(scored.rollouts[0])


def test_reasoning_is_that_of_the_rollout_next_to_the_mean():
    answers = [f"<think>says {v}</think><answer>{v}</answer>" for v in ("1.0", "3.4", "5.0")]
    assert score_answers("a", answers).reasoning == "says 3.4"
    assert score_answers("a", ["<think> cut off", *answers[:1]]).reasoning == "says 1.0"
    assert score_answers("a", ["<think> cut off"]).reasoning == "cut off"
    assert score_answers("a", ["no tags at all <answer>"]).reasoning == "no tags at all <answer>"
    assert ScoredImage("a", error="broken").reasoning is None


def test_no_answers_are_an_error():
    with pytest.raises(ValueError, match=r"a\.png has no answers"):
        score_answers("a.png", [])
