"""The content of padding, of other rows and of a tool's tokens changes neither loss nor gradient."""

import math
from collections.abc import Callable
from functools import wraps

import datasets
import pytest
import torch
from datasets import Dataset, Features, List, Value
from PIL import ImageFilter
from trl import GRPOTrainer

from harness import ANSWERS, ON, GradientRecorder, Run, build_trainer, relative_difference
from q_hawkeye_trl import HawkeyeGRPOTrainer
from tiny_models import tiny_dataset, tiny_image

PLAIN = {"optim": "sgd", "max_grad_norm": 0.0, "perception_gamma_schedule": "constant"}
LOSS_TYPES = ["grpo", "dapo", "dr_grpo", "bnpo"]
POISON = [1e4, -1e4, math.nan]
Forward = tuple[torch.Tensor, torch.Tensor, None]


def train(folder, prepare: Callable = lambda trainer: None, **options) -> Run:
    recorder = GradientRecorder()
    trainer = build_trainer(folder, callbacks=[recorder], **PLAIN | ON | options)
    prepare(trainer)
    trainer.train()
    logs = [line for line in trainer.state.log_history if "loss" in line]
    return Run(trainer, {}, recorder.steps, logs)


def assert_same(ours: Run, theirs: Run) -> None:
    assert ours.logs[0]["loss"] == pytest.approx(theirs.logs[0]["loss"], rel=1e-5, abs=1e-7)
    assert relative_difference(ours.gradients[0], theirs.gradients[0]) < 1e-5
    for key in ("kl", "entropy_original", "entropy_degraded"):
        assert ours.logs[0][f"perception/{key}"] == pytest.approx(theirs.logs[0][f"perception/{key}"], rel=1e-5)


# Completion padding


@pytest.fixture
def poison_forwards(monkeypatch):
    """Puts a value at masked completion positions of the log-probabilities and entropies of TRL's forwards."""
    forward = GRPOTrainer._get_per_token_logps_and_entropies

    def poison(value: float, only_degraded: bool = False) -> list[int]:
        calls, places = [0], []

        @wraps(forward)
        def poisoned(self, model, input_ids, attention_mask, logits_to_keep, **kwargs) -> Forward:
            logps, entropies, aux = forward(self, model, input_ids, attention_mask, logits_to_keep, **kwargs)
            calls[0] += 1
            if only_degraded and calls[0] % 2:
                return logps, entropies, aux
            padding = attention_mask[:, -logits_to_keep:] == 0
            places.append(padding.sum().item())
            return logps.masked_fill(padding, value), entropies.masked_fill(padding, value), aux

        monkeypatch.setattr(GRPOTrainer, "_get_per_token_logps_and_entropies", poisoned)
        return places

    return poison


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("value", POISON[:2])
def test_poison_in_all_forwards_changes_nothing(tmp_path, poison_forwards, loss_type, value):
    clean = train(tmp_path, loss_type=loss_type)
    places = poison_forwards(value)
    assert_same(train(tmp_path, loss_type=loss_type), clean)
    assert len(places) == 2
    assert all(places)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_nan_in_the_degraded_forward_changes_nothing(tmp_path, poison_forwards, loss_type):
    # TRL multiplies with its mask, so a NaN in the original's padding would already be its own
    clean = train(tmp_path, loss_type=loss_type)
    places = poison_forwards(math.nan, only_degraded=True)
    assert_same(train(tmp_path, loss_type=loss_type), clean)
    assert len(places) == 1
    assert all(places)


@pytest.mark.parametrize("estimator", ["exact", "sampled"])
@pytest.mark.parametrize("value", POISON)
def test_perception_loss_never_reads_masked_log_probabilities(tmp_path, monkeypatch, value, estimator):
    options = {"entropy_estimator": estimator, "entropy_degraded_coef": 0.0 if estimator == "sampled" else 0.03}
    clean = train(tmp_path, **options)
    compute, seen = HawkeyeGRPOTrainer._perception_loss, []

    def poisoned(self, model, inputs, logps, entropies, terms):
        padding = inputs["completion_mask"] == 0
        seen.append(padding.sum().item())
        spoilt = (tensor.masked_fill(padding, value) for tensor in (logps, entropies))
        return compute(self, model, inputs, *spoilt, terms)

    monkeypatch.setattr(HawkeyeGRPOTrainer, "_perception_loss", poisoned)
    assert_same(train(tmp_path, **options), clean)
    assert all(seen)


@pytest.fixture
def change_batch(monkeypatch):
    """Changes what TRL makes of a generation batch before the loss sees it."""
    build = HawkeyeGRPOTrainer._generate_and_score_completions

    def change(edit: Callable[[dict], None]) -> None:
        def changed(self, inputs):
            output = build(self, inputs)
            edit(output)
            return output

        monkeypatch.setattr(HawkeyeGRPOTrainer, "_generate_and_score_completions", changed)

    return change


@pytest.mark.parametrize("part", ["completion", "prompt"])
def test_token_ids_in_padding_change_nothing(tmp_path, change_batch, part):
    options = {"train_dataset": mixed_rows(), "per_device_train_batch_size": 12}
    clean = train(tmp_path, **options)

    def scribble(batch: dict) -> None:
        padding = batch[f"{part}_mask"] == 0
        assert padding.any()
        batch[f"{part}_ids"] = batch[f"{part}_ids"].masked_fill(padding, 77)

    change_batch(scribble)
    assert_same(train(tmp_path, **options), clean)


