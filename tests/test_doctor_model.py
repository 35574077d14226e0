"""The doctor's look at the model and at the disk that its checkpoints need."""

import collections
import json
import os
import shutil
import tempfile
from types import SimpleNamespace

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoProcessor, LlamaConfig
from trl import ModelConfig

from harness import build_trainer
from q_hawkeye_trl.doctor.disk import check_disk, checkpoint_bytes
from q_hawkeye_trl.doctor.finding import Plan
from q_hawkeye_trl.doctor.model import ModelSize, check_model, missing_weights, readable
from test_doctor_gpu import plan as planned
from test_doctor_system import read_only
from tiny_models import save_policy, tiny_policy

GIB = 2**30
Usage = collections.namedtuple("Usage", "total used free")


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> str:
    return save_policy("qwen2_5_vl", tmp_path_factory.mktemp("model"))


def find(findings, area):
    (found,) = [finding for finding in findings if finding.area == area]
    return found


def test_a_whole_model(saved):
    findings, size = check_model(Plan(model=saved))
    assert {finding.level for finding in findings} == {"ok"}
    assert size == ModelSize(sum(p.numel() for p in tiny_policy()[0].parameters()), size.parameters, 4, False)
    assert f"{size.parameters:,} parameters" in find(findings, "model").text


def test_the_bundled_policy_is_what_no_model_means():
    findings, size = check_model(Plan())
    assert size.parameters == 790_240
    assert find(findings, "model").text.startswith("the bundled toy policy: qwen2_5_vl")


def test_a_family_that_cannot_share_its_prompt(tmp_path):
    findings, _ = check_model(Plan(model=save_policy("gemma3", tmp_path / "gemma3")))
    found = find(findings, "shared prefix")
    assert found.level == "warning"
    assert "gemma3" in found.text


def test_attention_that_is_not_installed_keeps_nothing_else_from_being_checked(saved):
    asked = planned(model_init_kwargs={"attn_implementation": "flash_attention_2"})
    asked.model = saved
    findings, size = check_model(asked)
    assert size is not None
    assert {finding.level for finding in findings} == {"ok"}


def test_precision_and_adapter(saved):
    asked = planned(model_init_kwargs={"dtype": "bfloat16"})
    asked.model = saved
    asked.model_args = ModelConfig(use_peft=True, lora_r=4, lora_target_modules=["q_proj", "v_proj"])
    _, size = check_model(asked)
    model = tiny_policy()[0]
    layers = [m for name, m in model.named_modules() if name.endswith(("q_proj", "v_proj"))]
    assert size.trainable == sum(4 * (layer.in_features + layer.out_features) for layer in layers)
    assert size[2:] == (2, True)
    asked.model_args = ModelConfig(use_peft=True, lora_target_modules=["no_such_layer"])
    findings, _ = check_model(asked)
    assert find(findings, "adapter").level == "problem"
    assert "no_such_layer" in find(findings, "adapter").text


def test_a_folder_that_is_no_model(tmp_path):
    findings, size = check_model(Plan(model=str(tmp_path)))
    assert size is None
    assert find(findings, "model").level == "problem"
    assert "config.json" in find(findings, "model").text


