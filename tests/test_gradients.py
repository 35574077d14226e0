"""Each term of the loss has a gradient, of the right sign and in both halves of the model; the terms add up."""

import math
from itertools import pairwise

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from harness import ANSWERS, OFF, ON, GradientRecorder, build_trainer, relative_difference, run
from q_hawkeye_trl.objective.perception import perception_kl
from tiny_models import save_policy, tiny_dataset

PLAIN = {"optim": "sgd", "max_grad_norm": 0.0, "loss_type": "grpo", "perception_gamma_schedule": "constant"}
TERMS = {
    "policy": {"reward_funcs": None},  # the harness's own
    "reference KL": {"beta": 0.5},
    "perception KL": {"perception_gamma": 0.5},
    "entropy on the original": {"entropy_original_coef": 0.5},
    "entropy on the degraded": {"entropy_degraded_coef": 0.5},
}
TOGETHER = {name: value for term in TERMS.values() for name, value in term.items()}
Gradients = dict[str, torch.Tensor]


def constant_reward(completions, **kwargs) -> list[float]:
    """Leaves no advantage and so no policy gradient."""
    return [1.0] * len(completions)


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> str:
    return save_policy("qwen2_5_vl", tmp_path_factory.mktemp("policy"))


@pytest.fixture
def gradients_of(policy, tmp_path):
    """Gradient of one step from the same weights, beside a reference that differs."""

    def gradients_of(**options) -> Gradients:
        recorder = GradientRecorder()
        trainer = build_trainer(
            tmp_path,
            model=AutoModelForImageTextToText.from_pretrained(policy),
            processing_class=AutoProcessor.from_pretrained(policy),
            train_dataset=tiny_dataset(2, degraded=True),
            callbacks=[recorder],
            **PLAIN | OFF | {"reward_funcs": [constant_reward]} | options,
        )
        if trainer.ref_model is not None:
            with torch.no_grad():
                for parameter in trainer.ref_model.parameters():
                    parameter.add_(0.02 * torch.sin(torch.arange(parameter.numel()).view_as(parameter)))
        trainer.train()
        return recorder.steps[0]

    return gradients_of


def norm(gradients: Gradients, part: str) -> float:
    return math.sqrt(sum(g.square().sum().item() for name, g in gradients.items() if part in name))


def total(*parts: Gradients) -> Gradients:
    return {name: sum(part[name] for part in parts) for name in parts[0]}


@pytest.mark.parametrize("term", TERMS.values(), ids=TERMS.keys())
def test_each_term_alone_reaches_language_model_and_vision_tower(gradients_of, term):
    gradients = gradients_of(**term)
    assert norm(gradients, "language_model.layers.0") > 1e-5
    assert norm(gradients, "visual.patch_embed") > 1e-5


def test_no_term_no_gradient(gradients_of):
    assert norm(gradients_of(), "") == 0


def test_gradient_of_all_terms_is_the_sum_of_their_gradients(gradients_of):
    parts = [gradients_of(**term) for term in TERMS.values()]
    assert relative_difference(gradients_of(**TOGETHER), total(*parts)) < 1e-5


# Which branch gets the gradient


@pytest.fixture
def cut_off(monkeypatch):
    """Detaches one argument of the KL, by hand: both forwards still run with gradient."""

    def cut_off(branch: str) -> None:
        def kl(original, degraded, **kwargs):
            if branch == "original":
                original = original.detach()
            else:
                degraded = degraded.detach()
            return perception_kl(original, degraded, **kwargs)

        monkeypatch.setattr("q_hawkeye_trl.hawkeye_method.perception_kl", kl)

    return cut_off


def test_degraded_branch_gets_no_gradient_with_perception_gradient_original(gradients_of, cut_off):
    ours = gradients_of(perception_gamma=0.5, perception_gradient="original")
    both = gradients_of(perception_gamma=0.5)
    cut_off("degraded")
    assert relative_difference(ours, gradients_of(perception_gamma=0.5)) < 1e-5
    assert relative_difference(ours, both) > 0.05