@pytest.mark.parametrize("columns", [1, 7])
@pytest.mark.parametrize("part", ["completion", "prompt"])
def test_more_padding_changes_nothing(tmp_path, change_batch, part, columns):
    clean = train(tmp_path)

    def widen(batch: dict) -> None:
        side = (columns, 0) if part == "prompt" else (0, columns)
        for key, fill in ((f"{part}_ids", 77), (f"{part}_mask", 0)):
            batch[key] = torch.nn.functional.pad(batch[key], side, value=fill)
        batch["mm_token_type_ids"] = torch.nn.functional.pad(batch["mm_token_type_ids"], side)

    change_batch(widen)
    assert_same(train(tmp_path), clean)


# Tool tokens


def with_env_mask(trainer) -> None:
    """Marks tokens 2 to 5 of each completion as not the policy's own, as those of a tool are."""
    rollout = trainer.rollout_func

    def masked(prompts, trainer):
        output = rollout(prompts, trainer)
        output["env_mask"] = [[int(not 2 <= t <= 5) for t in range(len(ids))] for ids in output["completion_ids"]]
        return output

    trainer.rollout_func = masked


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_tool_tokens_count_in_no_term(tmp_path, monkeypatch, loss_type):
    clean = train(tmp_path, with_env_mask, loss_type=loss_type)
    without_mask = train(tmp_path, loss_type=loss_type)
    assert relative_difference(clean.gradients[0], without_mask.gradients[0]) > 0.01

    forward = GRPOTrainer._get_per_token_logps_and_entropies

    @wraps(forward)
    def poisoned(self, *args, **kwargs) -> Forward:
        logps, entropies, aux = forward(self, *args, **kwargs)
        tool = torch.zeros_like(logps, dtype=torch.bool)
        tool[:, 2:6] = True
        return logps.masked_fill(tool, -50.0), entropies.masked_fill(tool, 1e4), aux

    monkeypatch.setattr(GRPOTrainer, "_get_per_token_logps_and_entropies", poisoned)
    assert_same(train(tmp_path, with_env_mask, loss_type=loss_type), clean)


# Rows of different shapes


def mixed_rows() -> Dataset:
    """Three rows: two images, one, and one without a degraded view; prompts of different lengths."""
    pictures = [[tiny_image(seed=1), tiny_image(seed=2)], [tiny_image(seed=3)], [tiny_image((56, 84), seed=4)]]
    twins = [[image.filter(ImageFilter.GaussianBlur(3)) for image in row] for row in pictures[:2]]
    features = {
        "prompt": [{"role": Value("string"), "content": Value("string")}],
        "images": List(datasets.Image()),
        "degraded_images": List(datasets.Image()),
        "mos": Value("float64"),
    }
    texts = ["Rate both.", "Rate this picture, please, and take your time.", "How good is it?"]
    columns = {
        "prompt": [[{"role": "user", "content": text}] for text in texts],
        "images": pictures,
        "degraded_images": [*twins, []],
        "mos": [1.5, 2.5, 3.5],
    }
    return Dataset.from_dict(columns, features=Features(features))


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo"])
def test_mixed_rows_are_as_if_each_were_alone(tmp_path, loss_type):
    options = {"train_dataset": mixed_rows(), "loss_type": loss_type}
    together = train(tmp_path, per_device_train_batch_size=12, **options)
    alone = train(tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=12, **options)
    assert together.logs[0]["perception/rows_without_view"] == 4
    assert together.logs[0]["loss"] == pytest.approx(alone.logs[0]["loss"], rel=1e-5)
    assert relative_difference(together.gradients[0], alone.gradients[0]) < 1e-5


def without_view(rows: set[int]) -> Dataset:
    data = tiny_dataset(2, degraded=True)
    columns = data.to_dict()
    for row in rows:
        columns["degraded_image"][row] = None
    return Dataset.from_dict(columns, features=data.features)


@pytest.mark.parametrize(("missing", "rows"), [(set(), 0), ({1}, 4), ({0, 1}, 8)])
def test_rows_without_a_view_are_counted(tmp_path, missing, rows):
    done = train(tmp_path, train_dataset=without_view(missing))
    assert done.logs[0]["perception/rows_without_view"] == rows
    assert ("perception/kl" in done.logs[0]) == (rows < 8)
    assert done.logs[0]["perception/entropy_original"] > 0
    assert math.isfinite(done.logs[0]["loss"])


def test_mean_kl_is_over_the_other_rows_alone(tmp_path):
    # the same eight completions of one length: the mean of all is the mean of both halves
    means = [
        train(tmp_path, scripted=ANSWERS[:1], train_dataset=without_view(missing)).logs[0]["perception/kl"]
        for missing in (set(), {0}, {1})
    ]
    assert means[0] == pytest.approx((means[1] + means[2]) / 2, rel=1e-5)
    assert means[1] != pytest.approx(means[2], rel=0.01)


def test_rows_without_a_view_add_nothing_to_the_terms_of_the_pair(tmp_path):
    # no policy gradient, no entropy on the original: only the terms of the pair are left, which add up row by row
    pair = {"scripted": ANSWERS[:1], "entropy_original_coef": 0.0}
    whole, first, second = (
        train(tmp_path, train_dataset=without_view(missing), **pair).gradients[0] for missing in (set(), {1}, {0})
    )
    assert relative_difference({name: first[name] + second[name] for name in first}, whole) < 1e-5
    none = train(tmp_path, train_dataset=without_view({0, 1}), **pair).gradients[0]
    assert all(gradient.abs().max() == 0 for gradient in none.values())
