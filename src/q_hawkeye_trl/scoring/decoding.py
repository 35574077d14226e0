"""
Answers of a vision-language model to a batch of images: the prompt with its image runs once, whatever the number of
its rollouts, and what comes out does not depend on the batch.

`generate(num_return_sequences=K)` repeats the inputs before it encodes them, so that the vision tower and the prompt
run K times. Here one forward fills the cache, `cache.batch_repeat_interleave(K)` repeats what it holds, and K rows
decode. Everything is the model's public forward with explicit positions; the model's own generation settings (Qwen
ships a repetition penalty) do not act.

The same row gives slightly different logits in batches of different shapes, so that now and then a greedy token, or
the token that a random number falls on, would change. Each row therefore reports its *margin*: how far the logits
would have to move before any of its tokens changed. The caller decodes rows with a small margin again, alone.
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


@torch.inference_mode()
def decode(
    model: PreTrainedModel,
    inputs: Mapping[str, torch.Tensor],
    *,
    max_new_tokens: int,
    end_tokens: set[int],
    rollouts: int = 1,
    uniforms: np.ndarray | None = None,
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
        uniforms (`np.ndarray` of shape `(R, max_new_tokens)`, *optional*):
            Numbers in [0, 1) that decide each token: the one at which the cumulated probability passes the number,
            which samples at temperature 1 from the whole vocabulary. By default the likeliest token is taken.

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
    draws = None if uniforms is None else torch.from_numpy(uniforms).to(mask.device)
    for step in range(max_new_tokens):
        chosen, margins = _likeliest(logits) if draws is None else _drawn(logits, draws[rows.active, step])
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


def _drawn(logits: torch.Tensor, uniforms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    probabilities = logits.double().softmax(dim=-1)
    cumulated = probabilities.cumsum(dim=-1)
    cumulated = cumulated / cumulated[:, -1:]
    chosen = torch.searchsorted(cumulated, uniforms[:, None], right=True).clamp(max=logits.shape[1] - 1)
    upper = cumulated.gather(1, chosen)
    lower = torch.where(chosen > 0, cumulated.gather(1, (chosen - 1).clamp(min=0)), 0.0)
    edges = torch.cat([lower, upper], dim=1)
    # logits that move by at most d move a cumulated probability F by at most 2d·F(1 - F), to first order
    distances = (edges - uniforms[:, None]).abs() / (2 * edges * (1 - edges))
    distances = distances.where((edges > 0) & (edges < 1), torch.inf)
    return chosen.squeeze(1), _unless_broken(distances.min(dim=1).values, probabilities[:, 0])


def _unless_broken(margins: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return margins.where(torch.isfinite(values), BROKEN)
