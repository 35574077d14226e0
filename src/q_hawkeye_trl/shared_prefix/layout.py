"""
The rollouts of a group in one row: the prompt stands there once, each rollout follows as a segment of its own.

    [ prompt without its last token | last, o_1 without its end | last, o_2 without its end | ... ]

A segment opens with the prompt's last token, so that its positions predict exactly the tokens of its rollout. Groups
follow one another in the same row, without padding anywhere. Pure tensors: nothing here knows a model.
"""

from dataclasses import dataclass
from itertools import accumulate

import torch

IGNORED = -100
"""Label of a position that predicts nothing."""


@dataclass(frozen=True)
class Group:
    """
    Where one group stands in the packed row.

    Args:
        start (`int`):
            Position of its prompt.
        prefix (`int`):
            Tokens of its prompt without the last one, which opens each segment instead.
        segments (`tuple[int, ...]`):
            Length of each rollout, in tokens; 0 for a rollout that is masked as a whole.
    """

    start: int
    prefix: int
    segments: tuple[int, ...]

    @property
    def end(self) -> int:
        """Position behind its last segment."""
        return self.start + self.prefix + sum(self.segments)

    @property
    def segment_starts(self) -> list[int]:
        """Position of each segment's first token."""
        first = self.start + self.prefix
        return [first + before for before in accumulate(self.segments[:-1], initial=0)]


@dataclass(frozen=True)
class Layout:
    """
    The groups of a packed row of T tokens, in order.

    Args:
        groups (`tuple[Group, ...]`):
            Groups.
    """

    groups: tuple[Group, ...]

    @property
    def length(self) -> int:
        """Tokens of the row, T."""
        return self.groups[-1].end


@dataclass(frozen=True)
class PackedRow:
    """
    What a model is given for a packed row, and how its output is taken apart again.

    Args:
        input_ids (`torch.Tensor` of shape `(1, T)`):
            Tokens.
        shift_labels (`torch.Tensor` of shape `(1, T)`):
            Token that each position predicts, `IGNORED` where none.
        layout ([`Layout`]):
            Groups of the row.
        origin (`torch.Tensor` of shape `(T,)`):
            For each position the index of the prompt token whose place in the sequence it starts from.
        offset (`torch.Tensor` of shape `(T,)`):
            How many places behind that prompt token it stands: 0 in the prompt and at a segment's opening.
        predictions (`torch.Tensor` of shape `(B, C)`):
            Position that predicts each completion token; T where there is none (padding).
    """

    input_ids: torch.Tensor
    shift_labels: torch.Tensor
    layout: Layout
    origin: torch.Tensor
    offset: torch.Tensor
    predictions: torch.Tensor

    def positions(self, prompt_positions: torch.Tensor) -> torch.Tensor:
        """
        Continues the places of the prompt tokens into every segment.

        Args:
            prompt_positions (`torch.Tensor` of shape `(K, N, P)`):
                Place of each prompt token, on K axes (3 for multimodal rotary positions).

        Returns:
            `torch.Tensor` of shape `(K, 1, T)`
        """
        return (prompt_positions.flatten(1)[:, self.origin] + self.offset).unsqueeze(1)

    def unpack(self, values: torch.Tensor) -> torch.Tensor:
        """
        Takes the values of the completions' tokens out of the row.

        Args:
            values (`torch.Tensor` of shape `(1, T)`):
                One value a position.

        Returns:
            `torch.Tensor` of shape `(B, C)`: 0 at padding.
        """
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
    Packs the rows of whole groups.

    Args:
        prompt_ids (`torch.Tensor` of shape `(B, P)`):
            Left-padded prompts; the rows of a group stand together and have one prompt.
        prompt_mask (`torch.Tensor` of shape `(B, P)`):
            1 at tokens, 0 at padding.
        completion_ids (`torch.Tensor` of shape `(B, C)`):
            Right-padded completions.
        completion_mask (`torch.Tensor` of shape `(B, C)`):
            1 at tokens, 0 at padding.
        group_size (`int`):
            Rollouts of a group, G.

    Returns:
        [`PackedRow`]

    Raises:
        `ValueError`: The rollouts of a group have different prompts.
    """
    device, width = prompt_ids.device, prompt_ids.size(1)
    firsts = prompt_ids[::group_size].repeat_interleave(group_size, dim=0)
    first_masks = prompt_mask[::group_size].repeat_interleave(group_size, dim=0)
    differs = ((prompt_ids != firsts) & (prompt_mask == 1)).any(dim=1) | (prompt_mask != first_masks).any(dim=1)
    if differs.any():
        number = int(differs.nonzero()[0]) // group_size
        raise ValueError(
            f"The rollouts of group {number} have different prompts, so that they can't share one; set shared_prefix "
            "to off."
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
