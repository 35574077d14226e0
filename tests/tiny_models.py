"""Tiny random vision-language models built in code, and the data and rollouts to train them on: no network."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from PIL import Image, ImageFilter
from transformers import AutoModelForImageTextToText, PreTrainedModel, ProcessorMixin

from q_hawkeye_trl.text import quality_messages
from tiny_qwen import qwen_config, qwen_processor
from tiny_tiled import tiled_config, tiled_processor

ANSWERS = [
    f"<think>blur</think><answer>{score:.2f}</answer>" for score in (1.5, 4.25, 3.0, 2.75, 4.5, 2.0, 3.25, 1.25)
]
"""Completions of the asked form for scripted rollouts; the two groups of four have different spreads."""

_BUILDERS: dict[str, tuple[Callable, Callable]] = {
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl"), (qwen_processor, qwen_config)),
    **dict.fromkeys(("smolvlm", "internvl", "gemma3", "llava"), (tiled_processor, tiled_config)),
}

FAMILIES = tuple(_BUILDERS)
"""The families that can be built."""


def tiny_policy(
    family: str = "qwen2_5_vl", *, seed: int = 0, hidden_size: int = 32
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """
    Builds a random policy. The weights are so large that its answers depend on the image, unlike those of a fresh
    model at the usual scale, whose distributions are all but uniform.

    Args:
        family (`str`, *optional*, defaults to `"qwen2_5_vl"`):
            One of `FAMILIES`.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the weights; the global random state is left as it is.
        hidden_size (`int`, *optional*, defaults to `32`):
            Width, a multiple of 16.

    Returns:
        `tuple[PreTrainedModel, ProcessorMixin]`: Model (float32, two layers) and processor; all models of a family
        share the processor.
    """
    build_processor, build_config = _BUILDERS[family]
    processor = build_processor(family)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(build_config(family, hidden_size), dtype=torch.float32)
        _spread(model)
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    return model, processor


def _spread(model: PreTrainedModel) -> None:
    """Draws every matrix with 1 / sqrt(fan in), which keeps the variance of what passes through it."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)


def save_policy(family: str, path: str | Path, *, seed: int = 0, hidden_size: int = 32) -> str:
    """
    Saves model and processor so that `from_pretrained` loads both without network; arguments as in [`tiny_policy`].

    Args:
        path (`str` or `Path`):
            Folder, made if it isn't there.

    Returns:
        `str`: The folder.
    """
    for part in tiny_policy(family, seed=seed, hidden_size=hidden_size):
        part.save_pretrained(path)
    return str(path)


def tiny_image(size: tuple[int, int] = (84, 56), *, seed: int = 0) -> Image.Image:
    """
    Draws coarse coloured blocks under fine noise: a picture that blur and noise both change.

    Args:
        size (`tuple[int, int]`, *optional*, defaults to `(84, 56)`):
            Width and height in pixels.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the picture.

    Returns:
        `PIL.Image.Image`: RGB.
    """
    width, height = size
    rng = np.random.default_rng(seed)
    blocks = Image.fromarray(rng.integers(40, 216, (4, 6, 3), dtype=np.uint8)).resize(size, Image.Resampling.NEAREST)
    noise = rng.integers(-40, 40, (height, width, 3))
    return Image.fromarray((np.asarray(blocks).astype(int) + noise).astype(np.uint8))


def tiny_dataset(
    rows: int = 4,
    *,
    seed: int = 0,
    size: tuple[int, int] = (84, 56),
    degraded: bool = False,
    images_per_row: int = 1,
) -> Dataset:
    """
    Builds rated pictures.

    Args:
        rows (`int`, *optional*, defaults to `4`):
            Number of rows.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the pictures and scores.
        size (`tuple[int, int]`, *optional*, defaults to `(84, 56)`):
            Width and height in pixels.
        degraded (`bool`, *optional*, defaults to `False`):
            Whether a blurred twin of each picture comes along.
        images_per_row (`int`, *optional*, defaults to `1`):
            Pictures per row; several are in the list columns `images` and `degraded_images`.

    Returns:
        `Dataset`: Columns `prompt`, `image` (or `images`), `mos`, `image_id` and, if asked for, `degraded_image`.
    """
    mos = np.random.default_rng(seed).uniform(1, 5, rows).round(2).tolist()
    first = 1000 * seed  # pictures of different seeds differ
    pictures = [
        [tiny_image(size, seed=first + row * images_per_row + index) for index in range(images_per_row)]
        for row in range(rows)
    ]
    twins = [[picture.filter(ImageFilter.GaussianBlur(3)) for picture in row] for row in pictures]
    single = images_per_row == 1
    columns = {
        "prompt": [quality_messages() for _ in range(rows)],
        "image" if single else "images": [row[0] for row in pictures] if single else pictures,
        "mos": mos,
        "image_id": [f"picture-{seed}-{row}" for row in range(rows)],
    }
    if degraded:
        columns["degraded_image" if single else "degraded_images"] = [t[0] for t in twins] if single else twins
    return Dataset.from_dict(columns)


def scripted_rollouts(
    processor: ProcessorMixin, texts: Sequence[str] | Callable[[int, int], str] = tuple(ANSWERS)
) -> Callable[[list, Any], dict[str, list]]:
    """
    Makes a `rollout_func` that returns fixed completions. It keeps no state: one process and several processes, and a
    resumed run, see the same completions.

    Args:
        processor ([`~transformers.ProcessorMixin`]):
            Processor of the policy.
        texts (`Sequence[str]` or `Callable[[int, int], str]`, *optional*, defaults to `ANSWERS`):
            Completions, dealt out to the rows of the generation batch (all processes) in order and from the start
            again; or a function of the index of the prompt in that batch and of the rollout in its group.

    Returns:
        `Callable`: A `rollout_func` of the trainer. Every completion ends with the end token.
    """
    tokenizer = processor.tokenizer

    def text_of(row: int, group_size: int) -> str:
        return texts(*divmod(row, group_size)) if callable(texts) else texts[row % len(texts)]

    def rollout(prompts: list, trainer: Any) -> dict[str, list]:
        group_size = trainer.num_generations if trainer.model.training else trainer.num_generations_eval
        first = trainer.accelerator.process_index * len(prompts)
        completions = [
            [*tokenizer.encode(text_of(first + row, group_size), add_special_tokens=False), tokenizer.eos_token_id]
            for row in range(len(prompts))
        ]
        return {
            "prompt_ids": trainer._tokenize_prompts(prompts)[0],
            "completion_ids": completions,
            "logprobs": [[0.0] * len(ids) for ids in completions],
        }

    return rollout
