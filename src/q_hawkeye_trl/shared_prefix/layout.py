"""
The rollouts of a group in one row: the prompt once, then each rollout as a segment.

    [ prompt without its last token | last, o_1 without its end | last, o_2 without its end | ... ]

A segment starts with the prompt's last token, so that its positions predict exactly the tokens of its rollout. Groups
follow one another in the same row, without padding. Pure tensors: nothing here depends on a model.
"""

from dataclasses import dataclass
from itertools import accumulate

import torch

IGNORED = -100
"""Label of a position that predicts nothing."""


@dataclass(frozen=True)
class Group:
    """A group of the packed row."""

    start: int  # position of its prompt
    prefix: int  # tokens of its prompt without the last one, which starts each segment instead
    segments: tuple[int, ...]  # tokens of each rollout, 0 for a rollout that is masked

    @property
    def end(self) -> int:
        """Position after its last segment."""
        return self.start + self.prefix + sum(self.segments)

    @property
    def segment_starts(self) -> list[int]:
        """Position of each segment's first token."""
        first = self.start + self.prefix
        return [first + before for before in accumulate(self.segments[:-1], initial=0)]


@dataclass(frozen=True)
class Layout:
    """The groups of a packed row of T tokens, in order."""

    groups: tuple[Group, ...]

    @property
    def length(self) -> int:
        """Tokens of the row, T."""
        return self.groups[-1].end


@dataclass(frozen=True)
class PackedRow:
    """The inputs of a model for a packed row, and the positions for unpacking its output."""

    input_ids: torch.Tensor  # (1, T)
    shift_labels: torch.Tensor  # (1, T), the token that each position predicts, `IGNORED` if none
    layout: Layout
    origin: torch.Tensor  # (T,), index of the prompt token from which each position counts
    offset: torch.Tensor  # (T,), places after that token: 0 in the prompt and at the start of a segment
    predictions: torch.Tensor  # (B, C), position that predicts each completion token, T for padding

    def positions(self, prompt_positions: torch.Tensor) -> torch.Tensor:
        """Continue the prompt tokens' positions `(K, N, P)` into every segment, `(K, 1, T)`; K is 3 for M-RoPE."""
        return (prompt_positions.flatten(1)[:, self.origin] + self.offset).unsqueeze(1)

    def unpack(self, values: torch.Tensor) -> torch.Tensor:
        """Take the values of the completion tokens `(B, C)`, 0 at padding, from those of the row `(1, T)`."""
        padded = torch.cat([values[0], values.new_zeros(1)])
        return padded[self.predictions]


def pack(
    prompt_ids: torch.Tensor,
    prompt_mask: torch.Tensor,
    completion_ids: torch.Tensor,
    completion_mask: torch.Tensor,
    group_size: int,
) -> PackedRow:
    """
    Pack the rows of whole groups. Raise `ValueError` if the rollouts of a group have different prompts.

    Args:
        prompt_ids, prompt_mask (`torch.Tensor` of shape `(B, P)`):
            Left-padded prompts; the rows of a group are adjacent. The mask is 1 at tokens.
        completion_ids, completion_mask (`torch.Tensor` of shape `(B, C)`):
            Right-padded completions.
        group_size (`int`):
            Rollouts of a group, G.

    Returns:
        [`PackedRow`]
    """
    device, width = prompt_ids.device, prompt_ids.size(1)
    firsts = prompt_ids[::group_size].repeat_interleave(group_size, dim=0)
    first_masks = prompt_mask[::group_size].repeat_interleave(group_size, dim=0)
    differs = ((prompt_ids != firsts) & (prompt_mask == 1)).any(dim=1) | (prompt_mask != first_masks).any(dim=1)
    if differs.any():
        number = int(differs.nonzero()[0]) // group_size
        raise ValueError(
            f"The rollouts of group {number} have different prompts and can't share one; set shared_prefix to off."
        )
    prompt_lengths = prompt_mask[::group_size].sum(dim=1).tolist()
    lengths = completion_mask.sum(dim=1).tolist()
    groups: list[Group] = []
    ids: list[torch.Tensor] = []
    labels: list[torch.Tensor] = []
    origin: list[torch.Tensor] = []
    offset: list[torch.Tensor] = []
    predictions = torch.full(completion_ids.shape, -1, device=device)
    for number, length in enumerate(prompt_lengths):
        row = number * group_size
        group = Group(groups[-1].end if groups else 0, length - 1, tuple(lengths[row : row + group_size]))
        groups.append(group)
        prompt = prompt_ids[row, width - length :]
        first = number * width + width - length  # index of the prompt's first token among all (N, P)
        ids.append(prompt[:-1])
        labels.append(torch.full((length - 1,), IGNORED, device=device))
        origin.append(torch.arange(first, first + length - 1, device=device))
        offset.append(torch.zeros(length - 1, dtype=torch.long, device=device))
        for index, (size, start) in enumerate(zip(group.segments, group.segment_starts, strict=True), row):
            if size == 0:
                continue
            completion = completion_ids[index, :size]
            ids += [prompt[-1:], completion[:-1]]
            labels.append(completion)
            origin.append(torch.full((size,), first + length - 1, device=device))
            offset.append(torch.arange(size, device=device))
            predictions[index, :size] = torch.arange(start, start + size, device=device)
    layout = Layout(tuple(groups))
    return PackedRow(
        input_ids=torch.cat(ids).unsqueeze(0),
        shift_labels=torch.cat(labels).unsqueeze(0),
        layout=layout,
        origin=torch.cat(origin),
        offset=torch.cat(offset),
        predictions=predictions.masked_fill(predictions < 0, layout.length),
    )
