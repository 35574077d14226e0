"""
Reward functions in TRL's signature.

`accuracy` + `format` are the paper's reward, `repetition` is from its release; `threshold` (Q-Insight), `rank`
(VisualQuality-R1) and `margin` (MR-IQA) are accuracy rewards of other papers. The label is the column `mos`, on the
scale of the scores. [`HawkeyeGRPOTrainer`] gives them the scale and parser of its config.
"""

import functools
import inspect
import math
import re
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch

from .objective.comparison import margin_rewards, rank_rewards
from .question import Question
from .text import answer_text, completion_text, has_answer_format, parse_score

Completions = Sequence[str | list[dict]]
ScoreFunction = Callable[[str], float | None]

_FORMAT_REWARD = 0.8
_REPEATS_ALLOWED = 5
_REPETITION_PENALTY = 0.25
_REPETITION_FLOOR = -2.0
# Keyword arguments that TRL or the dataset supplies: not parameters to configure.
_SUPPLIED = ("log_metric", "image_id", "dataset", "mos_std")


def _checked_mos(mos: Sequence, score_min: float, score_max: float, image_ids: Sequence | None) -> list[float]:
    """The labels as floats; a missing one, or one outside the scale, is an error and never clamped."""
    checked = []
    for row, value in enumerate(mos):
        label = math.nan if value is None else float(value)
        if not score_min <= label <= score_max:
            name = f"row {row}" if image_ids is None else f"row {row} (image_id {image_ids[row]!r})"
            raise ValueError(
                f"mos of {name} is {value!r}, expected a number in [{score_min:g}, {score_max:g}]; rescale them, "
                "or set score_min and score_max to their scale."
            )
        checked.append(label)
    return checked


def _read_scores(completions: Completions, score_fn: ScoreFunction) -> list[float | None]:
    return [score_fn(completion_text(completion)) for completion in completions]


def _clamp(score: float | None, score_min: float, score_max: float) -> float | None:
    return None if score is None else min(max(score, score_min), score_max)


def _require_positive(**parameters: float) -> None:
    for name, value in parameters.items():
        if not value > 0:
            raise ValueError(f"`{name}` must be positive, got {value}.")


def accuracy_reward(
    completions: Completions,
    mos: Sequence[float],
    *,
    tau: float = 0.30,
    score_min: float = 1.0,
    score_max: float = 5.0,
    score_fn: ScoreFunction = parse_score,
    log_metric: Callable[[str, float], None] | None = None,
    image_id: Sequence[Hashable] | None = None,
    **kwargs,
) -> list[float]:
    """
    Reward the stated score s by exp(-|s - y|/tau), with the MOS y.

    Logs `rewards/out_of_range_share`, the share of all completions with a score outside the scale.

    Args:
        completions (`list[str]` or `list[list[dict]]`, length B):
            Completions as TRL hands them over.
        mos (`list[float]`, length B):
            MOS in [`score_min`, `score_max`], never clamped.
        tau (`float`, *optional*, defaults to `0.30`):
            Error, in points of the scale, at which the reward is 1/e; positive.
        score_min (`float`, *optional*, defaults to `1.0`):
            Lower end of the scale. Stated scores are clamped to it.
        score_max (`float`, *optional*, defaults to `5.0`):
            Upper end of the scale.
        score_fn (`Callable`, *optional*, defaults to [`parse_score`]):
            Reads the score of a completion, `None` for no score.
        log_metric (`Callable`, *optional*):
            TRL's logger of scalar metrics.
        image_id (`list`, length B, *optional*):
            Names of the images, for error messages.

    Returns:
        `list[float]` of length B: Rewards in [0, 1], 0 if no score parses.

    Raises:
        `ValueError`: A MOS that is missing or out of range, or `tau` not positive.

    Source: Q-Hawkeye, arXiv 2601.22920 (accuracy reward).
    """
    _require_positive(tau=tau)
    labels = _checked_mos(mos, score_min, score_max, image_id)
    scores = _read_scores(completions, score_fn)
    if log_metric is not None and scores:
        outside = sum(score is not None and not score_min <= score <= score_max for score in scores)
        log_metric("rewards/out_of_range_share", outside / len(scores))
    clamped = [_clamp(score, score_min, score_max) for score in scores]
    return [
        0.0 if score is None else math.exp(-abs(score - label) / tau)
        for score, label in zip(clamped, labels, strict=True)
    ]


