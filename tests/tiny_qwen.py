"""Tiny Qwen2-VL, Qwen2.5-VL and Qwen3-VL: patches of all images stacked in 2-D `pixel_values`, grids, M-RoPE."""

from functools import cache

from transformers import (
    PreTrainedConfig,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLProcessor,
    Qwen2VLConfig,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from tiny_tokenizer import tiny_tokenizer

_SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for block in message['content'] %}"
    "{% if block['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ block['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_PROCESSORS = {
    "qwen2_vl": (Qwen2VLProcessor, Qwen2VLVideoProcessor, 14),
    "qwen2_5_vl": (Qwen2_5_VLProcessor, Qwen2VLVideoProcessor, 14),
    "qwen3_vl": (Qwen3VLProcessor, Qwen3VLVideoProcessor, 16),
}
"""Processor, video processor and edge of a patch in pixels."""


@cache
def qwen_processor(family: str) -> ProcessorMixin:
    """
    Builds the processor of a Qwen-VL family.

    Args:
        family (`str`):
            `"qwen2_vl"`, `"qwen2_5_vl"` or `"qwen3_vl"`.

    Returns:
        [`~transformers.ProcessorMixin`]: Sees images of 4 to 16 image tokens.
    """
    processor_class, video_processor_class, patch_size = _PROCESSORS[family]
    edge = 2 * patch_size  # pixels of one image token, which merges 2 x 2 patches
    return processor_class(
        image_processor=Qwen2VLImageProcessor(
            min_pixels=4 * edge**2, max_pixels=16 * edge**2, patch_size=patch_size, merge_size=2
        ),
        video_processor=video_processor_class(patch_size=patch_size),
        tokenizer=tiny_tokenizer(_SPECIAL_TOKENS, eos_token="<|im_end|>", pad_token="<|endoftext|>"),
        chat_template=_CHAT_TEMPLATE,
    )


def qwen_config(family: str, hidden_size: int) -> PreTrainedConfig:
    """
    Builds the configuration of a Qwen-VL family.

    Args:
        family (`str`):
            `"qwen2_vl"`, `"qwen2_5_vl"` or `"qwen3_vl"`.
        hidden_size (`int`):
            Width of the language model and the vision tower.

    Returns:
        [`~transformers.PreTrainedConfig`]
    """
    tokenizer = qwen_processor(family).tokenizer
    build = {"qwen2_vl": _qwen2_vl, "qwen2_5_vl": _qwen2_5_vl, "qwen3_vl": _qwen3_vl}[family]
    ids = {
        f"{name}_id": tokenizer.convert_tokens_to_ids(token)
        for name, token in {
            "image_token": "<|image_pad|>",
            "video_token": "<|video_pad|>",
            "vision_start_token": "<|vision_start|>",
            "vision_end_token": "<|vision_end|>",
        }.items()
    }
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden_size,
        "intermediate_size": 2 * hidden_size,
        "num_hidden_layers": 2,
        "num_attention_heads": hidden_size // 8,
        "num_key_value_heads": hidden_size // 16,
        "max_position_embeddings": 2048,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]},
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return build(text, ids, hidden_size)


def _qwen2_vl(text: dict, ids: dict, hidden_size: int) -> Qwen2VLConfig:
    vision = {"depth": 2, "embed_dim": hidden_size, "hidden_size": hidden_size, "mlp_ratio": 2}
    return Qwen2VLConfig(text_config=text, vision_config=vision | {"num_heads": hidden_size // 8}, **ids)


def _qwen2_5_vl(text: dict, ids: dict, hidden_size: int) -> Qwen2_5_VLConfig:
    vision = {
        "depth": 2,
        "hidden_size": hidden_size,
        "out_hidden_size": hidden_size,
        "intermediate_size": 2 * hidden_size,
        "num_heads": hidden_size // 8,
        "window_size": 56,
        "fullatt_block_indexes": [1],
    }
    # tied like the 3B, so that a checkpoint has fewer tensors than the state dict
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **ids)


def _qwen3_vl(text: dict, ids: dict, hidden_size: int) -> Qwen3VLConfig:
    vision = {
        "depth": 2,
        "hidden_size": hidden_size,
        "out_hidden_size": hidden_size,
        "intermediate_size": 2 * hidden_size,
        "num_heads": hidden_size // 8,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0],
    }
    rope = text["rope_parameters"] | {"mrope_interleaved": True}
    return Qwen3VLConfig(text_config=text | {"head_dim": 8, "rope_parameters": rope}, vision_config=vision, **ids)
