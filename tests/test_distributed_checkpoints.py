"""Under ZeRO-2 and ZeRO-3 a saved model reloads completely, and a resumed run equals an uninterrupted one."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from distributed_cases import SAVE_STEPS as STEPS
from distributed_cases import SAVED_AT
from harness import largest_difference
from launch import in_processes
from test_distributed import WRAPPERS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["ZeRO-2", "ZeRO-3"])
def saved(request, tmp_path_factory) -> tuple[Path, str, dict[str, dict]]:
    folder = tmp_path_factory.mktemp("saved")
    in_processes("saving", folder, request.param, timeout=240)
    return folder, request.param, torch.load(folder / f"{request.param}.pt", weights_only=True)


def test_two_ranks_ran_under_the_stage(saved):
    _, backend, seen = saved
    for run in seen.values():
        assert (run["world_size"], run["wrapper"]) == (2, WRAPPERS[backend])


@pytest.mark.parametrize("feature", ["whole", "LoRA"])
def test_a_resumed_run_equals_the_uninterrupted_one(saved, feature):
    uninterrupted, resumed = saved[2][feature], saved[2][f"{feature}, resumed"]
    assert resumed["steps"] == uninterrupted["steps"] == list(range(1, STEPS + 1))
    assert resumed["losses"] == uninterrupted["losses"]
    assert largest_difference(resumed["parameters"], uninterrupted["parameters"]) == 0


@pytest.mark.parametrize("place", ["final", f"checkpoint-{STEPS}"])
def test_the_saved_model_reloads_with_every_key(saved, place):
    folder, backend, seen = saved
    model, report = AutoModelForImageTextToText.from_pretrained(
        folder / f"{backend}-whole" / place, dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    loaded = {name: parameter.detach() for name, parameter in model.named_parameters()}
    assert largest_difference(loaded, seen["whole"]["parameters"]) == 0
    start = AutoModelForImageTextToText.from_pretrained(folder / "policy", dtype=torch.float32)
    assert largest_difference(loaded, {n: p.detach() for n, p in start.named_parameters()}) > 1e-3


@pytest.mark.parametrize("place", ["final", f"checkpoint-{SAVED_AT}", f"checkpoint-{STEPS}"])
def test_the_saved_adapter_is_the_trained_one(saved, place):
    folder, backend, seen = saved
    path = folder / f"{backend}-LoRA" / place
    base = AutoModelForImageTextToText.from_pretrained(folder / "policy", dtype=torch.float32)
    model = PeftModel.from_pretrained(base, path)
    trained = {name: value for name, value in seen["LoRA"]["parameters"].items() if "lora_" in name}
    loaded = {name: p.detach() for name, p in model.named_parameters() if "lora_" in name}
    assert len(load_file(path / "adapter_model.safetensors")) == len(trained) > 0
    difference = largest_difference(loaded, trained)
    assert difference == 0 if place != f"checkpoint-{SAVED_AT}" else difference > 1e-4
