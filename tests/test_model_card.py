"""The card of a model: its text, its metadata as the Hub reads them, and what must not be in it."""

import dataclasses
import math
import re

import pytest
import yaml
from huggingface_hub import ModelCard

from q_hawkeye_trl import HawkeyeGRPOConfig
from q_hawkeye_trl.report.model_card import data_part, recipe_of, write_model_card
from q_hawkeye_trl.wording import FIGURES

METHOD = {"name": "Q-Hawkeye", "title": "Reliable Visual Policies", "id": "2601.22920", "citation": "@article{q,\n}"}
BEFORE = dict.fromkeys(FIGURES, 0.5) | {"srcc_greedy": 0.6123}
AFTER = dict.fromkeys(FIGURES, 0.75) | {"srcc_greedy": 0.8124, "plcc_sampled": math.nan, "spread": None}


OPTIONS = {
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


def test_the_hub_reads_metadata_and_figures(tmp_path):
    card = ModelCard.load(write_model_card(tmp_path, **OPTIONS))
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "image-text-to-text")
    assert card.data.base_model == "Qwen/Qwen2.5-VL-7B-Instruct"
    assert {"trl", "q-hawkeye", "image-quality-assessment"} <= set(card.data.tags)
    assert card.data.model_name == "koniq-7b"
    figures = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert figures == {"SRCC, sampled": 0.75, "SRCC, greedy": 0.8124, "PLCC, greedy": 0.75}  # no NaN
    assert {(result.dataset_name, result.dataset_split) for result in card.data.eval_results} == {
        ("KonIQ-10k", "test")
    }


def test_content_of_the_card(tmp_path):
    text = write_model_card(tmp_path, **OPTIONS).read_text()
    for expected in (
        "# Model card for koniq-7b",
        "Qwen/Qwen2.5-VL-7B-Instruct, ",
        "| SRCC, greedy | 0.612 | 0.812 |",
        "| PLCC, sampled | 0.500 | – |",
        "| 10 | 0.700 |",
        "srcc\\_sampled",
        "| training | train | 3 | 2.00 | 0.82 |",
        "| evaluation | test | 2 | 3.00 | 1.00 |",
        "`deqa`",
        "learning_rate: 1.0e-06",
        "![learning curves](curves.png)",
        "- trl: 1.16.0",
        "https://huggingface.co/papers/2601.22920",
        "@article{q,\n}",
        "20 steps, seed 3, 61 seconds",
    ):
        assert expected in text, expected
    assert not re.search(r"\bnone\b|\bnan\b", text, re.IGNORECASE)


def test_unknown_facts_are_left_out(tmp_path):
    unknown = dict.fromkeys(FIGURES)
    changes = {"before": None, "after": unknown, "validation": [], "best": None, "base_model": None, "resumed": True}
    path = write_model_card(tmp_path, **OPTIONS | changes)
    text = path.read_text()
    assert "| SRCC, greedy | – | – |" in text
    assert "since the last start" in text
    assert not any(part in text for part in ("best one", "On the validation images"))
    assert not {"model-index", "base_model"} & yaml.safe_load(text.split("---\n")[1]).keys()
    ModelCard.load(path)


def test_names_from_outside_stay_text(tmp_path):
    name = "<script>x</script>|`a`: [b](c) # d"
    text = write_model_card(tmp_path, **OPTIONS | {"name": name, "start": name}).read_text()
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
    expected = {"uncertainty_alpha": 0.7, "learning_rate": 3e-6, "rewards": ["accuracy"], "eval_steps": 5}
    assert (expected | {"eval_strategy": "steps"}).items() <= recipe.items()
    assert not {"reward_parameters", "perception_gamma"} & recipe.keys()  # nothing, and a default
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
