"""A policy as a metric with the methods of torchmetrics: `update` with images, `compute` their mean quality."""

import math
import os
from collections.abc import Sequence

import torch
from PIL import Image

from .scorer import HawkeyeScorer


class ImageQuality:
    """
    Mean quality of images, by a trained policy; for example of the output of a generator or a restoration network.

    It has the methods of a torchmetrics metric and does not need that package.

    Args:
        scorer ([`~scoring.scorer.HawkeyeScorer`]):
            The policy.

    Example:

    ```python
    >>> from q_hawkeye_trl.scoring import HawkeyeScorer, ImageQuality

    >>> metric = ImageQuality(HawkeyeScorer("runs/koniq"))  # doctest: +SKIP
    >>> for batch in batches:  # doctest: +SKIP
    ...     metric.update(batch)
    >>> metric.compute()  # doctest: +SKIP
    tensor(3.4125)
    ```
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    def __init__(self, scorer: HawkeyeScorer):
        self.scorer = scorer
        self.scores: list[float] = []

    @property
    def coverage(self) -> float:
        """Share of the images so far with a score, in [0, 1]; `nan` before the first."""
        if not self.scores:
            return math.nan
        return sum(not math.isnan(score) for score in self.scores) / len(self.scores)

    def update(self, images: Sequence[str | os.PathLike | Image.Image] | torch.Tensor) -> None:
        """
        Score a batch.

        Args:
            images (`Sequence[str | os.PathLike | PIL.Image.Image]` or `torch.Tensor` of shape `(B, 3, H, W)`):
                Paths or images, or RGB pixels: uint8 in [0, 255], or floats in [0, 1], which are rounded to 8 bits.

        Raises:
            `ValueError`: A tensor of another shape, type or range, or an image that can't be read.
        """
        self.scores += self.scorer(_from_tensor(images) if isinstance(images, torch.Tensor) else images)

    def compute(self) -> torch.Tensor:
        """
        Return the mean over all images so far that have a score.

        Returns:
            `torch.Tensor` without dimensions: On the model's scale; `nan` if no image has a score. Images without
            one are left out: see `coverage`.
        """
        known = [score for score in self.scores if not math.isnan(score)]
        return torch.tensor(sum(known) / len(known) if known else math.nan)

    def reset(self) -> None:
        """Forget the images so far."""
        self.scores = []

    def __call__(self, images: Sequence[str | os.PathLike | Image.Image] | torch.Tensor) -> torch.Tensor:
        """
        Add a batch as [`update`] does, and return its own mean.

        Returns:
            `torch.Tensor` without dimensions: As [`compute`].
        """
        before = self.scores
        self.reset()
        try:
            self.update(images)
            return self.compute()
        finally:
            self.scores = before + self.scores


def _from_tensor(images: torch.Tensor) -> list[Image.Image]:
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"Expected a tensor of shape (B, 3, H, W), got {tuple(images.shape)}.")
    images = images.detach().cpu()
    if images.is_floating_point():
        if not bool(((images >= 0) & (images <= 1)).all()):  # NaN is neither
            raise ValueError(
                f"Expected floats in [0, 1], got {images.min().item():g} to {images.max().item():g}: scale them first."
            )
        images = (images * 255).round().to(torch.uint8)
    if images.dtype != torch.uint8:
        raise ValueError(f"Expected uint8 or floats, got {images.dtype}.")
    return [Image.fromarray(pixels) for pixels in images.permute(0, 2, 3, 1).contiguous().numpy()]
