"""
The one engine that lets a policy answer, on top of `model.generate`.

The prompt with its images runs once for all rollouts of a row. Sampling adds Gumbel noise to the logits, drawn from
the seed of the rollout alone, and takes the largest sum: a sample of the softmax that does not depend on the batch.

The logits of a row still differ in their last digits with the shape of its batch. Each rollout therefore has a
*margin*: how far its logits would have to move before any of its tokens changed. Rollouts with a small margin are
decoded again alone, in one thread.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel, ProcessorMixin
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.integrations.fsdp import is_fsdp_managed_module

from ..data.degradations import pixel_hash
from ..data.messages import generation_inputs, message_images
from .prefill import HOOKED, PER_ROW, replaced, shared_prefill

TOLERANCE = 1e-4
"""Margin of a float32 rollout under which it is decoded again. The bundled policy's logits move by up to 3e-6."""

BROKEN = -1.0
"""Margin of a rollout whose logits were not finite."""

Conversation = list[dict]
"""Messages in TRL's form, with their images in place."""

Answers = list[str] | Exception
"""The texts of a row's rollouts, or why it has none."""

_EXACT = (torch.float32, torch.float64)  # in bfloat16 nearly every margin is within the noise


class Decoded(NamedTuple):
    """Tokens of R rollouts without their end tokens, and their margins `(R,)`, `BROKEN` for logits not finite."""

    tokens: list[list[int]]
    margins: np.ndarray


class ImageRefused(ValueError):
    """The processor can't make an input of these images."""


