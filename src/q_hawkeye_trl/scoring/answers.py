"""The answers of a policy to images, by transformers: the same for an image whatever the batch it comes in."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin
from trl.data_utils import prepare_multimodal_messages

from ..data.degradations import pixel_hash
from ..data.messages import generation_inputs
from ..text import quality_messages
from .decoding import Decoded, decode
from .policy import end_tokens

Answers = list[str] | Exception
"""The texts of an image's rollouts, or why there are none."""

TOLERANCE = 1e-4
"""
How far a float32 logit may move with the shape of the batch. Measured on the bundled policy: 3e-6. A row with a
smaller margin is decoded again alone, in one thread.
"""

_EXACT = (torch.float32, torch.float64)  # in bfloat16 nearly every row has a smaller margin than its noise


class ImageRefused(ValueError):
    """The processor can't make an input of this image."""


class TransformersAnswers:
    """
    Lets a policy answer the quality question for batches of images.

    In float32 the texts depend on the image, the model and the seed alone: not on the batch, on the order, on
    `rollouts` (the first K of more are the same) or on `max_new_tokens`, as far as an answer ends before. In bfloat16
    and float16 the shape of a batch changes a few texts.

    Args:
        model (`PreTrainedModel`):
            Policy, on its device. It answers in evaluation mode, and is then put back into the mode that it was in.
        processor (`ProcessorMixin`):
            Its processor.
        rollouts (`int`, *optional*):
            Answers K to each image, sampled at temperature 1 from the whole vocabulary. By default one greedy answer.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the samples. The draws of an image depend on it and on the image's pixels: the same picture under
            two names gets the same draws.
        max_new_tokens (`int`, *optional*, defaults to `1024`):
            Longest answer, in tokens.
        prompt (`str`, *optional*):
            Question. By default the project's.

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
        prompt: str | None = None,
    ):
        if not getattr(processor, "chat_template", None):
            raise ValueError(
                f"The {type(processor).__name__} has no chat template: save the processor of the instruction-tuned "
                "model beside the weights."
            )
        self.model, self.processor = model, processor
        self.rollouts, self.seed, self.max_new_tokens = rollouts, seed, max_new_tokens
        self.messages = quality_messages() if prompt is None else quality_messages(prompt)
        self.ends = end_tokens(model, processor)
        self.tolerance = TOLERANCE if model.dtype in _EXACT else 0.0
        self.decoded_again = 0
        """Rows decoded a second time so far."""

    def __call__(self, images: Sequence[Image.Image]) -> list[Answers]:
        """
        Answers a batch. Where memory runs out, or the processor refuses the batch, it is cut in half and tried again.

        Args:
            images (`Sequence[PIL.Image.Image]` of length B):
                Upright RGB images.

        Returns:
            `list[list[str] | Exception]` of length B: K texts (one when greedy), or the error of that image alone.

        Raises:
            `torch.OutOfMemoryError`: There is not enough memory for a single image.
        """
        try:
            return self._answer(images)
        except (ImageRefused, torch.OutOfMemoryError) as error:
            if len(images) == 1:
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                return [error]
        # not within `except`: the traceback there keeps the tensors of the failed batch alive
        middle = len(images) // 2
        return self(images[:middle]) + self(images[middle:])

    def _answer(self, images: Sequence[Image.Image]) -> list[Answers]:
        count = self.rollouts or 1
        seeds = None
        if self.rollouts is not None:
            seeds = np.concatenate([self._seeds(image) for image in images])
        decoded = self._decode(images, count, seeds)
        answers: list[Answers] = []
        for number, image in enumerate(images):
            rows = range(number * count, (number + 1) * count)
            try:
                tokens = [self._settled(decoded, row, image, seeds) for row in rows]
            except FloatingPointError as error:
                answers.append(error)
            else:
                answers.append(self.processor.tokenizer.batch_decode(tokens, skip_special_tokens=True))
        return answers

    def _settled(self, decoded: Decoded, row: int, image: Image.Image, seeds: np.ndarray | None) -> list[int]:
        if decoded.margins[row] >= self.tolerance:
            return decoded.tokens[row]
        self.decoded_again += 1
        with _one_thread(self.model.device):
            alone = self._decode([image], 1, None if seeds is None else seeds[row : row + 1])
        if alone.margins[0] < 0:
            raise FloatingPointError(
                "the model's logits are not finite (NaN or infinite): its weights are damaged, or the precision is "
                "too low for it; try --dtype float32"
            )
        return alone.tokens[0]

    def _decode(self, images: Sequence[Image.Image], rollouts: int, seeds: np.ndarray | None) -> Decoded:
        inputs = self._inputs(images).to(self.model.device, dtype=self.model.dtype)
        was_training = self.model.training
        self.model.eval()
        try:
            return decode(
                self.model,
                inputs,
                max_new_tokens=self.max_new_tokens,
                end_tokens=self.ends,
                rollouts=rollouts,
                seeds=seeds,
            )
        finally:
            self.model.train(was_training)

    def _inputs(self, images: Sequence[Image.Image]):
        # The images stand where TRL puts them in training.
        conversations = [prepare_multimodal_messages(self.messages, images=[image]) for image in images]
        try:
            return generation_inputs(self.processor, conversations)
        except ValueError as error:
            raise ImageRefused(f"the model's processor refuses the image: {error}") from error

    def _seeds(self, image: Image.Image) -> np.ndarray:
        pixels = pixel_hash(image)
        # one for each rollout, so that its draws don't depend on their number
        names = [f"{self.seed}:{pixels}:{number}" for number in range(self.rollouts or 0)]
        digests = [hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names]
        return np.array([int.from_bytes(digest, "little", signed=True) for digest in digests], dtype=np.int64)


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
