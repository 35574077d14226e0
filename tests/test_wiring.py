"""The configuration reaches the formulas, and results of rollouts and ranks reach the right rows."""

import json
import math
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

import q_hawkeye_trl.degraded_batch as degraded_batch
import q_hawkeye_trl.hawkeye_method as trainer_module
from harness import ON, build_trainer, largest_difference, relative_difference, run
from launch import in_processes
from q_hawkeye_trl.data.degradations import degraded_views, pixel_hash
from q_hawkeye_trl.evaluation.held_out import evaluate_held_out
from q_hawkeye_trl.evaluation.validation import evaluate_sharded
from tiny_models import tiny_dataset

CONFIG = {
    "score_min": 0.0,
    "score_max": 10.0,
    "uncertainty_alpha": 0.7,
    "uncertainty_weighting": "linear",
    "uncertainty_unparsed": "exclude",
    "normalize_uncertainty_weights": True,
    "perception_gamma": 0.06,
    "perception_gamma_schedule": "linear",
    "perception_gamma_zero_epoch": 3.0,
    "perception_kl_clip": 0.25,
    "entropy_original_coef": 0.02,
    "entropy_degraded_coef": 0.03,
    "degradations": ["gaussian_blur", "darken"],
    "degradation_seed": 7,
    "chat_template_kwargs": {"tone": "short"},
}
REACHES = {
    "rollout_uncertainty": {"score_min": 0.0, "score_max": 10.0, "unparsed": "exclude"},
    "score_statistics": {"score_min": 0.0, "score_max": 10.0},
    "uncertainty_weights": {"alpha": 0.7, "weighting": "linear", "normalize": True},
    "perception_gamma_at": {"gamma": 0.06, "schedule": "linear", "zero_epoch": 3.0},
    "perception_kl": {"clip": 0.25},
    "degraded_views": {"degradation_seed": 7},
    "apply_chat_template": {"tone": "short"},
}
"""By formula: the keywords with which the trainer must call it under `CONFIG`."""


def spy(monkeypatch, module, name: str) -> list[tuple]:
    """Record (positional, keyword, result) of every call of a function, which still works."""
    calls, original = [], getattr(module, name)

    def spied(*args, **kwargs):
        result = original(*args, **kwargs)
        calls.append((args, kwargs, result))
        return result

    monkeypatch.setattr(module, name, spied)
    return calls


