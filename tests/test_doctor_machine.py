"""The doctor's checks of packages, DeepSpeed, GPUs and the rest of the machine."""

import collections
import importlib.metadata
import json
import platform
import shutil
import subprocess
import tempfile
from types import SimpleNamespace

import accelerate.commands.config.config_args as config_args
import huggingface_hub.constants
import pytest
import torch
import transformers.utils
from trl import GRPOTrainer, import_utils

from doctor_plans import findings, levels, planned
from q_hawkeye_trl.doctor import Plan, environment, hardware
from q_hawkeye_trl.run_facts.machine import device_facts

GIB = 2**30
Usage = collections.namedtuple("Usage", "total used free")


# Packages


@pytest.fixture
def installed(monkeypatch):
    """Versions by name that replace the installed ones; `None` is a missing package."""
    versions: dict[str, str | None] = {}
    real = importlib.metadata.version

    def version(name):
        if name in versions and versions[name] is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions.get(name) or real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    return versions


@pytest.fixture
def metadata(monkeypatch):
    """Requirements of the project that don't depend on setup.cfg."""
    monkeypatch.setattr(importlib.metadata, "metadata", lambda name: {"Requires-Python": "<3.14,>=3.11"})
    requirements = ["trl<1.17,>=1.16", "transformers<6,>=5.23", "torch", 'vllm; extra == "vllm"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: requirements)


def test_this_environment_is_fine():
    assert levels(environment.check_packages) == ["ok", "ok"]


@pytest.mark.parametrize(
    ("name", "version", "ranges"),
    [
        ("trl", "1.15.9", ">=1.16,<1.17"),
        ("trl", "1.17.0", ">=1.16,<1.17"),
        ("trl", "1.17.0rc1", ">=1.16,<1.17"),
        ("trl", "2.0", ">=1.16,<1.17"),
        ("transformers", "6.0.0", ">=5.23,<6"),
        ("transformers", "5.3.0", ">=5.23,<6"),  # 3 < 23 as numbers, not as text
        ("torch", None, ""),
    ],
)
def test_a_version_out_of_range(metadata, installed, name, version, ranges):
    installed[name] = version
    _, problem = findings(environment.check_packages)
    assert problem.level == "problem"
    assert problem.text == (f"{name} {version} is not {ranges}" if version else f"{name} is missing")
    assert problem.advice == f'pip install "{name}{ranges}"'


@pytest.mark.parametrize("version", ["1.16", "1.16.0", "1.16.9+local", "1.16.1.post1"])
def test_a_version_in_range(metadata, installed, version):
    installed["trl"] = version
    assert levels(environment.check_packages) == ["ok", "ok"]


@pytest.mark.parametrize(("version", "level"), [("3.10.14", "problem"), ("3.14.0", "problem"), ("3.13.1", "ok")])
def test_python(metadata, monkeypatch, version, level):
    monkeypatch.setattr(platform, "python_version", lambda: version)
    first = findings(environment.check_packages)[0]
    assert (first.area, first.level) == ("python", level)
    assert ">=3.11,<3.14" in first.text


def test_a_project_that_is_not_installed(monkeypatch):
    def nothing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "metadata", nothing)
    (found,) = findings(environment.check_packages)
    assert found.level == "problem"
    assert "pip install -e ." in found.advice


def test_a_changed_trl(monkeypatch):
    assert levels(environment.check_trl) == ["ok"]
    monkeypatch.setattr(GRPOTrainer, "_calculate_rewards", lambda self, inputs, weights: None)
    (found,) = findings(environment.check_trl)
    assert found.level == "problem"
    assert "_calculate_rewards" in found.text