def format_reward(completions: Completions, mos: Sequence[float] | None = None, **kwargs) -> list[float]:
    """
    Reward the form: 0.8 for one `<think>…</think>`, then one `<answer>number</answer>` and nothing else, otherwise 0.

    Args:
        completions (`list[str]` or `list[list[dict]]`, length B):
            Completions as TRL hands them over.
        mos (`list[float]`, *optional*):
            Not read.

    Returns:
        `list[float]` of length B: 0.8 or 0.

    Source: Q-Hawkeye, arXiv 2601.22920 (format reward), value of its release.
    """
    return [_FORMAT_REWARD * has_answer_format(completion_text(completion)) for completion in completions]


def repetition_reward(completions: Completions, mos: Sequence[float] | None = None, **kwargs) -> list[float]:
    """
    Punish repetition in the answer: -0.25 for each occurrence of a word or character that occurs more than 5 times.

    The floor is -2. Every occurrence counts, and words and characters add up: "ab" six times, separated by spaces, is
    beyond the floor with 6 words and 12 letters; "1.000000" has six zeros and gets -1.5.

    Punctuation is removed and white space at both ends is trimmed before counting. White space inside separates words
    and counts as a character. Case matters. Without a closed answer the reward is 0; the release counts the characters
    of the whole text instead, which gives -2 to any unfinished answer. The release also splits words at single spaces,
    so that several spaces make empty words; this reward does not.

    Args:
        completions (`list[str]` or `list[list[dict]]`, length B):
            Completions as TRL hands them over.
        mos (`list[float]`, *optional*):
            Not read.

    Returns:
        `list[float]` of length B: Rewards in [-2, 0].

    Source: release of Q-Hawkeye, arXiv 2601.22920.
    """
    return [_repetition_of(answer_text(completion_text(completion))) for completion in completions]


def _repetition_of(answer: str | None) -> float:
    if answer is None:
        return 0.0
    bare = re.sub(r"[^\w\s]", "", answer.strip())
    counts = [*Counter(bare.split()).values(), *Counter(bare).values()]
    repeats = sum(count for count in counts if count > _REPEATS_ALLOWED)
    return max(_REPETITION_FLOOR, -_REPETITION_PENALTY * repeats) if repeats else 0.0


def threshold_reward(
    completions: Completions,
    mos: Sequence[float],
    *,
    threshold: float = 0.35,
    score_min: float = 1.0,
    score_max: float = 5.0,
    score_fn: ScoreFunction = parse_score,
    image_id: Sequence[Hashable] | None = None,
    **kwargs,
) -> list[float]:
    """
    Reward 1 if the stated score, not clamped, differs from the MOS by less than `threshold`, otherwise 0.

    Args:
        completions, mos, score_min, score_max, score_fn, image_id:
            As in [`accuracy_reward`].
        threshold (`float`, *optional*, defaults to `0.35`):
            Largest error that is rewarded (exclusive), in points of the scale; positive.

    Returns:
        `list[float]` of length B: 1 or 0; 0 if no score parses.

    Raises:
        `ValueError`: A MOS that is missing or out of range, or `threshold` not positive.

    Source: Q-Insight, arXiv 2503.22679 (score regression reward).
    """
    _require_positive(threshold=threshold)
    labels = _checked_mos(mos, score_min, score_max, image_id)
    scores = _read_scores(completions, score_fn)
    return [
        float(score is not None and abs(score - label) < threshold)
        for score, label in zip(scores, labels, strict=True)
    ]


