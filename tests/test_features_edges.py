"""TRL's features at their edges: evaluation, checkpointing, TRL's entropy bonus, truncation, rewards and scores."""

import math
import re

import pytest

from harness import (
    ANSWERS,
    OFF,
    ON,
    GradientRecorder,
    Run,
    build_trainer,
    largest_difference,
    relative_difference,
    run,
)
from q_hawkeye_trl import HawkeyeGRPOConfig
from q_hawkeye_trl.errors import TrainingError
from q_hawkeye_trl.rewards import format_reward
from test_features import LORA, check_logs
from tiny_models import tiny_dataset

GRADIENT_ONLY = {"optim": "sgd", "max_grad_norm": 0.0}
DETACHED = {"perception_gradient": "original", "entropy_degraded_coef": 0.0}


# Evaluation


def evaluated(folder, rollouts: int, **options) -> dict[str, float]:
    trainer = build_trainer(
        folder,
        num_generations_eval=rollouts,
        per_device_eval_batch_size=2,
        eval_dataset=tiny_dataset(3, seed=1),
        **ON | options,
    )
    trainer.evaluate()
    return trainer.state.log_history[-1]


@pytest.mark.parametrize("rollouts", [1, 2])
def test_evaluation_has_the_perception_terms(tmp_path, rollouts):
    logs = evaluated(tmp_path, rollouts)
    assert math.isfinite(logs["eval_loss"])
    assert 1e-6 < logs["eval_perception/kl"] < 10
    assert logs["eval_perception/entropy_original"] > 0
    assert logs["eval_perception/entropy_degraded"] > 0


def test_evaluation_of_two_rollouts_weighs_groups_of_two(tmp_path):
    logs = evaluated(tmp_path, 2)
    # rows of the answers 1.5 and 4.25 in each batch of two: variance 1.375² of at most 4
    assert logs["eval_uncertainty/mean"] == pytest.approx(1.375**2 / 4, rel=1e-5)
    assert logs["eval_uncertainty/weight_min"] == pytest.approx(math.exp(-(1.375**2) / 4), rel=1e-5)


def test_evaluation_of_one_rollout_has_no_uncertainty(tmp_path):
    logs = evaluated(tmp_path, 1)
    assert not [key for key in logs if "uncertainty" in key]
    assert "eval_scores/parse_rate" in logs


def test_evaluation_during_training_leaves_the_training_as_it_is(tmp_path):
    options = {"max_steps": 3, **ON}
    plain = run(tmp_path, **options)
    evaluating = run(
        tmp_path,
        eval_dataset=tiny_dataset(2, seed=1),
        eval_strategy="steps",
        eval_steps=1,
        num_generations_eval=2,
        per_device_eval_batch_size=4,
        **options,
    )
    for ours, theirs in zip(evaluating.gradients, plain.gradients, strict=True):
        assert relative_difference(ours, theirs) < 1e-5  # TRL shuffles rows with other random numbers
    assert len([line for line in evaluating.trainer.state.log_history if "eval_loss" in line]) == 3


# Activation checkpointing, under its new name and the deprecated one


@pytest.mark.parametrize("terms", [ON, ON | DETACHED], ids=["both branches", "detached branch"])
@pytest.mark.parametrize("name", ["activation_checkpointing", "gradient_checkpointing"])
def test_checkpointing_changes_no_gradient(tmp_path, name, terms):
    plain = run(tmp_path, max_steps=2, **GRADIENT_ONLY, **terms)
    switched = {name: True, f"{name}_kwargs": {"use_reentrant": False}}
    checkpointed = run(tmp_path, max_steps=2, **GRADIENT_ONLY, **terms, **switched)
    assert checkpointed.trainer.model.is_activation_checkpointing
    for ours, theirs in zip(checkpointed.gradients, plain.gradients, strict=True):
        assert relative_difference(ours, theirs) < 1e-6


@pytest.mark.parametrize("name", ["activation_checkpointing", "gradient_checkpointing"])
def test_reentrant_checkpointing_is_refused_with_two_gradient_branches(tmp_path, name):
    options = {"bf16": False, "use_cpu": True, name: True, f"{name}_kwargs": {"use_reentrant": True}}
    with pytest.raises(ValueError, match=r"marked ready twice.*\{'use_reentrant': False\}"):
        HawkeyeGRPOConfig(output_dir=str(tmp_path), **options, **ON)


