"""TRL's other features with the Hawkeye terms on, and, with all of them off, equal to stock bit for bit."""

import math
from pathlib import Path

import pandas as pd
import pytest
from peft import LoraConfig
from transformers import AutoModelForImageTextToText, AutoProcessor

import q_hawkeye_trl.hawkeye_method as hawkeye
from harness import OFF, ON, Run, largest_difference, relative_difference, run
from tiny_models import save_policy, tiny_dataset, tiny_policy

LORA = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
SMALL = {"per_device_train_batch_size": 2}
FEATURES = {
    "num_iterations": {"num_iterations": 2},
    "generation twice the accumulation": SMALL | {"gradient_accumulation_steps": 2, "steps_per_generation": 4},
    "generation half the accumulation": {"gradient_accumulation_steps": 2, "steps_per_generation": 1},
    "generation uneven with the accumulation": SMALL | {"gradient_accumulation_steps": 3, "steps_per_generation": 2},
    "top_entropy_quantile": {"top_entropy_quantile": 0.5},
    "scale_rewards batch": {"scale_rewards": "batch"},
    "scale_rewards none": {"scale_rewards": "none"},
    "normalize_then_sum": {"multi_objective_aggregation": "normalize_then_sum"},
    "reward_weights": {"reward_weights": [1.0, 0.25]},
    "sequence ratio": {"importance_sampling_level": "sequence", "loss_type": "grpo", "num_iterations": 2},
    "delta": {"delta": 1.5, "num_iterations": 2},
    "off_policy_mask_threshold": {"off_policy_mask_threshold": 0.5, "num_iterations": 2},
    "lora with beta": {"peft_config": LORA, "beta": 0.04},
    "lora with use_bias_correction_kl": {
        "peft_config": LORA,
        "beta": 0.04,
        "use_bias_correction_kl": True,
        "num_iterations": 2,
    },
    "lora with checkpointing": {"peft_config": LORA, "activation_checkpointing": True},
    "activation_checkpointing": {"activation_checkpointing": True},
    "grpo": {"loss_type": "grpo"},
    "bnpo": {"loss_type": "bnpo"},
    "dr_grpo": {"loss_type": "dr_grpo"},
    "cispo": {"loss_type": "cispo", "epsilon_high": 5.0},
    "sapo": {"loss_type": "sapo"},
    "vespo": {"loss_type": "vespo"},
    "luspo": {"loss_type": "luspo", "importance_sampling_level": "sequence"},
    "temperature": {"temperature": 0.7},
    "pad_to_multiple_of": {"pad_to_multiple_of": 16},
    "shuffle_dataset off": {"shuffle_dataset": False},
    "log_completions": {"log_completions": True, "num_completions_to_print": 1},
}


def length_of_text(completions, **kwargs) -> list[float]:
    """A reward that random completions differ in."""
    return [float(len(completion[0]["content"])) for completion in completions]


FEATURES["sampled by the policy"] = {"scripted": None, "max_completion_length": 8, "reward_funcs": [length_of_text]}
# stock GRPO would drop the MOS, so only a reward that does without it can be compared
FEATURES["remove_unused_columns"] = {"remove_unused_columns": True, "reward_funcs": [length_of_text]}


def reference_model(folder: Path) -> dict:
    """A policy with a reference model of its own, which follows it."""
    path = save_policy("qwen2_5_vl", folder / "policy")
    model, processor = AutoModelForImageTextToText.from_pretrained(path), AutoProcessor.from_pretrained(path)
    options = {"model": model, "processing_class": processor, "beta": 0.04}
    return options | {"sync_ref_model": True, "ref_model_sync_steps": 1}


def head_in_float32(folder: Path) -> dict:
    """TRL finds the embeddings of a tied head in some models only; Qwen2-VL's head here is not tied."""
    model, processor = tiny_policy("qwen2_vl")
    return {"model": model, "processing_class": processor, "cast_lm_head_to_fp32": True}


