"""Trainings and evaluations that try to make the ranks run different numbers of forwards."""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from distributed_cases import SGD, ZERO, ForwardCounter, build, collectives, forget_backend, wrapper_of
from harness import ANSWERS, ON
from q_hawkeye_trl.evaluation.validation import Validation
from tiny_models import tiny_dataset, tiny_policy

# every eighth token ends an answer, so that the ranks' longest answers differ
SAMPLED = {
    "scripted": None,
    "max_completion_length": 24,
    "generation_kwargs": {"eos_token_id": list(range(0, 300, 8))},
}
VIEWLESS = {"perception_gamma": 0.05, "entropy_degraded_coef": 0.0}


def views_on_one_rank() -> Dataset:
    rows = tiny_dataset(4, degraded=True)
    views = [None if index % 2 else view for index, view in enumerate(rows["degraded_image"])]
    return rows.map(lambda row, index: {"degraded_image": views[index]}, with_indices=True, features=rows.features)


def images_on_one_rank() -> Dataset:
    rows = tiny_dataset(4)
    pictures = [[] if index % 2 else [picture] for index, picture in enumerate(rows["image"])]
    return Dataset.from_dict({**{name: rows[name] for name in ("prompt", "mos")}, "images": pictures})


def answers(first: str, second: str):
    """All rollouts of the first rank's prompts say one thing, those of the second one's another."""
    return lambda row, rollout: second if row % 2 else first


def endless(processor: Any):
    """Completions without an end token on the second rank, as when the longest length cuts them off."""

    def rollout(prompts: list, trainer: Any) -> dict[str, list]:
        tokenizer, here = processor.tokenizer, trainer.accelerator.process_index
        ids = tokenizer.encode("<think>blur and", add_special_tokens=False) + [tokenizer.eos_token_id] * (here == 0)
        return {
            "prompt_ids": trainer._tokenize_prompts(prompts)[0],
            "completion_ids": [ids] * len(prompts),
            "logprobs": [[0.0] * len(ids)] * len(prompts),
        }

    return rollout


STRAYS: dict[str, dict[str, Any]] = {
    "one rank without degraded views": {"train_dataset": views_on_one_rank},
    "one rank without a score": {"scripted": answers(ANSWERS[0], "no score")},
    "one rank says nothing": {"scripted": answers(ANSWERS[0], "")},
    "one rank says nothing, shared prompts": {"scripted": answers(ANSWERS[0], ""), "shared_prefix": "on"},
    "one rank cut off and masked": {"endless": True, "mask_truncated_completions": True},
    "one rank cut off and masked, shared prompts": {
        "endless": True,
        "mask_truncated_completions": True,
        "shared_prefix": "on",
    },
    "sampled lengths": SAMPLED,
    "sampled lengths, shared prompts": {**SAMPLED, "shared_prefix": "on"},
    "five prompts, two a step": {"rows": 5, "max_steps": 4},
    "gamma ends in mid-epoch": {
        **VIEWLESS,
        "rows": 8,
        "max_steps": 4,
        "perception_gamma_schedule": "linear",
        "perception_gamma_zero_epoch": 0.5,
    },
    "gamma ends within a generation window": {
        **VIEWLESS,
        "rows": 8,
        "max_steps": 4,
        "num_iterations": 4,
        "perception_gamma_schedule": "linear",
        "perception_gamma_zero_epoch": 0.5,
    },
    "evaluation, three prompts": {"max_steps": 1, "eval_rows": 3, "num_generations_eval": 2},
    "evaluation, one prompt": {"max_steps": 1, "eval_rows": 1, "num_generations_eval": 2},
}
IMAGES_ON_ONE_RANK = "images on one rank"
"""Refused, not run."""


def go_astray(folder: Path, name: str, *, zero: dict | None = None) -> dict[str, Any]:
    """Train two steps, evaluate if there are rows for it, and return what this rank ran."""
    stray = {"train_dataset": images_on_one_rank} if name == IMAGES_ON_ONE_RANK else STRAYS[name]
    options = {"max_steps": 2, "shuffle_dataset": False, "per_device_train_batch_size": 4, **SGD, **ON, **stray}
    rows, eval_rows = options.pop("rows", 4), options.pop("eval_rows", 0)
    validation, cut_off = options.pop("validation", None), options.pop("endless", False)
    options["train_dataset"] = options["train_dataset"]() if "train_dataset" in options else tiny_dataset(rows)
    if eval_rows:
        options |= {"eval_dataset": tiny_dataset(eval_rows, seed=1), "per_device_eval_batch_size": 2}
    if zero is not None:
        options["deepspeed"] = {**ZERO, "zero_optimization": zero}
    trainer = build(folder, options)
    if cut_off:
        trainer.rollout_func = endless(tiny_policy()[1])
    if validation is not None:
        trainer.validation = Validation(**validation)
    counter, before = ForwardCounter(trainer), collectives()
    trainer.train()
    seen: dict[str, Any] = {"training": dict(counter.counts)}
    if eval_rows:
        counter.counts.clear()
        seen["figures"] = trainer.evaluate()
        seen["evaluation"] = dict(counter.counts)
    seen |= {
        "world_size": trainer.accelerator.num_processes,
        "wrapper": wrapper_of(trainer),
        "collectives": collectives() - before,
        "steps": [line for line in trainer.state.log_history if "loss" in line],
    }
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
    del trainer, counter
    forget_backend()
    return seen