@pytest.mark.parametrize(
    ("name", "needed"),
    [
        ("vllm", {"use_vllm": True}),
        ("bitsandbytes", {"optim": "adamw_bnb_8bit"}),
        ("bitsandbytes", {"model_args": SimpleNamespace(load_in_4bit=True, load_in_8bit=False)}),
        ("deepspeed", {"deepspeed": "zero.json"}),
        ("liger-kernel", {"use_liger_kernel": True}),
    ],
)
def test_an_optional_package_is_a_problem_only_if_it_is_needed(installed, name, needed):
    installed[name] = None
    for plan, level in ((planned(), "ok"), (planned(**needed), "problem")):
        (finding,) = [finding for finding in findings(environment.check_optional, plan) if finding.area == name]
        assert finding.level == level
        assert ("pip install" in finding.advice) == (level == "problem")


@pytest.mark.parametrize(
    ("version", "importable", "level"),
    [("0.25.0", True, "ok"), ("0.5.0", True, "warning"), ("9.0.0", True, "warning"), ("0.25.0", False, "problem")],
)
def test_vllm_in_and_out_of_trls_range(installed, monkeypatch, version, importable, level):
    installed["vllm"] = version
    monkeypatch.setattr(import_utils, "_is_package_available", lambda *_, **__: (importable, version))
    (finding,) = [finding for finding in findings(environment.check_optional) if finding.area == "vllm"]
    assert finding.level == level
    assert version in finding.text


# DeepSpeed


def deepspeed_findings(monkeypatch, code: str | None = None, plan: Plan | None = None, **facts):
    """The findings of a process that runs `code`, or prints these facts."""
    everything = {"accelerator": "cpu", "cuda_home": None, "cuda": "13.0", "gpus": 0}
    everything |= {"able": {"CPUAdamBuilder": True, "FusedAdamBuilder": True}}
    output = json.dumps(json.dumps(everything | facts))
    monkeypatch.setattr(environment, "_IMPORT_DEEPSPEED", code or f"print('a line of a library'); print({output})")
    plan = plan or Plan()
    plan.deepspeed = environment.import_deepspeed()
    with plan.deepspeed:
        try:
            return findings(environment.check_deepspeed, plan)
        finally:
            plan.deepspeed.kill()


@pytest.fixture
def tools(monkeypatch):
    """Tools in PATH."""
    present = {"c++", "ninja", "nvcc"}
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}" if name in present else None)
    return present


def test_the_installed_deepspeed():
    imported, operators = findings(environment.check_deepspeed, Plan(deepspeed=environment.import_deepspeed()))
    assert imported.level == "ok"
    assert "for cpu" in imported.text
    assert operators.area == "DeepSpeed operators"


def test_without_deepspeed_nothing_is_started(installed, monkeypatch):
    installed["deepspeed"] = None
    monkeypatch.setattr(subprocess, "Popen", None)
    assert environment.import_deepspeed() is None
    assert findings(environment.check_deepspeed) == []


def test_an_import_that_fails_is_a_problem_only_if_it_is_needed(monkeypatch):
    code = "raise SystemExit('MissingCUDAException: CUDA_HOME does not exist')"
    (found,) = deepspeed_findings(monkeypatch, code)
    assert found.level == "warning"
    assert "CUDA_HOME does not exist" in found.text
    assert "DS_ACCELERATOR=cpu" in found.advice
    assert deepspeed_findings(monkeypatch, code, planned(deepspeed="zero.json"))[0].level == "problem"


def test_an_import_that_hangs(monkeypatch):
    monkeypatch.setattr(environment, "_IMPORT_SECONDS", 0.2)
    (found,) = deepspeed_findings(monkeypatch, "import time; time.sleep(60)")
    assert found.level == "warning"
    assert "0.2 seconds" in found.text


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
    imported, operators = deepspeed_findings(monkeypatch, **facts)
    assert (imported.level, operators.level) == ("ok", "warning")
    assert part in operators.text


@pytest.mark.parametrize(("version", "level"), [("12.4", "warning"), ("13.2", "ok"), (None, "ok")])
def test_nvcc_against_the_cuda_of_torch(monkeypatch, tools, tmp_path, version, level):
    if version is not None:
        (tmp_path / "nvcc").write_text(
            f"#!/bin/sh\necho 'Cuda compilation tools, release {version}, V{version}.131'\n"
        )
        (tmp_path / "nvcc").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    _, operators = deepspeed_findings(monkeypatch, accelerator="cuda", gpus=1)
    assert operators.level == level
    assert level == "ok" or ("12.4" in operators.text and "13.0" in operators.text)


