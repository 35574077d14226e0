"""How well a policy scores held-out images: sampled as in training, and greedy."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedModel, ProcessorMixin

from ..data.messages import message_images, with_images
from ..text import parse_score
from .metrics import plcc, srcc

PASSES = 4
"""Independent passes of one sample an image."""


def evaluate_held_out(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    rows: Sequence[dict[str, Any]],
    *,
    passes: int = PASSES,
    seed: int = 0,
    batch_size: int = 64,
    max_new_tokens: int = 256,
    score_min: float = 1.0,
    score_max: float = 5.0,
    score_fn: Callable[[str], float | None] = parse_score,
    progress: str | None = "evaluating",
) -> dict[str, float]:
    """
    Measures a policy on held-out images.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Policy; its training mode and the global random numbers are left as they were.
        processor ([`~transformers.ProcessorMixin`]):
            Its processor.
        rows (`Sequence[dict]`, for example a `Dataset`):
            N rows with `prompt`, `image` or `images`, and `mos`.
        passes (`int`, *optional*, defaults to `4`):
            Independent passes with one sample an image, at temperature 1.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the samples.
        batch_size (`int`, *optional*, defaults to `64`):
            Images a batch.
        max_new_tokens (`int`, *optional*, defaults to `256`):
            Longest answer, in tokens.
        score_min (`float`), score_max (`float`):
            Scale, whose middle stands in for an unparsed answer.
        score_fn (`Callable[[str], float | None]`, *optional*, defaults to [`parse_score`]):
            Reads the score of an answer.
        progress (`str`, *optional*, defaults to `"evaluating"`):
            Name of the progress bar; `None` for none.

    Returns:
        `dict[str, float]`: As [`held_out_figures`].
    """
    sampled, greedy = predict_scores(
        model,
        processor,
        rows,
        passes=passes,
        seed=seed,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        score_fn=score_fn,
        progress=progress,
    )
    mos = [row["mos"] for row in rows]
    return held_out_figures(sampled, greedy, mos, score_min=score_min, score_max=score_max)


def predict_scores(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    rows: Sequence[dict[str, Any]],
    *,
    passes: int = PASSES,
    seed: int = 0,
    batch_size: int = 64,
    max_new_tokens: int = 256,
    score_fn: Callable[[str], float | None] = parse_score,
    progress: str | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """
    Lets a policy score images; arguments as in [`evaluate_held_out`].

    Returns:
        `tuple[np.ndarray, np.ndarray]`: Sampled scores (passes, N) and greedy ones (N,), NaN where none parsed.
    """
    sampled, greedy = np.full((passes, len(rows)), np.nan), np.full(len(rows), np.nan)
    with _inference(model):
        for start in tqdm(range(0, len(rows), batch_size), desc=progress, disable=progress is None, unit="batch"):
            part = slice(start, min(start + batch_size, len(rows)))
            inputs = encode_rows([rows[index] for index in range(part.start, part.stop)], processor).to(model.device)
            config = {"max_new_tokens": max_new_tokens, "pad_token_id": processor.tokenizer.pad_token_id}
            config["eos_token_id"] = model.generation_config.eos_token_id
            greedy[part] = _scores(model, processor, inputs, GenerationConfig(do_sample=False, **config), score_fn)
            drawing = GenerationConfig(do_sample=True, temperature=1.0, top_p=1.0, top_k=0, **config)
            for index in range(passes):
                torch.manual_seed(_batch_seed(seed, index, start))
                sampled[index, part] = _scores(model, processor, inputs, drawing, score_fn)
    return sampled, greedy


def held_out_figures(
    sampled: ArrayLike, greedy: ArrayLike, mos: ArrayLike, *, score_min: float = 1.0, score_max: float = 5.0
) -> dict[str, float]:
    """
    Turns predicted scores into figures. Unparsed answers count with the middle of the scale.

    Args:
        sampled (array-like of shape `(P, N)`):
            Scores of P independent passes, NaN where none parsed.
        greedy (array-like of shape `(N,)`):
            Greedy scores, NaN where none parsed.
        mos (array-like of shape `(N,)`):
            Mean opinion scores.
        score_min (`float`), score_max (`float`):
            Scale.

    Returns:
        `dict[str, float]`: `srcc_sampled`, `plcc_sampled`: mean over the passes of the correlation over all images;
        `srcc_greedy`, `plcc_greedy`; `parse_rate`: share of the sampled answers with a score; `spread`: mean over the
        images of the population standard deviation of their parsed sampled scores, images with fewer than two left out
        (NaN when there are no others).
    """
    sampled, greedy = np.asarray(sampled, dtype=float), np.asarray(greedy, dtype=float)
    middle = (score_min + score_max) / 2
    filled = np.nan_to_num(sampled, nan=middle)
    measured = sampled[:, (~np.isnan(sampled)).sum(axis=0) >= 2]
    return {
        "srcc_sampled": float(np.mean([srcc(scores, mos) for scores in filled])),
        "plcc_sampled": float(np.mean([plcc(scores, mos) for scores in filled])),
        "srcc_greedy": srcc(np.nan_to_num(greedy, nan=middle), mos),
        "plcc_greedy": plcc(np.nan_to_num(greedy, nan=middle), mos),
        "parse_rate": float((~np.isnan(sampled)).mean()),
        "spread": float(np.nanstd(measured, axis=0).mean()) if measured.size else float("nan"),
    }


def encode_rows(rows: Sequence[dict[str, Any]], processor: ProcessorMixin) -> Any:
    """
    Encodes prompts with their images as TRL does in training, padded on the left.

    Args:
        rows (`Sequence[dict]`):
            Rows with `prompt` and `image` or `images`.
        processor ([`~transformers.ProcessorMixin`]):
            Processor of the policy.

    Returns:
        `BatchFeature`: What the model's `generate` takes.
    """
    messages = [with_images(row) for row in rows]
    texts = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    images = [message_images(conversation) for conversation in messages]
    return processor(images=images, text=texts, padding=True, padding_side="left", return_tensors="pt")


def _scores(model, processor, inputs, config: GenerationConfig, score_fn) -> list[float]:
    ids = model.generate(**inputs, generation_config=config)[:, inputs["input_ids"].size(1) :]
    texts = processor.tokenizer.batch_decode(ids, skip_special_tokens=True)
    return [np.nan if (score := score_fn(text)) is None else score for text in texts]


def _batch_seed(seed: int, index: int, start: int) -> int:
    return int(np.random.SeedSequence([seed, index, start]).generate_state(1, np.uint64)[0] >> 1)


@contextmanager
def _inference(model: PreTrainedModel) -> Iterator[None]:
    """No gradient, evaluation mode, and global random numbers as if nothing had been drawn."""
    training = model.training
    devices = [model.device] if model.device.type == "cuda" else []
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            yield
    finally:
        model.train(training)
