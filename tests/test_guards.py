"""Losses, gradients and rewards that are not finite, and reward functions that fail, end a run on all ranks."""

import itertools
import json
import math
import os
import signal
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial
from transformers import TrainerCallback

import q_hawkeye_trl.hawkeye_method as trainer_module
from harness import OFF, ON, build_trainer, largest_difference
from launch import in_processes
from q_hawkeye_trl.checkpointing.checkpoint_files import last_complete_checkpoint
from q_hawkeye_trl.errors import TrainingError
from q_hawkeye_trl.guards import check_gradient_norm


def failing_reward(kind: str, step: int):
    """A reward that works but for one step, in which it does what `kind` says, to its third row if to a row."""

    def counted(completions, trainer_state, **kwargs):
        rewards: list = [float(index % 3) for index in range(len(completions))]
        if trainer_state.global_step + 1 != step:
            return rewards
        if kind == "raises":
            raise KeyError("no such score")
        if kind in ("freezes", "dies"):
            os.kill(os.getpid(), signal.SIGSTOP if kind == "freezes" else signal.SIGKILL)
        if kind == "signal":
            os.kill(os.getpid(), signal.SIGTERM)
        if kind in ("nan", "inf", "None"):
            rewards[2] = None if kind == "None" else float(kind)
        return rewards[1:] if kind == "short" else rewards

    return counted


def spoil_loss(trainer, step: int, value: float = math.nan) -> None:
    """Spoils the hidden states of one row in the training forwards of a step."""

    def spoil(module, args, output):
        if trainer.state.global_step + 1 == step and torch.is_grad_enabled():
            hidden = output[0] if isinstance(output, tuple) else output
            spoiled = hidden.clone()
            spoiled[0] = value
            return (spoiled, *output[1:]) if isinstance(output, tuple) else spoiled
        return output

    trainer.model.model.language_model.layers[-1].register_forward_hook(spoil)


def spoil_gradient(trainer, step: int, value: float = math.inf) -> None:
    """Leaves the loss alone and spoils a gradient."""
    parameter = trainer.model.model.language_model.layers[0].mlp.up_proj.weight
    parameter.register_hook(lambda grad: grad + value if trainer.state.global_step + 1 == step else grad)


class KeepWeights(TrainerCallback):
    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("method", [OFF, ON])
def test_a_loss_that_is_not_finite_stops_before_the_weights_change(tmp_path, method, accumulation):
    keep = KeepWeights()
    size = {"per_device_train_batch_size": 8 // accumulation, "gradient_accumulation_steps": accumulation}
    options = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1, "logging_nan_inf_filter": True}
    trainer = build_trainer(tmp_path, callbacks=[keep], **options, **size, **method)
    spoil_loss(trainer, 2)
    with pytest.raises(TrainingError, match=r"Step 2: the loss is not finite \(policy loss, per_token_logps"):
        trainer.train()
    assert largest_difference(dict(trainer.model.named_parameters()), keep.weights) == 0
    assert last_complete_checkpoint(tmp_path).name == "checkpoint-1"


def test_the_terms_are_named(tmp_path):
    trainer = build_trainer(tmp_path, **ON)
    spoil_loss(trainer, 1, math.inf)
    with pytest.raises(TrainingError) as error:
        trainer.train()
    for name in ("perception/entropy_original", "perception/kl", "perception/entropy_degraded", "Lower the learning"):
        assert name in str(error.value)
    assert "advantages" not in str(error.value)


@pytest.mark.parametrize(("value", "max_grad_norm"), [(math.inf, 1.0), (math.nan, 0.0), (math.inf, 0.0)])
def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path, value, max_grad_norm):
    keep = KeepWeights()
    trainer = build_trainer(tmp_path, callbacks=[keep], max_steps=3, max_grad_norm=max_grad_norm, **OFF)
    spoil_gradient(trainer, 2, value)
    with pytest.raises(TrainingError, match=r"Step 2: the gradient norm is not finite"):
        trainer.train()
    assert largest_difference(dict(trainer.model.named_parameters()), keep.weights) == 0


@pytest.mark.parametrize("bad_batch", [0, 2, 3])
def test_any_micro_batch_stops_the_step_and_the_ranks_meet_once_for_it(tmp_path, monkeypatch, bad_batch):
    meetings = []
    check = trainer_module.check_finite
    monkeypatch.setattr(trainer_module, "check_finite", lambda *args: (meetings.append(args[0]), check(*args)))
    size = {"per_device_train_batch_size": 2, "num_generations": 2, "gradient_accumulation_steps": 4}
    trainer = build_trainer(tmp_path, max_steps=3, **size, **OFF)
    forwards = itertools.count()

    def spoil(module, args, output):
        return output * math.nan if torch.is_grad_enabled() and next(forwards) == 4 + bad_batch else output

    trainer.model.model.language_model.norm.register_forward_hook(spoil)
    with pytest.raises(TrainingError, match=r"Step 2: the loss is not finite \(policy loss, per_token_logps"):
        trainer.train()
    assert meetings == ["loss", "loss"]


