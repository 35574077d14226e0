"""The doctor's look at cores, shared memory, caches, accelerate's default file and DeepSpeed."""

import collections
import importlib.metadata
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import accelerate.commands.config.config_args as config_args
import huggingface_hub.constants
import pytest
import torch

from q_hawkeye_trl.doctor import deepspeed, system
from q_hawkeye_trl.doctor.finding import Plan

GIB = 2**30
Usage = collections.namedtuple("Usage", "total used free")


def read_only(dir):
    raise OSError(30, "Read-only file system", str(dir))


def disk(free_gib: float):
    return lambda path: Usage(100 * GIB, 0, int(free_gib * GIB))


@pytest.mark.parametrize(
    ("given", "level"),
    [(None, "ok"), ("1", "ok"), ("4", "ok"), ("64", "warning"), ("many", "problem"), ("0", "problem")],
)
def test_threads_against_cores(monkeypatch, given, level):
    monkeypatch.setattr(system, "usable_cores", lambda: 4)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    (found,) = system.check_cores(Plan())
    assert found.level == level
    assert bool(found.advice) == (level != "ok")


def test_little_shared_memory(monkeypatch, tmp_path):
    monkeypatch.setattr(system, "_SHARED", tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", disk(0.0625))
    (found,) = system.check_shared_memory(Plan())
    assert found.level == "warning"
    assert "--shm-size" in found.advice
    monkeypatch.setattr(shutil, "disk_usage", disk(8))
    assert system.check_shared_memory(Plan())[0].level == "ok"
    monkeypatch.setattr(system, "_SHARED", tmp_path / "missing")
    assert system.check_shared_memory(Plan())[0].level == "ok"


def test_the_hubs_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "deep" / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    (found,) = system.check_hub(Plan())
    assert found.level == "ok"
    assert "offline" not in found.text
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "offline" in system.check_hub(Plan())[0].text
    monkeypatch.setattr(tempfile, "TemporaryFile", read_only)
    (found,) = system.check_hub(Plan())
    assert found.level == "problem"
    assert "HF_HOME" in found.advice


@pytest.fixture
def launcher(monkeypatch, tmp_path):
    """Writes accelerate's default file and says how many GPUs there are."""

    def write(gpus: int, **settings):
        file = tmp_path / "default_config.yaml"
        config = {
            "compute_environment": "LOCAL_MACHINE",
            "distributed_type": "NO",
            "mixed_precision": "no",
            "use_cpu": False,
            "num_processes": 1,
            "num_machines": 1,
        }
        file.write_text(json.dumps(config | settings))
        monkeypatch.setattr(config_args, "default_config_file", str(file))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        (found,) = system.check_accelerate(Plan())
        return found

    return write


@pytest.mark.parametrize(
    ("gpus", "settings", "level", "part"),
    [
        (0, {}, "ok", "NO, 1 processes"),
        (4, {"distributed_type": "MULTI_GPU", "num_processes": 4}, "ok", "MULTI_GPU, 4 processes"),
        (0, {"use_cpu": True, "num_processes": 2}, "warning", "one process"),
        (0, {"distributed_type": "MULTI_CPU", "use_cpu": True, "num_processes": 2}, "warning", "one process"),
        (2, {"use_cpu": True}, "warning", "2 GPUs are not used"),
        (4, {"num_processes": 4}, "warning", "one process"),
        (2, {"distributed_type": "DEEPSPEED", "num_processes": 8}, "problem", "has 2 GPUs"),
        (8, {"distributed_type": "MULTI_GPU", "num_processes": 2}, "warning", "6 of the 8 GPUs stay idle"),
        (8, {"distributed_type": "MULTI_GPU", "num_processes": 16, "num_machines": 2}, "ok", "16 processes"),
    ],
)
def test_accelerates_default_file(launcher, gpus, settings, level, part):
    found = launcher(gpus, **settings)
    assert found.level == level, found
    assert part in found.text
    assert bool(found.advice) == (level != "ok")


def test_a_default_file_that_cannot_be_read(launcher):
    found = launcher(0, unknown_key=1)
    assert found.level == "problem"
    assert "default_config.yaml" in found.text


@pytest.mark.parametrize(("gpus", "part"), [(0, "torchrun"), (4, "all 4 GPUs")])
def test_no_default_file(monkeypatch, tmp_path, gpus, part):
    monkeypatch.setattr(config_args, "default_config_file", str(tmp_path / "missing.yaml"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    (found,) = system.check_accelerate(Plan())
    assert found.level == "ok"
    assert part in found.text


# DeepSpeed


def probe(monkeypatch, code: str, plan: Plan | None = None):
    monkeypatch.setattr(deepspeed, "_PROBE", code)
    started = deepspeed.DeepSpeedProbe()
    try:
        return started.check(plan or Plan())
    finally:
        started.close()


def said(**facts) -> str:
    everything = {"accelerator": "cpu", "cuda_home": None, "cuda": "13.0", "gpus": 0}
    everything |= {"able": {"CPUAdamBuilder": True, "FusedAdamBuilder": True}}
    return f"print('a line of a library'); print({json.dumps(json.dumps(everything | facts))})"


@pytest.fixture
def tools(monkeypatch):
    """Which tools are in PATH."""
    present = {"c++", "ninja", "nvcc"}
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}" if name in present else None)
    return present


def test_deepspeed_as_it_is_here():
    started = deepspeed.DeepSpeedProbe()
    found = started.check(Plan())
    assert found[0].level == "ok"
    assert "imports, for cpu" in found[0].text
    assert found[1].area == "DeepSpeed operators"


def test_without_deepspeed_nothing_is_started(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    monkeypatch.setattr(subprocess, "Popen", None)
    assert deepspeed.DeepSpeedProbe().check(Plan()) == []


def test_an_import_that_fails_is_a_problem_only_where_it_is_needed(monkeypatch):
    code = "raise SystemExit('MissingCUDAException: CUDA_HOME does not exist')"
    (found,) = probe(monkeypatch, code)
    assert found.level == "warning"
    assert "CUDA_HOME does not exist" in found.text
    assert "DS_ACCELERATOR=cpu" in found.advice
    assert probe(monkeypatch, code, Plan(wanted={"deepspeed"}))[0].level == "problem"


def test_an_import_that_hangs(monkeypatch):
    monkeypatch.setattr(deepspeed, "_SECONDS", 0.2)
    (found,) = probe(monkeypatch, "import time; time.sleep(60)")
    assert found.level == "warning"
    assert "more than 0.2 seconds" in found.text


@pytest.mark.parametrize(
    ("facts", "missing", "part"),
    [
        ({}, {"ninja"}, "without ninja"),
        ({}, {"c++", "ninja"}, "without c++ and ninja"),
        ({"accelerator": "cuda", "gpus": 1}, {"nvcc"}, "without nvcc"),
        ({"able": {"CPUAdamBuilder": False, "FusedAdamBuilder": True}}, set(), "CPUAdam can't be built"),
    ],
)
def test_operators_that_cannot_be_built(monkeypatch, tools, facts, missing, part):
    tools -= missing
    found = probe(monkeypatch, said(**facts))
    assert [finding.level for finding in found] == ["ok", "warning"]
    assert part in found[1].text
    assert found[1].advice


def test_nvcc_of_another_version_than_torch(monkeypatch, tools):
    monkeypatch.setattr(deepspeed, "_toolkit", lambda: "12.4")
    found = probe(monkeypatch, said(accelerator="cuda", gpus=1))
    assert found[1].level == "warning"
    assert "nvcc is of CUDA 12.4, torch of 13.0" in found[1].text
    monkeypatch.setattr(deepspeed, "_toolkit", lambda: "13.2")
    assert probe(monkeypatch, said(accelerator="cuda", gpus=1))[1].level == "ok"


def test_the_version_of_nvcc(monkeypatch, tmp_path):
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 12.4, V12.4.131'\n")
    nvcc.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert deepspeed._toolkit() == "12.4"
    monkeypatch.setenv("PATH", str(Path(tmp_path) / "nothing"))
    assert deepspeed._toolkit() is None


def test_deepspeed_for_the_cpu_beside_gpus(monkeypatch, tools):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    found = probe(monkeypatch, said(gpus=2))
    assert found[0].level == "warning"
    assert "DS_ACCELERATOR=cpu" in found[0].text
