"""
The weight of each token in TRL's loss, so that the perception terms are averaged as the policy's own loss is.

Checked against the normalisers at the end of `GRPOTrainer._compute_loss` in trl 1.16.
"""

import torch

SEQUENCE_MEAN = ("grpo", "sapo")
WINDOW_MEAN = ("dapo", "cispo", "vespo")
LOSS_TYPES = ("grpo", "sapo", "bnpo", "dr_grpo", "dapo", "cispo", "vespo", "luspo")


def _window_normalizer(
    num_items_in_batch: torch.Tensor | float | None,
    num_processes: int,
    accumulation_steps: int,
    steps_per_generation: int | None,
    training: bool,
) -> torch.Tensor | float:
    """Tokens that one rank's share of an optimizer step stands for (a generation batch's tokens feed several)."""
    if num_items_in_batch is None:
        raise ValueError(f"`num_items_in_batch` is needed for the loss types {', '.join(WINDOW_MEAN)}.")
    items = torch.as_tensor(num_items_in_batch).clamp(min=1) / num_processes
    if not training:  # in evaluation the batch is neither split nor accumulated
        return items
    if steps_per_generation is None:
        raise ValueError(f"`steps_per_generation` is needed to train with the loss types {', '.join(WINDOW_MEAN)}.")
    return items * accumulation_steps / steps_per_generation


def token_weights(
    mask: torch.Tensor,
    loss_type: str,
    *,
    num_items_in_batch: torch.Tensor | float | None = None,
    num_processes: int = 1,
    accumulation_steps: int = 1,
    steps_per_generation: int | None = None,
    max_completion_length: int | None = None,
    training: bool = True,
) -> torch.Tensor:
    """
    Weight that TRL's normaliser of `loss_type` gives each token: `(per_token_loss * token_weights(...)).sum()` is the
    loss that `GRPOTrainer` computes from the same per-token losses, gradient accumulation included.

    Args:
        mask (`torch.Tensor` of shape `(B, T)`, bool, int or float):
            1 at the tokens that count (completion mask times tool mask), 0 elsewhere.
        loss_type (`str`):
            TRL's loss type. `"grpo"`, `"sapo"`: mean over each row's tokens, then over the rows. `"bnpo"`: mean over
            the tokens of the micro-batch. `"dr_grpo"`: sum over B·`max_completion_length`. `"dapo"`, `"cispo"`,
            `"vespo"`: sum over the rank's share of the tokens of one accumulation window. `"luspo"`: sum over each
            row's tokens, mean over the rows.
        num_items_in_batch (`torch.Tensor` or `float`, *optional*):
            Tokens that count in the whole generation batch, over all ranks. Needed by dapo, cispo and vespo.
        num_processes (`int`, *optional*, defaults to `1`):
            Ranks, over which the gradient is averaged. Read by dapo, cispo and vespo.
        accumulation_steps (`int`, *optional*, defaults to `1`):
            Micro-batches of the current accumulation window. Ignored in evaluation.
        steps_per_generation (`int`, *optional*):
            Micro-batches that a generation batch is split into. Needed by dapo, cispo and vespo in training.
        max_completion_length (`int`, *optional*):
            Needed by dr_grpo.
        training (`bool`, *optional*, defaults to `True`):
            Whether the model is in training mode.

    Returns:
        `torch.Tensor` of shape `(B, T)`: Weights of at least 0, float32 (or the dtype of a floating mask), exactly 0
        where the mask is 0. A row without tokens has only zeros.

    Raises:
        `ValueError`: Unknown loss type, or an argument missing that it needs.
    """
    if loss_type not in LOSS_TYPES:
        raise ValueError(f"Unknown loss type {loss_type!r}: the known ones are {', '.join(LOSS_TYPES)}.")
    mask = mask if mask.is_floating_point() else mask.float()
    if loss_type in WINDOW_MEAN:
        window = _window_normalizer(
            num_items_in_batch, num_processes, accumulation_steps, steps_per_generation, training
        )
        return mask / window
    rows = mask.size(0)
    normalizer: torch.Tensor | int
    if loss_type in SEQUENCE_MEAN:
        normalizer = mask.sum(dim=1, keepdim=True).clamp(min=1) * rows
    elif loss_type == "bnpo":
        normalizer = mask.sum().clamp(min=1)
    elif loss_type == "luspo":
        normalizer = rows
    else:
        if max_completion_length is None:
            raise ValueError("`max_completion_length` is needed for the loss type dr_grpo.")
        normalizer = rows * max_completion_length
    return mask / (normalizer * (accumulation_steps if training else 1))
