"""The trainings that are held against one process: by feature and backend; run by one process and by several alike."""

import gc
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedType
from datasets import Dataset
from peft import LoraConfig
from torch.distributed.tensor import DTensor
from transformers import AutoModelForImageTextToText
from transformers.integrations import unset_hf_deepspeed_config

from harness import OFF, ON, build_trainer, largest_difference
from launch import in_processes
from q_hawkeye_trl.process_exit import end_processes
from q_hawkeye_trl.shared_prefix.forward import unwrap_policy
from tiny_models import save_policy, tiny_dataset, tiny_policy

ZERO = {
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "zero_allow_untested_optimizer": True,  # SGD
    "zero_force_ds_cpu_optimizer": False,  # torch's own optimizers with offload, so that all backends have the same
}
SAVED = {"stage3_gather_16bit_weights_on_model_save": True}
OFFLOAD = {"offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}
BACKENDS: dict[str, dict | None] = {
    "DDP": None,
    "ZeRO-1": {"stage": 1},
    "ZeRO-2": {"stage": 2},
    "ZeRO-3": {"stage": 3, **SAVED},
    "ZeRO-3 offload": {"stage": 3, **SAVED, **OFFLOAD},
}
"""DeepSpeed's `zero_optimization` by backend."""

STEPS = 3
SGD = {"optim": "sgd", "max_grad_norm": 0.0, "learning_rate": 0.1}
ADAMW = {"optim": "adamw_torch", "max_grad_norm": 0.0, "learning_rate": 1e-3}
LORA = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)


def short_then_long(row: int, rollout: int) -> str:
    """The prompts of the first rank get answers of a few tokens, those of the second one long ones."""
    text = f"<answer>{1 + 0.5 * rollout:.1f}</answer>"
    return f"<think>{'blur and noise ' * (rollout + 1)}</think>{text}" if row % 2 else text


def every_other_without_view() -> Dataset:
    """With two prompts a step and no shuffling the second rank never has a degraded view."""
    rows = tiny_dataset(6, degraded=True)
    views = [None if index % 2 else view for index, view in enumerate(rows["degraded_image"])]
    return rows.map(lambda row, index: {"degraded_image": views[index]}, with_indices=True, features=rows.features)


FEATURES: dict[str, dict[str, Any]] = {
    "a group across ranks": {"num_generations": 8},
    "a group across ranks, grpo": {"num_generations": 8, "loss_type": "grpo"},
    "uneven completion lengths": {"scripted": short_then_long},
    "gradient accumulation": {"accumulation": 4},
    "gradient clipping": {"max_grad_norm": 0.5},
    "LoRA": {"peft_config": LORA},
    "degraded branch off": {"perception_gamma": 0.0, "entropy_degraded_coef": 0.0},
    "degraded branch without gradient": {"perception_gradient": "original", "entropy_degraded_coef": 0.0},
    "nothing but GRPO": OFF,
    "rows without a degraded view": {"train_dataset": every_other_without_view, "shuffle_dataset": False},
    "num_iterations 2": {"num_iterations": 2},
    "beta 0.04": {"beta": 0.04},
    "LoRA, beta 0.04": {"peft_config": LORA, "beta": 0.04},
    "activation checkpointing": {"activation_checkpointing": True},
    "shared prompts": {"shared_prefix": "on"},
    "shared prompts, all at once": {
        "shared_prefix": "on",
        "scripted": short_then_long,
        "train_dataset": every_other_without_view,
        "batch": 16,
        "accumulation": 2,
        "num_iterations": 2,
        "beta": 0.04,
    },
    "AdamW": ADAMW,
}
"""Options of a training beyond `ON` and SGD: `batch` is the rollouts per step (8); the rest goes to the harness."""


def options_of(feature: dict[str, Any], processes: int, zero: dict | None) -> dict[str, Any]:
    """Return the harness options of one of several processes; a single process runs row by row, as TRL does."""
    options = {"max_steps": STEPS, **SGD, **ON, **feature}
    steps = options.pop("accumulation", 1)
    options["gradient_accumulation_steps"] = steps
    options["per_device_train_batch_size"] = options.pop("batch", 8) // steps // processes
    if processes == 1:
        options["shared_prefix"] = "off"
    if callable(options.get("train_dataset")):
        options["train_dataset"] = options["train_dataset"]()
    if zero is not None:
        options["deepspeed"] = {**ZERO, "zero_optimization": zero}
    return options


FSDP2 = {
    "fsdp": True,
    "fsdp_config": {
        "version": 2,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "transformer_layer_cls_to_wrap": ["Qwen2_5_VLDecoderLayer", "Qwen2_5_VLVisionBlock"],
    },
}
FSDP2_FEATURES = (
    "a group across ranks",
    "uneven completion lengths",
    "gradient accumulation",
    "rows without a degraded view",
    "num_iterations 2",
    "shared prompts",
)


