"""Loading policies: whole ones, adapters over their base, and the two merged."""

import copy
import json
import shutil

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from q_hawkeye_trl.data.messages import with_images
from q_hawkeye_trl.demo.policy import demo_policy_path
from q_hawkeye_trl.generation.engine import PolicyAnswers
from q_hawkeye_trl.scoring.policy import adapter_base, load_policy, merge_adapter
from q_hawkeye_trl.text import quality_messages
from tiny_models import save_policy, tiny_policy

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "smolvlm", "gemma3")
LORA = LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
IMAGES = [Image.effect_mandelbrot((84, 56), (-2, -1.5, 1, 1.5), n).convert("RGB") for n in (10, 50, 100)]


def texts(model, processor) -> list:
    rows = [with_images({"prompt": quality_messages(), "images": [image]}) for image in IMAGES]
    return PolicyAnswers(model, processor, max_new_tokens=12)(rows)


def adapter(family: str, base: str, folder, *, processor: bool = False) -> list:
    """Saves a random adapter over a saved base; returns the texts of the two in memory."""
    model, own = tiny_policy(family)
    plain = texts(model, own)
    model.name_or_path = base
    torch.manual_seed(5)
    wrapped = get_peft_model(model, copy.deepcopy(LORA))
    wrapped.peft_config["default"].base_model_name_or_path = base
    wrapped.save_pretrained(folder)
    if processor:
        own.save_pretrained(folder)
    changed = texts(wrapped, own)
    assert changed != plain  # the adapter matters
    return changed


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_policy_answers_as_in_memory(tmp_path, family):
    base = save_policy(family, tmp_path / "base")
    model, processor = load_policy(base, device="cpu")
    assert not model.training
    assert model.dtype == torch.float32
    assert texts(model, processor) == texts(*tiny_policy(family))


@pytest.mark.parametrize("device", ["nonsense", "cuda:77"])
def test_a_device_that_is_not_there_is_an_error_that_names_it(device):
    with pytest.raises(ValueError, match=device):
        load_policy(demo_policy_path(), device=device)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("processor", [False, True])
def test_an_adapter_answers_as_in_memory_without_merging(tmp_path, family, processor):
    base = save_policy(family, tmp_path / "base")
    expected = adapter(family, base, tmp_path / "adapter", processor=processor)
    model, loaded = load_policy(tmp_path / "adapter", device="cpu")
    assert any("lora_A" in name for name, _ in model.named_parameters())
    assert texts(model, loaded) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_a_merged_adapter_is_a_plain_model_with_the_same_answers(tmp_path, family):
    base = save_policy(family, tmp_path / "base")
    expected = adapter(family, base, tmp_path / "adapter")
    merged = merge_adapter(tmp_path / "adapter", tmp_path / "to" / "merged")
    assert not (merged / "adapter_config.json").exists()
    shutil.rmtree(base)  # it needs neither
    shutil.rmtree(tmp_path / "adapter")
    assert texts(*load_policy(merged, device="cpu")) == expected
    assert sorted(path.name for path in (tmp_path / "to").iterdir()) == ["merged"]
    AutoModelForImageTextToText.from_pretrained(merged)


def test_merging_adds_the_product_of_the_factors(tmp_path):
    base = save_policy("qwen2_5_vl", tmp_path / "base")
    adapter("qwen2_5_vl", base, tmp_path / "adapter")
    merged, _ = load_policy(merge_adapter(tmp_path / "adapter", tmp_path / "merged"), device="cpu")
    factors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    name = next(key for key in factors if "language_model.layers.1.self_attn.q_proj.lora_A" in key)
    change = factors[name.replace("lora_A", "lora_B")] @ factors[name] * (16 / 4)
    before = tiny_policy("qwen2_5_vl")[0].model.language_model.layers[1].self_attn.q_proj.weight
    after = merged.model.language_model.layers[1].self_attn.q_proj.weight
    assert torch.allclose(after, before + change, atol=1e-6)
    assert change.abs().max() > 1e-3


