"""
Rewards that compare images with each other instead of scores with labels: pure functions over the rows of a whole
(global) batch, one row a rollout.

Notation: s_ik the score of rollout k of image i; mu and var the mean and the sample variance (G - 1) of the scores of
one image that parsed, var 0 for a single score; y the mean opinion score (MOS); z every other image.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field


@dataclass
class _Image:
    """What is known of one image of the batch: its labels and the scores that its rollouts state."""

    dataset: Hashable
    mos: float
    mos_std: float | None
    scores: list[float] = field(default_factory=list)
    mean: float = math.nan
    variance: float = math.nan

    def summarize(self) -> None:
        count = len(self.scores)
        if count == 0:
            return
        self.mean = sum(self.scores) / count
        squares = sum((score - self.mean) ** 2 for score in self.scores)
        self.variance = squares / (count - 1) if count > 1 else 0.0


def _collect_images(
    scores: Sequence[float | None], mos: Sequence[float], keys: Sequence[tuple], mos_stds: Sequence[float | None]
) -> dict[tuple, _Image]:
    """Images of the batch by (dataset, image id), in order of appearance."""
    images: dict[tuple, _Image] = {}
    for score, label, key, std in zip(scores, mos, keys, mos_stds, strict=True):
        image = images.setdefault(key, _Image(dataset=key[0], mos=label, mos_std=std))
        if (image.mos, image.mos_std) != (label, std):
            raise ValueError(
                f"Rows with the image_id {key[1]!r} carry different labels, {image.mos} and {label}: an image_id must "
                "name one image (of its data set)."
            )
        if score is not None:
            image.scores.append(score)
    for image in images.values():
        image.summarize()
    return images


def _compare(
    scores: Sequence[float | None],
    mos: Sequence[float],
    image_ids: Sequence[Hashable],
    datasets: Sequence[Hashable] | None,
    mos_stds: Sequence[float | None] | None,
    agreement: Callable[[float, _Image, _Image], float],
) -> list[float]:
    """Mean of `agreement(score, own image, other image)` over the other images that can be compared with."""
    datasets = [None] * len(scores) if datasets is None else datasets
    mos_stds = [None] * len(scores) if mos_stds is None else mos_stds
    keys = list(zip(datasets, image_ids, strict=True))
    images = _collect_images(scores, mos, keys, mos_stds)
    rewards = []
    for score, key in zip(scores, keys, strict=True):
        image = images[key]
        others = [other for other in images.values() if other is not image and other.dataset == image.dataset]
        others = [other for other in others if other.scores]
        if score is None or not others:
            rewards.append(0.0)
        else:
            rewards.append(sum(agreement(score, image, other) for other in others) / len(others))
    return rewards


def _thurstone_fidelity(score: float, image: _Image, other: _Image) -> float:
    x = (score - other.mean) / math.sqrt(image.variance + other.variance + 1e-6)
    # erfc on both sides: 1 - p would lose the small tail.
    better, worse = math.erfc(-x / math.sqrt(2)) / 2, math.erfc(x / math.sqrt(2)) / 2
    truth = 0.5 if image.mos == other.mos else float(image.mos > other.mos)
    return math.sqrt(better * truth) + math.sqrt(worse * (1 - truth))


def rank_rewards(
    scores: Sequence[float | None],
    mos: Sequence[float],
    image_ids: Sequence[Hashable],
    datasets: Sequence[Hashable] | None = None,
) -> list[float]:
    """
    How far each rollout orders its image among the others as the MOS does. With
    p = Phi((s_ik - mu_z) / sqrt(var_i + var_z + 1e-6)) and g = 1, 1/2 or 0 for y_i above, equal to or below y_z, the
    reward is the mean over z of sqrt(p·g) + sqrt((1 - p)·(1 - g)).

    Args:
        scores (sequence of `float` or `None`, length B):
            Score of each rollout, `None` where none parsed.
        mos (sequence of `float`, length B):
            MOS of the rollout's image.
        image_ids (sequence, length B):
            Name of the rollout's image; the rows of one image need not be neighbours.
        datasets (sequence, length B, *optional*):
            Data set of the row. Only images of one data set are compared, since MOS of different sets have no common
            order; an id is one image within its data set.

    Returns:
        `list[float]` of length B: Rewards in [0, 1]. 0 for a rollout without a score, and where there is nobody to
        compare with: the image is alone, or no rollout of any other image parsed (such images are skipped as z).

    Raises:
        `ValueError`: Rows of one image that carry different labels.

    Source: VisualQuality-R1, arXiv 2505.14460 (Thurstone model, fidelity measure).
    """
    return _compare(scores, mos, image_ids, datasets, None, _thurstone_fidelity)


def margin_rewards(
    scores: Sequence[float | None],
    mos: Sequence[float],
    image_ids: Sequence[Hashable],
    datasets: Sequence[Hashable] | None = None,
    *,
    sigma: float = 1.0,
    mos_stds: Sequence[float] | None = None,
) -> list[float]:
    """
    How far each rollout's distance to the other images is the distance of their MOS: the mean over z of
    exp(-((Δs - Δy)/sigma)²/2) with Δs = s_ik - mu_z and Δy = y_i - y_z.

    Args:
        scores, mos, image_ids, datasets:
            As in [`rank_rewards`].
        sigma (`float`, *optional*, defaults to `1.0`):
            Tolerance in points of the scale, positive.
        mos_stds (sequence of `float`, length B, *optional*):
            Standard deviation of the opinions behind each MOS, positive. Given, it replaces `sigma` by
            sqrt(std_i² + std_z²).

    Returns:
        `list[float]` of length B: Rewards in [0, 1], 0 in the same cases as in [`rank_rewards`].

    Raises:
        `ValueError`: Rows of one image that carry different labels, or a tolerance that is not positive.

    Source: MR-IQA (margin reward over image pairs).
    """
    for tolerance in [sigma] if mos_stds is None else mos_stds:
        if tolerance is None or not 0 < tolerance < math.inf:
            raise ValueError(f"`sigma` and the standard deviations of the MOS must be positive, got {tolerance!r}.")

    def agreement(score: float, image: _Image, other: _Image) -> float:
        width = sigma if mos_stds is None else math.hypot(image.mos_std or 0.0, other.mos_std or 0.0)
        distance = (score - other.mean) - (image.mos - other.mos)
        return math.exp(-((distance / width) ** 2) / 2)

    return _compare(scores, mos, image_ids, datasets, mos_stds, agreement)
