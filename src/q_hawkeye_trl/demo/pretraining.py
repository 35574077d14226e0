"""How the demo policy learnt to see and to answer: quality regression of its vision tower, then supervised answers."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import nn
from tqdm import tqdm
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

from ..text import quality_messages
from .answers import answer, rater_score
from .synthetic import SEEN_KINDS, SyntheticSample, content_seed, draw_sample

IGNORED = -100  # label of a token that the loss leaves out


class PretrainingSet:
    """
    Procedural pictures with their truth, preprocessed once.

    Args:
        processor ([`~transformers.Qwen2_5_VLProcessor`]):
            Processor of the policy.
        size (`int`):
            Number of pictures.
        seed (`int`):
            Seed of the set, see [`~demo.synthetic.content_seed`].
    """

    def __init__(self, processor: Qwen2_5_VLProcessor, size: int, seed: int):
        seeds = [content_seed("pretraining", seed, index) for index in range(size)]
        self.samples: list[SyntheticSample] = [draw_sample(s) for s in tqdm(seeds, desc="drawing", unit="picture")]
        pictures = [Image.fromarray(sample.picture) for sample in self.samples]
        encoded = processor.image_processor(images=pictures, return_tensors="pt")
        self.grids = encoded["image_grid_thw"]
        self.pixels = encoded["pixel_values"].view(size, int(self.grids[0].prod()), -1)
        self.quality = torch.tensor([sample.quality for sample in self.samples])
        self.kinds = torch.tensor([SEEN_KINDS.index(sample.kind) for sample in self.samples])

    def images(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """Vision inputs of some pictures, as the model takes them."""
        return {"pixel_values": self.pixels[rows].flatten(0, 1), "image_grid_thw": self.grids[rows]}


class QualityHead(nn.Module):
    """
    Reads quality and kind off the vision tower's tokens; only needed while the tower learns to see.

    Args:
        hidden_size (`int`):
            Width of the tower's tokens.
        kinds (`int`):
            Number of kinds.
    """

    def __init__(self, hidden_size: int, kinds: int):
        super().__init__()
        self.hidden = nn.Linear(hidden_size, hidden_size)
        self.quality = nn.Linear(hidden_size, 1)
        self.kind = nn.Linear(hidden_size, kinds)

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Turns tokens (B, L, D) into qualities (B,) and logits of kinds (B, K)."""
        pooled = nn.functional.gelu(self.hidden(tokens)).mean(dim=1)
        return 3 + self.quality(pooled).squeeze(-1), self.kind(pooled)


def train_to_see(
    model: Qwen2_5_VLForConditionalGeneration,
    data: PretrainingSet,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
) -> None:
    """
    Trains the vision tower to tell the quality and the kind of distortion of a picture.

    Args:
        model ([`~transformers.Qwen2_5_VLForConditionalGeneration`]):
            Policy, trained in place.
        data ([`PretrainingSet`]):
            Pictures.
        steps (`int`), batch_size (`int`), learning_rate (`float`), seed (`int`):
            Optimizer steps, pictures a step, peak of the learning rate, seed of the order.
    """
    head = QualityHead(model.config.text_config.hidden_size, len(SEEN_KINDS))
    parameters = [*model.model.visual.parameters(), *head.parameters()]

    def loss_of(rows: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        tokens = model.model.get_image_features(**data.images(rows)).pooler_output
        quality, kind = head(torch.stack(list(tokens)))
        error = nn.functional.smooth_l1_loss(quality, data.quality[rows], beta=0.5)
        return error + 0.1 * nn.functional.cross_entropy(kind, data.kinds[rows])

    _optimise(parameters, loss_of, len(data.samples), steps, batch_size, learning_rate, seed, "learning to see")


def train_to_answer(
    model: Qwen2_5_VLForConditionalGeneration,
    processor: Qwen2_5_VLProcessor,
    data: PretrainingSet,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
) -> None:
    """
    Trains the whole policy on answers of single raters, each drawn anew whenever its picture comes up.

    Args:
        model ([`~transformers.Qwen2_5_VLForConditionalGeneration`]):
            Policy, trained in place.
        processor ([`~transformers.Qwen2_5_VLProcessor`]):
            Processor of the policy.
        data ([`PretrainingSet`]):
            Pictures.
        steps (`int`), batch_size (`int`), learning_rate (`float`), seed (`int`):
            Optimizer steps, pictures a step, peak of the learning rate, seed of the order and of the raters.
    """
    prompt = prompt_ids(processor, data.samples[0])

    def loss_of(rows: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        texts = [_rated(data.samples[row], rng) for row in rows.tolist()]
        inputs = supervised_inputs(processor, prompt, texts, model.config.image_token_id)
        return model(**inputs, **data.images(rows)).loss

    parameters = list(model.parameters())
    _optimise(parameters, loss_of, len(data.samples), steps, batch_size, learning_rate, seed, "learning to answer")


def prompt_ids(processor: Qwen2_5_VLProcessor, sample: SyntheticSample) -> list[int]:
    """
    Encodes the prompt with one picture, as in training by TRL and in evaluation.

    Args:
        processor ([`~transformers.Qwen2_5_VLProcessor`]):
            Processor of the policy.
        sample ([`~demo.synthetic.SyntheticSample`]):
            Picture whose size decides the number of image tokens.

    Returns:
        `list[int]`
    """
    question = quality_messages()[0]["content"]
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
    text = processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False)
    return processor(images=[Image.fromarray(sample.picture)], text=[text])["input_ids"][0]


def supervised_inputs(
    processor: Qwen2_5_VLProcessor, prompt: list[int], texts: Sequence[str], image_token: int
) -> dict[str, torch.Tensor]:
    """
    Builds text inputs with labels on the answers alone.

    Args:
        processor ([`~transformers.Qwen2_5_VLProcessor`]):
            Processor of the policy.
        prompt (`list[int]`):
            Token ids of the prompt, the same for all rows.
        texts (`Sequence[str]`):
            The B answers.
        image_token (`int`):
            Id of the image placeholder.

    Returns:
        `dict[str, torch.Tensor]`: `input_ids`, `attention_mask`, `mm_token_type_ids` and `labels`, each (B, T).
    """
    end = processor.tokenizer.eos_token_id
    answers = [[*processor.tokenizer.encode(text, add_special_tokens=False), end] for text in texts]
    longest = max(map(len, answers))
    rows = [prompt + a + [processor.tokenizer.pad_token_id] * (longest - len(a)) for a in answers]
    labels = [[IGNORED] * len(prompt) + a + [IGNORED] * (longest - len(a)) for a in answers]
    ids, labels = torch.tensor(rows), torch.tensor(labels)
    mask = torch.ones_like(ids)
    mask[:, len(prompt) :] = (labels[:, len(prompt) :] != IGNORED).long()
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "mm_token_type_ids": (ids == image_token).long(),
        "labels": labels,
    }


def _rated(sample: SyntheticSample, rng: np.random.Generator) -> str:
    return answer(sample.kind, rater_score(sample.quality, rng))


def _optimise(parameters, loss_of, count, steps, batch_size, learning_rate, seed, name) -> None:
    """AdamW with a one-cycle learning rate over random batches."""
    order = torch.Generator().manual_seed(seed)
    raters = np.random.default_rng([seed, 2])
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
    bar = tqdm(range(steps), desc=name, unit="step")
    for _ in bar:
        rows = torch.randint(count, (batch_size,), generator=order)
        loss = loss_of(rows, raters)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
