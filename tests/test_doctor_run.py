"""The doctor's checks of the model, the disk that its checkpoints need, and the data."""

import collections
import json
import os
import shutil
import tempfile
from types import SimpleNamespace

import huggingface_hub.constants
import pytest
import torch
from datasets import Dataset, Image
from PIL import Image as PILImage
from safetensors.torch import save_file
from transformers import AutoConfig, AutoProcessor, LlamaConfig
from trl import ModelConfig

from doctor_plans import findings, levels, planned, saved_splits, three_splits
from harness import build_trainer
from q_hawkeye_trl.demo.synthetic import write_synthetic_koniq
from q_hawkeye_trl.doctor import Plan
from q_hawkeye_trl.doctor.planned_run import ModelSize, check_disk, check_model, checkpoint_bytes, missing_weights
from q_hawkeye_trl.doctor.training_data import check_data
from test_doctor_hardware import read_only
from tiny_models import save_policy, tiny_dataset, tiny_policy

Usage = collections.namedtuple("Usage", "total used free")


# Model


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> str:
    return save_policy("qwen2_5_vl", tmp_path_factory.mktemp("model"))


@pytest.fixture
def copied(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "model")


def model_finding(area: str, plan: Plan):
    (found,) = [finding for finding in findings(check_model, plan) if finding.area == area]
    return found


def test_a_whole_model(saved):
    plan = Plan(model=saved)
    assert set(levels(check_model, plan)) == {"ok"}
    count = sum(p.numel() for p in tiny_policy()[0].parameters())
    assert plan.size == ModelSize(count, count, 4, False)


def test_without_a_model_it_is_the_bundled_policy():
    plan = Plan()
    assert f"{790_240:,} parameters" in model_finding("model", plan).text
    assert plan.size.parameters == 790_240


def test_a_family_that_cannot_share_its_prompt(tmp_path):
    found = model_finding("shared prefix", Plan(model=save_policy("gemma3", tmp_path / "gemma3")))
    assert found.level == "warning"
    assert "gemma3" in found.text


def test_a_missing_attention_does_not_stop_the_other_checks(saved):
    plan = planned(model=saved, model_init_kwargs={"attn_implementation": "flash_attention_2"})
    assert set(levels(check_model, plan)) == {"ok"}
    assert plan.size is not None


def test_precision_and_adapter(saved):
    plan = planned(model=saved, model_init_kwargs={"dtype": "bfloat16"})
    plan.model_args = ModelConfig(use_peft=True, lora_r=4, lora_target_modules=["q_proj", "v_proj"])
    findings(check_model, plan)
    model = tiny_policy()[0]
    layers = [m for name, m in model.named_modules() if name.endswith(("q_proj", "v_proj"))]
    assert plan.size.trainable == sum(4 * (layer.in_features + layer.out_features) for layer in layers)
    assert plan.size[2:] == (2, True)
    plan.model_args = ModelConfig(use_peft=True, lora_target_modules=["no_such_layer"])
    found = model_finding("adapter", plan)
    assert found.level == "problem"
    assert "no_such_layer" in found.text


def test_missing_weights_are_named(tmp_path, saved):
    assert "config.json" in model_finding("model", Plan(model=str(tmp_path))).text
    (tmp_path / "adapter_config.json").touch()
    assert "adapter" in missing_weights(tmp_path)
    shutil.copy(f"{saved}/config.json", tmp_path)
    assert "no weights" in missing_weights(tmp_path)
    first, second = (f"model-0000{n}-of-00002.safetensors" for n in (1, 2))
    save_file({"w": torch.zeros(1)}, tmp_path / first)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": first, "v": second}}))
    assert second in missing_weights(tmp_path)
    save_file({"v": torch.zeros(1)}, tmp_path / second)
    assert missing_weights(tmp_path) is None


def test_a_config_that_is_not_json(copied):
    (copied / "config.json").write_text("{")
    plan = Plan(model=str(copied))
    assert levels(check_model, plan) == ["problem"]
    assert plan.size is None


def test_a_model_without_images(tmp_path):
    LlamaConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=32).save_pretrained(tmp_path)
    save_file({"w": torch.zeros(1)}, tmp_path / "model.safetensors")
    (found,) = findings(check_model, Plan(model=str(tmp_path)))
    assert found.level == "problem"
    assert "llama" in found.text


def test_a_processor_that_is_missing_or_without_a_template(saved, copied):
    processor = AutoProcessor.from_pretrained(saved)
    processor.chat_template = processor.tokenizer.chat_template = None
    for name in os.listdir(copied):
        if name.startswith(("processor", "tokenizer", "chat_template", "preprocessor", "video")):
            (copied / name).unlink()
    assert model_finding("processor", Plan(model=str(copied))).level == "problem"
    processor.save_pretrained(copied)
    found = model_finding("processor", Plan(model=str(copied)))
    assert found.level == "problem"
    assert "chat template" in found.text


