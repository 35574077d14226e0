"""The doctor's look at GPUs and attention, with torch.cuda played by fakes."""

from types import SimpleNamespace

import pytest
import torch
import transformers.utils

from q_hawkeye_trl.doctor import gpu
from q_hawkeye_trl.doctor.finding import Plan
from q_hawkeye_trl.run_facts.machine import device_facts

GIB = 2**30


@pytest.fixture
def cards(monkeypatch):
    """Machines with GPUs: `cards(count, capability, free)` in GiB of 80."""

    def play(count=1, capability=(9, 0), free=79.0, build="13.0"):
        card = SimpleNamespace(name="H100", total_memory=80 * GIB, major=capability[0], minor=capability[1])
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (int(free * GIB), 80 * GIB))
        monkeypatch.setattr(torch.version, "cuda", build)
        monkeypatch.setattr(gpu, "driver_version", lambda: "570.1")

    return play


def plan(**options) -> Plan:
    """A plan with a recipe's settings."""
    settings = {"use_cpu": False, "bf16": True, "use_vllm": False, "deepspeed": None, "optim": "adamw_torch"}
    settings |= {"use_liger_kernel": False, "model_init_kwargs": None}
    return Plan(args=SimpleNamespace(**settings | options))


def levels(findings) -> list[tuple[str, str]]:
    return [(finding.area, finding.level) for finding in findings]


def test_two_free_cards(cards):
    cards(2)
    found = gpu.check_gpu(Plan())
    assert levels(found) == [("GPU", "ok"), ("GPU", "ok"), ("driver", "ok"), ("bfloat16", "ok")]
    assert found[1].text == "1: H100, 79.0 of 80.0 GiB free"
    assert found[2].text == "570.1, runs the CUDA 13.0 that torch was built with"


def test_a_card_that_somebody_uses(cards):
    cards(1, free=30)
    found = gpu.check_gpu(Plan())[0]
    assert found.level == "warning"
    assert "CUDA_VISIBLE_DEVICES" in found.advice


def test_bfloat16_on_an_old_card(cards):
    cards(1, capability=(7, 5))
    found = gpu.check_gpu(Plan())[-1]
    assert (found.area, found.level) == ("bfloat16", "problem")
    assert "bf16 to false" in found.advice
    assert gpu.check_gpu(plan(bf16=False))[-1].level == "ok"


def test_no_card(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "driver_version", lambda: None)
    monkeypatch.setattr(gpu, "Path", lambda *_: tmp_path)  # no /dev/nvidia0
    (found,) = gpu.check_gpu(Plan())
    assert found.level == "warning"
    assert "use_cpu" in found.advice
    assert gpu.check_gpu(plan(use_cpu=True))[0].level == "ok"


def test_a_driver_too_old_for_torch(monkeypatch):
    def refuse():
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\nPlease update")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", refuse)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(gpu, "driver_version", lambda: "470.1")
    (found,) = gpu.check_gpu(Plan())
    assert found.level == "problem"
    assert "driver 470.1" in found.text
    assert "CUDA 13.0" in found.text
    assert "too old (found version 11040)." in found.text
    assert "update the driver" in found.advice


def test_a_torch_for_the_cpu_beside_a_card(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(gpu, "driver_version", lambda: "570.1")
    (found,) = gpu.check_gpu(Plan())
    assert found.level == "problem"
    assert "built for the CPU" in found.text


def test_attention_without_a_recipe():
    (found,) = gpu.check_attention(Plan())
    assert found.level == "ok"
    assert "eager, sdpa" in found.text
    assert "flash_attention_2" not in found.text


def test_flash_attention_needs_a_card_and_its_package(cards, monkeypatch):
    asked = plan(model_init_kwargs={"attn_implementation": "flash_attention_2"})
    (found,) = gpu.check_attention(asked)
    assert found.level == "problem"
    assert "capability 8.0" in found.text
    cards(1)
    monkeypatch.setattr(transformers.utils, "is_flash_attn_2_available", lambda: False)
    (found,) = gpu.check_attention(asked)
    assert found.level == "problem"
    assert "flash-attn" in found.advice
    monkeypatch.setattr(transformers.utils, "is_flash_attn_2_available", lambda: True)
    assert gpu.check_attention(asked)[0].level == "ok"
    cards(1, capability=(7, 5))
    assert gpu.check_attention(asked)[0].level == "problem"


def test_an_attention_that_nobody_knows():
    (found,) = gpu.check_attention(plan(model_init_kwargs={"attn_implementation": "sdpaa"}))
    assert found.level == "warning"
    assert "sdpaa" in found.text


def test_facts_of_a_machine_with_cards(cards, monkeypatch):
    cards(2)
    facts = device_facts()
    assert facts["names"] == ["H100", "H100"]
    assert facts["memory_gib"] == [80.0, 80.0]
    assert facts["capabilities"] == ["9.0", "9.0"]
    assert facts["cuda"] == "13.0"
    assert "names" not in device_facts("cpu")
