"""
Answers of a vision-language model to a batch of images: the prompt with its image runs once, whatever the number of
its rollouts, and what comes out does not depend on the batch.

`generate(num_return_sequences=K)` repeats the inputs before it encodes them, so that the vision tower and the prompt
run K times. Here one forward fills the cache, `cache.batch_repeat_interleave(K)` repeats what it holds, and K rows
decode. Everything is the model's public forward with explicit positions; the model's own generation settings (Qwen
ships a repetition penalty) do not act.

The same row gives slightly different logits in batches of different shapes, so that now and then a token, greedy
or drawn, would change. Each row therefore reports its *margin*: how far the logits would have to move before any of
its tokens changed. The caller decodes rows with a small margin again, alone.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

BROKEN = -1.0
"""Margin of a row whose logits were not finite."""


@dataclass
class Decoded:
    """
    Answers as tokens.

    Args:
        tokens (`list[list[int]]` of length R):
            Tokens of each row, without the end token.
        margins (`np.ndarray` of shape `(R,)`):
            Change of a logit, either way, that no token of the row could have been changed by, at least 0; `BROKEN`
            where the logits were not finite (NaN or infinite) and the tokens mean nothing.
    """

    tokens: list[list[int]]
    margins: np.ndarray


@torch.no_grad()  # not inference mode: what a model caches would be of no use to a training that goes on
def decode(
    model: PreTrainedModel,
    inputs: Mapping[str, torch.Tensor],
    *,
    max_new_tokens: int,
    end_tokens: set[int],
    rollouts: int = 1,
    seeds: np.ndarray | None = None,
) -> Decoded:
    """
    Lets the model answer B prompts, each `rollouts` times.

    Args:
        model (`PreTrainedModel`):
            Model in evaluation mode, on its device.
        inputs (`Mapping[str, torch.Tensor]`):
            What its processor returns for B conversations, padded on the left, on the model's device.
        max_new_tokens (`int`):
            Longest answer, in tokens.
        end_tokens (`set[int]`):
            Tokens that end an answer.
        rollouts (`int`, *optional*, defaults to `1`):
            Answers K to each prompt. R = B·K rows come out, those of a prompt one after another.
        seeds (`np.ndarray` of shape `(R,)`, *optional*):
            int64. Each row is sampled at temperature 1 from the whole vocabulary, by its seed and its logits alone. By
            default the likeliest token is taken.

    Returns:
        [`Decoded`]
    """
    mask = inputs["attention_mask"]
    padded = not mask.all()
    positions = _Positions(model, inputs, rollouts)
    options: dict[str, int] = {"use_cache": True}
    if "logits_to_keep" in inspect.signature(_forward(model)).parameters:
        options["logits_to_keep"] = 1
    outputs = model(**{**inputs, **positions.of_prompt(), **options})
    cache = outputs.past_key_values
    logits = outputs.logits[:, -1].float().repeat_interleave(rollouts, dim=0)
    if rollouts > 1:
        cache.batch_repeat_interleave(rollouts)
        mask = mask.repeat_interleave(rollouts, dim=0)
    rows = _Rows(len(mask), max_new_tokens, mask.device)
    ends = torch.tensor(sorted(end_tokens), device=mask.device)
    drawn = None if seeds is None else torch.from_numpy(seeds).to(mask.device)
    for step in range(max_new_tokens):
        chosen, margins = _likeliest(logits) if drawn is None else _drawn(logits, drawn[rows.active], step)
        rows.add(step, chosen, margins, torch.isin(chosen, ends))
        if step + 1 == max_new_tokens or not rows.open.any():
            break
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        if 2 * int(rows.open.sum()) <= len(rows.open):  # finished rows cost as much as the others
            kept = rows.open.nonzero().squeeze(1)
            cache.batch_select_indices(kept)
            mask, chosen = mask[kept], chosen[kept]
            rows.keep(kept)
        outputs = model(
            input_ids=chosen[:, None],
            attention_mask=mask if padded else None,
            past_key_values=cache,
            use_cache=True,
            **positions.of_token(rows.active, mask, step),
        )
        logits = outputs.logits[:, -1].float()
    return rows.result()


class _Rows:
    """What the rows have said so far, and which of them still speak."""

    def __init__(self, count: int, length: int, device: torch.device):
        self.tokens = torch.full((count, length), -1, dtype=torch.long, device=device)
        self.margins = torch.full((count,), torch.inf, dtype=torch.float64, device=device)
        self.active = torch.arange(count, device=device)  # rows in the batch, by their number
        self.open = torch.ones(count, dtype=torch.bool, device=device)  # of these, the ones that have not ended

    def add(self, step: int, chosen: torch.Tensor, margins: torch.Tensor, ended: torch.Tensor) -> None:
        speaking = self.active[self.open]
        self.margins[speaking] = torch.minimum(self.margins[speaking], margins[self.open])
        self.open = self.open & ~ended
        self.tokens[self.active[self.open], step] = chosen[self.open]

    def keep(self, kept: torch.Tensor) -> None:
        self.active, self.open = self.active[kept], self.open[kept]

    def result(self) -> Decoded:
        tokens = [[token for token in row if token >= 0] for row in self.tokens.tolist()]
        return Decoded(tokens, self.margins.cpu().numpy())


class _Positions:
    """
    Rotary positions without the padding on the left. Models with positions in three dimensions (`get_rope_index`: the
    Qwen-VL family) say how far the text behind the image lags; of all others a position is the count of tokens before.
    """

    def __init__(self, model: PreTrainedModel, inputs: Mapping[str, torch.Tensor], rollouts: int):
        mask = inputs["attention_mask"]
        core = next((module for module in model.modules() if hasattr(module, "get_rope_index")), None)
        self.takes_positions = "position_ids" in inspect.signature(_forward(model)).parameters
        self.three = core is not None
        if core is None:
            self.prompt = (mask.cumsum(dim=1) - 1).clamp(min=0)
            self.lag = mask.new_zeros(len(mask) * rollouts, 1)
        else:
            wanted = inspect.signature(core.get_rope_index).parameters
            known = {name: value for name, value in inputs.items() if name in wanted}
            self.prompt, lag = core.get_rope_index(**known)
            self.lag = lag.view(len(mask), 1).repeat_interleave(rollouts, dim=0)

    def of_prompt(self) -> dict[str, torch.Tensor]:
        return {"position_ids": self.prompt} if self.takes_positions else {}

    def of_token(self, active: torch.Tensor, mask: torch.Tensor, step: int) -> dict[str, torch.Tensor]:
        if not self.takes_positions:
            return {}
        position = mask.sum(dim=1, keepdim=True) - 1 + self.lag[active]
        return {"position_ids": position.expand(3, -1, -1) if self.three else position}


def _forward(model: PreTrainedModel):
    # a PEFT model's own forward takes anything and hands it on
    return (model.get_base_model() if hasattr(model, "get_base_model") else model).forward


def _likeliest(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    best = logits.topk(2, dim=-1)
    # both logits may move, one up and one down
    margins = (best.values[:, 0] - best.values[:, 1]).double() / 2
    return best.indices[:, 0], _unless_broken(margins, best.values[:, 0])


def _drawn(logits: torch.Tensor, seeds: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    # The likeliest token after Gumbel noise is a sample of the softmax. Unlike a number that falls on the cumulated
    # probabilities, of which a large vocabulary has thousands close together, it is seldom decided by little.
    uniforms = _uniforms(seeds, step, logits.shape[1])
    return _likeliest(logits.double() - (-uniforms.log()).log())


def _uniforms(seeds: torch.Tensor, step: int, count: int) -> torch.Tensor:
    """
    Draws numbers in (0, 1) that depend on the seed of the row, the step and the place alone, whatever the batch and
    the device: splitmix64 (Steele, Lea and Flood 2014), one stream for each row and step.

    Args:
        seeds (`torch.Tensor` of shape `(R,)`):
            int64.
        step (`int`):
            Number of the token.
        count (`int`):
            Numbers V for each row.

    Returns:
        `torch.Tensor` of shape `(R, V)`: float64.
    """
    streams = _mixed(seeds + _wrapped(step * _GOLDEN))
    places = torch.arange(1, count + 1, device=seeds.device) * _GOLDEN
    mantissas = _shifted(_mixed(streams[:, None] + places), 11)
    return (mantissas.double() + 0.5) * 2.0**-53


def _mixed(values: torch.Tensor) -> torch.Tensor:
    values = (values ^ _shifted(values, 30)) * _wrapped(0xBF58476D1CE4E5B9)
    values = (values ^ _shifted(values, 27)) * _wrapped(0x94D049BB133111EB)
    return values ^ _shifted(values, 31)


def _shifted(values: torch.Tensor, count: int) -> torch.Tensor:
    return (values >> count) & ((1 << (64 - count)) - 1)  # int64 shifts its sign in


def _wrapped(value: int) -> int:
    return (value + 2**63) % 2**64 - 2**63


_GOLDEN = _wrapped(0x9E3779B97F4A7C15)


def _unless_broken(margins: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return margins.where(torch.isfinite(values), BROKEN)
