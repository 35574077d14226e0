"""The order of the prompts in every epoch, also after a resume."""

import math
from collections.abc import Callable, Iterator

import torch
from torch.utils.data import Sampler
from trl.trainer.utils import RepeatSampler


class EpochSampler(Sampler):
    """
    Draw from TRL's sampler the permutation that belongs to the epoch.

    TRL's sampler restarts with its first permutation. A run resumed in its second epoch would see the order of the
    first one: some prompts twice, others not at all.
    """

    def __init__(self, sampler: RepeatSampler, epoch: Callable[[], float | None]):
        self.sampler = sampler
        self._epoch = epoch  # completed epochs, `None` before training
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
