import math

import pytest
import torch

from q_hawkeye_trl.objective.perception import perception_kl, sampled_entropy
from q_hawkeye_trl.objective.reduction import token_weights


def _reference_kl(original, degraded, clip=10.0, log_ratio_clip=20.0):
    log_ratio = max(-log_ratio_clip, min(log_ratio_clip, degraded - original))
    return min(math.exp(log_ratio) - log_ratio - 1, clip)


def _logps(*shape, seed=0, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    return -scale * torch.rand(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("clip", "log_ratio_clip"), [(10.0, 20.0), (0.5, 20.0), (1e9, 2.0)])
@pytest.mark.parametrize("scale", [0.01, 2.0, 60.0])
def test_perception_kl_equals_the_reference(clip, log_ratio_clip, scale):
    original, degraded = _logps(5, 7, seed=1, scale=scale), _logps(5, 7, seed=2, scale=scale)
    value = perception_kl(original, degraded, clip=clip, log_ratio_clip=log_ratio_clip)
    for row in range(5):
        for token in range(7):
            expected = _reference_kl(original[row, token].item(), degraded[row, token].item(), clip, log_ratio_clip)
            assert value[row, token].item() == pytest.approx(expected, rel=1e-9, abs=1e-15)
    assert value.shape == (5, 7)
    assert (value >= 0).all()


def test_perception_kl_is_zero_for_equal_branches_and_at_most_the_clip():
    logps = _logps(3, 4)
    assert torch.equal(perception_kl(logps, logps), torch.zeros_like(logps))
    extremes = torch.tensor([[-1e4, 1e4, -30.0, 30.0]])
    assert perception_kl(torch.zeros(1, 4), extremes).tolist() == [[10.0] * 4]
    unclipped = perception_kl(torch.zeros(1, 4), extremes, clip=1e12)
    assert unclipped[0].tolist() == pytest.approx([19.0, math.exp(20) - 21] * 2, rel=1e-6)


def test_perception_kl_keeps_its_precision_near_zero_in_float32():
    log_ratio = torch.tensor([[1e-3, -1e-3, 1e-4, -1e-4]])
    value = perception_kl(torch.zeros(1, 4), log_ratio)[0].tolist()
    assert value == pytest.approx([d * d / 2 + d**3 / 6 for d in log_ratio[0].tolist()], rel=2e-3)


@pytest.mark.parametrize(("p", "q"), [(0.5, 0.5), (0.8, 0.3), (0.99, 0.2), (0.05, 0.6)])
def test_perception_kl_averages_to_the_closed_form_of_two_tokens(p, q):
    # original (p, 1 - p), degraded (q, 1 - q): the estimate, weighted with p, is exactly KL(p || q)
    original, degraded = (torch.tensor([[x, 1 - x]], dtype=torch.float64).log() for x in (p, q))
    estimate = (perception_kl(original, degraded, clip=1e9) * original.exp()).sum().item()
    assert estimate == pytest.approx(p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)), rel=1e-9, abs=1e-12)


def _two_token_kl_slope(p, q, trained):
    """d estimate / d(logit of token 1) of one branch, tokens weighted with the original probabilities."""
    logits = {
        "original": torch.tensor([math.log(p / (1 - p)), 0.0], dtype=torch.float64, requires_grad=True),
        "degraded": torch.tensor([math.log(q / (1 - q)), 0.0], dtype=torch.float64, requires_grad=True),
    }
    original, degraded = (logits[name].log_softmax(0).unsqueeze(0) for name in ("original", "degraded"))
    loss = (perception_kl(original, degraded) * original.detach().exp()).sum()
    return torch.autograd.grad(loss, logits[trained])[0][0].item()


@pytest.mark.parametrize(("p", "q"), [(0.8, 0.3), (0.3, 0.8), (0.6, 0.5)])
def test_perception_kl_pushes_the_degraded_branch_away(p, q):
    # KL(p || q) of two tokens: d/dlogit_q = q - p. Ascent moves q away from p.
    assert _two_token_kl_slope(p, q, "degraded") == pytest.approx(q - p, rel=1e-9)


