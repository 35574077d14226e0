"""
Supervised training of the demo policy: its vision tower learns quality, then the whole policy learns to answer.

Reinforcement learning sharpens abilities that a policy already has, so it needs a start that sees and that answers in
the right form.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from tqdm import tqdm
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

from ..text import quality_messages
from .answers import answer, rater_score
from .contents import draw_content
from .synthetic import SEEN_KINDS, content_seed, distort, true_quality

_VIEWS = 3  # distorted views of one content
_IGNORED = -100


class Pool:
    """Distorted pictures to learn from, in memory: three views of each content, of their own kinds and severities."""

    def __init__(self, contents: int, seed: int, progress: bool):
        rng = np.random.default_rng([seed, 3])
        pictures, kinds, severities = [], [], []
        for index in tqdm(
            range(contents), desc="Drawing pictures to learn from", unit="content", disable=not progress
        ):
            content = draw_content(content_seed("pretraining", seed, index))
            for _ in range(_VIEWS):
                kinds.append(int(rng.integers(len(SEEN_KINDS))))
                severities.append(float(rng.random()))
                pictures.append(distort(content, SEEN_KINDS[kinds[-1]], severities[-1], rng))
        self.pictures = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)  # (M, 3, H, W), a view
        self.kinds = torch.tensor(kinds)
        self.quality = torch.tensor([true_quality(severity) for severity in severities])

    def batches(self, steps: int, size: int, rng: np.random.Generator) -> Iterator[torch.Tensor]:
        """Yields `steps` index batches of shape `(size,)`, epoch after epoch without repetition within one."""
        order = np.empty(0, dtype=np.int64)
        for _ in range(steps):
            if len(order) < size:
                order = np.concatenate([order, rng.permutation(len(self.kinds))])
            yield torch.from_numpy(order[:size].copy())
            order = order[size:]


def pretrain_tower(
    model: Qwen2_5_VLForConditionalGeneration,
    processor: Qwen2_5_VLProcessor,
    pool: Pool,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    rng: np.random.Generator,
    progress: bool = True,
) -> float:
    """Train the vision tower, in place, to predict quality and kind of distortion through a linear head that is
    discarded; return the mean squared error over the last tenth of the steps."""
    tower = model.model.visual
    head = nn.Linear(model.config.text_config.hidden_size, 1 + len(SEEN_KINDS))
    optimizer = torch.optim.AdamW([*tower.parameters(), *head.parameters()], lr=learning_rate, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    errors = []
    bar = tqdm(
        pool.batches(steps, batch_size, rng), total=steps, desc="Teaching the tower to see", disable=not progress
    )
    for indices in bar:
        vision = processor.image_processor(images=pool.pictures[indices], return_tensors="pt")
        tokens = tower(vision["pixel_values"], grid_thw=vision["image_grid_thw"]).pooler_output
        output = head(tokens.view(batch_size, -1, tokens.shape[-1]).mean(dim=1))
        # centred and scaled, so that the head starts near the mean
        error = (3 + output[:, 0] - pool.quality[indices]).square().mean()
        loss = error + 0.3 * F.cross_entropy(output[:, 1:], pool.kinds[indices])
        _step(optimizer, scheduler, loss, tower)
        errors.append(error.item())
        bar.set_postfix(mse=f"{np.mean(errors[-50:]):.3f}", refresh=False)
    return float(np.mean(errors[-max(1, steps // 10) :]))


def teach_answers(
    model: Qwen2_5_VLForConditionalGeneration,
    processor: Qwen2_5_VLProcessor,
    pool: Pool,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    tower_learning_rate: float,
    rng: np.random.Generator,
    progress: bool = True,
) -> float:
    """Train the policy, in place, to answer the project's prompt as single raters would; return the mean cross-entropy
    of an answer's token over the last tenth of the steps, in nats."""
    tower = list(model.model.visual.parameters())
    known = {id(parameter) for parameter in tower}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in known]
    groups = [{"params": tower, "lr": tower_learning_rate}, {"params": rest, "lr": learning_rate}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    prompt = _prompt(processor)
    losses = []
    bar = tqdm(pool.batches(steps, batch_size, rng), total=steps, desc="Teaching answers", disable=not progress)
    for indices in bar:
        vision = processor.image_processor(images=pool.pictures[indices], return_tensors="pt")
        loss = model(**_answered(prompt, processor, pool, indices, rng), **vision).loss
        _step(optimizer, scheduler, loss, model)
        losses.append(loss.item())
        bar.set_postfix(loss=f"{np.mean(losses[-50:]):.3f}", refresh=False)
    return float(np.mean(losses[-max(1, steps // 10) :]))


def _prompt(processor: Qwen2_5_VLProcessor) -> dict[str, torch.Tensor]:
    """Token ids and token types of the prompt, each (1, P); every picture has the same size, so one serves all."""
    (message,) = quality_messages()
    picture = Image.fromarray(draw_content(content_seed("pretraining", 0, 0)))
    content = [{"type": "image", "image": picture}, {"type": "text", "text": message["content"]}]
    encoded = processor.apply_chat_template(
        [[{**message, "content": content}]],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    return {key: encoded[key] for key in ("input_ids", "mm_token_type_ids")}


def _answered(
    prompt: dict[str, torch.Tensor],
    processor: Qwen2_5_VLProcessor,
    pool: Pool,
    indices: torch.Tensor,
    rng: np.random.Generator,
) -> dict[str, torch.Tensor]:
    """Model inputs of shape (B, P + A): the prompt followed by a fresh rater's answer; only the answer has labels."""
    texts = [
        answer(SEEN_KINDS[kind], rater_score(quality, rng)) + processor.tokenizer.eos_token
        for kind, quality in zip(pool.kinds[indices].tolist(), pool.quality[indices].tolist(), strict=True)
    ]
    answers = processor.tokenizer(texts, return_tensors="pt", padding=True, padding_side="right")
    ids, mask = answers["input_ids"], answers["attention_mask"]
    prompts = prompt["input_ids"].expand(len(indices), -1)
    return {
        "input_ids": torch.cat([prompts, ids], dim=1),
        "attention_mask": torch.cat([torch.ones_like(prompts), mask], dim=1),
        "mm_token_type_ids": torch.cat(
            [prompt["mm_token_type_ids"].expand(len(indices), -1), torch.zeros_like(ids)], dim=1
        ),
        "labels": torch.cat([torch.full_like(prompts, _IGNORED), ids.masked_fill(mask == 0, _IGNORED)], dim=1),
    }


def _rate(step: int, steps: int) -> float:
    """Share of the learning rate: linear warm-up over a twentieth of the steps, then a cosine down to 0."""
    warm_up = max(1, steps // 20)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def _step(optimizer: torch.optim.Optimizer, scheduler, loss: torch.Tensor, module: nn.Module) -> None:
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    optimizer.step()
    scheduler.step()