def test_gradients_of_both_branches_add_up(gradients_of, cut_off):
    both = gradients_of(perception_gamma=0.5)
    original = gradients_of(perception_gamma=0.5, perception_gradient="original")
    cut_off("original")
    degraded = gradients_of(perception_gamma=0.5)
    assert norm(degraded, "visual.patch_embed") > 1e-5
    assert relative_difference(total(original, degraded), both) < 1e-5


# Signs


@pytest.mark.parametrize(
    ("coefficient", "value", "direction"),
    [
        ("perception_gamma", "perception/kl", 1),
        ("entropy_original_coef", "perception/entropy_original", -1),
        ("entropy_degraded_coef", "perception/entropy_degraded", -1),
    ],
)
def test_descent_on_one_term_moves_its_value_the_right_way(tmp_path, coefficient, value, direction):
    terms = OFF | {coefficient: 1.0}
    done = run(
        tmp_path,
        reward_funcs=[constant_reward],
        train_dataset=tiny_dataset(2, degraded=True),
        shuffle_dataset=False,  # each image keeps its completions
        max_steps=4,
        learning_rate=0.005,
        **terms,
        **PLAIN,
    )
    values = [line[value] for line in done.logs]
    assert all((later - earlier) * direction > 0 for earlier, later in pairwise(values)), values


def test_sampled_entropy_has_a_gradient_of_its_own(gradients_of):
    exact = gradients_of(entropy_original_coef=0.5)
    sampled = gradients_of(entropy_original_coef=0.5, entropy_estimator="sampled")
    assert norm(sampled, "visual.patch_embed") > 1e-5
    assert relative_difference(sampled, exact) > 0.1


# Uncertainty weights


def test_weights_multiply_the_advantages(gradients_of):
    # the groups state 1.5, 4.25, 3 and nothing; 3.8, 2.2, 4.9 and 7, which is clamped to 5
    plain = [gradients_of(scripted=one_group(group), reward_funcs=None) for group in (0, 1)]
    weighted = gradients_of(uncertainty_alpha=0.9, reward_funcs=None)
    expected = [
        {name: weight(scores, share) * gradient for name, gradient in part.items()}
        for part, scores, share in zip(plain, ([1.5, 4.25, 3.0], [3.8, 2.2, 4.9, 5.0]), (0.75, 1.0), strict=True)
    ]
    assert relative_difference(weighted, total(*expected)) < 1e-5
    assert relative_difference(weighted, total(*plain)) > 0.1


def one_group(group: int):
    """The answers of one group; the other one's are all alike and so carry no advantage."""
    return lambda prompt, rollout: ANSWERS[4 * group + rollout] if prompt == group else "alike"


def weight(scores: list[float], share: float) -> float:
    mean = sum(scores) / len(scores)
    variance = sum((score - mean) ** 2 for score in scores) / len(scores)
    return math.exp(-0.9 * (share * min(variance / 4, 1) + 1 - share))


# Inputs from TRL


def test_entropies_of_the_fused_head_carry_gradient(tmp_path, monkeypatch):
    # dead in trl 1.9, 1.12 and 1.14
    trainer = build_trainer(tmp_path, **ON)
    seen = []
    compute = trainer._perception_loss

    def look(model, inputs, logps, entropies, terms):
        (gradient,) = torch.autograd.grad(entropies.sum(), model.get_input_embeddings().weight, retain_graph=True)
        seen.append((gradient.norm().item(), logps.requires_grad))
        return compute(model, inputs, logps, entropies, terms)

    monkeypatch.setattr(trainer, "_perception_loss", look)
    trainer.train()
    ((gradient_norm, has_gradient),) = seen
    assert gradient_norm > 1e-3
    assert has_gradient


@pytest.mark.parametrize("terms", [ON, ON | {"perception_gradient": "original", "entropy_degraded_coef": 0.0}])
def test_no_graph_is_kept_after_the_loss(tmp_path, terms):
    trainer = build_trainer(tmp_path, **terms)
    trainer.train()
    assert trainer._captured is None
    held = [value for values in trainer._metrics.values() for value in values.values()]
    assert not any(isinstance(entry, torch.Tensor) for values in held for entry in values)
