"""The score of one image, from the texts of its rollouts."""

import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..question import Question

DEFAULT_QUESTION = Question()

_THINK = re.compile(r"<think>(.*?)(?:</think>|<answer>|$)", re.DOTALL)


@dataclass(frozen=True)
class ScoredImage:
    """
    The score of one image, or why it has none.

    Args:
        image (`str`):
            Name of the image: its path as it was given, or the `image_id` of its dataset row.
        score (`float`, *optional*):
            Mean over the rollouts whose score could be parsed, each clamped to the scale. `None` when there is none.
        spread (`float`, *optional*):
            Population standard deviation of the same scores, in points of the scale. `None` for fewer than two.
        parse_rate (`float`, *optional*):
            Share of the rollouts with a score, in [0, 1]. `None` if the image could not be read.
        rollouts (`tuple[float | None, ...]`):
            The scores as the policy stated them, not clamped; `None` where nothing parsed. One entry when greedy.
        clamped (`int`, *optional*, defaults to `0`):
            Number of `rollouts` outside the scale. They count in `score` and `spread` as its nearer end, as in the
            rewards.
        error (`str`, *optional*):
            Why the image could not be read.
        answers (`tuple[str, ...]`, *optional*):
            Whole texts of the rollouts.
    """

    image: str
    score: float | None = None
    spread: float | None = None
    parse_rate: float | None = None
    rollouts: tuple[float | None, ...] = ()
    clamped: int = 0
    error: str | None = None
    answers: tuple[str, ...] = field(default=(), repr=False)

    @property
    def reasoning(self) -> str | None:
        """
        What the policy wrote before the answer, in the rollout whose score is nearest to `score`.

        In the first rollout if none has a score, `None` if there is no text.
        """
        if not self.answers:
            return None
        nearest = 0
        if self.score is not None:
            score = self.score
            distances = [math.inf if value is None else abs(value - score) for value in self.rollouts]
            nearest = distances.index(min(distances))
        text = self.answers[nearest]
        thought = _THINK.search(text)
        return (thought.group(1) if thought else text).strip()


def score_answers(image: str, answers: Sequence[str], question: Question = DEFAULT_QUESTION) -> ScoredImage:
    """The score of an image from the texts of its K >= 1 rollouts, read as the question says."""
    if not answers:
        raise ValueError(f"{image} has no answers to read a score from.")
    low, high = question.scale
    stated = [question.parse(text) for text in answers]
    values = [min(max(value, low), high) for value in stated if value is not None]
    return ScoredImage(
        image=image,
        score=statistics.fmean(values) if values else None,
        spread=statistics.pstdev(values) if len(values) > 1 else None,
        parse_rate=len(values) / len(stated),
        rollouts=tuple(stated),
        clamped=sum(value is not None and not low <= value <= high for value in stated),
        answers=tuple(answers),
    )