def test_nothing_is_overwritten(tmp_path):
    base = save_policy("qwen2_5_vl", tmp_path / "base")
    adapter("qwen2_5_vl", base, tmp_path / "adapter")
    (tmp_path / "taken").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("taken", "dangling", "base"):
        with pytest.raises(FileExistsError, match=str(name)):
            merge_adapter(tmp_path / "adapter", tmp_path / name)


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    base = save_policy("qwen2_5_vl", tmp_path / "base")
    adapter("qwen2_5_vl", base, tmp_path / "adapter")
    monkeypatch.setattr("os.rename", lambda *names: (_ for _ in ()).throw(OSError("disk")))
    with pytest.raises(OSError, match="disk"):
        merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


def test_a_whole_model_is_not_merged(tmp_path):
    with pytest.raises(ValueError, match="adapter_config"):
        merge_adapter(save_policy("qwen2_5_vl", tmp_path / "base"), tmp_path / "merged")


def test_an_adapter_of_another_kind_is_refused(tmp_path):
    PrefixTuningConfig(task_type="CAUSAL_LM", base_model_name_or_path=str(tmp_path)).save_pretrained(tmp_path / "a")
    with pytest.raises(ValueError, match="LoRA"):
        adapter_base(tmp_path / "a")


def test_missing_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}/gone"):
        load_policy(tmp_path / "gone")
    adapter("qwen2_5_vl", str(tmp_path / "moved"), tmp_path / "adapter")
    with pytest.raises(FileNotFoundError, match="moved"):
        load_policy(tmp_path / "adapter")


def test_missing_weights_are_an_error_and_not_random(tmp_path):
    base = save_policy("qwen2_5_vl", tmp_path / "base")
    file = tmp_path / "base" / "model.safetensors"
    weights = load_file(file)
    gone = next(name for name in weights if "q_proj.weight" in name)
    del weights[gone]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="q_proj"):
        load_policy(base)


def test_an_adapter_that_does_not_fit_is_an_error_and_not_half_there(tmp_path):
    base = save_policy("qwen2_5_vl", tmp_path / "base")
    adapter("qwen2_5_vl", base, tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    weights = load_file(file)
    gone = next(iter(weights))
    save_file({name: value for name, value in weights.items() if name != gone}, file)
    with pytest.raises(ValueError, match="base"):
        load_policy(tmp_path / "adapter")
    save_file({name: torch.zeros(3, 3) for name in weights}, file)
    with pytest.raises(ValueError, match="base"):
        load_policy(tmp_path / "adapter")


def test_damaged_files_are_named(tmp_path):
    base = save_policy("qwen2_5_vl", tmp_path / "base")
    file = tmp_path / "base" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(OSError, match=str(base)):
        load_policy(base)
    with pytest.raises(OSError, match="no-such-model"):
        load_policy("no-such-model")


def test_max_pixels_shrinks_what_the_model_sees(tmp_path):
    base = save_policy("qwen2_5_vl", tmp_path / "base")
    image = Image.new("RGB", (224, 224))
    counts = []
    for limit in (None, 56 * 56):
        _, processor = load_policy(base, device="cpu", max_pixels=limit)
        counts.append(len(processor.image_processor([image], return_tensors="pt")["pixel_values"]))
    assert counts[1] < counts[0]


@pytest.mark.parametrize(("dtype", "expected"), [("bfloat16", torch.bfloat16), ("auto", torch.float32)])
def test_dtypes(tmp_path, dtype, expected):
    base = save_policy("qwen2_5_vl", tmp_path / "base")
    assert load_policy(base, device="cpu", dtype=dtype)[0].dtype == expected


def test_an_unknown_dtype_is_an_error(tmp_path):
    base = save_policy("qwen2_5_vl", tmp_path / "base")
    with pytest.raises(ValueError, match="int4"):
        load_policy(base, dtype="int4")


def test_no_code_of_the_model_runs_unasked(tmp_path):
    base = save_policy("qwen2_5_vl", tmp_path / "base")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForImageTextToText": "evil.Model"}
    config["model_type"] = "evil"
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    (tmp_path / "base" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(ValueError, match="trust_remote_code"):
        load_policy(base)
    assert not (tmp_path / "ran").exists()