@pytest.mark.parametrize(
    ("norm", "stops"), [(None, False), (0.0, False), (2.5, False), (math.inf, True), (-1.0, True)]
)
def test_what_deepspeed_tells_as_the_norm(norm, stops):
    # None without ZeRO, or with compute_grad_norm false; -1 for NaN and infinity under bf16
    expected = pytest.raises(TrainingError, match=r"Step 7: the gradient norm is not") if stops else nullcontext()
    with expected:
        check_gradient_norm(norm, Accelerator(cpu=True), 7)


def test_the_norm_of_sharded_gradients_is_read_whole():
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=torch.distributed.HashStore())
    try:
        mesh = init_device_mesh("cpu", (1,))
        for norm, stops in ((2.5, False), (math.nan, True)):
            sharded = DTensor.from_local(torch.tensor(norm), mesh, [Partial()])
            expected = pytest.raises(TrainingError) if stops else nullcontext()
            with expected:
                check_gradient_norm(sharded, Accelerator(cpu=True), 1)
    finally:
        torch.distributed.destroy_process_group()


FAULTS = {
    "raises": r"Step 2: the reward function counted raised KeyError: 'no such score' \(.*test_guards.py, line \d+\)",
    "nan": r"counted returned nan for row 2 \(image_id 'picture-0-\d'\); return a finite number, or None",
    "inf": r"counted returned inf for row 2",
    "short": r"counted returned 7 rewards for 8 completions",
}


@pytest.mark.parametrize("kind", FAULTS)
@pytest.mark.parametrize("asynchronous", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_reward_function_that_fails_is_named(tmp_path, kind, asynchronous):
    function = failing_reward(kind, 2)

    async def counted(**kwargs):
        return function(**kwargs)

    trainer = build_trainer(tmp_path, max_steps=3, reward_funcs=[counted if asynchronous else function])
    with pytest.raises(TrainingError, match=FAULTS[kind]):
        trainer.train()
    assert trainer.state.global_step == 1
    assert trainer.reward_funcs[0] in (counted, function)


def test_none_is_a_reward(tmp_path):
    trainer = build_trainer(tmp_path, max_steps=3, reward_funcs=[failing_reward("None", 2)])
    trainer.train()
    assert trainer.state.global_step == 3


def two_processes(folder: Path, kind: str, **how) -> tuple[list[dict], str]:
    """How each rank ended when the second one met a fault, and the errors of the launcher."""
    _, errors = in_processes("guards", folder, kind, **how)
    seen = [json.loads(path.read_text()) for path in sorted(folder.glob("rank-*.json"))]
    assert all(each["world_size"] == 2 for each in seen)
    return seen, errors


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("raises", "Step 2: rank 1: the reward function counted raised KeyError"),
        ("nan", "Step 2: rank 1: the reward function counted returned nan for row 2"),
        ("loss", "Step 2: the loss is not finite on 1 of 2 ranks (policy loss"),
        ("gradient", "Step 2: the gradient norm is not finite on 2 of 2 ranks"),
    ],
)
def test_both_ranks_raise_the_error_of_one(tmp_path, kind, message):
    seen, _ = two_processes(tmp_path, kind)
    assert len(seen) == 2
    for each in seen:
        assert message in each["ending"]
        assert each["step"] == 1
        assert each["seconds"] < 15
    assert seen[0]["weights"] == seen[1]["weights"]
    assert math.isfinite(seen[0]["weights"])
    assert last_complete_checkpoint(tmp_path / "run").name == "checkpoint-1"


@pytest.mark.slow
def test_the_signal_of_one_rank_stops_both_after_the_same_step(tmp_path):
    seen, _ = two_processes(tmp_path, "signal")
    assert len(seen) == 2
    for each in seen:
        assert each["ending"].startswith("TrainingInterrupted: Received SIGTERM; the run stopped after step 2.")
        assert each["step"] == 2
    assert last_complete_checkpoint(tmp_path / "run").name == "checkpoint-2"


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "seconds"), [("dies", 60), ("freezes", 120)])
def test_a_rank_that_dies_or_freezes_ends_the_run_in_time(tmp_path, kind, seconds):
    seen, errors = two_processes(tmp_path, kind, timeout=seconds, fails=True)
    assert "it ended" not in [each["ending"] for each in seen]
    if kind == "dies":
        assert "Signal 9 (SIGKILL) received" in errors
    else:
        assert len(seen) == 1  # the frozen one says nothing; the other waited for 20 seconds
        assert seen[0]["seconds"] > 20
        assert "imed out" in seen[0]["ending"]
    assert last_complete_checkpoint(tmp_path / "run").name == "checkpoint-1"
