"""Held-out evaluation: the policy scores images that it was not trained on, by sampling and greedily."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from PIL import Image
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedModel, ProcessorMixin
from trl.data_utils import prepare_multimodal_messages

from ..data.messages import generation_inputs
from ..text import parse_score, quality_messages
from .metrics import plcc, srcc

ScoreFunction = Callable[[str], float | None]
Images = Image.Image | list[Image.Image]


def evaluate_held_out(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    images: Sequence[Images],
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
    Evaluates a policy on held-out images. The global random states and the model's mode are left as they were.

    Args:
        model (`PreTrainedModel`):
            Policy, on its device.
        processor (`ProcessorMixin`):
            Its processor.
        images (`Sequence[PIL.Image.Image]` or `Sequence[list[PIL.Image.Image]]`, of length N):
            Held-out images, or the several images of each prompt.
        mos (array-like of shape `(N,)`):
            Their mean opinion scores, on any scale.
        prompts (`Sequence[list[dict]]` of length N, *optional*):
            The conversation that asks for each score. By default the project's prompt.
        passes (`int`, *optional*, defaults to `4`):
            Independent passes at temperature 1, each with one answer an image.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the sampling. The draws also depend on `batch_size`.
        batch_size (`int`, *optional*, defaults to `128`):
            Images generated for at once.
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
        `dict[str, float]`: with the keys

        - `srcc_sampled`, `plcc_sampled`: mean over the passes of the correlation over all images (not the correlation
          of the mean over the passes, which is higher);
        - `srcc_greedy`, `plcc_greedy`: correlation of the greedy answers;
        - `parse_rate`: share of the sampled answers with a score, in [0, 1];
        - `spread`: mean over images of the population standard deviation of the sampled scores, in points of the
          scale, over images with at least two scores; `nan` if there is none.

        An answer without a score counts as the middle of the scale in every correlation: leaving it out would reward
        a policy for not answering. Scores out of the range are clamped to it, as the rewards do. A correlation is
        `nan` when all scores are equal.

    Raises:
        `ValueError`: No images, not one finite MOS for each, or fewer than one pass.
    """
    mos = _checked_mos(mos, len(images))
    options: dict[str, Any] = {
        "prompts": prompts,
        "batch_size": batch_size,
        "max_new_tokens": max_new_tokens,
        "score_fn": score_fn,
        "progress": progress,
    }
    sampled = sampled_scores(model, processor, images, passes=passes, seed=seed, **options)
    greedy = greedy_scores(model, processor, images, **options)
    return held_out_metrics(sampled, greedy, mos, score_min=score_min, score_max=score_max)


def held_out_metrics(
    sampled: np.ndarray, greedy: np.ndarray, mos: np.ndarray, *, score_min: float, score_max: float
) -> dict[str, float]:
    """
    Computes the figures of [`evaluate_held_out`] from the scores of each image.

    Args:
        sampled (`np.ndarray` of shape `(passes, N)`):
            Sampled scores, `nan` where an answer had none.
        greedy (`np.ndarray` of shape `(N,)`):
            Greedy scores, `nan` where an answer had none.
        mos (`np.ndarray` of shape `(N,)`):
            Mean opinion scores.
        score_min (`float`), score_max (`float`):
            Ends of the scale, to which scores are clamped; its middle stands for a missing score in the correlations.

    Returns:
        `dict[str, float]`: Keys as in [`evaluate_held_out`].
    """
    # clamped as rewards and uncertainty clamp them: one absurd answer would own a linear correlation
    sampled, greedy = sampled.clip(score_min, score_max), greedy.clip(score_min, score_max)
    middle = (score_min + score_max) / 2
    filled, filled_greedy = np.where(np.isnan(sampled), middle, sampled), np.where(np.isnan(greedy), middle, greedy)
    return {
        "srcc_sampled": float(np.mean([srcc(row, mos) for row in filled])),
        "plcc_sampled": float(np.mean([plcc(row, mos) for row in filled])),
        "srcc_greedy": srcc(filled_greedy, mos),
        "plcc_greedy": plcc(filled_greedy, mos),
        "parse_rate": float((~np.isnan(sampled)).mean()),
        "spread": _mean_spread(sampled),
    }


