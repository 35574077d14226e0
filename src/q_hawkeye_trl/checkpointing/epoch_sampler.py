"""The order of the prompts in every epoch, also after a resume."""

import math
from collections.abc import Callable, Iterator

import torch
from torch.utils.data import Sampler
from trl.trainer.utils import RepeatSampler


class EpochSampler(Sampler):
    """
    Draws from TRL's sampler the permutation that belongs to the epoch. By itself that sampler draws one after another
    and starts anew with the first, so that a run resumed in its second epoch would see the first one's order: some
    prompts twice, others not at all.

    Args:
        sampler ([`~trl.trainer.utils.RepeatSampler`]):
            TRL's sampler, not yet iterated.
        epoch (`Callable[[], float | None]`):
            Epochs done when the next iteration starts, `None` before training.
    """

    def __init__(self, sampler: RepeatSampler, epoch: Callable[[], float | None]):
        self.sampler = sampler
        self._epoch = epoch
        self._drawn = 0

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[int]:
        if self.sampler.shuffle:
            for _ in range(math.floor(self._epoch() or 0.0) - self._drawn):
                torch.randperm(self.sampler.num_samples, generator=self.sampler.generator)
                self._drawn += 1
        self._drawn += 1
        return iter(self.sampler)
