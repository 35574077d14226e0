"""Off equals stock GRPO, and the loss does not depend on how a batch is cut into micro-batches and ranks."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig

from harness import OFF, ON, largest_difference, relative_difference, run
from launch import in_processes

LORA = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
GRADIENT_ONLY = {"optim": "sgd", "max_grad_norm": 0.0, "num_generations": 8}


def vowel_reward(completions, **kwargs):
    """Differs among the gibberish that a random policy writes."""
    return [float(sum(letter in "aeiou0123" for letter in c[0]["content"])) for c in completions]


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "bnpo", "dr_grpo"])
@pytest.mark.parametrize("peft_config", [None, LORA], ids=["full", "lora"])
def test_off_equals_stock_bit_for_bit(tmp_path, loss_type, peft_config):
    # sampled rollouts: our hooks must not touch the random numbers either
    options = {"scripted": None, "reward_funcs": [vowel_reward], "loss_type": loss_type, "max_steps": 3}
    options |= {"peft_config": peft_config, "temperature": 0.7}
    stock = run(tmp_path, stock=True, **options)
    ours = run(tmp_path, **OFF, **options)
    assert largest_difference(ours.parameters, stock.parameters) == 0.0
    trained = [name for name, gradient in stock.gradients[0].items() if gradient.abs().max() > 0]
    assert trained  # the comparison is worth something


def test_on_differs_from_stock(tmp_path):
    stock, ours = run(tmp_path, stock=True), run(tmp_path, **ON)
    assert largest_difference(ours.parameters, stock.parameters) > 1e-5


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo"])
def test_loss_does_not_depend_on_the_cut(tmp_path, loss_type):
    runs = [
        run(
            tmp_path,
            loss_type=loss_type,
            per_device_train_batch_size=b,
            gradient_accumulation_steps=8 // b,
            **ON,
            **GRADIENT_ONLY,
        )
        for b in (8, 4, 2, 1)
    ]
    whole = runs[0]
    for cut in runs[1:]:
        assert cut.logs[0]["loss"] == pytest.approx(whole.logs[0]["loss"], rel=1e-5)
        assert relative_difference(cut.gradients[0], whole.gradients[0]) < 1e-5


def test_bnpo_is_cut_as_stock_cuts_it(tmp_path):
    # TRL normalises bnpo per micro-batch, so a cut changes the loss: only equality with stock can be asked for
    options = {"loss_type": "bnpo", "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    stock = run(tmp_path, stock=True, **options, **GRADIENT_ONLY)
    ours = run(tmp_path, **OFF, **options, **GRADIENT_ONLY)
    assert largest_difference(ours.gradients[0], stock.gradients[0]) == 0.0


@pytest.mark.parametrize(
    "loss_type", ["dapo", *(pytest.param(name, marks=pytest.mark.slow) for name in ("grpo", "dr_grpo"))]
)
def test_one_process_equals_two_with_a_group_across_ranks(tmp_path, loss_type):
    whole = run(tmp_path, loss_type=loss_type, **ON, **GRADIENT_ONLY)
    options = {"loss_type": loss_type, "per_device_train_batch_size": 4, **ON, **GRADIENT_ONLY}
    halves = run_in_two_processes(tmp_path, options)
    assert halves["world_size"] == 2
    assert halves["wrapper"] == "DistributedDataParallel"
    assert halves["loss"] == pytest.approx(whole.logs[0]["loss"], rel=1e-5)
    assert halves["weight_mean"] == pytest.approx(whole.logs[0]["uncertainty/weight_mean"], rel=1e-6)
    assert relative_difference(halves["gradients"], whole.gradients[0]) < 1e-5


def run_in_two_processes(folder: Path, options: dict) -> dict:
    """Runs one step in two gloo processes and returns what rank 0 saw."""
    result = folder / "two.pt"
    in_processes("step", result, json.dumps(options))
    return torch.load(result, weights_only=True)
