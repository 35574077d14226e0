"""`SharedPromptMixin`: a prompt is read, processed and run once per group, not once per rollout."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import datasets
import torch
from trl import GRPOTrainer

from ..data.image_columns import DecodeOnce
from ..generation.prefill import shared_prefill
from ..trl_compat import IMAGE_KEYS, PROMPT_SHARING, TOKEN_TYPE_KEYS, group_size, is_active, mode, optional_part
from .attention import install_attention
from .forward import PackedForward, unwrap_policy
from .groups import group_images, group_rows, ungroup_rows
from .processing import check_same_prompts, process_once, repeat_fields
from .support import choose_sharing


@optional_part(PROMPT_SHARING)
class SharedPromptMixin(GRPOTrainer):
    """
    Mixin of [`~trl.GRPOTrainer`]: the rollouts of a group share the work on their prompt, with the same result.

    Inside, a row of a batch is a group; the classes behind this one see TRL's rows. `args.shared_prefix` is `"auto"`,
    `"on"` or `"off"`.
    """

    def __init__(self, *args, **kwargs):
        self._shares_prefix = {"train": False, "eval": False}
        self._before_shuffle: tuple[torch.Tensor, int] | None = None  # random state and rows of a generation batch
        super().__init__(*args, **kwargs)
        if is_active(self, PROMPT_SHARING):
            self._shares_prefix = choose_sharing(self)
        elif self.args.shared_prefix == "on":
            raise ValueError("shared_prefix is on, but the installed trl does not fit; set it to auto or off.")
        if self._shares_prefix["train"]:
            for model in filter(None, (self.model, self.ref_model)):
                install_attention(unwrap_policy(model))

    def _shares_prompts(self) -> bool:
        return self._shares_prefix[mode(self)]

    # Reading and processing

    def _get_dataloader(self, dataset, description, *args, **kwargs):
        if isinstance(dataset, datasets.Dataset):
            dataset = DecodeOnce(self._remove_unused_columns(dataset, description))
        return super()._get_dataloader(dataset, description, *args, **kwargs)

    def _tokenize_prompts(self, prompts: list):
        # A rollout_func calls this too, and sees what TRL gives.
        if not self._shares_prompts() or self.rollout_func is not None:
            return super()._tokenize_prompts(prompts)
        size = group_size(self)
        check_same_prompts(prompts, size)
        prompt_ids, images, fields = super()._tokenize_prompts(prompts[::size])
        fields = repeat_fields(fields, _count_images(images, len(prompt_ids)), size)
        images = None if images is None else [row for row in images for _ in range(size)]
        return [ids for ids in prompt_ids for _ in range(size)], images, fields

    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, *args, **kwargs):
        sharing: AbstractContextManager = nullcontext()
        if self._shares_prompts() and not self.use_vllm:
            sharing = shared_prefill(
                unwrap_policy(self.model), group_size(self), _count_images(images, len(prompt_ids))
            )
        with sharing:
            return super()._generate_single_turn(prompt_ids, images, multimodal_fields, *args, **kwargs)

    # The group as the row of a batch

    def _generate_and_score_completions(self, inputs):
        if not self._shares_prompts():
            return super()._generate_and_score_completions(inputs)
        with process_once(self.processing_class):
            batch = super()._generate_and_score_completions(inputs)
        if self.model.training:
            self._before_shuffle = (torch.get_rng_state(), len(batch["prompt_ids"]))
        return group_rows(batch, group_size(self))

    def _compute_loss(self, model, inputs):
        return super()._compute_loss(model, ungroup_rows(inputs) if self._shares_prompts() else inputs)

    def _prepare_inputs(self, generation_batch):
        inputs = super()._prepare_inputs(generation_batch)
        if self._before_shuffle is not None:
            # TRL shuffled groups; draw as if it had shuffled all rows, so that sampling is the same as without sharing
            (state, rows), self._before_shuffle = self._before_shuffle, None
            torch.set_rng_state(state)
            torch.randperm(rows)
        return inputs

    # Log-probabilities

    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, **kwargs
    ):
        if self._shares_prompts():
            size = group_size(self)
            model = PackedForward(model, input_ids, attention_mask, logits_to_keep, size)
            kwargs = _first_rows(kwargs, len(input_ids), size)
            input_ids, attention_mask = input_ids[::size], attention_mask[::size]
            batch_size = None if batch_size is None else batch_size // size
        return super()._get_per_token_logps_and_entropies(
            model, input_ids, attention_mask, logits_to_keep, batch_size=batch_size, **kwargs
        )


def _count_images(images: list | None, rows: int) -> list[int]:
    return [0] * rows if images is None else [len(row or ()) for row in images]


def _first_rows(inputs: dict[str, Any], rows: int, group_size: int) -> dict[str, Any]:
    """The images and token types of the first row of each group; images may be one a group already."""
    images = {key: value for key, value in inputs.items() if key in IMAGE_KEYS and value is not None}
    if len(images.get("num_images", ())) == rows:
        images = group_images(images, group_size)
    tokens = {key: inputs[key][::group_size] for key in TOKEN_TYPE_KEYS if inputs.get(key) is not None}
    return {**inputs, **images, **tokens}