def iterable_dataset(folder: Path) -> dict:
    return {"train_dataset": tiny_dataset(4).to_iterable_dataset()}


def iterable_dataset_with_twins(folder: Path) -> dict:
    return {"train_dataset": tiny_dataset(4, degraded=True).to_iterable_dataset()}


BUILT = {
    "reference model in sync": reference_model,
    "cast_lm_head_to_fp32": head_in_float32,
    "iterable dataset": iterable_dataset,
    "iterable dataset with twins": iterable_dataset_with_twins,
}


def check_feature(folder: Path, options_of) -> None:
    """Two steps with all terms on, with all off and of stock GRPO; `options_of` builds fresh options for each."""
    on, off, stock = (run(folder, max_steps=2, **terms, **options_of()) for terms in (ON, OFF, {"stock": True}))
    assert largest_difference(off.parameters, stock.parameters) == 0.0
    assert max(gradient.abs().max() for gradient in stock.gradients[0].values()) > 0
    assert largest_difference(on.parameters, off.parameters) > 1e-5
    check_logs(on)
    assert not [key for line in off.logs for key in line if key.startswith(("perception/", "uncertainty/"))]


def check_logs(on: Run, steps: int = 2) -> None:
    """All three terms and the weights show in the log of a run with the terms on."""
    assert len(on.logs) == steps
    for line in on.logs:
        assert math.isfinite(line["loss"])
        assert 1e-6 < line["perception/kl"] < 10
        assert 0 < line["perception/entropy_original"] < math.log(512)
        assert 0 < line["perception/entropy_degraded"] < math.log(512)
        assert line["perception/gamma"] > 0
        assert line.get("perception/rows_without_view", 0) == 0
    assert on.logs[0]["perception/rows_without_view"] == 0  # once a generation batch
    assert 0 < on.logs[0]["uncertainty/weight_min"] < 1


@pytest.mark.parametrize("options", FEATURES.values(), ids=FEATURES.keys())
def test_feature_works_with_the_terms_and_is_stock_without(tmp_path, options):
    check_feature(tmp_path, lambda: dict(options))


@pytest.mark.parametrize("options_of", BUILT.values(), ids=BUILT.keys())
def test_built_feature_works_with_the_terms_and_is_stock_without(tmp_path, options_of):
    check_feature(tmp_path, lambda: options_of(tmp_path))


def test_remove_unused_columns_keeps_the_twin_and_the_mos(tmp_path):
    data = tiny_dataset(4, degraded=True)
    kept, removed = (run(tmp_path, train_dataset=data, remove_unused_columns=r, **ON) for r in (False, True))
    assert largest_difference(removed.gradients[0], kept.gradients[0]) == 0
    assert removed.logs[0]["rewards/accuracy_reward/mean"] > 0
    fly = run(tmp_path, train_dataset=data.remove_columns("degraded_image"), **ON)
    assert relative_difference(fly.gradients[0], kept.gradients[0]) > 1e-3  # so the column was read


def test_num_iterations_share_one_degraded_view(tmp_path, monkeypatch):
    calls = []
    build = hawkeye.degraded_pixel_values
    monkeypatch.setattr(hawkeye, "degraded_pixel_values", lambda *a, **k: calls.append(1) or build(*a, **k))
    done = run(tmp_path, max_steps=4, num_iterations=2, **ON)
    assert len(calls) == 2
    check_logs(done, steps=4)


def test_log_completions_shows_the_advantages_before_the_weights(tmp_path):
    tables = []
    for terms in (ON, {"stock": True}):
        folder = tmp_path / str(len(tables))
        run(folder, log_completions=True, **terms)
        tables.append(pd.read_parquet(next((folder / "completions").glob("*.parquet"))))
    ours, stock = tables
    assert len(ours) == 8
    assert ours["advantage"].tolist() == stock["advantage"].tolist()
