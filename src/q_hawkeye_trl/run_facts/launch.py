"""The facts of one launch of a training: what it runs, on what, and on which data."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import torch

from .fingerprint import describe_data
from .machine import device_facts, git_state, package_versions, platform_facts
from .settings import changed_settings, hide_secrets, settings_of


def launch_facts(trainer: Any, settings: tuple = (), data: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """
    Collects the facts of a training that is about to begin. Environment variables are not among them, nor is anything
    that looks like a secret (see [`hide_secrets`]).

    Args:
        trainer ([`HawkeyeGRPOTrainer`]):
            Trainer, set up; a stock [`~trl.GRPOTrainer`] will do.
        settings (`tuple` of dataclass instances, *optional*):
            Further settings than `trainer.args`, e.g. the script's and [`~trl.ModelConfig`].
        data (`Mapping[str, Dataset]`, *optional*):
            Further data than the trainer's own, by use, e.g. `{"held_out": dataset}`.

    Returns:
        `dict`: Sections `started` (UTC), `resumed_at_step`, `versions`, `platform`, `git`, `device`, `processes`,
        `model`, `batch`, `seeds`, `data`, `settings` (all, by class and name) and `changed` (names of those that
        differ from their defaults, by class).
    """
    args = trainer.args
    every = (args, *settings)
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "resumed_at_step": trainer.state.global_step or None,
        "versions": package_versions(),
        "platform": platform_facts(),
        "git": git_state(),
        "device": device_facts(trainer.accelerator.device.type),
        "processes": _processes(trainer),
        "model": _model(trainer),
        "batch": _batch(trainer),
        "seeds": {
            "seed": args.seed,
            "data_seed": args.data_seed,
            "degradation_seed": getattr(args, "degradation_seed", None),  # stock GRPO has none
        },
        "data": {use: describe_data(rows) for use, rows in _data(trainer, data or {}).items()},
        "settings": {type(each).__name__: settings_of(each) for each in every},
        "changed": {type(each).__name__: changed_settings(each) for each in every},
    }


def _processes(trainer: Any) -> dict[str, Any]:
    state = trainer.accelerator.state
    initialized = torch.distributed.is_available() and torch.distributed.is_initialized()
    plugin = state.deepspeed_plugin
    return {
        "world_size": state.num_processes,
        "distributed_type": state.distributed_type.value,
        "backend": torch.distributed.get_backend() if initialized else None,
        "zero_stage": None if plugin is None else plugin.zero_stage,
        "mixed_precision": state.mixed_precision,
    }


def _model(trainer: Any) -> dict[str, Any]:
    model = trainer.accelerator.unwrap_model(trainer.model)
    config = model.config
    sizes = [(_true_size(p), p.requires_grad) for p in model.parameters()]
    shares = getattr(trainer, "_shares_prefix", None)
    return {
        "name": hide_secrets(config._name_or_path),
        "type": config.model_type,
        "parameters": sum(size for size, _ in sizes),
        "trainable": sum(size for size, trainable in sizes if trainable),
        "dtypes": sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters()}),
        "attention": config._attn_implementation,
        "shares_prompt": None if shares is None else shares["train"],
    }


def _true_size(parameter: torch.nn.Parameter) -> int:
    """Numbers in a parameter: ZeRO-3 leaves an empty tensor behind, and 4-bit weights are packed into wider ones."""
    if type(parameter).__name__ == "Params4bit":
        return parameter.numel() * 2 * parameter.element_size()
    return getattr(parameter, "ds_numel", parameter.numel())


def _batch(trainer: Any) -> dict[str, Any]:
    args = trainer.args
    rollouts = args.per_device_train_batch_size * args.gradient_accumulation_steps * trainer.accelerator.num_processes
    return {
        "rollouts_per_step": rollouts,
        "rollouts_per_prompt": trainer.num_generations,
        "prompts_per_step": rollouts / trainer.num_generations,
        "steps_per_generation": args.steps_per_generation,
        "num_iterations": args.num_iterations,
    }


def _data(trainer: Any, further: Mapping[str, Any]) -> dict[str, Any]:
    evaluated = trainer.eval_dataset
    parts = {"train": trainer.train_dataset}
    if isinstance(evaluated, Mapping):
        parts |= {f"validation/{name}": rows for name, rows in evaluated.items()}
    else:
        parts["validation"] = evaluated
    return {use: rows for use, rows in (parts | dict(further)).items() if rows is not None}
