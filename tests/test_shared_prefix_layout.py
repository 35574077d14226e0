"""The packed row, its attention and its groups, each against plain loops over single rollouts."""

import pytest
import torch
from torch import nn

from q_hawkeye_trl.shared_prefix.attention import grouped_attention
from q_hawkeye_trl.shared_prefix.groups import group_images, group_rows, ungroup_rows
from q_hawkeye_trl.shared_prefix.layout import IGNORED, Group, Layout, pack

PROMPTS = [[1, 2, 3], [4, 5], [6]]
COMPLETIONS = [[[10, 11, 12], [20]], [[30, 31], []], [[40, 41, 42], [50, 51, 52]]]


def padded(rows: list[list[int]], side: str, width: int, filler: int = 99) -> tuple[torch.Tensor, torch.Tensor]:
    ids, mask = torch.full((len(rows), width), filler), torch.zeros(len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        place = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[index, place], mask[index, place] = torch.tensor(row, dtype=torch.long), 1
    return ids, mask


def packed():
    prompts = padded([p for p in PROMPTS for _ in range(2)], "left", 4)
    return pack(*prompts, *padded([c for group in COMPLETIONS for c in group], "right", 3), group_size=2)


def test_row_holds_each_prompt_once_and_every_rollout_behind_it():
    row = packed()
    assert row.input_ids[0].tolist() == [1, 2, 3, 10, 11, 3, 4, 5, 30, 6, 40, 41, 6, 50, 51]
    i = IGNORED
    assert row.shift_labels[0].tolist() == [i, i, 10, 11, 12, 20, i, 30, 31, 40, 41, 42, 50, 51, 52]
    assert row.layout == Layout((Group(0, 2, (3, 1)), Group(6, 1, (2, 0)), Group(9, 0, (3, 3))))
    assert row.layout.length == 15


def test_positions_go_on_from_the_prompts_last_token():
    positions = torch.stack([torch.tensor([[9, 0, 7, 8], [9, 9, 3, 5], [9, 9, 9, 1]]) + axis for axis in (0, 100)])
    expected = [0, 7, 8, 9, 10, 8, 3, 5, 6, 1, 2, 3, 1, 2, 3]
    assert packed().positions(positions)[:, 0].tolist() == [expected, [p + 100 for p in expected]]


def test_values_come_back_to_their_rollout_and_padding_is_zero():
    row = packed()
    values = row.unpack(row.shift_labels.clamp(min=0).float())
    ids, mask = padded([c for group in COMPLETIONS for c in group], "right", 3)
    assert torch.equal(values, ids * mask.float())


def test_rollouts_with_prompts_of_their_own_are_refused():
    prompts = padded([[1, 2], [1, 2], [1, 2], [1, 3]], "left", 3)
    completions = padded([[5]] * 4, "right", 1)
    with pytest.raises(ValueError, match=r"group 1 have different prompts.*shared_prefix to off"):
        pack(*prompts, *completions, group_size=2)
    longer = padded([[1, 2], [7, 1, 2], [1, 2], [1, 2]], "left", 3)
    with pytest.raises(ValueError, match="group 0 have different prompts"):
        pack(*longer, *completions, group_size=2)


def test_what_stands_in_the_padding_is_of_no_matter():
    for filler in (-(10**4), 10**4):
        prompts = padded([p for p in PROMPTS for _ in range(2)], "left", 4, filler)
        completions = padded([c for group in COMPLETIONS for c in group], "right", 3, filler)
        row = pack(*prompts, *completions, group_size=2)
        assert torch.equal(row.input_ids, packed().input_ids)
        assert torch.equal(row.shift_labels, packed().shift_labels)


class Heads(nn.Module):
    """The attributes of a layer that the attention needs."""

    is_causal = True

    def __init__(self, query_heads: int, key_heads: int):
        super().__init__()
        self.num_key_value_groups = query_heads // key_heads


def _reference_dense_attention(query, key, value, layout: Layout) -> torch.Tensor:
    """Softmax over a dense T x T mask, which a loop over all pairs of positions fills."""
    owner = {}  # position -> (group, segment or None)
    for number, group in enumerate(layout.groups):
        position = group.start
        for _ in range(group.prefix):
            owner[position], position = (number, None), position + 1
        for segment, length in enumerate(group.segments):
            for _ in range(length):
                owner[position], position = (number, segment), position + 1
    sees = torch.tensor(
        [
            [s <= t and owner[s][0] == owner[t][0] and owner[s][1] in (None, owner[t][1]) for s in range(len(owner))]
            for t in range(len(owner))
        ]
    )
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    weights = (query @ key.transpose(2, 3) / query.shape[-1] ** 0.5).masked_fill(~sees, -torch.inf).softmax(-1)
    return (weights @ value).transpose(1, 2)


LAYOUTS = {
    "one group": Layout((Group(0, 5, (3, 3)),)),
    "ragged": Layout((Group(0, 4, (1, 5, 2)),)),
    "several groups": Layout((Group(0, 3, (2, 2)), Group(7, 6, (4, 1)))),
    "a masked rollout": Layout((Group(0, 3, (0, 4, 0, 2)),)),
    "a group without completions": Layout((Group(0, 3, (0, 0)), Group(3, 2, (1, 2)))),
    "a prompt of one token": Layout((Group(0, 0, (3, 2)),)),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("key_heads", [4, 2, 1])
def test_grouped_attention_equals_a_dense_mask_with_gradients(layout, key_heads):
    shapes = [(1, heads, layout.length, 8) for heads in (4, key_heads, key_heads)]
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    ours = grouped_attention(Heads(4, key_heads), *inputs, layout)
    theirs = _reference_dense_attention(*inputs, layout)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    towards = torch.randn_like(theirs)
    gradients = [torch.autograd.grad((output * towards).sum(), inputs) for output in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-11)


def qwen_batch() -> dict:
    """Two groups of three rollouts; the first prompt has two images, of 4 and 6 patches, the second one of 2."""
    patches = {0: torch.arange(10).repeat(3), 1: torch.arange(100, 102).repeat(3)}
    return {
        "prompt_ids": torch.arange(6 * 4).view(6, 4),
        "advantages": torch.arange(6.0),
        "num_items_in_batch": torch.tensor(12),
        "mm_token_type_ids": torch.arange(6 * 5).view(6, 5),
        "pixel_values": torch.cat([patches[0], patches[1]]).unsqueeze(1).float(),
        "image_grid_thw": torch.tensor([[1, 2, 2], [1, 2, 3]] * 3 + [[1, 1, 2]] * 3),
        "num_images": [2, 2, 2, 1, 1, 1],
        "degraded_pixel_values": [torch.zeros(1)] * 3 + [torch.ones(1)] * 3,
    }


def test_groups_become_rows_and_rows_again():
    batch = qwen_batch()
    grouped = group_rows(batch, 3)
    assert grouped["prompt_ids"].shape == (2, 3, 4)
    assert grouped["advantages"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert grouped["num_items_in_batch"] == 12
    assert grouped["num_images"] == [2, 1]
    assert grouped["image_grid_thw"].tolist() == [[1, 2, 2], [1, 2, 3], [1, 1, 2]]
    assert grouped["pixel_values"][:, 0].tolist() == [*range(10), 100, 101]
    assert [view.item() for view in grouped["degraded_pixel_values"]] == [0, 1]
    back = ungroup_rows(grouped)
    for key in ("prompt_ids", "advantages", "mm_token_type_ids", "num_items_in_batch"):
        assert torch.equal(back[key], batch[key])
    assert batch.keys() == qwen_batch().keys()
    assert all(len(batch[key]) == len(qwen_batch()[key]) for key in batch if key != "num_items_in_batch")  # untouched


def test_images_of_tiling_models_are_cut_by_tiles_and_rows():
    tiles = {"pixel_values": torch.arange(9).view(9, 1), "num_images": [1, 1, 1, 1], "num_tiles": [3, 3, 1, 2]}
    assert group_images(tiles, 2)["pixel_values"].flatten().tolist() == [0, 1, 2, 6]
    rows = {"pixel_values": torch.arange(8).view(4, 2, 1), "num_images": [2, 2, 1, 1]}
    assert group_images(rows, 2)["pixel_values"].flatten().tolist() == [0, 1, 4, 5]
