"""One byte-level BPE tokenizer a family, trained in code: some 450 tokens, the family's own special tokens."""

from functools import cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from q_hawkeye_trl.text import QUALITY_PROMPT

VOCAB_SIZE = 512

_CORPUS = [
    QUALITY_PROMPT,
    "system You are a helpful assistant. user assistant User: Assistant: model",
    *(
        f"<think>{severity} {kind}, the picture looks {look}</think><answer>{whole}.{part:02d}</answer>"
        for severity, kind, look in (("severe", "blur", "bad"), ("mild", "noise", "good"), ("no", "artefacts", "fair"))
        for whole in range(1, 6)
        for part in range(0, 100, 25)
    ),
]
"""Text from which the merges are learned: the prompt and answers of the expected form, so that both are short."""


@cache
def tiny_tokenizer(
    special_tokens: tuple[str, ...], *, eos_token: str, pad_token: str, named: tuple[tuple[str, str], ...] = ()
) -> PreTrainedTokenizerFast:
    """
    Trains a byte-level BPE tokenizer; the same arguments give the same tokenizer in every process.

    Args:
        special_tokens (`tuple[str, ...]`):
            Special tokens, which get the lowest ids, in this order.
        eos_token (`str`):
            The one of them that ends a completion.
        pad_token (`str`):
            The one of them that pads.
        named (`tuple[tuple[str, str], ...]`, *optional*):
            Names under which a processor reads some of them from the tokenizer, like `("image_token", "<image>")`.

    Returns:
        [`~transformers.PreTrainedTokenizerFast`]: Pads on the left, as GRPO's prompts need it.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(special_tokens),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=eos_token,
        pad_token=pad_token,
        padding_side="left",
        extra_special_tokens=dict(named),
    )
