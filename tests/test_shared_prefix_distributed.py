"""Shared prompts under data parallelism, DeepSpeed and FSDP2: real processes on the CPU, against one process."""

import json
from pathlib import Path

import pytest
import torch

from harness import ON, relative_difference, run
from launch import in_processes

TRAIN = {"optim": "sgd", "max_grad_norm": 0.0, "max_steps": 2, "learning_rate": 0.1, **ON}
ZERO = {
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "zero_allow_untested_optimizer": True,
    "gradient_clipping": 0.0,
}
BACKENDS = {
    "data parallel": ({}, "DistributedDataParallel"),
    "ZeRO-2": ({"deepspeed": ZERO | {"zero_optimization": {"stage": 2}}}, "DeepSpeedEngine"),
    "ZeRO-3": ({"deepspeed": ZERO | {"zero_optimization": {"stage": 3}}}, "DeepSpeedEngine"),
}


def in_two_processes(folder: Path, kind: str, options: dict) -> dict:
    result = folder / "two.pt"
    in_processes(kind, result, json.dumps(options))
    return torch.load(result, weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize(("options", "wrapper"), BACKENDS.values(), ids=BACKENDS)
def test_two_processes_with_shared_prompts_equal_one_without(tmp_path, options, wrapper):
    whole = run(tmp_path / "one", **TRAIN)
    shared = {"shared_prefix": "on", "per_device_train_batch_size": 4}
    halves = in_two_processes(tmp_path, "sharing", TRAIN | shared | options)
    assert halves["world_size"] == 2
    assert halves["wrapper"] == wrapper
    for ours, theirs in zip(halves["logs"], whole.logs, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert ours["perception/kl"] == pytest.approx(theirs["perception/kl"], rel=1e-4)
    assert whole.logs[0]["loss"] != pytest.approx(whole.logs[1]["loss"], rel=1e-3)  # the first step acted


@pytest.mark.slow
def test_sharded_parameters_give_the_gradients_of_whole_ones(tmp_path):
    options = {"shared_prefix": "on", "per_device_train_batch_size": 4}
    seen = in_two_processes(tmp_path, "sharding", options)
    assert seen["sharded"]["loss"] == pytest.approx(seen["whole"]["loss"], rel=1e-5)
    assert relative_difference(seen["sharded"]["gradients"], seen["whole"]["gradients"]) < 1e-5
