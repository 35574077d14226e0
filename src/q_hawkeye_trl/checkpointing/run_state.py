"""
What TRL and transformers leave out of a checkpoint although the run depends on it: where the trainer stands in its
generation window and the rollouts of that window, and the sums, metrics and completions that are not logged yet.
"""

import json
from collections import defaultdict, deque
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging
from trl import GRPOTrainer
from trl.trainer.utils import strip_images_from_messages

from .tensor_tree import load_tree, save_tree

logger = logging.get_logger(__name__)

PROGRESS_FILE = "progress_{}.json"
"""One a rank, in every checkpoint: counters, sums and metrics."""

ROLLOUTS_FILE = "rollouts_{}.safetensors"
"""One a rank, in checkpoints inside a generation window only: the window's batches."""


def window_steps(trainer: GRPOTrainer) -> int:
    """Micro-batches of a generation window: those that are made of the same rollouts."""
    return trainer.args.steps_per_generation * trainer.num_iterations


def save_progress(trainer: GRPOTrainer, checkpoint: str | Path, own: dict[str, Any] | None) -> None:
    """
    Adds this rank's progress to a checkpoint.

    Args:
        trainer ([`~trl.GRPOTrainer`]):
            Trainer in training, between two steps.
        checkpoint (`str` or `Path`):
            Folder of the checkpoint.
        own (`dict[str, Any]`, *optional*):
            State of a subclass, of JSON's types.
    """
    rank = trainer.args.process_index
    inside = trainer._step % window_steps(trainer) != 0 and trainer._buffered_inputs is not None
    content = {
        "settings": _settings(trainer),
        "inside_window": inside,
        "step": trainer._step,
        "metrics": {mode: dict(values) for mode, values in trainer._metrics.items()},
        "loss": trainer._tr_loss.item(),
        "loss_logged": trainer._total_loss_scalar,
        "step_logged": trainer._globalstep_last_logged,
        "completions": _logged_completions(trainer) if inside and trainer.args.log_completions else None,
        "own": own,
    }
    if inside:
        save_tree(trainer._buffered_inputs, Path(checkpoint) / ROLLOUTS_FILE.format(rank))
    (Path(checkpoint) / PROGRESS_FILE.format(rank)).write_text(json.dumps(content, default=_number))


def read_progress(trainer: GRPOTrainer, checkpoint: str | Path) -> dict[str, Any] | None:
    """
    Reads this rank's progress from a checkpoint, and checks that it fits the trainer.

    Args:
        trainer ([`~trl.GRPOTrainer`]):
            Trainer that is about to resume.
        checkpoint (`str` or `Path`):
            Folder of the checkpoint.

    Returns:
        `dict[str, Any]` or `None`: `None` where the checkpoint has none, because another trainer saved it.

    Raises:
        `ValueError`: The checkpoint lies inside a generation window that the trainer's settings would not continue.
    """
    checkpoint = Path(checkpoint)
    path = checkpoint / PROGRESS_FILE.format(trainer.args.process_index)
    if not path.is_file():  # fewer ranks saved it
        path = checkpoint / PROGRESS_FILE.format(0)
    if not path.is_file():
        logger.warning(
            f"{checkpoint} has no {PROGRESS_FILE.format(0)}: running figures start anew, and if it was saved between "
            "two steps that share their rollouts, new ones are drawn."
        )
        return None
    progress = json.loads(path.read_text())
    settings = _settings(trainer)
    changed = [
        f"{name} was {value} and is {settings.get(name)}"
        for name, value in progress["settings"].items()
        if settings.get(name) != value
    ]
    if progress["inside_window"] and changed:
        raise ValueError(
            f"{checkpoint} was saved between two steps that share their rollouts, and {'; '.join(changed)}: those "
            "rollouts can't be dealt out anew. Resume with the settings of then, or from a checkpoint between "
            f"rollouts (every {window_steps(trainer)} micro-batches)."
        )
    return progress | {"same_settings": not changed}


def restore_progress(trainer: GRPOTrainer, checkpoint: str | Path, progress: dict[str, Any]) -> None:
    """
    Puts a trainer back to where [`save_progress`] found it; call it when transformers has reset its counters.

    Args:
        trainer ([`~trl.GRPOTrainer`]):
            Trainer that resumes.
        checkpoint (`str` or `Path`):
            Folder of the checkpoint.
        progress (`dict[str, Any]`):
            What [`read_progress`] returned.
    """
    if progress["same_settings"]:  # otherwise windows begin at other steps: TRL counts from 0
        trainer._step = progress["step"]
    for mode, values in progress["metrics"].items():
        trainer._metrics[mode].clear()
        trainer._metrics[mode].update(values)
    trainer._tr_loss = torch.full_like(trainer._tr_loss, progress["loss"])
    trainer._total_loss_scalar = progress["loss_logged"]
    trainer._globalstep_last_logged = progress["step_logged"]
    if progress["inside_window"]:
        path = Path(checkpoint) / ROLLOUTS_FILE.format(trainer.args.process_index)
        trainer._buffered_inputs = load_tree(path, trainer.accelerator.device)
    if progress["completions"] is not None:
        _restore_completions(trainer, progress["completions"])


def _settings(trainer: GRPOTrainer) -> dict[str, Any]:
    """What decides how rollouts are dealt out to ranks and steps."""
    args = trainer.args
    shares_prompts = getattr(trainer, "_shares_prefix", {"train": False})["train"]  # the mixin can be left out
    return {
        "world_size": args.world_size,
        "per_device_train_batch_size": args.per_device_train_batch_size,
        "gradient_accumulation_steps": args.gradient_accumulation_steps,
        "steps_per_generation": args.steps_per_generation,
        "num_iterations": trainer.num_iterations,
        "num_generations": trainer.num_generations,
        "sharing of prompts": shares_prompts,
    }


def _logged_completions(trainer: GRPOTrainer) -> dict[str, Any]:
    """TRL's table of completions; pictures, which only trackers show, stay out."""
    logs = trainer._logs
    columns = {name: [strip_images_from_messages(row) for row in logs[name]] for name in ("prompt", "completion")}
    extra = {name: [_readable(value) for value in values] for name, values in logs["extra"].items()}
    rewards = {name: list(values) for name, values in logs["rewards"].items()}
    return columns | {"advantages": list(logs["advantages"]), "rewards": rewards, "extra": extra}


def _restore_completions(trainer: GRPOTrainer, saved: dict[str, Any]) -> None:
    for name, values in saved.items():
        kept = trainer._logs[name]
        if isinstance(kept, deque):
            kept.clear()
            kept.extend(values)
        else:
            assert isinstance(kept, defaultdict)
            kept.clear()
            for column, items in values.items():
                kept[column].extend(items)


def _readable(value: Any) -> Any:
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _number(value: Any) -> float:
    """Metrics that are tensors or NumPy's numbers."""
    return value.item()