def make_accelerate_shard_on_the_cpu() -> None:
    """Make accelerate use FSDP on a CPU, where it silently falls back to plain data parallelism."""
    initialise = AcceleratorState.__init__

    def initialised(self, *args, fsdp_plugin=None, **kwargs):
        initialise(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = initialised


def prepare(folder: Path) -> None:
    """Saves the policy that every training starts from; TRL loads the reference model from its folder."""
    save_policy("qwen2_5_vl", folder / "policy")


def forget_backend() -> None:
    """Reset the state that accelerate and transformers keep of a trainer's backend."""
    gc.collect()
    unset_hf_deepspeed_config()
    AcceleratorState._reset_state()
    GradientState._reset_state()


def leave(state: PartialState) -> None:
    """End this process as `end_processes` does, once all ranks are here."""
    state.wait_for_everyone()
    ended = {"num_processes": state.num_processes, "device": state.device}
    end_processes(SimpleNamespace(**ended, end_training=state.destroy_process_group))


class ForwardCounter:
    """Counts the forwards of the policy, its decoder and vision tower and of the reference model, on this rank."""

    def __init__(self, trainer: Any):
        self.counts: Counter[str] = Counter()
        policy = unwrap_policy(trainer.model)
        parts = {
            "policy": trainer.accelerator.unwrap_model(trainer.model),
            "decoder": policy.get_decoder(),
            "vision": policy.base_model.visual,
            "reference": trainer.ref_model,
        }
        for name, part in parts.items():
            if part is not None:
                part.register_forward_pre_hook(self._count(name))

    def _count(self, name: str) -> Callable:
        def count(module, args):
            self.counts[name] += 1

        return count


def collectives() -> int:
    """Collective operations of this rank so far: gloo numbers them."""
    if not torch.distributed.is_initialized():
        return 0
    return torch.distributed.distributed_c10d._get_default_group()._get_sequence_number_for_group()


def whole_parameters(trainer: Any) -> dict[str, torch.Tensor]:
    """Copies of the policy's parameters, those that ZeRO-3 or FSDP2 keep in parts gathered."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    context: Any = nullcontext()
    if trainer.is_deepspeed_enabled and trainer.model_wrapped.zero_optimization_stage() == 3:
        import deepspeed

        context = deepspeed.zero.GatheredParameters(list(model.parameters()))
    with context:
        return {name: _whole(parameter.detach()).cpu().clone() for name, parameter in model.named_parameters()}


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def wrapper_of(trainer: Any) -> str:
    """The wrapper's class, with what DeepSpeed says it runs: the stage, and whether it offloads."""
    wrapped = trainer.model_wrapped
    name = type(wrapped).__name__
    if not trainer.is_deepspeed_enabled:
        return name
    offload = ", offload" if wrapped.zero_cpu_offload() and wrapped.zero_offload_param() is not None else ""
    return f"{name}, stage {wrapped.zero_optimization_stage()}{offload}"


def build(
    folder: Path, options: dict[str, Any], *, policy: str = "policy", output: str = "run", by_name: bool = False
):
    """Builds the trainer from a saved policy; `by_name` lets TRL load it, which under ZeRO-3 loads it in parts."""
    if by_name:
        model, options = str(folder / policy), {**options, "model_init_kwargs": {"dtype": "float32"}}
    else:
        model = AutoModelForImageTextToText.from_pretrained(folder / policy, dtype=torch.float32)
    return build_trainer(folder / output, model=model, processing_class=tiny_policy()[1], **options)


def train(folder: Path, feature: dict[str, Any], *, processes: int = 1, zero: dict | None = None) -> dict[str, Any]:
    """Train and return what this rank saw."""
    trainer = build(folder, options_of(feature, processes, zero))
    counter, before = ForwardCounter(trainer), collectives()
    trainer.train()
    seen = {
        "world_size": trainer.accelerator.num_processes,
        "wrapper": wrapper_of(trainer),
        "forwards": dict(counter.counts),
        "collectives": collectives() - before,
        "losses": [line["loss"] for line in trainer.state.log_history if "loss" in line],
        "parameters": whole_parameters(trainer),
    }
    del trainer, counter
    forget_backend()
    return seen


SAVE_STEPS, SAVED_AT = 4, 2


def train_and_save(
    folder: Path,
    backend: str,
    feature: dict[str, Any],
    output: str,
    *,
    policy: str = "policy",
    checkpoint: str | None = None,
) -> dict[str, Any]:
    """Train four steps on two ranks, from the start or from a checkpoint, and save the model."""
    settings = {**ADAMW, **feature, "max_steps": SAVE_STEPS, "save_strategy": "steps", "save_steps": SAVED_AT}
    trainer = build(folder, options_of(settings, 2, BACKENDS[backend]), policy=policy, output=output, by_name=True)
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(str(folder / output / "final"))
    steps = [line for line in trainer.state.log_history if "loss" in line]
    seen = {
        "world_size": trainer.accelerator.num_processes,
        "wrapper": wrapper_of(trainer),
        "steps": [line["step"] for line in steps],
        "losses": [line["loss"] for line in steps],
        "parameters": whole_parameters(trainer),
    }
    del trainer
    forget_backend()
    return seen


def in_two_processes(folder: Path, backend: str, features: list[str], timeout: float = 240) -> list[dict[str, dict]]:
    """Trains with these features in one launch; what each of the two ranks saw, by feature."""
    in_processes("features", folder, backend, *features, timeout=timeout)
    return [torch.load(folder / f"{backend}-{rank}.pt", weights_only=True) for rank in (0, 1)]


def deviations(seen: dict[str, Any], expected: dict[str, Any]) -> dict[str, float]:
    """Largest absolute differences of the losses of all steps and of the parameters after the last one."""
    losses = max(abs(ours - theirs) for ours, theirs in zip(seen["losses"], expected["losses"], strict=True))
    return {"loss": losses, "weight": largest_difference(seen["parameters"], expected["parameters"])}