class PolicyAnswers:
    """
    Answers of a policy to batches of conversations.

    In float32 the texts depend on the conversation, its images, the model and the seed alone: not on the batch, its
    order, `rollouts` (the first K of more are the same) or, for answers that end before it, `max_new_tokens`. In
    bfloat16 and float16, and with weights sharded over several processes, the shape of a batch changes a few texts.

    Args:
        model (`PreTrainedModel` or `PeftModel`):
            Policy, on its device. It answers in evaluation mode and is put back into its own mode.
        processor (`ProcessorMixin`):
            Its processor.
        rollouts (`int`, *optional*):
            Answers K to each conversation, sampled at temperature 1 from the whole vocabulary. By default one greedy
            answer.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the samples. The draws of a rollout depend on it, on the pixels of the images and on the number of
            the rollout.
        max_new_tokens (`int`, *optional*, defaults to `1024`):
            Longest answer, in tokens.

    Raises:
        `ValueError`: The processor has no chat template, or there is no end token.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        *,
        rollouts: int | None = None,
        seed: int = 0,
        max_new_tokens: int = 1024,
    ):
        if not getattr(processor, "chat_template", None):
            raise ValueError(
                f"The {type(processor).__name__} has no chat template: save the processor of the instruction-tuned "
                "model beside the weights."
            )
        self.model, self.processor = model, processor
        # adapters act within the layers of the base model
        self.policy = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.rollouts, self.seed, self.max_new_tokens = rollouts, seed, max_new_tokens
        self.ends = end_tokens(self.policy, processor)
        self.in_step = _runs_in_step(self.policy)
        self.tolerance = TOLERANCE if model.dtype in _EXACT and not self.in_step else 0.0
        self.decoded_again = 0
        """Rollouts decoded a second time so far."""

    def __call__(self, conversations: Sequence[Conversation]) -> list[Answers]:
        """
        Answer a batch. If memory runs out or the processor refuses an image, the batch is halved and tried again.

        Args:
            conversations (`Sequence[list[dict]]` of length N):
                Messages whose image blocks hold upright RGB images.

        Returns:
            `list[list[str] | Exception]` of length N: K texts (one when greedy), or the error of that row alone.

        Raises:
            `torch.OutOfMemoryError`: There is not enough memory for a single row.
        """
        try:
            return self._answer(conversations)
        except (ImageRefused, torch.OutOfMemoryError) as error:
            if self.in_step or (len(conversations) == 1 and isinstance(error, torch.OutOfMemoryError)):
                raise
            if len(conversations) == 1:
                return [error]
        # outside of `except`, whose traceback keeps the tensors of the failed batch alive
        middle = len(conversations) // 2
        return self(conversations[:middle]) + self(conversations[middle:])

    def _answer(self, conversations: Sequence[Conversation]) -> list[Answers]:
        count, seeds = self.rollouts or 1, None
        if self.rollouts is not None:
            images = [message_images(conversation) for conversation in conversations]
            seeds = np.concatenate([rollout_seeds(self.seed, row, count) for row in images])
        decoded = self._decode(conversations, count, seeds)
        answers: list[Answers] = []
        for number, conversation in enumerate(conversations):
            try:
                rows = range(number * count, (number + 1) * count)
                tokens = [self._settled(decoded, row, conversation, seeds) for row in rows]
            except FloatingPointError as error:
                answers.append(error)
            else:
                answers.append(self.processor.tokenizer.batch_decode(tokens, skip_special_tokens=True))
        return answers

    def _settled(self, decoded: Decoded, row: int, conversation: Conversation, seeds: np.ndarray | None) -> list[int]:
        tokens, margin = decoded.tokens[row], decoded.margins[row]
        if margin < self.tolerance and not self.in_step:
            self.decoded_again += 1
            with _one_thread(self.model.device):
                (tokens,), (margin,) = self._decode([conversation], 1, None if seeds is None else seeds[row : row + 1])
        if margin < 0:
            raise FloatingPointError(
                "the model's logits are not finite (NaN or infinite): its weights are damaged, or the precision is "
                "too low for it; try --dtype float32"
            )
        return tokens

    @torch.no_grad()  # not inference mode, whose tensors a model in training could not use later
    def _decode(self, conversations: Sequence[Conversation], rollouts: int, seeds: np.ndarray | None) -> Decoded:
        counts = [len(message_images(conversation)) for conversation in conversations]
        sharing: Any = nullcontext()
        if rollouts > 1 and all(hasattr(self.policy, name) for name in HOOKED):
            inputs = _repeat_rows(self._inputs(conversations), rollouts, counts)
            counts = [count for count in counts for _ in range(rollouts)]
            sharing = shared_prefill(self.policy, rollouts, counts)
        else:
            inputs = self._inputs([row for row in conversations for _ in range(rollouts)])
        inputs = inputs.to(self.model.device, dtype=self.model.dtype)
        tokenizer = self.processor.tokenizer
        config = GenerationConfig(
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            use_cache=True,
            eos_token_id=self.ends,
            pad_token_id=self.ends[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        )
        chooser = _Chooser(inputs["input_ids"], self.ends, seeds)
        was_training = self.model.training
        self.model.eval()
        try:
            # the model's own settings (Qwen ships a repetition penalty) must not fill in what `config` leaves open
            with replaced(self.policy, generation_config=GenerationConfig()), sharing:
                output = self.policy.generate(
                    **inputs, generation_config=config, logits_processor=LogitsProcessorList([chooser])
                )
        finally:
            self.model.train(was_training)
        answers = output[:, inputs["input_ids"].shape[1] :].tolist()
        return Decoded([_until_end(tokens, self.ends) for tokens in answers], chooser.margins.cpu().numpy())

    def _inputs(self, conversations: Sequence[Conversation]):
        try:
            return generation_inputs(self.processor, conversations)
        except ValueError as error:
            raise ImageRefused(f"the model's processor refuses the image: {error}") from error


def end_tokens(model: PreTrainedModel, processor: ProcessorMixin) -> list[int]:
    """The tokens that end an answer: the tokenizer's, and those of the model's generation config."""
    named: Any = model.generation_config.eos_token_id if model.generation_config is not None else None
    ends = {processor.tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])} - {None}
    if not ends:
        raise ValueError(
            "Neither the tokenizer nor the model's generation config names an end token; set one of them."
        )
    return sorted(ends)


def rollout_seeds(seed: int, images: Sequence[Image.Image], count: int) -> np.ndarray:
    """Seeds of a row's rollouts, int64 of shape `(count,)`; each depends on seed, pixels and its own number alone."""
    pixels = "+".join(map(pixel_hash, images))
    digests = [
        hashlib.blake2b(f"{seed}:{pixels}:{number}".encode(), digest_size=8).digest() for number in range(count)
    ]
    return np.array([int.from_bytes(digest, "little", signed=True) for digest in digests], dtype=np.int64)


