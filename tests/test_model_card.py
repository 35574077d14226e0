"""The card of a model: what it says, what the Hub's own reader makes of it, and what must not stand in it."""

import dataclasses
import math

import pytest
import yaml
from huggingface_hub import ModelCard

from q_hawkeye_trl import HawkeyeGRPOConfig
from q_hawkeye_trl.report.model_card import data_part, recipe_of, write_model_card
from q_hawkeye_trl.wording import FIGURES

METHOD = {"name": "Q-Hawkeye", "title": "Reliable Visual Policies", "id": "2601.22920", "citation": "@article{q,\n}"}
BEFORE = dict.fromkeys(FIGURES, 0.5) | {"srcc_greedy": 0.6123}
AFTER = dict.fromkeys(FIGURES, 0.75) | {"srcc_greedy": 0.8124, "plcc_sampled": math.nan, "spread": None}


def write(folder, **changes):
    options = {
        "name": "koniq-7b",
        "method": METHOD,
        "start": "Qwen/Qwen2.5-VL-7B-Instruct",
        "base_model": "Qwen/Qwen2.5-VL-7B-Instruct",
        "tags": ["trl", "grpo", "q-hawkeye"],
        "data": {
            "source": "KonIQ-10k",
            "score_min": 1.0,
            "score_max": 5.0,
            "mos_scale": "deqa",
            "parts": [data_part("training", "train", [1, 2, 3]), data_part("evaluation", "test", [2.0, 4.0])],
        },
        "recipe": {"learning_rate": 1e-6, "rewards": ["accuracy", "format"]},
        "before": BEFORE,
        "after": AFTER,
        "validation": [{"step": 10, "eval_srcc_sampled": 0.7, "eval_spread": None}, {"step": 20}],
        "best": {"step": 10, "name": "srcc_sampled", "value": 0.7},
        "steps": 20,
        "seed": 3,
        "seconds": 61.4,
        "resumed": False,
        "versions": {"trl": "1.16.0"},
    }
    return write_model_card(folder, **options | changes)


def test_the_hubs_reader_finds_metadata_and_figures(tmp_path):
    card = ModelCard.load(write(tmp_path))
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "image-text-to-text"
    assert card.data.base_model == "Qwen/Qwen2.5-VL-7B-Instruct"
    assert {"trl", "q-hawkeye", "image-quality-assessment"} <= set(card.data.tags)
    assert card.data.model_name == "koniq-7b"
    figures = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert figures == {"SRCC, sampled": 0.75, "SRCC, greedy": 0.8124, "PLCC, greedy": 0.75}  # no NaN
    assert {result.dataset_name for result in card.data.eval_results} == {"KonIQ-10k"}


def test_what_stands_in_the_card(tmp_path):
    text = write(tmp_path).read_text()
    for expected in (
        "# Model card for koniq-7b",
        "It started from Qwen/Qwen2.5-VL-7B-Instruct, and was trained",
        "| SRCC, greedy | 0.612 | 0.812 |",
        "| PLCC, sampled | 0.500 | – |",
        "| 10 | 0.700 |",
        "checkpoint of step 10, the best one by srcc\\_sampled",
        "| training | train | 3 | 2.00 | 0.82 |",
        "| evaluation | test | 2 | 3.00 | 1.00 |",
        "rule `deqa`",
        "learning_rate: 1.0e-06",
        "![learning curves](curves.png)",
        "- trl: 1.16.0",
        "https://huggingface.co/papers/2601.22920",
        "@article{q,\n}",
        "20 steps, seed 3, 61 seconds",
    ):
        assert expected in text, expected
    assert "None" not in text
    assert "nan" not in text.lower().replace("finance", "")
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_what_is_not_known_is_left_out(tmp_path):
    none = dict.fromkeys(FIGURES, None)
    path = write(tmp_path, before=None, after=none, validation=[], best=None, base_model=None, resumed=True)
    text = path.read_text()
    assert "| SRCC, greedy | – | – |" in text
    assert "best one" not in text
    assert "On the validation images" not in text
    assert "since the last start" in text
    front = yaml.safe_load(text.split("---\n")[1])
    assert "model-index" not in front
    assert "base_model" not in front
    ModelCard.load(path)


def test_names_from_outside_stay_text(tmp_path):
    name = "<script>x</script>|`a`: [b](c) # d"
    text = write(tmp_path, name=name, start=name).read_text()
    assert "<script>" not in text.split("---\n", 2)[2]
    assert yaml.safe_load(text.split("---\n")[1])["model-index"][0]["name"] == name


def test_the_recipe_holds_what_differs_and_no_secret_or_folder(tmp_path):
    config = HawkeyeGRPOConfig(
        output_dir=str(tmp_path),
        uncertainty_alpha=0.7,
        learning_rate=3e-6,
        hub_token="hf_secret",
        bf16=False,
        use_cpu=True,
        eval_strategy="steps",
        eval_steps=5,
        report_to="none",
    )
    recipe = recipe_of(config, rewards=["accuracy"], reward_parameters=None)
    assert {
        "uncertainty_alpha": 0.7,
        "learning_rate": 3e-6,
        "rewards": ["accuracy"],
        "eval_steps": 5,
    }.items() <= recipe.items()
    assert recipe["eval_strategy"] == "steps"
    assert "reward_parameters" not in recipe
    assert "perception_gamma" not in recipe  # a default
    text = yaml.safe_dump(recipe)
    assert "hf_secret" not in text
    assert str(tmp_path) not in text
    again = HawkeyeGRPOConfig(output_dir=str(tmp_path), **{k: v for k, v in recipe.items() if k != "rewards"})
    differing = [
        field.name for field in dataclasses.fields(config) if getattr(again, field.name) != getattr(config, field.name)
    ]
    assert set(differing) <= {"hub_token", "report_to", "logging_dir", "run_name", "disable_tqdm"}
    assert not any(value in ([], {}) for value in recipe.values())


@pytest.mark.parametrize("values", [[2.0], [1.0, 5.0, 3.0]])
def test_data_are_described_by_mean_and_deviation(values):
    part = data_part("training", "train", values)
    mean = sum(values) / len(values)
    assert part.mean == pytest.approx(mean)
    assert part.deviation == pytest.approx((sum((v - mean) ** 2 for v in values) / len(values)) ** 0.5)
