"""Saves, resumes and reloads under one DeepSpeed backend, as one of several processes; rank 0 saves the parameters.
Run by test_distributed_checkpoints."""

import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

import distributed_cases as cases
from tiny_models import save_policy

STEPS, SAVED_AT = 4, 2
FEATURES = {"whole": {}, "LoRA": {"peft_config": cases.LORA}}


def run(folder: Path, backend: str, feature: dict[str, Any], output: str, **options: Any) -> dict[str, Any]:
    """Trains to the end, from the start or from a checkpoint, and saves the model."""
    checkpoint = options.pop("checkpoint", None)
    policy = options.pop("policy", "policy")
    settings = {**cases.ADAMW, **feature, "max_steps": STEPS, "save_strategy": "steps", "save_steps": SAVED_AT}
    settings = cases.options_of(settings, 2, cases.BACKENDS[backend])
    trainer = cases.build(folder, settings, policy=policy, output=output, by_name=True)
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(str(folder / output / "final"))
    seen = {
        "world_size": trainer.accelerator.num_processes,
        "wrapper": cases.wrapper_of(trainer),
        "steps": [line["step"] for line in trainer.state.log_history if "loss" in line],
        "losses": [line["loss"] for line in trainer.state.log_history if "loss" in line],
        "parameters": cases.whole_parameters(trainer),
    }
    del trainer
    cases.forget_backend()
    return seen


def main(place: str, backend: str) -> None:
    state = PartialState(cpu=True)
    folder, seen = Path(place), {}
    if state.is_main_process:
        cases.prepare(folder)
        save_policy("qwen2_5_vl", folder / "other", seed=1)
    state.wait_for_everyone()
    for name, feature in FEATURES.items():
        output = f"{backend}-{name}"
        seen[name] = run(folder, backend, feature, output)
        # an adapter holds no base model: that must be the same; a whole model is resumed over other weights
        policy = "policy" if "peft_config" in feature else "other"
        checkpoint = str(folder / output / f"checkpoint-{SAVED_AT}")
        seen[f"{name}, resumed"] = run(
            folder, backend, feature, f"{output}-resumed", policy=policy, checkpoint=checkpoint
        )
    if state.is_main_process:
        torch.save(seen, folder / f"{backend}.pt")
    state.wait_for_everyone()
    cases.leave(state)


if __name__ == "__main__":
    main(*sys.argv[1:])
