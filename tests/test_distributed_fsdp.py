"""
FSDP2 in the trainer. It is for GPUs: on a CPU accelerate silently replaces it with data parallelism. Here the tests
make it shard on the CPU over gloo; the test on two GPUs is the decisive one.
"""

from pathlib import Path

import pytest
import torch

import distributed_cases as cases
from harness import largest_difference
from launch import in_processes
from test_distributed import LOSS_BOUND, WEIGHT_BOUND


def assert_as_one_process(folder: Path, device: str, *, loss: float, weight: float) -> None:
    cases.prepare(folder)
    in_processes("fsdp", folder, device, timeout=240)
    ranks = [torch.load(folder / f"fsdp-{rank}-of-2.pt", weights_only=True) for rank in (0, 1)]
    # alone, since a process that sees two GPUs would use both
    in_processes("fsdp", folder, device, processes=1, timeout=240, CUDA_VISIBLE_DEVICES="0")
    alone = torch.load(folder / "fsdp-0-of-1.pt", weights_only=True)
    for feature, expected in alone.items():
        assert expected["world_size"] == 1
        for rank in ranks:
            assert rank[feature]["world_size"] == 2
            assert rank[feature]["wrapper"] == "FSDPQwen2_5_VLForConditionalGeneration"
            deviation = cases.deviations(rank[feature], expected)
            assert deviation["loss"] < loss, feature
            assert deviation["weight"] < weight, feature
        first, second = (rank[feature] for rank in ranks)
        assert first["forwards"] == second["forwards"] == expected["forwards"]
        assert first["collectives"] == second["collectives"]
        assert largest_difference(first["parameters"], second["parameters"]) == 0


@pytest.mark.slow
def test_two_cpu_processes_made_to_shard_equal_one(tmp_path):
    assert_as_one_process(tmp_path, "cpu", loss=LOSS_BOUND, weight=WEIGHT_BOUND["sgd"])


@pytest.mark.gpu
def test_two_gpus_equal_one(tmp_path):
    if torch.cuda.device_count() < 2:
        pytest.skip(f"needs two CUDA devices, and torch sees {torch.cuda.device_count()}")
    # kernels of other shapes add in another order: a tenth of a percent of what three steps move a weight
    assert_as_one_process(tmp_path, "cuda", loss=1e-5, weight=1e-4)
