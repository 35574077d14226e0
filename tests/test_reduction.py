import random

import pytest
import torch

from q_hawkeye_trl.objective.reduction import LOSS_TYPES, token_weights

MAX_LENGTH = 9


def _reference_loss(losses, masks, loss_type, *, items, processes, accumulation, per_generation, training):
    """TRL's loss of one micro-batch on one rank, by loops over its rows and tokens."""
    rows = [
        [loss for loss, counts in zip(row, mask, strict=True) if counts]
        for row, mask in zip(losses, masks, strict=True)
    ]
    accumulation = accumulation if training else 1
    if loss_type in ("grpo", "sapo"):
        return sum(sum(row) / max(len(row), 1) for row in rows) / len(rows) / accumulation
    total = sum(sum(row) for row in rows)
    if loss_type == "bnpo":
        return total / max(sum(len(row) for row in rows), 1) / accumulation
    if loss_type == "dr_grpo":
        return total / (len(rows) * MAX_LENGTH) / accumulation
    if loss_type == "luspo":
        return total / len(rows) / accumulation
    share = max(items, 1) / processes
    return total / (share * accumulation / per_generation if training else share)


def _batch(rows, tokens, seed, empty_row=True):
    rng = random.Random(seed)
    losses = [[rng.uniform(-3, 3) for _ in range(tokens)] for _ in range(rows)]
    lengths = [rng.randint(1, tokens) for _ in range(rows)]
    # holes as a tool mask makes them; the first token stays
    masks = [[int(t == 0 or (t < length and rng.random() < 0.8)) for t in range(tokens)] for length in lengths]
    if empty_row:
        masks[0] = [0] * tokens
    return losses, masks


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("processes", "accumulation", "per_generation"), [(1, 1, 1), (4, 2, 2), (2, 2, 8), (3, 1, 4)])
@pytest.mark.parametrize("rows", [1, 2, 8])
def test_token_weights_give_the_reference_loss(loss_type, training, processes, accumulation, per_generation, rows):
    losses, masks = _batch(rows, 7, seed=rows)
    items = 57
    expected = _reference_loss(
        losses,
        masks,
        loss_type,
        items=items,
        processes=processes,
        accumulation=accumulation,
        per_generation=per_generation,
        training=training,
    )
    mask = torch.tensor(masks, dtype=torch.float64)
    weights = token_weights(
        mask,
        loss_type,
        num_items_in_batch=torch.tensor(items),
        num_processes=processes,
        accumulation_steps=accumulation,
        steps_per_generation=per_generation,
        max_completion_length=MAX_LENGTH,
        training=training,
    )
    assert weights.shape == mask.shape
    assert (torch.tensor(losses, dtype=torch.float64) * weights).sum().item() == pytest.approx(expected, rel=1e-6)
    assert torch.equal(weights != 0, mask != 0)


@pytest.mark.parametrize("loss_type", ["grpo", "sapo", "dr_grpo", "dapo", "cispo", "vespo", "luspo"])
@pytest.mark.parametrize("micro_batches", [1, 2, 8])
@pytest.mark.parametrize("processes", [1, 2])
def test_token_weights_do_not_depend_on_how_a_batch_is_cut(loss_type, micro_batches, processes):
    losses, masks = _batch(16, 7, seed=5)
    losses, masks = torch.tensor(losses, dtype=torch.float64), torch.tensor(masks)

    def total_loss(micro_batches, processes):
        per_rank = 16 // processes
        rows = per_rank // micro_batches
        total = 0.0
        for start in range(0, 16, rows):
            cut = slice(start, start + rows)
            weights = token_weights(
                masks[cut],
                loss_type,
                num_items_in_batch=masks.sum(),
                num_processes=processes,
                accumulation_steps=micro_batches,
                steps_per_generation=micro_batches,
                max_completion_length=MAX_LENGTH,
            )
            total += (losses[cut] * weights).sum().item()
        return total / processes  # ranks average their gradients

    assert total_loss(micro_batches, processes) == pytest.approx(total_loss(1, 1), rel=1e-6)


def test_token_weights_of_eight_rows_cut_into_micro_batches_sum_to_the_loss_of_one():
    losses, masks = _batch(8, 6, seed=9)
    tokens = [sum(mask) for mask in masks]
    per_row = [sum(x for x, m in zip(row, mask, strict=True) if m) for row, mask in zip(losses, masks, strict=True)]
    expected = {
        "grpo": sum(total / max(count, 1) for total, count in zip(per_row, tokens, strict=True)) / 8,
        "dapo": sum(per_row) / sum(tokens),
        "dr_grpo": sum(per_row) / (8 * MAX_LENGTH),
    }
    for loss_type, loss in expected.items():
        for rows in (8, 4, 1):
            parts = [
                (
                    torch.tensor(losses[start : start + rows])
                    * token_weights(
                        torch.tensor(masks[start : start + rows]),
                        loss_type,
                        num_items_in_batch=sum(tokens),
                        accumulation_steps=8 // rows,
                        steps_per_generation=8 // rows,
                        max_completion_length=MAX_LENGTH,
                    )
                ).sum()
                for start in range(0, 8, rows)
            ]
            assert sum(parts).item() == pytest.approx(loss, rel=1e-5)


def test_a_generation_batch_that_feeds_several_steps_gives_each_its_share():
    # 8 rows in 4 micro-batches, an optimizer step every 2: each step's loss is a mean over 4 rows' worth of tokens
    mask = torch.ones(2, 5)
    weights = token_weights(mask, "dapo", num_items_in_batch=40, accumulation_steps=2, steps_per_generation=4)
    assert (weights.sum() * 2).item() == pytest.approx(1.0)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.int32, torch.float32, torch.float64])
def test_token_weights_take_any_mask_dtype(loss_type, dtype):
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    arguments = {"num_items_in_batch": 3, "steps_per_generation": 1, "max_completion_length": MAX_LENGTH}
    weights = token_weights(mask.to(dtype), loss_type, **arguments)
    assert weights.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(weights.float(), token_weights(mask.float(), loss_type, **arguments))


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_rows_without_tokens_get_zeros(loss_type):
    for mask in (torch.zeros(3, 4), torch.zeros(3, 0), torch.zeros(0, 4)):
        weights = token_weights(
            mask, loss_type, num_items_in_batch=0, steps_per_generation=1, max_completion_length=MAX_LENGTH
        )
        assert torch.equal(weights, mask)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_token_weights_pass_gradient_to_the_counted_tokens_only(loss_type):
    mask = torch.tensor([[1, 1, 0], [0, 0, 0]])
    losses = torch.full((2, 3), 1e4).requires_grad_()
    weights = token_weights(
        mask, loss_type, num_items_in_batch=2, steps_per_generation=1, max_completion_length=MAX_LENGTH
    )
    (losses * weights).sum().backward()
    assert torch.equal(losses.grad != 0, mask.bool())


def test_token_weights_refuse_what_they_do_not_know():
    mask = torch.ones(2, 3)
    with pytest.raises(ValueError, match="grpo, sapo, bnpo, dr_grpo, dapo, cispo, vespo, luspo"):
        token_weights(mask, "ppo")
    with pytest.raises(ValueError, match="max_completion_length"):
        token_weights(mask, "dr_grpo")
    with pytest.raises(ValueError, match="num_items_in_batch"):
        token_weights(mask, "dapo", steps_per_generation=1)
    with pytest.raises(ValueError, match="steps_per_generation"):
        token_weights(mask, "dapo", num_items_in_batch=6)
