"""What the scores of the rollouts say while training runs: spread, parse rate, running SRCC and PLCC."""

from collections import deque
from collections.abc import Iterable

import torch

from .evaluation.metrics import plcc, srcc

WINDOW = 512
"""Images over which the running correlations are taken."""


class ScoreMonitor:
    """
    Keeps the rollouts' mean score and the MOS of the last images that were rolled out, and correlates them.

    Args:
        window (`int`, *optional*, defaults to `512`):
            Number of images kept.
    """

    def __init__(self, window: int = WINDOW):
        self._pairs: deque[tuple[float, float]] = deque(maxlen=window)

    def update(self, scores: torch.Tensor, mos: torch.Tensor) -> None:
        """
        Adds the images of one generation batch; those without a parsed score or a MOS are left out.

        Args:
            scores (`torch.Tensor` of shape `(N, G)`):
                Scores of the rollouts, NaN where none parsed.
            mos (`torch.Tensor` of shape `(N,)`):
                Mean opinion scores on the same scale, NaN where unknown.
        """
        means = torch.nanmean(scores, dim=1)
        known = ~(torch.isnan(means) | torch.isnan(mos))
        self._pairs.extend(zip(means[known].tolist(), mos[known].tolist(), strict=True))

    def correlations(self) -> dict[str, float]:
        """
        Correlates what the window holds.

        Returns:
            `dict[str, float]`: `srcc` and `plcc` in [-1, 1]; empty with fewer than three images.
        """
        if len(self._pairs) < 3:
            return {}
        means, mos = zip(*self._pairs, strict=True)
        return {"srcc": srcc(means, mos), "plcc": plcc(means, mos)}

    def state(self) -> list[tuple[float, float]]:
        """What the window holds, for a checkpoint."""
        return list(self._pairs)

    def load_state(self, pairs: Iterable[tuple[float, float]]) -> None:
        """Replaces what the window holds by what [`~ScoreMonitor.state`] gave."""
        self._pairs.clear()
        self._pairs.extend((mean, mos) for mean, mos in pairs)

    def clear(self) -> None:
        """Forgets all images."""
        self._pairs.clear()
