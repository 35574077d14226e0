"""Held-out figures: how sampled and greedy answers of a policy agree with mean opinion scores."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image
from tqdm import tqdm
from transformers import PreTrainedModel, ProcessorMixin

from ..data.images import load_image
from ..data.messages import with_images
from ..generation.engine import Conversation, PolicyAnswers
from ..text import parse_score, quality_messages
from .metrics import plcc, srcc

ScoreFunction = Callable[[str], float | None]


def evaluate_held_out(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    images: Sequence[Image.Image | list[Image.Image]],
    mos: ArrayLike,
    *,
    prompts: Sequence[list[dict]] | None = None,
    passes: int = 4,
    seed: int = 0,
    batch_size: int = 128,
    max_new_tokens: int = 24,
    score_min: float = 1.0,
    score_max: float = 5.0,
    score_fn: ScoreFunction = parse_score,
    progress: bool = True,
) -> dict[str, float]:
    """
    Evaluate a policy on held-out images. Global random states and the model's mode stay as they are.

    Args:
        model (`PreTrainedModel`):
            Policy, on its device.
        processor (`ProcessorMixin`):
            Its processor.
        images (`Sequence[PIL.Image.Image]` or `Sequence[list[PIL.Image.Image]]`, of length N):
            Held-out images, or the several images of each prompt.
        mos (array-like of shape `(N,)`):
            Their mean opinion scores, on the scale of the scores.
        prompts (`Sequence[list[dict]]` of length N, *optional*):
            The conversation that asks for each score. By default the project's prompt.
        passes (`int`, *optional*, defaults to `4`):
            Answers to each image, sampled at temperature 1.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the sampling.
        batch_size (`int`, *optional*, defaults to `128`):
            Answers generated at once: `batch_size // passes` images, at least one.
        max_new_tokens (`int`, *optional*, defaults to `24`):
            Longest answer, in tokens. The default suits the demo policy.
        score_min (`float`, *optional*, defaults to `1.0`):
            Lower end of the scale that the prompt asks for.
        score_max (`float`, *optional*, defaults to `5.0`):
            Upper end of that scale.
        score_fn (`Callable[[str], float | None]`, *optional*, defaults to `parse_score`):
            Reads the score of an answer.
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar.

    Returns:
        `dict[str, float]`: As [`held_out_metrics`].

    Raises:
        `ValueError`: No images, not one finite MOS or prompt for each, fewer than one pass, or an image that the
        processor refuses.
    """
    mos = np.asarray(mos, dtype=np.float64)
    if len(images) == 0:
        raise ValueError("There are no images to evaluate.")
    if mos.shape != (len(images),) or not np.isfinite(mos).all():
        raise ValueError(f"Expected one finite MOS for each of {len(images)} images, got shape {mos.shape}.")
    if passes < 1:
        raise ValueError(f"`passes` must be at least 1, got {passes}.")
    prompts = [quality_messages()] * len(images) if prompts is None else prompts
    rows = [conversation_of(prompt, shown) for prompt, shown in zip(prompts, images, strict=True)]
    options: dict[str, Any] = {"batch_size": batch_size, "score_fn": score_fn, "progress": progress}
    sampled = answer_scores(
        PolicyAnswers(model, processor, rollouts=passes, seed=seed, max_new_tokens=max_new_tokens), rows, **options
    )
    greedy = answer_scores(PolicyAnswers(model, processor, max_new_tokens=max_new_tokens), rows, **options)
    return held_out_metrics(mos, sampled=sampled, greedy=greedy[0], score_min=score_min, score_max=score_max)


def conversation_of(prompt: list[dict], images: Image.Image | list[Image.Image] | None) -> Conversation:
    """A dataset row's prompt with its images, upright and RGB, in place."""
    shown = images if isinstance(images, list) else [] if images is None else [images]
    return with_images({"prompt": prompt, "images": [load_image(image) for image in shown]})


def answer_scores(
    answers: PolicyAnswers,
    rows: Sequence[Conversation],
    *,
    batch_size: int,
    score_fn: ScoreFunction = parse_score,
    progress: bool = True,
) -> np.ndarray:
    """Scores of the rollouts, shape `(K, N)`, `nan` for none; raise the error of a row that can't be answered."""
    size = max(1, batch_size // (answers.rollouts or 1))
    scores = []
    description = "Sampling" if answers.rollouts else "Greedy answers"
    # nested bars clear themselves on completion
    for start in tqdm(range(0, len(rows), size), desc=description, unit="batch", disable=not progress, leave=None):
        for texts in answers([rows[number] for number in range(start, min(start + size, len(rows)))]):
            if isinstance(texts, Exception):
                raise texts
            scores.append([score_fn(text) for text in texts])
    return np.array(scores, dtype=np.float64).T


def held_out_metrics(
    mos: np.ndarray,
    *,
    sampled: np.ndarray | None = None,
    greedy: np.ndarray | None = None,
    score_min: float,
    score_max: float,
) -> dict[str, float]:
    """
    Compute the held-out figures from scores and labels.

    Args:
        mos (`np.ndarray` of shape `(N,)`):
            Mean opinion scores.
        sampled (`np.ndarray` of shape `(K, N)`, *optional*):
            Scores of K sampled answers, `nan` for an answer without one.
        greedy (`np.ndarray` of shape `(N,)`, *optional*):
            Scores of the greedy answers, `nan` for an answer without one.
        score_min (`float`), score_max (`float`):
            Ends of the scale.

    Returns:
        `dict[str, float]`: with the keys

        - `srcc_sampled`, `plcc_sampled`: mean over the K passes of the correlation over all images (not the
          correlation of the mean over the passes, which is higher);
        - `parse_rate`: share of the sampled answers with a score, in [0, 1];
        - `spread`: mean over images of the population standard deviation of the sampled scores, in points of the
          scale, over images with at least two scores; `nan` if there is none;
        - `srcc_greedy`, `plcc_greedy`: correlation of the greedy answers.

        Scores outside the scale are clamped to it, as in the rewards. An answer without a score counts as the middle
        of the scale in every correlation: leaving it out would reward a policy for not answering. A correlation is
        `nan` if all scores are equal.
    """
    middle, figures = (score_min + score_max) / 2, {}

    def filled(scores: np.ndarray) -> np.ndarray:
        # an outlier would dominate a linear correlation
        return np.where(np.isnan(scores), middle, scores.clip(score_min, score_max))

    if sampled is not None:
        figures["srcc_sampled"] = float(np.mean([srcc(scores, mos) for scores in filled(sampled)]))
        figures["plcc_sampled"] = float(np.mean([plcc(scores, mos) for scores in filled(sampled)]))
        figures["parse_rate"] = float((~np.isnan(sampled)).mean())
        figures["spread"] = _mean_spread(sampled.clip(score_min, score_max))
    if greedy is not None:
        figures["srcc_greedy"], figures["plcc_greedy"] = srcc(filled(greedy), mos), plcc(filled(greedy), mos)
    return figures


def _mean_spread(sampled: np.ndarray) -> float:
    enough = (~np.isnan(sampled)).sum(axis=0) >= 2
    return float(np.nanstd(sampled[:, enough], axis=0).mean()) if enough.any() else float("nan")