def test_deepspeed_for_the_cpu_despite_gpus(monkeypatch, tools):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    found = deepspeed_findings(monkeypatch, gpus=2)
    assert found[0].level == "warning"
    assert "DS_ACCELERATOR=cpu" in found[0].text


# GPUs


@pytest.fixture
def cards(monkeypatch):
    """Machines with GPUs of 80 GiB."""

    def play(count=1, capability=(9, 0), free=79.0):
        card = SimpleNamespace(name="H100", total_memory=80 * GIB, major=capability[0], minor=capability[1])
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (int(free * GIB), 80 * GIB))
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(hardware, "driver_version", lambda: "570.1")

    return play


def test_two_free_cards(cards):
    cards(2)
    found = findings(hardware.check_gpu)
    assert [(each.area, each.level) for each in found] == [
        ("GPU", "ok"),
        ("GPU", "ok"),
        ("driver", "ok"),
        ("bfloat16", "ok"),
    ]
    assert found[1].text == "1: H100, 79.0 of 80.0 GiB free"
    assert "570.1" in found[2].text
    assert "CUDA 13.0" in found[2].text
    facts = device_facts()
    assert (facts["names"], facts["memory_gib"], facts["capabilities"]) == (["H100"] * 2, [80.0] * 2, ["9.0"] * 2)
    assert facts["cuda"] == "13.0"
    assert "names" not in device_facts("cpu")


def test_a_card_in_use(cards):
    cards(1, free=30)
    found = findings(hardware.check_gpu)[0]
    assert found.level == "warning"
    assert "CUDA_VISIBLE_DEVICES" in found.advice


def test_bfloat16_on_an_old_card(cards):
    cards(1, capability=(7, 5))
    found = findings(hardware.check_gpu)[-1]
    assert (found.area, found.level) == ("bfloat16", "problem")
    assert "bf16 to false" in found.advice
    assert findings(hardware.check_gpu, planned(bf16=False))[-1].level == "ok"


def test_no_card(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(hardware, "driver_version", lambda: None)
    monkeypatch.setattr(hardware, "Path", lambda *_: tmp_path)  # no /dev/nvidia0
    (found,) = findings(hardware.check_gpu)
    assert found.level == "warning"
    assert "use_cpu" in found.advice
    assert levels(hardware.check_gpu, planned(use_cpu=True)) == ["ok"]


@pytest.mark.parametrize(
    ("cuda", "parts"),
    [("13.0", ("driver 470.1", "CUDA 13.0", "too old (found version 11040)")), (None, ("built for the CPU",))],
)
def test_a_card_that_torch_cannot_use(monkeypatch, cuda, parts):
    def refuse():
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\nPlease update")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", refuse)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(hardware, "driver_version", lambda: "470.1")
    (found,) = findings(hardware.check_gpu)
    assert found.level == "problem"
    assert all(part in found.text for part in parts)


