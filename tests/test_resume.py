"""A resumed run equals the uninterrupted one, and a checkpoint that does not fit is refused."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from harness import Run, build_trainer, largest_difference, run
from q_hawkeye_trl import HawkeyeGRPOTrainer
from q_hawkeye_trl.checkpointing.checkpoint_files import MANIFEST
from q_hawkeye_trl.checkpointing.full_weights import load_full_weights
from tiny_models import FAMILIES, save_policy, tiny_dataset, tiny_policy

FAST = ("qwen2_5_vl", "qwen3_vl", "smolvlm")
families = pytest.mark.parametrize(
    "family", [f if f in FAST else pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES]
)
OPTIONS = {
    "max_steps": 3,  # four rows, two a step: the second step ends an epoch, and with it the first degraded views
    "save_strategy": "steps",
    "save_steps": 1,
    "lr_scheduler_type": "linear",
    "scripted": None,
    "max_completion_length": 8,
    "perception_gamma": 0.1,
}


TIMES = ("_time", "_runtime", "_per_second")


def length_of_text(completions, **kwargs) -> list[float]:
    """A reward that random completions differ in."""
    return [float(len(completion[0]["content"])) for completion in completions]


def earlier_is_better(completions, trainer_state, **kwargs) -> list[float]:
    """A reward that makes the first checkpoint the best one, whatever the policy does."""
    return [length / 1000 - trainer_state.global_step for length in length_of_text(completions)]


def train(folder: Path, family: str = "qwen2_5_vl", **options) -> Run:
    model, processor = tiny_policy(family)
    options = {"reward_funcs": [length_of_text]} | OPTIONS | options
    return run(folder, model=model, processing_class=processor, **options)


def resume(folder: Path, checkpoint: Path, family: str = "qwen2_5_vl", **options) -> HawkeyeGRPOTrainer:
    """Resume with a policy of other weights, so that all of them must be restored."""
    model, processor = tiny_policy(family, seed=1)
    options = {"reward_funcs": [length_of_text]} | OPTIONS | options
    trainer = build_trainer(folder, model=model, processing_class=processor, **options)
    trainer.train(resume_from_checkpoint=str(checkpoint))
    return trainer


def parameters_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


@families
def test_resumed_run_equals_the_uninterrupted_one(tmp_path, family):
    whole = train(tmp_path / "whole", family)
    resumed = resume(tmp_path / "resumed", tmp_path / "whole" / "checkpoint-1", family)
    assert resumed.state.global_step == 3
    assert_resumed_exactly(resumed, whole, family)


@pytest.mark.parametrize("shared_prefix", ["off", "on"])
@pytest.mark.parametrize("step", [3, *(pytest.param(step, marks=pytest.mark.slow) for step in (2, 5))])
def test_every_epoch_is_resumed_in_its_own_order(tmp_path, step, shared_prefix):
    # eight prompts, two a step: steps 2 and 3 lie in the first of two epochs, 5 in the second
    options = {"train_dataset": tiny_dataset(8), "max_steps": 8, "shared_prefix": shared_prefix}
    whole = train(tmp_path / "whole", **options)
    resumed = resume(tmp_path / "resumed", tmp_path / "whole" / f"checkpoint-{step}", **options)
    assert_resumed_exactly(resumed, whole)


def assert_resumed_exactly(resumed: HawkeyeGRPOTrainer, whole: Run, family: str = "qwen2_5_vl") -> None:
    """Bitwise, and the training changed the weights."""
    assert largest_difference(parameters_of(resumed.model), whole.parameters) == 0
    assert largest_difference(parameters_of(tiny_policy(family)[0]), whole.parameters) > 1e-4  # it did train
    assert any("perception/kl" in line for line in whole.logs)
    assert without_times(resumed.state.log_history) == without_times(whole.trainer.state.log_history)


def without_times(lines: list[dict]) -> list[dict]:
    return [{key: value for key, value in line.items() if not key.endswith(TIMES)} for line in lines]


def test_lora_resumes_its_adapter(tmp_path):
    def adapter() -> LoraConfig:
        return LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)

    whole = train(tmp_path / "whole", peft_config=adapter())
    model, processor = tiny_policy("qwen2_5_vl")  # the frozen base is not in the checkpoint
    options = {"reward_funcs": [length_of_text]} | OPTIONS
    resumed = build_trainer(
        tmp_path / "resumed", model=model, processing_class=processor, peft_config=adapter(), **options
    )
    lora = [parameter for name, parameter in resumed.model.named_parameters() if "lora_" in name]
    with torch.no_grad():
        for parameter in lora:
            parameter.add_(1.0)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-1"))
    assert lora
    assert largest_difference(parameters_of(resumed.model), whole.parameters) == 0


@families
def test_best_model_is_loaded_at_the_end(tmp_path, family):
    done = train(
        tmp_path,
        family,
        reward_funcs=[earlier_is_better],
        max_steps=2,
        eval_dataset=tiny_dataset(2, seed=1),
        eval_strategy="steps",
        eval_steps=1,
        per_device_eval_batch_size=8,
        load_best_model_at_end=True,
        metric_for_best_model="reward",
    )
    assert done.trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-1")
    model_class = type(done.trainer.model)
    first, last = (parameters_of(model_class.from_pretrained(tmp_path / f"checkpoint-{step}")) for step in (1, 2))
    assert largest_difference(done.parameters, first) == 0
    assert largest_difference(last, first) > 1e-4


@families
def test_all_weights_come_from_the_checkpoint(tmp_path, family):
    saved, model = tiny_policy(family)[0], tiny_policy(family, seed=1)[0]
    load_full_weights(model, save_policy(family, tmp_path))
    assert largest_difference(model.state_dict(), saved.state_dict()) == 0


@pytest.mark.parametrize(("mixed", "dtype"), [(False, torch.bfloat16), (True, torch.float32)])
def test_the_copy_on_the_way_is_no_larger_than_the_model(tmp_path, monkeypatch, mixed, dtype):
    def as_trained(seed: int):
        model = tiny_policy("qwen2_5_vl", seed=seed)[0].to(torch.bfloat16)
        if mixed:
            model.lm_head.float()
        return model

    saved, model, copies = as_trained(0), as_trained(1), []
    load = type(model).from_pretrained

    def watched(*args, **kwargs):
        loaded = load(*args, **kwargs)
        copies.append({parameter.dtype for parameter in loaded[0].parameters()})
        return loaded

    saved.save_pretrained(tmp_path)
    monkeypatch.setattr(type(model), "from_pretrained", watched)
    load_full_weights(model, tmp_path)
    assert copies == [{dtype}]
    assert largest_difference(model.state_dict(), saved.state_dict()) == 0


@families
@pytest.mark.parametrize("damage", ["missing", "unexpected", "reshaped"])
def test_damaged_checkpoint_is_refused_by_name(tmp_path, family, damage):
    save_policy(family, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = next(name for name in weights if name.endswith("layers.0.mlp.up_proj.weight"))
    if damage == "missing":
        del weights[name]
    elif damage == "unexpected":
        weights[name.replace("layers.0", "layers.7")] = weights[name].clone()
        name = name.replace("layers.0", "layers.7")
    else:
        weights[name] = weights[name][:, 1:].contiguous()
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})

    model = tiny_policy(family, seed=1)[0]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"layers\.[07]\.mlp\.up_proj\.weight"):
        load_full_weights(model, tmp_path)
    assert largest_difference(model.state_dict(), before) == 0  # nothing half loaded


def test_checkpoint_of_another_width_is_refused_by_name(tmp_path):
    save_policy("qwen2_5_vl", tmp_path, hidden_size=48)
    with pytest.raises(ValueError, match=r"mismatched_keys.*\.weight.*resume from a checkpoint of the same model"):
        load_full_weights(tiny_policy("qwen2_5_vl")[0], tmp_path)


def test_trainer_refuses_a_checkpoint_with_a_missing_key(tmp_path):
    train(tmp_path / "whole", max_steps=1)
    checkpoint = tmp_path / "whole" / "checkpoint-1"
    weights = load_file(checkpoint / "model.safetensors")
    name = next(name for name in weights if "patch_embed" in name)
    del weights[name]
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    (checkpoint / MANIFEST).unlink()  # it would report the changed size first
    with pytest.raises(ValueError, match="patch_embed"):
        resume(tmp_path / "resumed", checkpoint)
