"""
Two ranks are resumed inside a window as one is, under data parallelism, DeepSpeed and FSDP2; another number of them is
refused.
"""

import json
from pathlib import Path

import pytest

from distributed_cases import FSDP2
from launch import in_processes
from q_hawkeye_trl.checkpointing.checkpoint_files import checkpoint_problem
from test_resume import without_times

pytestmark = pytest.mark.slow

ZERO = {"train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto"}
BACKENDS = {
    "data parallel": ({}, "DistributedDataParallel"),
    "ZeRO-2": ({"deepspeed": ZERO | {"zero_optimization": {"stage": 2}}}, "DeepSpeedEngine"),
    "ZeRO-3": ({"deepspeed": ZERO | {"zero_optimization": {"stage": 3}}}, "DeepSpeedEngine"),
    # which accelerate has for GPUs only, made to shard on the CPU
    **{
        f"FSDP2, {kind}": (
            {"fsdp": True, "fsdp_config": FSDP2["fsdp_config"] | {"state_dict_type": f"{kind}_STATE_DICT"}},
            "FSDPQwen2_5_VLForConditionalGeneration",
        )
        for kind in ("FULL", "SHARDED")
    },
}


def launch(folder: Path, options: dict, checkpoint: Path | str = "", **how) -> str:
    given = json.dumps({"per_device_train_batch_size": 4} | options)
    return in_processes("resume", folder, checkpoint, given, timeout=280, **how)[1]


def log_of_two(folder: Path, wrapper: str, *given) -> list[dict]:
    launch(folder, *given)
    seen = json.loads((folder / "seen.json").read_text())
    assert (seen["world_size"], seen["wrapper"]) == (2, wrapper)
    return without_times(seen["log"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_ranks_resume_inside_a_window(tmp_path, backend):
    options, wrapper = BACKENDS[backend]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    expected = log_of_two(whole, wrapper, options)
    checkpoint = whole / "checkpoint-1"
    assert checkpoint_problem(checkpoint) is None
    assert {path.name for path in checkpoint.glob("rollouts_*")} == {f"rollouts_{n}.pt" for n in (0, 1)}
    assert log_of_two(resumed, wrapper, options, checkpoint) == expected
    assert [line["step"] for line in expected if "loss" in line] == [1, 2, 3]
    if backend == "data parallel":
        errors = launch(tmp_path / "one", options, checkpoint, processes=1, fails=True)
        assert "world_size was 2 and is 1" in errors