@pytest.mark.parametrize(("offline", "level"), [(False, "warning"), (True, "problem")])
def test_a_name_on_the_hub_that_is_not_cached(monkeypatch, offline, level):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    (found,) = findings(check_model, Plan(model="nobody/nothing"))
    assert found.level == level
    assert "hf download nobody/nothing" in found.advice


def test_only_an_online_plan_asks_the_hub(monkeypatch):
    asked = []

    def from_pretrained(name, **options):
        asked.append(options["local_files_only"])
        raise OSError("no such thing")

    monkeypatch.setattr(AutoConfig, "from_pretrained", from_pretrained)
    findings(check_model, Plan(model="nobody/nothing"))
    (found,) = findings(check_model, Plan(model="nobody/nothing", online=True))
    assert asked == [True, False]
    assert found.level == "problem"
    assert "no such thing" in found.text


# Disk

BIG = ModelSize(parameters=1_000_000_000, trainable=1_000_000_000, weight_bytes=2, adapter=False)


@pytest.mark.parametrize(
    ("size", "options", "expected"),
    [
        (BIG, {}, 6e9),  # 2 + 2 x 2 bytes per parameter
        (BIG._replace(weight_bytes=4), {}, 12e9),
        (BIG, {"states": False}, 2e9),
        (BIG, {"zero": True}, 14e9),
        (BIG, {"optimizer": "sgd"}, 2e9),
        (BIG, {"optimizer": "adamw_bnb_8bit"}, 4e9),
        (BIG._replace(trainable=10_000_000, adapter=True), {}, 6e7),
        (BIG._replace(trainable=10_000_000), {}, 2e9 + 4e7),  # frozen parameters are saved, without states
    ],
)
def test_the_size_of_a_checkpoint(size, options, expected):
    assert checkpoint_bytes(size, **{"optimizer": "adamw_torch"} | options) == expected


@pytest.mark.parametrize("optimizer", ["adamw_torch", "sgd"])
def test_the_estimate_matches_a_real_checkpoint(tmp_path, optimizer):
    trainer = build_trainer(tmp_path, save_strategy="steps", save_steps=1, optim=optimizer)
    trainer.train()
    files = [tmp_path / "checkpoint-1" / name for name in ("model.safetensors", "optimizer.pt")]
    count = sum(p.numel() for p in trainer.model.parameters())
    estimate = checkpoint_bytes(ModelSize(count, count, 4, False), optimizer)
    assert estimate == pytest.approx(sum(file.stat().st_size for file in files), rel=0.15)  # names and headers


BEST, NONE = (SimpleNamespace(validate=True, keep_best=keep) for keep in (True, False))


@pytest.mark.parametrize(
    ("gigabytes", "settings", "level"),
    [
        # by default four checkpoints of 6 GB at a time, and the final model of 2 GB
        (26.1, {}, "ok"),
        (25.9, {}, "warning"),
        (5.9, {}, "problem"),
        (25.9, {"save_total_limit": 2}, "ok"),
        (10.1, {"save_only_model": True}, "ok"),
        (1000, {"save_total_limit": None}, "warning"),
        (6.1, {"save_strategy": SimpleNamespace(value="steps"), "save_total_limit": 1, "optim": "sgd"}, "ok"),
        (2.1, {"save_strategy": "no"}, "ok"),
        # the best checkpoint, the next best while it is written, and the final model
        (14.1, {"save_strategy": "no", "save_total_limit": None, "script_args": BEST}, "ok"),
        (13.9, {"save_strategy": "no", "save_total_limit": None, "script_args": BEST}, "warning"),
        (2.1, {"save_strategy": "no", "save_total_limit": None, "script_args": NONE}, "ok"),
        (1.9, {"save_strategy": "no", "save_total_limit": None, "script_args": NONE}, "problem"),
    ],
)
def test_room_for_the_checkpoints(monkeypatch, tmp_path, gigabytes, settings, level):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(int(1e12), 0, int(gigabytes * 1e9)))
    plan = planned(output_dir=str(tmp_path / "new"), **{"save_strategy": "steps", "save_total_limit": 3} | settings)
    plan.size = BIG
    assert levels(check_disk, plan) == [level]
    assert list(tmp_path.iterdir()) == []


def test_folders_that_cannot_be_used(monkeypatch, tmp_path):
    assert findings(check_disk) == []
    (tmp_path / "file").touch()
    (found,) = findings(check_disk, Plan(output_dir=str(tmp_path / "file" / "run")))
    assert found.level == "problem"
    assert str(tmp_path / "file") in found.text
    taken, _ = findings(check_disk, Plan(output_dir=str(tmp_path)))
    assert taken.level == "warning"
    assert "--resume_from_checkpoint" in taken.advice
    monkeypatch.setattr(tempfile, "NamedTemporaryFile", read_only)
    (found,) = findings(check_disk, Plan(output_dir=str(tmp_path / "run")))
    assert found.level == "problem"
    assert "Read-only file system" in found.text