@pytest.fixture(scope="module")
def calls(tmp_path_factory) -> dict[str, list[tuple]]:
    """The calls of one training step under `CONFIG`, by formula."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        modules = {name: trainer_module if hasattr(trainer_module, name) else degraded_batch for name in REACHES}
        seen = {name: spy(monkeypatch, module, name) for name, module in modules.items()}
        run(tmp_path_factory.mktemp("config"), **CONFIG)
    return seen


@pytest.mark.parametrize("name", REACHES)
def test_the_configuration_reaches_the_formula(calls, name):
    assert calls[name]
    for _, given, _ in calls[name]:
        assert {key: given.get(key) for key in REACHES[name]} == REACHES[name]


def test_the_view_is_drawn_from_the_configured_kinds(calls):
    for positional, _, (_, kind) in calls["degraded_views"]:
        assert positional[1] == CONFIG["degradations"]
        assert kind in CONFIG["degradations"]


# The prompt of a rollout names its picture, so that scores can be scripted by picture


def numbered_rows(rows: int, **options):
    data = tiny_dataset(rows, **options)
    prompts = [[{"role": "user", "content": f"Rate picture {row}."}] for row in range(rows)]
    return data.remove_columns("prompt").add_column("prompt", prompts)


class ScoredRollouts:
    """A `rollout_func` that answers with the scores of a table, one row a picture; keeps the pictures it saw."""

    def __init__(self, table):
        self.table, self.seen = np.asarray(table, dtype=float), []

    def __call__(self, prompts, trainer) -> dict[str, list]:
        tokenizer = trainer.processing_class.tokenizer
        pictures = [int(re.search(r"Rate picture (\d+)", str(prompt)).group(1)) for prompt in prompts]
        self.seen.append(list(dict.fromkeys(pictures)))
        count, texts = Counter(), []
        for picture in pictures:
            score = self.table[picture, count[picture]]
            texts.append("no idea" if math.isnan(score) else f"<think>so</think><answer>{score:.2f}</answer>")
            count[picture] += 1
        ids = [[*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id] for text in texts]
        return {
            "prompt_ids": trainer._tokenize_prompts(prompts)[0],
            "completion_ids": ids,
            "logprobs": [[0.0] * len(row) for row in ids],
        }


TABLE = [[2.5, 3, math.nan, 3.5], [4, 5, 9, 4.5], [1, 1.5, 2, 1.25], [-3, 2, 2.25, 4]]


def test_two_epochs_have_their_views_gammas_and_running_correlations(tmp_path, monkeypatch):
    views = spy(monkeypatch, degraded_batch, "degraded_views")
    data, rollouts = numbered_rows(4), ScoredRollouts(TABLE)
    schedule = {"perception_gamma_schedule": "linear", "perception_gamma_zero_epoch": 3.0}
    trainer = build_trainer(
        tmp_path, train_dataset=data, max_steps=4, degradations=["gaussian_noise"], **ON, **schedule
    )
    trainer.rollout_func = rollouts
    trainer.train()
    logs = [line for line in trainer.state.log_history if "loss" in line]

    # two of four pictures a step: half an epoch, and the weight falls from step to step
    assert [line["perception/gamma"] for line in logs] == pytest.approx([0.05 * (1 - e / 3) for e in (0, 0.5, 1, 1.5)])

    assert [given["epoch"] for _, given, _ in views] == [0] * 4 + [1] * 4
    by_picture: dict[str, list[str]] = {}
    for (images, *_), _, (drawn, _) in views:
        by_picture.setdefault(pixel_hash(images[0]), []).append(pixel_hash(drawn[0]))
    assert len(by_picture) == 4
    assert all(first != second for first, second in by_picture.values())

    means = np.nanmean(np.clip(TABLE, 1, 5), axis=1)
    rolled_out: list[int] = []
    for pictures, line in zip(rollouts.seen, logs, strict=True):
        rolled_out += pictures
        if len(rolled_out) < 3:
            assert "scores/srcc" not in line
            continue
        scores, mos = means[rolled_out], np.asarray(data["mos"])[rolled_out]
        assert line["scores/srcc"] == pytest.approx(stats.spearmanr(scores, mos).statistic, abs=1e-5)
        assert line["scores/plcc"] == pytest.approx(stats.pearsonr(scores, mos).statistic, abs=1e-5)
    assert len(rolled_out) == 8


def test_every_evaluation_correlates_its_own_scores_only(tmp_path):
    data = numbered_rows(4, seed=1)
    trainer = build_trainer(tmp_path, eval_dataset=data, num_generations_eval=2, per_device_eval_batch_size=8, **ON)
    right = np.repeat(np.asarray(data["mos"])[:, None], 2, axis=1)
    for table, expected in ((right, 1.0), (6 - right, -1.0)):
        trainer.rollout_func = ScoredRollouts(table)
        trainer.evaluate()
        logged = trainer.state.log_history[-1]
        assert logged["eval_scores/srcc"] == pytest.approx(expected)
        assert logged["eval_scores/plcc"] == pytest.approx(expected, abs=1e-5)


def test_rewards_get_the_columns_that_the_method_reads(tmp_path):
    seen: dict[str, list] = {}

    def reward(completions, **columns):
        seen.update(columns)
        return [0.0] * len(completions)

    data = tiny_dataset(4, degraded=True).add_column("mos_std", [0.1, 0.2, 0.3, 0.4]).add_column("dataset", ["a"] * 4)
    run(tmp_path, train_dataset=data, reward_funcs=[reward], remove_unused_columns=True, **ON)
    rows = {row["image_id"]: (row["mos"], row["mos_std"], row["dataset"]) for row in data}
    assert len(seen["image_id"]) == 8
    for name, *rest in zip(*(seen[key] for key in ("image_id", "mos", "mos_std", "dataset")), strict=True):
        assert tuple(rest) == rows[name]


def test_a_large_image_is_degraded_at_the_size_that_the_model_sees(tmp_path, monkeypatch):
    built = spy(monkeypatch, trainer_module, "degraded_pixel_values")
    data = tiny_dataset(2, size=(224, 168))  # the processor takes 16 image tokens, 112 x 112 pixels in all
    done = run(tmp_path, train_dataset=data, degradations=["gaussian_noise"], degradation_seed=3, **ON)
    image_processor = done.trainer.processing_class.image_processor
    expected = {}
    for image in data["image"]:
        grid = image_processor(images=[image], return_tensors="pt")["image_grid_thw"][0]
        height, width = (int(edge) * image_processor.patch_size for edge in grid[1:])
        assert (width, height) < image.size
        resized = image.resize((width, height), Image.Resampling.BICUBIC)
        ((view,), _) = degraded_views([resized], ["gaussian_noise"], degradation_seed=3, epoch=0)
        expected[pixel_hash(image)] = image_processor(images=[view], return_tensors="pt")["pixel_values"]
    ((positional, _, (rows, _)),) = built
    assert len(rows) == 8
    for example, row in zip(positional[0], rows, strict=True):
        torch.testing.assert_close(row, expected[pixel_hash(example["image"])])


def test_loader_workers_change_nothing(tmp_path):
    plain, workers = (run(tmp_path, max_steps=2, dataloader_num_workers=n, **ON) for n in (0, 2))
    assert largest_difference(workers.parameters, plain.parameters) == 0.0
    keys = ("loss", "perception/kl", "perception/entropy_degraded", "scores/spread")
    for ours, theirs in zip(workers.logs, plain.logs, strict=True):
        assert [ours[key] for key in keys] == [theirs[key] for key in keys]


# The held-out figures in training, and two ranks


def number_of(text: str) -> float | None:
    """A number for any gibberish, now and then outside of the scale or none."""
    value = sum(map(ord, text)) % 23
    return None if value == 7 else value - 6.0


SHARDED = {"batch_size": 3, "passes": 3, "seed": 5, "progress": False}
SCALE = {"score_min": 0.0, "score_max": 10.0}
WHOLE_GROUPS = {
    "optim": "sgd",
    "max_grad_norm": 0.0,
    "learning_rate": 0.0,
    "num_generations": 4,
    "max_completion_length": 7,
}


def held_out_rows():
    rows = numbered_rows(7, seed=2)
    prompts = [[{"role": "user", "content": f"Rate this picture {i} " + "please " * i}] for i in range(7)]
    return rows.remove_columns("prompt").add_column("prompt", prompts)


def evaluate_alone(trainer, rows) -> dict[str, float]:
    return evaluate_held_out(
        trainer.model,
        trainer.processing_class,
        rows["image"],
        rows["mos"],
        prompts=rows["prompt"],
        max_new_tokens=7,
        score_fn=number_of,
        **SHARDED,
        **SCALE,
    )


def test_sharded_figures_of_one_process_are_the_held_out_figures(tmp_path):
    trainer, rows = build_trainer(tmp_path, max_completion_length=7, **SCALE), held_out_rows()
    trainer.score_fn = number_of
    figures = evaluate_sharded(trainer, rows, **SHARDED)
    assert figures == pytest.approx(evaluate_alone(trainer, rows), nan_ok=False)
    assert 0 < figures["parse_rate"] < 1 or figures["spread"] > 0


def observed_step(folder: Path, **options) -> dict:
    """One step with scripted rollouts: this rank's advantages, its gradients and logs, then the held-out figures."""
    seen: dict = {}
    generate = trainer_module.HawkeyeMethodTrainer._generate_and_score_completions

    def observed(self, inputs):
        output = generate(self, inputs)
        seen["advantages"] = output["advantages"].clone()
        return output

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(trainer_module.HawkeyeMethodTrainer, "_generate_and_score_completions", observed)
        done = run(folder, **ON, **WHOLE_GROUPS, **SCALE, **options)
    seen["gradients"] = done.gradients[0]
    done.trainer.score_fn = number_of
    seen["figures"] = evaluate_sharded(done.trainer, held_out_rows(), **SHARDED)
    seen["logs"] = done.logs[0] if done.logs else {}
    seen["trainer"] = done.trainer
    return seen


