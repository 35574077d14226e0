"""
Uncertainty-Aware Dynamic Optimization: how much the scores of one image's rollouts disagree, and the weight that its
advantages get from that (Q-Hawkeye, arXiv 2601.22920).

Notation: N groups (images), G rollouts a group; a score is NaN where the rollout states none.
"""

from typing import Literal

import torch

UNPARSED = ("penalize", "exclude")
WEIGHTINGS = ("exponential", "linear", "reciprocal")


def _group_moments(scores: torch.Tensor, score_min: float, score_max: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Number of parsed scores and their population variance, both (N,); the variance is 0 below two scores."""
    if scores.dim() != 2:
        raise ValueError(f"`scores` must have shape (N, G), got {tuple(scores.shape)}.")
    if not score_min < score_max:
        raise ValueError(f"`score_min` must be below `score_max`, got {score_min} and {score_max}.")
    parsed = ~scores.isnan()
    count = parsed.sum(dim=1).to(scores.dtype)
    # NaN is replaced by 0 before any arithmetic: NaN · 0 would still be NaN.
    values = torch.where(parsed, scores.clamp(score_min, score_max), 0.0)
    mean = values.sum(dim=1) / count.clamp(min=1)
    squares = torch.where(parsed, values - mean.unsqueeze(1), 0.0).square()
    variance = squares.sum(dim=1) / count.clamp(min=1)
    return count, torch.where(count < 2, 0.0, variance)


def rollout_uncertainty(
    scores: torch.Tensor,
    *,
    score_min: float = 1.0,
    score_max: float = 5.0,
    unparsed: Literal["penalize", "exclude"] = "penalize",
) -> torch.Tensor:
    """
    Uncertainty of each group: the population variance of its scores over the largest variance that scores in
    [`score_min`, `score_max`] can have, which is (score_max - score_min)²/4 (half of them at either end).

    Args:
        scores (`torch.Tensor` of shape `(N, G)`, floating point):
            Scores of whole groups (gather them first when a group spans ranks), NaN where no score was parsed. Scores
            out of range are clamped to it before anything is computed.
        score_min (`float`, *optional*, defaults to `1.0`):
            Lowest score of the scale.
        score_max (`float`, *optional*, defaults to `5.0`):
            Highest score of the scale.
        unparsed (`str`, *optional*, defaults to `"penalize"`):
            What rollouts without a score do. `"penalize"`: with p the parsed share and v the normalised variance,
            u = p·v + (1 - p), so that a group without any score is most uncertain. This also damps the signal of the
            format reward early in training. `"exclude"` (the release): u = v over the parsed scores alone, which calls
            a group with one score or none most certain.

    Returns:
        `torch.Tensor` of shape `(N,)`: Uncertainty in [0, 1]. The variance of fewer than two scores counts as 0.

    Raises:
        `ValueError`: Unknown `unparsed`, scores that are not `(N, G)`, or an empty range.

    Source: Q-Hawkeye, arXiv 2601.22920 (Uncertainty-Aware Dynamic Optimization); `"penalize"` is ours.
    """
    if unparsed not in UNPARSED:
        raise ValueError(f"Unknown `unparsed` {unparsed!r}: choose one of {', '.join(UNPARSED)}.")
    count, variance = _group_moments(scores, score_min, score_max)
    uncertainty = (variance / ((score_max - score_min) ** 2 / 4)).clamp(max=1.0)
    if unparsed == "exclude":
        return uncertainty
    share = count / scores.size(1)
    return share * uncertainty + (1 - share)


def uncertainty_weights(
    uncertainty: torch.Tensor,
    *,
    alpha: float,
    weighting: Literal["exponential", "linear", "reciprocal"] = "exponential",
    normalize: bool = False,
) -> torch.Tensor:
    """
    Weight of each group's advantages, falling with its uncertainty u: exp(-alpha·u), 1 - alpha·u or 1/(1 + alpha·u).

    Args:
        uncertainty (`torch.Tensor` of shape `(N,)`):
            Uncertainty in [0, 1], of all groups that `normalize` is to average over.
        alpha (`float`):
            Strength, at least 0; 0 gives exactly 1 everywhere. `"linear"` needs at most 1, so that no weight is
            negative (a negative one would flip the sign of the advantages). The release uses 0.2, exponential.
        weighting (`str`, *optional*, defaults to `"exponential"`):
            `"exponential"` (the paper), `"linear"` or `"reciprocal"` (ours, for ablations).
        normalize (`bool`, *optional*, defaults to `False`):
            Whether to rescale the weights to mean 1 over the given groups, so that `alpha` moves the emphasis and not
            the learning rate. Weights that are all 0 (linear, alpha 1, u 1 everywhere) become 1, like any other equal
            weights.

    Returns:
        `torch.Tensor` of shape `(N,)`: Weights in [0, 1] (without `normalize`), to multiply the advantages with.

    Raises:
        `ValueError`: Unknown `weighting`, or `alpha` out of its range.

    Source: Q-Hawkeye, arXiv 2601.22920 (Uncertainty-Aware Dynamic Optimization).
    """
    if weighting not in WEIGHTINGS:
        raise ValueError(f"Unknown `weighting` {weighting!r}: choose one of {', '.join(WEIGHTINGS)}.")
    upper = 1.0 if weighting == "linear" else float("inf")
    if not 0 <= alpha <= upper:
        raise ValueError(f"`alpha` must be in [0, {upper:g}] for {weighting} weights, got {alpha}.")
    if weighting == "exponential":
        weights = torch.exp(-alpha * uncertainty)
    elif weighting == "linear":
        weights = 1 - alpha * uncertainty
    else:
        weights = 1 / (1 + alpha * uncertainty)
    if not normalize:
        return weights
    mean = weights.mean()
    return torch.where(mean > 0, weights / mean, 1.0)


def score_statistics(
    scores: torch.Tensor, *, score_min: float = 1.0, score_max: float = 5.0, prefix: str = ""
) -> dict[str, float]:
    """
    Statistics of the groups' scores, for the log.

    Args:
        scores (`torch.Tensor` of shape `(N, G)`, floating point):
            Scores of whole groups, NaN where no score was parsed; clamped to the range.
        score_min (`float`, *optional*, defaults to `1.0`):
            Lowest score of the scale.
        score_max (`float`, *optional*, defaults to `5.0`):
            Highest score of the scale.
        prefix (`str`, *optional*, defaults to `""`):
            Put in front of each key.

    Returns:
        `dict[str, float]`: `"parse_rate"`, the share of rollouts with a score; `"unmeasured_groups"`, the share of
        groups with fewer than two scores, whose spread is unknown; `"spread"`, the mean population standard deviation
        (in points of the scale) of the other groups, a key that is absent when there are none: a 0 would read as
        "certain". Empty for no scores at all.
    """
    count, variance = _group_moments(scores, score_min, score_max)
    if scores.numel() == 0:
        return {}
    measured = count >= 2
    statistics = {
        "parse_rate": (count.sum() / scores.numel()).item(),
        "unmeasured_groups": (~measured).float().mean().item(),
    }
    if measured.any():
        statistics["spread"] = variance[measured].sqrt().mean().item()
    return {prefix + key: value for key, value in statistics.items()}
