"""`HawkeyeScorer`: a policy that scores images."""

import math
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm
from transformers import PreTrainedModel, ProcessorMixin

from ..data.messages import with_images
from ..generation.engine import Answers, PolicyAnswers
from ..question import override
from .policy import find_question, load_policy
from .scored import DEFAULT_QUESTION, ScoredImage, score_answers
from .sources import FileSource, ImageSource, MemorySource

BACKENDS = ("transformers", "vllm")

_BATCH_PIXELS = 100_000_000  # decoded images of a batch: 300 MB, and as much again for the next one

Shown = str | os.PathLike | Image.Image
Loaded = list[Image.Image] | Exception


class HawkeyeScorer:
    r"""
    Scores the quality of images with a trained policy.

    It asks the question that was saved with the model (`quality_task.json`), or the project's. It is also a reward:
    called with a list of images it returns a list of floats.

    Args:
        model (`str`, `os.PathLike` or `PreTrainedModel`):
            Folder of a model or of a LoRA adapter, a name on the Hub, or a loaded model together with `processor`.
        processor (`ProcessorMixin`, *optional*):
            Processor of a loaded model.
        rollouts (`int`, *optional*):
            Answers K to each image, sampled at temperature 1; they give the score a spread. By default one greedy
            answer.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the samples.
        batch_size (`int`, *optional*, defaults to `64`):
            Answers generated at once: `batch_size // rollouts` images, at least one. If memory runs out, a batch is
            halved. With transformers in float32 the scores do not depend on it.
        max_new_tokens (`int`, *optional*, defaults to `1024`):
            Longest answer, in tokens.
        prompt (`str`, *optional*), score_min (`float`, *optional*), score_max (`float`, *optional*):
            Question and scale in place of the model's own. A stated score outside the scale counts as its nearer end,
            and is counted in `ScoredImage.clamped`.
        score_parser (`str`, *optional*):
            Reads the score of an answer, in place of the model's own parser: `"number"` (`<answer>3.75</answer>`),
            `"boxed"` (`\boxed{80}`) or `"module:function"`.
        backend (`str`, *optional*, defaults to `"transformers"`):
            `"transformers"` or `"vllm"`.
        engine_options (`dict[str, Any]`, *optional*):
            Further arguments of vLLM's engine, for example `{"tensor_parallel_size": 2}`.
        dtype, device, attn_implementation, max_pixels, trust_remote_code:
            As in [`~scoring.policy.load_policy`]; not for a loaded model.

    Raises:
        `ValueError`: An argument is out of range or would do nothing, or a loaded model comes without its processor.
        `ImportError`: The backend is not installed.

    Example:

    ```python
    >>> from q_hawkeye_trl.scoring import HawkeyeScorer
    >>> from q_hawkeye_trl.demo.policy import demo_policy_path

    >>> scorer = HawkeyeScorer(demo_policy_path(), rollouts=8)
    >>> scorer.score(["a.jpg", "b.png"])  # doctest: +SKIP
    ```
    """

    def __init__(
        self,
        model: str | os.PathLike | PreTrainedModel,
        processor: ProcessorMixin | None = None,
        *,
        rollouts: int | None = None,
        seed: int = 0,
        batch_size: int = 64,
        max_new_tokens: int = 1024,
        prompt: str | None = None,
        score_min: float | None = None,
        score_max: float | None = None,
        score_parser: str | None = None,
        backend: str = "transformers",
        engine_options: dict[str, Any] | None = None,
        dtype: str | None = None,
        device: str | torch.device | None = None,
        attn_implementation: str | None = None,
        max_pixels: int | None = None,
        trust_remote_code: bool = False,
    ):
        _check_at_least_one(rollouts=rollouts, batch_size=batch_size, max_new_tokens=max_new_tokens)
        if seed < 0:
            raise ValueError(f"`seed` must be at least 0, got {seed}.")
        if backend not in BACKENDS:
            raise ValueError(f"Unknown backend {backend!r}: expected one of {', '.join(BACKENDS)}.")
        self.batch_size, self.rollouts = batch_size, rollouts
        sampling: dict[str, Any] = {"rollouts": rollouts, "seed": seed, "max_new_tokens": max_new_tokens}
        loading: dict[str, Any] = {"dtype": dtype, "max_pixels": max_pixels, "trust_remote_code": trust_remote_code}
        placing: dict[str, Any] = {"device": device, "attn_implementation": attn_implementation}
        asked = {"prompt": prompt, "score_min": score_min, "score_max": score_max, "parser": score_parser}
        if isinstance(model, str | os.PathLike):
            _check_unused("a loaded model", processor=processor)
            self.question = find_question(model, trust_remote_code=trust_remote_code, max_pixels=max_pixels, **asked)
            loading["max_pixels"] = self.question.max_pixels
        else:
            _check_unused("a model that is to be loaded", **loading, **placing)
            self.question = override(DEFAULT_QUESTION, asked)
        _ = self.question.parse  # an unknown function is an error now, not after the first batch
        self.answer_batch: Any
        if backend == "vllm":
            from .vllm_answers import VllmAnswers

            if not isinstance(model, str | os.PathLike):
                raise ValueError("vLLM loads a model by itself: pass its folder or name, not a loaded model.")
            _check_unused("the backend transformers (vLLM: see `engine_options`, CUDA_VISIBLE_DEVICES)", **placing)
            self.answer_batch = VllmAnswers(model, engine_options=engine_options, **loading, **sampling)
            return
        if engine_options:
            raise ValueError("`engine_options` are vLLM's: they need backend='vllm'.")
        if isinstance(model, str | os.PathLike):
            model, processor = load_policy(model, **loading, **placing)
        if processor is None:
            raise ValueError("A loaded model needs its `processor`.")
        self.answer_batch = PolicyAnswers(model, processor, **sampling)

    def score(self, images: Sequence[Shown | list[Shown]], *, progress: bool = False) -> list[ScoredImage]:
        """
        Score images.

        Args:
            images (`Sequence[str | os.PathLike | PIL.Image.Image | list]` of length N):
                Paths, or images of any mode and size; a list of them for the several images of one prompt.
            progress (`bool`, *optional*, defaults to `False`):
                Whether to show a progress bar.

        Returns:
            `list[ScoredImage]` of length N: In the same order. An unreadable image has its `error`.
        """
        scored: list[ScoredImage | None] = [None] * len(images)
        for number, result in self.score_sources(_sources(images), progress=progress):
            scored[number] = result
        return scored  # type: ignore[return-value]

    def __call__(self, images: Sequence[Shown | list[Shown]]) -> list[float]:
        """
        Score images as a reward function does.

        Args:
            images (`Sequence[str | os.PathLike | PIL.Image.Image | list]` of length N):
                As in [`score`].

        Returns:
            `list[float]` of length N: Scores within the scale, `nan` for an image without one.

        Raises:
            `ValueError`: An image can't be read.
        """
        scored = self.score(images)
        for result in scored:
            if result.error is not None:
                raise ValueError(result.error)
        return [math.nan if result.score is None else result.score for result in scored]

    def score_sources(
        self,
        sources: Sequence[ImageSource],
        *,
        wanted: Sequence[int] | None = None,
        share: tuple[int, int] = (0, 1),
        progress: bool = False,
    ) -> Iterator[tuple[int, ScoredImage]]:
        """
        Score images batch by batch, images of similar size together, with at most two batches in memory.

        Args:
            sources (`Sequence[ImageSource]`):
                Images.
            wanted (`Sequence[int]`, *optional*):
                Their numbers to score. By default all.
            share (`tuple[int, int]`, *optional*, defaults to `(0, 1)`):
                Number of this process and count of processes, each of which takes its batches.
            progress (`bool`, *optional*, defaults to `False`):
                Whether to show a progress bar.

        Returns:
            `Iterator[tuple[int, ScoredImage]]`: Number and score of each image, as they are done.
        """
        numbers = list(range(len(sources))) if wanted is None else list(wanted)
        if self.question.prompt is None and any(sources[number].prompt is None for number in numbers):
            self.question.messages()  # raises
        each = math.ceil(len(numbers) / share[1])  # so that no process is without work
        size = min(max(1, self.batch_size // (self.rollouts or 1)), max(1, each))
        batches = _batches(sources, numbers, size)[share[0] :: share[1]]
        others = f", process 1 of {share[1]}" if share[1] > 1 else ""
        bar = tqdm(
            desc=f"Scoring{others}", total=sum(map(len, batches)), unit="image", disable=not progress, smoothing=0.05
        )
        with bar:
            for batch, images in _loaded_ahead(sources, batches):
                yield from self._score_batch(sources, batch, images)
                bar.update(len(batch))

    def _score_batch(
        self, sources: Sequence[ImageSource], batch: list[int], loaded: list[Loaded]
    ) -> Iterator[tuple[int, ScoredImage]]:
        conversations: list[Any] = []
        for number, images in zip(batch, loaded, strict=True):
            try:
                conversations.append(images if isinstance(images, Exception) else self._ask(sources[number], images))
            except ValueError as error:  # more images than the prompt has places
                conversations.append(error)
        asked = [conversation for conversation in conversations if not isinstance(conversation, Exception)]
        answers = iter(self.answer_batch(asked) if asked else [])
        for number, conversation in zip(batch, conversations, strict=True):
            name = sources[number].name
            result: Answers = conversation if isinstance(conversation, Exception) else next(answers)
            if isinstance(result, Exception):
                text = str(result)  # the model knows no names, and not every decoder gives one
                yield number, ScoredImage(name, error=text if name in text else f"{name}: {text}")
            else:
                yield number, score_answers(name, result, self.question)

    def _ask(self, source: ImageSource, images: list[Image.Image]) -> list[dict]:
        prompt = source.prompt if self.question.prompt is None else self.question.messages()
        return with_images({"prompt": prompt, "images": images})


def _sources(images: Sequence[Shown | list[Shown]]) -> list[ImageSource]:
    if isinstance(images, str | os.PathLike | Image.Image):
        raise ValueError("Expected a list of images, got a single one: put it into a list.")
    sources: list[ImageSource] = []
    for number, image in enumerate(images):
        if isinstance(image, str | os.PathLike):
            sources.append(FileSource(os.fspath(image)))
        else:
            sources.append(MemorySource(image if isinstance(image, list) else [image], f"image {number}"))
    return sources


def _batches(sources: Sequence[ImageSource], numbers: list[int], size: int) -> list[list[int]]:
    """Cut images, sorted by size for little padding, into batches limited in count and in pixels."""
    sizes = {number: sources[number].pixels() for number in numbers}
    ordered = sorted(numbers, key=lambda number: (sizes[number][0] * sizes[number][1], sizes[number], number))
    batches: list[list[int]] = []
    pixels = 0
    for number in ordered:
        own = sizes[number][0] * sizes[number][1]
        if not batches or len(batches[-1]) == size or pixels + own > _BATCH_PIXELS:
            batches.append([])
            pixels = 0
        batches[-1].append(number)
        pixels += own
    return batches


def _loaded_ahead(
    sources: Sequence[ImageSource], batches: list[list[int]]
) -> Iterator[tuple[list[int], list[Loaded]]]:
    """Decode the next batch while the model answers this one."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        waiting: deque[tuple[list[int], list[Future]]] = deque()
        try:
            for batch in batches:
                waiting.append((batch, [pool.submit(_load, sources[number]) for number in batch]))
                if len(waiting) > 1:
                    ready, futures = waiting.popleft()
                    yield ready, [future.result() for future in futures]
            for ready, futures in waiting:
                yield ready, [future.result() for future in futures]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _load(source: ImageSource) -> Loaded:
    try:
        return source.load()
    except (ValueError, OSError) as error:
        return error


def _check_unused(what: str, **given: object) -> None:
    for name, value in given.items():
        if value not in (None, False):
            raise ValueError(f"`{name}` is for {what}, and would do nothing here: leave it out.")


def _check_at_least_one(**numbers: int | None) -> None:
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}.")