def test_missing_weights_are_named(tmp_path, saved):
    assert missing_weights(tmp_path) == "there is no config.json"
    (tmp_path / "adapter_config.json").touch()
    assert "adapter" in missing_weights(tmp_path)
    shutil.copy(f"{saved}/config.json", tmp_path)
    assert "no weights" in missing_weights(tmp_path)
    save_file({"w": torch.zeros(1)}, tmp_path / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"w": "model-00001-of-00002.safetensors", "v": "model-00002-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-00002-of-00002.safetensors is missing" in missing_weights(tmp_path)
    save_file({"v": torch.zeros(1)}, tmp_path / "model-00002-of-00002.safetensors")
    assert missing_weights(tmp_path) is None


def test_a_config_that_is_not_json(tmp_path, saved):
    shutil.copytree(saved, tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text("{")
    findings, size = check_model(Plan(model=str(tmp_path / "model")))
    assert size is None
    assert findings[0].level == "problem"


def test_a_model_that_sees_no_images(tmp_path):
    LlamaConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=32).save_pretrained(tmp_path)
    save_file({"w": torch.zeros(1)}, tmp_path / "model.safetensors")
    (found,) = check_model(Plan(model=str(tmp_path)))[0]
    assert found.level == "problem"
    assert "llama, which sees no images" in found.text


def test_a_processor_that_is_missing_or_without_a_template(tmp_path, saved):
    shutil.copytree(saved, tmp_path / "model")
    processor = AutoProcessor.from_pretrained(saved)
    processor.chat_template = processor.tokenizer.chat_template = None
    for name in os.listdir(tmp_path / "model"):
        if name.startswith(("processor", "tokenizer", "chat_template", "preprocessor", "video")):
            (tmp_path / "model" / name).unlink()
    found = find(check_model(Plan(model=str(tmp_path / "model")))[0], "processor")
    assert found.level == "problem"
    processor.save_pretrained(tmp_path / "model")
    found = find(check_model(Plan(model=str(tmp_path / "model")))[0], "processor")
    assert (found.level, "chat template" in found.text) == ("problem", True)


@pytest.mark.parametrize(("offline", "level"), [(False, "warning"), (True, "problem")])
def test_a_name_on_the_hub_that_is_not_in_the_cache(monkeypatch, offline, level):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    (found,) = check_model(Plan(model="nobody/nothing"))[0]
    assert found.level == level
    assert "hf download nobody/nothing" in found.advice


def test_the_hub_is_asked_only_when_told_to(monkeypatch):
    asked = []

    def from_pretrained(name, **options):
        asked.append(options["local_files_only"])
        raise OSError("no such thing")

    monkeypatch.setattr(AutoConfig, "from_pretrained", from_pretrained)
    check_model(Plan(model="nobody/nothing"))
    (found,) = check_model(Plan(model="nobody/nothing", online=True))[0]
    assert asked == [True, False]
    assert found.level == "problem"
    assert "no such thing" in found.text


def test_bytes_in_words():
    assert [readable(2**20), readable(1.5 * 2**30), readable(0)] == ["1.0 MiB", "1.5 GiB", "0.0 MiB"]


# Disk

BIG = ModelSize(parameters=1_000_000_000, trainable=1_000_000_000, weight_bytes=2, adapter=False)


@pytest.mark.parametrize(
    ("size", "options", "expected"),
    [
        (BIG, {}, 6e9),  # 2 + 2 x 2 bytes a parameter
        (BIG._replace(weight_bytes=4), {}, 12e9),
        (BIG, {"states": False}, 2e9),
        (BIG, {"zero": True}, 14e9),
        (BIG, {"optimizer": "sgd"}, 2e9),
        (BIG, {"optimizer": "adamw_bnb_8bit"}, 4e9),
        (BIG._replace(trainable=10_000_000, adapter=True), {}, 6e7),
        (BIG._replace(trainable=10_000_000), {}, 2e9 + 4e7),  # frozen parts are saved, without states
    ],
)
def test_the_size_of_a_checkpoint(size, options, expected):
    assert checkpoint_bytes(size, **options) == expected


@pytest.mark.parametrize("optimizer", ["adamw_torch", "sgd"])
def test_the_estimate_is_that_of_a_real_checkpoint(tmp_path, optimizer):
    trainer = build_trainer(tmp_path, save_strategy="steps", save_steps=1, optim=optimizer)
    trainer.train()
    files = [tmp_path / "checkpoint-1" / name for name in ("model.safetensors", "optimizer.pt")]
    count = sum(p.numel() for p in trainer.model.parameters())
    estimate = checkpoint_bytes(ModelSize(count, count, 4, False), optimizer)
    assert estimate == pytest.approx(sum(file.stat().st_size for file in files), rel=0.15)  # names and headers


def room(monkeypatch, gigabytes: float):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(int(1e12), 0, int(gigabytes * 1e9)))


def level(monkeypatch, tmp_path, gigabytes, **settings):
    room(monkeypatch, gigabytes)
    defaults = {"save_only_model": False, "save_strategy": "steps", "save_total_limit": 3}
    asked = planned(**defaults | settings)
    asked.output_dir = str(tmp_path / "runs" / "new")
    (found,) = check_disk(asked, BIG)
    assert bool(found.advice) == (found.level != "ok")
    return found.level


def test_room_for_the_checkpoints(monkeypatch, tmp_path):
    # four checkpoints of 6 GB at a time and the final model of 2 GB
    assert level(monkeypatch, tmp_path, 26.1) == "ok"
    assert level(monkeypatch, tmp_path, 25.9) == "warning"
    assert level(monkeypatch, tmp_path, 5.9) == "problem"
    assert level(monkeypatch, tmp_path, 25.9, save_total_limit=2) == "ok"
    assert level(monkeypatch, tmp_path, 10.1, save_only_model=True) == "ok"
    assert level(monkeypatch, tmp_path, 2.1, save_strategy="no") == "ok"
    assert level(monkeypatch, tmp_path, 1000, save_total_limit=None) == "warning"
    assert list(tmp_path.iterdir()) == []


def test_the_best_checkpoint_needs_room_where_none_else_is_saved(monkeypatch, tmp_path):
    asked = planned(save_only_model=False, save_strategy="no", save_total_limit=None)
    asked.output_dir = str(tmp_path / "new")
    for keep_best, needed in ((True, 14), (False, 2)):  # the best one, the next best beside it, and the final model
        asked.script_args = SimpleNamespace(validate=True, keep_best=keep_best)
        room(monkeypatch, needed + 0.1)
        assert check_disk(asked, BIG)[0].level == "ok"
        room(monkeypatch, needed - 0.1)
        assert check_disk(asked, BIG)[0].level != "ok"


def test_folders_that_cannot_be_used(monkeypatch, tmp_path):
    assert check_disk(Plan(), BIG) == []
    (tmp_path / "file").touch()
    (found,) = check_disk(Plan(output_dir=str(tmp_path / "file" / "run")), BIG)
    assert (found.level, "is no folder" in found.text) == ("problem", True)
    found = check_disk(Plan(output_dir=str(tmp_path)), None)
    assert [finding.level for finding in found] == ["warning", "ok"]
    assert "--resume_from_checkpoint" in found[0].advice
    monkeypatch.setattr(tempfile, "TemporaryFile", read_only)
    (found,) = check_disk(Plan(output_dir=str(tmp_path / "run")), BIG)
    assert (found.level, "can't be written to (Read-only file system)" in found.text) == ("problem", True)


def test_the_optimizer_of_a_recipe_counts(monkeypatch, tmp_path):
    asked = planned(
        save_only_model=False, save_strategy=SimpleNamespace(value="steps"), save_total_limit=1, optim="sgd"
    )
    asked.output_dir = str(tmp_path)
    room(monkeypatch, 6.1)
    assert check_disk(asked, BIG)[0].level == "ok"