# Data


def faults(plan: Plan) -> list[tuple[str, str]]:
    return [(finding.level, finding.text) for finding in findings(check_data, plan) if finding.level != "ok"]


def with_column(rows: Dataset, name: str, values: list) -> Dataset:
    return rows.remove_columns(name).add_column(name, values)


def test_prepared_data(tmp_path):
    plan = saved_splits(tmp_path / "data", **three_splits(degraded=True))
    found = findings(check_data, plan)
    assert [finding.area for finding in found] == ["data train", "data validation", "data test"]
    assert {finding.level for finding in found} == {"ok"}
    mos = plan.splits["train"]["mos"]
    assert f"4 rows, MOS {min(mos):.2f} to {max(mos):.2f}, mean {sum(mos) / 4:.2f}" in found[0].text
    assert "4 rows and 4 degraded views" in found[0].text


def test_koniq(tmp_path):
    write_synthetic_koniq(tmp_path / "koniq", train=10, validation=2, test=2, progress=False)
    plan = Plan(data=str(tmp_path / "koniq"))
    assert set(levels(check_data, plan)) == {"ok"}
    assert {name: len(rows) for name, rows in plan.splits.items()} == {"training": 10, "validation": 2, "test": 2}
    (tmp_path / "koniq" / "512x384" / plan.splits["training"]["image_id"][0]).unlink()
    for missing, level in ((0, "problem"), (1, "warning")):
        script_args = SimpleNamespace(mos_scale="deqa", allow_missing=missing)
        assert [level for level, _ in faults(Plan(data=plan.data, script_args=script_args))] == [level]


@pytest.mark.parametrize("folder", ["missing", "."])
def test_nothing_to_load(tmp_path, folder):
    assert findings(check_data) == []
    assert [level for level, _ in faults(Plan(data=str(tmp_path / folder)))] == ["problem"]


@pytest.mark.parametrize(("mos", "part"), [([1.0, 2.0, 3.0, 72.5], "Row 3"), ([3.0] * 4, "the same")])
def test_mos_beyond_the_scale_or_all_the_same(tmp_path, mos, part):
    splits = three_splits()
    splits["train"] = with_column(splits["train"], "mos", mos)
    ((level, text),) = faults(saved_splits(tmp_path / "data", **splits))
    assert level == "problem"
    assert part in text


def test_a_missing_column(tmp_path):
    splits = {name: rows.remove_columns("mos") for name, rows in three_splits().items()}
    found = faults(saved_splits(tmp_path / "data", **splits))
    assert [level for level, _ in found] == ["problem"] * 3
    assert "mos" in found[0][1]


def test_an_image_that_does_not_decode(tmp_path):
    splits = three_splits()
    names = [str(tmp_path / f"{number}.png") for number in range(4)]
    for name in names:
        PILImage.new("RGB", (8, 8)).save(name)
    splits["train"] = with_column(splits["train"], "image", names).cast_column("image", Image())
    (tmp_path / "2.png").write_bytes(b"no image")
    ((level, text),) = faults(saved_splits(tmp_path / "data", **splits))
    assert level == "problem"
    assert "2.png" in text


def test_a_degraded_view_of_another_size(tmp_path):
    splits = three_splits()
    views = [PILImage.new("RGB", (84, 56))] * 3 + [PILImage.new("RGB", (56, 84))]
    rows = [row | {"degraded_image": view} for row, view in zip(splits["train"], views, strict=True)]
    ((level, text),) = faults(saved_splits(tmp_path / "data", **splits | {"train": Dataset.from_list(rows)}))
    assert level == "problem"
    assert "row 3 (picture-0-3)" in text


def test_missing_splits(tmp_path):
    splits = three_splits()
    plan = saved_splits(tmp_path / "data", training=splits["train"], test=splits["test"])
    (train, validation) = faults(plan)
    assert (train[0], "'train'" in train[1]) == ("problem", True)
    assert (validation[0], "'validation'" in validation[1]) == ("warning", True)
    plan.script_args = SimpleNamespace(held_out_split="held", validate=False, validation_split=None)
    assert ["'held'" in text for _, text in faults(plan)] == [False, True]


def test_one_dataset_without_splits(tmp_path):
    tiny_dataset(4).save_to_disk(tmp_path / "data")
    assert "'train'" in faults(Plan(data=str(tmp_path / "data")))[0][1]


def test_images_in_two_splits(tmp_path):
    splits = three_splits()
    splits["test"] = with_column(splits["test"], "image_id", ["picture-0-1", "picture-0-2", "x", "y"])
    ((level, text),) = faults(saved_splits(tmp_path / "data", **splits))
    assert level == "warning"
    assert text == "2 image_ids are in 'train' and in 'test', for example picture-0-1"
