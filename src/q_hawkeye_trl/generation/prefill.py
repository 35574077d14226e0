"""Generation whose prompt runs once a group: the cache that one row fills serves all its rollouts."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from .replaced import replaced

DYNAMIC_CACHES = (None, "dynamic")
"""Values of `cache_implementation` whose cache grows with what it is given, and so can be repeated."""

HOOKED = ("_maybe_prepare_encoder_kwargs_for_generation", "_prefill")
"""Methods of transformers' generation that [`shared_prefill`] replaces; private, so a release may lack them."""

PER_ROW = ("attention_mask", "token_type_ids", "mm_token_type_ids")
"""Inputs of `generate` beside `input_ids` that have one row a rollout."""


@contextmanager
def shared_prefill(model: PreTrainedModel, group_size: int, num_images: list[int]) -> Iterator[None]:
    """
    While it lasts, `model.generate` runs the first row of each group through the prompt and repeats the cache. It is
    given pixels once a group, and everything else once a row.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Model on which `generate` is called, without a wrapper or adapter around it. Its cache is a dynamic one.
        group_size (`int`):
            Rows of a group, G, which stand together and have one prompt.
        num_images (`list[int]` of length B):
            Images of each row.
    """
    encode, prefill = model._maybe_prepare_encoder_kwargs_for_generation, model._prefill

    def encode_groups(inputs_tensor, model_kwargs, *args):
        # up to here positions are made from the grids of all rows, from here on pixels are read by them
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
            firsts["position_ids"] = firsts["position_ids"][..., ::group_size, :]  # axes of rotation stand before rows
        outputs = prefill(input_ids[::group_size], generation_config, firsts, is_first_iteration)
        outputs.past_key_values.batch_repeat_interleave(group_size)
        outputs.logits = outputs.logits[:, -1:].repeat_interleave(group_size, dim=0)
        return outputs

    with replaced(model, _maybe_prepare_encoder_kwargs_for_generation=encode_groups, _prefill=prefill_groups):
        yield