class _Chooser(LogitsProcessor):
    """Adds the noise of each rollout's seed to its logits, and keeps its margin, shape `(R,)`."""

    def __init__(self, prompts: torch.Tensor, ends: Sequence[int], seeds: np.ndarray | None):
        self.start, device = prompts.shape[1], prompts.device
        self.ends = torch.tensor(ends, device=device)
        self.seeds = None if seeds is None else torch.from_numpy(seeds).to(device)
        self.margins = torch.full((len(prompts),), torch.inf, dtype=torch.float64, device=device)
        self.open = torch.ones(len(prompts), dtype=torch.bool, device=device)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        step = input_ids.shape[1] - self.start
        if step > 0:
            self.open &= ~torch.isin(input_ids[:, -1], self.ends)
        if self.seeds is not None:
            # The largest logit after Gumbel noise is a sample of the softmax. It is seldom decided by little, unlike
            # a number that falls on cumulated probabilities, of which a large vocabulary has many close together.
            uniforms = _uniforms(self.seeds, step, scores.shape[1])
            scores = scores.double() - (-uniforms.log()).log()
        best = scores.topk(2, dim=-1).values.double()
        margins = (best[:, 0] - best[:, 1]) / 2  # both logits may move, one up and one down
        margins = margins.where(torch.isfinite(best[:, 0]), BROKEN)
        self.margins = self.margins.where(~self.open, torch.minimum(self.margins, margins))
        return scores


def _repeat_rows(inputs, rollouts: int, counts: Sequence[int]):
    """Repeats what has a row a prompt for its rollouts, pixels left out, as [`shared_prefill`] expects."""
    for key in ("input_ids", *PER_ROW):
        if key in inputs:
            inputs[key] = inputs[key].repeat_interleave(rollouts, dim=0)
    if "image_grid_thw" in inputs:
        grids = inputs["image_grid_thw"].split(list(counts))
        inputs["image_grid_thw"] = torch.cat([grid for grid in grids for _ in range(rollouts)])
    return inputs


def _until_end(tokens: list[int], ends: Sequence[int]) -> list[int]:
    return tokens[: next((place for place, token in enumerate(tokens) if token in ends), None)]


def _runs_in_step(model: PreTrainedModel) -> bool:
    """Whether each forward needs every process, because the weights are sharded over them."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return False
    sharded = is_deepspeed_zero3_enabled() or is_fsdp_managed_module(model)
    return sharded and torch.distributed.get_world_size() > 1


@contextmanager
def _one_thread(device: torch.device) -> Iterator[None]:
    # how a sum is cut among threads changes its last digits
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _uniforms(seeds: torch.Tensor, step: int, count: int) -> torch.Tensor:
    """
    Numbers in (0, 1), float64 `(R, count)`, that depend on seed `(R,)`, step and place alone, on every device.

    Source: splitmix64 (Steele, Lea and Flood 2014), one stream for each row and step.
    """
    streams = _mixed(seeds + _wrapped(step * _GOLDEN))
    places = torch.arange(1, count + 1, device=seeds.device) * _GOLDEN
    mantissas = _shifted(_mixed(streams[:, None] + places), 11)
    return (mantissas.double() + 0.5) * 2.0**-53


def _mixed(values: torch.Tensor) -> torch.Tensor:
    values = (values ^ _shifted(values, 30)) * _wrapped(0xBF58476D1CE4E5B9)
    values = (values ^ _shifted(values, 27)) * _wrapped(0x94D049BB133111EB)
    return values ^ _shifted(values, 31)


def _shifted(values: torch.Tensor, count: int) -> torch.Tensor:
    return (values >> count) & ((1 << (64 - count)) - 1)  # int64 shifts its sign in


def _wrapped(value: int) -> int:
    return (value + 2**63) % 2**64 - 2**63


_GOLDEN = _wrapped(0x9E3779B97F4A7C15)
