"""Tiny models that see an image as tiles or as one square: SmolVLM, InternVL, Gemma 3 and LLaVA."""

from collections.abc import Callable
from functools import cache

from transformers import (
    Gemma3Config,
    Gemma3ImageProcessor,
    Gemma3Processor,
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLProcessor,
    InternVLVideoProcessor,
    LlavaConfig,
    LlavaImageProcessor,
    LlavaProcessor,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    SmolVLMConfig,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

from tiny_tokenizer import tiny_tokenizer


def _chat_template(turn: str, image: str, end: str) -> str:
    """A template of `turn` + role, then the blocks with `image` for each picture, then `end`."""
    return (
        "{{ bos_token }}{% for message in messages %}" + turn + "{{ message['role'] }}\n"
        "{% if message['content'] is string %}{{ message['content'] }}"
        "{% else %}{% for block in message['content'] %}"
        "{% if block['type'] == 'image' %}" + image + "{% else %}{{ block['text'] }}{% endif %}"
        "{% endfor %}{% endif %}"
        + end
        + "\n{% endfor %}{% if add_generation_prompt %}"
        + turn
        + "assistant\n{% endif %}"
    )


def _smolvlm_processor() -> SmolVLMProcessor:
    tiles = [f"<row_{row}_col_{column}>" for row in range(1, 4) for column in range(1, 4)]
    tokens = ("<pad>", "<|im_start|>", "<end_of_utterance>", "<image>", "<fake_token_around_image>", "<global-img>")
    return SmolVLMProcessor(
        # tiles of 32 pixels, an overview besides: a picture of 84 x 56 has 2 x 2 + 1
        image_processor=SmolVLMImageProcessor(size={"longest_edge": 64}, max_image_size={"longest_edge": 32}),
        video_processor=SmolVLMVideoProcessor(),
        tokenizer=tiny_tokenizer((*tokens, "<video>", *tiles), eos_token="<end_of_utterance>", pad_token="<pad>"),
        image_seq_len=4,
        chat_template=_chat_template("<|im_start|>", "<image>", "<end_of_utterance>"),
    )


def _internvl_processor() -> InternVLProcessor:
    named = (
        ("start_image_token", "<img>"),
        ("end_image_token", "</img>"),
        ("context_image_token", "<IMG_CONTEXT>"),
        ("video_token", "<video>"),
    )
    tokens = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(token for _, token in named))
    return InternVLProcessor(
        # tiles of 28 pixels, an overview besides: a picture of 84 x 56 has 3 x 2 + 1
        image_processor=GotOcr2ImageProcessor(size={"height": 28, "width": 28}),
        video_processor=InternVLVideoProcessor(size={"height": 28, "width": 28}),
        tokenizer=tiny_tokenizer(tokens, eos_token="<|im_end|>", pad_token="<|endoftext|>", named=named),
        image_seq_length=1,
        chat_template=_chat_template("<|im_start|>", "<IMG_CONTEXT>", "<|im_end|>"),
    )


def _gemma3_processor() -> Gemma3Processor:
    named = (("boi_token", "<start_of_image>"), ("eoi_token", "<end_of_image>"), ("image_token", "<image_soft_token>"))
    tokens = ("<pad>", "<start_of_turn>", "<end_of_turn>", *(token for _, token in named))
    return Gemma3Processor(
        image_processor=Gemma3ImageProcessor(size={"height": 56, "width": 56}),
        tokenizer=tiny_tokenizer(tokens, eos_token="<end_of_turn>", pad_token="<pad>", named=named),
        image_seq_length=4,
        chat_template=_chat_template("<start_of_turn>", "<start_of_image>", "<end_of_turn>"),
    )


def _llava_processor() -> LlavaProcessor:
    return LlavaProcessor(
        image_processor=LlavaImageProcessor(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}),
        tokenizer=tiny_tokenizer(("<pad>", "<s>", "</s>", "<image>"), eos_token="</s>", pad_token="<pad>"),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_chat_template("<s>", "<image>", "</s>"),
    )


_PROCESSORS: dict[str, Callable[[], ProcessorMixin]] = {
    "smolvlm": _smolvlm_processor,
    "internvl": _internvl_processor,
    "gemma3": _gemma3_processor,
    "llava": _llava_processor,
}


@cache
def tiled_processor(family: str) -> ProcessorMixin:
    """
    Builds the processor of a family.

    Args:
        family (`str`):
            `"smolvlm"`, `"internvl"`, `"gemma3"` or `"llava"`.

    Returns:
        [`~transformers.ProcessorMixin`]
    """
    return _PROCESSORS[family]()


def tiled_config(family: str, hidden_size: int) -> PreTrainedConfig:
    """
    Builds the configuration of a family.

    Args:
        family (`str`):
            `"smolvlm"`, `"internvl"`, `"gemma3"` or `"llava"`.
        hidden_size (`int`):
            Width of the language model and the vision tower.

    Returns:
        [`~transformers.PreTrainedConfig`]
    """
    tokenizer = tiled_processor(family).tokenizer
    build = {"smolvlm": _smolvlm, "internvl": _internvl, "gemma3": _gemma3, "llava": _llava}[family]
    text = _text(tokenizer, hidden_size)
    vision = {
        "hidden_size": hidden_size,
        "intermediate_size": 2 * hidden_size,
        "num_hidden_layers": 2,
        "num_attention_heads": hidden_size // 8,
    }
    return build(text, vision, tokenizer)


def _text(tokenizer: PreTrainedTokenizerFast, hidden_size: int) -> dict:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden_size,
        "intermediate_size": 2 * hidden_size,
        "num_hidden_layers": 2,
        "num_attention_heads": hidden_size // 8,
        "num_key_value_heads": hidden_size // 16,
        "head_dim": 8,
        "max_position_embeddings": 2048,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _smolvlm(text: dict, vision: dict, tokenizer: PreTrainedTokenizerFast) -> SmolVLMConfig:
    return SmolVLMConfig(
        text_config=text | {"model_type": "llama"},
        vision_config=vision | {"image_size": 32, "patch_size": 8},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
        scale_factor=2,
    )


def _internvl(text: dict, vision: dict, tokenizer: PreTrainedTokenizerFast) -> InternVLConfig:
    text.pop("head_dim")
    return InternVLConfig(
        text_config=text | {"model_type": "qwen2"},
        vision_config=vision | {"image_size": (28, 28), "patch_size": (14, 14)},
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=1,
    )


def _gemma3(text: dict, vision: dict, tokenizer: PreTrainedTokenizerFast) -> Gemma3Config:
    layers = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 32, "query_pre_attn_scalar": 8}
    return Gemma3Config(
        text_config=text | layers,
        vision_config=vision | {"image_size": 56, "patch_size": 14},
        mm_tokens_per_image=4,
        boi_token_index=tokenizer.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=tokenizer.convert_tokens_to_ids("<end_of_image>"),
        image_token_index=tokenizer.convert_tokens_to_ids("<image_soft_token>"),
    )


def _llava(text: dict, vision: dict, tokenizer: PreTrainedTokenizerFast) -> LlavaConfig:
    size = {"image_size": 56, "patch_size": 14, "projection_dim": vision["hidden_size"]}
    return LlavaConfig(
        text_config=text | {"model_type": "llama"},
        vision_config=vision | size | {"model_type": "clip_vision_model"},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
    )
