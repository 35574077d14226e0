"""Short real trainings of tiny policies, and what a test wants to know of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from q_hawkeye_trl import HawkeyeGRPOConfig, HawkeyeGRPOTrainer
from q_hawkeye_trl.rewards import accuracy_reward, format_reward
from tiny_models import scripted_rollouts, tiny_dataset, tiny_policy

OFF = {
    "uncertainty_alpha": 0.0,
    "perception_gamma": 0.0,
    "entropy_original_coef": 0.0,
    "entropy_degraded_coef": 0.0,
}
ON = {
    "uncertainty_alpha": 1.0,
    "perception_gamma": 0.05,
    "entropy_original_coef": 0.02,
    "entropy_degraded_coef": 0.03,
}
ANSWERS = (
    "<think>blur</think><answer>1.50</answer>",
    "<think>noise and blur</think><answer>4.25</answer>",
    "<answer>3</answer>",
    "<think>no answer at all",
    "<think>fine</think><answer>3.80</answer>",
    "<think>dark</think> <answer>2.2</answer>",
    "<think>sharp, bright, clean</think><answer>4.9</answer>",
    "<think>odd</think><answer>7</answer>",
)


class GradientRecorder(TrainerCallback):
    """Keeps the whole gradient of each optimizer step."""

    def __init__(self):
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        self.steps.append(gradients)


@dataclass
class Run:
    """Result of a training: the trainer, its parameters, gradients by step and logs by step."""

    trainer: Any
    parameters: dict[str, torch.Tensor]
    gradients: list[dict[str, torch.Tensor]]
    logs: list[dict[str, float]]


def build_trainer(
    output_dir: Path | str,
    *,
    stock: bool = False,
    trainer_class: type | None = None,
    scripted: Any = ANSWERS,
    **options,
):
    """
    Builds a trainer over a tiny Qwen2.5-VL. Options that the trainer's constructor takes go there, all others into the
    config.
    """
    given = {name: options.pop(name, None) for name in ("model", "train_dataset", "reward_funcs", "processing_class")}
    trainer_options = {
        name: options.pop(name)
        for name in ("peft_config", "callbacks", "eval_dataset", "score_fn", "tools", "environment_factory")
        if name in options
    }
    model, processor = given["model"], given["processing_class"]
    if model is None:
        model, processor = tiny_policy("qwen2_5_vl")
    settings = {
        "output_dir": str(output_dir),
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "num_generations": 4,
        "per_device_train_batch_size": 8,
        "max_completion_length": 24,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "max_steps": 1,
        "gradient_checkpointing": False,
    }
    if not stock:
        settings["shared_prefix"] = "off"  # as in TRL; tests/test_shared_prefix.py compares sharing with it
    config_class = GRPOConfig if stock else HawkeyeGRPOConfig
    trainer_class = trainer_class or (GRPOTrainer if stock else HawkeyeGRPOTrainer)
    if scripted is not None:
        trainer_options["rollout_func"] = scripted_rollouts(processor, scripted)
    return trainer_class(
        model=model,
        processing_class=processor,
        reward_funcs=given["reward_funcs"] or [accuracy_reward, format_reward],
        args=config_class(**settings | options),
        train_dataset=given["train_dataset"] or tiny_dataset(4),
        **trainer_options,
    )


def run(output_dir: Path | str, **options) -> Run:
    """Trains as `build_trainer` says."""
    recorder = GradientRecorder()
    trainer = build_trainer(output_dir, callbacks=[recorder, *options.pop("callbacks", [])], **options)
    trainer.train()
    parameters = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    logs = [line for line in trainer.state.log_history if "loss" in line]
    return Run(trainer, parameters, recorder.steps, logs)


def largest_difference(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    """Largest absolute difference over all entries; the names must agree."""
    assert left.keys() == right.keys()
    return max((left[name] - right[name]).abs().max().item() for name in left)


def relative_difference(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    """Norm of the difference over the norm of `right`, all entries together."""
    assert left.keys() == right.keys()
    difference = sum((left[name].double() - right[name].double()).square().sum() for name in left).sqrt()
    return (difference / sum(right[name].double().square().sum() for name in right).sqrt()).item()
