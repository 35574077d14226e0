"""
Every recipe runs for two steps with a tiny policy. Replaced are the model (and with it precision, attention and the
longest completion), the data and the batch; the rest of the recipe must reach the trainer.
"""

import os
import runpy
import sys
from pathlib import Path
from unittest import mock

import pytest
import trl.generation.vllm_generation as backend
from datasets import load_from_disk

import q_hawkeye_trl
import test_vllm
from q_hawkeye_trl import HawkeyeGRPOConfig
from q_hawkeye_trl.demo.policy import demo_policy_path
from q_hawkeye_trl.demo.synthetic import write_synthetic_koniq
from q_hawkeye_trl.train.run_folder import read_metrics
from recipe_files import FOLDER, SCRIPT, TRAINING, name_of, resolved
from tiny_models import save_policy

FAST = {
    "ablations/release_as_written.yaml",
    "ablations/reward_rank.yaml",
    "koniq/qwen2_5_vl_7b_lora.yaml",
    "koniq/qwen3_vl_8b.yaml",
}
"""One a kind of machinery: the detached branch, rewards across images, an adapter, another family."""

REPLACED = {
    "model_name_or_path",
    "dtype",
    "attn_implementation",
    "max_completion_length",
    "bf16",
    "load_in_4bit",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "output_dir",
    "held_out_images",
    "max_steps",
    "report_to",
}


def marks_of(path: Path) -> list:
    return [] if name_of(path) in FAST else [pytest.mark.slow]


PARAMETERS = [pytest.param(path, id=name_of(path), marks=marks_of(path)) for path in TRAINING]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A small synthetic set in KonIQ-10k's layout."""
    folder = tmp_path_factory.mktemp("data") / "koniq10k"
    return write_synthetic_koniq(folder, train=8, validation=2, test=4, progress=False)


@pytest.fixture(scope="module")
def policies(tmp_path_factory) -> dict[str, str]:
    """A tiny policy for each model that recipes name; the bundled one where they name none."""
    folder = tmp_path_factory.mktemp("policies")
    made = {family: save_policy(family, folder / family) for family in ("qwen2_5_vl", "qwen3_vl")}
    return {"": str(demo_policy_path()), "Qwen2.5": made["qwen2_5_vl"], "Qwen3": made["qwen3_vl"]}


class SleepyEngine(test_vllm.Colocated):
    """`vllm.LLM` with its sleep mode."""

    def __init__(self, engine):
        super().__init__(engine)
        self.calls: list[str] = []

    def sleep(self, level: int) -> None:
        self.calls.append("sleep")

    def wake_up(self, tags: list[str]) -> None:
        self.calls.append(tags[0])


@pytest.fixture
def engines(monkeypatch) -> list:
    """Replace vLLM at its class boundary; return the engines that were built."""
    built: list = []

    def colocated(**options):
        built.append(SleepyEngine(test_vllm.Engine(0.0, test_vllm.ANSWERS)))
        return built[-1]

    def client(**options):
        built.append(test_vllm.Client(test_vllm.Engine(0.0, test_vllm.ANSWERS)))
        return built[-1]

    monkeypatch.setattr(backend, "is_vllm_available", lambda: True)
    monkeypatch.setattr(backend, "SamplingParams", lambda **kwargs: kwargs, raising=False)
    monkeypatch.setattr(backend, "LLM", colocated, raising=False)
    monkeypatch.setattr(backend, "VLLMClient", client)
    with mock.patch.dict(os.environ):  # TRL sets the rank there
        yield built


