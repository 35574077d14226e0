"""
Useful floating-point operations of a GRPO update over one group, for the bound of what sharing a prompt can save.

Useful means: attention over the tokens that a token may see, the head where a token is predicted, no padding. One
multiply-add counts as two; forward and backward have the same ratio, so that the forward alone is counted.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Cost:
    """
    What a Qwen2.5-VL model costs.

    Args:
        token (`int`):
            Operations of the decoder's linear layers for one token.
        pair (`int`):
            Operations of the decoder's attention for one token that sees one other (or itself).
        head (`int`):
            Operations of the head for one predicted token.
        image (`int`):
            Operations of the vision tower for one image.
    """

    token: int
    pair: int
    head: int
    image: int


def cost_of(config: Any, patches: int) -> Cost:
    """
    Reads the cost off a configuration.

    Args:
        config ([`~transformers.Qwen2_5_VLConfig`]):
            Configuration.
        patches (`int`):
            Patches of the image.

    Returns:
        [`Cost`]
    """
    text, vision = config.text_config, config.vision_config
    head_dim = text.hidden_size // text.num_attention_heads
    projections = text.hidden_size * head_dim * 2 * (text.num_attention_heads + text.num_key_value_heads)
    token = 2 * text.num_hidden_layers * (projections + 3 * text.hidden_size * text.intermediate_size)
    pair = 4 * text.num_hidden_layers * text.hidden_size
    layer = 4 * vision.hidden_size**2 + 3 * vision.hidden_size * vision.intermediate_size
    embedding = vision.hidden_size * 3 * vision.temporal_patch_size * vision.patch_size**2
    merged = vision.hidden_size * vision.spatial_merge_size**2
    merger = merged * (merged + vision.out_hidden_size) // vision.spatial_merge_size**2
    linear = 2 * patches * (vision.depth * layer + embedding + merger)
    window = (vision.window_size // vision.patch_size) ** 2
    full = len(vision.fullatt_block_indexes)
    seen = full * patches + (vision.depth - full) * min(window, patches)
    return Cost(token, pair, 2 * text.hidden_size * text.vocab_size, linear + 4 * vision.hidden_size * patches * seen)


def rows_flops(cost: Cost, prompt: int, completion: int, group: int) -> int:
    """Operations of `group` rows of their own, each with the whole prompt and its image."""
    length = prompt + completion
    row = cost.image + length * cost.token + length * (length + 1) // 2 * cost.pair + completion * cost.head
    return group * row


def packed_flops(cost: Cost, prompt: int, completion: int, group: int) -> int:
    """Operations of one packed row: the prompt once, without its last token, which opens every segment."""
    prefix = prompt - 1
    tokens = prefix + group * completion
    pairs = prefix * (prefix + 1) // 2 + group * (completion * prefix + completion * (completion + 1) // 2)
    return cost.image + tokens * cost.token + pairs * cost.pair + group * completion * cost.head


def flop_bound(cost: Cost, prompt: int, completion: int, group: int) -> float:
    """How many times fewer operations the packed row needs."""
    return rows_flops(cost, prompt, completion, group) / packed_flops(cost, prompt, completion, group)
