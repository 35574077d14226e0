"""What the step benchmark runs on: a small Qwen2.5-VL in the proportions of the 7B, one photograph, three trainers."""

from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, Image
from PIL import Image as PILImage
from transformers import (
    AutoConfig,
    AutoProcessor,
    PreTrainedModel,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from trl import GRPOConfig, GRPOTrainer
from trl.data_utils import prepare_multimodal_messages

from q_hawkeye_trl import QUALITY_PROMPT, HawkeyeGRPOConfig, HawkeyeGRPOTrainer
from q_hawkeye_trl.demo.architecture import SPECIAL_TOKENS, build_processor

VARIANTS = ("trl_grpo", "ours_grpo", "ours_hawkeye")
PHOTOGRAPH = (1024, 768)
_OFF = {"perception_gamma": 0.0, "entropy_original_coef": 0.0, "entropy_degraded_coef": 0.0}


def small_model() -> PreTrainedModel:
    """A random Qwen2.5-VL whose tower takes about a quarter of the operations of an image prompt, as the 7B's does."""
    tokenizer = build_processor().tokenizer
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 256,
        "intermediate_size": 1408,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [4, 6, 6]},
        "bos_token_id": None,
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
    }
    vision = {
        "depth": 2,
        "hidden_size": 80,
        "out_hidden_size": 256,
        "intermediate_size": 216,
        "num_heads": 4,
        "fullatt_block_indexes": [1],
    }
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(config).float()
    model.generation_config.update(eos_token_id=ids["<|im_end|>"], pad_token_id=ids["<|endoftext|>"])
    return model


def save_start(folder: Path, model: str | None) -> str:
    """Saves the start of all trainers, so that each of them, and its reference model, loads its own copy."""
    if model is not None:
        return model
    small_model().save_pretrained(folder / "model")
    build_processor().save_pretrained(folder / "model")
    return str(folder / "model")


def processor_for(path: str, prompt: int) -> ProcessorMixin:
    """The processor, with images sized to leave about a tenth of the prompt for text."""
    processor = AutoProcessor.from_pretrained(path, padding_side="left")
    edge = processor.image_processor.patch_size * processor.image_processor.merge_size
    pixels = int(prompt * 0.85) * edge**2
    processor.image_processor.size = {"shortest_edge": min(3136, pixels), "longest_edge": pixels}
    return processor


def photographs(folder: Path, count: int) -> list[str]:
    """Writes JPEG files somewhat like photographs: smooth areas and grain."""
    paths = []
    for number in range(count):
        rng = np.random.default_rng(number)
        coarse = PILImage.fromarray(rng.integers(30, 226, (6, 8, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize(PHOTOGRAPH, PILImage.Resampling.BICUBIC)).astype(int)
        grain = rng.integers(-12, 13, smooth.shape)
        path = folder / f"photograph-{number}.jpg"
        PILImage.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)).save(path, quality=95)
        paths.append(str(path))
    return paths


def rows_of(prompt: int, processor: ProcessorMixin, paths: list[str]) -> Dataset:
    """A row an image, prompts of exactly `prompt` tokens: the question is filled up with digits, one token each."""

    def length(question: str) -> int:
        messages = prepare_multimodal_messages(
            [{"role": "user", "content": question}], images=[PILImage.open(paths[0])]
        )
        tokens = processor.apply_chat_template([messages], add_generation_prompt=True, tokenize=True, return_dict=True)
        return len(tokens["input_ids"][0])

    question = QUALITY_PROMPT if length(QUALITY_PROMPT) <= prompt else "Rate."
    missing = prompt - length(question)
    filled = question + ("\n" + "7" * (missing - 1) if missing > 0 else "")
    if length(filled) != prompt:
        raise ValueError(f"A prompt of {prompt} tokens can't be made: it has {length(filled)}; try another length.")
    prompts = [[{"role": "user", "content": filled}]] * len(paths)
    data = {"prompt": prompts, "image": paths, "image_id": paths, "mos": [3.0] * len(paths)}
    return Dataset.from_dict(data).cast_column("image", Image())


def constant_reward(completions, **kwargs) -> list[float]:
    """Differs within a group, so that there is something to learn."""
    return [float(number) for number, _ in enumerate(completions)]


def build(variant: str, path: str, data, processor, completion: int, group: int, beta: float, device: str, out: str):
    """One of `VARIANTS`: TRL's trainer, ours with uncertainty weights, ours with the whole method."""
    settings = {
        "output_dir": out,
        "per_device_train_batch_size": group,
        "num_generations": group,
        "gradient_accumulation_steps": 1,
        "max_completion_length": completion,
        "generation_kwargs": {"min_new_tokens": completion},
        "beta": beta,
        "loss_type": "grpo",
        "gradient_checkpointing": False,
        "bf16": device != "cpu",
        "use_cpu": device == "cpu",
        "report_to": "none",
        "disable_tqdm": True,
        "model_init_kwargs": {"dtype": "bfloat16" if device != "cpu" else "float32"},
    }
    if variant != "trl_grpo":
        settings |= {"shared_prefix": "on"} | (_OFF if variant == "ours_grpo" else {})
    config, trainer = (GRPOConfig, GRPOTrainer) if variant == "trl_grpo" else (HawkeyeGRPOConfig, HawkeyeGRPOTrainer)
    built = trainer(
        model=path,
        reward_funcs=[constant_reward],
        args=config(**settings),
        train_dataset=data,
        processing_class=processor,
    )
    built.current_gradient_accumulation_steps = 1
    built.model.train()
    return built


def load_config(path: str) -> Qwen2_5_VLConfig:
    """The configuration alone, for the bound."""
    config = AutoConfig.from_pretrained(path)
    if not isinstance(config, Qwen2_5_VLConfig):
        raise ValueError(f"{path} is a {config.model_type}: operations are counted for qwen2_5_vl alone.")
    return config
