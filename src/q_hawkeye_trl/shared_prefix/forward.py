"""One packed forward for the rollouts of a group, instead of TRL's row for each."""

from types import SimpleNamespace
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel, is_peft_model
from transformers import PreTrainedModel

from ..trl_compat import TOKEN_TYPE_KEYS
from .layout import PackedRow, pack


def unwrap_policy(model: Any) -> PreTrainedModel:
    """Remove the wrappers of parallel training and the adapter from a model."""
    model = extract_model_from_parallel(model)
    return model.get_base_model() if is_peft_model(model) else model


class PackedForward:
    """
    Replaces the model in TRL's forward of log-probabilities, so that TRL still slices images and sets autocast.

    TRL calls it with the first row of each group; it runs all rollouts of these groups in one packed row. The model
    was prepared by [`~shared_prefix.attention.install_attention`]. `input_ids` and `attention_mask` are `(B, P + C)`.
    """

    def __init__(self, model, input_ids, attention_mask, completion_length: int, group_size: int):
        self.model = model
        self.input_ids = input_ids
        self.attention_mask = attention_mask
        self.completion_length = completion_length
        self.group_size = group_size
        self._done = 0  # rows of earlier calls

    def __call__(self, *, input_ids, attention_mask, labels, fused_lm_head, **inputs: Any) -> SimpleNamespace:
        """
        Run the next N groups; return `log_probs` and `entropy` (or `None`), each `(N·G, C)`.

        The unused `labels` are those of TRL's rows; a packed row has its own. `inputs` are images of the N groups.
        """
        rows = slice(self._done, self._done + len(input_ids) * self.group_size)
        self._done = rows.stop
        width = self.input_ids.size(1) - self.completion_length
        ids, mask = self.input_ids[rows], self.attention_mask[rows]
        row = pack(ids[:, :width], mask[:, :width], ids[:, width:], mask[:, width:], self.group_size)
        prompt = {key: inputs.pop(key)[:, :width] for key in TOKEN_TYPE_KEYS if key in inputs}
        outputs = self.model(
            input_ids=row.input_ids,
            # with four dimensions the model builds no mask; the layout defines the attention
            attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=ids.device),
            position_ids=self._positions(row, input_ids[:, :width], attention_mask[:, :width], prompt, inputs),
            shift_labels=row.shift_labels,
            fused_lm_head=fused_lm_head,
            shared_prefix=row.layout,
            **inputs,
        )
        entropy = None if outputs.entropy is None else row.unpack(outputs.entropy)
        return SimpleNamespace(log_probs=row.unpack(outputs.log_probs), entropy=entropy, aux_loss=None)

    def _positions(self, row: PackedRow, ids, mask, token_types: dict, images: dict) -> torch.Tensor:
        """Positions of the packed row: (1, T), or (3, 1, T) for multimodal rotary positions."""
        model = unwrap_policy(self.model)
        rope_index = getattr(model.base_model, "get_rope_index", None)
        if rope_index is not None and images.get("image_grid_thw") is not None:
            positions, _ = rope_index(
                ids,
                image_grid_thw=images["image_grid_thw"],
                attention_mask=mask,
                mm_token_type_ids=token_types["mm_token_type_ids"],
            )
            return row.positions(positions)
        positions = row.positions((mask.cumsum(dim=1) - 1).clamp(min=0).unsqueeze(0))
        return positions[0] if rope_index is None else positions.expand(3, -1, -1)