LOGGED = (
    "perception/kl",
    "perception/entropy_original",
    "perception/entropy_degraded",
    "perception/rows_without_view",
    "scores/spread",
    "scores/parse_rate",
    "uncertainty/mean",
    "uncertainty/weight_mean",
    "uncertainty/weight_min",
    "loss",
)


def test_two_ranks_with_a_group_each_equal_one_process(tmp_path):
    alone = observed_step(tmp_path / "alone")
    in_processes("wiring", tmp_path)
    ranks = [torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True) for rank in (0, 1)]

    weights = [rank["advantages"].abs().max() for rank in ranks]
    assert weights[0] != weights[1]  # the spreads of the two groups differ
    torch.testing.assert_close(torch.cat([rank["advantages"] for rank in ranks]), alone["advantages"])
    for rank in ranks:
        assert relative_difference(rank["gradients"], alone["gradients"]) < 1e-5
        assert rank["figures"] == pytest.approx(alone["figures"], abs=1e-6)
    assert ranks[0]["figures"] == pytest.approx(ranks[1]["figures"])
    expected = json.loads(json.dumps({name: alone["logs"][name] for name in LOGGED}))
    assert {name: ranks[0]["logs"][name] for name in LOGGED} == pytest.approx(expected, rel=1e-4)
