"""The folder of the run: can it be written to, and does it hold the checkpoints that are planned."""

import os
import shutil
import tempfile
from pathlib import Path

from .finding import Finding, Plan, ok, problem, warning
from .model import ModelSize, readable


def checkpoint_bytes(
    size: ModelSize, optimizer: str = "adamw_torch", *, zero: bool = False, states: bool = True
) -> int:
    """
    Estimates the size of a checkpoint: the saved weights (all, or the adapter's) and the optimizer's states of what is
    trained. Adam keeps two numbers a weight, in the weights' own precision, of one byte each in 8 bits; under ZeRO
    they are 32-bit, with a third number, the 32-bit weight. SGD without momentum keeps none, Adafactor next to none.

    Args:
        size ([`ModelSize`]):
            Size of the model.
        optimizer (`str`, *optional*, defaults to `"adamw_torch"`):
            Name, as `optim` has it.
        zero (`bool`, *optional*, defaults to `False`):
            Whether DeepSpeed keeps the states.
        states (`bool`, *optional*, defaults to `True`):
            Whether the optimizer is saved; `save_only_model` leaves it out.

    Returns:
        `int`: Bytes.
    """
    saved = size.trainable if size.adapter else size.parameters
    weights = saved * size.weight_bytes
    if not states:
        return weights
    if zero:
        return weights + 12 * size.trainable
    if optimizer.startswith(("sgd", "adafactor")):
        return weights
    each = 1 if "8bit" in optimizer else size.weight_bytes
    return weights + 2 * each * size.trainable


def write_fault(folder: Path) -> str | None:
    """Says why a folder can't be written to, `None` where it can. Nothing is left there."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"0")
            file.flush()
    except OSError as error:
        return error.strerror or str(error)
    return None


def check_disk(plan: Plan, size: ModelSize | None) -> list[Finding]:
    """Whether `output_dir` can be made and written to, and has room. Nothing is left there."""
    if plan.output_dir is None:
        return []
    folder = Path(plan.output_dir).absolute()
    existing = next(parent for parent in (folder, *folder.parents) if os.path.lexists(parent))
    if not existing.is_dir():
        return [problem("output_dir", f"{existing} is no folder", "name another output_dir")]
    if (fault := write_fault(existing)) is not None:
        return [problem("output_dir", f"{existing} can't be written to ({fault})", "name another output_dir")]
    found = []
    if existing == folder and any(folder.iterdir()):
        advice = "name another one, or go on with the run in it by --resume_from_checkpoint true"
        found.append(warning("output_dir", f"{plan.output_dir} is not empty, so that a new run refuses it", advice))
    return [*found, _space(plan, size, shutil.disk_usage(existing).free)]


def _space(plan: Plan, size: ModelSize | None, free: int) -> Finding:
    text = f"writable, {readable(free)} free"
    if size is None:
        return ok("disk", f"{text}; what the checkpoints need is not known without the model")
    args = plan.args
    optimizer = "adamw_torch" if args is None else str(getattr(args.optim, "value", args.optim))
    zero = "deepspeed" in plan.wanted
    one = checkpoint_bytes(size, optimizer, zero=zero, states=args is None or not args.save_only_model)
    final = checkpoint_bytes(size, states=False)
    kept = _checkpoints(plan)
    # one more than are kept: the oldest goes when the newest is whole
    needed = final + (0 if kept == 0 else (kept + 1) * one)
    text += f"; a checkpoint is about {readable(one)}, {kept} of them and the final model take {readable(needed)}"
    if free < needed:
        advice = "free some, name another disk, lower save_total_limit, or set save_only_model (no resume then)"
        make = problem if free < one else warning
        return make("disk", text, advice)
    if kept > 1 and args is not None and args.save_total_limit is None:
        text += " (without save_total_limit every checkpoint stays: reckoned with 2)"
        return warning("disk", text, "set save_total_limit, or mind the disk")
    return ok("disk", text)


def _checkpoints(plan: Plan) -> int:
    if plan.args is None:
        return 2
    if str(getattr(plan.args.save_strategy, "value", plan.args.save_strategy)) == "no":
        # examples/train_koniq.py keeps the best one on the validation images all the same
        best = plan.script_args is not None and plan.script_args.validate and plan.script_args.keep_best
        return plan.args.save_total_limit or 1 if best else 0
    return plan.args.save_total_limit or 2
