"""`SharedPrefixTrainer`: TRL's GRPO in which a prompt is read, processed and run once a group, not once a rollout."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import datasets
import torch
from trl import GRPOTrainer

from ..data.image_columns import DecodeOnce
from ..generation.prefill import shared_prefill
from ..seam import IMAGE_KEYS, TOKEN_TYPE_KEYS
from .attention import install_attention
from .forward import PackedForward, unwrap_policy
from .groups import group_images, group_rows, ungroup_rows
from .processing import check_same_prompts, process_once, repeat_fields
from .support import choose_sharing


class SharedPrefixTrainer(GRPOTrainer):
    """
    [`~trl.GRPOTrainer`] whose rollouts share the work on their prompt, with the same result. Its args have a field
    `shared_prefix` (`"auto"`, `"on"` or `"off"`).

    Subclasses call `_set_up_sharing` at the end of their construction, end `_generate_and_score_completions` by
    `_group_batch` and begin `_compute_loss` by `_ungroup_batch`.
    """

    def _set_up_sharing(self) -> None:
        self._shares_prefix = choose_sharing(self)
        self._before_shuffle: tuple[torch.Tensor, int] | None = None  # random state and rows of a generation batch
        if self._shares_prefix["train"]:
            for model in (self.model, self.ref_model):
                if model is not None:
                    install_attention(unwrap_policy(model))

    @property
    def _mode(self) -> str:
        return "train" if self.model.training else "eval"

    @property
    def _group_size(self) -> int:
        return self.num_generations if self.model.training else self.num_generations_eval

    # Reading and processing

    def _get_dataloader(self, dataset, description, *args, **kwargs):
        if isinstance(dataset, datasets.Dataset):
            dataset = DecodeOnce(self._remove_unused_columns(dataset, description))
        return super()._get_dataloader(dataset, description, *args, **kwargs)

    def _tokenize_prompts(self, prompts: list):
        # A rollout_func calls this too, and sees what TRL gives.
        if not self._shares_prefix[self._mode] or self.rollout_func is not None:
            return super()._tokenize_prompts(prompts)
        size = self._group_size
        check_same_prompts(prompts, size)
        prompt_ids, images, fields = super()._tokenize_prompts(prompts[::size])
        fields = repeat_fields(fields, _count_images(images, len(prompt_ids)), size)
        images = None if images is None else [row for row in images for _ in range(size)]
        return [ids for ids in prompt_ids for _ in range(size)], images, fields

    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, *args, **kwargs):
        sharing: AbstractContextManager = nullcontext()
        if self._shares_prefix[self._mode] and not self.use_vllm:
            sharing = shared_prefill(
                unwrap_policy(self.model), self._group_size, _count_images(images, len(prompt_ids))
            )
        with sharing:
            return super()._generate_single_turn(prompt_ids, images, multimodal_fields, *args, **kwargs)

    def _generate_and_score_completions(self, inputs):
        self._check_images_alike(inputs)
        with process_once(self.processing_class) if self._shares_prefix[self._mode] else nullcontext():
            return super()._generate_and_score_completions(inputs)

    def _check_images_alike(self, inputs: list[dict[str, Any]]) -> None:
        """
        Refuses, on every rank at once, a batch of which some rows have images and others not: a rank whose rows have
        none would not run its vision tower, and the others would wait for its gradients or shards for ever.
        """
        if self.accelerator.num_processes == 1:
            return
        here = torch.tensor([_shows_images(row) for row in inputs], device=self.accelerator.device)
        with_images = self.accelerator.gather(here)
        if with_images.any() and not with_images.all():
            raise ValueError(
                f"{int((~with_images).sum())} of the {len(with_images)} rollouts of a batch belong to rows without an "
                f"image, the others have one: {self.accelerator.num_processes} processes would wait for one another. "
                "Give every row an image, or train the rows without one by themselves."
            )

    # The group as the row of a batch

    def _group_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        if not self._shares_prefix[self._mode]:
            return batch
        if self.model.training:
            self._before_shuffle = (torch.get_rng_state(), len(batch["prompt_ids"]))
        return group_rows(batch, self._group_size)

    def _ungroup_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        return ungroup_rows(batch) if self._shares_prefix[self._mode] else batch

    def _prepare_inputs(self, generation_batch):
        inputs = super()._prepare_inputs(generation_batch)
        if self._before_shuffle is not None:
            # TRL shuffled groups; what a shuffle of all rows draws, so that sampling goes on as without sharing
            (state, rows), self._before_shuffle = self._before_shuffle, None
            torch.set_rng_state(state)
            torch.randperm(rows)
        return inputs

    # Log-probabilities

    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, **kwargs
    ):
        if self._shares_prefix[self._mode]:
            size = self._group_size
            model = PackedForward(model, input_ids, attention_mask, logits_to_keep, size)
            kwargs = _first_rows(kwargs, len(input_ids), size)
            input_ids, attention_mask = input_ids[::size], attention_mask[::size]
            batch_size = None if batch_size is None else batch_size // size
        return super()._get_per_token_logps_and_entropies(
            model, input_ids, attention_mask, logits_to_keep, batch_size=batch_size, **kwargs
        )


def _shows_images(row: dict[str, Any]) -> bool:
    """Whether a dataset row has an image, in a column or in its prompt."""
    if row.get("images") or row.get("image") is not None:
        return True
    prompt = row.get("prompt")
    contents = [message.get("content") for message in prompt] if isinstance(prompt, list) else []
    return any(
        isinstance(content, list) and any(block.get("type") == "image" for block in content) for content in contents
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
