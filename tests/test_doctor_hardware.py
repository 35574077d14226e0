"""The doctor's checks of GPUs, attention, accelerate, cores, shared memory and the cache."""

import collections
import json
import shutil
import tempfile
from types import SimpleNamespace

import accelerate.commands.config.config_args as config_args
import huggingface_hub.constants
import pytest
import torch
import transformers.utils

from doctor_plans import findings, levels, planned
from q_hawkeye_trl.doctor import hardware
from q_hawkeye_trl.run_facts.machine import device_facts

GIB = 2**30
Usage = collections.namedtuple("Usage", "total used free")


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
    """Writes accelerate's default file, and checks it on a machine with this many GPUs."""

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
