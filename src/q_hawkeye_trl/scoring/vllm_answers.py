"""The answers of a policy to images, by vLLM. The engine is imported only here, and only when it is asked for."""

import os
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from PIL import Image
from transformers import AutoProcessor
from trl.data_utils import prepare_multimodal_messages

from ..data.degradations import pixel_hash
from ..text import quality_messages
from .policy import adapter_base


class VllmAnswers:
    """
    Lets vLLM answer the quality question. Its prefix cache encodes an image once for its rollouts, and it forms
    batches by itself; a LoRA adapter runs over its base without merging. vLLM promises no equal results across
    batches.

    Args:
        model (`str` or `os.PathLike`):
            Folder or Hub name of a model or an adapter.
        rollouts (`int`, *optional*), seed (`int`, *optional*, defaults to `0`), max_new_tokens (`int`, *optional*),
        prompt (`str`, *optional*):
            As in [`~scoring.answers.TransformersAnswers`]. Each image has a seed of its own, from `seed` and its
            pixels.
        dtype (`str`, *optional*), max_pixels (`int`, *optional*), trust_remote_code (`bool`, *optional*):
            As in [`~scoring.policy.load_policy`].
        engine_options (`dict[str, Any]`, *optional*):
            Further arguments of `vllm.LLM`.

    Raises:
        `ImportError`: vLLM is not installed.
    """

    def __init__(
        self,
        model: str | os.PathLike,
        *,
        rollouts: int | None = None,
        seed: int = 0,
        max_new_tokens: int = 1024,
        prompt: str | None = None,
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
        self.messages = quality_messages() if prompt is None else quality_messages(prompt)
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
        self.engine = vllm.LLM(model=base, **options | (engine_options or {}))

    def __call__(self, images: Sequence[Image.Image]) -> list[list[str] | Exception]:
        """
        Answers a batch.

        Args:
            images (`Sequence[PIL.Image.Image]` of length B):
                Upright RGB images.

        Returns:
            `list[list[str]]` of length B: K texts each, one when greedy.
        """
        prompts = [{"prompt": self._text(image), "multi_modal_data": {"image": image}} for image in images]
        outputs = self.engine.generate(
            prompts, [self._sampling(image) for image in images], lora_request=self.lora, use_tqdm=False
        )
        return [[completion.text for completion in output.outputs] for output in outputs]

    def _text(self, image: Image.Image) -> str:
        messages = prepare_multimodal_messages(self.messages, images=[image])
        return self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    def _sampling(self, image: Image.Image):
        # the model's own generation settings (Qwen's repetition penalty) must not act: all are named here
        neutral = {
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "max_tokens": self.max_new_tokens,
        }
        if self.rollouts is None:
            return self.sampling(temperature=0.0, n=1, **neutral)
        own = (self.seed + int(pixel_hash(image)[:12], 16)) % 2**31
        return self.sampling(temperature=1.0, n=self.rollouts, seed=own, **neutral)
