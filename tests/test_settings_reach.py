"""What is set in the config reaches the formula that it is for, and what is logged is what the formula says."""

import math
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from PIL import Image
from scipy import stats

from harness import ON, build_trainer, run
from q_hawkeye_trl import degraded_batch, parse_score
from q_hawkeye_trl import trainer as trainer_module
from q_hawkeye_trl.demo.synthetic import SEEN_KINDS, UNSEEN_KINDS
from tiny_models import tiny_dataset, tiny_policy

ROOT = Path(__file__).parents[1]
# No value is a default: a field that is not passed on, or passed on to the wrong place, shows.
SETTINGS = {
    "uncertainty_alpha": 0.7,
    "uncertainty_weighting": "reciprocal",
    "uncertainty_unparsed": "exclude",
    "normalize_uncertainty_weights": True,
    "score_min": 0.0,
    "score_max": 9.0,
    "perception_gamma": 0.04,
    "perception_gamma_schedule": "linear",
    "perception_gamma_zero_epoch": 7,
    "perception_kl_clip": 3.5,
    "entropy_original_coef": 0.02,
    "entropy_degraded_coef": 0.03,
    "degradations": ["jpeg"],
    "degradation_seed": 11,
    "chat_template_kwargs": {"marked": "yes"},
}
SCALE = {"score_min": 0.0, "score_max": 9.0}
REACHED = {
    "score_statistics": SCALE,
    "rollout_uncertainty": {**SCALE, "unparsed": "exclude"},
    "uncertainty_weights": {"alpha": 0.7, "weighting": "reciprocal", "normalize": True},
    "perception_gamma_at": {"gamma": 0.04, "schedule": "linear", "zero_epoch": 7},
    "perception_kl": {"clip": 3.5},
    "degraded_pixel_values": {
        "degradations": ["jpeg"],
        "degradation_seed": 11,
        "chat_template_kwargs": {"marked": "yes"},
    },
}


def spy(monkeypatch, module, name: str) -> list[dict]:
    """Replaces a function by one that keeps its keyword arguments and goes on as before."""
    calls, original = [], getattr(module, name)

    def kept(*args, **kwargs):
        calls.append(kwargs)
        return original(*args, **kwargs)

    monkeypatch.setattr(module, name, kept)
    return calls


@pytest.fixture(scope="module")
def reached(tmp_path_factory) -> dict[str, list[dict]]:
    with pytest.MonkeyPatch.context() as patch:
        calls = {name: spy(patch, trainer_module, name) for name in REACHED}
        run(tmp_path_factory.mktemp("settings"), **SETTINGS)
    return calls


@pytest.mark.parametrize("name", REACHED)
def test_settings_reach_their_formula(reached, name):
    assert reached[name]
    for call in reached[name]:
        assert {key: call.get(key) for key in REACHED[name]} == REACHED[name]


def test_gamma_and_views_follow_the_epochs(tmp_path, monkeypatch):
    calls = spy(monkeypatch, trainer_module, "degraded_pixel_values")
    options = {"perception_gamma": 0.1, "perception_gamma_schedule": "linear", "perception_gamma_zero_epoch": 4}
    done = run(tmp_path, max_steps=5, **options)  # four prompts, two a step: an epoch is two steps
    expected = [0.1 * (1 - step / 2 / 4) for step in range(5)]
    assert [line["perception/gamma"] for line in done.logs] == pytest.approx(expected)
    assert [call["epoch"] for call in calls] == [0, 0, 1, 1, 2]


@pytest.mark.parametrize("workers", [0, 2])
def test_views_are_the_same_with_any_number_of_workers(tmp_path, workers):
    def losses(folder: Path, count: int) -> list[float]:
        return [line["perception/kl"] for line in run(folder, max_steps=2, dataloader_num_workers=count, **ON).logs]

    torch.manual_seed(0)
    expected = losses(tmp_path / "none", 0)
    torch.manual_seed(5)  # global state has no part in it
    assert losses(tmp_path / "some", workers) == expected
    assert len(set(expected)) == 2


def test_running_correlations_are_those_of_scipy(tmp_path):
    def answer(prompt: int, rollout: int) -> str:
        return f"<answer>{(1.3, 4.4)[prompt] + 0.2 * rollout * (rollout > 1)}</answer>"

    means, ratings = [], []

    def constant(completions, mos, **kwargs) -> list[float]:
        scores = [min(5.0, parse_score(completion[0]["content"])) for completion in completions]
        means.extend(sum(scores[i : i + 4]) / 4 for i in range(0, len(scores), 4))
        ratings.extend(mos[::4])
        return [0.0] * len(scores)

    done = run(tmp_path, scripted=answer, reward_funcs=[constant], max_steps=2, train_dataset=tiny_dataset(4, seed=3))
    assert len(means) == 4
    assert done.logs[-1]["scores/srcc"] == pytest.approx(stats.spearmanr(means, ratings).statistic)
    assert done.logs[-1]["scores/plcc"] == pytest.approx(stats.pearsonr(means, ratings).statistic)
    assert abs(done.logs[-1]["scores/plcc"]) > 0.05


