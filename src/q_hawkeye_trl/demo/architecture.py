"""
The demo policy before training: a real Qwen2.5-VL of 0.8 million parameters, its tokenizer and its processor.

The patch embedding starts as cosine filters. A randomly initialized vision tower learns noise and blur very slowly,
because both are differences between neighboring pixels, which random filters average out.
"""

import math

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from ..text import QUALITY_PROMPT
from .answers import KIND_NAMES, LEVELS
from .contents import IMAGE_SIZE

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""Qwen2.5-VL's special tokens, as far as it needs them."""

# Content is a string or a list of blocks, as TRL's data format allows.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\n' -}}"
    "{%- if message['content'] is string -%}{{- message['content'] -}}"
    "{%- else -%}{%- for block in message['content'] -%}"
    "{%- if block['type'] == 'image' -%}{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}"
    "{%- elif block['type'] == 'video' -%}{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}"
    "{%- elif block['type'] == 'text' -%}{{- block['text'] -}}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{{- '<|im_end|>\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)

_HIDDEN_SIZE = 96
_PATCH_SIZE = 14
_FREQUENCIES = (0, 1, 2, 3, 5, 7, 9, 11, 13)  # dense where pictures differ most, sparse above
_COLOUR_FREQUENCIES = ((0, 0), (0, 1), (1, 0), (3, 3), (7, 7), (10, 10), (13, 13))


def build_tokenizer() -> PreTrainedTokenizerFast:
    """
    Train the byte-level BPE tokenizer, of about 600 tokens, on the prompt and the words of the answers.

    Digits and tags stay single, so that each digit of a score is one decision. The prompt becomes few tokens, which
    makes training cheap.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"</?think>|</?answer>|[0-9]|\.|\n"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    # The answers' words come often and apart from each other: their merges rank first and never cross a space.
    words = [*LEVELS, *(f" {name}" for name in KIND_NAMES.values()), "<think>", "</think>", "<answer>", "</answer>"]
    corpus = 1000 * words + 10 * [QUALITY_PROMPT, "system\n", "user\n", "assistant\n"]
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        min_frequency=5,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token=None,
        bos_token=None,
        additional_special_tokens=list(SPECIAL_TOKENS),
        model_max_length=4096,
        padding_side="left",
    )


def build_processor() -> Qwen2_5_VLProcessor:
    """Build the processor, which downscales larger pictures to the size that the policy was trained at."""
    tokenizer = build_tokenizer()
    size = {"shortest_edge": 4 * 28 * 28, "longest_edge": IMAGE_SIZE[0] * IMAGE_SIZE[1]}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=size),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=size),
        chat_template=CHAT_TEMPLATE,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLForConditionalGeneration:
    """Build the untrained float32 policy, two vision blocks and two layers of 96 units, from torch's global seed."""
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": _HIDDEN_SIZE,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [4, 4, 4]},
        "initializer_range": 0.05,
        "bos_token_id": None,
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
    }
    vision = {
        "depth": 2,
        "hidden_size": _HIDDEN_SIZE,
        "out_hidden_size": _HIDDEN_SIZE,
        "intermediate_size": 256,
        "num_heads": 4,
        "patch_size": _PATCH_SIZE,
        "fullatt_block_indexes": [0, 1],
        "initializer_range": 0.05,
    }
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    model = Qwen2_5_VLForConditionalGeneration(config).float()
    with torch.no_grad():
        model.model.visual.patch_embed.proj.weight.copy_(cosine_filters(_HIDDEN_SIZE))
    model.generation_config.update(
        eos_token_id=ids["<|im_end|>"], pad_token_id=ids["<|endoftext|>"], do_sample=True, temperature=1.0
    )
    return model


def cosine_filters(count: int) -> torch.Tensor:
    """
    Build the patch embedding (count, 3, 2, 14, 14) of two-dimensional cosine filters.

    Brightness comes at low frequencies densely and at high ones sparsely, then a few color differences. The gain rises
    with the frequency, because amplitudes in pictures fall with it. Filters beyond the 95 designed ones are zero.
    """
    grid = [(u, v) for u in _FREQUENCIES for v in _FREQUENCIES]
    designed = [(u, v, (1 / 3, 1 / 3, 1 / 3)) for u, v in grid]
    for colours in ((0.5, -0.5, 0.0), (-0.25, -0.25, 0.5)):
        designed += [(u, v, colours) for u, v in _COLOUR_FREQUENCIES]
    weight = torch.zeros(count, 3, 2, _PATCH_SIZE, _PATCH_SIZE)
    for row, (u, v, colours) in enumerate(designed[:count]):
        plane = 0.3 * (1 + math.hypot(u, v)) * torch.outer(_cosine(u), _cosine(v))
        weight[row] = torch.tensor(colours)[:, None, None, None] * plane / 2  # two equal frames share the weight
    return weight


def _cosine(frequency: int) -> torch.Tensor:
    """Orthonormal DCT-II basis vector, shape (14,)."""
    positions = (torch.arange(_PATCH_SIZE) + 0.5) / _PATCH_SIZE
    scale = math.sqrt((1 if frequency == 0 else 2) / _PATCH_SIZE)
    return scale * torch.cos(math.pi * frequency * positions)