@pytest.fixture
def train(monkeypatch, tmp_path, data, policies):
    """Trains with a recipe as a user would, at tiny size; gives the trainer and the folder of the run."""

    def train(path: Path, *further: str):
        recipe, made = resolved(path), []
        model = next(policies[key] for key in ("Qwen3", "Qwen2.5", "") if key in recipe.get("model_name_or_path", ""))
        small = {"model_name_or_path": model, "dtype": "float32", "attn_implementation": "sdpa"}
        small |= {"bf16": "false", "use_cpu": "true", "load_in_4bit": "false", "max_completion_length": 24}
        small |= {"per_device_train_batch_size": 2 * recipe["num_generations"], "gradient_accumulation_steps": 1}
        small |= {"max_steps": 2, "held_out_images": 2, "output_dir": tmp_path / "run"}
        words = [word for key, value in small.items() for word in (f"--{key}", str(value))]
        source = further or ("--data_dir", str(data))
        trainer_class = q_hawkeye_trl.HawkeyeGRPOTrainer

        def build(**options):
            made.append(trainer_class(**options))
            return made[-1]

        monkeypatch.setattr(q_hawkeye_trl, "HawkeyeGRPOTrainer", build)
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--config", str(path), *words, *source])
        runpy.run_path(str(SCRIPT), run_name="__main__")
        (trainer,) = made
        return trainer, tmp_path / "run"

    return train


def check_the_recipe_arrived(trainer, recipe: dict) -> None:
    """Compares the trainer with all keys of the recipe that were not replaced."""
    fields = HawkeyeGRPOConfig.__dataclass_fields__
    plain = {key for key in recipe if key in fields} - REPLACED - {"save_strategy", "eval_strategy"}
    assert plain
    for key in plain:
        assert getattr(trainer.args, key) == recipe[key], key
    names = [getattr(reward, "__name__", "") for reward in trainer.reward_funcs]
    assert names == [f"{name}_reward" for name in recipe["rewards"]]
    if "max_pixels" in recipe:
        assert trainer.processing_class.image_processor.size["longest_edge"] == recipe["max_pixels"]
    if recipe.get("use_peft"):
        adapter = trainer.model.peft_config["default"]
        assert (adapter.r, adapter.lora_alpha) == (recipe["lora_r"], recipe["lora_alpha"])
        trained = [name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad]
        assert len(trained) == 2 * 7 * trainer.model.config.text_config.num_hidden_layers
        assert all("language_model" in name for name in trained)


def check_it_trained(trainer, folder: Path) -> None:
    lines = [line for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]
    assert [line["step"] for line in lines] == [1, 2]
    assert all(line["loss"] is not None and line["grad_norm"] is not None for line in lines)
    args = trainer.args
    assert ("perception/kl" in lines[0]) == args.uses_degraded_view
    assert ("uncertainty/weight_mean" in lines[0]) == (args.uncertainty_alpha > 0)
    assert ("kl" in lines[0]) == (args.beta > 0)
    assert (folder / "README.md").is_file()


@pytest.mark.parametrize("path", PARAMETERS)
def test_a_recipe_trains_for_two_steps(train, engines, path):
    recipe = resolved(path)
    trainer, folder = train(path)
    check_the_recipe_arrived(trainer, recipe)
    check_it_trained(trainer, folder)
    assert len(engines) == bool(recipe.get("use_vllm"))
    if recipe.get("vllm_enable_sleep_mode"):  # asleep from its start, woken for weights and again for answers
        assert engines[0].calls[:4] == ["sleep", "weights", "kv_cache", "sleep"]


@pytest.mark.slow
def test_the_mix_trains_on_prepared_pairs(train, tmp_path, monkeypatch, capsys):
    """The recipe of several sets on what its own header's commands make of small sets."""
    import test_recipes

    test_recipes.test_q_hawkeye_commands_of_headers_run(tmp_path, monkeypatch, capsys)
    trainer, folder = train(FOLDER / "koniq" / "qwen2_5_vl_7b_mix.yaml", "--dataset", str(tmp_path / "data" / "pairs"))
    check_it_trained(trainer, folder)
    assert len(load_from_disk(tmp_path / "data" / "pairs")["train"]) == len(trainer.train_dataset)
    lines = read_metrics(folder / "metrics.jsonl")
    assert "rewards/rank_reward/mean" in lines[0]
    assert lines[0]["perception/rows_without_view"] == 0
