"""Guards against silent failures and hangs: a failure on one rank raises the same error on every rank."""

import contextlib
import functools
import math
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from torch.distributed.tensor import DTensor
from trl import GRPOTrainer
from trl.trainer.utils import is_async_callable

from .checks import prompt_shows_image
from .errors import TrainingError
from .trl_compat import GRADIENT_CHECK, optional_part

ADVICE = (
    "Lower the learning rate, set max_grad_norm, train in bf16 or float32, and look for a growing kl, entropy or "
    "grad_norm in the last log lines before this step."
)


def find_not_finite(values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Mark the values that are NaN or infinite somewhere, with a boolean of shape () each and no device sync."""
    return {name: (~torch.isfinite(value.detach())).any() for name, value in values.items()}


def check_finite(name: str, marks: Mapping[str, torch.Tensor], accelerator: Accelerator, step: int) -> None:
    """
    Raise `TrainingError` on every rank if the value `name` is not finite on one, before the optimizer's step.

    `marks` come from [`find_not_finite`], for the value and the terms that it was computed from, which the message
    names. They have the same keys in the same order on every rank. `step` counts from 1.
    """
    wrong = torch.stack(list(marks.values())).float()
    ranks = dict(zip(marks, accelerator.reduce(wrong, reduction="sum").tolist(), strict=True))
    if ranks[name] == 0:
        return
    share = f" on {int(ranks[name])} of {accelerator.num_processes} ranks" if accelerator.num_processes > 1 else ""
    found = ", ".join(term for term in marks if term != name and ranks[term]) or "its terms are finite"
    terms = f" ({found})" if len(marks) > 1 else ""
    raise TrainingError(
        f"Step {step}: the {name} is not finite{share}{terms}. The run stops before the optimizer's step. {ADVICE}"
    )


def check_gradient_norm(norm: torch.Tensor | float | None, accelerator: Accelerator, step: int) -> None:
    """
    Raise `TrainingError` on every rank if the norm of the gradients, before clipping, is not finite.

    DeepSpeed reports -1 for it under bf16, and `None` where it has no norm.
    """
    if norm is None:
        return
    if isinstance(norm, DTensor):  # FSDP2
        norm = norm.full_tensor()
    value = torch.as_tensor(norm, dtype=torch.float32, device=accelerator.device)
    value = value.masked_fill(value < 0, torch.nan)
    check_finite("gradient norm", find_not_finite({"gradient norm": value}), accelerator, step)


@optional_part(GRADIENT_CHECK)
class FiniteGradientMixin(GRPOTrainer):
    """Mixin of [`~trl.GRPOTrainer`] that stops a run before an optimizer step with a gradient that is not finite."""

    def _get_grad_norm(self, model, grad_norm=None):
        norm = super()._get_grad_norm(model, grad_norm)
        if self.accelerator.mixed_precision != "fp16":  # whose scaler skips infinite gradients
            check_gradient_norm(norm, self.accelerator, self.state.global_step + 1)
        return norm


def check_images_alike(inputs: list[dict[str, Any]], accelerator: Accelerator) -> None:
    """
    Raise `ValueError` on every rank if some rows of a batch have images and others don't.

    A rank whose rows have none would not run its vision tower, and the others would wait for its gradients or shards.
    """
    if accelerator.num_processes == 1:
        return
    here = torch.tensor([_shows_images(row) for row in inputs], device=accelerator.device)
    with_images = accelerator.gather(here)
    if with_images.any() and not with_images.all():
        raise ValueError(
            f"{int((~with_images).sum())} of the {len(with_images)} rollouts of a batch belong to rows without an "
            f"image, so that {accelerator.num_processes} processes would wait for one another. Give every row an "
            "image, or train the rows without one separately."
        )


def _shows_images(row: dict[str, Any]) -> bool:
    return bool(row.get("images")) or row.get("image") is not None or prompt_shows_image(row.get("prompt"))


@contextlib.contextmanager
def guarded_rewards(trainer: GRPOTrainer) -> Iterator[None]:
    """
    Collect failures of the trainer's reward functions inside the block, and raise `TrainingError` on all ranks after.

    Failures are exceptions, a wrong number of rewards, and rewards that are NaN or infinite; `None` is allowed. Zeros
    replace the rewards, since a rank that raises at once would leave the others waiting. Reward models run unguarded.
    """
    faults: list[str] = []
    funcs = trainer.reward_funcs
    trainer.reward_funcs = [
        func if isinstance(func, nn.Module) else _guarded(func, name, faults)
        for func, name in zip(funcs, trainer.reward_func_names, strict=True)
    ]
    try:
        yield
    finally:
        trainer.reward_funcs = funcs
    accelerator = trainer.accelerator
    count = accelerator.reduce(torch.tensor(float(len(faults)), device=accelerator.device), reduction="sum")
    if count.item() == 0:
        return
    several = accelerator.num_processes > 1
    found = gather_object([f"rank {accelerator.process_index}: {fault}" if several else fault for fault in faults])
    raise TrainingError(f"Step {trainer.state.global_step + 1}: {'; '.join(found)}.")


def _guarded(func: Callable, name: str, faults: list[str]) -> Callable:
    def keep(error: Exception) -> None:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        faults.append(
            f"the reward function {name} raised {type(error).__name__}: {error} ({frame.filename}, line "
            f"{frame.lineno})"
        )

    def checked(rewards: Any, rows: int, columns: Mapping[str, Any]) -> list:
        rewards = list(rewards)
        if len(rewards) != rows:
            faults.append(f"the reward function {name} returned {len(rewards)} rewards for {rows} completions")
            return [0.0] * rows
        for row, reward in enumerate(rewards):
            if reward is not None and not math.isfinite(float(reward)):
                where = f"row {row}"
                if columns.get("image_id") is not None:
                    where += f" (image_id {columns['image_id'][row]!r})"
                faults.append(
                    f"the reward function {name} returned {float(reward)} for {where}; return a finite number, or "
                    "None for a row without this reward"
                )
                return [0.0] * rows
        return rewards

    if is_async_callable(func):

        @functools.wraps(func)
        async def guarded_async(*, completions, **kwargs):
            try:
                return checked(await func(completions=completions, **kwargs), len(completions), kwargs)
            except Exception as error:
                keep(error)
                return [0.0] * len(completions)

        return guarded_async

    def guarded(*, completions, **kwargs):
        try:
            return checked(func(completions=completions, **kwargs), len(completions), kwargs)
        except Exception as error:
            keep(error)
            return [0.0] * len(completions)

    return guarded
