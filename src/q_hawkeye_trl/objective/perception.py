"""
Perception-Aware Optimization: how differently the policy rates the same completion under the original and under the
degraded image (Q-Hawkeye, arXiv 2601.22920; PAPO, arXiv 2507.06448).

Notation: B rows, T completion tokens. Padding is the caller's: multiply with `reduction.token_weights`.
"""

import torch


def perception_kl(
    logps_original: torch.Tensor, logps_degraded: torch.Tensor, *, clip: float = 10.0, log_ratio_clip: float = 20.0
) -> torch.Tensor:
    """
    Per-token estimate of KL(pi(·|I) || pi(·|I')) from tokens drawn under the original image I: with the log-ratio
    d = log pi(o_t|I') - log pi(o_t|I), the low-variance ("k3") estimate exp(d) - d - 1. Training maximises it.

    Gradient flows to both arguments: 1 - exp(d) to `logps_original`, exp(d) - 1 to `logps_degraded`. It is zero where
    a clamp holds: at `clip` 10 for d above 2.61 or below -11.0, so `log_ratio_clip` only keeps exp from overflowing.

    Args:
        logps_original (`torch.Tensor` of shape `(B, T)`):
            Log-probabilities (nats) of the completion tokens under the original image.
        logps_degraded (`torch.Tensor` of shape `(B, T)`):
            Log-probabilities (nats) of the same tokens under the degraded image. Detach it for the release's one-sided
            gradient.
        clip (`float`, *optional*, defaults to `10.0`):
            Largest value that a token can have.
        log_ratio_clip (`float`, *optional*, defaults to `20.0`):
            d is clamped to ±`log_ratio_clip` first.

    Returns:
        `torch.Tensor` of shape `(B, T)`: Values in [0, `clip`]. Finite padding stays finite, infinite does not.

    Raises:
        `ValueError`: Shapes that differ, or a clip that is not positive.

    Source: Q-Hawkeye, arXiv 2601.22920 (Perception-Aware Optimization), after the implicit perception loss of PAPO,
    arXiv 2507.06448; the clamps are those of the Q-Hawkeye release.
    """
    if logps_original.shape != logps_degraded.shape:
        raise ValueError(
            f"Both log-probabilities must have one shape, got {tuple(logps_original.shape)} (original) and "
            f"{tuple(logps_degraded.shape)} (degraded)."
        )
    if not (clip > 0 and log_ratio_clip > 0):
        raise ValueError(f"`clip` and `log_ratio_clip` must be positive, got {clip} and {log_ratio_clip}.")
    log_ratio = (logps_degraded - logps_original).clamp(-log_ratio_clip, log_ratio_clip)
    # expm1 instead of exp - 1: near d = 0 the difference is about d²/2, below float32's resolution at 1.
    return (torch.expm1(log_ratio) - log_ratio).clamp(max=clip)


def sampled_entropy(logps: torch.Tensor) -> torch.Tensor:
    """
    One-sample estimate of the token entropy, -log pi of the token that was drawn.

    It estimates the entropy only where the tokens come from that very distribution. For the completions' tokens under
    the degraded image it is a cross-entropy, H(I) + KL(pi(·|I) || pi(·|I')): minimising it works against the
    perception KL.

    Args:
        logps (`torch.Tensor` of shape `(B, T)`):
            Log-probabilities (nats) of the drawn tokens.

    Returns:
        `torch.Tensor` of shape `(B, T)`: Values of at least 0 (nats).

    Source: double entropy loss of PAPO, arXiv 2507.06448, in its sampled form.
    """
    return -logps
