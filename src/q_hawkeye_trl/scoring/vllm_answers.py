"""Answers of a policy by vLLM, which is imported only when this backend is asked for."""

import os
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from transformers import AutoProcessor

from ..data.degradations import pixel_hash
from ..data.messages import message_images
from ..generation.engine import Answers, Conversation
from .policy import adapter_base


class VllmAnswers:
    """
    Answers of a policy, as [`~generation.engine.PolicyAnswers`], by vLLM.

    vLLM forms batches by itself, encodes a prompt once for its rollouts, and runs a LoRA adapter over its base without
    merging. It promises no equal results across batches. `engine_options` are further arguments of `vllm.LLM`. Raises
    `ImportError` if vLLM is not installed.
    """

    def __init__(
        self,
        model: str | os.PathLike,
        *,
        rollouts: int | None = None,
        seed: int = 0,
        max_new_tokens: int = 1024,
        dtype: str | None = None,
        max_pixels: int | None = None,
        trust_remote_code: bool = False,
        engine_options: dict[str, Any] | None = None,
    ):
        try:
            vllm = import_module("vllm")
            lora = import_module("vllm.lora.request")
        except ImportError as error:
            raise ImportError(
                "--backend vllm needs vLLM, which is not installed (Linux with a GPU: pip install "
                "'q-hawkeye-trl[vllm]'); without it, leave --backend out."
            ) from error
        self.rollouts, self.seed, self.max_new_tokens = rollouts, seed, max_new_tokens
        self.sampling = vllm.SamplingParams
        name = os.fspath(model)
        base, home, rank = adapter_base(name)
        self.processor = AutoProcessor.from_pretrained(home, trust_remote_code=trust_remote_code)
        options: dict[str, Any] = {"dtype": dtype or "auto", "limit_mm_per_prompt": {"image": 1}}
        options |= {"trust_remote_code": trust_remote_code, "seed": seed}
        if max_pixels is not None:
            options["mm_processor_kwargs"] = {"max_pixels": max_pixels}
        self.lora = None
        if rank is not None:
            self.lora = lora.LoRARequest("adapter", 1, name)
            options |= {"enable_lora": True, "max_lora_rank": rank}
        options |= engine_options or {}
        self.most_images = options["limit_mm_per_prompt"].get("image", 1)
        self.engine = vllm.LLM(model=base, **options)

    def __call__(self, conversations: Sequence[Conversation]) -> list[Answers]:
        """Answer a batch: K texts for each conversation, or the error of that one alone."""
        images = [message_images(conversation) for conversation in conversations]
        fitting = [number for number, shown in enumerate(images) if len(shown) <= self.most_images]
        outputs = self.engine.generate(
            [self._prompt(conversations[number], images[number]) for number in fitting],
            [self._sampling(images[number]) for number in fitting],
            lora_request=self.lora,
            use_tqdm=False,
        )
        answers: list[Answers] = [
            ValueError(
                f"{len(shown)} images in one prompt, but the engine takes {self.most_images}: pass "
                f"engine_options={{'limit_mm_per_prompt': {{'image': {len(shown)}}}}}"
            )
            for shown in images
        ]
        for number, output in zip(fitting, outputs, strict=True):
            answers[number] = [completion.text for completion in output.outputs]
        return answers

    def _prompt(self, conversation: Conversation, images: list) -> dict[str, Any]:
        text = self.processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
        return {"prompt": text, "multi_modal_data": {"image": images[0] if len(images) == 1 else images}}

    def _sampling(self, images: list):
        # all are named, so that the model's own generation settings (Qwen's repetition penalty) do not act
        neutral = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
        neutral["max_tokens"] = self.max_new_tokens
        if self.rollouts is None:
            return self.sampling(temperature=0.0, n=1, **neutral)
        own = (self.seed + sum(int(pixel_hash(image)[:12], 16) for image in images)) % 2**31
        return self.sampling(temperature=1.0, n=self.rollouts, seed=own, **neutral)