def _gather_rows(rows: list[tuple]) -> tuple[list[tuple], slice]:
    """The rows of all ranks and the slice of this rank's own. Every rank must call it, even without rows."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return rows, slice(0, len(rows))
    gathered: list[list[tuple]] = [[]] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, rows)
    start = sum(len(others) for others in gathered[: torch.distributed.get_rank()])
    return [row for others in gathered for row in others], slice(start, start + len(rows))


def _compare_globally(
    compare: Callable[..., list[float]],
    completions: Completions,
    mos: Sequence[float],
    image_id: Sequence[Hashable] | None,
    dataset: Sequence[Hashable] | None,
    mos_std: Sequence[float] | None,
    score_range: tuple[float, float],
    score_fn: ScoreFunction,
) -> list[float]:
    """Call `compare(scores, mos, image_ids, datasets, mos_stds)` with the rows of all ranks; return the local part."""
    if image_id is None:
        raise ValueError(
            "Rank and margin rewards compare images and need the column `image_id`: add it to the dataset, with one "
            "value for each image, unique within its data set (`dataset` column)."
        )
    scores = [_clamp(score, *score_range) for score in _read_scores(completions, score_fn)]
    empty = [None] * len(scores)
    columns = (scores, mos, image_id, empty if dataset is None else dataset, empty if mos_std is None else mos_std)
    rows, local = _gather_rows(list(zip(*columns, strict=True)))
    if not rows:
        return []
    # checked after gathering, so that every rank raises and none waits for the others
    scores, mos, image_ids, datasets, mos_stds = (list(column) for column in zip(*rows, strict=True))
    if None in image_ids:
        raise ValueError(f"Row {image_ids.index(None)} of the global batch has no `image_id`.")
    labels = _checked_mos(mos, *score_range, image_ids)
    return compare(scores, labels, image_ids, datasets, mos_stds)[local]


def rank_reward(
    completions: Completions,
    mos: Sequence[float],
    *,
    score_min: float = 1.0,
    score_max: float = 5.0,
    score_fn: ScoreFunction = parse_score,
    image_id: Sequence[Hashable] | None = None,
    dataset: Sequence[Hashable] | None = None,
    **kwargs,
) -> list[float]:
    """
    Reward a rollout that ranks its image among the images of the global batch as the MOS does.

    It is [`rank_rewards`] on the scores of all ranks. Every rank must call it.

    Args:
        completions, mos, score_min, score_max, score_fn:
            As in [`accuracy_reward`]. Scores are clamped to the scale: an outlier would move the means and variances
            that other images are compared with.
        image_id (`list`, length B):
            Names of the images, by which the rollouts are grouped.
        dataset (`list`, length B, *optional*):
            Data set of each row; only images of one data set are compared.

    Returns:
        `list[float]` of length B: Rewards in [0, 1]; 0 if no score parses or there is no image to compare with.

    Raises:
        `ValueError`: No `image_id`, a MOS that is missing or out of range, or one image with different MOS.

    Source: VisualQuality-R1, arXiv 2505.14460 (Thurstone model, fidelity reward).
    """

    def compare(scores, labels, image_ids, datasets, _):
        return rank_rewards(scores, labels, image_ids, datasets)

    return _compare_globally(compare, completions, mos, image_id, dataset, None, (score_min, score_max), score_fn)


def margin_reward(
    completions: Completions,
    mos: Sequence[float],
    *,
    sigma: float = 1.0,
    use_mos_std: bool = False,
    score_min: float = 1.0,
    score_max: float = 5.0,
    score_fn: ScoreFunction = parse_score,
    image_id: Sequence[Hashable] | None = None,
    dataset: Sequence[Hashable] | None = None,
    mos_std: Sequence[float] | None = None,
    **kwargs,
) -> list[float]:
    """
    Reward a rollout whose distances to the other images of the global batch are those of the MOS.

    It is [`margin_rewards`] on the scores of all ranks. Every rank must call it.

    Args:
        completions, mos, score_min, score_max, score_fn, image_id, dataset:
            As in [`rank_reward`].
        sigma (`float`, *optional*, defaults to `1.0`):
            Tolerance in points of the scale, positive.
        use_mos_std (`bool`, *optional*, defaults to `False`):
            Whether to use sqrt(std_i² + std_z²) from the column `mos_std` in place of `sigma`.
        mos_std (`list[float]`, length B, *optional*):
            Standard deviation of the opinions, in points of the scale, positive. Read with `use_mos_std` only.

    Returns:
        `list[float]` of length B: Rewards in [0, 1]; 0 if no score parses or there is no image to compare with.

    Raises:
        `ValueError`: As in [`rank_reward`]; also `sigma` not positive, or `use_mos_std` without usable `mos_std`.

    Source: MR-IQA (margin reward over image pairs).
    """
    if use_mos_std and mos_std is None:
        raise ValueError("`use_mos_std` needs the column `mos_std`: add it to the dataset or set a `sigma` instead.")

    def compare(scores, labels, image_ids, datasets, mos_stds):
        mos_stds = mos_stds if use_mos_std else None
        return margin_rewards(scores, labels, image_ids, datasets, sigma=sigma, mos_stds=mos_stds)

    return _compare_globally(compare, completions, mos, image_id, dataset, mos_std, (score_min, score_max), score_fn)


REWARDS: dict[str, Callable[..., list[float]]] = {
    "accuracy": accuracy_reward,
    "format": format_reward,
    "repetition": repetition_reward,
    "threshold": threshold_reward,
    "rank": rank_reward,
    "margin": margin_reward,
}
"""Reward functions by their names in recipes."""


def configure_reward(reward: Callable[..., list[float]], **parameters) -> Callable[..., list[float]]:
    """
    Bind parameters to a reward function. The result keeps the name under which TRL logs it, and can be pickled.

    Args:
        reward (`Callable`):
            One of [`REWARDS`], or any function whose keyword-only arguments are its parameters.
        **parameters:
            Parameters to bind.

    Returns:
        `Callable`: The reward function with the parameters bound.

    Raises:
        `ValueError`: The reward has no such parameter.
    """
    arguments = inspect.signature(reward).parameters.values()
    known = [arg.name for arg in arguments if arg.kind is arg.KEYWORD_ONLY and arg.name not in _SUPPLIED]
    for name in parameters:
        if name not in known:
            known_text = f"it knows {', '.join(known)}" if known else "it has none"
            raise ValueError(f"{reward.__name__} has no parameter `{name}`: {known_text}.")
    return functools.update_wrapper(functools.partial(reward, **parameters), reward)


def bind_question(reward: Any, question: Question, score_fn: ScoreFunction) -> Any:
    """
    Give those of [`REWARDS`] in a reward or a list the scale and parser that they were not configured with.

    Other rewards, and those whose defaults are the same, are left as they are.
    """
    if isinstance(reward, list):
        return [bind_question(each, question, score_fn) for each in reward]
    function: Any = reward
    given: dict[str, Any] = {}
    while isinstance(function, functools.partial):
        function, given = function.func, {**function.keywords, **given}
    if function not in REWARDS.values():
        return reward
    offered = {"score_min": question.score_min, "score_max": question.score_max, "score_fn": score_fn}
    arguments = inspect.signature(function).parameters
    bound = {
        name: value
        for name, value in offered.items()
        if name in arguments and name not in given and value != arguments[name].default
    }
    return configure_reward(reward, **bound) if bound else reward


def get_reward(name: str, **parameters) -> Callable[..., list[float]]:
    """
    Return the reward function of a name, with parameters bound.

    Args:
        name (`str`):
            Key of [`REWARDS`].
        **parameters:
            Parameters to bind.

    Returns:
        `Callable`: The reward function.

    Raises:
        `ValueError`: Unknown name, or a parameter that the reward does not have.
    """
    if name not in REWARDS:
        raise ValueError(f"Unknown reward {name!r}: the known ones are {', '.join(REWARDS)}.")
    return configure_reward(REWARDS[name], **parameters)