def sampled_scores(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    images: Sequence[Images],
    *,
    prompts: Sequence[list[dict]] | None = None,
    passes: int = 4,
    seed: int = 0,
    numbers: Sequence[int] | None = None,
    batch_size: int = 128,
    max_new_tokens: int = 24,
    score_fn: ScoreFunction = parse_score,
    progress: bool = True,
) -> np.ndarray:
    """
    Samples answers at temperature 1 from the whole vocabulary and reads their scores; further parameters as in
    [`evaluate_held_out`].

    Args:
        numbers (`Sequence[int]` of length N, *optional*):
            Numbers of the images in the whole set that these are a share of. The seed of a batch depends on that of
            its first image, so that shares of one set don't draw the same random numbers. By default 0 to N - 1.

    Returns:
        `np.ndarray` of shape `(passes, N)`: Scores, `nan` where an answer has none.
    """
    if passes < 1:
        raise ValueError(f"`passes` must be at least 1, got {passes}.")
    config = _generation_config(processor, max_new_tokens, do_sample=True, temperature=1.0, top_p=1.0, top_k=0)
    if numbers is None:
        numbers = range(len(images))
    return _generated_scores(
        model, processor, images, prompts, config, passes, seed, numbers, batch_size, score_fn, progress
    )


def greedy_scores(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    images: Sequence[Images],
    *,
    prompts: Sequence[list[dict]] | None = None,
    batch_size: int = 128,
    max_new_tokens: int = 24,
    score_fn: ScoreFunction = parse_score,
    progress: bool = True,
) -> np.ndarray:
    """
    Lets the policy give its likeliest answers, token by token, and reads their scores; parameters as in
    [`evaluate_held_out`].

    Returns:
        `np.ndarray` of shape `(N,)`: Scores, `nan` where an answer has none.
    """
    config = _generation_config(processor, max_new_tokens, do_sample=False)
    numbers = range(len(images))
    return _generated_scores(model, processor, images, prompts, config, 1, 0, numbers, batch_size, score_fn, progress)[
        0
    ]


def _generated_scores(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    images: Sequence[Images],
    prompts: Sequence[list[dict]] | None,
    config: GenerationConfig,
    passes: int,
    seed: int,
    numbers: Sequence[int],
    batch_size: int,
    score_fn: ScoreFunction,
    progress: bool,
) -> np.ndarray:
    prompts = [quality_messages()] * len(images) if prompts is None else prompts
    if len(prompts) != len(images):
        raise ValueError(f"Expected one prompt for each of {len(images)} images, got {len(prompts)}.")
    scores = np.full((passes, len(images)), np.nan)
    was_training = model.training
    model.eval()
    devices = [model.device] if model.device.type == "cuda" else []
    description = "Sampling" if config.do_sample else "Greedy answers"
    try:
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            starts = range(0, len(images), batch_size)
            # beneath the bar of a training it goes when it is done
            for start in tqdm(starts, desc=description, unit="batch", disable=not progress, leave=None):
                part = slice(start, start + batch_size)
                inputs = _prompt_inputs(processor, images[part], prompts[part]).to(model.device)
                for number in range(passes):
                    # every pass and batch has a seed of its own, so that a further pass changes no earlier one
                    torch.manual_seed((seed * 1_000_003 + number) * 1_000_003 + numbers[start])
                    texts = _answers(model, processor, inputs, config)
                    values = [score_fn(text) for text in texts]
                    row = [np.nan if value is None else value for value in values]
                    scores[number, start : start + batch_size] = row
    finally:
        model.train(was_training)
    return scores


def _prompt_inputs(processor: ProcessorMixin, images: Sequence[Images], prompts: Sequence[list[dict]]):
    # The images stand where TRL puts them in training.
    conversations = [
        prepare_multimodal_messages(prompt, images=shown if isinstance(shown, list) else [shown])
        for shown, prompt in zip(images, prompts, strict=True)
    ]
    return generation_inputs(processor, conversations)


def _answers(model: PreTrainedModel, processor: ProcessorMixin, inputs, config: GenerationConfig) -> list[str]:
    output = model.generate(**inputs, generation_config=config)
    completions = output[:, inputs["input_ids"].shape[1] :]
    return processor.tokenizer.batch_decode(completions, skip_special_tokens=True)


def _generation_config(processor: ProcessorMixin, max_new_tokens: int, **options) -> GenerationConfig:
    # What is left open here is filled from the model's own generation config: Qwen's repetition penalty must not be.
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        use_cache=True,
        num_beams=1,
        repetition_penalty=1.0,
        pad_token_id=processor.tokenizer.pad_token_id,
        eos_token_id=processor.tokenizer.eos_token_id,
        **options,
    )


def _checked_mos(mos: ArrayLike, count: int) -> np.ndarray:
    mos = np.asarray(mos, dtype=np.float64)
    if count == 0:
        raise ValueError("There are no images to evaluate.")
    if mos.shape != (count,) or not np.isfinite(mos).all():
        raise ValueError(f"Expected one finite MOS for each of {count} images, got shape {mos.shape}.")
    return mos


def _mean_spread(sampled: np.ndarray) -> float:
    enough = (~np.isnan(sampled)).sum(axis=0) >= 2
    return float(np.nanstd(sampled[:, enough], axis=0).mean()) if enough.any() else float("nan")
