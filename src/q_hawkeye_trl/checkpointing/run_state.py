"""
The run state that checkpoints of TRL and transformers leave out.

It is the position in the generation window, the rollouts of that window, and the sums, metrics and completions that
are not logged yet.
"""

import json
from collections import defaultdict, deque
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging
from trl import GRPOTrainer
from trl.trainer.utils import strip_images_from_messages

logger = logging.get_logger(__name__)

STATE_FILE = "run_state_{}.json"
"""One per rank, in every checkpoint: counters, sums and metrics."""

ROLLOUTS_FILE = "rollouts_{}.pt"
"""One per rank, only in checkpoints inside a generation window: the batches of that window."""


def window_steps(trainer: GRPOTrainer) -> int:
    """Return the micro-batches of a generation window, which share their rollouts."""
    return trainer.args.steps_per_generation * trainer.num_iterations


def save_run_state(trainer: GRPOTrainer, checkpoint: str | Path, own: dict[str, Any] | None) -> None:
    """Add this rank's state, and `own` JSON-serializable state of a subclass, to a checkpoint."""
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
        torch.save(trainer._buffered_inputs, Path(checkpoint) / ROLLOUTS_FILE.format(rank))
    # numbers of torch and NumPy become Python's
    text = json.dumps(content, default=lambda value: value.item())
    (Path(checkpoint) / STATE_FILE.format(rank)).write_text(text)


def read_run_state(trainer: GRPOTrainer, checkpoint: str | Path) -> dict[str, Any] | None:
    """
    Read this rank's state; `None`, with a warning, if another trainer saved the checkpoint.

    Raise `ValueError` if the checkpoint is inside a generation window that the trainer's settings can't continue.
    """
    checkpoint = Path(checkpoint)
    path = checkpoint / STATE_FILE.format(trainer.args.process_index)
    if not path.is_file():  # fewer ranks saved it
        path = checkpoint / STATE_FILE.format(0)
    if not path.is_file():
        logger.warning(
            f"{checkpoint} has no {path.name}: running metrics restart, and a checkpoint between two steps that share "
            "their rollouts resumes with new rollouts."
        )
        return None
    state = json.loads(path.read_text())
    settings = _settings(trainer)
    changed = [
        f"{name} was {value} and is {settings.get(name)}"
        for name, value in state["settings"].items()
        if settings.get(name) != value
    ]
    if state["inside_window"] and changed:
        raise ValueError(
            f"{checkpoint} is between two steps that share their rollouts, and {'; '.join(changed)}: the rollouts "
            "can't be redistributed. Resume with the original settings, or from a checkpoint between rollouts (every "
            f"{window_steps(trainer)} micro-batches)."
        )
    return state | {"same_settings": not changed}


def restore_run_state(trainer: GRPOTrainer, checkpoint: str | Path, state: dict[str, Any]) -> None:
    """Restore what [`read_run_state`] returned, after transformers has reset its counters."""
    if state["same_settings"]:  # otherwise windows start at other steps: TRL counts from 0
        trainer._step = state["step"]
    for mode, values in state["metrics"].items():
        trainer._metrics[mode].clear()
        trainer._metrics[mode].update(values)
    trainer._tr_loss = torch.full_like(trainer._tr_loss, state["loss"])
    trainer._total_loss_scalar = state["loss_logged"]
    trainer._globalstep_last_logged = state["step_logged"]
    if state["inside_window"]:
        path = Path(checkpoint) / ROLLOUTS_FILE.format(trainer.args.process_index)
        device = trainer.accelerator.device
        device = torch.device("cpu") if device.type == "cpu" else device  # torch can't load to accelerate's "cpu:0"
        trainer._buffered_inputs = torch.load(path, map_location=device, weights_only=True)
    if state["completions"] is not None:
        _restore_completions(trainer, state["completions"])


def _settings(trainer: GRPOTrainer) -> dict[str, Any]:
    """Return the settings that decide how rollouts are distributed over ranks and steps."""
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
    """TRL's table of completions, without the images that only trackers show."""
    logs = trainer._logs
    columns = {name: [strip_images_from_messages(row) for row in logs[name]] for name in ("prompt", "completion")}
    extra = {name: [_readable(value) for value in values] for name, values in logs["extra"].items()}
    rewards = {name: list(values) for name, values in logs["rewards"].items()}
    return columns | {"advantages": list(logs["advantages"]), "rewards": rewards, "extra": extra}


def _restore_completions(trainer: GRPOTrainer, saved: dict[str, Any]) -> None:
    for name, values in saved.items():
        kept = trainer._logs[name]
        kept.clear()
        if isinstance(kept, deque):
            kept.extend(values)
        else:
            assert isinstance(kept, defaultdict)
            for column, items in values.items():
                kept[column].extend(items)


def _readable(value: Any) -> Any:
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
