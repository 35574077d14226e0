"""The answers that the demo policy is taught: one rater's words and number for one picture."""

import numpy as np

LEVELS = ("severe", "strong", "moderate", "slight", "faint")
"""Words for a score in [1, 1.8), [1.8, 2.6), … [4.2, 5]."""

KIND_NAMES = {"gaussian_noise": "noise", "gaussian_blur": "blur", "jpeg": "blocking", "darken": "darkness"}
"""Word for each kind that the policy is taught."""

ANSWER_STD = 0.6
"""
Standard deviation of one rater's score about the true quality, in points of the 1..5 scale. The policy learns what
single raters said and not their mean, so that it samples as widely as raters disagree.
"""


def rater_score(quality: float, rng: np.random.Generator) -> float:
    """Draw a rater's score with two decimals: normal about the true quality, truncated to [1, 5], since clipping would
    pile up answers of exactly 1.00 and 5.00."""
    while True:
        score = quality + ANSWER_STD * rng.standard_normal()
        if 1 <= score <= 5:
            return round(float(score), 2)


def answer(kind: str, score: float) -> str:
    """Write an answer whose words and number agree, like `<think>severe blur</think><answer>1.40</answer>`."""
    level = LEVELS[min(int((score - 1) / 0.8), 4)]
    return f"<think>{level} {KIND_NAMES[kind]}</think><answer>{score:.2f}</answer>"