@pytest.mark.parametrize(("p", "q"), [(0.8, 0.3), (0.3, 0.8), (0.6, 0.5)])
def test_perception_kl_pushes_the_original_branch_away(p, q):
    # with frozen sampling weights: sum_t p_t (1 - q_t/p_t) dlog p_t = p - q, after sum_t p_t dlog p_t = 0
    assert _two_token_kl_slope(p, q, "original") == pytest.approx(p - q, rel=1e-9)


def test_perception_kl_gradients_are_right_inside_the_clamps():
    original, degraded = _logps(3, 4, seed=3).requires_grad_(), _logps(3, 4, seed=4).requires_grad_()
    assert torch.autograd.gradcheck(perception_kl, (original, degraded))
    on_original, on_degraded = torch.autograd.grad(perception_kl(original, degraded).sum(), (original, degraded))
    expected = torch.exp(degraded - original) - 1
    torch.testing.assert_close(on_degraded, expected)
    torch.testing.assert_close(on_original, -expected)
    assert (on_degraded != 0).all()


def test_perception_kl_gradients_are_zero_where_a_clamp_holds():
    log_ratio = torch.tensor([2.61, 2.62, -10.9, -11.1, 25.0, -25.0], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(perception_kl(torch.zeros_like(log_ratio), log_ratio).sum(), log_ratio)
    assert (gradient != 0).tolist() == [True, False, True, False, False, False]
    (gradient,) = torch.autograd.grad(
        perception_kl(torch.zeros_like(log_ratio), log_ratio, clip=1e12).sum(), log_ratio
    )
    assert (gradient != 0).tolist() == [True, True, True, True, False, False]


def test_perception_kl_of_a_detached_branch_still_trains_the_other():
    original, degraded = _logps(2, 3, seed=5).requires_grad_(), _logps(2, 3, seed=6).requires_grad_()
    perception_kl(original, degraded.detach()).sum().backward()
    assert degraded.grad is None
    assert original.grad.abs().sum() > 0


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo", "luspo"])
@pytest.mark.parametrize("poison", [1e4, -1e4])
def test_poisoned_padding_changes_neither_loss_nor_gradient(loss_type, poison):
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0], [1, 1, 0, 1, 1]])
    weights = token_weights(
        mask, loss_type, num_items_in_batch=mask.sum(), steps_per_generation=1, max_completion_length=5
    )
    results = []
    for padding in (0.0, poison):
        original, degraded = (_logps(4, 5, seed=seed).masked_fill(mask == 0, 0.0) for seed in (7, 8))
        degraded = degraded.masked_fill(mask == 0, padding).requires_grad_()
        original = original.masked_fill(mask == 0, -padding / 3).requires_grad_()
        loss = ((perception_kl(original, degraded) + sampled_entropy(degraded)) * weights).sum()
        results.append((loss, *torch.autograd.grad(loss, (original, degraded))))
    for clean, poisoned in zip(*results, strict=True):
        assert torch.equal(clean, poisoned)


def test_perception_kl_of_nothing_is_empty():
    assert perception_kl(torch.empty(0, 4), torch.empty(0, 4)).shape == (0, 4)
    assert perception_kl(torch.empty(2, 0), torch.empty(2, 0)).shape == (2, 0)


def test_perception_kl_refuses_other_shapes_and_clips():
    with pytest.raises(ValueError, match=r"\(1, 4\)"):
        perception_kl(torch.zeros(2, 4), torch.zeros(1, 4))
    for clips in ({"clip": 0.0}, {"log_ratio_clip": -1.0}, {"clip": math.nan}):
        with pytest.raises(ValueError, match="positive"):
            perception_kl(torch.zeros(1, 1), torch.zeros(1, 1), **clips)


def test_sampled_entropy_averages_to_the_entropy_and_to_the_cross_entropy():
    p, q = [0.7, 0.2, 0.1], [0.3, 0.3, 0.4]
    probabilities, degraded = (torch.tensor([x], dtype=torch.float64) for x in (p, q))
    entropy = -sum(x * math.log(x) for x in p)
    assert (sampled_entropy(probabilities.log()) * probabilities).sum().item() == pytest.approx(entropy, rel=1e-9)
    # under the degraded image: H(p) + KL(p || q), which is why minimising it undoes the perception KL
    cross = (sampled_entropy(degraded.log()) * probabilities).sum().item()
    divergence = sum(x * math.log(x / y) for x, y in zip(p, q, strict=True))
    assert cross == pytest.approx(entropy + divergence, rel=1e-9)