def test_reentrant_checkpointing_is_allowed_with_one_gradient_branch(tmp_path):
    plain = run(tmp_path, max_steps=2, **GRADIENT_ONLY, **ON | DETACHED)
    reentrant = {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": True}}
    # reentrant checkpointing needs an input with gradient, which PEFT's models get from TRL: here by hand
    options = {"max_steps": 2, **GRADIENT_ONLY, **ON, **DETACHED}
    trainer = build_trainer(tmp_path, **options, **reentrant)
    trainer.model.enable_input_require_grads()
    trainer.train()
    parameters = {name: p.detach() for name, p in trainer.model.named_parameters()}
    assert largest_difference(parameters, plain.parameters) < 1e-6
    assert trainer.model.is_activation_checkpointing


# TRL's entropy bonus


BONUSES = {
    "entropy_coef": {"entropy_coef": 0.01},
    "use_adaptive_entropy": {"use_adaptive_entropy": True, "entropy_coef": 0.01, "entropy_target": 10.0},
}


@pytest.mark.parametrize("bonus", BONUSES.values(), ids=BONUSES.keys())
@pytest.mark.parametrize("ours", ["entropy_original_coef", "entropy_degraded_coef"])
def test_entropy_bonus_is_refused_with_our_entropies(tmp_path, bonus, ours):
    terms = OFF | {ours: 0.01}
    with pytest.raises(ValueError, match="set entropy_coef to 0 and use_adaptive_entropy to False"):
        HawkeyeGRPOConfig(output_dir=str(tmp_path), bf16=False, use_cpu=True, **bonus, **terms)


@pytest.mark.parametrize("bonus", BONUSES.values(), ids=BONUSES.keys())
def test_entropy_bonus_is_allowed_with_the_other_terms(tmp_path, bonus):
    terms = ON | {"entropy_original_coef": 0.0, "entropy_degraded_coef": 0.0}
    on = run(tmp_path, max_steps=2, **bonus, **terms)
    off = run(tmp_path, max_steps=2, **bonus, **OFF)
    stock = run(tmp_path, max_steps=2, stock=True, **bonus)
    without = run(tmp_path, max_steps=2, **terms)
    check_logs(on)
    assert largest_difference(off.parameters, stock.parameters) == 0
    assert largest_difference(on.parameters, off.parameters) > 1e-5
    assert largest_difference(on.parameters, without.parameters) > 1e-5


# Truncation


def truncating(trainer, rows: tuple[int, ...]) -> None:
    """Takes the end token from some rows of each generation batch."""
    rollout = trainer.rollout_func

    def cut(prompts, trainer):
        output = rollout(prompts, trainer)
        for row in rows:
            output["completion_ids"][row] = output["completion_ids"][row][:-1]
            output["logprobs"][row] = output["logprobs"][row][:-1]
        return output

    trainer.rollout_func = cut


def train_with_truncation(folder, rows: tuple[int, ...], **options) -> Run:
    recorder = GradientRecorder()
    trainer = build_trainer(folder, mask_truncated_completions=True, callbacks=[recorder], **options)
    truncating(trainer, rows)
    trainer.train()
    logs = [line for line in trainer.state.log_history if "loss" in line]
    return Run(trainer, dict(trainer.model.named_parameters()), recorder.steps, logs)


@pytest.mark.parametrize("rows", [(1, 4), (0, 1, 2, 3)], ids=["two rows", "a group"])
def test_mask_truncated_completions(tmp_path, rows):
    on, off = (train_with_truncation(tmp_path, rows, max_steps=2, **terms) for terms in (ON, OFF))
    stock = train_with_truncation(tmp_path, rows, max_steps=2, stock=True)
    assert largest_difference(off.parameters, stock.parameters) == 0
    assert largest_difference(on.parameters, off.parameters) > 1e-5
    check_logs(on)


def test_batch_in_which_all_rows_are_truncated_and_masked(tmp_path):
    done = train_with_truncation(tmp_path, tuple(range(8)), max_steps=2, **ON)
    assert done.logs[0]["loss"] == 0
    assert "perception/kl" not in done.logs[0]
    assert all(gradient.abs().max() == 0 for gradient in done.gradients[0].values())


def test_truncated_rows_add_nothing_to_the_perception_terms(tmp_path):
    # dr_grpo divides by a constant and equal answers give no policy gradient: the rest is a sum over unmasked rows
    options = {"scripted": ANSWERS[:1], "loss_type": "dr_grpo", "shuffle_dataset": False, **GRADIENT_ONLY, **ON}
    some, others, whole = (
        train_with_truncation(tmp_path, rows, **options).gradients[0] for rows in ((1, 4), (0, 2, 3, 5, 6, 7), ())
    )
    assert relative_difference({name: some[name] + others[name] for name in some}, whole) < 1e-5
    assert relative_difference(some, whole) > 0.05


# Rewards and scores


def sometimes_silent(completions, **kwargs) -> list[float | None]:
    return [None if index % 4 == 1 else float(index) for index in range(len(completions))]


def silent(completions, **kwargs) -> list[None]:
    return [None] * len(completions)


REWARDS = {
    "some rows": [sometimes_silent],
    "all rows": [silent],
    "beside another": [silent, format_reward],
}


@pytest.mark.parametrize("rewards", REWARDS.values(), ids=REWARDS.keys())
def test_reward_that_returns_none(tmp_path, rewards):
    on, off = (run(tmp_path, max_steps=2, reward_funcs=list(rewards), **terms) for terms in (ON, OFF))
    stock = run(tmp_path, max_steps=2, reward_funcs=list(rewards), stock=True)
    assert largest_difference(off.parameters, stock.parameters) == 0
    check_logs(on)
    assert all(parameter.isfinite().all() for parameter in on.parameters.values())
    assert largest_difference(on.parameters, off.parameters) > 1e-5


@pytest.mark.parametrize(("unparsed", "weight"), [("penalize", math.exp(-1.0)), ("exclude", 1.0)])
def test_batch_in_which_nothing_parses(tmp_path, unparsed, weight):
    done = run(tmp_path, scripted=("no idea", "none at all"), uncertainty_unparsed=unparsed, **ON)
    logs = done.logs[0]
    assert logs["scores/parse_rate"] == 0
    assert logs["uncertainty/weight_mean"] == pytest.approx(weight)
    assert "scores/spread" not in logs
    assert 1e-6 < logs["perception/kl"] < 10
    assert math.isfinite(logs["loss"])


def test_score_fn_reads_another_form_of_answer(tmp_path):
    answers = ("Score: 2.0", "Score: 4.0", "no score", "Score: 3.0")

    def score(text: str) -> float | None:
        match = re.fullmatch(r"Score: ([0-9.]+)", text)
        return float(match[1]) if match else None

    options = {"scripted": answers, "reward_funcs": [sometimes_silent], "uncertainty_alpha": 1.0}
    logs = run(tmp_path, score_fn=score, **options).logs[0]
    assert logs["scores/parse_rate"] == 0.75
    # variance of 2, 3 and 4 is 2/3, of at most 4; a quarter of the rows states none
    assert logs["uncertainty/mean"] == pytest.approx(0.75 * (2 / 3) / 4 + 0.25)
    assert run(tmp_path, **options).logs[0]["scores/parse_rate"] == 0  # by our own parser


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_score_fn_that_returns_no_number_is_refused(tmp_path, value):
    with pytest.raises(TrainingError, match=f"score_fn returned {value}"):  # the rewards read scores first
        run(tmp_path, score_fn=lambda text: value, **ON)


def test_one_rollout_a_group_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least 2 generations per prompt"):
        build_trainer(tmp_path, num_generations=1, **ON)


def test_adapter_on_the_head_is_refused_by_trl(tmp_path):
    with pytest.raises(ValueError, match="adapter to `lm_head` is not supported"):
        build_trainer(tmp_path, peft_config=type(LORA)(r=2, target_modules=["lm_head"]), **ON)


# The other combinations that can't work, or act on one side alone


def constant_reward(completions, **kwargs) -> list[float]:
    return [1.0] * len(completions)


def test_top_entropy_quantile_restricts_the_policy_loss_alone(tmp_path):
    quantile = {"top_entropy_quantile": 0.5}
    # without a policy gradient the quantile changes nothing
    only = {"reward_funcs": [constant_reward], **GRADIENT_ONLY, **ON}
    assert largest_difference(run(tmp_path, **only).gradients[0], run(tmp_path, **only, **quantile).gradients[0]) == 0
    whole, restricted = run(tmp_path, **GRADIENT_ONLY, **ON), run(tmp_path, **GRADIENT_ONLY, **ON, **quantile)
    assert relative_difference(restricted.gradients[0], whole.gradients[0]) > 0.01


@pytest.mark.parametrize("terms", [ON, OFF | {"entropy_original_coef": 0.01}], ids=["all", "entropy alone"])
def test_unknown_loss_type_is_refused(tmp_path, terms):
    with pytest.raises(ValueError, match=r"loss_type 'new' is unknown to the perception terms.*dapo"):
        build_trainer(tmp_path, loss_type="new", **terms)


def test_continuous_batching_is_refused_by_trl(tmp_path):
    with pytest.raises(ValueError, match="does not support multimodal models"):
        build_trainer(tmp_path, use_transformers_continuous_batching=True, **ON)