def test_attention_without_a_recipe(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (found,) = findings(hardware.check_attention)
    assert found.level == "ok"
    assert "eager, sdpa" in found.text
    assert "flash_attention_2" not in found.text


def test_flash_attention_needs_a_card_and_its_package(cards, monkeypatch):
    plan = planned(model_init_kwargs={"attn_implementation": "flash_attention_2"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (found,) = findings(hardware.check_attention, plan)
    assert found.level == "problem"
    assert "capability 8.0" in found.text
    cards(1)
    monkeypatch.setattr(transformers.utils, "is_flash_attn_2_available", lambda: False)
    (found,) = findings(hardware.check_attention, plan)
    assert found.level == "problem"
    assert "flash-attn" in found.advice
    monkeypatch.setattr(transformers.utils, "is_flash_attn_2_available", lambda: True)
    assert levels(hardware.check_attention, plan) == ["ok"]
    cards(1, capability=(7, 5))
    assert levels(hardware.check_attention, plan) == ["problem"]


def test_an_unknown_attention():
    (found,) = findings(hardware.check_attention, planned(model_init_kwargs={"attn_implementation": "sdpaa"}))
    assert found.level == "warning"
    assert "sdpaa" in found.text


# The rest of the machine


@pytest.mark.parametrize(
    ("given", "level"),
    [(None, "ok"), ("1", "ok"), ("4", "ok"), ("64", "warning"), ("many", "problem"), ("0", "problem")],
)
def test_threads_against_cores(monkeypatch, given, level):
    monkeypatch.setattr(hardware, "usable_cores", lambda: 4)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert levels(hardware.check_cores) == [level]


@pytest.mark.parametrize(("folder", "free", "level"), [(".", 0.0625, "warning"), (".", 8, "ok"), ("missing", 8, "ok")])
def test_shared_memory(monkeypatch, tmp_path, folder, free, level):
    monkeypatch.setattr(hardware, "_SHARED", tmp_path / folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(100 * GIB, 0, int(free * GIB)))
    (found,) = findings(hardware.check_shared_memory)
    assert found.level == level
    assert level == "ok" or "--shm-size" in found.advice


def read_only(dir, **options):
    raise OSError(30, "Read-only file system", str(dir))


def test_the_hubs_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "deep" / "hub"))
    for offline in (False, True):
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
        (found,) = findings(hardware.check_hub)
        assert found.level == "ok"
        assert ("offline" in found.text) == offline
    monkeypatch.setattr(tempfile, "NamedTemporaryFile", read_only)
    (found,) = findings(hardware.check_hub)
    assert found.level == "problem"
    assert "HF_HOME" in found.advice


@pytest.fixture
def launcher(monkeypatch, tmp_path):
    """Writes accelerate's default file, and checks it on a machine with so many GPUs."""

    def check(gpus: int, **settings):
        file = tmp_path / "default_config.yaml"
        config = {"compute_environment": "LOCAL_MACHINE", "distributed_type": "NO", "mixed_precision": "no"}
        config |= {"use_cpu": False, "num_processes": 1, "num_machines": 1}
        if settings:
            file.write_text(json.dumps(config | settings))
        monkeypatch.setattr(config_args, "default_config_file", str(file))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        (found,) = findings(hardware.check_accelerate)
        return found

    return check


@pytest.mark.parametrize(
    ("gpus", "settings", "level", "part"),
    [
        (0, {}, "ok", "torchrun"),  # no file
        (4, {}, "ok", "all 4 GPUs"),
        (0, {"distributed_type": "NO"}, "ok", "NO, 1 processes"),
        (4, {"distributed_type": "MULTI_GPU", "num_processes": 4}, "ok", "MULTI_GPU, 4 processes"),
        (0, {"use_cpu": True, "num_processes": 2}, "warning", "one process"),
        (0, {"distributed_type": "MULTI_CPU", "use_cpu": True, "num_processes": 2}, "warning", "one process"),
        (2, {"use_cpu": True}, "warning", "2 GPUs are not used"),
        (4, {"num_processes": 4}, "warning", "one process"),
        (2, {"distributed_type": "DEEPSPEED", "num_processes": 8}, "problem", "has 2 GPUs"),
        (8, {"distributed_type": "MULTI_GPU", "num_processes": 2}, "warning", "6 of the 8 GPUs stay idle"),
        (8, {"distributed_type": "MULTI_GPU", "num_processes": 16, "num_machines": 2}, "ok", "16 processes"),
        (0, {"unknown_key": 1}, "problem", "default_config.yaml"),
    ],
)
def test_accelerates_default_file(launcher, gpus, settings, level, part):
    found = launcher(gpus, **settings)
    assert found.level == level
    assert part in found.text
