"""Generation whose prompt runs once for a group of rollouts."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

DYNAMIC_CACHES = (None, "dynamic")
"""Values of `cache_implementation` whose cache grows as it is filled, and so can be repeated."""

HOOKED = ("_maybe_prepare_encoder_kwargs_for_generation", "_prefill")
"""Methods of transformers' generation that [`shared_prefill`] replaces; private, so a release may lack them."""

PER_ROW = ("attention_mask", "token_type_ids", "mm_token_type_ids")
"""Inputs of `generate` beside `input_ids` that have one row a rollout."""


@contextmanager
def shared_prefill(model: PreTrainedModel, group_size: int, num_images: list[int]) -> Iterator[None]:
    """
    Let `model.generate` run the prompt of each group once and repeat its cache for the rollouts.

    `generate` takes pixels once a group, and everything else once a row.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Model on which `generate` is called, without a wrapper or adapter around it. Its cache is a dynamic one.
        group_size (`int`):
            Rows of a group, G, which are adjacent and have one prompt.
        num_images (`list[int]` of length B):
            Images of each row.
    """
    encode, prefill = model._maybe_prepare_encoder_kwargs_for_generation, model._prefill

    def encode_groups(inputs_tensor, model_kwargs, *args):
        # positions were made from the grids of all rows; from here on they describe the pixels
        if model_kwargs.get("image_grid_thw") is not None:
            grids = torch.cat(model_kwargs["image_grid_thw"].split(num_images)[::group_size])
            model_kwargs = {**model_kwargs, "image_grid_thw": grids}
        return encode(inputs_tensor, model_kwargs, *args)

    def prefill_groups(input_ids, generation_config, model_kwargs, is_first_iteration=True):
        firsts = dict(model_kwargs)
        for key in PER_ROW:
            if firsts.get(key) is not None:
                firsts[key] = firsts[key][::group_size]
        if firsts.get("position_ids") is not None:
            firsts["position_ids"] = firsts["position_ids"][..., ::group_size, :]  # after the axes of rotation
        outputs = prefill(input_ids[::group_size], generation_config, firsts, is_first_iteration)
        outputs.past_key_values.batch_repeat_interleave(group_size)
        outputs.logits = outputs.logits[:, -1:].repeat_interleave(group_size, dim=0)
        return outputs

    with replaced(model, _maybe_prepare_encoder_kwargs_for_generation=encode_groups, _prefill=prefill_groups):
        yield


@contextmanager
def replaced(target: Any, **attributes: Any) -> Iterator[None]:
    """Replace attributes of an object, not of its class, within the block."""
    found = {name: vars(target)[name] for name in attributes if name in vars(target)}
    for name, value in attributes.items():
        setattr(target, name, value)
    try:
        yield
    finally:
        for name in attributes:
            if name in found:
                setattr(target, name, found[name])
            else:
                delattr(target, name)