def test_each_evaluation_has_its_own_correlations(tmp_path):
    trainer = build_trainer(tmp_path, eval_dataset=tiny_dataset(4, seed=1), per_device_eval_batch_size=8)
    for _ in range(2):
        trainer.evaluate()
        assert len(trainer._monitors["eval"]._pairs) == 4
    assert not trainer._monitors["train"]._pairs


def test_columns_that_rewards_and_reports_read_are_kept(tmp_path):
    extra = tiny_dataset(4).add_column("dataset", ["koniq"] * 4).add_column("unread", [0] * 4)
    seen = {}

    def reads(completions, **columns) -> list[float]:
        seen.update(columns)
        return [0.0] * len(completions)

    run(tmp_path, train_dataset=extra, reward_funcs=[reads], remove_unused_columns=True)
    assert {"mos", "image_id", "dataset"} <= seen.keys()
    assert "unread" not in seen


def test_a_view_is_made_at_the_size_the_model_sees(tmp_path, monkeypatch):
    sizes = []
    original = degraded_batch.degraded_views

    def kept(images, *args, **kwargs):
        sizes.extend(image.size for image in images)
        return original(images, *args, **kwargs)

    monkeypatch.setattr(degraded_batch, "degraded_views", kept)
    _, processor = tiny_policy("qwen2_5_vl")
    done = run(tmp_path, train_dataset=tiny_dataset(2, size=(97, 71)), **ON)
    grid = processor.image_processor([Image.new("RGB", (97, 71))], return_tensors="pt")["image_grid_thw"][0]
    patch = processor.image_processor.patch_size
    assert set(sizes) == {(int(grid[2]) * patch, int(grid[1]) * patch)} != {(97, 71)}
    assert math.isfinite(done.logs[0]["loss"])


# The example scripts


@pytest.fixture(scope="module")
def script() -> dict:
    return runpy.run_path(str(ROOT / "examples" / "train_koniq.py"))


@pytest.mark.parametrize("name", ["accuracy", "threshold", "rank", "margin"])
def test_rewards_are_on_the_scale_of_the_config(script, name):
    asked = SimpleNamespace(rewards=[name], reward_parameters=None)
    (built,) = script["build_rewards"](asked, SimpleNamespace(score_min=0.0, score_max=100.0))
    keywords = getattr(built, "keywords", None) or {}
    assert {key: keywords.get(key) for key in ("score_min", "score_max")} == {"score_min": 0.0, "score_max": 100.0}


def test_degradations_of_the_demo_are_no_unseen_distortions():
    recipe = yaml.safe_load((ROOT / "recipes" / "demo" / "tiny.yaml").read_text())
    assert recipe["degradations"]
    assert not set(recipe["degradations"]) & set(UNSEEN_KINDS)


def test_arms_and_their_held_out_sets_are_what_their_names_say(tmp_path, monkeypatch):
    arms = runpy.run_path(str(ROOT / "examples" / "compare_arms.py"))
    options = {name: dict(zip(o[::2], o[1::2], strict=True)) for name, o in arms["ARMS"].items()}
    terms = {"--perception_gamma", "--entropy_original_coef", "--entropy_degraded_coef"}
    assert {key for key, value in options["grpo"].items() if float(value) == 0} == {"--uncertainty_alpha", *terms}
    assert options["uncertainty"] == dict.fromkeys(terms, "0")
    assert options["perception"] == {"--uncertainty_alpha": "0"}
    assert options["both"] == {}
    written = {}
    scope = arms["main"].__globals__
    monkeypatch.setitem(scope, "write_synthetic_koniq", lambda folder, **o: written.update({folder.name: o}))
    monkeypatch.setitem(scope, "run_arm", lambda *_: None)
    monkeypatch.setitem(scope, "tables", lambda *_: "")
    (tmp_path / "arms").mkdir()
    monkeypatch.setattr("sys.argv", ["compare_arms.py", "--output_dir", str(tmp_path / "arms")])
    arms["main"]()
    assert not set(written["unseen"]["kinds"]) & set(written["seen"].get("kinds", SEEN_KINDS))
    assert set(written["unseen"]["kinds"]) <= set(UNSEEN_KINDS)
